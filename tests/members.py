"""Members of the family with random weights, as files: what `tests.tiny` is for lite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from hpcmcodec import search, weights
from hpcmcodec.engines import base
from hpcmcodec.model.config import Config
from hpcmcodec.model.family.model import Member, model_of
from hpcmcodec.training import packing
from hpcmcodec.training.stages import calibrate
from tests.tiny import picture

LARGE = 1 << 26  # bytes
_FOLDER = TemporaryDirectory(prefix="hpcm-members-")


def member(config: Config, seed: int = 0) -> Any:
    """A model of random values: latents of some steps, scales around one, no weight that has no effect."""
    torch.manual_seed(seed)
    model = model_of(config)
    m = config.latent
    with torch.no_grad():
        for name, value in model.raw.items():
            if name.endswith(("bias", "mix", "gain", "gain/scale")) or "shift" in name:
                value.add_(torch.randn_like(value), alpha=0.05)
        if config.flow == "hpcm":
            for name in ("s12/out/bias", "s3/out/bias"):
                model.raw[name][:m] += 1
            for name in ("s12/out/weight", "s3/out/weight"):
                model.raw[name] *= 0.3  # steps follow each other: what each adds must not grow
            model.z_prior.scales.uniform_(0.3, 3)
            model.g_a[-1].weight.mul_(20)
            model.h_a.net[-1].weight.mul_(5)
    return model.eval()


@lru_cache(maxsize=1)
def path_of(config: Config) -> Path:
    """The weights file of `member(config)`, on grids that fit. Files of full size are kept one at a time."""
    for path in Path(_FOLDER.name).iterdir():
        if path.stat().st_size > LARGE:
            path.unlink()
    model, path = member(config), Path(_FOLDER.name) / f"{config.name}.safetensors"
    assert isinstance(model, Member)
    x = torch.stack([torch.from_numpy(picture(64, 64, s)).permute(2, 0, 1).float() / 255 for s in range(2)])
    for _ in range(2):
        model.grids = calibrate(model, x, torch.zeros(2), False)
    packing.pack(model, path, [picture(64, 48, s) for s in range(2)])
    return path


@contextmanager
def installed(config: Config) -> Iterator[weights.Weights]:
    """Puts the member where models are looked for."""
    path = path_of(config)
    weights.load.cache_clear()
    base.forget()
    with patch.dict(os.environ, {search.VARIABLE: str(path.parent)}):
        yield weights.load_file(path)
    weights.load.cache_clear()
    base.forget()
