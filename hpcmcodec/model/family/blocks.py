"""HPCM's blocks over the operations, and its attention cell (Li et al., HPCM, ICCV 2025, and its published classes)."""

from __future__ import annotations

from hpcmcodec.exact.layers import Depthwise, Linear
from hpcmcodec.exact.ops import Act, Ops
from hpcmcodec.model.arrange import neighbourhood, part, shuffle
from hpcmcodec.model.config import Config

SLOPE = 0.01  # LeakyReLU's negative slope


def pconv_block(ops: Ops, x: Act, layer: str) -> Act:
    """PConvRB: x + [3x3 on the first quarter of the channels -> 1x1 to 4 C -> LeakyReLU -> 1x1]; (B, H, W, C)."""
    width = x.x.shape[-1]
    seen = ops.linear(neighbourhood(ops, part(x, 0, width // 4)), Linear(f"{layer}.conv", width // 4))
    hidden = ops.lrelu(ops.linear([seen, part(x, width // 4)], Linear(f"{layer}.up", 4 * width)), SLOPE)
    return ops.add(x, ops.linear(hidden, Linear(f"{layer}.down", width, start="small"), x.grid))


def depthwise_block(ops: Ops, x: Act, layer: str) -> Act:
    """DWConvRB: x + [depthwise 3x3 -> 1x1 to 2 C -> LeakyReLU -> 1x1]; (B, H, W, C)."""
    width = x.x.shape[-1]
    seen = ops.depthwise(x, Depthwise(f"{layer}.dw"))
    hidden = ops.lrelu(ops.linear(seen, Linear(f"{layer}.up", 2 * width)), SLOPE)
    return ops.add(x, ops.linear(hidden, Linear(f"{layer}.down", width, start="small"), x.grid))


def up2(ops: Ops, x: Act, layer: str, channels: int, grid: str | None = None) -> Act:
    """A 2x2 transposed convolution of stride 2: (B, H, W, C) -> (B, 2 H, 2 W, channels)."""
    return shuffle(ops, ops.linear(x, Linear(layer, 4 * channels, phases=4), grid))


def attention_cell(ops: Ops, config: Config, context: Act, carry: Act, scale: str) -> Act:
    """The next carry: the context asks, the old carry answers, in windows; plus a 1x1 of the context; (B, H, W, D).

    No window is shifted, and positions have no code.
    """
    layer, width = f"{scale}.cell", carry.x.shape[-1]
    q = ops.linear(context, Linear(f"{layer}.q", width))
    k = ops.linear(carry, Linear(f"{layer}.k", width))
    v = ops.linear(carry, Linear(f"{layer}.v", width))
    window = config.window[("s1", "s2", "s3").index(scale)]
    seen = ops.attend(q, k, v, window, config.attention_heads, carry.grid)
    return ops.add(seen, ops.linear(context, Linear(f"{layer}.skip", width, start="same"), carry.grid))


def no_cell(ops: Ops, config: Config, context: Act, carry: Act, scale: str) -> Act:
    """The context itself (HPCM-Phi)."""
    return context
