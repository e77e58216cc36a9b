"""Checks, before the work begins, that the machine and the installation have what a command needs."""

from __future__ import annotations

from hpcmcodec.errors import UnsupportedError

# Bytes of address space that numpy, onnxruntime and the weights take: the smallest limit under which they were seen to
# load.
_ADDRESSES = 256 << 20


def require(purpose: str, extra: str, *modules: str) -> None:
    """Raises an `UnsupportedError` that names the extra to install, where one of the modules is missing."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UnsupportedError(
            f'{purpose} needs {" and ".join(missing)}, which is not installed: pip install "hpcmcodec[{extra}]"'
        )


def require_memory() -> None:
    """Raises `UnsupportedError` where there is no room for numpy and onnxruntime, before they are imported.

    Without room, their libraries would write to standard error and end the process, or raise errors of any kind. Only
    address space is asked for, as a limit (ulimit -v) may leave too little of it; no memory is filled.
    """
    import mmap

    try:
        mmap.mmap(-1, _ADDRESSES).close()
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"not enough memory: coding takes {_ADDRESSES >> 20} MiB of it at least") from error
