"""Weights files of the paper's members: integers on grids that fit photographs, tables of the assumed distributions.

`pack` writes the file alone, which decodes everywhere; encoding with it takes torch. `export` writes the graph of the
analysis and the list of digests, too, and checks them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcmcodec.exact.constants import FIXED_GRIDS
from hpcmcodec.exact.layers import Linear, Read, quantise
from hpcmcodec.exact.ops import Act
from hpcmcodec.model.config import Config
from hpcmcodec.model.declaration import declare_synthesis
from hpcmcodec.model.family import fold
from hpcmcodec.model.family.model import Member
from hpcmcodec.model.family.synthesis import READ
from hpcmcodec.model.float_ops import FloatOps
from hpcmcodec.model.synthesis import synthesise
from hpcmcodec.quality import Quality
from hpcmcodec.training.export import TRANSFORMS, check_price, publish, save
from hpcmcodec.training.fitting import Thumbnails, exponents_of, fit_grids, model_inputs

ONLY = Quality(0)  # members of one lambda have no other


def pack(model: Member, path: Path, photographs: Iterable[np.ndarray], grids: Mapping[str, int] | None = None) -> bytes:
    """Write a member's weights to a file, whose stem is the model's name; returns the model id.

    model: is changed, it gets the fitted grids. photographs: pixels (16 h, 16 w, 3) uint8, to which exponents are
    fitted. grids: exponents to use rather than those that fit.
    """
    seen = [(pixels, ONLY) for pixels in photographs]
    return save(path, model, _tensors(model, copy.deepcopy(model).eval(), seen, grids))


def export(
    model: Member,
    name: str,
    out: Path,
    photographs: Iterable[np.ndarray],
    held_out: Path | None = None,
    say: Callable[[str], None] = print,
) -> bytes:
    """Write `out/name.safetensors`, the graph of its analysis and their digests; returns the model id.

    model, photographs: as in `pack`; on some of the photographs the files are checked. held_out, and what is raised: as
    in `training.export.export`.
    """
    seen = [(pixels, ONLY) for pixels in photographs]
    trained = copy.deepcopy(model).eval()
    tensors = _tensors(model, trained, seen)
    if held_out is not None:
        synthesis = {k: v for k, v in tensors.items() if k.startswith(("g_s.", "thumbnail."))}
        check_price(name, trained, model, synthesis, held_out, say)
    return publish(name, out, model, tensors, trained, seen)


def _tensors(
    model: Member,
    trained: Member,
    seen: Sequence[tuple[np.ndarray, Quality]],
    grids: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """The tensors of a weights file. model: gets `grids`, or those that fit; trained: a copy that keeps its own."""
    model.grids = dict(grids) if grids else fit_grids(trained, seen)
    tensors = {f"entropy.{k}": v for k, v in model.integers().items()} | synthesis_integers(trained, seen)
    tensors |= {f"tables.{k}": v for k, v in model.tables().items()}
    for key, value in model.state_dict().items():
        if key.startswith(TRANSFORMS):
            tensors[key] = value.half().numpy()
        elif key.startswith("z_prior."):
            tensors[key] = value.numpy()
    return tensors


@torch.no_grad()
def synthesis_integers(model: Member, photographs: Sequence[tuple[np.ndarray, Quality]]) -> dict[str, np.ndarray]:
    """The stored tensors of the synthesis and its thumbnails, exponents fitted to what photographs make of it."""
    config, maps = model.config, Thumbnails(model.config)
    state = {k: v.float().numpy() for k, v in model.state_dict().items()}
    real = {v.name: np.zeros(v.out) for v in fold.layers(config) if fold.coded(v)}
    peaks = _Peaks(config, fold.derived(config, state, real))
    for pixels, quality in photographs:
        y_hat = model.analyse(*model_inputs(pixels, quality))[0].round()
        x_hat = model.synthesise(y_hat, torch.zeros(1))[0].permute(1, 2, 0)
        maps.add(y_hat.numpy()[0], y_hat.numpy()[0], x_hat.numpy())
        synthesise(peaks, config, y_hat, [quality])
    exponents = {name: exponents_of(peak) for name, peak in peaks.of.items()}
    derived = fold.derived(config, state, exponents) | maps.solve(exponents[READ])
    return quantise(declare_synthesis(config)[0].values(), derived, FIXED_GRIDS)


class _Peaks(FloatOps):
    """Runs g_s and keeps the largest magnitudes (C,) of what layers give as codes, by the layer's name."""

    def __init__(self, config: Config, derived: dict[str, np.ndarray]) -> None:
        super().__init__({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in derived.items()}, FIXED_GRIDS)
        self.of = {v.name: np.full(v.out, 1e-3) for v in fold.layers(config) if fold.coded(v)}

    def read(self, a: Act, layer: Read) -> Act:
        return self._seen(super().read(a, layer), layer.name)

    def linear(self, inputs: Any, layer: Linear, grid: str | None = None) -> Act:
        return self._seen(super().linear(inputs, layer, grid), layer.name)

    def _seen(self, a: Act, name: str) -> Act:
        x: Tensor = a.x
        self.of[name] = np.maximum(self.of[name], x.abs().amax((0, 1, 2)).numpy())
        return a
