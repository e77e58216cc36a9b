"""The exact operations in compiled kernels: `KernelOps`, bit-equal to `numerics.ExactOps`, which stays the definition.

Activations are int16 here instead of float32 (codes are integers within +-2047): half the memory traffic, and integer
dot products, which processors do at twice the rate of float32 ones or better. A linear layer is one pass: the integer
sums of a few rows stay in registers and cache until they are scaled, rounded, limited and stored. Sums of products
are below 2^24, so int32 holds them exactly; what follows is the reference's arithmetic, operation by operation
(kernels/core.h). Operations without a kernel (those on one vector an image) run the reference's code.

The kernels are called through ctypes, on numpy arrays, without the GIL. They take pointers and check nothing, so shapes
and dtypes are checked here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hpcmcodec.numerics import LEVELS, MEAN_MAX, MEAN_SHIFT, NUMPY, Act, ExactOps, _same_grid, chunks

__all__ = ["KernelOps", "Kernels"]

MAX_CHUNKS = 16  # of one linear: the size of an array in kernels.cpp
_PANEL = 16  # outputs side by side in packed weights
_CODES, _WIDE = range(2)  # what becomes of a linear's sums (kernels.cpp, enum Form)

Array = np.ndarray

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "hpcm_linear": (_long, _int, _int, _pointer, _pointer, _int, _pointer, _pointer, _pointer),
    "hpcm_depthwise": (_long, _long, _long, _int, _int, _pointer, _pointer, _pointer, _pointer, _pointer),
    "hpcm_norm": (_long, _int, _pointer, _pointer, _pointer, _pointer),
    "hpcm_lrelu": (_long, _pointer, _pointer),
    "hpcm_relu_squared": (_long, _pointer, ctypes.c_float, _pointer),
    "hpcm_gate": (_long, _pointer, _pointer, _pointer, _pointer),
    "hpcm_add": (_long, _pointer, _pointer, _pointer),
    "hpcm_latent_code": (_long, _pointer, _pointer),
    "hpcm_channel_scale": (_long, _int, _pointer, _pointer, _pointer),
    "hpcm_blend": (_long, _int, _pointer, _pointer, _pointer, _pointer, _pointer),
    "hpcm_sum_rows": (_long, _int, _pointer, _pointer),
    "hpcm_wkv": (
        *(_long, _long, _int, _int),
        *(_pointer, _pointer, _pointer, _pointer, _pointer, ctypes.c_double, _pointer, _pointer),
    ),
}
# For torch alone (torch_ops.py). They allocate, and return 1 where there is no memory.
_FLOAT_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "hpcm_float_biwkv4": (_int, _long, _long, _int, *[_pointer] * 5),
    "hpcm_float_biwkv4_gradients": (_int, _long, _long, _int, *[_pointer] * 10),
}


class Kernels:
    """The loaded library. `library`: from `ops.loader`; `threads`: how many threads a kernel may use."""

    def __init__(self, library: ctypes.CDLL, threads: int = 1) -> None:
        self.library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
            setattr(self, name.removeprefix("hpcm_"), function)
        for name, arguments in _FLOAT_SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, _int
            setattr(self, name.removeprefix("hpcm_"), function)
        library.hpcm_wkv_scratch.argtypes, library.hpcm_wkv_scratch.restype = (_long, _long, _int, _int), _long
        library.hpcm_threads.argtypes, library.hpcm_threads.restype = (_int,), None
        library.hpcm_choose.argtypes = (ctypes.c_char_p,)
        for name in ("hpcm_variant", "hpcm_variants"):
            getattr(library, name).restype = ctypes.c_char_p
        self.set_threads(threads)

    linear: Any
    depthwise: Any
    norm: Any
    lrelu: Any
    relu_squared: Any
    gate: Any
    add: Any
    latent_code: Any
    channel_scale: Any
    blend: Any
    sum_rows: Any
    wkv: Any
    float_biwkv4: Any
    float_biwkv4_gradients: Any

    @property
    def variant(self) -> str:
        """Which instruction set's copy is in use."""
        return str(self.library.hpcm_variant().decode())

    @property
    def variants(self) -> list[str]:
        """The copies that this processor can run, best first."""
        return str(self.library.hpcm_variants().decode()).split(",")

    def choose(self, variant: str) -> None:
        """Use another copy, in the whole process. Raises ValueError where this processor cannot run it."""
        if self.library.hpcm_choose(variant.encode()):
            raise ValueError(f"no variant {variant!r} here; this processor runs {', '.join(self.variants)}")

    def set_threads(self, n: int) -> None:
        """How many threads a kernel may use, in the whole process; results do not depend on it."""
        self.library.hpcm_threads(n)

    def biwkv4(self, k: Array, v: Array, table: Array | None, powers: Array, own: Array, factor: float) -> Array:
        """Bi-WKV4 over (B, T, C): codes with the table of exp(k) to codes, or float64 exp(k) and v to float64."""
        batch, tokens, channels = v.shape
        dtype: Any = np.float64 if table is None else np.int16
        length = powers.shape[0] - 1
        if powers.shape[1:] != own.shape or own.shape != (channels,) or length != min(64, tokens):
            raise ValueError(
                f"powers {powers.shape} and own {own.shape} do not fit {tokens} tokens of {channels} channels"
            )
        k, v = np.ascontiguousarray(k, dtype), np.ascontiguousarray(v, dtype)
        powers, own = np.ascontiguousarray(powers, np.float64), np.ascontiguousarray(own, np.float64)
        if k.shape != v.shape:
            raise ValueError(f"k {k.shape} and v {v.shape}")
        ends = np.empty(self.library.hpcm_wkv_scratch(batch, tokens, channels, length), np.float64)
        out = np.empty(v.shape, dtype)
        self.wkv(
            *(batch, tokens, channels, length),
            *(_at(k), _at(v), None if table is None else _at(table), _at(powers), _at(own)),
            *(factor, _at(ends), _at(out)),
        )
        return out


class _Plan(NamedTuple):
    """What a linear's calls share; the arrays behind the addresses are kept by the operations' `_prepared`.

    table: (chunks, 5) int64 as hpcm_linear wants it, without the addresses of the inputs.
    """

    widths: list[int]
    chunks: list[tuple[int, int, int]]
    table: Array
    scales: list[Array]
    bias: int
    outputs: int


class KernelOps(ExactOps):
    """`ExactOps` over numpy with compiled kernels. Activations are int16 arrays."""

    def __init__(self, kernels: Kernels, tensors: Mapping[str, np.ndarray], grids: Mapping[str, int]) -> None:
        super().__init__(NUMPY, tensors, grids)
        self.kernels = kernels
        self._head_limits: dict[int, tuple[Array, Array]] = {}

    # -- linear layers --

    def linear(
        self,
        inputs: Act | Sequence[Act],
        layer: str,
        out: int,
        grid: str | None = None,
        *,
        residual: bool = False,
        biased: bool = True,
    ) -> Act:
        grid = grid or layer
        parts = [inputs] if isinstance(inputs, Act) else list(inputs)
        return Act(self._products(parts, layer, self.grids[grid], _CODES), grid)

    def head(self, context: Act, layer: str, channels: int) -> tuple[Array, Array]:
        if channels not in self._head_limits:
            low = np.repeat(np.array([-MEAN_MAX, 0], np.float32), channels)
            self._head_limits[channels] = low, np.repeat(np.array([MEAN_MAX, LEVELS - 1], np.float32), channels)
        out = self._products([context], layer, MEAN_SHIFT, _WIDE, self._head_limits[channels])
        return out[..., :channels], out[..., channels:]

    def _products(
        self,
        parts: Sequence[Act],
        layer: str,
        e_out: int,
        form: int,
        limits: tuple[Array, Array] | None = None,
    ) -> Array:
        """(B, H, W, O) codes, or int32 within `limits`."""
        plan = self._plan(layer, tuple(self.grids[a.grid] for a in parts), e_out)
        arrays = [_codes(p.x) for p in parts]
        shapes = [x.shape for x in arrays]
        batch, h, w = (max(shape[i] for shape in shapes) for i in range(3))
        spread = [shape[1:3] == (1, 1) != (h, w) for shape in shapes]
        if [(*s[:-1], n) for s, n in zip(shapes, plan.widths, strict=True)] != shapes or any(
            s[:3] != ((batch, 1, 1) if one else (batch, h, w)) for s, one in zip(shapes, spread, strict=True)
        ):
            raise ValueError(f"inputs of {layer} have the shapes {shapes}, their widths are {plan.widths}")
        if limits is not None and len(limits[0]) != plan.outputs:
            raise ValueError(f"{layer} gives {plan.outputs} parameters, {len(limits[0])} wanted")
        out = np.empty((batch, h, w, plan.outputs), np.int32 if form == _WIDE else np.int16)
        bounds = (None, None) if limits is None else (_at(limits[0]), _at(limits[1]))
        # A part of one row a sample is multiplied once a sample, so these go one by one.
        samples = [(out, arrays)] if not any(spread) else [(out[i], [x[i] for x in arrays]) for i in range(batch)]
        for target, xs in samples:
            table = plan.table.copy()
            addresses = [_at(x) for x in xs]
            kept = []  # alive until the call
            for i, (part, a, b) in enumerate(plan.chunks):
                if spread[part]:
                    product = xs[part].reshape(-1)[a:b].astype(np.float64) @ self._matrices(layer)[i].astype(np.float64)
                    kept.append(product * plan.scales[i])
                    table[i] = 0, 0, 0, 0, _at(kept[-1])
                elif (b - a) % 2:
                    kept.append(np.pad(xs[part].reshape(-1, plan.widths[part])[:, a:b], ((0, 0), (0, 1))))
                    table[i, :2] = _at(kept[-1]), b - a + 1
                else:
                    table[i, 0] = addresses[part] + 2 * a
            self.kernels.linear(
                *(target.size // plan.outputs, plan.outputs, len(table), _at(table), plan.bias, form),
                *(*bounds, _at(target)),
            )
        return out

    def _plan(self, layer: str, e_in: tuple[int, ...], e_out: int) -> _Plan:
        def make() -> _Plan:
            scales, bias = self._scales(layer, e_in, e_out)
            packed, widths = self._packed(layer), self.tensors[f"{layer}.widths"].tolist()
            pieces = chunks(widths)
            if len(pieces) > MAX_CHUNKS:
                raise ValueError(f"{layer} has {len(pieces)} chunks of inputs, the kernels take {MAX_CHUNKS}")
            table = [
                (0, widths[part], b - a + (b - a) % 2, _at(w), _at(s))
                for (part, a, b), w, s in zip(pieces, packed, scales, strict=True)
            ]
            return _Plan(widths, pieces, np.array(table, np.int64), scales, _at(bias), len(bias))

        return self._keep((layer, e_in, e_out, "plan"), make)  # type: ignore[no-any-return]

    def _packed(self, layer: str) -> list[Array]:
        """Each chunk's weights as kernels.cpp wants them ("Packed weights")."""

        def make() -> list[Array]:
            w = self.tensors[f"{layer}.weight"]
            packed = []
            for a, b in self._edges(layer):
                n, inputs = -(-w.shape[0] // _PANEL), b - a + (b - a) % 2
                full = np.zeros((n * _PANEL, inputs), np.int16)
                full[: w.shape[0], : b - a] = w[:, a:b]
                packed.append(np.ascontiguousarray(full.reshape(n, _PANEL, inputs // 2, 2).transpose(0, 2, 1, 3)))
            return packed

        return self._keep((layer, "packed"), make)  # type: ignore[no-any-return]

    # -- other layers --

    def depthwise(self, a: Act, layer: str, grid: str | None = None, *, omni: bool = False) -> Act:
        grid = grid or layer
        x = _codes(a.x)
        out = np.empty_like(x)
        scale, bias = self._tap_scale(layer, self.grids[a.grid], self.grids[grid])
        taps = self._keep((layer, "int16 taps"), lambda: np.ascontiguousarray(self.tensors[f"{layer}.weight"].T))
        _check(len(scale) == x.shape[-1], layer, x)
        b, h, w, c = x.shape
        self.kernels.depthwise(
            *(b, h, w, c, int(round(len(taps) ** 0.5))), *(_at(x), _at(taps), _at(scale), _at(bias), _at(out))
        )
        return Act(out, grid)

    def norm(self, a: Act, layer: str, grid: str | None = None) -> Act:
        grid = grid or layer
        x = _codes(a.x)
        out = np.empty_like(x)
        gamma, beta = self._affine(layer, self.grids[grid])
        _check(len(gamma) == x.shape[-1], layer, x)
        self.kernels.norm(x.size // x.shape[-1], x.shape[-1], _at(x), _at(gamma), _at(beta), _at(out))
        return Act(out, grid)

    def channel_scale(self, a: Act, layer: str) -> Act:
        x = _codes(a.x)
        out, scale = np.empty_like(x), self._channel_factors(layer)
        _check(len(scale) == x.shape[-1], layer, x)
        self.kernels.channel_scale(x.size // x.shape[-1], x.shape[-1], _at(x), _at(scale), _at(out))
        return Act(out, a.grid)

    def wkv(self, k: Act, v: Act, layer: str, grid: str | None = None) -> Act:
        grid = grid or layer
        b, h, w, c = v.x.shape
        table, powers, own = self._wkv_constants(layer, h * w, self.grids[k.grid])
        factor = 2.0 ** (self.grids[grid] - self.grids[v.grid])
        out = self.kernels.biwkv4(
            _codes(k.x).reshape(b, h * w, c), _codes(v.x).reshape(b, h * w, c), table, powers, own, factor
        )
        return Act(out.reshape(b, h, w, c), grid)

    # -- element by element --

    def lrelu(self, a: Act) -> Act:
        x = _codes(a.x)
        out = np.empty_like(x)
        self.kernels.lrelu(x.size, _at(x), _at(out))
        return Act(out, a.grid)

    def relu_squared(self, a: Act, grid: str) -> Act:
        x = _codes(a.x)
        out = np.empty_like(x)
        self.kernels.relu_squared(x.size, _at(x), 2.0 ** (self.grids[grid] - 2 * self.grids[a.grid]), _at(out))
        return Act(out, grid)

    def gate(self, r: Act, a: Act) -> Act:
        gates, x = _codes(r.x), _codes(a.x)
        _check(gates.shape == x.shape, "gate", gates, x)
        out = np.empty_like(x)
        self.kernels.gate(x.size, _at(gates), _at(x), _at(self._sigmoid_table(r)), _at(out))
        return Act(out, a.grid)

    def blend(self, r: Act, a: Act, b: Act) -> Act:
        gates, x, current = _codes(r.x), _codes(a.x), _codes(b.x)
        batch, h, w, c = current.shape
        _check(gates.shape == current.shape and x.shape == (batch, 1, 1, c), "blend", gates, x, current)
        out, table = np.empty_like(current), self._sigmoid_table(r)
        for i in range(batch):
            self.kernels.blend(h * w, c, _at(gates[i]), _at(x[i]), _at(current[i]), _at(table), _at(out[i]))
        return Act(out, _same_grid(a, b))

    def add(self, a: Act, b: Act) -> Act:
        x, y = _codes(a.x), _codes(b.x)
        if x.shape != y.shape:  # the quality's bias, one row a sample
            x, y = (np.ascontiguousarray(t) for t in np.broadcast_arrays(x, y))
        out = np.empty_like(x)
        self.kernels.add(x.size, _at(x), _at(y), _at(out))
        return Act(out, _same_grid(a, b))

    # -- one vector an image: the reference's code, from and to int16 --

    def pool(self, a: Act, grid: str) -> Act:
        return Act(_codes(super().pool(a, grid).x), grid)

    def _total(self, x: Array) -> Array:
        x = _codes(x)
        b, h, w, c = x.shape
        sums = np.empty((b, 1, 1, c), np.int64)
        for i in range(b):
            self.kernels.sum_rows(h * w, c, _at(x[i]), _at(sums[i]))
        return sums.astype(np.float64)

    def recall(self, query: Act, keys: Sequence[Act], values: Sequence[Act], temperature: float) -> Act:
        out = super().recall(query, keys, values, temperature)
        return Act(_codes(out.x), out.grid)

    # -- latents in and out --

    def latent_code(self, y_hat: Array) -> Array:
        y_hat = np.ascontiguousarray(y_hat, np.int32)
        out = np.empty(y_hat.shape, np.int16)
        self.kernels.latent_code(y_hat.size, _at(y_hat), _at(out))
        return out

    def empty_latent(self, shape: Sequence[int]) -> tuple[Array, Act]:
        return np.zeros(shape, np.int32), Act(np.zeros(shape, np.int16), "y")


def _codes(x: Array) -> Array:
    """Contiguous int16; the float32 codes that the reference's operations give are integers within +-2047."""
    return np.ascontiguousarray(x, np.int16)


def _at(x: Array) -> int:
    return int(x.__array_interface__["data"][0])


def _check(fits: bool, what: str, *arrays: Array) -> None:
    if not fits:
        raise ValueError(f"{what} does not take the shapes {', '.join(str(a.shape) for a in arrays)}")
