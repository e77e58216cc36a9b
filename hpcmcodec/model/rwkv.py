"""RWKV blocks over latents: SpatialMix (Bi-WKV4), ChannelMix, and the context cell and fusion net built from them.

    SpatialMix:  x' = OmniShift(x);  k, v, r = 1x1(x');  out = 1x1(sigmoid(r) * BiWKV(k, v))
    ChannelMix:  x' = OmniShift(x);  out = sigmoid(1x1_r(x')) * 1x1_v(relu(1x1_k(x'))^2)
    block:       x += g1 * SpatialMix(LN(x));  x += g2 * ChannelMix(LN(x))       (gains g are merged into the last 1x1)

(Vision-RWKV, arXiv 2403.02308. OmniShift is from Restore-RWKV, arXiv 2407.11087; coding uses its kernels merged into
one.) The operations `ops` are float or exact, so that training and coding share this definition.
"""

from __future__ import annotations

from hpcmcodec.exact.constants import EXP_GRID, GATE_GRID
from hpcmcodec.exact.layers import Linear, Norm, OmniShift, Wkv
from hpcmcodec.exact.ops import Act, Ops


def spatial_mix(ops: Ops, x: Act, layer: str, out_grid: str) -> Act:
    """Mixes positions: each sees all others, weighted by distance and key; (B, H, W, D) to the same on `out_grid`."""
    width = x.x.shape[-1]
    shifted = ops.depthwise(x, OmniShift(f"{layer}.shift"))
    # Keys have no bias, since a term that all keys of a channel share cancels in the ratio of Bi-WKV.
    k = ops.linear(shifted, Linear(f"{layer}.k", width, biased=False), EXP_GRID)
    v = ops.linear(shifted, Linear(f"{layer}.v", width))
    r = ops.linear(shifted, Linear(f"{layer}.r", width), GATE_GRID)
    mixed = ops.gate(r, ops.wkv(k, v, Wkv(f"{layer}.wkv")))
    return ops.linear(mixed, Linear(f"{layer}.out", width, branch=True), out_grid)


def channel_mix(ops: Ops, x: Act, layer: str, rate: int, out_grid: str) -> Act:
    """Mixes channels, `rate` times as many inside; (B, H, W, D) to the same on `out_grid`."""
    width = x.x.shape[-1]
    shifted = ops.depthwise(x, OmniShift(f"{layer}.shift"))
    k = ops.relu_squared(ops.linear(shifted, Linear(f"{layer}.k", rate * width)), f"{layer}.k2")
    r = ops.linear(shifted, Linear(f"{layer}.r", width), GATE_GRID)
    v = ops.linear(k, Linear(f"{layer}.v", width, branch=True), out_grid)
    return ops.gate(r, v)


def block(ops: Ops, x: Act, layer: str, rate: int) -> Act:
    """An RWKV block with the norm at the start of each branch; x and the result are (B, H, W, D) on one grid."""
    x = ops.add(x, spatial_mix(ops, ops.norm(x, Norm(f"{layer}.norm1")), f"{layer}.spatial", x.grid))
    return ops.add(x, channel_mix(ops, ops.norm(x, Norm(f"{layer}.norm2")), f"{layer}.channel", rate, x.grid))


def context_cell(ops: Ops, context: Act, carry: Act, layer: str, rate: int) -> Act:
    """The next coding step's carry: cat(context, carry) -> 1x1 -> block -> 1x1, on the carry's grid; (B, H, W, D)."""
    width = carry.x.shape[-1]
    joined = ops.linear([context, carry], Linear(f"{layer}.in", width, start="mean"))
    x = block(ops, joined, f"{layer}.block", rate)
    return ops.linear(x, Linear(f"{layer}.out", width, start="same"), carry.grid)


def fusion_net(ops: Ops, carry: Act, layer: str, rate: int) -> Act:
    """Block -> 1x1 on the carry (B, H, W, D) of the coarser lattice, before it moves to the finer scale."""
    x = block(ops, carry, f"{layer}.block", rate)
    return ops.linear(x, Linear(f"{layer}.out", carry.x.shape[-1], start="same"), carry.grid)
