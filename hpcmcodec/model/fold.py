"""What training holds of g_s, as the synthesis' layers: weights that hold the exponents of the codes they meet.

Training's names are those of the state of `model.hpcm.Estimator` (numpy arrays), such as `g_s.b16.0.dw.weight`
(C, 1, 3, 3); its pixel shuffles order channels (C, row, column), those of the flow (row, column, C). `derived` gives
the derived tensors of the flow's layers, `training` the way back from the stored ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from hpcmcodec.exact.constants import FIXED_GRIDS, MEAN_SHIFT, WIDE_GRID
from hpcmcodec.exact.layers import Depthwise, Dequantise, Gain, Layer, Linear, Read
from hpcmcodec.model.config import Config
from hpcmcodec.model.declaration import declare_synthesis

Tensors = Mapping[str, np.ndarray]


class Folded(NamedTuple):
    """A layer with weights that training has too.

    module: its name in training. codes: the layer that gave the codes that it meets. coded: it gives codes itself.
    side: of the pixel shuffle behind it, else 1.
    """

    layer: Linear | Depthwise
    module: str
    codes: Layer
    coded: bool
    side: int


def folded(config: Config) -> Iterator[Folded]:
    """Those of the synthesis, in the order of the flow."""
    last: Layer | None = None
    for layer in declare_synthesis(config)[0].values():
        if isinstance(layer, Linear | Depthwise) and layer.name.startswith("g_s.") and last is not None:
            up, head = layer.name == "g_s.up", layer.name == "g_s.head"
            coded = layer.name.endswith((".dw", ".up")) and not up
            yield Folded(layer, "g_s.up.0" if up else layer.name, last, coded, 2 if up else 8 if head else 1)
        if not isinstance(layer, Gain):
            last = layer


def derived(config: Config, state: Tensors, exponents: Tensors) -> dict[str, np.ndarray]:
    """The derived tensors of all layers but the thumbnails, float32.

    state: training's. exponents: e of each channel by the name of the layer that gives codes; a code is value * 2^e.
    """
    out = {}
    for name, layer in declare_synthesis(config)[0].items():
        if isinstance(layer, Read | Dequantise):
            out[f"{name}.scale"] = np.exp2(exponents[name] - float(fine_of(layer))).astype(np.float32)
        if isinstance(layer, Gain | Dequantise):
            out[f"{name}.log_scale"] = state[f"{name}.log_scale"]
    for f in folded(config):
        order = _order(f.layer.out, f.side)
        weight, bias = state[f"{f.module}.weight"].reshape(f.layer.out, -1)[order], state[f"{f.module}.bias"][order]
        weight = weight * _along(f, np.exp2(-exponents[f.codes.name].astype(np.float32)))
        if f.coded:
            unit = np.exp2(exponents[f.layer.name].astype(np.float32))
            weight, bias = weight * unit[:, None], bias * unit
        out |= {f"{f.layer.name}.weight": weight, f"{f.layer.name}.bias": bias}
    return out


def training(config: Config, stored: Tensors) -> dict[str, np.ndarray]:
    """Training's state of g_s and ungain, float32, from the stored tensors.

    Inside of blocks a channel may be a power of two times what it was, and the weights behind it as much smaller.
    """
    out = {}
    for name, layer in declare_synthesis(config)[0].items():
        if isinstance(layer, Gain | Dequantise):
            out[f"{name}.log_scale"] = stored[f"{name}.log_scale"]
    for f in folded(config):
        layer = f.layer
        weight = stored[f"{layer.name}.weight"] * stored[f"{layer.name}.step"][0][:, None]
        if isinstance(f.codes, Read | Dequantise):
            weight = weight * _along(f, stored[f"{f.codes.name}.scale"] * np.float32(2.0 ** fine_of(f.codes)))
        back = np.argsort(_order(layer.out, f.side))
        shape = (layer.out, 1, layer.k, layer.k) if isinstance(layer, Depthwise) else (*weight.shape, 1, 1)
        out[f"{f.module}.weight"] = weight[back].reshape(shape)
        out[f"{f.module}.bias"] = stored[f"{layer.name}.bias"][back]
    return out


def _along(f: Folded, values: np.ndarray) -> np.ndarray:
    """Values of the channels that a layer's weights meet, as its matrix has them."""
    return values[:, None] if isinstance(f.layer, Depthwise) else values


def fine_of(codes: Layer) -> int:
    """log2 of what a Read's or Dequantise's inputs count to one."""
    return MEAN_SHIFT if isinstance(codes, Dequantise) else FIXED_GRIDS[WIDE_GRID]


def _order(n: int, side: int) -> np.ndarray:
    """Training's channel for each of the flow's n, before a pixel shuffle."""
    return np.arange(n).reshape(-1, side, side).transpose(1, 2, 0).ravel()
