"""HEIF, as phones write it (.heic): its boxes are read here, its pixels by pillow-heif where that is installed.

AVIF, which Pillow reads, has the same boxes; of more than 8 bits Pillow gives 8, and imagecodecs all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.image import isobmff
from hpcmcodec.image.deep import open_with
from hpcmcodec.image.picture import Found

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


def look(file: BinaryIO) -> Found:
    """The picture of a HEIF file, not decoded yet. Its pixels come upright, whatever EXIF says.

    Raises UnsupportedError where pillow-heif is not installed.
    """
    try:
        heif: Any = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise UnsupportedError(
            "HEIF (.heic) is read by pillow-heif, which is not installed: pip install pillow-heif"
        ) from error
    facts = isobmff.facts(file)
    file.seek(0)
    found = Found(heif.as_plugin.HeifImageFile(file), depth=facts.depth, colour=facts.cicp)
    # libheif has turned the pixels as the file asks; pillow-heif keeps what EXIF asked for, and sets it to 1.
    found.turned = found.image.info.get("original_orientation") or 1
    count = getattr(found.image, "n_frames", 1)
    found.notes += [f"the first of {count} pictures in this file is used"] if count > 1 else []
    found.notes += [f"the {what} beside the picture is dropped" for what in facts.beside]

    def read() -> npt.NDArray[np.uint16]:
        file.seek(0)
        levels = np.asarray(heif.open_heif(file, convert_hdr_to_8bit=False))
        levels = levels if levels.ndim == 3 else levels[..., None]
        return np.asarray(levels, np.uint16) >> np.uint16(16 - facts.depth)  # they fill the upper bits of 16

    if facts.depth > 8:
        found.deep = read
    return found


def look_avif(file: BinaryIO) -> Found:
    """The picture of an AVIF file, not decoded yet."""
    facts = isobmff.facts(file)
    found = Found(open_with("AVIF", file), depth=facts.depth, colour=facts.cicp)
    found.notes += [f"the {what} beside the picture is dropped" for what in facts.beside]
    if facts.depth > 8:
        found.deep = deep_by_imagecodecs(file, "avif_decode", facts.depth)
    return found


def deep_by_imagecodecs(file: BinaryIO, decoder: str, depth: int) -> Callable[[], npt.NDArray[np.uint16]] | None:
    """What decodes a file of `depth` bits in full through imagecodecs; None where that is not installed."""
    try:
        decode = getattr(importlib.import_module("imagecodecs"), decoder)
    except (ImportError, AttributeError):
        return None

    def read() -> npt.NDArray[np.uint16]:
        file.seek(0)
        levels = np.asarray(decode(file.read()), np.uint16)
        return np.minimum(levels if levels.ndim == 3 else levels[..., None], (1 << depth) - 1)

    return read
