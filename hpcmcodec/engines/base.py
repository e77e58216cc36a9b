"""What an engine is, and the engine of a model and device: made once a process, and anew after a fork."""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import Protocol

import numpy as np

from hpcmcodec import threads, timing, weights
from hpcmcodec.engines import light
from hpcmcodec.engines.strips import Progress
from hpcmcodec.errors import UnsupportedError
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.model.config import Config
from hpcmcodec.quality import Quality


class Engine(Protocol):
    """Transforms, synthesis and latent coder of one model on one device.

    `name` is "light" or "torch", `lock` guards the exact ops.
    """

    name: str
    config: Config
    model_id: bytes
    coder: LatentCoder
    lock: threading.RLock

    def analyse(self, pixels: np.ndarray, quality: Quality, tick: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        """pixels (16 h, 16 w, 3) uint8 -> y (h, w, M) and z (ceil(h/4), ceil(w/4), N), float32."""

    def synthesise(
        self, y_hat: np.ndarray, quality: Quality, tick: Progress | None = None, depth: int = 8
    ) -> np.ndarray:
        """y_hat (h, w, M) int32 in sixteenths -> pixels (16 h, 16 w, 3) of `depth` bits: uint8, or uint16 above 8."""

    def thumbnail(self, y_hat: np.ndarray, quality: Quality, scale: str) -> np.ndarray:
        """An eighth of the picture from y_hat on the grid of scale s2 or s3, uint8: `synthesis.thumbnail_of`."""

    def gradient(
        self, y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray, quality: Quality, tick: Progress | None
    ) -> np.ndarray:
        """The gradient of sum(weight / 2 * (x_hat - x)^2) at y_hat, a quantisation step, (h, w, M) float32.

        y_hat as above, pixels (16 h, 16 w, 3) uint8 are 255 x, weight (16 h, 16 w, 1) float32.
        """


def find(model: str, device: str, engine: str) -> Engine:
    """The engine of a packaged model on "cpu" or "cuda"; `engine` is "light", "torch", or "auto" (light on a CPU).

    Raises ValueError for another device or engine, or the light one elsewhere than on a CPU; UnsupportedError where
    what it needs is not here; InstallationError where the weights are damaged.
    """
    if engine not in ("auto", "light", "torch"):
        raise ValueError(f"engine is auto, light or torch, not {engine!r}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is cpu or cuda, not {device!r}")
    kind = ("light" if device == "cpu" else "torch") if engine == "auto" else engine
    if kind == "light" and device != "cpu":
        raise ValueError("the light engine runs on the CPU alone")
    with threads.loading, timing.phase("load"):
        return _make(model, kind, device)


@lru_cache(maxsize=4)
def _make(name: str, kind: str, device: str) -> Engine:
    if kind == "light":
        return light.LightEngine(weights.load(name, transforms=False))
    try:
        from hpcmcodec.engines.torch import TorchEngine
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f'device {device} needs {error.name}, which is not installed: pip install "hpcmcodec[torch]"'
        ) from error
    return TorchEngine(weights.load(name), device)


forget = _make.cache_clear
"""Lets go of all engines: the next call makes its own."""


def _begin_anew() -> None:
    """In a child after fork: it makes engines of its own.

    The threads of its parent's sessions are not there, and an engine's lock may be held by a thread that is not there
    either.
    """
    light.keep_sessions()
    forget()


if hasattr(os, "register_at_fork"):  # not Windows
    os.register_at_fork(after_in_child=_begin_anew)
