"""Where the bits of a tile went: how many each position of y cost, according to the tables.

The bits of a latent of y count at its position. Those of a value of z, which stands for 4x4 positions of y, are shared
equally between those positions that exist. Sums agree with `rans.bits`, and with each stream's length up to 8 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmcodec.exact.schedule import GROUPS, PHASE_IN_Y, STRIDE, Step, grid, unfold
from hpcmcodec.rans import Tables, bits

__all__ = ["step_cost", "z_cost"]


def z_cost(tables: Tables, symbols: np.ndarray, indexes: np.ndarray, h: int, w: int) -> np.ndarray:
    """The bits of z at each position of y, float64 (h, w).

    symbols, indexes: (rows, columns, N), z and the table of each of its values.
    """
    rows, columns, _ = symbols.shape
    cost = bits(tables, symbols.ravel(), indexes.ravel()).reshape(symbols.shape).sum(axis=2)
    share = np.outer(np.minimum(4, h - 4 * np.arange(rows)), np.minimum(4, w - 4 * np.arange(columns)))
    return np.repeat(np.repeat(cost / share, 4, axis=0), 4, axis=1)[:h, :w]


def step_cost(
    tables: Tables, step: Step, symbols: np.ndarray, levels: np.ndarray, at: np.ndarray, h: int, w: int, latent: int
) -> np.ndarray:
    """The bits of one coding step at each position of y, float64 (h, w).

    symbols, levels, at: (n,), the coded symbols, their levels and their places in the flat folded array.
    """
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
