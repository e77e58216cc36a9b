"""The reference of those operations that only the paper's members and the larger memory banks use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcmcodec.exact.attention import attend_exact, factor_of, weight_table
from hpcmcodec.exact.base import Base, same_grid
from hpcmcodec.exact.constants import MEAN_MAX, MEAN_SHIFT, SCALE_SHIFT, SCALES_MAX, SIMILARITY_ONE
from hpcmcodec.exact.elementary import CURVES, rsqrt, scale_levels, similar_weights
from hpcmcodec.exact.ops import Act, Array
from hpcmcodec.exact.resampling import ONE, bilinear_matrix, mean_matrix


class MemberOps(Base):
    """Part of `reference.ExactOps`."""

    def attend(self, q: Act, k: Act, v: Act, window: int, heads: int, grid: str) -> Act:
        xp = self.xp
        table = self._keep("attention", lambda: xp.array(weight_table()))
        factor = factor_of(q.x.shape[-1], heads, self.grids[q.grid] + self.grids[k.grid])
        out = attend_exact(xp, q.x, k.x, v.x, window, heads, factor, table)
        out *= xp.full(2.0 ** (self.grids[grid] - self.grids[v.grid]), xp.f8)
        return Act(xp.cast(self._code_(out, grid), xp.f4), grid)

    def moments(self, scales: Act, means: Act) -> tuple[Array, Array]:
        xp, most = self.xp, int(SCALES_MAX * 2**SCALE_SHIFT)
        table = self._keep("scale levels", lambda: xp.array(scale_levels()))
        mean, scale = (
            xp.rint_(xp.cast(a.x, xp.f4) * xp.full(2.0 ** (shift - self.grids[a.grid]), xp.f4))
            for a, shift in ((means, MEAN_SHIFT), (scales, SCALE_SHIFT))
        )
        levels = xp.take(table, xp.cast(xp.clamp_(scale, 0, most), xp.i8))
        return xp.cast(xp.clamp_(mean, -MEAN_MAX, MEAN_MAX), xp.i4), levels

    def curve(self, a: Act, name: str, grid: str) -> Act:
        """From a table of all codes. A code of a positive function is never 0: `lookup` divides by sums of them."""
        xp, e_in, e_out, most = self.xp, self.grids[a.grid], self.grids[grid], self._limit(grid)

        def make() -> Array:
            codes = np.arange(-most, most + 1, dtype=np.float64) * 2.0**-e_in
            values = CURVES[name](codes) * 2.0**e_out
            least = 1 if name == "elu+1" else -most
            return xp.array(np.clip(np.rint(values), least, most).astype(np.float32))

        table = self._keep(("curve", name, e_in, e_out), make)
        return Act(xp.take(table, xp.cast(a.x, xp.i8) + xp.full(most, xp.i8)), grid)

    def resize(self, a: Act, rows: int, columns: int, how: str) -> Act:
        """Sums of at most 65,536 codes, or of codes times 65,536, are below 2^53."""
        xp, (b, h, w, c) = self.xp, a.x.shape
        make = mean_matrix if how == "mean" else bilinear_matrix
        down, across = make(rows, h), make(columns, w)
        x = xp.matmul(xp.array(down), xp.cast(a.x, xp.f8).reshape(b, h, w * c)).reshape(b * rows, w, c)
        x = xp.matmul(xp.array(across), x).reshape(b, rows, columns, c)
        if how == "mean":
            x = x / xp.array((down.sum(1)[:, None] * across.sum(1)[None])[None, :, :, None])
        else:
            x = x * xp.full(1.0 / ONE**2, xp.f8)
        return Act(xp.cast(xp.rint_(x), xp.f4), a.grid)

    def outer(self, k: Act, v: Act, heads: int, grid: str) -> Act:
        """Sums of at most 65,536 products of two codes are below 2^46."""
        xp, (b, h, w, c) = self.xp, k.x.shape
        d = c // heads

        def split(x: Array) -> Array:
            return xp.permute(xp.cast(x, xp.f8).reshape(b, h * w, heads, d), (0, 2, 3, 1)).reshape(b * heads, d, h * w)

        out = xp.matmul(split(k.x), xp.permute(split(v.x), (0, 2, 1))) / xp.full(h * w, xp.f8)
        out *= xp.full(2.0 ** (self.grids[grid] - self.grids[k.grid] - self.grids[v.grid]), xp.f8)
        return Act(xp.cast(self._code_(out, grid), xp.f4).reshape(b, 1, 1, c * d), grid)

    def lookup(self, q: Act, table: Act, norm: Act, heads: int, grid: str) -> Act:
        """Sums of products of one head's codes are integers; that of q and norm is positive, since all of them are."""
        xp, (b, h, w, c) = self.xp, q.x.shape
        d = c // heads
        asked = xp.permute(xp.cast(q.x, xp.f8).reshape(b, h * w, heads, d), (0, 2, 1, 3)).reshape(b * heads, h * w, d)
        above = xp.matmul(asked, xp.cast(table.x, xp.f8).reshape(b * heads, d, d))
        below = xp.matmul(asked, xp.cast(norm.x, xp.f8).reshape(b * heads, d, 1))
        out = xp.permute((above / below).reshape(b, heads, h, w, d), (0, 2, 3, 1, 4)).reshape(b, h, w, c)
        out = out * xp.full(2.0 ** (self.grids[grid] - self.grids[table.grid] + self.grids[norm.grid]), xp.f8)
        return Act(xp.cast(self._code_(out, grid), xp.f4), grid)

    def choose(self, query: Act, keys: Sequence[Act], count: int, temperature: float) -> tuple[Array, Array]:
        """Similarities are sorted as integers that include the index of the reference, so no two of them are equal."""
        xp, b = self.xp, query.x.shape[0]
        q, one = xp.cast(query.x, xp.f8), xp.full(1, xp.f8)
        ks = [xp.cast(k.x, xp.f8) for k in keys]
        norm = [rsqrt(xp, xp.sum(t * t, -1) + one) for t in (q, *ks)]
        sims = [
            xp.rint_(((xp.sum(q * k, -1) * norm[0]) * n) * xp.full(SIMILARITY_ONE, xp.f8))
            for k, n in zip(ks, norm[1:], strict=True)
        ]
        eight = xp.full(-8, xp.f8)
        order = xp.argsort(xp.concat([s * eight + xp.full(i, xp.f8) for i, s in enumerate(sims)], -1))[..., :count]
        best = xp.take_along(xp.concat(sims, -1), order)
        table = self._keep(("similar", temperature), lambda: xp.array(similar_weights(temperature)))
        behind = xp.cast(xp.clamp_(best[..., :1] - best, 0, 2 * SIMILARITY_ONE), xp.i8)
        return order.reshape(b, -1), xp.take(table, behind).reshape(b, -1)

    def mix(self, parts: Sequence[Act], weights: Array) -> Act:
        """The best part's weight is 2^15, so the sum of weights is not 0; sums of products are below 2^33."""
        xp, total = self.xp, None
        for i, part in enumerate(parts):
            same_grid(part, parts[0])
            term = xp.cast(part.x, xp.f8) * weights[:, i].reshape(-1, 1, 1, 1)
            total = term if total is None else total + term
        out = total / xp.sum(weights, -1).reshape(-1, 1, 1, 1)
        return Act(xp.cast(xp.rint_(out), xp.f4), parts[0].grid)
