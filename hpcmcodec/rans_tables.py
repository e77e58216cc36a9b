"""Frequency tables of the entropy coder: `rans` describes their form, which is checked here once for all coders."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_SYMBOL", "Tables"]

MAX_SYMBOL = 2**20
"""Largest absolute value of a symbol: larger than any that the model computes, and well below the coder's own 2^27."""

_TOTAL = 1 << 16


class Tables:
    """Frequency tables that have been checked, in the form that the coder takes.

    Args:
        cdf: (n_tables, max_size) integers; row i holds `sizes[i]` cumulative frequencies, rising strictly from 0 to
            2^16. The rest of the row is ignored. Entry j of row i stands for the value `offsets[i] + j`, the last
            entry for the escape.
        sizes: (n_tables,) integers, the number of cumulative frequencies of each table: at least 3, which are one value
            and the escape.
        offsets: (n_tables,) integers, the smallest value that each table codes without its escape.

    Attributes:
        cdf, sizes, offsets: the arguments as int32, not writeable.
        low, high: (n_tables,) int32, the smallest and largest value that each table codes without its escape; both
            lie within +-`MAX_SYMBOL`.

    Raises:
        ValueError: shapes, dtypes or contents are not as described above, or table 0 does not code the value 0.
    """

    def __init__(self, cdf: NDArray[np.integer], sizes: NDArray[np.integer], offsets: NDArray[np.integer]) -> None:
        for name, array, n_dims in (("cdf", cdf, 2), ("sizes", sizes, 1), ("offsets", offsets, 1)):
            if not np.issubdtype(array.dtype, np.integer) or array.ndim != n_dims:
                raise ValueError(f"{name} is {array.ndim}-dimensional {array.dtype}, not {n_dims}-dimensional integers")
        n_tables, max_size = cdf.shape
        if n_tables == 0 or not len(sizes) == len(offsets) == n_tables:
            raise ValueError(f"{n_tables} tables, {len(sizes)} sizes, {len(offsets)} offsets")
        # int64 for the checks, so that no difference or sum of them overflows.
        wide_cdf, wide_sizes, wide_offsets = (array.astype(np.int64) for array in (cdf, sizes, offsets))
        if wide_sizes.min() < 3 or wide_sizes.max() > max_size:
            raise ValueError(f"sizes from {wide_sizes.min()} to {wide_sizes.max()}, not within 3..{max_size}")
        last = wide_cdf[np.arange(n_tables), wide_sizes - 1]
        inside = np.arange(1, max_size) < wide_sizes[:, None]
        # A frequency of zero is refused, since the coder would divide by it. So none can be 2^16, of which the coder
        # would keep only 16 bits.
        rising = (wide_cdf[:, 1:] > wide_cdf[:, :-1]) | ~inside
        wrong = (wide_cdf[:, 0] != 0) | (last != _TOTAL) | ~rising.all(axis=1)
        if wrong.any():
            raise ValueError(f"table {int(wrong.argmax())} does not rise strictly from 0 to {_TOTAL}")
        high = wide_offsets + wide_sizes - 3
        if wide_offsets.min() < -MAX_SYMBOL or high.max() > MAX_SYMBOL:
            raise ValueError(f"values from {wide_offsets.min()} to {high.max()}, not within +-{MAX_SYMBOL}")
        if not wide_offsets[0] <= 0 <= high[0]:
            raise ValueError(f"table 0 codes {wide_offsets[0]}..{high[0]}: short streams are filled up with its zeros")

        self.cdf = _frozen(wide_cdf)
        self.sizes = _frozen(wide_sizes)
        self.offsets = _frozen(wide_offsets)
        self.low = self.offsets
        self.high = _frozen(high)

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def rows(self) -> list[list[int]]:
        """Each table's cumulative frequencies as a list, for coders that do not read arrays."""
        return [row[:size].tolist() for row, size in zip(self.cdf, self.sizes, strict=True)]


def _frozen(array: NDArray[np.int64]) -> NDArray[np.int32]:
    result = array.astype(np.int32)
    result.setflags(write=False)
    return result
