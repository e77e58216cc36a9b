"""What the reference's operations stand on: tensors that were checked, grids, constants that are computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np

from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import PRECISION, TABLE_MAX, limit_of
from hpcmcodec.exact.elementary import sigmoid_table
from hpcmcodec.exact.ops import Act, Array, Composed
from hpcmcodec.exact.quantisation import check_bound

B = TypeVar("B", bound="Base")


class Base(Composed):
    """Tensors and grids of `reference.ExactOps`, which says what they are."""

    def __init__(
        self, xp: Any, tensors: Mapping[str, np.ndarray], grids: Mapping[str, int], precision: int = PRECISION
    ) -> None:
        self.xp, self.tensors, self.grids, self.precision = xp, tensors, grids, precision
        self._prepared: dict[Any, Any] = {}
        for name, t in tensors.items():
            if name.endswith(".weight"):
                if t.dtype != np.int16 or t.ndim != 2:
                    raise IntegrityError(f"{name} is {t.ndim}-dimensional {t.dtype}, not a matrix of int16")
                layer = name.removesuffix(".weight")
                for i, (a, b) in enumerate(self._edges(layer)):
                    check_bound(f"{layer}, input {i}", t[:, a:b], precision)

    def on(self: B, grids: Mapping[str, int]) -> B:
        """The same operations with other exponents; constants that were computed from the tensors are shared."""
        other = copy.copy(self)
        other.grids = grids
        return other

    # Constants in the namespace (matrices, multipliers, biases) are computed on first use and kept.
    def _keep(self, key: Any, make: Any) -> Any:
        if key not in self._prepared:
            self._prepared[key] = make()
        return self._prepared[key]

    def _edges(self, layer: str) -> list[tuple[int, int]]:
        """First and last column of each input's weights."""
        n, count = self.tensors[f"{layer}.weight"].shape[1], self.tensors[f"{layer}.step"].shape[0]
        widths = [int(v) for v in self.tensors.get(f"{layer}.widths", [n])]
        if sum(widths) != n or len(widths) != count:
            raise IntegrityError(f"weights of {layer} do not fit together: {n} columns and {count} steps for {widths}")
        return list(pairwise(accumulate(widths, initial=0)))

    def _code_(self, x: Array, grid: str) -> Array:
        limit = self._limit(grid)
        return self.xp.clamp_(self.xp.rint_(x), -limit, limit)

    def _limit(self, grid: str) -> int:
        return limit_of(grid, self.precision)

    def _sigmoid(self, r: Act) -> Array:
        return self.xp.take(self._sigmoid_table(r), self._index(r.x))

    def _sigmoid_table(self, r: Act) -> Array:
        return self._table("sigmoid", sigmoid_table, r)

    def _table(self, name: str, make: Callable[[int], np.ndarray], a: Act) -> Array:
        """A function of the codes -2047..2047 of a's grid."""
        if self._limit(a.grid) > TABLE_MAX:
            raise ValueError(f"codes of {a.grid} go beyond the {name} table's +-{TABLE_MAX}")
        e = self.grids[a.grid]
        return self._keep((name, e), lambda: self.xp.array(make(e)))

    def _index(self, codes: Array) -> Array:
        xp = self.xp
        return xp.cast(codes + xp.full(TABLE_MAX, xp.f4), xp.i8)


def same_grid(a: Act, b: Act) -> str:
    """The grid that both operands are on. Raises ValueError where their grids differ."""
    if a.grid != b.grid:
        raise ValueError(f"operands on different grids: {a.grid} and {b.grid}")
    return a.grid
