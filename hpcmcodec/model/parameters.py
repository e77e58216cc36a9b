"""The trainable parameters of the entropy path's layers (torch): one class for each class of `exact.layers`.

Optimisers see a layer's raw parameters. `derived` merges them into the tensors that operations and quantisation read:
OmniShift's kernels into one, gains into the weights of the branches that they scale. `from_stored` goes back: it finds
raw parameters whose derived tensors are those of stored integers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hpcmcodec.exact import layers
from hpcmcodec.exact.constants import EXPONENT_MAX, MEAN_SHIFT
from hpcmcodec.exact.layers import Layer
from hpcmcodec.model.entropy import LEVELS_PER_OCTAVE

FIRST_LEVEL = 20.0  # the level that heads start from: a spread of 0.5 quantisation steps
# Heads learn the natural logarithm of the spread, a number of about one, as the means are. Levels move by tens, and
# optimisers whose updates have one size for all rows of a matrix would take ten times as long over them.
LEVELS_PER_NEPER = LEVELS_PER_OCTAVE / math.log(2)

L = TypeVar("L", bound=Layer)
Tensors = Mapping[str, Tensor]  # one layer's, by name without the layer's name in front


class Parameters(ABC, Generic[L]):
    """How the parameters of one class of layers start, merge and come back from integers."""

    @abstractmethod
    def first_values(self, layer: L) -> dict[str, Tensor]:
        """The raw parameters that training starts from.

        Branches start small but not at zero, so that all parameters receive gradients from the first training step.
        """

    def raw(self, layer: L) -> tuple[str, ...]:
        """Names of the raw parameters, without the layer's name in front."""
        return layer.derived

    def derived(self, layer: L, raw: Tensors) -> dict[str, Tensor]:
        """The derived tensors, merged from the raw parameters."""
        return dict(raw)

    def from_stored(self, layer: L, stored: Tensors, grids: Mapping[str, int]) -> dict[str, Tensor]:
        """Raw parameters that give these stored tensors, which come as float32; grids: exponent by name."""
        return dict(stored)


class _Linear(Parameters[layers.Linear]):
    def first_values(self, layer: layers.Linear) -> dict[str, Tensor]:
        c, n = layer.out, sum(layer.widths)
        w = torch.randn(c, n) / math.sqrt(n)
        if layer.branch or layer.start == "small":
            w = 0.3 * w
        elif layer.start == "same":
            w = 0.2 * w + _identity(c, n)
        elif layer.start != "random":
            passed = layer.widths[:1] if layer.start == "first" else layer.widths
            w = 0.3 * w
            for i, k in enumerate(passed):
                w[:, sum(layer.widths[:i]) :][:, :k] += _identity(c, k) / len(passed)
        values = {"weight": w} | ({"bias": torch.zeros(c // layer.phases)} if layer.biased else {})
        return values | ({"gain": torch.ones(c)} if layer.branch else {})

    def raw(self, layer: layers.Linear) -> tuple[str, ...]:
        return (*layer.derived, "gain") if layer.branch else layer.derived

    def derived(self, layer: layers.Linear, raw: Tensors) -> dict[str, Tensor]:
        merged = {k: v for k, v in raw.items() if k != "gain"}
        if layer.biased:
            merged["bias"] = merged["bias"].repeat(layer.phases)
        return _scale_rows(merged, raw["gain"]) if layer.branch else merged

    def from_stored(self, layer: layers.Linear, stored: Tensors, grids: Mapping[str, int]) -> dict[str, Tensor]:
        real = _real(layer, stored) | ({"gain": torch.ones(layer.out)} if layer.branch else {})
        return real | ({"bias": real["bias"][: layer.out // layer.phases]} if layer.biased else {})


class _Head(Parameters[layers.Head]):
    def first_values(self, layer: layers.Head) -> dict[str, Tensor]:
        n, half = sum(layer.widths), layer.channels
        w = 0.3 * (torch.randn(layer.out, n) / math.sqrt(n))
        w[half:] /= LEVELS_PER_NEPER
        return {
            "weight": w,
            "bias": torch.cat([torch.zeros(half), torch.full((half,), FIRST_LEVEL / LEVELS_PER_NEPER)]),
        }

    def derived(self, layer: layers.Head, raw: Tensors) -> dict[str, Tensor]:
        rows = torch.ones(layer.out, device=raw["weight"].device)
        rows[layer.channels :] = LEVELS_PER_NEPER * 2.0**-MEAN_SHIFT  # ops scale levels as they do means: FloatOps.head
        return _scale_rows(raw, rows)

    def from_stored(self, layer: layers.Head, stored: Tensors, grids: Mapping[str, int]) -> dict[str, Tensor]:
        rows = torch.ones(layer.out)
        rows[layer.channels :] = 2.0**MEAN_SHIFT / LEVELS_PER_NEPER
        return _scale_rows(_real(layer, stored), rows)


class _Depthwise(Parameters[layers.Depthwise]):
    def first_values(self, layer: layers.Depthwise) -> dict[str, Tensor]:
        w = torch.randn(layer.out, layer.k**2) * 0.1
        w[:, layer.k**2 // 2] += 1
        return {"weight": w, "bias": torch.zeros(layer.out)}

    def from_stored(self, layer: layers.Depthwise, stored: Tensors, grids: Mapping[str, int]) -> dict[str, Tensor]:
        return _real(layer, stored)


class _OmniShift(Parameters[layers.OmniShift]):
    """The sum of the identity, a factor per channel and kernels up to k x k, weighted by the numbers of `mix`."""

    def first_values(self, layer: layers.OmniShift) -> dict[str, Tensor]:
        c, mix = layer.out, torch.tensor([0.6, 0.2, 0.3, 0.0])
        kernels = {f"w{k}": torch.randn(c, k * k) * 0.2 + 1 / k**2 for k in range(3, layer.k + 1, 2)}
        return {"mix": mix[: 2 + len(kernels)], "w1": torch.ones(c)} | kernels

    def raw(self, layer: layers.OmniShift) -> tuple[str, ...]:
        return "mix", *(f"w{k}" for k in range(1, layer.k + 1, 2))

    def derived(self, layer: layers.OmniShift, raw: Tensors) -> dict[str, Tensor]:
        mix, c = raw["mix"], layer.out
        weight = torch.zeros_like(raw[f"w{layer.k}"])
        weight[:, layer.k**2 // 2] = 1
        weight = (mix[0] + mix[1] * raw["w1"])[:, None] * weight
        for i, k in enumerate(range(3, layer.k + 1, 2), 2):
            around = (layer.k - k) // 2
            wider = F.pad(raw[f"w{k}"].view(c, k, k), (around,) * 4).flatten(1) if around else raw[f"w{k}"]
            weight = mix[i] * wider + weight
        return {"weight": weight, "bias": torch.zeros_like(weight[:, 0])}

    def from_stored(self, layer: layers.OmniShift, stored: Tensors, grids: Mapping[str, int]) -> dict[str, Tensor]:
        kernels = {f"w{k}": torch.zeros(layer.out, k * k) for k in range(3, layer.k, 2)}
        kernels[f"w{layer.k}"] = _real(layer, stored)["weight"]
        mix = torch.zeros(2 + len(kernels))
        mix[-1] = 1
        return {"mix": mix, "w1": torch.zeros(layer.out)} | kernels


class _Norm(Parameters[layers.Norm]):
    def first_values(self, layer: layers.Norm) -> dict[str, Tensor]:
        return {"gamma": torch.ones(layer.out), "beta": torch.zeros(layer.out)}


class _Residual(Parameters[layers.Residual]):
    def first_values(self, layer: layers.Residual) -> dict[str, Tensor]:
        return {"gamma": torch.ones(layer.out), "beta": torch.zeros(layer.out), "gain": torch.ones(layer.out)}

    def raw(self, layer: layers.Residual) -> tuple[str, ...]:
        return "gamma", "beta", "gain"

    def derived(self, layer: layers.Residual, raw: Tensors) -> dict[str, Tensor]:
        gain = raw["gain"]
        scale = 1 - gain if layer.kind == "lerp" else -torch.ones_like(gain)
        return {"gamma": gain * raw["gamma"], "beta": gain * raw["beta"], "scale": scale}

    def from_stored(self, layer: layers.Residual, stored: Tensors, grids: Mapping[str, int]) -> dict[str, Tensor]:
        gain = 1 - stored["scale"] if layer.kind == "lerp" else torch.ones(layer.out)
        inverse = torch.where(gain == 0, torch.zeros_like(gain), 1 / gain)
        return {"gamma": stored["gamma"] * inverse, "beta": stored["beta"] * inverse, "gain": gain}


class _Scale(Parameters[layers.Scale]):
    def first_values(self, layer: layers.Scale) -> dict[str, Tensor]:
        return {"scale": torch.full((layer.out,), layer.first)}


class _Wkv(Parameters[layers.Wkv]):
    def first_values(self, layer: layers.Wkv) -> dict[str, Tensor]:
        return {"decay": torch.linspace(0.5, EXPONENT_MAX - 1, layer.out), "boost": torch.zeros(layer.out)}

    def derived(self, layer: layers.Wkv, raw: Tensors) -> dict[str, Tensor]:
        return {"decay": F.softplus(raw["decay"]), "boost": raw["boost"]}

    def from_stored(self, layer: layers.Wkv, stored: Tensors, grids: Mapping[str, int]) -> dict[str, Tensor]:
        return {"decay": torch.log(torch.expm1(stored["decay"].clamp_min(1e-6))), "boost": stored["boost"]}


class _Place(Parameters[layers.Place]):
    def first_values(self, layer: layers.Place) -> dict[str, Tensor]:
        return {"table": torch.zeros(layer.groups, layer.out)}


class _QualityBias(Parameters[layers.QualityBias]):
    def first_values(self, layer: layers.QualityBias) -> dict[str, Tensor]:
        return {"table": torch.zeros(layer.anchors, layer.out)}

    def from_stored(self, layer: layers.QualityBias, stored: Tensors, grids: Mapping[str, int]) -> dict[str, Tensor]:
        return {"table": stored["table"] * 2.0 ** -grids[layer.grid]}


PARAMETERS: dict[type[Layer], Parameters[Any]] = {
    layers.Linear: _Linear(),
    layers.Head: _Head(),
    layers.Depthwise: _Depthwise(),
    layers.OmniShift: _OmniShift(),
    layers.Norm: _Norm(),
    layers.Residual: _Residual(),
    layers.Scale: _Scale(),
    layers.Wkv: _Wkv(),
    layers.Place: _Place(),
    layers.QualityBias: _QualityBias(),
}


def raw_name(layer: Layer, tensor: str) -> str:
    """The name of a raw parameter in the module, with slashes, since torch forbids dots there."""
    return f"{layer.name}.{tensor}".replace(".", "/")


def first_values(layer: Layer) -> dict[str, Tensor]:
    """A declared layer's raw parameters by their names in the module."""
    return {raw_name(layer, k): v for k, v in PARAMETERS[type(layer)].first_values(layer).items()}


def derived(layer: Layer, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer's derived tensors (`<layer>.<tensor>`) from the raw parameters of all layers."""
    start = raw_name(layer, "")
    own = {name: raw[start + name] for name in PARAMETERS[type(layer)].raw(layer)}
    return {f"{layer.name}.{k}": v for k, v in PARAMETERS[type(layer)].derived(layer, own).items()}


def from_stored(layer: Layer, stored: Mapping[str, Any], grids: Mapping[str, int]) -> dict[str, Tensor]:
    """A layer's raw parameters, by their names in the module, from the stored tensors of all layers (numpy)."""
    own = {k: torch.from_numpy(v).float() for k, v in layer.of(stored, layer.stored).items()}
    return {raw_name(layer, k): v for k, v in PARAMETERS[type(layer)].from_stored(layer, own, grids).items()}


def _identity(out: int, n: int) -> Tensor:
    """A matrix (out, n) that passes inputs on: output i is input i mod n."""
    w = torch.zeros(out, n)
    w[torch.arange(out), torch.arange(out) % n] = 1
    return w


def _real(layer: Any, stored: Tensors) -> dict[str, Tensor]:
    """Weights of a layer, its integers times their units, and its biases where it has any."""
    step = torch.repeat_interleave(stored["step"], torch.tensor(layer.inputs), 0).T
    return {"weight": stored["weight"] * step} | ({"bias": stored["bias"]} if layer.biased else {})


def _scale_rows(tensors: Tensors, scale: Tensor) -> dict[str, Tensor]:
    """Weights (O, n) and biases (O,) times scale (O,)."""
    return {k: v * (scale if v.ndim == 1 else scale[:, None]) for k, v in tensors.items()}
