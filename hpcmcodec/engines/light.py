"""The light engine: numpy and compiled kernels, onnxruntime for the encoder's transforms, never torch."""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import Any

import numpy as np

from hpcmcodec import threads, timing, weights
from hpcmcodec.engines.strips import Progress, analyse_strips, gradient_strips, synthesise_strips
from hpcmcodec.exact.constants import MEAN_SHIFT
from hpcmcodec.exact.namespaces import NUMPY, probe
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.model.synthesis import Rows, synthesise, thumbnail_of
from hpcmcodec.native import loader
from hpcmcodec.quality import Quality

_alive: weakref.WeakSet[Any] = weakref.WeakSet()  # the sessions of this process


class LightEngine:
    """An `Engine` on a CPU: numpy and compiled kernels, onnxruntime for the encoder's transforms.

    Raises UnsupportedError where HPCM_OPS forces kernels that are not here.
    """

    name = "light"

    def __init__(self, w: weights.Weights) -> None:
        probe(NUMPY)
        self.config, self.model_id, self.weights = w.config, w.model_id, w
        entropy_path = loader.exact_ops(w.under("entropy"), w.grids, w.config.precision)
        self.coder = LatentCoder(w.config, entropy_path, w.under("tables"))
        self.synthesis = loader.exact_ops(w.synthesis(), w.grids)
        self.lock = threading.RLock()
        self._sessions: dict[str, Any] = {}

    def _session(self, graph: str) -> Any:
        from hpcmcodec.ort import onnxruntime

        with threads.loading, timing.phase("load"):
            if graph not in self._sessions:
                path = str(self.weights.graph(graph))
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 4  # errors are raised too, so none is written to standard error
                # Spinning threads would go on taking the cores from the numpy code that follows.
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")

                def session(n_threads: int) -> Any:
                    options.intra_op_num_threads = n_threads
                    return onnxruntime.InferenceSession(
                        path, options, providers=["CPUExecutionProvider"], enable_fallback=0
                    )

                try:
                    self._sessions[graph] = session(threads.count())
                except RuntimeError as error:
                    if "pthread_create" not in str(error):
                        raise
                    self._sessions[graph] = session(1)  # no more threads: it runs in the caller's
                _alive.add(self._sessions[graph])
            return self._sessions[graph]

    def analyse(self, pixels: np.ndarray, quality: Quality, tick: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        session = self._session("analysis")
        inputs = {}
        if self.config.qualities:
            inputs = {
                "scale8": _factors(self.weights, "g_a.s8", quality),
                "gain": _factors(self.weights, "gain", quality),
            }
        return analyse_strips(
            lambda x: session.run(["y", "z"], {"pixels": x.astype(np.float32, copy=False), **inputs}),
            pixels,
            self.config,
            tick,
        )

    def synthesise(
        self, y_hat: np.ndarray, quality: Quality, tick: Progress | None = None, depth: int = 8
    ) -> np.ndarray:
        def run(part: np.ndarray, rows: Rows) -> Any:
            with self.lock:
                return synthesise(self.synthesis, self.config, part[None], [quality], depth, rows)[0]

        return synthesise_strips(run, y_hat, self.config, depth, tick)

    def thumbnail(self, y_hat: np.ndarray, quality: Quality, scale: str) -> np.ndarray:
        with self.lock:
            out = thumbnail_of(self.synthesis, self.config, y_hat[None], [quality], scale)[0]
        return np.asarray(out, np.uint8)

    def gradient(
        self, y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray, quality: Quality, tick: Progress | None
    ) -> np.ndarray:
        inputs, session = self._synthesis_factors(quality), self._session("gradient")

        def run(y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray) -> Any:
            arrays = {"y_hat": y_hat, "pixels": pixels.astype(np.float32, copy=False), "weight": weight}
            return session.run(["gradient"], {**arrays, **inputs})[0]

        return gradient_strips(run, y_hat, pixels, weight, self.config, tick)

    def _synthesis_factors(self, quality: Quality) -> dict[str, np.ndarray]:
        return {
            "scale8": _factors(self.weights, "g_s.s8", quality),
            "ungain": _factors(self.weights, "ungain", quality) * np.float32(2.0**-MEAN_SHIFT),
        }


def keep_sessions() -> None:
    """Keeps a child process after a fork from ever destroying its parent's sessions, even when the child ends.

    The destruction of a session waits for its threads, which do not exist in the child.
    """
    for session in _alive:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


def _factors(w: weights.Weights, name: str, quality: Quality) -> np.ndarray:
    """Factors per channel at a quality, (1, C, 1, 1) float32: log-linear between the stored qualities."""
    table = w.tensors[f"{name}.log_scale"]
    position = quality.unit * (len(table) - 1)
    i = min(int(position), len(table) - 2)
    f = position - i
    return np.exp(table[i] * (1 - f) + table[i + 1] * f).astype(np.float32)[None, :, None, None]
