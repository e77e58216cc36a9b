"""Parameters and multiplications of a member, counted without its weights.

Multiplications are those of matrices and convolutions, of one image of 256 x 256 pixels; norms, Bi-WKV and what is done
element by element are not counted. Two countings: *live* is what coding needs. *Published* is what the published
classes come to: their RWKV blocks hold each OmniShift's merged kernel besides the kernels that it is merged from, and
they run the cell behind the last coding step, whose result nobody reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from hpcmcodec.exact.layers import Depthwise, Head, Layer, Linear, OmniShift
from hpcmcodec.exact.ops import Act, Array
from hpcmcodec.exact.schedule import STEPS, Step, positions
from hpcmcodec.model.config import Config
from hpcmcodec.model.context import CELLS, walk
from hpcmcodec.model.declaration import Declaration
from hpcmcodec.model.family.model import model_of
from hpcmcodec.quality import Quality

SIDE = 256  # pixels of the image that multiplications are counted of


class Counts(NamedTuple):
    """Parameters, and thousands of multiplications for each pixel; in the live and in the published counting."""

    parameters: int
    kmac: float
    published_parameters: int
    published_kmac: float


def count(config: Config) -> Counts:
    """What a member comes to. The paper's members get no weights: torch's meta device has shapes alone."""
    with torch.device("meta" if config.flow == "hpcm" else "cpu"):  # lite's transforms ask for autocast, unknown there
        model = model_of(config)
    parameters = sum(p.numel() for p in model.parameters())
    merged = sum(layer.out * layer.k**2 for layer in model.layers.values() if isinstance(layer, OmniShift))
    flow = _of_flow(config)
    macs = flow + _of_transforms(model)
    dead = 0 if config.flow == "lite" else _of_last_cell(config)
    pixels = 1000 * SIDE * SIDE
    return Counts(parameters, macs / pixels, parameters + merged, (macs + dead) / pixels)


class _Counting(Declaration):
    """A declaration that runs over a plane of true size and adds up multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def linear(self, inputs: Act | Sequence[Act], layer: Linear, grid: str | None = None) -> Act:
        self._add([inputs] if isinstance(inputs, Act) else inputs, layer.out)
        return super().linear(inputs, layer, grid)

    def head(self, inputs: Sequence[Act], layer: Head) -> tuple[Array, Array]:
        self._add(inputs, layer.out)
        return super().head(inputs, layer)

    def depthwise(self, a: Act, layer: Depthwise, grid: str | None = None) -> Act:
        self.macs += a.x.size * layer.k**2
        return super().depthwise(a, layer, grid)

    def attend(self, q: Act, k: Act, v: Act, window: int, heads: int, grid: str) -> Act:
        self.macs += 2 * window**2 * q.x.size
        return super().attend(q, k, v, window, heads, grid)

    def outer(self, k: Act, v: Act, heads: int, grid: str) -> Act:
        self.macs += k.x.size * (k.x.shape[-1] // heads)
        return super().outer(k, v, heads, grid)

    def lookup(self, q: Act, table: Act, norm: Act, heads: int, grid: str) -> Act:
        self.macs += q.x.size * (q.x.shape[-1] // heads)
        return super().lookup(q, table, norm, heads, grid)

    def gather(self, xs: Sequence[Array], step: Step) -> list[tuple[int, list[Array]]]:
        rows: dict[int, int] = {}
        for g, at in positions(step):
            rows[g] = rows.get(g, 0) + math.prod(xs[0][at].shape[1:3])
        return [(g, [np.zeros((1, 1, n, x.shape[-1]), np.float32) for x in xs]) for g, n in rows.items()]

    def _note(self, like: Act, layer: Layer, grid: str | None) -> Act:
        shape = (*like.x.shape[:-1], layer.out)
        self.grids.add(grid or layer.name)
        return Act(np.zeros(shape, np.float32), grid or layer.name)

    def _add(self, inputs: Sequence[Act], outputs: int) -> None:
        self.macs += outputs * sum(a.x.size for a in inputs)


def _of_flow(config: Config) -> int:
    """Of h_s and the context."""
    ops, side = _Counting(), SIDE // 16
    z = np.zeros((1, side // 4, side // 4, config.hyper), np.int32)
    walk(ops, config, z, [Quality(0)], side, side, lambda step, means, levels, mask: means)
    return ops.macs


def _of_last_cell(config: Config) -> int:
    """Of the cell behind the last coding step."""
    ops, (side, scale) = _Counting(), (SIDE // 16, STEPS[-1].scale)
    carry = Act(np.zeros((1, side, side, config.carry_width), np.float32), "carry")
    CELLS[config.cells[-1]](ops, config, carry, carry, scale)
    return ops.macs


def _of_transforms(model: nn.Module) -> int:
    """Of g_a, g_s and h_a, as modules."""
    macs = [0]

    def add(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        places = inputs[0] if isinstance(module, nn.ConvTranspose2d) else out
        macs[0] += math.prod(places.shape[2:]) * module.get_parameter("weight").numel()

    hooks = [
        module.register_forward_hook(add)
        for part in (model.g_a, model.g_s, model.h_a)
        for module in part.modules()  # type: ignore[union-attr]
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]
    with torch.no_grad(), next(model.parameters()).device:
        x, q = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1)
        y, _ = model.analyse(x, q)  # type: ignore[operator]
        model.synthesise(y, q)  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return macs[0]
