"""A learned codec for photographs, whose files decode to the same integers on every machine.

    import hpcmcodec

    data = hpcmcodec.encode("photo.jpg", quality=50)
    image = hpcmcodec.decode(data)  # a PIL.Image.Image

The names below are imported when they are first used: ``import hpcmcodec`` alone loads neither numpy nor Pillow nor
onnxruntime (0.3 s together), and coding on a CPU loads torch only for the torch engine. Of these names `load_model`
alone needs torch: where torch is not installed, using it raises `errors.UnsupportedError`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcmcodec import errors
    from hpcmcodec.codec import decode, encode
    from hpcmcodec.pretrained import load_model

__all__ = ["__version__", "decode", "encode", "errors", "load_model"]

__version__ = "0.2.0"

_MODULES = {
    "decode": "hpcmcodec.codec",
    "encode": "hpcmcodec.codec",
    "load_model": "hpcmcodec.pretrained",
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module("hpcmcodec.errors")
    if name in _MODULES:
        try:
            module = importlib.import_module(_MODULES[name])
        except ModuleNotFoundError as error:
            if error.name not in ("einops", "torch"):
                raise
            from hpcmcodec.errors import UnsupportedError

            raise UnsupportedError(
                f'{name} needs {error.name}, which is not installed: pip install "hpcmcodec[torch]"'
            ) from error
        value: object = getattr(module, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'hpcmcodec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
