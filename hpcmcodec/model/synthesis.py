"""The synthesis: from y_hat to pixels, in integers, so that a file shows the same picture everywhere.

    y_hat, times the quality's factors -> codes -> 1x1 -> blocks at 1/16 -> 1x1, times the quality's factors
    -> pixel shuffle -> blocks at 1/8 -> 1x1 to 8 x 8 pixels
    block: x + [depthwise 3x3 -> 1x1 -> LeakyReLU -> 1x1]

What passes through everything, x, is *wide*: int32, 2^14 a unit of the pixels' range. Each layer adds at most
+-WIDE_MAX to it, so no latents can make it wrap. All else are codes whose exponents are each channel's own: weights
hold them (`model.fold`), so nothing is shifted but what a block reads.

`synthesise` is the only definition of the flow, as `context.walk` is of the entropy path's; both are written over
`exact.ops`. Zero padding is the codes' zero.

A plane can go through it strip by strip, from top to bottom (`Rows`), with nothing computed twice. A part that is cut
out of the plane otherwise gives the same pixels where `halo` latents around it are there.
"""

from __future__ import annotations

from hpcmcodec.container import LATENT
from hpcmcodec.exact.constants import PIXEL_GRID, WIDE_GRID
from hpcmcodec.exact.layers import Depthwise, Dequantise, Gain, Linear, Read
from hpcmcodec.exact.ops import Act, Array, Ops, Qualities
from hpcmcodec.model.arrange import shuffle
from hpcmcodec.model.config import Config
from hpcmcodec.model.family import synthesis as paper

THUMBNAIL = 2  # pixels a latent in a thumbnail
THUMBNAIL_STRIDE = {"s2": 2, "s3": 1}  # latents a position of the plane that each thumbnail is made of


class Rows:
    """The state of a plane that goes through the synthesis strip by strip, from top to bottom.

    A block's convolution sees a row above and a row below, so the last row that a block has read waits for the next
    strip, and a block keeps two rows. last: whether the strip at hand is the plane's last.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.last = last
        self._kept: dict[str, tuple[Act, int]] = {}  # by block: rows, and the first of them that has no result yet

    def block(self, ops: Ops, x: Act, name: str) -> Act:
        """The results of a block that the rows x (B, R, W, C), and those kept, make possible, (B, at most R + 1, W, C).

        x and the result are wide.
        """
        width = x.x.shape[-1]
        before, first = self._kept.get(name, (None, 0))
        above = before.x.shape[1] if before else 0
        end = max(first, above + x.x.shape[1] - (not self.last))
        layers = Depthwise(f"{name}.dw"), Linear(f"{name}.up", 2 * width), Linear(f"{name}.down", width)
        if not self.last:
            kept = max(0, end - 1)
            parts = [before.x[:, kept:]] if before and kept < above else []
            parts.append(x.x[:, max(0, kept - above) :])
            self._kept[name] = Act(ops.xp.concat(parts, 1), x.grid), end - kept
        return ops.block(x, *layers, Read(f"{name}.read"), before, (first, end))


def synthesise(
    ops: Ops, config: Config, y_hat: Array, quality: Qualities, depth: int = 8, rows: Rows | None = None
) -> Array:
    """y_hat (B, h, w, M) -> pixels (B, 16 h, 16 w, 3), integers 0 .. 2^depth - 1.

    rows: the state of the plane that the rows y_hat are from. Then the pixels are those that follow the strip before,
    in groups of 8 rows: fewer than 16 h of the first strip, 16 h of those behind it, more of the last.
    """
    if config.flow == "hpcm":
        return paper.synthesise(ops, config, y_hat, depth)
    rows = rows or Rows(last=True)
    c8, c16 = config.synthesis_widths
    x = ops.wide(_codes(ops, config, y_hat, quality), Linear("g_s.inp", c16), WIDE_GRID)
    for i in range(config.synthesis_blocks[1]):
        x = rows.block(ops, x, f"g_s.b16.{i}")
    gain = Gain("g_s.s8", config.qualities, c8)
    x = shuffle(ops, ops.amplify(ops.read(x, Read("g_s.up.read")), Linear("g_s.up", 4 * c8), gain, quality))
    for i in range(config.synthesis_blocks[0]):
        x = rows.block(ops, x, f"g_s.b8.{i}")
    return _pixels(ops, ops.read(x, Read("g_s.head.read")), "g_s.head", LATENT // 2, depth)


def thumbnail_of(ops: Ops, config: Config, y_hat: Array, quality: Qualities, scale: str, depth: int = 8) -> Array:
    """An eighth of the picture's size, by one linear map, from y_hat on the grid of a scale (`schedule.grid`).

    scale "s3": y_hat (B, h, w, M), the whole, to (B, 2 h, 2 w, 3); "s2": what the first two scales hold,
    (B, ceil(h / 2), ceil(w / 2), M), to (B, 4 ceil(h / 2), 4 ceil(w / 2), 3).
    """
    side = THUMBNAIL * THUMBNAIL_STRIDE[scale]
    return _pixels(ops, _codes(ops, config, y_hat, quality), f"thumbnail.{scale}", side, depth)


def _pixels(ops: Ops, a: Act, layer: str, side: int, depth: int) -> Array:
    """Each position of a as side x side pixels of three colours."""
    levels = ops.pixels(ops.wide(a, Linear(layer, 3 * side * side), PIXEL_GRID), depth)
    return shuffle(ops, Act(levels, PIXEL_GRID), side).x


def halo(config: Config) -> int:
    """Latents around a latent that its pixels depend on: by 3x3 convolutions at 1/16 and, half as wide, at 1/8."""
    if config.flow == "hpcm":
        return paper.halo(config)
    return config.synthesis_blocks[1] + -(-config.synthesis_blocks[0] // 2)


def analysis_halo(config: Config) -> int:
    """Latents around a value of z that it depends on in y, and those around these that g_a sees."""
    return paper.halo(config) + 7 if config.flow == "hpcm" else 4 + 3


def _codes(ops: Ops, config: Config, y_hat: Array, quality: Qualities) -> Act:
    if config.flow == "hpcm":
        return paper.read_latent(ops, y_hat)
    return ops.dequantise(y_hat, Dequantise("ungain", config.qualities), quality)
