"""Exact arithmetic: the entropy path's operations, with the same bits in numpy and torch, on every IEEE-754 machine.

Encoder and decoder must derive identical tables from what was coded so far, on whatever machine they run. Two rules
make that hold without giving up float32 speed:

1. *Sums are exact.* Activations are integer codes, round(x * 2^e) clamped to +-2047, held in float32; weights are
   integers. Export scales each output channel so that sum_i |w_oi| * 2047 < 2^24 in every chunk of inputs, so no
   partial sum leaves float32's exact range and the order of summation (BLAS kernel, threads, FMA) cannot matter.
2. *Everything else is elementwise*: one IEEE operation at a time on arrays of one dtype, never a library function whose
   last bit is its own affair. exp, the sigmoid and 1/sqrt are built here from adds, multiplies and powers of two.

An activation is an `Act`: an array (B, H, W, C) and the *name* of its grid; the exponents e belong to the model. Python
scalars never meet arrays (numpy 1.26, numpy 2 and torch promote them differently): constants come from `full`.

The operations are written once, over a namespace (`NumpyNamespace` here, `TorchNamespace` for CUDA and for the tests
that hold the two equal).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.schedule import Step, fold, positions, unfold

ARITHMETIC = 3  # part of the model id; raised with every change of what these operations compute
CODE_MAX = 2047  # activations are 12-bit signed codes
SUM_BOUND = 1 << 24  # integers up to here are exact in float32
CHUNK = 256  # inputs a chunk has at most: beyond, the bound leaves the weights too few bits
MEAN_MAX = 1 << 16  # means: codes on the 1/16 grid
MEAN_SHIFT = 4  # y_hat and means count sixteenths of the quantisation step
Y_GRID = 3  # the context sees y_hat in eighths
LEVELS = 64  # scale levels, one table each
BLOCK = 64  # tokens in a block of the two-level Bi-WKV recurrence
EXPONENT_MAX = 16.0  # clamp of Bi-WKV's decay and boost
SLOPE = 0.1  # LeakyReLU's negative slope
WEIGHT_ONE = 1 << 15  # memory weights are integers of this sum
SIMILARITY_ONE = 1 << 12  # cosine similarity is compared in steps of 1/4096

Array = Any  # numpy.ndarray or torch.Tensor


class Act(NamedTuple):
    """An activation: `x` (B, H, W, C) and the name of the grid that its codes stand on."""

    x: Array
    grid: str


# --- elementary functions, numpy only: they fill tables and per-image constants -------------------------------------

_LN2_HI, _LN2_LO = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # ln 2 in two parts (fdlibm, e_exp.c)
_INVERSE_FACTORIALS = tuple(
    1.0 / f for f in (6227020800, 479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1)
)


def exact_exp(x: np.ndarray) -> np.ndarray:
    """e^x for float64 |x| <= 700, from IEEE adds, multiplies and one scaling: the same bits everywhere.

    Cody-Waite reduction x = n ln 2 + r, Taylor polynomial of degree 13 in Horner form (relative error below 3e-16).
    """
    x = np.asarray(x, np.float64)
    n = np.rint(x * np.full(x.shape, 1.4426950408889634))
    r = (x - n * np.full(x.shape, _LN2_HI)) - n * np.full(x.shape, _LN2_LO)
    p = np.full(x.shape, _INVERSE_FACTORIALS[0])
    for c in _INVERSE_FACTORIALS[1:]:
        p = p * r + np.full(x.shape, c)
    power = ((n.astype(np.int64) + np.int64(1023)) << np.int64(52)).view(np.float64)
    return p * power


def exp_table(e: int) -> np.ndarray:
    """exp(code * 2^-e) for code = -2047..2047, float64 (4095,)."""
    return exact_exp(np.arange(-CODE_MAX, CODE_MAX + 1, dtype=np.float64) * np.full(2 * CODE_MAX + 1, 2.0**-e))


def sigmoid_table(e: int) -> np.ndarray:
    """1 / (1 + exp(-code * 2^-e)) for code = -2047..2047, float32 (4095,)."""
    one = np.ones(2 * CODE_MAX + 1)
    return (one / (one + exp_table(e)[::-1])).astype(np.float32)


def memory_weight_table(temperature: float) -> np.ndarray:
    """Weight of the better of two references, of WEIGHT_ONE, by the difference of their similarities
    (0..2*SIMILARITY_ONE).
    """
    d = np.arange(2 * SIMILARITY_ONE + 1, dtype=np.float64) / np.full(
        2 * SIMILARITY_ONE + 1, SIMILARITY_ONE * temperature
    )
    one = np.ones_like(d)
    return np.rint(np.full(d.shape, float(WEIGHT_ONE)) / (one + exact_exp(-d)))


# --- namespaces -------------------------------------------------------------------------------------------------------


class NumpyNamespace:
    """The primitives that differ between numpy and torch. A trailing underscore means: in place, and returned."""

    f4, f8, i4, i8 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32), np.dtype(np.int64)

    def __init__(self) -> None:
        self._constants: dict[tuple[float, np.dtype[Any]], np.ndarray] = {}

    def array(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x)

    def numpy(self, x: np.ndarray) -> np.ndarray:
        return x

    def full(self, value: float, dtype: Any) -> np.ndarray:
        """A one-element array: how a constant meets an array."""
        key = (value, dtype)
        if key not in self._constants:
            self._constants[key] = np.full(1, value, dtype)
        return self._constants[key]

    def zeros(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def cast(self, x: np.ndarray, dtype: Any) -> np.ndarray:
        return x.astype(dtype)

    def permute(self, x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        return x.transpose(axes)

    def concat(self, xs: Sequence[np.ndarray], axis: int) -> np.ndarray:
        return np.concatenate(xs, axis)

    def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.matmul(a, b)

    def rint_(self, x: np.ndarray) -> np.ndarray:
        return np.rint(x, out=x)

    def clamp_(self, x: np.ndarray, low: int, high: int) -> np.ndarray:
        return np.minimum(np.maximum(x, self.full(low, x.dtype), out=x), self.full(high, x.dtype), out=x)

    def maximum(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.maximum(a, b)

    def sum(self, x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
        """Sum of integers, kept dimension, float64: exact below 2^53."""
        return np.asarray(np.sum(x, axis=axis, dtype=np.float64, keepdims=True))

    def take(self, table: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take(table, index)

    def bits(self, x: np.ndarray) -> np.ndarray:
        return x.view(np.int64)

    def from_bits(self, x: np.ndarray) -> np.ndarray:
        return x.view(np.float64)

    def argsort(self, x: np.ndarray) -> np.ndarray:
        """Along the last axis; keys are distinct integers, so ties cannot occur."""
        return np.argsort(x, axis=-1, kind="stable")

    def take_along(self, x: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x, index, -1)

    def exact_mode(self) -> Any:
        """Context manager: numpy has no mode to leave."""
        return nullcontext()


NUMPY = NumpyNamespace()


class TorchNamespace:
    """The same primitives on torch tensors; imports torch when constructed.

    Must run outside autocast and with TF32 off (`ExactOps` products are exact only then): `exact_mode` sees to it.
    """

    def __init__(self, device: str = "cpu") -> None:
        import torch

        self.torch, self.device = torch, torch.device(device)
        self.f4, self.f8, self.i4, self.i8 = torch.float32, torch.float64, torch.int32, torch.int64
        self._constants: dict[tuple[float, Any], Any] = {}

    def array(self, x: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(x)).to(self.device)

    def numpy(self, x: Any) -> np.ndarray:
        return np.asarray(x.cpu())

    def full(self, value: float, dtype: Any) -> Any:
        key = (value, dtype)
        if key not in self._constants:
            self._constants[key] = self.torch.full((1,), value, dtype=dtype, device=self.device)
        return self._constants[key]

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        return self.torch.zeros(tuple(shape), dtype=dtype, device=self.device)

    def cast(self, x: Any, dtype: Any) -> Any:
        return x.to(dtype, copy=True)

    def permute(self, x: Any, axes: Sequence[int]) -> Any:
        return x.permute(tuple(axes))

    def concat(self, xs: Sequence[Any], axis: int) -> Any:
        return self.torch.cat(list(xs), axis)

    def matmul(self, a: Any, b: Any) -> Any:
        return self.torch.matmul(a, b)

    def rint_(self, x: Any) -> Any:
        return x.round_()

    def clamp_(self, x: Any, low: int, high: int) -> Any:
        return x.clamp_(low, high)

    def maximum(self, a: Any, b: Any) -> Any:
        return self.torch.maximum(a, b)

    def sum(self, x: Any, axis: int | tuple[int, ...]) -> Any:
        return x.sum(dim=axis, dtype=self.f8, keepdim=True)

    def take(self, table: Any, index: Any) -> Any:
        return table[index]

    def bits(self, x: Any) -> Any:
        return x.view(self.i8)

    def from_bits(self, x: Any) -> Any:
        return x.view(self.f8)

    def argsort(self, x: Any) -> Any:
        return x.argsort(dim=-1, stable=True)

    def take_along(self, x: Any, index: Any) -> Any:
        return x.gather(-1, index)

    def exact_mode(self) -> Any:
        """Context manager: no autocast, no gradients, no TF32; the process's settings are put back on leaving."""
        return _TorchExactMode(self.torch, self.device)


class _TorchExactMode:
    def __init__(self, torch: Any, device: Any) -> None:
        self.torch, self.device = torch, device

    def __enter__(self) -> None:
        t = self.torch
        self._saved = (t.backends.cuda.matmul.allow_tf32, t.backends.cudnn.allow_tf32)
        t.backends.cuda.matmul.allow_tf32 = t.backends.cudnn.allow_tf32 = False
        self._contexts = [t.no_grad(), t.autocast(self.device.type, enabled=False)]
        for c in self._contexts:
            c.__enter__()

    def __exit__(self, *exc: object) -> None:
        for c in reversed(self._contexts):
            c.__exit__(None, None, None)
        self.torch.backends.cuda.matmul.allow_tf32, self.torch.backends.cudnn.allow_tf32 = self._saved


def rsqrt(xp: Any, x: Array) -> Array:
    """1 / sqrt(x), float64, normal x > 0: the bit trick's first guess and four Newton steps (worst error 3e-16
    measured).
    """
    r = xp.from_bits(xp.full(6910469410427058090, xp.i8) - (xp.bits(x) >> xp.full(1, xp.i8)))
    half, three_halves = x * xp.full(0.5, xp.f8), xp.full(1.5, xp.f8)
    for _ in range(4):
        r = r * (three_halves - (half * r) * r)
    return r


def probe(xp: Any) -> None:
    """Compare a few products near the 2^24 bound with int64 arithmetic.

    Raises IntegrityError where this machine's matrix product is not exact: a BLAS bug, or reduced precision set from
    outside. (Flush-to-zero does not matter: no code is subnormal.) The wide product also wakes BLAS's threads.
    """
    # Multiples of the golden ratio, modulo 2^32, are spread evenly enough; importing numpy.random would take 10 ms.
    spread = np.arange(1, 128 * 768 + 1, dtype=np.int64) * 2654435769 % 2**32 >> 8
    a = (spread[: 128 * 128] % (2 * CODE_MAX + 1) - CODE_MAX).reshape(128, 128)
    w = (spread % 127 - 63).reshape(128, 768)
    a[0], w[:, 0] = CODE_MAX, 64  # 128 * 2047 * 64 = 2^24 - 8192
    # Two large weights of odd value: TF32 and 16-bit inputs, whose mantissas hold all others here, would round them.
    w[:, 1] = 0
    w[:2, 1] = 4095, -4093
    got = xp.matmul(xp.array(a.astype(np.float32)), xp.array(w.astype(np.float32)))
    if not bool((xp.cast(got, xp.i8) == xp.array(a.astype(np.int64) @ w.astype(np.int64))).all()):
        raise IntegrityError(
            "float32 matrix products are not exact on this machine (a BLAS or driver setting reduces their precision), "
            "so its latents could not be trusted"
        )


# --- weights ---------------------------------------------------------------------------------------------------------


def chunks(widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """How the inputs of a linear are cut: (part, first, last) with each part cut into equal pieces of at most CHUNK."""
    out = []
    for part, n in enumerate(widths):
        pieces = -(-n // CHUNK)
        edges = [n * i // pieces for i in range(pieces + 1)]
        out += [(part, a, b) for a, b in pairwise(edges)]
    return out


def quantise_rows(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers and steps of a matrix (..., n): w ~ integers * step, the step per row as small as the 2^24 bound allows.

    Rounding moves each |integer| by at most a half, so (SUM_BOUND - 1) - 2047 n / 2 is shared out over sum |w|; int16
    caps the largest. Returns int16 (..., n) and float32 steps (...), the same for fake quantisation and export.
    """
    w = np.asarray(w, np.float64)
    n = w.shape[-1]
    room = (SUM_BOUND - 1) / CODE_MAX - n / 2
    total, peak = np.abs(w).sum(-1), np.abs(w).max(-1)
    step = np.maximum(total / room, peak / 32767)
    step = np.where(step > 0, step, 1.0).astype(np.float32)
    step = np.nextafter(step, np.float32(np.inf))  # rounding to float32 must not let the bound slip
    return np.rint(w / step[..., None].astype(np.float64)).astype(np.int16), step


def check_bound(name: str, integers: np.ndarray) -> None:
    """Prove the 2^24 bound of one chunk's stored integers (O, n); raises IntegrityError."""
    worst = int(np.abs(integers.astype(np.int64)).sum(-1).max(initial=0)) * CODE_MAX
    if worst >= SUM_BOUND:
        raise IntegrityError(f"weights of {name} break the exactness bound: {worst} >= 2^24")


# --- operations ------------------------------------------------------------------------------------------------------


class ExactOps:
    """The entropy path's operations on integer codes.

    tensors: the flat dictionary of integer tensors (`model/entropy.py` lists them); grids: exponent e by grid name.
    Every method that returns an Act says on which grid; codes are float32 integers within +-2047.
    """

    def __init__(self, xp: Any, tensors: Mapping[str, np.ndarray], grids: Mapping[str, int]) -> None:
        self.xp, self.tensors, self.grids = xp, tensors, grids
        self._prepared: dict[Any, Any] = {}
        for name, t in tensors.items():
            if name.endswith(".weight"):
                if t.dtype != np.int16 or t.ndim != 2:
                    raise IntegrityError(f"{name} is {t.ndim}-dimensional {t.dtype}, not a matrix of int16")
                layer = name.removesuffix(".weight")
                for i, (a, b) in enumerate(self._edges(layer)):
                    check_bound(f"{layer}, chunk {i}", t[:, a:b])

    def on(self, grids: Mapping[str, int]) -> ExactOps:
        """The same operations on other grids; what is derived from the tensors is shared."""
        other = copy.copy(self)
        other.grids = grids
        return other

    # Derived constants are computed once for each use and kept: (matrix chunks, multipliers, biases) in the namespace.
    def _keep(self, key: Any, make: Any) -> Any:
        if key not in self._prepared:
            self._prepared[key] = make()
        return self._prepared[key]

    def _edges(self, layer: str) -> list[tuple[int, int]]:
        n, count = self.tensors[f"{layer}.weight"].shape[1], self.tensors[f"{layer}.step"].shape[0]
        widths = self.tensors.get(f"{layer}.widths", np.array([n]))
        edges, start = [], 0
        for _, a, b in chunks([int(v) for v in widths]):
            edges.append((start, start + b - a))
            start += b - a
        if start != n or len(edges) != count:
            raise IntegrityError(f"weights of {layer} do not fit together: {n} inputs, {count} chunks")
        return edges

    def _code_(self, x: Array, limit: int = CODE_MAX) -> Array:
        return self.xp.clamp_(self.xp.rint_(x), -limit, limit)

    def _sigmoid(self, r: Act) -> Array:
        return self.xp.take(self._sigmoid_table(r), self._index(r.x))

    def _sigmoid_table(self, r: Act) -> Array:
        e = self.grids[r.grid]
        return self._keep(("sigmoid", e), lambda: self.xp.array(sigmoid_table(e)))

    def _index(self, codes: Array) -> Array:
        xp = self.xp
        return xp.cast(codes + xp.full(CODE_MAX, xp.f4), xp.i8)

    def _scales(self, layer: str, e_in: tuple[int, ...], e_out: int) -> Any:
        """What each chunk's sums are multiplied by, and the bias: float32 where there is one chunk, else float64."""

        def make() -> Any:
            step = self.tensors[f"{layer}.step"]
            parts = [part for part, _, _ in chunks([int(v) for v in self.tensors[f"{layer}.widths"]])]
            dtype: Any = np.float32 if len(parts) == 1 else np.float64
            scales = [
                self.xp.array(step[i].astype(dtype) * dtype(2.0 ** (e_out - e_in[p]))) for i, p in enumerate(parts)
            ]
            bias = self.tensors.get(f"{layer}.bias", np.zeros(step.shape[1], np.float32))
            return scales, self.xp.array(bias.astype(dtype) * dtype(2.0**e_out))

        return self._keep((layer, e_in, e_out), make)

    def _matrices(self, layer: str) -> Any:
        def make() -> Any:
            w = self.tensors[f"{layer}.weight"]
            return [self.xp.array(w[:, a:b].T.astype(np.float32)) for a, b in self._edges(layer)]

        return self._keep((layer, "matrices"), make)

    def _linear(self, inputs: Sequence[Act], layer: str, e_out: int) -> Array:
        """Products of all parts, scaled to the output grid, bias added; not rounded yet. Parts may be (B, 1, 1, C)."""
        xp = self.xp
        weights = self._matrices(layer)
        scales, bias = self._scales(layer, tuple(self.grids[a.grid] for a in inputs), e_out)
        out = None
        for (part, a, b), w, s in zip(chunks([i.x.shape[-1] for i in inputs]), weights, scales, strict=True):
            x = inputs[part].x
            rows = x.reshape(-1, x.shape[-1])[:, a:b]
            acc = xp.matmul(rows, w).reshape(*x.shape[:-1], w.shape[1])
            if len(weights) > 1:
                acc = xp.cast(acc, xp.f8)
            acc *= s
            out = acc if out is None else out + acc
        out += bias
        return out

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
        """1x1 convolution of the concatenation of `inputs`, which is never formed; (B, H, W, out).

        `residual` and `biased` are for the declaration of parameters: the layer ends a residual branch; it has a bias.
        """
        parts = [inputs] if isinstance(inputs, Act) else list(inputs)
        grid = grid or layer
        acc = self._code_(self._linear(parts, layer, self.grids[grid]))
        return Act(self.xp.cast(acc, self.xp.f4) if acc.dtype != self.xp.f4 else acc, grid)

    def head(self, inputs: Sequence[Act], layer: str, channels: int) -> tuple[Array, Array]:
        """Entropy parameters: means in sixteenths (int32, +-2^16) and scale levels (int32, 0..63), each (...,
        channels).
        """
        xp = self.xp
        out = xp.rint_(self._linear(inputs, layer, MEAN_SHIFT))
        if out.shape[-1] != 2 * channels:
            raise ValueError(f"{layer} gives {out.shape[-1]} parameters, {2 * channels} wanted")
        means = xp.cast(xp.clamp_(out[..., :channels], -MEAN_MAX, MEAN_MAX), xp.i4)
        levels = xp.cast(xp.clamp_(out[..., channels:], 0, LEVELS - 1), xp.i4)
        return means, levels

    def depthwise(self, a: Act, layer: str, grid: str | None = None, *, omni: bool = False) -> Act:
        """Depthwise k x k convolution, zero padding, as k * k shifted multiply-adds of integers."""
        xp, grid = self.xp, grid or layer
        scale, bias = self._tap_scale(layer, self.grids[a.grid], self.grids[grid])
        taps = self._keep(
            (layer, "taps"), lambda: [xp.array(t.astype(np.float32)) for t in self.tensors[f"{layer}.weight"].T]
        )
        k = int(round(len(taps) ** 0.5))
        b, h, w, c = a.x.shape
        padded = xp.zeros((b, h + k - 1, w + k - 1, c), xp.f4)
        padded[:, k // 2 : k // 2 + h, k // 2 : k // 2 + w] = a.x
        acc = padded[:, :h, :w] * taps[0]
        for i, tap in enumerate(taps[1:], 1):
            acc += padded[:, i // k : i // k + h, i % k : i % k + w] * tap
        acc *= scale
        acc += bias
        return Act(self._code_(acc), grid)

    def _tap_scale(self, layer: str, e_in: int, e_out: int) -> Any:
        def make() -> Any:
            scale = self.tensors[f"{layer}.step"][0] * np.float32(2.0 ** (e_out - e_in))
            return self.xp.array(scale), self.xp.array(self.tensors[f"{layer}.bias"] * np.float32(2.0**e_out))

        return self._keep((layer, e_in, e_out), make)

    def norm(self, a: Act, layer: str, grid: str | None = None) -> Act:
        """LayerNorm over channels: (n x - s1) * rsqrt(n s2 - s1^2 + n^2) * gamma + beta; epsilon is one squared
        code.
        """
        xp, grid = self.xp, grid or layer
        n = a.x.shape[-1]
        gamma, beta = self._affine(layer, self.grids[grid])
        s1, s2 = xp.sum(a.x, -1), xp.sum(a.x * a.x, -1)
        r = rsqrt(xp, (s2 * xp.full(n, xp.f8) - s1 * s1) + xp.full(n * n, xp.f8))
        out = a.x * xp.full(n, xp.f4)
        out -= xp.cast(s1, xp.f4)
        out *= xp.cast(r, xp.f4)
        out *= gamma
        out += beta
        return Act(self._code_(out), grid)

    def _affine(self, layer: str, e: int) -> Any:
        return self._keep(
            (layer, e),
            lambda: tuple(self.xp.array(self.tensors[f"{layer}.{t}"] * np.float32(2.0**e)) for t in ("gamma", "beta")),
        )

    def lrelu(self, a: Act) -> Act:
        """max(x, 0.1 x) on the code."""
        xp = self.xp
        return Act(xp.maximum(a.x, xp.rint_(a.x * xp.full(SLOPE, xp.f4))), a.grid)

    def relu_squared(self, a: Act, grid: str) -> Act:
        xp = self.xp
        x = xp.maximum(a.x, xp.full(0, xp.f4))
        x = x * x
        x *= xp.full(2.0 ** (self.grids[grid] - 2 * self.grids[a.grid]), xp.f4)
        return Act(self._code_(x), grid)

    def gate(self, r: Act, a: Act) -> Act:
        """sigmoid(r) * a, on a's grid."""
        return Act(self.xp.rint_(self._sigmoid(r) * a.x), a.grid)

    def blend(self, r: Act, a: Act, b: Act) -> Act:
        """sigmoid(r) * a + (1 - sigmoid(r)) * b; a and b on one grid, either may be (B, 1, 1, C)."""
        out = self._sigmoid(r) * (a.x - b.x)
        out = out + b.x
        return Act(self.xp.rint_(out), _same_grid(a, b))

    def add(self, a: Act, b: Act) -> Act:
        return Act(self.xp.clamp_(a.x + b.x, -CODE_MAX, CODE_MAX), _same_grid(a, b))

    def channel_scale(self, a: Act, layer: str) -> Act:
        return Act(self._code_(a.x * self._channel_factors(layer)), a.grid)

    def place(self, a: Act, step: Step, layer: str) -> Act:
        """a plus the vector of the group that the step codes at each position."""
        table, out = self._place_codes(layer, self.grids[a.grid]), self.xp.zeros(a.x.shape, self.xp.f4)
        for g, at in positions(step):
            out[at] = a.x[at] + table[g]
        return Act(self.xp.clamp_(out, -CODE_MAX, CODE_MAX), a.grid)

    def _place_codes(self, layer: str, e: int) -> Array:
        xp = self.xp
        return self._keep(
            (layer, e), lambda: self._code_(xp.array(self.tensors[f"{layer}.table"]) * xp.full(2.0**e, xp.f4))
        )

    def _channel_factors(self, layer: str) -> Array:
        return self._keep(layer, lambda: self.xp.array(self.tensors[f"{layer}.scale"].astype(np.float32)))

    def wkv(self, k: Act, v: Act, layer: str, grid: str | None = None) -> Act:
        """Bi-WKV4 over the H * W tokens in raster order (`exact/biwkv.py` has formula and order of operations)."""
        from hpcmcodec.exact.biwkv import biwkv4_exact

        xp, grid = self.xp, grid or layer
        b, h, w, c = v.x.shape
        tokens = h * w
        table, powers, own = self._wkv_constants(layer, tokens, self.grids[k.grid])
        weights = xp.take(table, self._index(k.x)).reshape(b, tokens, c)
        out = biwkv4_exact(xp, weights, xp.cast(v.x, xp.f8).reshape(b, tokens, c), powers, own)
        out *= xp.full(2.0 ** (self.grids[grid] - self.grids[v.grid]), xp.f8)
        return Act(xp.cast(self._code_(out), xp.f4).reshape(b, h, w, c), grid)

    def _wkv_constants(self, layer: str, tokens: int, e_k: int) -> Any:
        """exp(k) of every code, W^0 .. W^B and exp(u), float64 (4095,), (B + 1, C) and (C,)."""
        from hpcmcodec.exact.biwkv import decay_powers, own_factor

        xp = self.xp
        table = self._keep(("exp", e_k), lambda: xp.array(exp_table(e_k)))
        # Kept for one number of tokens a layer: images of many sizes must not make this grow.
        if self._prepared.get((layer, "tokens")) != tokens:
            self._prepared[layer] = (
                xp.array(decay_powers(self.tensors[f"{layer}.decay"], tokens)),
                xp.array(own_factor(self.tensors[f"{layer}.boost"], tokens)),
            )
            self._prepared[(layer, "tokens")] = tokens
        powers, own = self._prepared[layer]
        return table, powers, own

    def pool(self, a: Act, grid: str) -> Act:
        """Average over the positions, (B, 1, 1, C), on its own (finer) grid."""
        xp = self.xp
        out = self._total(a.x) / xp.full(a.x.shape[1] * a.x.shape[2], xp.f8)
        out *= xp.full(2.0 ** (self.grids[grid] - self.grids[a.grid]), xp.f8)
        return Act(xp.cast(self._code_(out), xp.f4), grid)

    def _total(self, x: Array) -> Array:
        return self.xp.sum(x, (1, 2))

    def recall(self, query: Act, keys: Sequence[Act], values: Sequence[Act], temperature: float) -> Act:
        """Mean of the two values whose keys are most similar to the query, weighted by softmax(cosine / temperature).

        query, keys (B, 1, 1, K); values (B, 1, 1, C). Similarities are compared as integers; ties go to the older
        reference, since the index is part of the key that is sorted.
        """
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

    # -- latents in and out --

    def hyper_latent(self, z: Array, layer: str, grid: str, quality: Sequence[int]) -> Act:
        """z symbols (B, H, W, N) int32 as codes, plus the quality's bias; quality: hundredths of q, one a sample."""
        xp = self.xp
        scale = 2 ** self.grids[grid]
        limit = CODE_MAX // scale + 1
        codes = xp.clamp_(
            xp.cast(xp.clamp_(xp.cast(z, xp.i4), -limit, limit), xp.f4) * xp.full(scale, xp.f4), -CODE_MAX, CODE_MAX
        )
        bias = np.array([interpolate(self.tensors[f"{layer}.table"], q) for q in quality], np.float32)
        return self.add(Act(codes, grid), Act(xp.array(bias[:, None, None, :]), grid))

    def latent_code(self, y_hat: Array) -> Array:
        """What the context sees of y_hat (int32, sixteenths): eighths, floored after adding one, clamped, float32."""
        xp = self.xp
        return xp.cast(xp.clamp_((y_hat + xp.full(1, xp.i4)) >> xp.full(1, xp.i4), -CODE_MAX, CODE_MAX), xp.f4)

    def empty_latent(self, shape: Sequence[int]) -> tuple[Array, Act]:
        """y_hat before anything is coded, and what the context sees of it."""
        return self.xp.zeros(shape, self.xp.i4), Act(self.xp.zeros(shape, self.xp.f4), "y")

    def segment(self, f: Callable[..., Act], *arguments: Any) -> Act:
        """f(*arguments): a part of the walk that training may run twice rather than keep what is inside."""
        return f(*arguments)

    # -- where symbols are: strided slices, five times as quick as index arrays in numpy --

    def folded(self, a: Act, step: Step) -> Act:
        """The step's channels of a (B, H, W, M), one group a position: (B, H, W, M / groups)."""
        return Act(fold(a.x, step, self._empty_fold(a.x, len(step.groups))), a.grid)

    def _empty_fold(self, x: Array, groups: int) -> Array:
        return self.xp.zeros((*x.shape[:-1], x.shape[-1] // groups), self.xp.f4)

    def gather(self, xs: Sequence[Array], step: Step) -> list[tuple[int, list[Array]]]:
        """For each group of a step with positions on this grid: (group, rows (B, 1, n, D) of each x (B, H, W, D))."""
        rows: dict[int, list[list[Array]]] = {}
        for g, at in positions(step):
            blocks = [x[at].reshape(x.shape[0], 1, -1, x.shape[-1]) for x in xs]
            rows.setdefault(g, []).append(blocks)
        return [(g, [self.xp.concat(list(b), 2) for b in zip(*blocks, strict=True)]) for g, blocks in rows.items()]

    def scatter(self, rows: Sequence[tuple[int, Array]], step: Step, shape: Sequence[int]) -> Array:
        """The inverse of `gather`: rows of every group into an array of `shape` (B, H, W, C), int32."""
        out = self.xp.zeros(shape, self.xp.i4)
        by_group, start = dict(rows), dict.fromkeys(range(len(step.groups)), 0)
        for g, at in positions(step):
            target = out[at]
            n = target.shape[1] * target.shape[2]
            target[:] = by_group[g][:, 0, start[g] : start[g] + n].reshape(target.shape)
            start[g] += n
        return out

    def unfold(self, folded: Array, step: Step, target: Array) -> Array:
        """`target` (B, H, W, M) with the step's folded values in their places; in place, since nobody keeps the old
        one.
        """
        return unfold(folded, step, target)


def interpolate(table: np.ndarray, quality: int) -> list[int]:
    """Linear interpolation of an integer table (K, N) at quality 0..10000, in Python integers, half rounded up."""
    position = quality * (len(table) - 1)
    i = min(position // 10000, len(table) - 2)
    f = position - i * 10000
    return [(int(a) * (10000 - f) + int(b) * f + 5000) // 10000 for a, b in zip(table[i], table[i + 1], strict=True)]


def _same_grid(a: Act, b: Act) -> str:
    if a.grid != b.grid:
        raise ValueError(f"operands on different grids: {a.grid} and {b.grid}")
    return a.grid
