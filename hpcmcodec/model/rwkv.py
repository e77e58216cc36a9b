"""RWKV blocks over latents: SpatialMix (Bi-WKV4), ChannelMix, and the context cell and fusion net built from them.

    SpatialMix:  x' = OmniShift(x);  k, v, r = 1x1(x');  out = 1x1(sigmoid(r) * BiWKV(k, v))
    ChannelMix:  x' = OmniShift(x);  out = sigmoid(1x1_r(x')) * 1x1_v(relu(1x1_k(x'))^2)
    block:       x += g1 * SpatialMix(LN(x));  x += g2 * ChannelMix(LN(x))       (gains merged into the last 1x1)

(Vision-RWKV, arXiv 2403.02308; OmniShift from Restore-RWKV, arXiv 2407.11087: one merged depthwise kernel when coding.)
Written over `ops`, float or exact: one definition for training and coding.
"""

from __future__ import annotations

from typing import Any

from hpcmcodec.exact.operations import Act

GATE_GRID = "sigmoid"  # inputs of sigmoids and of exp: +-8 in steps of 1/256
EXP_GRID = "exp"


def spatial_mix(ops: Any, x: Act, layer: str, out_grid: str) -> Act:
    """Mixes positions: every token sees all others, weighted by distance and key; (B, H, W, D)."""
    width = x.x.shape[-1]
    shifted = ops.depthwise(x, f"{layer}.shift", omni=True)
    # Without a bias: what all keys of a channel share cancels in Bi-WKV's ratio.
    k = ops.linear(shifted, f"{layer}.k", width, EXP_GRID, biased=False)
    v = ops.linear(shifted, f"{layer}.v", width)
    r = ops.linear(shifted, f"{layer}.r", width, GATE_GRID)
    return ops.linear(ops.gate(r, ops.wkv(k, v, f"{layer}.wkv")), f"{layer}.out", width, out_grid, residual=True)


def channel_mix(ops: Any, x: Act, layer: str, rate: int, out_grid: str) -> Act:
    """Mixes channels, with `rate` times as many hidden ones; (B, H, W, D)."""
    width = x.x.shape[-1]
    shifted = ops.depthwise(x, f"{layer}.shift", omni=True)
    k = ops.linear(shifted, f"{layer}.k", rate * width)
    r = ops.linear(shifted, f"{layer}.r", width, GATE_GRID)
    v = ops.linear(ops.relu_squared(k, f"{layer}.k2"), f"{layer}.v", width, out_grid, residual=True)
    return ops.gate(r, v)


def block(ops: Any, x: Act, layer: str, rate: int) -> Act:
    """A pre-norm RWKV block on the grid of x; (B, H, W, D)."""
    x = ops.add(x, spatial_mix(ops, ops.norm(x, f"{layer}.norm1"), f"{layer}.spatial", x.grid))
    return ops.add(x, channel_mix(ops, ops.norm(x, f"{layer}.norm2"), f"{layer}.channel", rate, x.grid))


def context_cell(ops: Any, context: Act, carry: Act, layer: str, rate: int) -> Act:
    """The next step's carry: cat(context, carry) -> 1x1 -> block -> 1x1, on the carry's grid; (B, H, W, D)."""
    width = carry.x.shape[-1]
    x = block(ops, ops.linear([context, carry], f"{layer}.in", width), f"{layer}.block", rate)
    return ops.linear(x, f"{layer}.out", width, carry.grid)


def fusion_net(ops: Any, carry: Act, layer: str, rate: int) -> Act:
    """Block -> 1x1 on the coarse grid, before the carry moves to the finer scale."""
    return ops.linear(block(ops, carry, f"{layer}.block", rate), f"{layer}.out", carry.x.shape[-1], carry.grid)
