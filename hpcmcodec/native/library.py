"""The functions of a compiled library, called through ctypes, on numpy arrays, without the GIL.

They take pointers and check nothing, so `native.compiled` checks shapes and dtypes before it calls them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcmcodec.exact.constants import BLOCK
from hpcmcodec.native import abi

__all__ = ["HostMemory", "Kernels"]

Array = Any  # a numpy array, or a torch tensor on the device of the kernels

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "hpcm_depthwise": (_long, _long, _long, _int, _int, _pointer, _pointer, _pointer, _pointer, _int, _pointer),
    "hpcm_around": (_long, _long, _long, _int, _int, _int, *[_pointer] * 5, _int, _pointer),
    "hpcm_norm": (_long, _int, _pointer, _pointer, _pointer, _int, _pointer),
    "hpcm_lrelu": (_long, _pointer, _pointer),
    "hpcm_relu_squared": (_long, _pointer, ctypes.c_float, _int, _pointer),
    "hpcm_gate": (_long, _pointer, _pointer, _pointer, _pointer),
    "hpcm_add": (_long, _pointer, _pointer, _int, _pointer),
    "hpcm_latent_code": (_long, _pointer, _int, _pointer),
    "hpcm_narrow": (_long, _int, _pointer, _pointer, _int, _pointer),
    "hpcm_pixels": (_long, _pointer, ctypes.c_float, ctypes.c_float, _int, _pointer),
    "hpcm_channel_scale": (_long, _int, _pointer, _pointer, _int, _pointer),
    "hpcm_blend": (_long, _int, _pointer, _pointer, _pointer, _pointer, _pointer),
    "hpcm_sum_rows": (_long, _int, _pointer, _pointer),
    "hpcm_wkv": (
        *(_long, _long, _int, _int),
        *(_pointer, _pointer, _pointer, _pointer, _pointer, ctypes.c_double, _int, _pointer, _pointer),
    ),
}
# The entropy coder, for rans_coders.py. These functions check their arguments and return a number of symbols.
_RANS_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "hpcm_rans_encode": (_long, _pointer, _pointer, _long, _long, *[_pointer] * 6),
    "hpcm_rans_decode": (_long, _pointer, _long, _long, *[_pointer] * 4, _long, *[_pointer] * 3),
}


class HostMemory:
    """The functions on arrays that `KernelOps` needs, for numpy arrays."""

    @staticmethod
    def empty(shape: Sequence[int] | int, dtype: Any) -> Array:
        return np.empty(shape, dtype)

    @staticmethod
    def contiguous(x: Array, dtype: Any) -> Array:
        return np.ascontiguousarray(x, dtype)

    @staticmethod
    def at(x: Array) -> int:
        """The address of the first element."""
        return int(x.__array_interface__["data"][0])

    @staticmethod
    def broadcast(*xs: Array) -> Sequence[Array]:
        return np.broadcast_arrays(*xs)


class Kernels:
    """The kernels of a library that `native.loader` has loaded. threads: how many threads a kernel may use.

    Raises UnsupportedError where the library was compiled with other values of abi.h than Python's.
    """

    memory: Any = HostMemory()
    in_one_pass = True
    """Whether there are kernels for operations that are several others in a row (`exact.ops.Composed`)."""

    def __init__(self, library: ctypes.CDLL, threads: int = 1) -> None:
        self.library = library
        library.hpcm_abi.argtypes, library.hpcm_abi.restype = (_pointer,), _int
        values = (_long * library.hpcm_abi(None))()
        library.hpcm_abi(values)
        abi.check(values)
        for name, arguments in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
            setattr(self, name.removeprefix("hpcm_"), function)
        library.hpcm_linear.argtypes, library.hpcm_linear.restype = (_pointer,), None
        library.hpcm_residual.argtypes = library.hpcm_heads.argtypes = (_pointer,)
        for name, arguments in _RANS_SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, _long
            setattr(self, name.removeprefix("hpcm_"), function)
        library.hpcm_float_biwkv4.argtypes = (_pointer,)
        library.hpcm_float_biwkv4_gradients.argtypes = (_pointer, _pointer, _pointer)
        library.hpcm_wkv_scratch.argtypes, library.hpcm_wkv_scratch.restype = (_long, _long, _int, _int), _long
        library.hpcm_threads.argtypes, library.hpcm_threads.restype = (_int,), None
        library.hpcm_choose.argtypes = (ctypes.c_char_p,)
        for name in ("hpcm_variant", "hpcm_variants"):
            getattr(library, name).restype = ctypes.c_char_p
        self.set_threads(threads)

    depthwise: Any
    around: Any
    norm: Any
    lrelu: Any
    relu_squared: Any
    gate: Any
    add: Any
    latent_code: Any
    narrow: Any
    pixels: Any
    channel_scale: Any
    blend: Any
    sum_rows: Any
    wkv: Any
    rans_encode: Any
    rans_decode: Any

    def linear(self, call: abi.Linear) -> None:
        """A linear layer: sums of products, scaled, rounded, limited and stored as the call says."""
        self.library.hpcm_linear(ctypes.byref(call))

    def heads(self, call: abi.Heads) -> None:
        """The heads of all groups in one pass. Raises MemoryError where scratch memory cannot be allocated."""
        if self.library.hpcm_heads(ctypes.byref(call)):
            raise MemoryError("no scratch memory for heads")

    def residual(self, call: abi.Residual) -> None:
        """A residual block in one pass. Raises MemoryError where its scratch memory cannot be allocated."""
        if self.library.hpcm_residual(ctypes.byref(call)):
            raise MemoryError("no scratch memory for a residual block")

    def float_biwkv4(self, call: abi.Biwkv4) -> int:
        """Bi-WKV4 for training (torch_ops.py). Returns 1 where its scratch memory cannot be allocated, else 0."""
        return int(self.library.hpcm_float_biwkv4(ctypes.byref(call)))

    def float_biwkv4_gradients(self, call: abi.Biwkv4, g_decay: int, g_boost: int) -> int:
        """The gradients of `float_biwkv4`; those by decay and boost, float64, are written to these addresses."""
        return int(self.library.hpcm_float_biwkv4_gradients(ctypes.byref(call), g_decay, g_boost))

    @property
    def variant(self) -> str:
        """The instruction set whose copy of the kernels is in use."""
        return str(self.library.hpcm_variant().decode())

    @property
    def variants(self) -> list[str]:
        """The instruction sets that this processor can run, best first."""
        return str(self.library.hpcm_variants().decode()).split(",")

    def choose(self, variant: str) -> None:
        """Use another instruction set in the whole process. Raises ValueError where this processor does not have it."""
        if self.library.hpcm_choose(variant.encode()):
            raise ValueError(f"no variant {variant!r} here; this processor runs {', '.join(self.variants)}")

    def set_threads(self, n: int) -> None:
        """Set how many threads a kernel may use in the whole process; results do not depend on it."""
        self.library.hpcm_threads(n)

    def wkv_scratch(self, batch: int, tokens: int, channels: int, length: int) -> int:
        """How many doubles of scratch memory `biwkv4` needs."""
        return int(self.library.hpcm_wkv_scratch(batch, tokens, channels, length))

    def biwkv4(
        self, k: Array, v: Array, table: Array | None, powers: Array, own: Array, factor: float = 1.0, limit: int = 0
    ) -> Array:
        """Bi-WKV4 over (B, T, C): codes k, v, with a table of exp(k), to codes within `limit`, on a grid `factor` times
        as fine; or exp(k) and v to y, all float64.
        """
        batch, tokens, channels = v.shape
        dtype: Any = np.float64 if table is None else np.int16
        length = powers.shape[0] - 1
        if powers.shape[1:] != own.shape or own.shape != (channels,) or length != min(BLOCK, tokens):
            raise ValueError(
                f"powers {powers.shape} and own {own.shape} do not fit {tokens} tokens of {channels} channels"
            )
        memory, at = self.memory, self.memory.at
        k, v = memory.contiguous(k, dtype), memory.contiguous(v, dtype)
        powers, own = memory.contiguous(powers, np.float64), memory.contiguous(own, np.float64)
        if k.shape != v.shape:
            raise ValueError(f"k {k.shape} and v {v.shape}")
        ends = memory.empty(self.wkv_scratch(batch, tokens, channels, length), np.float64)
        out = memory.empty(v.shape, dtype)
        self.wkv(
            *(batch, tokens, channels, length),
            *(at(k), at(v), None if table is None else at(table), at(powers), at(own)),
            *(factor, limit, at(ends), at(out)),
        )
        return out
