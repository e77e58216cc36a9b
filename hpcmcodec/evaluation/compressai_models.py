"""CompressAI's models with random weights, to measure how long they take.

The time of a model hardly depends on its weights, so none are downloaded. CompressAI's package imports torchvision,
torch-geometric and more, none of which these models use. Their modules are therefore imported under empty parent
packages, which import nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MODELS", "Model", "missing"]

MODELS: Mapping[str, tuple[str, str, tuple[int, ...]]] = {
    "mbt2018-mean": ("compressai.models.google", "MeanScaleHyperprior", (128, 192)),
    "cheng2020-anchor": ("compressai.models.waseda", "Cheng2020Anchor", (128,)),
}
"""Name -> module, class, and the arguments of the class, which are those of CompressAI's lower qualities."""

STRIDE = 64
"""The sides of an image, in pixels, must be multiples of this."""


def missing() -> list[str]:
    """Packages to install before the models can be used."""
    return [name for name in ("torch", "compressai") if importlib.util.find_spec(name) is None]


class Model:
    """One of `MODELS`, on the CPU, with `encode` and `decode` as in `codecs.Codec`.

    The latents of random weights have another entropy than a trained model's: only the times mean something.

    Raises:
        ModuleNotFoundError: torch or compressai is not installed.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._model: Any = None
        self._torch = importlib.import_module("torch")
        self._class = getattr(_imported(MODELS[name][0]), MODELS[name][1])

    def load(self) -> None:
        """Make the model and its tables, which `encode` and `decode` need."""
        self._torch.manual_seed(0)
        self._model = self._class(*MODELS[self._name][2]).eval()
        self._model.update(force=True)

    def encode(self, pixels: npt.NDArray[np.uint8], quality: float, threads: int) -> bytes:
        """Pixels (H, W, 3) uint8, sides multiples of `STRIDE` -> two lengths, the shape of z, and the two strings."""
        self._torch.set_num_threads(threads)
        with self._torch.inference_mode():
            x = self._torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
            out = self._model.compress(x)
        strings = [strings[0] for strings in out["strings"]]
        return struct.pack("<4I", *map(len, strings), *out["shape"]) + b"".join(strings)

    def decode(self, data: bytes, threads: int) -> npt.NDArray[np.uint8]:
        """The bytes that `encode` gave -> pixels (H, W, 3) uint8."""
        self._torch.set_num_threads(threads)
        first, second, rows, columns = struct.unpack_from("<4I", data)
        strings = [[data[16 : 16 + first]], [data[16 + first : 16 + first + second]]]
        with self._torch.inference_mode():
            x_hat = self._model.decompress(strings, (rows, columns))["x_hat"][0]
            pixels = (x_hat.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
        return np.ascontiguousarray(pixels)


def _imported(module: str) -> ModuleType:
    spec = importlib.util.find_spec("compressai")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("compressai is not installed", name="compressai")
    folder = spec.submodule_search_locations[0]
    root = _empty("compressai", folder)
    root.get_entropy_coder = lambda: "ans"  # type: ignore[attr-defined]
    root.available_entropy_coders = lambda: ["ans"]  # type: ignore[attr-defined]
    _empty("compressai.models", f"{folder}/models")
    registry = _empty("compressai.registry", f"{folder}/registry")
    registry.__getattr__ = _decorator  # type: ignore[method-assign]
    return importlib.import_module(module)


def _decorator(name: str) -> Callable[..., Callable[[Any], Any]]:
    """Stands in for `register_model` and its like: gives decorators that leave a class as it is."""
    if not name.startswith("register_"):
        raise AttributeError(name)
    return lambda *args: lambda decorated: decorated


def _empty(name: str, folder: str) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = [folder]
    sys.modules[name] = module
    return module
