"""A member that codes files without being installed: one from a weights file, from a training run, or untrained.

An untrained member has the transforms that training starts from, principal axes of photographs, and a random entropy
path around the scales that the latents have: its files are valid and far too large, and it takes as long as a trained
one.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hpcmcodec import container, search, weights
from hpcmcodec.decoding import latents_of, pixels_of
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.engines.strips import pad
from hpcmcodec.engines.torch import MixedEngine
from hpcmcodec.errors import InputError, UnsupportedError
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.model.config import MEMBERS, PRESETS, Config
from hpcmcodec.model.family.model import Member, model_of
from hpcmcodec.model.family.transforms import PConvBlock
from hpcmcodec.pretrained import from_weights
from hpcmcodec.training import packing, stages, states
from hpcmcodec.training.data import patches, to_unit
from hpcmcodec.training.hyperprior import start_from_principal_axes
from hpcmcodec.training.packing import ONLY

_NOISE = 0.05  # size of what is added to biases, gains and kernels, so that none is at the value that it starts from


class Coder:
    """Pixels (H, W, 3) uint8 to the bytes of a file and back, with the weights of a member's file.

    reference: decodes in plain numpy instead of the compiled kernels.
    """

    def __init__(self, path: Path, *, reference: bool = False) -> None:
        w = weights.load_file(path)
        if w.config.qualities:
            raise UnsupportedError(f"{path}: {w.name} is no member of one lambda; measure it with `hpcm eval`")
        self.weights = w
        graph = path.with_name(f"{path.stem}.analysis.onnx")
        self.engine: Any = LightEngine(w) if reference or graph.exists() else MixedEngine(w)
        if reference:
            self.engine.coder.ops = ExactOps(NUMPY, w.under("entropy"), w.grids)
            self.engine.synthesis = ExactOps(NUMPY, w.synthesis(), w.grids)

    def encode(self, pixels: np.ndarray) -> bytes:
        height, width, _ = pixels.shape
        y, z = self.engine.analyse(pad(pixels), ONLY, None)
        coded, _ = self.engine.coder.encode(y, z, ONLY)
        streams = {scale: [container.Stream(c.data, c.latents_crc)] for scale, c in coded.items()}
        return container.pack(
            model_id=self.weights.model_id, width=width, height=height, quality=ONLY, streams=streams, metadata={}
        )

    def decode(self, data: bytes) -> np.ndarray:
        reader = container.Reader(data)
        reader.verify_complete()
        return pixels_of(reader, self.engine, (None, None))

    def latents(self, data: bytes) -> np.ndarray:
        """y_hat (h, w, M) int32, in sixteenths."""
        return latents_of(container.Reader(data), self.engine)


def crc_of(integers: np.ndarray) -> str:
    """CRC-32 in hexadecimal of an array's bytes."""
    return f"{zlib.crc32(np.ascontiguousarray(integers).data):08x}"


def config_of(name: str) -> Config:
    """The config of a preset. Raises InputError for another name."""
    if name not in PRESETS:
        raise InputError(f"{name} is no member of the family: {', '.join(MEMBERS)}")
    return PRESETS[name]


def untrained(config: Config, photographs: Sequence[np.ndarray], seed: int = 0) -> Member:
    """A member as the module says, on grids that fit; photographs: pixels (16 h, 16 w, 3) uint8 of one shape."""
    torch.manual_seed(seed)
    model = model_of(config)
    if not isinstance(model, Member):
        raise InputError(f"{config.name} has qualities; the tools of the family are for members of one lambda")
    x = to_unit(torch.from_numpy(np.stack(photographs)).permute(0, 3, 1, 2))
    with torch.no_grad():
        start_from_principal_axes(model, patches(x))
        for name, value in model.raw.items():
            if name.startswith("h_s/"):
                continue
            if name.endswith(("bias", "mix", "gain", "gain/scale")) or "shift" in name:
                value.add_(torch.randn_like(value), alpha=_NOISE)
            if name.endswith(("out/weight", "adaptor/weight")) and "/cell/" not in name:
                # Coding steps follow each other: what each adds to the parameters must not grow.
                start = torch.eye(*value.shape)
                value.lerp_(start, 0.9)
        for block in model.modules():
            if isinstance(block, PConvBlock):
                block.down.weight.normal_(std=0.02 / block.down.in_channels**0.5)
    for _ in range(4):
        model.grids = stages.calibrate(model, x, torch.zeros(len(x)), fast=False)
    return model.eval()


@contextmanager
def weights_of(what: str, photographs: Sequence[np.ndarray], seed: int = 0) -> Iterator[tuple[Path, str]]:
    """The weights file of a member while the context lasts, and how it came to its values.

    what: a preset's name, untrained; the path of a weights file; or the run's folder or state of one that was trained.
    photographs: as in `untrained`; grids are fitted to them.

    Raises InputError where it is none of them.
    """
    path = Path(what)
    if what in MEMBERS:
        model, said = untrained(MEMBERS[what], photographs, seed), f"untrained, seed {seed}"
    elif path.suffix == ".safetensors" and search.is_file(path) and not states.CHECKPOINT.fullmatch(path.name):
        yield path, f"weights {path.name}"
        return
    elif os.path.exists(path):  # noqa: PTH110  Path.exists raises for names that are too long
        found = states.load_model(path)
        if not isinstance(found, Member):
            raise InputError(f"{what} is a {type(found).__name__}, not a member with a context")
        model, said = found, f"step {states.read(path).facts['step']:,} of {path.name}"
    else:
        raise InputError(f"{what} is no member ({', '.join(MEMBERS)}), weights file, run or state")
    with TemporaryDirectory(prefix="hpcm-family-") as folder:
        made = Path(folder) / f"{model.config.name}.safetensors"
        packing.pack(model, made, photographs)
        yield made, said


def module_of(path: Path) -> Member:
    """The torch module of a weights file of a member."""
    model = from_weights(weights.load_file(path)).eval()
    if not isinstance(model, Member):
        raise InputError(f"{path} is no member of one lambda")
    return model
