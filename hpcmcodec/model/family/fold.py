"""What training holds of the paper's g_s, as the layers of `family.synthesis`: as `model.fold` does for lite's.

Which exponents the columns of a layer's matrix meet is found by running the synthesis over arrays that hold exponents
in the place of codes: shuffles and neighbourhoods move them as they move codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hpcmcodec.exact.constants import FIXED_GRIDS, MEAN_SHIFT, WIDE_GRID
from hpcmcodec.exact.layers import Linear, Read
from hpcmcodec.exact.ops import Act
from hpcmcodec.model.config import Config
from hpcmcodec.model.declaration import Declaration, declare_synthesis
from hpcmcodec.model.family.synthesis import KERNEL, READ
from hpcmcodec.model.synthesis import synthesise

Tensors = Mapping[str, np.ndarray]
OFFSET = 0.5  # pixels are wide values around 0, g_s gives them from 0


def layers(config: Config) -> list[Linear | Read]:
    """The layers of g_s in the order of the flow, declared."""
    found = declare_synthesis(config)[0].values()
    return [v for v in found if isinstance(v, Linear | Read) and v.name.startswith("g_s.")]


def coded(layer: Linear | Read) -> bool:
    """Whether a layer gives codes, not wide values."""
    return isinstance(layer, Read) or layer.name.endswith((".conv", ".up"))


def derived(config: Config, state: Tensors, exponents: Tensors) -> dict[str, np.ndarray]:
    """The derived tensors of g_s, float32.

    state: training's. exponents: e of each channel by the name of the layer that gives codes; a code is value * 2^e.
    """
    out, columns = {}, _columns(config, exponents)
    for layer in layers(config):
        name = layer.name
        if isinstance(layer, Read):
            out[f"{name}.scale"] = np.exp2(exponents[name] - float(_fine(layer))).astype(np.float32)
            continue
        weight, bias = _rows(state[f"{name}.weight"], _transposed(layer)), _bias(layer, state[f"{name}.bias"])
        weight = weight * np.exp2(-columns[name].astype(np.float32))
        if coded(layer):
            unit = np.exp2(exponents[name].astype(np.float32))
            weight, bias = weight * unit[:, None], bias * unit
        out |= {f"{name}.weight": weight.astype(np.float32), f"{name}.bias": bias.astype(np.float32)}
    return out


def training(config: Config, stored: Tensors) -> dict[str, np.ndarray]:
    """Training's state of g_s, float32, from the stored tensors.

    Inside of blocks a channel may be a power of two times what it was, and the weights behind it as much smaller.
    """
    out: dict[str, np.ndarray] = {}
    found = layers(config)
    reads = {v.name: np.log2(stored[f"{v.name}.scale"]) + _fine(v) for v in found if isinstance(v, Read)}
    columns = _columns(config, reads)
    for layer in found:
        if isinstance(layer, Linear):
            weight = stored[f"{layer.name}.weight"] * stored[f"{layer.name}.step"][0][:, None]
            if len(layer.widths) > 1:
                steps = np.repeat(stored[f"{layer.name}.step"].T, layer.widths, 1)
                weight = stored[f"{layer.name}.weight"] * steps
            weight = weight * np.exp2(columns[layer.name].astype(np.float32))
            side = _side(layer)
            bias = stored[f"{layer.name}.bias"]
            if _transposed(layer):
                weight = weight.reshape(side, side, -1, weight.shape[1]).transpose(3, 2, 0, 1)
                bias = bias.reshape(side * side, -1)[side + 1 if side == KERNEL else 0]
                bias = bias + OFFSET if side == KERNEL else bias
            else:
                weight = weight.reshape(len(weight), side, side, -1).transpose(0, 3, 1, 2)
            out |= {f"{layer.name}.weight": np.ascontiguousarray(weight), f"{layer.name}.bias": bias}
    return out


class _Exponents(Declaration):
    """Operations on exponents. given: those of layers that give codes. columns: what each matrix meets."""

    def __init__(self, given: Tensors) -> None:
        super().__init__()
        self.given, self.columns = given, dict[str, np.ndarray]()

    def read(self, a: Act, layer: Read) -> Act:
        return self._codes(super().read(a, layer), layer.name)

    def linear(self, inputs: Act | Sequence[Act], layer: Linear, grid: str | None = None) -> Act:
        parts = [inputs] if isinstance(inputs, Act) else inputs
        self._meet(layer, parts)
        return self._codes(super().linear(parts, layer, grid), layer.name)

    def wide(self, a: Act, layer: Linear, grid: str, onto: Act | None = None) -> Act:
        self._meet(layer, [a])
        return super().wide(a, layer, grid, onto)

    def _meet(self, layer: Linear, parts: Sequence[Act]) -> None:
        """Notes the exponents at a position all of whose neighbours are inside the plane."""
        self.columns[layer.name] = np.concatenate([p.x[0, 1, 1] for p in parts])

    def _codes(self, a: Act, name: str) -> Act:
        return Act(np.zeros_like(a.x) + self.given.get(name, np.zeros(1, np.float32)), a.grid)


def _columns(config: Config, exponents: Tensors) -> dict[str, np.ndarray]:
    ops = _Exponents(exponents)
    synthesise(ops, config, np.zeros((1, 4, 4, config.latent), np.int32), [])
    return ops.columns


def _fine(layer: Read) -> int:
    """log2 of what a layer's inputs count to one."""
    return MEAN_SHIFT if layer.name == READ else FIXED_GRIDS[WIDE_GRID]


def _transposed(layer: Linear) -> bool:
    """Whether training has a transposed convolution: those outside of blocks."""
    return layer.name.count(".") == 1


def _side(layer: Linear) -> int:
    """Rows and columns of the kernel that training has."""
    if _transposed(layer):
        return KERNEL if layer.out == 3 * KERNEL**2 else 2
    return 3 if layer.name.endswith(".conv") else 1


def _rows(weight: np.ndarray, transposed: bool) -> np.ndarray:
    """A kernel as a matrix: of a transposed convolution (in, out, k, k) rows (tap, out), else columns (tap, in)."""
    if transposed:
        return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    return weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _bias(layer: Linear, bias: np.ndarray) -> np.ndarray:
    if not _transposed(layer):
        return bias
    side = _side(layer)
    if side == 2:
        return np.tile(bias, 4)
    taps = np.zeros((side, side, len(bias)), bias.dtype)
    taps[1:3, 1:3] = bias - OFFSET  # each pixel has one of the four taps in the middle
    return taps.ravel()
