"""The torch engine: the encoder's transforms as torch modules, the exact operations over torch tensors."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from hpcmcodec import weights
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.engines.strips import Progress, analyse_strips, gradient_strips, synthesise_strips
from hpcmcodec.errors import UnsupportedError
from hpcmcodec.exact.constants import MEAN_SHIFT, PRECISION
from hpcmcodec.exact.namespaces import TorchNamespace, probe
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.model.hpcm import HPCM
from hpcmcodec.model.synthesis import Rows, synthesise, thumbnail_of
from hpcmcodec.native import cuda, loader
from hpcmcodec.native.compiled import KernelOps
from hpcmcodec.pretrained import from_weights
from hpcmcodec.quality import Quality


class TorchEngine:
    """An `Engine` on "cpu" or "cuda".

    Raises UnsupportedError where there is no such device, or HPCM_OPS forces kernels that are not here.
    """

    name = "torch"

    def __init__(self, w: weights.Weights, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedError("device cuda needs an NVIDIA GPU and a CUDA build of torch; " + cuda.no_device())
        self.config, self.model_id = w.config, w.model_id
        self.namespace = TorchNamespace(device)
        with self.namespace.exact_mode():
            probe(self.namespace)
        entropy_path = self._exact_ops(w.under("entropy"), w.grids, w.config.precision)
        self.coder = LatentCoder(w.config, entropy_path, w.under("tables"))
        self.synthesis = self._exact_ops(w.synthesis(), w.grids)
        self.model = from_weights(w).to(device).eval()
        self.lock = threading.RLock()

    def _exact_ops(
        self, tensors: Mapping[str, np.ndarray], grids: Mapping[str, int], precision: int = PRECISION
    ) -> ExactOps:
        """The exact operations as HPCM_OPS asks; over torch's operators where it forces no kernels and none is here.

        Codes of more bits than PRECISION have no kernels.
        """
        choice = loader.choice()
        on_gpu = self.namespace.device.type == "cuda"
        if choice == "cpp":
            raise UnsupportedError(
                "HPCM_OPS=cpp: the torch engine has no C++ kernels; it can be auto, reference or cuda"
            )
        if choice == "cuda" and not on_gpu:
            raise UnsupportedError(loader.NOT_HERE)
        if on_gpu and choice != "reference":
            found = cuda.find(torch.cuda.current_device(), wait=choice == "cuda")
            if found.kernels and precision == PRECISION:
                return KernelOps(found.kernels, tensors, grids, self.namespace)
            if found.kernels:
                return ExactOps(self.namespace, tensors, grids, precision)
            why = f"no CUDA kernels: {'; '.join(found.reasons)}"
            if choice == "cuda":
                raise UnsupportedError(f"HPCM_OPS=cuda, but there are {why}")
            warnings.warn(f"{why}; coding runs in torch's own operators", RuntimeWarning, stacklevel=2)
        return ExactOps(self.namespace, tensors, grids, precision)

    def analyse(self, pixels: np.ndarray, quality: Quality, tick: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        return _analyse(self.model, self.namespace.device, pixels, quality, tick)

    def synthesise(
        self, y_hat: np.ndarray, quality: Quality, tick: Progress | None = None, depth: int = 8
    ) -> np.ndarray:
        xp = self.namespace

        def run(part: np.ndarray, rows: Rows) -> np.ndarray:
            with self.lock, xp.exact_mode():
                y_hat = xp.array(part[None])
                return xp.numpy(synthesise(self.synthesis, self.config, y_hat, [quality], depth, rows)[0])

        return synthesise_strips(run, y_hat, self.config, depth, tick)

    def thumbnail(self, y_hat: np.ndarray, quality: Quality, scale: str) -> np.ndarray:
        xp = self.namespace
        with self.lock, xp.exact_mode():
            out = thumbnail_of(self.synthesis, self.config, xp.array(y_hat[None]), [quality], scale)[0]
            return xp.numpy(out).astype(np.uint8)

    def gradient(
        self, y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray, quality: Quality, tick: Progress | None
    ) -> np.ndarray:
        q = torch.tensor([quality.unit], dtype=torch.float32, device=self.namespace.device)

        def run(y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
            with _plain(self.namespace.device):
                y = torch.tensor(y_hat, device=self.namespace.device)[None].float() * 2.0**-MEAN_SHIFT
                x, w = (torch.tensor(v, device=y.device).permute(2, 0, 1)[None] for v in (pixels, weight))
                return np.asarray(self.model.error_gradient(y, x.float() / 255, w, q)[0].cpu())

        return gradient_strips(run, y_hat, pixels, weight, self.config, tick)


class MixedEngine(LightEngine):
    """The light engine for models without graphs: torch's modules run the encoder's transforms."""

    def __init__(self, w: weights.Weights) -> None:
        super().__init__(w)
        self.model = from_weights(w).eval()

    def analyse(self, pixels: np.ndarray, quality: Quality, tick: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        return _analyse(self.model, torch.device("cpu"), pixels, quality, tick)


def _analyse(
    model: HPCM, device: torch.device, pixels: np.ndarray, quality: Quality, tick: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """As `Engine.analyse`."""
    q = torch.tensor([quality.unit], dtype=torch.float32, device=device)

    def run(strip: np.ndarray) -> list[np.ndarray]:
        with _plain(device):
            # torch.tensor copies: without a copy, torch warns of arrays that may not be written to.
            x = torch.tensor(strip, device=device).permute(2, 0, 1)[None].float() / 255
            return [t[0].cpu().numpy() for t in model.analyse(x, q)]

    return analyse_strips(run, pixels, model.config, tick)


@contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """Switches gradients and autocast off inside, whatever the caller has switched on."""
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield
