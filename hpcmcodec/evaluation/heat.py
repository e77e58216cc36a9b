"""Maps of values as pictures on a colour scale: where the bits of a file went, and where two pictures differ.

The scale runs from dark violet over teal to yellow (nine points of Matplotlib's viridis). Its lightness rises
throughout, so that it can be read in grey and by people with colour blindness.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from hpcmcodec.container import LATENT

__all__ = ["bits_per_pixel", "bits_png", "error_map", "heat_image", "legend_range"]

_STOPS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
_PALETTE = np.stack(
    [
        np.interp(np.linspace(0, len(_STOPS) - 1, 256), range(len(_STOPS)), [int(s[i : i + 2], 16) for s in _STOPS])
        for i in (0, 2, 4)
    ],
    axis=1,
).round()
_PAPER, _INK = (255, 255, 255), (32, 32, 32)
_TEXT_SIZE, _BAR, _GAP = 15, 16, 10
_MAX_SIDE = 1536  # pixels of a map in a file of its own; a larger one would show nothing more


def heat_image(values: npt.NDArray[np.floating], high: float) -> Image.Image:
    """Values (rows, columns) as an image, a pixel each, in 256 colours from 0 (dark) to `high` and above (light)."""
    scaled = np.clip(values / high if high > 0 else np.zeros_like(values), 0, 1)
    image = Image.fromarray(np.rint(scaled * 255).astype(np.uint8)).copy()
    image.putpalette(_PALETTE.astype(np.uint8).tobytes())
    return image


def legend_range(*maps: npt.NDArray[np.floating]) -> float:
    """Upper end of a colour scale that the maps share: all but the highest 0.5% of their values lie below it."""
    return float(np.quantile(np.concatenate([each.ravel() for each in maps]), 0.995))


def bits_per_pixel(spent: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """The maps of `codec.bits_map`, in bits at each position (H/16, W/16) -> their sum, in bits per pixel."""
    total: npt.NDArray[np.float64] = sum(spent.values(), np.zeros(())) / LATENT**2
    return total


def error_map(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], block: int = 4) -> npt.NDArray[np.float64]:
    """Root mean square difference, in units of 1/255, of two pictures (H, W, 3) uint8 in each block of pixels.

    The result is (H / block, W / block), rounded up: blocks at the right and bottom edges may be cut.
    """
    squares = np.square(a.astype(np.float64) - b).mean(axis=2)
    rows, columns = np.arange(0, a.shape[0], block), np.arange(0, a.shape[1], block)
    sums = np.add.reduceat(np.add.reduceat(squares, rows, axis=0), columns, axis=1)
    counts = np.outer(np.diff([*rows, a.shape[0]]), np.diff([*columns, a.shape[1]]))
    root: npt.NDArray[np.float64] = np.sqrt(sums / counts)
    return root


def bits_png(spent: Mapping[str, npt.NDArray[np.float64]], width: int, height: int, title: str) -> bytes:
    """A PNG file that shows where the bits of a picture went, with a title and a colour scale.

    spent: as `codec.bits_map` gives it. width, height: of the picture, in pixels.
    """
    values = bits_per_pixel(spent)
    high = legend_range(values)
    reduced = min(1.0, _MAX_SIDE / max(width, height))
    size = max(1, round(width * reduced)), max(1, round(height * reduced))
    # The positions at the right and bottom edges reach beyond the picture.
    box = (0, 0, width / LATENT, height / LATENT)
    picture = heat_image(values, high).convert("RGB").resize(size, Image.Resampling.NEAREST, box)

    font = ImageFont.load_default(size=_TEXT_SIZE)
    line = _TEXT_SIZE + 5
    labels = ["0", f"{high / 2:.3g}", f"{high:.3g} bits per pixel and more"]
    bar = int(max(2 * font.getlength(labels[2]), 200))
    sheet_width = int(max(picture.width, bar + font.getlength(labels[2]), font.getlength(title))) + 2 * _GAP
    top = _GAP + line + _GAP
    sheet = Image.new("RGB", (sheet_width, top + picture.height + _GAP + _BAR + line + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, _INK, font)
    sheet.paste(picture, (_GAP, top))
    scale = heat_image(np.broadcast_to(np.linspace(0, 1, bar), (_BAR, bar)), 1.0)
    y = top + picture.height + _GAP
    sheet.paste(scale.convert("RGB"), (_GAP, y))
    for i, label in enumerate(labels):
        x = _GAP + i * bar // 2 - (font.getlength(label) / 2 if i == 1 else 0)
        draw.text((x, y + _BAR + 2), label, _INK, font)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()
