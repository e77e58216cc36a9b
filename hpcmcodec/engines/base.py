"""The interface of an engine, and `find`, which makes each engine once per process, and anew after a fork."""

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
    """The transforms, the synthesis and the latent coder of one model on one device.

    Attributes:
        name: "light" or "torch".
        config: the model's widths and kinds; M and N below are its `latent` and `hyper`.
        model_id: the 8 bytes that files name the model by.
        coder: codes and decodes the latents of a tile.
        lock: is held while `coder` or the synthesis works, because exact operations serve one thread at a time.
    """

    name: str
    config: Config
    model_id: bytes
    coder: LatentCoder
    lock: threading.RLock

    def analyse(self, pixels: np.ndarray, quality: Quality, tick: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        """pixels (16 h, 16 w, 3) -> y (h, w, M) and z (ceil(h/4), ceil(w/4), N), both float32.

        Pixels are uint8, or float32 from 0 to 255, of which a graph of 8 bits takes the nearest integers.

        `tick` is called with the fraction done, from 0 to 1, here and in the other methods.
        """

    def synthesise(
        self, y_hat: np.ndarray, quality: Quality, tick: Progress | None = None, depth: int = 8
    ) -> np.ndarray:
        """y_hat (h, w, M) int32 in sixteenths -> pixels (16 h, 16 w, 3) of `depth` bits: uint8, or uint16 above 8."""

    def thumbnail(self, y_hat: np.ndarray, quality: Quality, scale: str) -> np.ndarray:
        """An eighth of the picture from y_hat on the grid of scale s2 or s3, uint8: `synthesis.thumbnail_of`."""

    def gradient(
        self, y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray, quality: Quality, tick: Progress | None
    ) -> np.ndarray:
        """The gradient of sum(weight / 2 * (x_hat - x)^2) at y_hat, per quantisation step: (h, w, M) float32.

        y_hat is (h, w, M) int32 in sixteenths, pixels are 255 x as (16 h, 16 w, 3) uint8 or float32, and weight is
        (16 h, 16 w, 1) float32.
        """


def find(model: str, device: str, engine: str, *, encodes: bool = False) -> Engine:
    """The engine of a model on "cpu" or "cuda"; `engine` is "light", "torch", or "auto" (light on a CPU).

    model: as `weights.located` takes it.
    encodes: it is to encode, too. For models without graphs, "auto" on a CPU is then the light engine with torch's
    transforms.

    Raises ValueError for another device or engine, or for the light engine on another device than a CPU;
    UnsupportedError where the model is unknown, or a package or device that the engine needs is not here;
    InstallationError where the weights are damaged.
    """
    if engine not in ("auto", "light", "torch"):
        raise ValueError(f"engine is auto, light or torch, not {engine!r}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is cpu or cuda, not {device!r}")
    kind = ("light" if device == "cpu" else "torch") if engine == "auto" else engine
    if encodes and engine == "auto" and kind == "light" and weights.without_graphs(model):
        kind = "mixed"
    if kind == "light" and device != "cpu":
        raise ValueError("the light engine runs on the CPU alone")
    with threads.loading, timing.phase("load"):
        return _make(model, kind, device, weights.facts(model))


@lru_cache(maxsize=4)
def _make(model: str, kind: str, device: str, facts: tuple[int, ...]) -> Engine:
    if kind == "light":
        return light.LightEngine(weights.load(model, transforms=False, of=facts))
    try:
        from hpcmcodec.engines.torch import MixedEngine, TorchEngine
    except ModuleNotFoundError as error:
        what = f"model {model} on device {device}"
        if kind == "mixed":
            what = f"encoding with model {model}, which came without graphs of its transforms,"
        raise UnsupportedError(
            f'{what} needs {error.name}, which is not installed: pip install "hpcmcodec[torch]"'
        ) from error
    w = weights.load(model, of=facts)
    return MixedEngine(w) if kind == "mixed" else TorchEngine(w, device)


forget = _make.cache_clear
"""Forgets all engines, so that the next call of `find` makes a new one."""


def _begin_anew() -> None:
    """Has a child process make its own engines after a fork.

    The parent's sessions have lost their threads in the child, and an engine's lock may be held by a thread that exists
    in the parent only.
    """
    light.keep_sessions()
    forget()


if hasattr(os, "register_at_fork"):  # not Windows
    os.register_at_fork(after_in_child=_begin_anew)
