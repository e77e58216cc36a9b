"""What a command needs of the machine and the installation, asked for before the work."""

from __future__ import annotations

from hpcmcodec.errors import UnsupportedError

# Bytes of addresses that numpy, onnxruntime and the weights take, measured where limits begin to let them load.
_ADDRESSES = 256 << 20


def require(purpose: str, extra: str, *modules: str) -> None:
    """Raises `UnsupportedError` that names the extra to install where one of the modules is missing."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UnsupportedError(
            f'{purpose} needs {" and ".join(missing)}, which is not installed: pip install "hpcmcodec[{extra}]"'
        )


def require_memory() -> None:
    """Raises `UnsupportedError` where there is no room for numpy and onnxruntime, before they are imported.

    Their libraries write to standard error and end the process by themselves, or raise errors of any kind. Nothing is
    filled: this is about the addresses that a limit (ulimit -v) leaves.
    """
    import mmap

    try:
        mmap.mmap(-1, _ADDRESSES).close()
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"not enough memory: coding takes {_ADDRESSES >> 20} MiB of it at least") from error
