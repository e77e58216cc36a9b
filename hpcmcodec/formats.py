"""The image formats that pictures are written in, and what each can hold. Importing this loads nothing."""

from __future__ import annotations

from pathlib import PurePath
from typing import NamedTuple


class Format(NamedTuple):
    """A format that pictures are written in.

    Attributes:
        name: Pillow's name.
        suffixes: of file names; the first is the usual one.
        alpha: whether it holds opacity.
        deep: whether 16 bits are written.
        colour, cicp: whether it holds ICC profiles, and code points.
        metadata: which of "EXIF", "IPTC", "TEXT" and "XMP" it holds.
        max_side: the longest side that is written, in pixels.
    """

    name: str
    suffixes: tuple[str, ...]
    alpha: bool
    deep: bool
    colour: bool
    cicp: bool
    metadata: tuple[str, ...]
    max_side: int = (1 << 31) - 1


FORMATS = {
    "png": Format("PNG", (".png",), True, True, True, True, ("EXIF", "IPTC", "TEXT", "XMP")),
    "jpg": Format(
        "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), False, False, True, False, ("EXIF", "IPTC", "XMP"), 65500
    ),
    "webp": Format("WEBP", (".webp",), True, False, True, False, ("EXIF", "XMP"), 16383),
    "avif": Format("AVIF", (".avif",), True, False, True, True, ("EXIF", "XMP")),
    "tif": Format("TIFF", (".tif", ".tiff"), True, True, True, False, ("EXIF", "IPTC", "XMP")),
    "ppm": Format("PPM", (".ppm", ".pgm", ".pnm"), False, True, False, False, ()),
    "bmp": Format("BMP", (".bmp", ".dib"), False, False, False, False, ()),
}


INPUT_SUFFIXES = (
    *(suffix for form in FORMATS.values() for suffix in form.suffixes),
    *(".gif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".pbm"),
)
"""Suffixes of the image files that are read, in lower case: a folder is searched for these."""


METADATA_KINDS = ("all", "gps", "exif", "xmp", "icc", "text")
"""What can be dropped from a picture, or kept alone: `image.editing` says what each is."""


def of_name(name: str) -> str | None:
    """The key in `FORMATS` of a file name's suffix; None where no format has it."""
    suffix = PurePath(name).suffix.lower()
    return next((key for key, form in FORMATS.items() if suffix in form.suffixes), None)
