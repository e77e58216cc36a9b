"""RWKV blocks over latents: SpatialMix (Bi-WKV4), ChannelMix, and the context cell and fusion net built from them.

    SpatialMix:  x' = OmniShift(x);  k, v, r = 1x1(x');  out = 1x1(sigmoid(r) * BiWKV(k, v))
    ChannelMix:  x' = OmniShift(x);  out = sigmoid(1x1_r(x')) * 1x1_v(relu(1x1_k(x'))^2)
    block:       both in turn, each added to x by the config's `residual`, with gains g that training starts at 1:
        pre          x += g f(LN(x))                 g is merged into the last 1x1
        lerp         x += g (LN(f(x)) - x)           at g = 1 nothing is left of x: the public code of HPCM's phases
        difference   x += g (LN(f(x)) - LN(x))       with one LN: the text that describes them

(Vision-RWKV, arXiv 2403.02308. OmniShift is from Restore-RWKV, arXiv 2407.11087; coding uses its kernels merged into
one. `pre` is LALIC's, arXiv 2502.05741.) The operations `ops` are float or exact, so that training and coding share
this definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hpcmcodec.exact.constants import EXP_GRID, GATE_GRID
from hpcmcodec.exact.layers import Linear, Norm, OmniShift, Residual, Wkv
from hpcmcodec.exact.ops import Act, Ops
from hpcmcodec.model.config import Config


class Kind(NamedTuple):
    """What the RWKV blocks of a member have in common. biased: whether their 1x1 convolutions have biases."""

    shift: int
    residual: str
    biased: bool


def kind_of(config: Config) -> Kind:
    """Of a config's blocks."""
    return Kind(config.shift, config.residual, config.flow == "lite")


def spatial_mix(ops: Ops, x: Act, layer: str, out_grid: str, kind: Kind) -> Act:
    """Mixes positions: each sees all others, weighted by distance and key; (B, H, W, D) to the same on `out_grid`."""
    width = x.x.shape[-1]
    shifted = ops.depthwise(x, OmniShift(f"{layer}.shift", kind.shift))
    # Keys have no bias, since a term that all keys of a channel share cancels in the ratio of Bi-WKV.
    k = ops.linear(shifted, Linear(f"{layer}.k", width, biased=False), EXP_GRID)
    v = ops.linear(shifted, Linear(f"{layer}.v", width, biased=kind.biased))
    r = ops.linear(shifted, Linear(f"{layer}.r", width, biased=kind.biased), GATE_GRID)
    mixed = ops.gate(r, ops.wkv(k, v, Wkv(f"{layer}.wkv")))
    return ops.linear(mixed, _last(f"{layer}.out", width, kind), out_grid)


def channel_mix(ops: Ops, x: Act, layer: str, rate: int, out_grid: str, kind: Kind) -> Act:
    """Mixes channels, `rate` times as many inside; (B, H, W, D) to the same on `out_grid`."""
    width = x.x.shape[-1]
    shifted = ops.depthwise(x, OmniShift(f"{layer}.shift", kind.shift))
    k = ops.linear(shifted, Linear(f"{layer}.k", rate * width, biased=kind.biased))
    k = ops.relu_squared(k, f"{layer}.k2")
    r = ops.linear(shifted, Linear(f"{layer}.r", width, biased=kind.biased), GATE_GRID)
    v = ops.linear(k, _last(f"{layer}.v", width, kind), out_grid)
    return ops.gate(r, v)


def _last(layer: str, width: int, kind: Kind) -> Linear:
    """The last 1x1 of a branch: with the branch's gain, unless a norm comes behind it."""
    return Linear(layer, width, biased=kind.biased, branch=kind.residual == "pre")


def block(ops: Ops, x: Act, layer: str, rate: int, kind: Kind) -> Act:
    """An RWKV block; x and the result are (B, H, W, D) on one grid."""
    if kind.residual == "pre":
        seen = ops.norm(x, Norm(f"{layer}.norm1"))
        x = ops.add(x, spatial_mix(ops, seen, f"{layer}.spatial", x.grid, kind))
        seen = ops.norm(x, Norm(f"{layer}.norm2"))
        return ops.add(x, channel_mix(ops, seen, f"{layer}.channel", rate, x.grid, kind))
    mixed = spatial_mix(ops, x, f"{layer}.spatial", f"{layer}.spatial", kind)
    x = residual(ops, x, mixed, Residual(f"{layer}.norm1", kind.residual))
    mixed = channel_mix(ops, x, f"{layer}.channel", rate, f"{layer}.channel", kind)
    return residual(ops, x, mixed, Residual(f"{layer}.norm2", kind.residual))


def prior_blocks(
    ops: Ops, config: Config, x: Act, layer: str, numbers: range, plain: Callable[[Ops, Act, str], Act]
) -> Act:
    """The blocks `layer`.n of a spatial prior: RWKV's where the config says so, else `plain` ones."""
    for i in numbers:
        name = f"{layer}.{i}"
        x = block(ops, x, name, config.prior_rate, kind_of(config)) if config.prior == "rwkv" else plain(ops, x, name)
    return x


def residual(ops: Ops, x: Act, mixed: Act, layer: Residual) -> Act:
    """x with a branch's result added as `lerp` or `difference` have it; the layer's norm holds the gain."""
    moved = ops.norm(mixed, layer, x.grid)
    if layer.kind == "lerp":
        return ops.add(ops.channel_scale(x, layer), moved)
    return ops.add(x, ops.add(moved, ops.channel_scale(ops.norm(x, layer, x.grid), layer)))


def context_cell(ops: Ops, context: Act, carry: Act, layer: str, rate: int, kind: Kind) -> Act:
    """The next coding step's carry: cat(context, carry) -> 1x1 -> block -> 1x1, on the carry's grid; (B, H, W, D)."""
    width = carry.x.shape[-1]
    joined = ops.linear([context, carry], Linear(f"{layer}.in", width, start="mean"))
    x = block(ops, joined, f"{layer}.block", rate, kind)
    return ops.linear(x, Linear(f"{layer}.out", width, start="same"), carry.grid)


def fusion_net(ops: Ops, carry: Act, layer: str, rate: int, kind: Kind, blocks: int = 1) -> Act:
    """Blocks -> 1x1 on the carry (B, H, W, D) between two scales."""
    x = carry
    for i in range(blocks):
        x = block(ops, x, f"{layer}.block{i or ''}", rate, kind)
    return ops.linear(x, Linear(f"{layer}.out", carry.x.shape[-1], start="same"), carry.grid)
