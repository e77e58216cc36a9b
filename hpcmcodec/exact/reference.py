"""The reference: the entropy path's operations on integer codes, by the rules in exact/__init__.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpcmcodec.exact.base import same_grid
from hpcmcodec.exact.biwkv import biwkv4_exact, decay_powers, own_factor
from hpcmcodec.exact.constants import (
    CHANNEL_GRID,
    LEVELS,
    MEAN_MAX,
    MEAN_SHIFT,
    PIXEL_GRID,
    SIMILARITY_ONE,
    SLOPE,
    WEIGHT_ONE,
    WIDE_GRID,
)
from hpcmcodec.exact.elementary import exp_table, gains, memory_weight_table, rsqrt
from hpcmcodec.exact.layers import (
    Depthwise,
    Dequantise,
    Gain,
    Head,
    Linear,
    Norm,
    Place,
    QualityBias,
    Read,
    Residual,
    Scale,
    Wkv,
)
from hpcmcodec.exact.members import MemberOps
from hpcmcodec.exact.ops import Act, Array, Qualities
from hpcmcodec.exact.schedule import Step, fold, positions, unfold
from hpcmcodec.quality import Quality


class ExactOps(MemberOps):
    """The entropy path's operations on integer codes.

    tensors: the flat dictionary of stored tensors (exact/layers.py lists them); grids: the exponent e of each grid by
    name; precision: the bits of a code, 14 or 16. Codes are integers within the grid's limit (`constants.limit_of`),
    held in float32. `exact.ops.Ops` says what each operation does.

    Raises IntegrityError where a weight is not a matrix of int16 or breaks the bound on sums.
    """

    def _scales(self, layer: str, e_in: tuple[int, ...], e_out: int) -> Any:
        """The factors for the sums of each input, and the bias, float32."""

        def make() -> Any:
            step = self.tensors[f"{layer}.step"]
            scales = [self.xp.array(s * np.float32(2.0 ** (e_out - e))) for s, e in zip(step, e_in, strict=True)]
            bias = self.tensors.get(f"{layer}.bias", np.zeros(step.shape[1], np.float32))
            return scales, self.xp.array(bias * np.float32(2.0**e_out))

        return self._keep((layer, e_in, e_out), make)

    def _matrices(self, layer: str) -> Any:
        def make() -> Any:
            w = self.tensors[f"{layer}.weight"]
            return [self.xp.array(w[:, a:b].T.astype(np.float64)) for a, b in self._edges(layer)]

        return self._keep((layer, "matrices"), make)

    def _linear(self, inputs: Sequence[Act], layer: str, e_out: int) -> Array:
        """The inputs' sums, each scaled to the output grid, added in order, and the bias; float32, not rounded yet.

        Inputs may be (B, 1, 1, C).
        """
        scales, bias = self._scales(layer, tuple(self.grids[a.grid] for a in inputs), e_out)
        out = None
        for a, w, scale in zip(inputs, self._matrices(layer), scales, strict=True):
            term = self._sums(a.x, w)
            term *= scale
            out = term if out is None else out + term
        out += bias
        return out

    def _sums(self, x: Array, w: Array) -> Array:
        """Integer sums x w, exact, to the nearest float32; x (B, H, W, C)."""
        xp = self.xp
        sums = xp.matmul(xp.cast(x.reshape(-1, x.shape[-1]), xp.f8), w)
        return xp.cast(sums, xp.f4).reshape(*x.shape[:-1], w.shape[1])

    def linear(self, inputs: Act | Sequence[Act], layer: Linear, grid: str | None = None) -> Act:
        """Each input is multiplied by its own columns of the matrix, so no concatenated array is made."""
        parts = [inputs] if isinstance(inputs, Act) else list(inputs)
        grid = grid or layer.name
        return Act(self._code_(self._linear(parts, layer.name, self.grids[grid]), grid), grid)

    def head(self, inputs: Sequence[Act], layer: Head) -> tuple[Array, Array]:
        """Means in sixteenths (int32, +-2^16) and levels (int32, 0..63).

        Raises ValueError where the stored weights give another number of channels than the layer's.
        """
        xp = self.xp
        out = xp.rint_(self._linear(inputs, layer.name, MEAN_SHIFT))
        if out.shape[-1] != layer.out:
            raise ValueError(f"{layer.name} gives {out.shape[-1]} parameters, {layer.out} wanted")
        means = xp.cast(xp.clamp_(out[..., : layer.channels], -MEAN_MAX, MEAN_MAX), xp.i4)
        levels = xp.cast(xp.clamp_(out[..., layer.channels :], 0, LEVELS - 1), xp.i4)
        return means, levels

    def depthwise(self, a: Act, layer: Depthwise, grid: str | None = None) -> Act:
        """The sum of k * k shifted products, all of them integers."""
        xp, name, grid = self.xp, layer.name, grid or layer.name
        scale, bias = self._tap_scale(name, self.grids[a.grid], self.grids[grid])
        taps = self._keep(
            (name, "taps"), lambda: [xp.array(t.astype(np.float64)) for t in self.tensors[f"{name}.weight"].T]
        )
        k = int(round(len(taps) ** 0.5))
        b, h, w, c = a.x.shape
        padded = xp.zeros((b, h + k - 1, w + k - 1, c), xp.f8)
        padded[:, k // 2 : k // 2 + h, k // 2 : k // 2 + w] = xp.cast(a.x, xp.f8)
        sums = padded[:, :h, :w] * taps[0]
        for i, tap in enumerate(taps[1:], 1):
            sums += padded[:, i // k : i // k + h, i % k : i % k + w] * tap
        out = xp.cast(sums, xp.f4)
        out *= scale
        out += bias
        return Act(self._code_(out, grid), grid)

    def _tap_scale(self, layer: str, e_in: int, e_out: int) -> Any:
        def make() -> Any:
            scale = self.tensors[f"{layer}.step"][0] * np.float32(2.0 ** (e_out - e_in))
            return self.xp.array(scale), self.xp.array(self.tensors[f"{layer}.bias"] * np.float32(2.0**e_out))

        return self._keep((layer, e_in, e_out), make)

    def norm(self, a: Act, layer: Norm, grid: str | None = None) -> Act:
        """(n x - s1) * rsqrt(n s2 - s1^2 + n^2) * gamma + beta, with n channels, s1 the sum of x and s2 that of x^2.

        The term n^2 stands for LayerNorm's epsilon: one, in squared codes.
        """
        xp, grid = self.xp, grid or layer.name
        n = a.x.shape[-1]
        gamma, beta = self._affine(layer.name, self.grids[grid])
        wide = xp.cast(a.x, xp.f8)
        s1, s2 = xp.sum(wide, -1), xp.sum(wide * wide, -1)
        r = rsqrt(xp, (s2 * xp.full(n, xp.f8) - s1 * s1) + xp.full(n * n, xp.f8))
        out = a.x * xp.full(n, xp.f4)
        out -= xp.cast(s1, xp.f4)
        out *= xp.cast(r, xp.f4)
        out *= gamma
        out += beta
        return Act(self._code_(out, grid), grid)

    def _affine(self, layer: str, e: int) -> Any:
        return self._keep(
            (layer, e),
            lambda: tuple(self.xp.array(self.tensors[f"{layer}.{t}"] * np.float32(2.0**e)) for t in ("gamma", "beta")),
        )

    def lrelu(self, a: Act, slope: float = SLOPE) -> Act:
        xp = self.xp
        return Act(xp.maximum(a.x, xp.rint_(a.x * xp.full(slope, xp.f4))), a.grid)

    def relu_squared(self, a: Act, grid: str) -> Act:
        xp = self.xp
        x = xp.maximum(a.x, xp.full(0, xp.f4))
        x = x * x
        x *= xp.full(2.0 ** (self.grids[grid] - 2 * self.grids[a.grid]), xp.f4)
        return Act(self._code_(x, grid), grid)

    def gate(self, r: Act, a: Act) -> Act:
        return Act(self.xp.rint_(self._sigmoid(r) * a.x), a.grid)

    def blend(self, r: Act, a: Act, b: Act) -> Act:
        """Computed as sigmoid(r) * (a - b) + b; a or b may be (B, 1, 1, C)."""
        out = self._sigmoid(r) * (a.x - b.x)
        out = out + b.x
        return Act(self.xp.rint_(out), same_grid(a, b))

    def add(self, a: Act, b: Act) -> Act:
        limit = self._limit(same_grid(a, b))
        return Act(self.xp.clamp_(a.x + b.x, -limit, limit), a.grid)

    def channel_scale(self, a: Act, layer: Scale | Residual) -> Act:
        return Act(self._code_(a.x * self._channel_factors(layer.name), a.grid), a.grid)

    def place(self, a: Act, step: Step, layer: Place) -> Act:
        table, out = self._place_codes(layer.name, a.grid), self.xp.zeros(a.x.shape, self.xp.f4)
        limit = self._limit(a.grid)
        for g, at in positions(step):
            out[at] = a.x[at] + table[g]
        return Act(self.xp.clamp_(out, -limit, limit), a.grid)

    def _place_codes(self, layer: str, grid: str) -> Array:
        xp, e = self.xp, self.grids[grid]
        return self._keep(
            (layer, e), lambda: self._code_(xp.array(self.tensors[f"{layer}.table"]) * xp.full(2.0**e, xp.f4), grid)
        )

    def _channel_factors(self, layer: str) -> Array:
        return self._keep(layer, lambda: self.xp.array(self.tensors[f"{layer}.scale"].astype(np.float32)))

    def wkv(self, k: Act, v: Act, layer: Wkv, grid: str | None = None) -> Act:
        xp, grid = self.xp, grid or layer.name
        b, h, w, c = v.x.shape
        tokens = h * w
        table, powers, own = self._wkv_constants(layer.name, tokens, k)
        weights = xp.take(table, self._index(k.x)).reshape(b, tokens, c)
        out = biwkv4_exact(xp, weights, xp.cast(v.x, xp.f8).reshape(b, tokens, c), powers, own)
        out *= xp.full(2.0 ** (self.grids[grid] - self.grids[v.grid]), xp.f8)
        return Act(xp.cast(self._code_(out, grid), xp.f4).reshape(b, h, w, c), grid)

    def _wkv_constants(self, layer: str, tokens: int, k: Act) -> Any:
        """Bi-WKV4's constants, float64: exp(k) of every code (4095,), W^0 .. W^B (B + 1, C) and exp(u) (C,)."""
        xp = self.xp
        table = self._table("exp", exp_table, k)
        # A layer keeps the powers for one number of tokens alone, so that images of many sizes do not fill the memory.
        if self._prepared.get((layer, "tokens")) != tokens:
            self._prepared[layer] = (
                xp.array(decay_powers(self.tensors[f"{layer}.decay"], tokens)),
                xp.array(own_factor(self.tensors[f"{layer}.boost"], tokens)),
            )
            self._prepared[(layer, "tokens")] = tokens
        powers, own = self._prepared[layer]
        return table, powers, own

    def pool(self, a: Act, grid: str) -> Act:
        xp = self.xp
        out = self._total(a.x) / xp.full(a.x.shape[1] * a.x.shape[2], xp.f8)
        out *= xp.full(2.0 ** (self.grids[grid] - self.grids[a.grid]), xp.f8)
        return Act(xp.cast(self._code_(out, grid), xp.f4), grid)

    def _total(self, x: Array) -> Array:
        return self.xp.sum(x, (1, 2))

    def recall(self, query: Act, keys: Sequence[Act], values: Sequence[Act], temperature: float) -> Act:
        """Similarities are sorted as integers that include the index of the reference, so no two of them are equal."""
        xp = self.xp
        if len(keys) == 1:
            return values[0]
        q = xp.cast(query.x, xp.f8)
        ks = [xp.cast(k.x, xp.f8) for k in keys]
        one = xp.full(1, xp.f8)
        norm = [rsqrt(xp, xp.sum(t * t, -1) + one) for t in (q, *ks)]
        sims = [
            xp.rint_(((xp.sum(q * k, -1) * norm[0]) * n) * xp.full(SIMILARITY_ONE, xp.f8))
            for k, n in zip(ks, norm[1:], strict=True)
        ]
        eight = xp.full(-8, xp.f8)
        order = xp.argsort(xp.concat([s * eight + xp.full(i, xp.f8) for i, s in enumerate(sims)], -1))[..., :2]
        best = xp.take_along(xp.concat(sims, -1), order)
        table = self._keep(("memory", temperature), lambda: xp.array(memory_weight_table(temperature)))
        difference = xp.cast(xp.clamp_(best[..., :1] - best[..., 1:], 0, 2 * SIMILARITY_ONE), xp.i8)
        w1 = xp.take(table, difference)
        stacked = xp.concat([xp.cast(v.x, xp.f8)[..., None] for v in values], -1)  # (B, 1, 1, C, R)
        index = order[..., None, :] + xp.zeros((*stacked.shape[:-1], 1), xp.i8)
        chosen = xp.take_along(stacked, index)
        out = w1 * chosen[..., 0] + (xp.full(WEIGHT_ONE, xp.f8) - w1) * chosen[..., 1]
        out *= xp.full(1.0 / WEIGHT_ONE, xp.f8)
        return Act(xp.cast(xp.rint_(out), xp.f4), values[0].grid)

    # -- synthesis --

    def dequantise(self, y_hat: Array, layer: Dequantise, quality: Qualities) -> Act:
        factors = np.stack([self._latent_factors(layer.name, q) for q in quality])[:, None, None, :]
        return self._narrow(y_hat, self.xp.array(factors))

    def _latent_factors(self, layer: str, quality: Quality) -> np.ndarray:
        """What y_hat is multiplied by, float32 (C,)."""
        scale = self.tensors[f"{layer}.scale"].astype(np.float64)
        return (gains(self.tensors[f"{layer}.log_scale"], quality) * scale).astype(np.float32)

    def read(self, a: Act, layer: Read) -> Act:
        return self._narrow(a.x, self._channel_factors(layer.name))

    def _narrow(self, wide: Array, factors: Array) -> Act:
        """int32 times factors, as codes."""
        x = self.xp.cast(wide, self.xp.f4)
        x *= factors
        return Act(self._code_(x, CHANNEL_GRID), CHANNEL_GRID)

    def wide(self, a: Act, layer: Linear, grid: str, onto: Act | None = None) -> Act:
        out = self.xp.cast(self._code_(self._linear([a], layer.name, self.grids[grid]), grid), self.xp.i4)
        return Act(out if onto is None else out + onto.x, grid)

    def amplify(self, a: Act, layer: Linear, gain: Gain, quality: Qualities) -> Act:
        xp = self.xp
        (matrix,) = self._matrices(layer.name)
        rows = []
        for i, q in enumerate(quality):
            scale, bias = self._amplified(layer.name, gain.name, self.grids[a.grid], q)
            out = self._sums(a.x[i : i + 1], matrix)
            out *= xp.array(scale)
            out += xp.array(bias)
            rows.append(xp.cast(self._code_(out, WIDE_GRID), xp.i4))
        return Act(rows[0] if len(rows) == 1 else xp.concat(rows, 0), WIDE_GRID)

    def _amplified(self, layer: str, gain: str, e_in: int, quality: Quality) -> tuple[np.ndarray, np.ndarray]:
        """What sums are multiplied by, and the bias, float32 (O,): rounded once."""
        step, bias = (self.tensors[f"{layer}.{t}"].astype(np.float64).reshape(-1) for t in ("step", "bias"))
        factors, e_out = gains(self.tensors[f"{gain}.log_scale"], quality), self.grids[WIDE_GRID]
        factors = np.tile(factors, len(step) // len(factors))
        scale = (factors * step) * np.full(step.shape, 2.0 ** (e_out - e_in))
        return scale.astype(np.float32), ((factors * bias) * np.full(bias.shape, 2.0**e_out)).astype(np.float32)

    def pixels(self, a: Act, depth: int) -> Array:
        xp, top = self.xp, 2**depth - 1
        x = xp.cast(a.x, xp.f4)
        x *= xp.full(top * 2.0 ** -self.grids[PIXEL_GRID], xp.f4)
        x += xp.full(top / 2, xp.f4)
        return xp.cast(xp.clamp_(xp.rint_(x), 0, top), xp.i4)

    # -- latents in and out --

    def hyper_latent(self, z: Array, layer: QualityBias, quality: Qualities) -> Act:
        xp, grid, table = self.xp, layer.grid, self.tensors[f"{layer.name}.table"]
        limit, scale = self._limit(grid), 2 ** self.grids[grid]
        steps = limit // scale + 1
        codes = xp.clamp_(
            xp.cast(xp.clamp_(xp.cast(z, xp.i4), -steps, steps), xp.f4) * xp.full(scale, xp.f4), -limit, limit
        )
        bias = np.array([interpolate(table, q) for q in quality], np.float32)
        return self.add(Act(codes, grid), Act(xp.array(bias[:, None, None, :]), grid))

    def latent_code(self, y_hat: Array) -> Array:
        """y_hat (int32, sixteenths) to float32 codes that count sixteenths: the same, clamped."""
        limit = self._limit("y")
        return self.xp.clamp_(self.xp.cast(y_hat, self.xp.f4), -limit, limit)

    def empty_latent(self, shape: Sequence[int]) -> tuple[Array, Act]:
        return self.xp.zeros(shape, self.xp.i4), Act(self.xp.zeros(shape, self.xp.f4), "y")

    def segment(self, f: Callable[..., Act], *arguments: Any) -> Act:
        return f(*arguments)

    # -- values moved by strided slices, which in numpy are five times as fast as index arrays --

    def folded(self, a: Act, step: Step) -> Act:
        return Act(fold(a.x, step, self._empty_fold(a.x, len(step.groups))), a.grid)

    def _empty_fold(self, x: Array, groups: int) -> Array:
        return self.xp.zeros((*x.shape[:-1], x.shape[-1] // groups), self.xp.f4)

    def gather(self, xs: Sequence[Array], step: Step) -> list[tuple[int, list[Array]]]:
        rows: dict[int, list[list[Array]]] = {}
        for g, at in positions(step):
            blocks = [x[at].reshape(x.shape[0], 1, -1, x.shape[-1]) for x in xs]
            rows.setdefault(g, []).append(blocks)
        return [(g, [self.xp.concat(list(b), 2) for b in zip(*blocks, strict=True)]) for g, blocks in rows.items()]

    def scatter(self, rows: Sequence[tuple[int, Array]], step: Step, shape: Sequence[int]) -> Array:
        out = self.xp.zeros(shape, self.xp.i4)
        by_group, start = dict(rows), dict.fromkeys(range(len(step.groups)), 0)
        for g, at in positions(step):
            target = out[at]
            n = target.shape[1] * target.shape[2]
            target[:] = by_group[g][:, 0, start[g] : start[g] + n].reshape(target.shape)
            start[g] += n
        return out

    def unfold(self, folded: Array, step: Step, target: Array) -> Array:
        """Writes into `target`, which no caller uses again."""
        return unfold(folded, step, target)


def interpolate(table: np.ndarray, quality: Quality) -> list[int]:
    """An integer table (K, N), one row per stored quality, interpolated at a quality: N integers, half rounded up."""
    position = quality.hundredths * (len(table) - 1)
    i = min(position // 10000, len(table) - 2)
    f = position - i * 10000
    return [(int(a) * (10000 - f) + int(b) * f + 5000) // 10000 for a, b in zip(table[i], table[i + 1], strict=True)]
