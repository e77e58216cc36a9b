"""What an export fits to photographs: exponents of grids, integers of the synthesis, thumbnails, tables.

The grids are fitted anew (`fit_grids`), because activations go on moving while the grids of a run stay as they are.
The tables are fitted to what coding really produces. The exact path runs over photographs at many qualities; the
magnitudes of y's symbols are counted for each level, the symbols of z for each channel, band of qualities and context.
Both counts are blended with what training assumed, which decides where counts are few.

Photographs are pairs of pixels (16 h, 16 w, 3) uint8 and a quality.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcmcodec.container import LATENT
from hpcmcodec.exact.constants import FIXED_GRIDS, LEVELS
from hpcmcodec.exact.layers import Dequantise, Read, quantise
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.exact.schedule import decimate
from hpcmcodec.model import fold
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.model.config import Config
from hpcmcodec.model.declaration import declare_synthesis
from hpcmcodec.model.entropy import (
    Z_BANDS,
    factorised_tables,
    grids_at,
    logistic_magnitudes,
    pack_tables,
    symmetric_table,
)
from hpcmcodec.model.hpcm import HPCM, Z_EDGES, Z_REACH, Estimator
from hpcmcodec.model.hyper import Contexts, band_of, neighbours
from hpcmcodec.model.synthesis import THUMBNAIL, THUMBNAIL_STRIDE
from hpcmcodec.native import loader
from hpcmcodec.quality import Quality
from hpcmcodec.training import stages
from hpcmcodec.training.data import to_unit

Z_PRIOR_COUNTS = 100.0  # in each channel of a band, the trained prior weighs as many counted symbols of z
Z_CONTEXTS = 6  # of z's values in each channel of a band,
Z_CONTEXT_COUNTS = 30.0  # in each of which the distribution of all contexts weighs as many counted symbols
Z_SPAN = 1.5  # the outermost thresholds lie so many standard deviations from the mean of the neighbours' sums
PRIOR_COUNTS = 2000.0  # in each level, the logistic weighs as many counted symbols of y
TAIL = 2.0**-15  # a table ends where less probability than this is left, which goes to the escape
SPARE = 0.5  # of a code's range, that the synthesis' activations of the photographs stay within
FINEST = 8  # a channel's codes are finer than one exponent for all channels would make them, by this factor at most
RIDGE = {"s2": 1e-2, "s3": 1e-6}  # of thumbnails' least squares, against the mean square: s2 has less to go by
UNSEEN = 8.0  # magnitude assumed of activations where there are no photographs


def model_inputs(pixels: np.ndarray, quality: Quality) -> tuple[Tensor, Tensor]:
    """Pixels (H, W, 3) uint8 and a quality -> x (1, 3, H, W) in [0, 1] and q (1,) in [0, 1]."""
    return to_unit(torch.from_numpy(pixels).permute(2, 0, 1)[None]), torch.tensor([quality.unit])


def fit_grids(model: HPCM, photographs: Iterable[tuple[np.ndarray, Quality]]) -> dict[str, int]:
    """Exponents of the grids for coding, by name.

    Each grid is as fine as possible while, in every photograph, 99.9% of its values stay within 0.7 of the clamp. No
    grid is coarser than in training, since the network may depend on its clamp.
    """
    least: dict[str, float] = {}
    for pixels, quality in photographs:
        finer = grids_at(model.grids, quality)
        for grid, peak in stages.peaks(model, *model_inputs(pixels, quality), False, 0.999).items():
            e = stages.room(peak, 0.7, model.config.precision) - (finer[grid] - model.grids[grid])
            least[grid] = min(least.get(grid, e), e)
    return {g: e if g in FIXED_GRIDS else max(e, math.floor(least.get(g, e))) for g, e in model.grids.items()}


@torch.no_grad()
def synthesis_integers(model: Estimator, photographs: Iterable[tuple[np.ndarray, Quality]]) -> dict[str, np.ndarray]:
    """The stored tensors of the synthesis and its thumbnails, exponents fitted to what photographs make of it."""
    peaks, maps = _Peaks(model), Thumbnails(model.config)
    state = {k: v.float().numpy() for k, v in model.state_dict().items()}
    layers = declare_synthesis(model.config)[0]
    with peaks:
        for pixels, quality in photographs:
            x, q = model_inputs(pixels, quality)
            y_hat = model.analyse(x, q)[0].round()
            y = y_hat * model.ungain.factors(q)[:, :, 0, 0]
            maps.add(y_hat.numpy()[0], y.numpy()[0], model.synthesise(y_hat, q)[0].permute(1, 2, 0).numpy())
    exponents = {name: exponents_of(peak) for name, peak in peaks.of.items()}
    derived = fold.derived(model.config, state, exponents) | maps.solve(exponents["ungain"])
    return quantise(layers.values(), derived, FIXED_GRIDS)


def exponents_of(peak: np.ndarray) -> np.ndarray:
    """e of each channel from its largest magnitude."""
    peak = np.maximum(peak, peak.max() / FINEST)
    return np.array([math.floor(stages.room(float(p), SPARE)) for p in peak])


class _Peaks:
    """Largest magnitudes (C,) in g_s while it runs, of what layers give as codes: by the layer's name."""

    def __init__(self, model: Estimator) -> None:
        self.layers = list(fold.folded(model.config))
        self.of = {f.codes.name: np.full(f.codes.out, UNSEEN) for f in self.layers}
        self.seen: set[str] = set()
        self.modules = dict(model.named_modules())
        self.hooks: list[Any] = []

    def __enter__(self) -> None:
        for f in self.layers:
            self.hooks.append(self.modules[f.module].register_forward_hook(partial(self._see, f)))

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, f: fold.Folded, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(f.codes, Read | Dequantise):
            self._keep(f.codes.name, inputs[0])
        if f.coded:
            self._keep(f.layer.name, out)

    def _keep(self, name: str, x: Tensor) -> None:
        peak = x.float().abs().amax((0, 2, 3)).numpy()
        self.of[name] = np.maximum(peak, self.of[name]) if name in self.seen else peak
        self.seen.add(name)


class Thumbnails:
    """Least squares from y_hat, times its factors, to the picture's mean over 8 x 8 pixels, around 0."""

    def __init__(self, config: Config) -> None:
        self.config = config
        n = config.latent + 1
        self.moments = {s: np.zeros((n, n)) for s in THUMBNAIL_STRIDE}
        self.products = {s: np.zeros((n, 3 * (THUMBNAIL * k) ** 2)) for s, k in THUMBNAIL_STRIDE.items()}

    def add(self, y_hat: np.ndarray, y: np.ndarray, picture: np.ndarray) -> None:
        """y_hat and y, the same times its factors, (h, w, M); the picture that they give (16 h, 16 w, 3)."""
        side = LATENT // THUMBNAIL
        h, w, _ = y.shape
        small = picture.reshape(h * THUMBNAIL, side, w * THUMBNAIL, side, 3).mean((1, 3), dtype=np.float64) - 0.5
        for scale, stride in THUMBNAIL_STRIDE.items():
            rows, columns = (n // stride * stride for n in (h, w))
            if not rows or not columns:
                continue
            out = np.zeros((1, rows // stride, columns // stride, self.config.latent))
            x = decimate(y[None, :rows, :columns].astype(np.float64), scale, out).reshape(-1, self.config.latent)
            x = np.concatenate([x, np.ones((len(x), 1))], 1)
            k = THUMBNAIL * stride
            target = small[: rows * THUMBNAIL, : columns * THUMBNAIL]
            target = target.reshape(rows // stride, k, columns // stride, k, 3).transpose(0, 2, 1, 3, 4)
            self.moments[scale] += x.T @ x
            self.products[scale] += x.T @ target.reshape(len(x), -1)

    def solve(self, exponents: np.ndarray) -> dict[str, np.ndarray]:
        """The layers' derived tensors, for codes of these exponents."""
        out, unit = {}, np.append(np.exp2(-exponents.astype(np.float64)), 1.0)
        for scale, moments in self.moments.items():
            ridge = np.eye(len(moments)) * (RIDGE[scale] * np.trace(moments) / len(moments) + 1e-9)
            solution = np.linalg.solve(moments + ridge, self.products[scale]) * unit[:, None]
            out[f"thumbnail.{scale}.weight"] = solution[:-1].T.astype(np.float32)
            out[f"thumbnail.{scale}.bias"] = solution[-1].astype(np.float32)
        return out


def fit_tables(
    model: HPCM,
    integers: Mapping[str, np.ndarray],
    photographs: Iterable[tuple[np.ndarray, Quality]],
    more: Iterable[tuple[np.ndarray, Quality]] = (),
) -> dict[str, np.ndarray]:
    """Tables of z and y by name (`z.cdf`, `y.cdf`, ...), counted by coding the photographs on the exact path.

    more: photographs of which z alone is counted. A photograph has few values of z, and its tables are many.
    """
    first = model.tables()
    coder = _Counting(model.config, loader.exact_ops(integers, model.grids, model.config.precision), first)
    planes: list[tuple[Quality, np.ndarray]] = []
    for part, whole in ((photographs, True), (more, False)):
        for pixels, quality in part:
            with torch.no_grad():
                y, z = (v[0].numpy() for v in model.analyse(*model_inputs(pixels, quality)))
            if whole:
                coder.encode(y, z, quality)
            planes.append((quality, np.rint(z).astype(np.int32)))
    rows = []
    for level in range(LEVELS):
        assumed = logistic_magnitudes(level)
        counts = np.append(coder.counts[level, : len(assumed) - 1], coder.counts[level, len(assumed) - 1 :].sum())
        p = counts + PRIOR_COUNTS * assumed / assumed.sum()
        p /= p.sum()
        beyond = p[::-1].cumsum()[::-1]  # probability of |v| >= r
        reach = int(np.flatnonzero(beyond > TAIL)[-1])
        reach = max(1, min(reach, len(p) - 2))
        rows.append(symmetric_table(np.append(p[: reach + 1], beyond[reach + 1])))
    return first | hyper_tables(model.z_cdf(), planes) | {f"y.{k}": v for k, v in pack_tables(rows).items()}


def hyper_tables(cdf: np.ndarray, planes: Iterable[tuple[Quality, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tables and thresholds of z by name, counted in planes (rows, columns, N); cdf: `HPCM.z_cdf` (N, edges)."""
    channels, n_edges = cdf.shape
    of_band: list[list[tuple[Quality, np.ndarray]]] = [[] for _ in range(Z_BANDS)]
    for quality, z in planes:
        of_band[band_of(quality)].append((quality, z))
    thresholds = np.zeros((Z_BANDS * channels, Z_CONTEXTS - 1), np.int32)
    for band, found in enumerate(of_band):
        if found:
            sums = np.concatenate([neighbours(z, _everywhere(z)) for _, z in found])
            spread = sums.std(0)[:, None] * np.linspace(-Z_SPAN, Z_SPAN, Z_CONTEXTS - 1)
            thresholds[band * channels :][:channels] = np.ceil(sums.mean(0)[:, None] + spread)
    contexts = Contexts(thresholds)
    counts = np.zeros((Z_BANDS * channels * Z_CONTEXTS, n_edges + 1))
    for quality, z in (plane for found in of_band for plane in found):
        tables = contexts.tables(z, _everywhere(z), quality)
        np.add.at(counts, (tables, np.searchsorted(Z_EDGES, z.reshape(tables.shape))), 1)
    below = counts.cumsum(1)[:, :n_edges].reshape(Z_BANDS, channels, Z_CONTEXTS, n_edges)
    symbols = counts.sum(1).reshape(Z_BANDS, channels, Z_CONTEXTS, 1)
    of_channel = (Z_PRIOR_COUNTS * cdf + below.sum(2)) / (Z_PRIOR_COUNTS + symbols.sum(2))
    blended = (Z_CONTEXT_COUNTS * of_channel[:, :, None] + below) / (Z_CONTEXT_COUNTS + symbols)
    tables_of = factorised_tables(blended.reshape(-1, n_edges), -Z_REACH)
    return {f"z.{k}": v for k, v in tables_of.items()} | {"z.thresholds": thresholds}


def _everywhere(z: np.ndarray) -> np.ndarray:
    """All positions of a plane (rows, columns, N)."""
    return np.arange(z.shape[0] * z.shape[1])


class _Counting(LatentCoder):
    """A latent coder that counts the magnitudes of symbols by level. It skips no level, so that every symbol counts."""

    def __init__(self, config: Config, ops: ExactOps, tables: Mapping[str, np.ndarray]) -> None:
        super().__init__(config, ops, tables)
        self.skipped = np.zeros(LEVELS, bool)
        self.counts = np.zeros((LEVELS, 1024), np.float64)

    def observe(self, symbols: np.ndarray, levels: np.ndarray) -> None:
        magnitude = np.minimum(np.abs(symbols), self.counts.shape[1] - 1)
        self.counts += np.bincount(levels * self.counts.shape[1] + magnitude, minlength=self.counts.size).reshape(
            self.counts.shape
        )
