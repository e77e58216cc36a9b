r"""EXIF and XMP of images that Pillow has read, as bytes, and the orientation that EXIF asks for.

"EXIF" is a TIFF structure *without* the prefix ``Exif\0\0`` that a JPEG has before it, "XMP" is an XMP packet.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_EXIF_PREFIX = b"Exif\0\0"
_ORIENTATION = 0x0112
XMP_TAG = 0x02BC
# The first directory of a TIFF file also describes how its pixels are stored; these tags are about the photograph.
_DESCRIPTIVE_TAGS = (
    0x010E,  # ImageDescription
    0x010F,  # Make
    0x0110,  # Model
    0x0131,  # Software
    0x0132,  # DateTime
    0x013B,  # Artist
    0x4746,  # Rating
    0x8298,  # Copyright
    0x8769,  # the EXIF directory
    0x8825,  # the GPS directory
)


def exif_of(image: Image.Image, notes: list[str]) -> bytes:
    """The EXIF block of a loaded image, without its prefix; empty where there is none.

    A damaged block is dropped, and a line about it added to `notes`.
    """
    exif = image.info.get("exif")
    text = image.info.get("Raw profile type exif")  # ImageMagick keeps EXIF in PNG as three lines and hex
    try:
        if not exif and isinstance(text, str):
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        if not exif and image.format == "TIFF":
            exif = _exif_of_tiff(image)
        if isinstance(exif, Image.Exif):
            exif = exif.tobytes()
    except Exception as error:  # noqa: BLE001  a damaged directory raises nearly anything; the pixels are still good
        notes.append(f"EXIF dropped: it is damaged ({one_line(error)})")
        exif = b""
    return _bare_exif(exif) if isinstance(exif, bytes) else b""


def _exif_of_tiff(image: Image.Image) -> bytes:
    """The tags of a TIFF file that are about the photograph. Orientation is not among them: Pillow has applied it."""
    found = image.getexif()
    kept = Image.Exif()
    for tag in _DESCRIPTIVE_TAGS:
        if tag in found:
            kept[tag] = found.get_ifd(tag) if tag in (0x8769, 0x8825) else found[tag]
    return kept.tobytes() if len(kept) else b""


def parsed_exif(exif: Any) -> Image.Exif | None:
    """An EXIF block as Pillow reads it; None where there is none that it can read."""
    found = Image.Exif()
    try:
        found.load(exif or b"")
        found.tobytes()
    except Exception:  # noqa: BLE001  damaged blocks raise nearly anything
        return None
    return found if len(found) else None


def prefixed_exif(exif: bytes) -> bytes:
    """An EXIF block as a JPEG holds it, with exactly one prefix."""
    return _EXIF_PREFIX + _bare_exif(exif)


def _bare_exif(exif: bytes) -> bytes:
    """An EXIF block without its prefix, which some writers set twice."""
    return re.sub(rb"\A(?:Exif\0\0){1,2}", b"", exif)


def take_orientation(exif: bytes) -> tuple[int, bytes]:
    """The Orientation (1..8) that `exif` asks for, and `exif` with that tag set to 1; a damaged block stays as it is.

    A TIFF structure (TIFF 6.0, section 2) begins with the byte order, the number 42 and the offset of the first
    directory. A directory is a count and that many entries of 12 bytes: tag, type, count and value.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1, exif
    (directory,) = struct.unpack_from(order + "I", exif, 4)
    if directory + 2 > len(exif):
        return 1, exif
    (count,) = struct.unpack_from(order + "H", exif, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        form = {1: "B", 3: "H", 4: "I"}.get(kind)
        if tag == _ORIENTATION and form is not None:
            (orientation,) = struct.unpack_from(order + form, exif, entry + 8)
            if not 2 <= orientation <= 8:
                return 1, exif
            upright = bytearray(exif)
            struct.pack_into(order + form, upright, entry + 8, 1)
            return orientation, bytes(upright)
    return 1, exif


def orient(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """`pixels` (H, W, 3), turned and mirrored as EXIF's Orientation asks (EXIF 2.32, 4.6.4.A); contiguous."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def xmp_of(image: Image.Image) -> bytes:
    """The XMP packet of a loaded image; empty where there is none."""
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")  # the latter: PNG before Pillow 11
    if isinstance(xmp, str):
        return xmp.encode()
    return xmp if isinstance(xmp, bytes) else b""


def one_line(error: Exception) -> str:
    """The message of a library's error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
