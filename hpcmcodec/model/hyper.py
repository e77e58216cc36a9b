"""Which table codes each value of z, and in which order: its table depends on the values to the left and above.

z has rows x columns positions of N channels. The *context* of a value is the number of thresholds that the sum of the
value to its left and of the one above reaches, both of its own channel. Where one of the two is missing, at an edge,
the other counts twice; at the first position the sum is zero. Each channel has K - 1 thresholds and K tables in each
band of qualities.

Both neighbours have to be known, so positions are coded in *waves*: those whose row + column is 0, then 1, and so on.
Within a wave the channels follow each other, in each the positions by row. Tables without thresholds have one context;
all positions are then one wave, in raster order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmcodec.model.entropy import Z_BANDS
from hpcmcodec.quality import Quality

__all__ = ["MAX_CONTEXTS", "Contexts"]

MAX_CONTEXTS = 256
"""Contexts of each channel in a band, at most."""


class Contexts:
    """The contexts of z.

    Args:
        thresholds: (Z_BANDS * N, K - 1) integers, rising or equal in each row; K - 1 may be 0.
    """

    def __init__(self, thresholds: np.ndarray) -> None:
        self.channels = len(thresholds) // Z_BANDS
        self.number = thresholds.shape[1] + 1
        self.thresholds = thresholds.reshape(Z_BANDS, self.channels, -1)

    def waves(self, rows: int, columns: int) -> list[np.ndarray]:
        """The positions (n,) of each wave, counted in raster order."""
        diagonal = np.add.outer(np.arange(rows), np.arange(columns)).ravel()
        if self.number == 1:
            return [np.arange(len(diagonal))]
        order = np.argsort(diagonal, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(diagonal[order])) + 1)

    def tables(self, z: np.ndarray, at: np.ndarray, quality: Quality) -> np.ndarray:
        """The row of z's tables for each value at the positions `at` (n,): (n, N).

        z: (rows, columns, N) integers, of which only neighbours of `at` count.
        """
        band = band_of(quality)
        sums = neighbours(z, at)[..., None]
        context: Any = (sums >= self.thresholds[band]).sum(-1)
        return (band * self.channels + np.arange(self.channels)) * self.number + context


def band_of(quality: Quality) -> int:
    """The band of qualities that has tables of its own."""
    return min(quality.hundredths * Z_BANDS // 10000, Z_BANDS - 1)


def neighbours(z: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The sum of the left and the upper neighbour of the positions `at` (n,) of z (rows, columns, N): (n, N)."""
    _, columns, n = z.shape
    row, column = np.divmod(at, columns)
    left, above = at - 1, at - columns
    flat = z.reshape(-1, n)
    sums = flat[np.where(column > 0, left, above)] + flat[np.where(row > 0, above, left)]
    return np.where(at[:, None] > 0, sums, 0)
