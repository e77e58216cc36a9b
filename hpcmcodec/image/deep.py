"""Samples of more than 8 bits through Pillow, whose images hold 8 bits of colour: each file is unpacked twice.

Pillow's unpackers take either byte of a sample of two: for a big-endian file "RGB;16B" takes the upper and "RGB;16L"
the lower one. Two passes over the file give both, at the speed of Pillow's decoders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt


def open_with(form: str, file: BinaryIO, raw: str = "", mode: str = "") -> Image.Image:
    """Pillow's image of `file`, not decoded yet, by its reader of the format `form`, whose module is imported.

    `raw` replaces the way in which samples are unpacked, `mode` the image's mode.
    """
    file.seek(0)
    image: Any = Image.OPEN[form][0](file, "")
    if raw:
        image.tile = [replaced(tile, raw) for tile in image.tile]
    if mode:
        image._mode = mode
    opened: Image.Image = image
    return opened


def replaced(tile: Any, raw: str) -> Any:
    """A tile of a file with another way to unpack its samples."""
    arguments = tile[3]
    changed = (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
    make = type(tile)
    return make(*tile[:3], changed) if hasattr(tile, "_fields") else (*tile[:3], changed)


def two_passes(upper: Image.Image, lower: Image.Image) -> npt.NDArray[np.uint16]:
    """(H, W, C) uint16 from images of the upper and the lower bytes."""
    upper.load()
    lower.load()
    levels = np.asarray(upper).astype(np.uint16)
    levels <<= 8
    levels |= np.asarray(lower)
    return levels
