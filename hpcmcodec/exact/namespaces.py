"""The primitives that the operations are written over, in numpy and in torch, and a test that products are exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import CODE_MAX


class NumpyNamespace:
    """The primitives that differ between numpy and torch.

    A function whose name ends with an underscore changes its argument in place, and returns it.
    """

    f4, f8, i4, i8 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32), np.dtype(np.int64)

    def __init__(self) -> None:
        self._constants: dict[tuple[float, np.dtype[Any]], np.ndarray] = {}

    def array(self, x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x)

    def numpy(self, x: np.ndarray) -> np.ndarray:
        return x

    def full(self, value: float, dtype: Any) -> np.ndarray:
        """An array (1,) that holds a constant; constants are combined with arrays in this form alone."""
        key = (value, dtype)
        if key not in self._constants:
            self._constants[key] = np.full(1, value, dtype)
        return self._constants[key]

    def zeros(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def zeros_like(self, x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Zeros of `shape`, of x's dtype."""
        return np.zeros(shape, x.dtype)

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
        """Sum of integers in float64, exact below 2^53; the summed axes stay, with length 1."""
        return np.asarray(np.sum(x, axis=axis, dtype=np.float64, keepdims=True))

    def max(self, x: np.ndarray) -> np.ndarray:
        """The largest value along the last axis, which stays, with length 1."""
        return np.asarray(np.max(x, axis=-1, keepdims=True))

    def take(self, table: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take(table, index)

    def bits(self, x: np.ndarray) -> np.ndarray:
        return x.view(np.int64)

    def from_bits(self, x: np.ndarray) -> np.ndarray:
        return x.view(np.float64)

    def argsort(self, x: np.ndarray) -> np.ndarray:
        """The order of x along the last axis. Callers sort distinct integers, so ties cannot occur."""
        return np.argsort(x, axis=-1, kind="stable")

    def take_along(self, x: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x, index, -1)

    def exact_mode(self) -> Any:
        """A context manager that does nothing, since numpy has no settings that make products inexact."""
        return nullcontext()


NUMPY = NumpyNamespace()


class TorchNamespace:
    """The same primitives on torch tensors; imports torch when constructed.

    Matrix products are exact only outside autocast, which chooses dtypes of its own: `exact_mode` brings that about.
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

    def zeros_like(self, x: Any, shape: Sequence[int]) -> Any:
        return x.new_zeros(tuple(shape))

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

    def max(self, x: Any) -> Any:
        return x.amax(-1, keepdim=True)

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

    @contextmanager
    def exact_mode(self) -> Iterator[None]:
        """A context manager that turns autocast and gradients off, and restores the settings at its end."""
        with self.torch.no_grad(), self.torch.autocast(self.device.type, enabled=False):
            yield


def probe(xp: Any) -> None:
    """Compare a matrix product whose sums come near the bound 2^31 with the same product in integers.

    To compute all of it in int64 would take as long as decoding a small picture, so the product times a vector is
    compared, which is the matrices times that vector one after the other (Freivalds).

    Raises IntegrityError where this machine's matrix product is not exact, because BLAS has a bug or a setting reduces
    its precision. (Flush-to-zero does no harm: no code is subnormal.) The product is wide enough to start BLAS's
    threads, too.
    """
    # Multiples of the golden ratio modulo 2^32 serve as random numbers; importing numpy.random would take 10 ms.
    spread = np.arange(1, 128 * 768 + 1, dtype=np.int64) * 2654435769 % 2**32 >> 8
    a = (spread[: 128 * 128] % (2 * CODE_MAX + 1) - CODE_MAX).reshape(128, 128)
    w = (spread % 4095 - 2047).reshape(128, 768)
    a[0], w[:, 0] = CODE_MAX, 2048  # 128 * 8191 * 2048 = 2^31 - 2^18
    got = xp.numpy(xp.cast(xp.matmul(xp.array(a.astype(np.float64)), xp.array(w.astype(np.float64))), xp.i8))
    vector = spread[: w.shape[1]] % 1021 + 1
    if not np.array_equal(got @ vector, a @ (w @ vector)):
        raise IntegrityError(
            "float64 matrix products are not exact on this machine (a BLAS or driver setting reduces their precision), "
            "so its latents could not be trusted"
        )
