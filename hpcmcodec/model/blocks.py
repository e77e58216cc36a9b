"""Blocks that several parts of the model are built from, written once over the operations."""

from __future__ import annotations

from hpcmcodec.exact.layers import Depthwise, Linear
from hpcmcodec.exact.ops import Act, Ops


def residual_block(ops: Ops, x: Act, layer: str, rate: int = 2) -> Act:
    """x + [depthwise 3x3 -> 1x1 to `rate` times the width -> LeakyReLU -> 1x1] (HPCM's DWConvRB); (B, H, W, C)."""
    width = x.x.shape[-1]
    up, down = Linear(f"{layer}.up", rate * width), Linear(f"{layer}.down", width, branch=True)
    return ops.block(x, Depthwise(f"{layer}.dw"), up, down)
