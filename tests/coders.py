"""The entropy coders that tests compare, by name."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from hpcmcodec import rans_coders
from hpcmcodec.native.library import Kernels
from hpcmcodec.rans_coders import Choice, Coder

NAMES = ("compressai", "native C++", "native Python")


def named(name: str, library: str) -> Coder:
    """The coder of this name; `library`: of the kernels, for the one in C++. UnsupportedError without CompressAI's."""
    if name == "compressai":
        return rans_coders.CompressAI(Kernels(ctypes.CDLL(library)) if library else None)
    return rans_coders.Native(Kernels(ctypes.CDLL(library)) if name == "native C++" else None)


def missing(name: str) -> str:
    """Why a coder is not there."""
    return "CompressAI is not installed" if name == "compressai" else "no C++ compiler"


@contextmanager
def used(coder: Coder) -> Iterator[None]:
    """Have all streams written and read by this coder."""
    with patch.object(rans_coders, "choose", lambda: Choice(coder, "a test")):
        yield
