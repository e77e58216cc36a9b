"""The counterpart of kernels/abi.h: the structs and limits that Python and the kernels share, and a check of both."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.exact.constants import BLOCK, EXPONENT_MAX, TABLE_MAX

PANEL = 16  # how many outputs lie side by side in packed weights
MAX_INPUTS = 8  # most inputs of one linear layer
FLOAT32, BFLOAT16, FLOAT64 = range(3)  # the type of the elements of tensors

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class Input(ctypes.Structure):
    """An input of a linear layer; abi.h describes the fields."""

    _fields_ = (("a", _pointer), ("columns", _long), ("weights", _pointer), ("scale", _pointer))


class Linear(ctypes.Structure):
    """The arguments of a linear layer's kernel; abi.h describes the fields."""

    _fields_ = (
        *(("rows", _long), ("outputs", _int), ("n_inputs", _int), ("limit", _int), ("bias", _pointer)),
        *(("low", _pointer), ("high", _pointer), ("onto", _pointer), ("out", _pointer)),
        ("inputs", Input * MAX_INPUTS),
    )


class Group(ctypes.Structure):
    """The head of one group; abi.h describes the fields."""

    _fields_ = (("first", _long), ("last", _long), ("hidden", Linear), ("head", Linear))


class Heads(ctypes.Structure):
    """The arguments of the heads' kernel; abi.h describes the fields."""

    _fields_ = (
        *((name, _int) for name in ("n_inputs", "groups", "hidden", "channels")),
        *(("order", _pointer), ("group", _pointer)),
        *(("inputs", _pointer * MAX_INPUTS), ("columns", _long * MAX_INPUTS)),
        *(("means", _pointer), ("levels", _pointer)),
    )


class Layer(ctypes.Structure):
    """A layer of a residual block; abi.h describes the fields."""

    _fields_ = (("weights", _pointer), ("scale", _pointer), ("bias", _pointer), ("limit", _long))


class Residual(ctypes.Structure):
    """The arguments of a residual block's kernel; abi.h describes the fields."""

    _fields_ = (
        *((name, _long) for name in ("batch", "height", "width", "above", "first", "last")),
        *(("channels", _int), ("hidden", _int), ("limit", _int)),
        *((name, _pointer) for name in ("before", "x", "out", "read")),
        *(("around", Layer), ("up", Layer), ("down", Layer)),
    )


class Biwkv4(ctypes.Structure):
    """The arguments of Bi-WKV4's kernels for training; abi.h describes the fields."""

    _fields_ = (
        *(("batch", _long), ("tokens", _long), ("real", _int), ("channels", _int)),
        *((name, _pointer) for name in ("k", "v", "g", "decay", "boost", "y", "gk", "gv", "sums", "scratch")),
    )


VALUES: dict[str, int] = {
    "TABLE_MAX": TABLE_MAX,
    "BLOCK": BLOCK,
    "EXPONENT_MAX": int(EXPONENT_MAX),
    "PANEL": PANEL,
    "MAX_INPUTS": MAX_INPUTS,
    "FLOAT32": FLOAT32,
    "BFLOAT16": BFLOAT16,
    "FLOAT64": FLOAT64,
}
for _struct in (Input, Linear, Group, Heads, Layer, Residual, Biwkv4):
    VALUES[f"the size of {_struct.__name__}"] = ctypes.sizeof(_struct)
    VALUES |= {f"the place of {_struct.__name__}.{f[0]}": getattr(_struct, f[0]).offset for f in _struct._fields_}


def check(found: Sequence[int]) -> None:
    """Raises UnsupportedError where the kernels' values (`hpcm_abi`, in the order of VALUES) differ from these."""
    if len(found) != len(VALUES):
        raise UnsupportedError(f"the kernels share {len(found)} values with Python, which knows {len(VALUES)}")
    for (name, expected), value in zip(VALUES.items(), found, strict=True):
        if value != expected:
            raise UnsupportedError(f"{name} is {value} in the kernels, {expected} in Python")
