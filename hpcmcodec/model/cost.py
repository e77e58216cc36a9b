"""Where the bits of a tile went: what the tables say that each position of the latent plane cost.

A symbol is charged to the position of y that it belongs to; one of z, which stands for 4x4 positions, to those of them
that exist, in equal parts. Sums agree with `rans.bits`, hence with the streams up to 8 bytes each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmcodec.exact.schedule import GROUPS, PHASE_IN_Y, STRIDE, Step, grid, unfold
from hpcmcodec.rans import Tables, bits

__all__ = ["step_cost", "z_cost"]


def z_cost(tables: Tables, symbols: np.ndarray, indexes: np.ndarray, h: int, w: int) -> np.ndarray:
    """(h, w) float64 in bits, from the symbols of z (N * rows * columns,), channel by channel in raster order."""
    rows, columns = -(-h // 4), -(-w // 4)
    cost = bits(tables, symbols, indexes).reshape(-1, rows, columns).sum(axis=0)
    share = np.outer(np.minimum(4, h - 4 * np.arange(rows)), np.minimum(4, w - 4 * np.arange(columns)))
    return np.repeat(np.repeat(cost / share, 4, axis=0), 4, axis=1)[:h, :w]


def step_cost(
    tables: Tables, step: Step, symbols: np.ndarray, levels: np.ndarray, at: np.ndarray, h: int, w: int, latent: int
) -> np.ndarray:
    """(h, w) float64 in bits, from a step's coded symbols (n,), their levels and places in the flat folded array."""
    rows, columns = grid(step.scale, h, w)
    channels = latent // GROUPS[step.scale]
    flat = np.zeros(channels * rows * columns)
    flat[at] = bits(tables, symbols, levels)
    folded: Any = flat.reshape(channels, rows, columns).transpose(1, 2, 0)[None]
    plane = unfold(folded, step, np.zeros((1, rows, columns, latent)))[0]
    out = np.zeros((h, w))
    stride, m = STRIDE[step.scale], latent // 8
    for g, (row, column) in enumerate(PHASE_IN_Y[step.scale]):
        target = out[row::stride, column::stride]
        target += plane[: target.shape[0], : target.shape[1], g * m : (g + 1) * m].sum(axis=2)
    return out
