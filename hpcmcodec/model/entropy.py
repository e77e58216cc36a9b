"""Levels, grids by quality, and the integer tables of the entropy coder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpcmcodec.exact.constants import LEVELS
from hpcmcodec.quality import Quality

LEVELS_PER_OCTAVE = 6
LEVEL_OF_ONE = 26  # level of scale 1: level 0 is 0.0496, level 63 is 71.8
# Latents shrink with the quality, and with them the context's activations: below a quality there is
# room for more bits on the grids of contexts and priors, and on those of carries. Without them rounding costs
# half a percent of the bits at q 10.
FINER_BELOW = ((Quality.of(50), 2, 1), (Quality.of(75), 1, 1))
# z spreads with the quality too, and training knows one prior for all: each fifth of the qualities has its own tables.
Z_BANDS = 5
SKIP_PROBABILITY = 0.998  # symbols of a table that gives zero more than this are not coded: they are zero by rule


def scale_of_level(level: np.ndarray) -> np.ndarray:
    """The logistic scale, in quantisation steps, that a level stands for."""
    return np.asarray(2.0 ** ((level - LEVEL_OF_ONE) / LEVELS_PER_OCTAVE))


def grids_at(grids: Mapping[str, int], quality: Quality) -> dict[str, int]:
    """Exponents of the grids for coding at a quality, from those of the best."""
    for below, inside, carries in FINER_BELOW:
        if quality < below:
            more = {g: inside for g in grids if g.endswith(".context") or ".prior." in g}
            more |= {g: carries for g in grids if g.endswith(".carry")}
            return {g: e + more.get(g, 0) for g, e in grids.items()}
    return dict(grids)


def logistic_cdf(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def integer_cdf(pmf: np.ndarray, escape: float) -> np.ndarray:
    """Cumulative frequencies (len(pmf) + 2,) int32 that sum to 65536, the last symbol being the escape; none is zero.

    Every symbol first gets one count, the rest is shared by largest remainder.
    """
    p = np.append(np.maximum(pmf, 0), max(escape, 0)).astype(np.float64)
    p /= p.sum()
    free = 65536 - len(p)
    exact = p * free
    counts = np.floor(exact).astype(np.int64)
    for i in np.argsort(-(exact - counts), kind="stable")[: free - int(counts.sum())]:
        counts[i] += 1
    return np.concatenate([[0], np.cumsum(counts + 1)]).astype(np.int32)


def symmetric_table(magnitudes: np.ndarray) -> tuple[np.ndarray, int]:
    """CDF of a symmetric distribution and its lowest value, from the probabilities of |v| = 0, 1, ..., R, the last
    beyond R.
    """
    m = np.asarray(magnitudes, np.float64)
    half = m[1:-1] / 2
    return integer_cdf(np.concatenate([half[::-1], m[:1], half]), float(m[-1])), -len(half)


def pack_tables(rows: Sequence[tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
    """cdf int32 (n, longest), sizes, offsets: the arrays of `rans.Tables`."""
    cdf = np.zeros((len(rows), max(len(c) for c, _ in rows)), np.int32)
    for i, (c, _) in enumerate(rows):
        cdf[i, : len(c)] = c
    return {
        "cdf": cdf,
        "sizes": np.array([len(c) for c, _ in rows], np.int32),
        "offsets": np.array([o for _, o in rows], np.int32),
    }


def logistic_magnitudes(level: int) -> np.ndarray:
    """Probabilities of |v| = 0, 1, ..., R and of all beyond, under the logistic that training assumes for a level."""
    s = float(scale_of_level(np.array(level)))
    reach = int(min(1 + np.ceil(s * 12), 900))
    above = logistic_cdf(-(np.arange(reach + 1) + 0.5) / s)  # P(v > r + 0.5): no cancellation in the tail
    return np.concatenate([1 - 2 * above[:1], 2 * -np.diff(above), 2 * above[-1:]])


def logistic_tables() -> dict[str, np.ndarray]:
    """One table a level from the logistic of its scale; export fits them to measured residuals instead."""
    return pack_tables([symmetric_table(logistic_magnitudes(level)) for level in range(LEVELS)])


def centroids() -> np.ndarray:
    """int32 (LEVELS, 3): how far nearer to the mean than the symbol, in sixteenths, a symbol of magnitude 0, 1, or more
    is reconstructed: at the centre of mass of its bin under the level's logistic.

    With S(x) = 1 / (1 + exp(x / s)): the integral of x over a bin a..b is a S(a) - b S(b) + that of S, which is
    s (log(1 + exp(-a / s)) - log(1 + exp(-b / s))).
    """
    s = scale_of_level(np.arange(LEVELS))[:, None]
    n = np.array([1, 2])
    a, b = (n - 0.5) / s, (n + 0.5) / s
    above, below = logistic_cdf(-a), logistic_cdf(-b)
    first_moment = a * above - b * below + np.log1p(np.exp(-a)) - np.log1p(np.exp(-b))
    shift = n - s * first_moment / (above - below)
    return np.concatenate([np.zeros((LEVELS, 1), np.int32), np.rint(16 * shift).astype(np.int32)], 1)


def factorised_tables(cdf: np.ndarray, low: int) -> dict[str, np.ndarray]:
    """One table a row from cumulative probabilities (rows, R + 1) at low - 0.5, low + 0.5, ...; cut to where mass is.

    Both tails beyond half of 1 / 65536 go to the escape; zero always keeps an entry.
    """
    rows = []
    for c in cdf:
        inside = np.flatnonzero((c[1:] > 2.0**-17) & (c[:-1] < 1 - 2.0**-17))
        a, b = min(int(inside[0]), -low), max(int(inside[-1]), -low) + 1
        rows.append((integer_cdf(np.diff(c)[a:b], 1 - (c[b] - c[a])), low + a))
    return pack_tables(rows)


def z_tables_of(quality: Quality, channels: int) -> np.ndarray:
    """int (channels,): the row of z's tables that each channel is coded with, at a quality."""
    return min(quality.hundredths * Z_BANDS // 10000, Z_BANDS - 1) * channels + np.arange(channels)


def skipped_levels(cdf: np.ndarray, sizes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """bool (levels,): whether the table gives zero more than SKIP_PROBABILITY, from the integers alone."""
    at = -offsets.astype(np.int64)
    rows: Any = np.arange(len(sizes))
    return np.asarray((cdf[rows, at + 1] - cdf[rows, at]) > int(SKIP_PROBABILITY * 65536))
