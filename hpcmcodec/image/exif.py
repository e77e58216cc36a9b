r"""EXIF and XMP of images that Pillow has read, as bytes, and the orientation that EXIF asks for.

"EXIF" is a TIFF structure *without* the prefix ``Exif\0\0`` that a JPEG has before it, "XMP" is an XMP packet.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

_EXIF_PREFIX = b"Exif\0\0"
XMP_TAG = 0x02BC
_ORIENTATION, _EXIF_DIRECTORY, _GPS_DIRECTORY, _INTEROPERABILITY = 0x0112, 0x8769, 0x8825, 0xA005
_MAX_GPS_ENTRIES = 256  # the standard has 32
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of a value, by its type
_BYTES = (1, 2, 7)  # types whose values are one object together
_MAX_NUMBERS = 1 << 17
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_SUBJECT_AREA, _SUBJECT_LOCATION = 0x9214, 0xA214
_THUMBNAIL_OFFSET, _THUMBNAIL_BYTES = 0x0201, 0x0202
# Tags that state a side: 0 the width, 1 the height.
_SIDES = {0x0100: 0, 0x0101: 1, 0xA002: 0, 0xA003: 1}
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
    try:
        if not exif and image.format == "TIFF":
            exif = _exif_of_tiff(image)
        if isinstance(exif, Image.Exif):
            exif = exif.tobytes()
    except Exception as error:  # noqa: BLE001  a damaged directory raises nearly anything; the pixels are still good
        notes.append(f"EXIF dropped: it is damaged ({one_line(error)})")
        exif = b""
    return bare(exif) if isinstance(exif, bytes) else b""


def _exif_of_tiff(image: Image.Image) -> bytes:
    """The tags of a TIFF file that are about the photograph. Orientation is not among them: Pillow has applied it."""
    found = image.getexif()
    kept = Image.Exif()
    for tag in _DESCRIPTIVE_TAGS:
        if tag in found:
            kept[tag] = found.get_ifd(tag) if tag in (0x8769, 0x8825) else found[tag]
    return kept.tobytes() if len(kept) else b""


def parsed_exif(exif: Any) -> Image.Exif | None:
    """An EXIF block as Pillow reads it; None where there is none that it can read, or one that takes much to read."""
    found = Image.Exif()
    if not _is_light(bare(exif or b"")):
        return None
    try:
        found.load(exif or b"")
        found.tobytes()
    except Exception:  # noqa: BLE001  damaged blocks raise nearly anything
        return None
    return found if len(found) else None


def prefixed_exif(exif: bytes) -> bytes:
    """An EXIF block as a JPEG holds it, with exactly one prefix."""
    return _EXIF_PREFIX + bare(exif)


def bare(exif: bytes) -> bytes:
    """An EXIF block without its prefix, which some writers set twice, and readers take off as often as it is there."""
    return re.sub(rb"\A(?:Exif\0\0)+", b"", exif)


def take_orientation(exif: bytes) -> tuple[int, bytes]:
    """The Orientation (1..8) that `exif` asks for, and `exif` with that tag set to 1. A damaged block stays.

    Where the tag stands twice, the first one counts, and none stays that asks for anything: readers differ.
    """
    first, orientation, upright = _first_directory(exif), 1, exif
    for number, entry in enumerate(_entries(exif, first)):
        if entry.tag != _ORIENTATION:
            continue
        found = entry.number(exif)
        if found is None:  # of a type that it must not have, which some readers take nevertheless
            place, order = first + 2 + 12 * number, _order(exif) or "<"
            upright = upright[: place + 2] + struct.pack(order + "HIHH", 3, 1, 1, 0) + upright[place + 12 :]
        elif 2 <= found <= 8:
            orientation = found if orientation == 1 else orientation
            upright = entry.with_numbers(upright, [1])
    return orientation, upright


def upright(exif: bytes, orientation: int, width: int, height: int) -> tuple[bytes, bool]:
    """`exif` for pixels that have been put upright; and whether a thumbnail was dropped from it.

    Sides become those of the upright picture, subject areas and places are turned, the thumbnail, which is not upright,
    is left out. Nothing else moves, so that offsets in maker notes stay valid.

    Args:
        exif: a TIFF structure without prefix; a damaged block stays as it is.
        orientation: as it was, 1 to 8; 1 for pixels that are cut or scaled.
        width, height: of the upright picture, in pixels.
    """
    first = _first_directory(exif)
    entries = list(_entries(exif, first))
    sub = next((entry.number(exif) for entry in entries if entry.tag == _EXIF_DIRECTORY), None)
    entries += _entries(exif, sub or 0)
    for entry in entries:
        if entry.tag in _SIDES:
            exif = entry.with_numbers(exif, [(width, height)[_SIDES[entry.tag]]])
        elif entry.tag in (_SUBJECT_AREA, _SUBJECT_LOCATION):
            numbers = entry.numbers(exif)
            if 2 <= len(numbers) <= 4:
                x, y = _turned(numbers[0], numbers[1], orientation, width, height)
                rest = numbers[:1:-1] if orientation >= 5 else numbers[2:]
                exif = entry.with_numbers(exif, [x, y, *rest])
    return _without_thumbnail(exif, first)


def without_gps(exif: bytes) -> bytes:
    """`exif` without the directory that says where the picture was taken: its bytes become zeros.

    A block in which that cannot be done becomes empty. Maker notes, whose form is each maker's own, may hold a place as
    well.
    """
    order, first = _order(exif), _first_directory(exif)
    entries = list(_entries(exif, first))
    number = next((i for i, entry in enumerate(entries) if entry.tag == _GPS_DIRECTORY), None)
    if order is None or number is None:
        return exif
    directory = entries[number].number(exif) or 0
    inner = list(_entries(exif, directory))
    if not inner or len(inner) > _MAX_GPS_ENTRIES:
        return b""
    end = first + 2 + 12 * len(entries) + 4
    if end > len(exif):
        return b""
    clean = bytearray(exif)
    for start, size in [
        (directory, 2 + 12 * len(inner)),
        *((entry.place, entry.n * _SIZES.get(entry.kind, 1)) for entry in inner),
    ]:
        stop = min(start + size, len(exif))
        if start < 8 or (start < end and stop > first):
            return b""
        clean[start:stop] = bytes(max(0, stop - start))
    # The entries behind it move up, and so does the link to the next directory.
    place = first + 2 + 12 * number
    clean[place:end] = exif[place + 12 : end] + bytes(12)
    struct.pack_into(order + "H", clean, first, len(entries) - 1)
    return bytes(clean)


def _turned(x: int, y: int, orientation: int, width: int, height: int) -> tuple[int, int]:
    """Where `orient` puts a pixel of a picture that is `width` x `height` afterwards."""
    if orientation >= 5:
        x, y = y, x
    if orientation in (3, 4, 7, 8):
        y = height - 1 - y
    if orientation in (2, 3, 6, 7):
        x = width - 1 - x
    return max(0, x), max(0, y)


def _without_thumbnail(exif: bytes, first: int) -> tuple[bytes, bool]:
    """`exif` whose first directory has no successor, which describes the thumbnail; cut where that was the end."""
    order = _order(exif)
    if order is None or first + 2 > len(exif):
        return exif, False
    place = first + 2 + 12 * struct.unpack_from(order + "H", exif, first)[0]
    if place + 4 > len(exif) or exif[place : place + 4] == bytes(4):
        return exif, False
    (second,) = struct.unpack_from(order + "I", exif, place)
    numbers = {entry.tag: entry.number(exif) for entry in _entries(exif, second)}
    exif = exif[:place] + bytes(4) + exif[place + 4 :]
    start, length = numbers.get(_THUMBNAIL_OFFSET) or 0, numbers.get(_THUMBNAIL_BYTES) or 0
    if place < second < start and length and len(exif) - 2 <= start + length <= len(exif):
        exif = exif[:start]
    return exif, bool(length)


def of_resolution(x: float, y: float) -> bytes:
    """An EXIF block that states a resolution in dots per inch, and nothing else."""
    block = Image.Exif()
    block[_X_RESOLUTION], block[_Y_RESOLUTION], block[_RESOLUTION_UNIT] = x, y, 2
    return bare(block.tobytes())


def resolution_of(exif: bytes) -> tuple[float, float] | None:
    """The resolution that an EXIF block states, in dots per inch; None where it states none."""
    found = dict(parsed_exif(exif) or {})
    try:
        x, y = (float(found[tag]) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
        unit = {2: 1.0, 3: 2.54}[found.get(_RESOLUTION_UNIT, 2)]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (x * unit, y * unit) if 0 < x < 1e6 and 0 < y < 1e6 else None


def described(exif: bytes) -> dict[str, str]:
    """Names and values of the tags of an EXIF block, its sub-directory and its place, as texts; none where damaged."""
    found = parsed_exif(exif)
    if found is None:
        return {}
    texts = {}
    for directory, names in ((0, ExifTags.TAGS), (_EXIF_DIRECTORY, ExifTags.TAGS), (_GPS_DIRECTORY, ExifTags.GPSTAGS)):
        tags = found.get_ifd(directory) if directory else found
        for tag, value in tags.items():
            if not directory and tag in (_EXIF_DIRECTORY, _GPS_DIRECTORY):
                continue
            text = f"{len(value)} bytes" if isinstance(value, bytes) and len(value) > 16 else str(value)
            texts[str(names.get(tag, f"0x{tag:04X}"))] = text.strip("\0 ")
    return texts


class _Entry(NamedTuple):
    """An entry of a directory: tag, type, format of struct where it holds whole numbers, count, and their place."""

    tag: int
    kind: int
    form: str
    n: int
    place: int

    def numbers(self, exif: bytes) -> list[int]:
        size = struct.calcsize(self.form) * self.n
        if not self.form or self.n > 4 or self.place + size > len(exif):
            return []
        return list(struct.unpack_from(f"{self.form[0]}{self.n}{self.form[1]}", exif, self.place))

    def number(self, exif: bytes) -> int | None:
        numbers = self.numbers(exif)
        return numbers[0] if len(numbers) == 1 else None

    def with_numbers(self, exif: bytes, numbers: list[int]) -> bytes:
        """`exif` with other numbers here, if they fit."""
        try:
            data = struct.pack(f"{self.form[0]}{self.n}{self.form[1]}", *numbers)
        except (struct.error, IndexError):
            return exif
        inside = self.place + len(data) <= len(exif)
        return exif[: self.place] + data + exif[self.place + len(data) :] if inside else exif


def _order(exif: bytes) -> str | None:
    return {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])


def _first_directory(exif: bytes) -> int:
    order = _order(exif)
    return struct.unpack_from(order + "I", exif, 4)[0] if order and len(exif) >= 10 else 0


def _entries(exif: bytes, directory: int) -> Iterator[_Entry]:
    """The entries of the directory at an offset; none where the block is damaged.

    A TIFF structure (TIFF 6.0, section 2) begins with the byte order, the number 42 and the offset of the first
    directory. A directory is a count and that many entries of 12 bytes: tag, type, count and value, or the value's
    offset where it takes more than 4 bytes.
    """
    order = _order(exif)
    if order is None or not 8 <= directory <= len(exif) - 2:
        return
    (count,) = struct.unpack_from(order + "H", exif, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, n = struct.unpack_from(order + "HHI", exif, entry)
        form = {1: "B", 3: "H", 4: "I"}.get(kind, "")
        place = entry + 8
        if _SIZES.get(kind, 1) * n > 4:
            (place,) = struct.unpack_from(order + "I", exif, place)
        yield _Entry(tag, kind, order + form if form else "", n, place)


def _is_light(exif: bytes) -> bool:
    """Whether Pillow reads a block in time and memory that follow its bytes.

    Pillow makes an object of every number: 15 million of them, which a file can hold as a few kB of zeros deflated,
    take gigabytes and a quarter of a minute. It may also read values that share their bytes once for each.
    """
    entries = list(_entries(exif, _first_directory(exif)))
    for tag in (_EXIF_DIRECTORY, _GPS_DIRECTORY, _INTEROPERABILITY):
        directory = next((entry.number(exif) for entry in entries if entry.tag == tag), None)
        entries += _entries(exif, directory or 0)
    n_numbers = sum(entry.n for entry in entries if entry.kind not in _BYTES)
    n_bytes = sum(_SIZES.get(entry.kind, 1) * entry.n for entry in entries)
    return n_numbers <= _MAX_NUMBERS and n_bytes <= 2 * len(exif)


def orient(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """`pixels` (H, W) or (H, W, C), turned and mirrored as EXIF's Orientation asks (EXIF 2.32, 4.6.4.A); contiguous."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
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
