"""g_s of the paper's members in integers, as `model.synthesis` runs it: partial convolutions, pixel shuffles.

    y_hat -> 1x1 to 4 C, shuffle -> blocks at 1/8 -> the same at 1/4 and 1/2 -> 1x1 to 4 x 4 pixels, which overlap
    block: x + [3x3 on the first quarter of the channels -> 1x1 to 4 C -> LeakyReLU -> 1x1]

A transposed 2x2 convolution of stride 2 is a 1x1 convolution and a shuffle. The last one, 4x4 of stride 2, gives each
position 4 x 4 pixels that begin one above and one to the left of its own 2 x 2: what falls on one pixel is added, and
integers add exactly. What blocks read are codes with an exponent for each channel, what passes through is wide.
"""

from __future__ import annotations

from hpcmcodec.exact.constants import CHANNEL_GRID, PIXEL_GRID, WIDE_GRID
from hpcmcodec.exact.layers import Linear, Read
from hpcmcodec.exact.ops import Act, Array, Ops
from hpcmcodec.model.arrange import neighbourhood, part, shifted, shuffle
from hpcmcodec.model.config import Config
from hpcmcodec.model.family.blocks import SLOPE

READ = "g_s.latent"  # the layer that reads y_hat
KERNEL = 4  # rows and columns of the last convolution


def synthesise(ops: Ops, config: Config, y_hat: Array, depth: int) -> Array:
    """y_hat (B, h, w, M) -> pixels (B, 16 h, 16 w, 3), integers 0 .. 2^depth - 1."""
    c2, c4, c8 = config.transform_widths
    codes, at = read_latent(ops, y_hat), 0
    for width, blocks in ((c8, config.deep_blocks), (c4, 2), (c2, 2)):
        x = shuffle(ops, ops.wide(codes, Linear(f"g_s.{at}", 4 * width), WIDE_GRID))
        for i in range(at + 1, at + blocks + 1):
            x = block(ops, x, f"g_s.{i}")
        at += blocks + 1
        codes = ops.read(x, Read(f"g_s.{at}.read"))
    taps = ops.wide(codes, Linear(f"g_s.{at}", 3 * KERNEL**2), PIXEL_GRID)
    return ops.pixels(overlapped(ops, taps), depth)


def read_latent(ops: Ops, y_hat: Array) -> Act:
    """Codes of y_hat, which counts sixteenths."""
    return ops.read(Act(y_hat, "y"), Read(READ))


def block(ops: Ops, x: Act, name: str) -> Act:
    """x (B, H, W, C), wide, plus its branch."""
    width = x.x.shape[-1]
    codes = ops.read(x, Read(f"{name}.read"))
    around = neighbourhood(ops, part(codes, 0, width // 4))
    seen = ops.linear(around, Linear(f"{name}.conv", width // 4), CHANNEL_GRID)
    inside = [seen, part(codes, width // 4)]
    hidden = ops.lrelu(ops.linear(inside, Linear(f"{name}.up", 4 * width), CHANNEL_GRID), SLOPE)
    return ops.wide(hidden, Linear(f"{name}.down", width), WIDE_GRID, onto=x)


def overlapped(ops: Ops, taps: Act) -> Act:
    """(B, H, W, 4 * 4 * C), what each position adds to the pixels around it, to (B, 2 H, 2 W, C).

    Tap (i, j) of position (r, c) belongs to pixel (2 r - 1 + i, 2 c - 1 + j).
    """
    b, h, w, n = taps.x.shape
    c = n // KERNEL**2
    out = ops.xp.zeros_like(taps.x, (b, 2 * h, 2 * w, c))
    for k in range(KERNEL**2):
        row, column = k // KERNEL - 1, k % KERNEL - 1
        x, plane = taps.x[..., k * c : (k + 1) * c], out[:, row % 2 :: 2, column % 2 :: 2]
        shifted(x, -(row // 2), -(column // 2), plane)
    return Act(out, taps.grid)


def halo(config: Config) -> int:
    """Latents around a latent that its pixels depend on."""
    pixels = 8 * config.deep_blocks + 4 * 2 + 2 * 2 + 2
    return -(-pixels // 16)
