"""Planes of another size, by integer matrices along rows and columns: means over bins, and bilinear interpolation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

ONE = 256  # the weights of a bilinear row add up to this


@lru_cache(maxsize=64)
def mean_matrix(size: int, n: int) -> np.ndarray:
    """Which of n rows each of `size` bins covers, 0 or 1, float64 (size, n).

    Bin i covers floor(i n / size) .. ceil((i + 1) n / size) - 1, so bins of a small plane repeat its rows.
    """
    i, row = np.arange(size)[:, None], np.arange(n)[None]
    return np.asarray((row >= i * n // size) & (row < -(-(i + 1) * n // size)), np.float64)


@lru_cache(maxsize=64)
def bilinear_matrix(size: int, n: int) -> np.ndarray:
    """The weights of n rows in each of `size`, integers that add up to `ONE`, float64 (size, n).

    Row i lies at (i + 1/2) n / size - 1/2 of the n, in 256ths rounded down, within the plane (corners are not aligned).
    """
    place = ((2 * np.arange(size) + 1) * n - size) * ONE // (2 * size)
    place = np.clip(place, 0, (n - 1) * ONE)
    below, part = place // ONE, place % ONE
    out = np.zeros((size, n))
    np.add.at(out, (np.arange(size), below), ONE - part)
    np.add.at(out, (np.arange(size), np.minimum(below + 1, n - 1)), part)
    return out
