"""The exact operations in compiled kernels: `KernelOps`, bit-equal to `exact.reference.ExactOps`, the definition.

Activations are int16 here instead of float32, since codes are integers within +-8191. This halves the memory traffic
and allows integer dot products, which processors do at least twice as fast as float32 ones. A linear layer is one pass:
the integer sums of a few rows stay in registers and cache until they are scaled, rounded, limited and stored. Sums of
products are below 2^31, so int32 holds them exactly; everything after them is the reference's arithmetic, operation by
operation (kernels/core.h). Operations on one vector per image have no kernel and run the reference's code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hpcmcodec.exact.base import same_grid
from hpcmcodec.exact.constants import (
    CHANNEL_GRID,
    LEVELS,
    MEAN_MAX,
    MEAN_SHIFT,
    PIXEL_GRID,
    SLOPE,
    WIDE_GRID,
    WIDE_MAX,
    limit_of,
)
from hpcmcodec.exact.layers import Depthwise, Dequantise, Gain, Head, Linear, Norm, Place, Read, Residual, Scale, Wkv
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.ops import Act, Qualities
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.exact.schedule import Step, positions
from hpcmcodec.native import abi, passes
from hpcmcodec.native.library import Kernels
from hpcmcodec.native.passes import check

__all__ = ["KernelOps"]

Array = Any  # a numpy array, or a torch tensor on the device of the kernels


class _Plan(NamedTuple):
    """What all calls of a linear layer share. `_prepared` of the operations keeps the arrays at the addresses alive.

    call: the arguments, with those fields filled in that are the same in all calls.
    """

    widths: list[int]
    scales: list[Array]
    call: abi.Linear


class KernelOps(ExactOps):
    """`ExactOps` with compiled kernels. Activations are int16 arrays.

    xp: numpy for the C++ kernels, torch on the kernels' device for CUDA.
    """

    INHERITED = frozenset(
        {"hyper_latent", "attend", "moments", "curve", "resize", "outer", "lookup", "choose", "mix"}
        | {"folded", "gather", "scatter", "unfold", "segment"}
    )
    """The operations that run the reference's code: they move arrays, or compute little."""

    def __init__(
        self, kernels: Kernels, tensors: Mapping[str, np.ndarray], grids: Mapping[str, int], xp: Any = NUMPY
    ) -> None:
        super().__init__(xp, tensors, grids)
        self.kernels, self.memory = kernels, kernels.memory

    # -- linear layers --

    def linear(self, inputs: Act | Sequence[Act], layer: Linear, grid: str | None = None) -> Act:
        grid = grid or layer.name
        parts = [inputs] if isinstance(inputs, Act) else list(inputs)
        return Act(self._products(parts, layer.name, self._plan_of(parts, layer, grid), limit_of(grid)), grid)

    def head(self, inputs: Sequence[Act], layer: Head) -> tuple[Array, Array]:
        channels, limits = layer.channels, self._head_limits(layer.channels)
        plan = self._plan(layer.name, tuple(self.grids[a.grid] for a in inputs), MEAN_SHIFT)
        out = self._products(inputs, layer.name, plan, 0, limits)
        return out[..., :channels], out[..., channels:]

    def _head_limits(self, channels: int) -> list[Array]:
        ends = ([-MEAN_MAX, 0], [MEAN_MAX, LEVELS - 1])
        return self._keep(  # type: ignore[no-any-return]
            ("limits", channels), lambda: [self.xp.array(np.repeat(np.array(e, np.float32), channels)) for e in ends]
        )

    def _products(
        self,
        parts: Sequence[Act],
        layer: str,
        plan: _Plan,
        limit: int,
        limits: Sequence[Array] | None = None,
        onto: Array | None = None,
    ) -> Array:
        """A linear layer's outputs (B, H, W, O): codes within `limit`, or int32 within each output's own `limits`,
        added to `onto` in its place.
        """
        arrays, at = [self._int16(p.x) for p in parts], self.memory.at
        shapes = [tuple(x.shape) for x in arrays]
        batch, h, w = (max(shape[i] for shape in shapes) for i in range(3))
        spread = [shape[1:3] == (1, 1) != (h, w) for shape in shapes]
        if [(*s[:-1], n) for s, n in zip(shapes, plan.widths, strict=True)] != shapes or any(
            s[:3] != ((batch, 1, 1) if one else (batch, h, w)) for s, one in zip(shapes, spread, strict=True)
        ):
            raise ValueError(f"inputs of {layer} have the shapes {shapes}, their widths are {plan.widths}")
        outputs = plan.call.outputs
        if limits is not None and len(limits[0]) != outputs:
            raise ValueError(f"{layer} gives {outputs} parameters, {len(limits[0])} wanted")
        check(onto is None or tuple(onto.shape) == (batch, h, w, outputs), layer, onto)
        out = onto
        if out is None:
            out = self.memory.empty((batch, h, w, outputs), np.int16 if limits is None else np.int32)
        low, high = (None, None) if limits is None else (at(t) for t in limits)
        # An input (B, 1, 1, C) is multiplied once per sample, not per position, so samples go one by one.
        samples = [(out, arrays)] if not any(spread) else [(out[i], [x[i] for x in arrays]) for i in range(batch)]
        for target, xs in samples:
            call = abi.Linear.from_buffer_copy(plan.call)
            call.rows, call.limit, call.out = _count(target) // outputs, limit, at(target)
            call.low, call.high, call.onto = low, high, None if onto is None else at(target)
            kept = []  # keeps arrays alive until the call
            for i, (x, width) in enumerate(zip(xs, plan.widths, strict=True)):
                given = call.inputs[i]
                if spread[i]:
                    kept.append(self._sums(x, self._matrices(layer)[i]) * plan.scales[i])
                    given.columns, given.scale = 0, at(kept[-1])
                elif width % 2:
                    rows = x.reshape(-1, width)
                    even = self.memory.empty((len(rows), width + 1), np.int16)
                    even[:, :-1] = rows
                    even[:, -1] = 0
                    kept.append(even)
                    given.a = at(even)
                else:
                    given.a = at(x)
            self.kernels.linear(call)
        return out

    def wide(self, a: Act, layer: Linear, grid: str, onto: Act | None = None) -> Act:
        target = None if onto is None else self.memory.contiguous(onto.x, np.int32)
        plan = self._plan_of([a], layer, grid)
        return Act(self._products([a], layer.name, plan, 0, self._wide_limits(layer.channels), target), grid)

    def amplify(self, a: Act, layer: Linear, gain: Gain, quality: Qualities) -> Act:
        plan, rows = self._plan_of([a], layer, WIDE_GRID), []
        for i, q in enumerate(quality):
            scale, bias = map(self.xp.array, self._amplified(layer.name, gain.name, self.grids[a.grid], q))
            call = abi.Linear.from_buffer_copy(plan.call)
            call.inputs[0].scale, call.bias = self._at(scale), self._at(bias)
            own = plan._replace(call=call)
            one = Act(a.x[i : i + 1], a.grid)
            rows.append(self._products([one], layer.name, own, 0, self._wide_limits(layer.channels)))
        return Act(rows[0] if len(rows) == 1 else self.xp.concat(rows, 0), WIDE_GRID)

    def _wide_limits(self, channels: int) -> list[Array]:
        ends = (-WIDE_MAX, WIDE_MAX)
        return self._keep(  # type: ignore[no-any-return]
            ("wide limits", channels), lambda: [self.xp.array(np.full(channels, e, np.float32)) for e in ends]
        )

    def _plan_of(self, parts: Sequence[Act], layer: Linear, grid: str) -> _Plan:
        return self._plan(layer.name, tuple(self.grids[a.grid] for a in parts), self.grids[grid])

    def _plan(self, layer: str, e_in: tuple[int, ...], e_out: int) -> _Plan:
        def make() -> _Plan:
            scales, bias = self._scales(layer, e_in, e_out)
            packed, widths = self._packed(layer), self.tensors[f"{layer}.widths"].tolist()
            if len(widths) > abi.MAX_INPUTS:
                raise ValueError(f"{layer} has {len(widths)} inputs, the kernels take {abi.MAX_INPUTS}")
            call = abi.Linear(outputs=len(bias), n_inputs=len(widths), bias=self._at(bias))
            for i, (n, w, s) in enumerate(zip(widths, packed, scales, strict=True)):
                call.inputs[i] = abi.Input(None, n + n % 2, self._at(w), self._at(s))
            return _Plan(widths, scales, call)

        return self._keep((layer, e_in, e_out, "plan"), make)  # type: ignore[no-any-return]

    def _packed(self, layer: str) -> list[Array]:
        """The weights of each input, packed as abi.h describes ("Packed weights")."""

        def make() -> list[Array]:
            w = self.tensors[f"{layer}.weight"]
            packed = []
            for a, b in self._edges(layer):
                n, inputs = -(-w.shape[0] // abi.PANEL), b - a + (b - a) % 2
                full = w[:, a:b]
                if full.shape != (n * abi.PANEL, inputs):
                    full = np.zeros((n * abi.PANEL, inputs), np.int16)
                    full[: w.shape[0], : b - a] = w[:, a:b]
                pairs = full.view(np.int32).reshape(n, abi.PANEL, inputs // 2).transpose(0, 2, 1)
                packed.append(self.xp.array(np.ascontiguousarray(pairs).view(np.int16)))
            return packed

        return self._keep((layer, "packed"), make)  # type: ignore[no-any-return]

    # -- other layers --

    def depthwise(self, a: Act, layer: Depthwise, grid: str | None = None) -> Act:
        name, grid = layer.name, grid or layer.name
        x = self._int16(a.x)
        out = self._like(x)
        scale, bias = self._tap_scale(name, self.grids[a.grid], self.grids[grid])
        taps = self._taps(name)
        check(len(scale) == x.shape[-1], name, x)
        b, h, w, c = x.shape
        self.kernels.depthwise(
            *(b, h, w, c, int(round(len(taps) ** 0.5))),
            *(self._at(x), self._at(taps), self._at(scale), self._at(bias), limit_of(grid), self._at(out)),
        )
        return Act(out, grid)

    def _taps(self, layer: str) -> Array:
        """The weights of a depthwise layer, int16 (k * k, C)."""
        return self._keep((layer, "int16 taps"), lambda: self.xp.array(self.tensors[f"{layer}.weight"].T))

    def norm(self, a: Act, layer: Norm, grid: str | None = None) -> Act:
        grid = grid or layer.name
        x = self._int16(a.x)
        out = self._like(x)
        gamma, beta = self._affine(layer.name, self.grids[grid])
        check(len(gamma) == x.shape[-1], layer.name, x)
        self.kernels.norm(
            *(_count(x) // x.shape[-1], x.shape[-1], self._at(x), self._at(gamma), self._at(beta), limit_of(grid)),
            self._at(out),
        )
        return Act(out, grid)

    def channel_scale(self, a: Act, layer: Scale | Residual) -> Act:
        x = self._int16(a.x)
        out, scale = self._like(x), self._channel_factors(layer.name)
        check(len(scale) == x.shape[-1], layer.name, x)
        self.kernels.channel_scale(
            _count(x) // x.shape[-1], x.shape[-1], self._at(x), self._at(scale), limit_of(a.grid), self._at(out)
        )
        return Act(out, a.grid)

    def place(self, a: Act, step: Step, layer: Place) -> Act:
        x, e = self._int16(a.x), self.grids[a.grid]
        table = self._keep((layer.name, e, "int16"), lambda: self._int16(self._place_codes(layer.name, a.grid)))
        moved, out = self._like(x), self._like(x)
        for g, at in positions(step):
            moved[at] = table[g]
        self.kernels.add(_count(x), self._at(x), self._at(moved), limit_of(a.grid), self._at(out))
        return Act(out, a.grid)

    def _empty_fold(self, x: Array, groups: int) -> Array:
        return self.memory.empty((*x.shape[:-1], x.shape[-1] // groups), np.int16)

    def wkv(self, k: Act, v: Act, layer: Wkv, grid: str | None = None) -> Act:
        grid = grid or layer.name
        b, h, w, c = v.x.shape
        table, powers, own = self._wkv_constants(layer.name, h * w, k)
        factor = 2.0 ** (self.grids[grid] - self.grids[v.grid])
        out = self.kernels.biwkv4(
            *(self._int16(k.x).reshape(b, h * w, c), self._int16(v.x).reshape(b, h * w, c)),
            *(table, powers, own, factor, limit_of(grid)),
        )
        return Act(out.reshape(b, h, w, c), grid)

    # -- synthesis --

    def dequantise(self, y_hat: Array, layer: Dequantise, quality: Qualities) -> Act:
        factors = [self.xp.array(self._latent_factors(layer.name, q)) for q in quality]
        return self._narrowed(y_hat, layer.name, factors)

    def read(self, a: Act, layer: Read) -> Act:
        return self._narrowed(a.x, layer.name, [self._channel_factors(layer.name)] * a.x.shape[0])

    def _narrowed(self, x: Array, layer: str, factors: Sequence[Array]) -> Act:
        """int32 times each sample's factors, as codes."""
        x = self.memory.contiguous(x, np.int32)
        check(all(len(f) == x.shape[-1] for f in factors) and len(factors) == x.shape[0], layer, x)
        out, limit = self.memory.empty(x.shape, np.int16), limit_of(CHANNEL_GRID)
        for one, target, f in zip(x, out, factors, strict=True):
            rows = _count(one) // x.shape[-1]
            self.kernels.narrow(rows, x.shape[-1], self._at(one), self._at(f), limit, self._at(target))
        return Act(out, CHANNEL_GRID)

    def pixels(self, a: Act, depth: int) -> Array:
        x, top = self.memory.contiguous(a.x, np.int32), 2**depth - 1
        out = self.memory.empty(x.shape, np.uint8 if depth <= 8 else np.uint16)
        factor = top * 2.0 ** -self.grids[PIXEL_GRID]
        self.kernels.pixels(_count(x), self._at(x), factor, top / 2, top, self._at(out))
        return out

    # -- several operations in a row --

    def block(
        self,
        x: Act,
        around: Depthwise,
        up: Linear,
        down: Linear,
        read: Read | None = None,
        above: Act | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Act:
        if not self.kernels.in_one_pass:
            return super().block(x, around, up, down, read, above, rows)
        return passes.block(self, x, around, up, down, read, above, rows)

    def around(self, a: Act, layer: Depthwise, step: Step, grid: str | None = None) -> Act:
        if not self.kernels.in_one_pass:
            return super().around(a, layer, step, grid)
        return passes.around(self, a, layer, step, grid)

    def heads(
        self,
        inputs: Sequence[Act],
        step: Step,
        heads: Sequence[Head],
        hidden: Sequence[Linear] = (),
        grid: str | None = None,
    ) -> tuple[Array, Array]:
        if not self.kernels.in_one_pass or (hidden and hidden[0].channels % 2):
            return super().heads(inputs, step, heads, hidden, grid)
        return passes.heads(self, inputs, step, heads, hidden, grid)

    # -- element by element --

    def lrelu(self, a: Act, slope: float = SLOPE) -> Act:
        if slope != SLOPE:  # the kernel has a slope of its own
            return Act(self._int16(super().lrelu(Act(self.xp.cast(a.x, self.xp.f4), a.grid), slope).x), a.grid)
        x = self._int16(a.x)
        out = self._like(x)
        self.kernels.lrelu(_count(x), self._at(x), self._at(out))
        return Act(out, a.grid)

    def relu_squared(self, a: Act, grid: str) -> Act:
        x = self._int16(a.x)
        out = self._like(x)
        factor = 2.0 ** (self.grids[grid] - 2 * self.grids[a.grid])
        self.kernels.relu_squared(_count(x), self._at(x), factor, limit_of(grid), self._at(out))
        return Act(out, grid)

    def gate(self, r: Act, a: Act) -> Act:
        gates, x = self._int16(r.x), self._int16(a.x)
        check(gates.shape == x.shape, "gate", gates, x)
        out = self._like(x)
        self.kernels.gate(_count(x), self._at(gates), self._at(x), self._at(self._sigmoid_table(r)), self._at(out))
        return Act(out, a.grid)

    def blend(self, r: Act, a: Act, b: Act) -> Act:
        gates, x, current = self._int16(r.x), self._int16(a.x), self._int16(b.x)
        batch, h, w, c = current.shape
        if x.shape == current.shape:  # the kernel takes one vector for all positions
            gate, plane, base = (
                Act(self.xp.cast(t, self.xp.f4), s.grid) for t, s in ((gates, r), (x, a), (current, b))
            )
            return Act(self._int16(super().blend(gate, plane, base).x), same_grid(a, b))
        check(gates.shape == current.shape and x.shape == (batch, 1, 1, c), "blend", gates, x, current)
        out, table = self._like(current), self._sigmoid_table(r)
        for i in range(batch):
            self.kernels.blend(
                h * w, c, self._at(gates[i]), self._at(x[i]), self._at(current[i]), self._at(table), self._at(out[i])
            )
        return Act(out, same_grid(a, b))

    def add(self, a: Act, b: Act) -> Act:
        x, y = self._int16(a.x), self._int16(b.x)
        if x.shape != y.shape:  # the quality's bias is one row per sample
            x, y = (self._int16(t) for t in self.memory.broadcast(x, y))
        out = self._like(x)
        limit = limit_of(same_grid(a, b))
        self.kernels.add(_count(x), self._at(x), self._at(y), limit, self._at(out))
        return Act(out, a.grid)

    # -- one vector per image: the reference's code, from and to int16 --

    def pool(self, a: Act, grid: str) -> Act:
        return Act(self._int16(super().pool(a, grid).x), grid)

    def _total(self, x: Array) -> Array:
        x = self._int16(x)
        b, h, w, c = x.shape
        sums = self.memory.empty((b, 1, 1, c), np.int64)
        for i in range(b):
            self.kernels.sum_rows(h * w, c, self._at(x[i]), self._at(sums[i]))
        return self.xp.cast(sums, self.xp.f8)

    def recall(self, query: Act, keys: Sequence[Act], values: Sequence[Act], temperature: float) -> Act:
        out = super().recall(query, keys, values, temperature)
        return Act(self._int16(out.x), out.grid)

    # -- latents in and out --

    def latent_code(self, y_hat: Array) -> Array:
        y_hat = self.memory.contiguous(y_hat, np.int32)
        out = self.memory.empty(y_hat.shape, np.int16)
        self.kernels.latent_code(_count(y_hat), self._at(y_hat), limit_of("y"), self._at(out))
        return out

    def empty_latent(self, shape: Sequence[int]) -> tuple[Array, Act]:
        y_hat = self.xp.zeros(shape, self.xp.i4)
        return y_hat, Act(self._int16(y_hat), "y")

    def _int16(self, x: Array) -> Array:
        """x as contiguous int16; float32 codes, which the reference's operations give, are integers within +-8191."""
        return self.memory.contiguous(x, np.int16)

    def _like(self, x: Array) -> Array:
        return self.memory.empty(x.shape, np.int16)

    def _at(self, x: Array) -> int:
        return int(self.memory.at(x))


def _count(x: Array) -> int:
    return math.prod(x.shape)
