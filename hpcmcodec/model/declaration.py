"""The layers of a config, found by running the flow once over zeros and recording each layer that it uses.

This way no second list of layers has to agree with `context.walk`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpcmcodec.exact.constants import CHANNEL_GRID, SLOPE, WIDE_GRID
from hpcmcodec.exact.layers import (
    Depthwise,
    Dequantise,
    Gain,
    Head,
    Layer,
    Linear,
    Norm,
    Place,
    QualityBias,
    Read,
    Residual,
    Scale,
    Wkv,
)
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.ops import Act, Array, Composed, Qualities
from hpcmcodec.exact.schedule import Step
from hpcmcodec.model.config import Config
from hpcmcodec.model.context import walk
from hpcmcodec.model.synthesis import THUMBNAIL_STRIDE, synthesise, thumbnail_of
from hpcmcodec.quality import Quality


class Declaration(Composed):
    """Operations that compute nothing, but record the layers and grids that the flow uses."""

    xp = NUMPY

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.grids: set[str] = {"y"}

    def _note(self, like: Act, layer: Layer, grid: str | None) -> Act:
        """Record a declared layer and its grid; returns zeros of the shape that the layer makes of `like`.

        Raises ValueError where another layer has the same name.
        """
        known = self.layers.setdefault(layer.name, layer)
        if known != layer:
            raise ValueError(f"layer {layer.name} is used as {layer} and as {known}")
        grid = grid or layer.name
        self.grids.add(grid)
        return Act(np.zeros((*like.x.shape[:-1], layer.out), np.float32), grid)

    def linear(self, inputs: Act | Sequence[Act], layer: Linear, grid: str | None = None) -> Act:
        parts = [inputs] if isinstance(inputs, Act) else list(inputs)
        return self._note(parts[0], layer.over(*(p.x.shape[-1] for p in parts)), grid)

    def head(self, inputs: Sequence[Act], layer: Head) -> tuple[Array, Array]:
        out = self._note(inputs[0], layer.over(*(p.x.shape[-1] for p in inputs)), inputs[0].grid).x
        return out[..., : layer.channels].astype(np.int32), out[..., layer.channels :].astype(np.int32)

    def depthwise(self, a: Act, layer: Depthwise, grid: str | None = None) -> Act:
        return self._note(a, layer.over(a.x.shape[-1]), grid)

    def norm(self, a: Act, layer: Norm, grid: str | None = None) -> Act:
        return self._note(a, layer.over(a.x.shape[-1]), grid)

    def place(self, a: Act, step: Step, layer: Place) -> Act:
        return self._note(a, layer.over(a.x.shape[-1]), a.grid)

    def folded(self, a: Act, step: Step) -> Act:
        return Act(a.x[..., : a.x.shape[-1] // len(step.groups)], a.grid)

    def channel_scale(self, a: Act, layer: Scale | Residual) -> Act:
        return self._note(a, layer.over(a.x.shape[-1]), a.grid)

    def wkv(self, k: Act, v: Act, layer: Wkv, grid: str | None = None) -> Act:
        return self._note(v, layer.over(v.x.shape[-1]), grid)

    def hyper_latent(self, z: Array, layer: QualityBias, quality: Qualities) -> Act:
        return self._note(Act(z, layer.grid), layer.over(z.shape[-1]), layer.grid)

    def dequantise(self, y_hat: Array, layer: Dequantise, quality: Qualities) -> Act:
        return self._note(Act(y_hat, "y"), layer.over(y_hat.shape[-1]), CHANNEL_GRID)

    def read(self, a: Act, layer: Read) -> Act:
        return self._note(a, layer.over(a.x.shape[-1]), CHANNEL_GRID)

    def wide(self, a: Act, layer: Linear, grid: str, onto: Act | None = None) -> Act:
        return self._note(a, layer.over(a.x.shape[-1]), grid)

    def amplify(self, a: Act, layer: Linear, gain: Gain, quality: Qualities) -> Act:
        self._note(a, gain, WIDE_GRID)
        return self._note(a, layer.over(a.x.shape[-1]), WIDE_GRID)

    def pixels(self, a: Act, depth: int) -> Array:
        return a.x.astype(np.int32)

    def relu_squared(self, a: Act, grid: str) -> Act:
        self.grids.add(grid)
        return Act(a.x, grid)

    def pool(self, a: Act, grid: str) -> Act:
        self.grids.add(grid)
        return Act(a.x[:, :1, :1], grid)

    def lrelu(self, a: Act, slope: float = SLOPE) -> Act:
        return a

    def attend(self, q: Act, k: Act, v: Act, window: int, heads: int, grid: str) -> Act:
        self.grids.add(grid)
        return Act(v.x, grid)

    def curve(self, a: Act, name: str, grid: str) -> Act:
        self.grids.add(grid)
        return Act(a.x, grid)

    def resize(self, a: Act, rows: int, columns: int, how: str) -> Act:
        return Act(np.zeros((a.x.shape[0], rows, columns, a.x.shape[-1]), np.float32), a.grid)

    def outer(self, k: Act, v: Act, heads: int, grid: str) -> Act:
        self.grids.add(grid)
        c = v.x.shape[-1]
        return Act(np.zeros((v.x.shape[0], 1, 1, c * (c // heads)), np.float32), grid)

    def lookup(self, q: Act, table: Act, norm: Act, heads: int, grid: str) -> Act:
        self.grids.add(grid)
        return Act(q.x, grid)

    def choose(self, query: Act, keys: Sequence[Act], count: int, temperature: float) -> tuple[Array, Array]:
        shape = query.x.shape[0], min(count, len(keys))
        return np.zeros(shape, np.int64), np.ones(shape)

    def mix(self, parts: Sequence[Act], weights: Array) -> Act:
        return parts[0]

    def moments(self, scales: Act, means: Act) -> tuple[Array, Array]:
        return means.x.astype(np.int32), scales.x.astype(np.int32)

    def gate(self, r: Act, a: Act) -> Act:
        return a

    def blend(self, r: Act, a: Act, b: Act) -> Act:
        return b

    def add(self, a: Act, b: Act) -> Act:
        return a

    def recall(self, query: Act, keys: Sequence[Act], values: Sequence[Act], temperature: float) -> Act:
        return values[0]

    def latent_code(self, y_hat: Array) -> Array:
        return y_hat.astype(np.float32)

    def empty_latent(self, shape: Sequence[int]) -> tuple[Array, Act]:
        return np.zeros(shape, np.int32), Act(np.zeros(shape, np.float32), "y")

    def segment(self, f: Callable[..., Act], *arguments: Any) -> Act:
        return f(*arguments)

    def gather(self, xs: Sequence[Array], step: Step) -> list[tuple[int, list[Array]]]:
        return [(g, [x[:, :1, :1] for x in xs]) for g in range(len(step.groups))]

    def scatter(self, rows: Sequence[tuple[int, Array]], step: Step, shape: Sequence[int]) -> Array:
        return np.zeros(shape, np.int32)

    def unfold(self, folded: Array, step: Step, target: Array) -> Array:
        return target


def declare_synthesis(config: Config) -> tuple[dict[str, Layer], list[str]]:
    """The layers of the synthesis and its thumbnails by name, in the order of the flow, and its grids, sorted."""
    d, y_hat = Declaration(), np.zeros((1, 2, 2, config.latent), np.int32)
    synthesise(d, config, y_hat, [Quality(0)])
    for scale in THUMBNAIL_STRIDE:
        thumbnail_of(d, config, y_hat, [Quality(0)], scale)
    return d.layers, sorted(d.grids)


def declare(config: Config) -> tuple[dict[str, Layer], list[str]]:
    """The layers of the entropy path by name, in the order of the flow, and the names of its grids, sorted."""
    d = Declaration()
    walk(
        d,
        config,
        np.zeros((1, 2, 2, config.hyper), np.int32),
        [Quality(0)],
        8,
        8,
        lambda step, means, levels, mask: means,
    )
    return d.layers, sorted(d.grids)
