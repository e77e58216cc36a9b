"""Memory that runs out, as one error of this package."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hpcmcodec.errors import UnsupportedError

_ALLOCATORS = re.compile("bad_alloc|allocate memory")


@contextmanager
def within_memory() -> Iterator[None]:
    """Raises `UnsupportedError` where memory runs out, whether numpy, onnxruntime or the system reports it."""
    try:
        yield
    except Exception as error:
        if not _for_want_of_memory(error):
            raise
        raise UnsupportedError("not enough memory for an image of this size") from error


def _for_want_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # onnxruntime has no class of exception for this: it is known by the words of its allocator, or of C++.
    theirs = type(error).__module__.startswith("onnxruntime")
    # Python itself says it so of a lock.
    locks = isinstance(error, RuntimeError) and str(error).startswith("can't allocate")
    return isinstance(error, MemoryError) or locks or (theirs and bool(_ALLOCATORS.search(str(error))))
