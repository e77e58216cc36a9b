"""Levels, grids by quality, and the integer tables of the entropy coder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpcmcodec.exact.constants import LEVELS
from hpcmcodec.quality import Quality

LEVELS_PER_OCTAVE = 6
LEVEL_OF_ONE = 26  # the level of spread 1; level 0 has 0.0496, level 63 has 71.8 quantisation steps
# (quality, m, n): below the quality, grids of contexts and priors have m more fractional bits, those of carries n.
# Latents shrink with the quality, and the context's activations with them, so their codes have room for these bits.
# Without them, rounding costs half a percent of the bits at q 10.
FINER_BELOW = ((Quality.of(50), 2, 1), (Quality.of(75), 1, 1))
# The spread of z depends on the quality, too. Training has one prior for all qualities; tables are made for each fifth.
Z_BANDS = 5
SKIP_PROBABILITY = 0.998  # where a table gives zero more than this, symbols are not coded: they are zero by rule


def scale_of_level(level: np.ndarray) -> np.ndarray:
    """The spread of the logistic distribution, in quantisation steps, that a level stands for."""
    return np.asarray(2.0 ** ((level - LEVEL_OF_ONE) / LEVELS_PER_OCTAVE))


def grids_at(grids: Mapping[str, int], quality: Quality) -> dict[str, int]:
    """Exponents of all grids for coding at a quality; `grids` holds those for the best quality."""
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
    """Cumulative frequencies int32 (len(pmf) + 2,), from 0 to 65536; the last entry is the escape.

    Every entry first gets a frequency of one, so that none is zero; the rest is shared by largest remainder.
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
    """The table of a symmetric distribution and its lowest value, -R.

    magnitudes: the probabilities of |v| = 0, 1, ..., R and, as the last, of |v| > R.
    """
    m = np.asarray(magnitudes, np.float64)
    half = m[1:-1] / 2
    return integer_cdf(np.concatenate([half[::-1], m[:1], half]), float(m[-1])), -len(half)


def pack_tables(rows: Sequence[tuple[np.ndarray, int]]) -> dict[str, np.ndarray]:
    """The arrays of `rans.Tables` from n tables and lowest values: cdf int32 (n, longest); sizes, offsets (n,)."""
    cdf = np.zeros((len(rows), max(len(c) for c, _ in rows)), np.int32)
    for i, (c, _) in enumerate(rows):
        cdf[i, : len(c)] = c
    return {
        "cdf": cdf,
        "sizes": np.array([len(c) for c, _ in rows], np.int32),
        "offsets": np.array([o for _, o in rows], np.int32),
    }


def logistic_magnitudes(level: int) -> np.ndarray:
    """Probabilities of |v| = 0, 1, ..., R and of |v| > R, under the logistic that training assumes for a level."""
    s = float(scale_of_level(np.array(level)))
    reach = int(min(1 + np.ceil(s * 12), 900))
    above = logistic_cdf(-(np.arange(reach + 1) + 0.5) / s)  # P(v > r + 0.5): no cancellation in the tail
    return np.concatenate([1 - 2 * above[:1], 2 * -np.diff(above), 2 * above[-1:]])


def logistic_tables() -> dict[str, np.ndarray]:
    """One table for each level, from the logistic of its spread. Export fits tables to measured residuals instead."""
    return pack_tables([symmetric_table(logistic_magnitudes(level)) for level in range(LEVELS)])


def centroids() -> np.ndarray:
    """How far towards the mean a latent is moved, in sixteenths: int32 (LEVELS, 3), by magnitude of symbol 0, 1, more.

    It is reconstructed at the centre of mass of its bin under the level's logistic. With S(x) = 1 / (1 + exp(x / s)),
    the integral of x over a bin a..b is a S(a) - b S(b) + the integral of S over it, which is
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
    """One table for each row of cumulative probabilities (rows, R + 1) at low - 0.5, low + 0.5, ...

    Values in a tail of less than half of 1 / 65536 are left to the escape; zero always keeps an entry.
    """
    rows = []
    for c in cdf:
        inside = np.flatnonzero((c[1:] > 2.0**-17) & (c[:-1] < 1 - 2.0**-17))
        a, b = min(int(inside[0]), -low), max(int(inside[-1]), -low) + 1
        rows.append((integer_cdf(np.diff(c)[a:b], 1 - (c[b] - c[a])), low + a))
    return pack_tables(rows)


def skipped_levels(cdf: np.ndarray, sizes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Whether each level's table gives zero more than SKIP_PROBABILITY, decided in integers: bool (levels,)."""
    at = -offsets.astype(np.int64)
    rows: Any = np.arange(len(sizes))
    return np.asarray((cdf[rows, at + 1] - cdf[rows, at]) > int(SKIP_PROBABILITY * 65536))
