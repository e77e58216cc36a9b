"""Metadata from a file to a `Picture`: what is kept, what is mended, and a note for what is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcmcodec.container import MAX_TEXTS, packed_text, text_of
from hpcmcodec.errors import InputError
from hpcmcodec.image import exif, xmp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hpcmcodec.image.picture import Found

_MAX_METADATA = 1 << 25  # bytes; a .hpcm file may have 2^26 with its alpha
_SCREEN_DPI = (0, 1, 72, 96)  # what writers state that know no resolution


def take_metadata(found: Found) -> tuple[dict[str, bytes], int]:
    """ICC, EXIF, IPTC, TEXT and XMP of a decoded image, by name; and the orientation in which its pixels are to be put.

    The metadata speak of the picture after it has been put upright.
    """
    image, notes = found.image, found.notes
    block = found.metadata.get("EXIF") or exif.exif_of(image, notes)
    packet = found.metadata.get("XMP") or exif.xmp_of(image)
    orientation, block = exif.take_orientation(exif.bare(block))
    turned = orientation if not found.turned else found.turned
    if found.turned:
        orientation = 1  # the reader has turned the pixels
    if turned != 1:
        width, height = image.size
        if orientation >= 5:
            width, height = height, width
        block, without_thumbnail = exif.upright(block, turned, width, height)
        notes += ["EXIF's thumbnail dropped: it is not upright"] if without_thumbnail else []
        packet = xmp.upright(packet, width, height)
    block = _with_resolution(found, block)
    metadata = {
        "ICC": found.metadata.get("ICC") or image.info.get("icc_profile") or b"",
        "EXIF": block,
        "IPTC": found.metadata.get("IPTC", b""),
        "TEXT": _text(found),
        "XMP": packet,
    }
    for name in sorted(metadata, key=lambda name: len(metadata[name]), reverse=True):
        if sum(map(len, metadata.values())) > _MAX_METADATA:
            notes.append(f"{name} dropped: {len(metadata[name])} bytes are too many")
            metadata[name] = b""
    return {name: data for name, data in metadata.items() if data}, orientation


def usable(metadata: Mapping[str, bytes]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Metadata of a .hpcm file as they go with decoded pixels, and a note for what is dropped.

    The pixels are upright, so EXIF and XMP ask nobody to turn them again. Texts of another form than the format's are
    dropped, and so is what no image is encoded with: writers of images would copy it several times.
    """
    kept, notes = dict(metadata), []
    for name in set(kept) - {"ALPH"}:
        if len(kept[name]) > _MAX_METADATA:
            notes.append(f"{name} dropped: {len(kept.pop(name))} bytes are too many")
    if "EXIF" in kept:
        kept["EXIF"] = exif.take_orientation(exif.bare(kept["EXIF"]))[1]
    if "XMP" in kept:
        kept["XMP"] = xmp.unturned(kept["XMP"])
    try:
        text_of(kept.get("TEXT", b""))
    except InputError as error:
        del kept["TEXT"]
        notes.append(f"texts dropped: {error}")
    return kept, tuple(notes)


def _text(found: Found) -> bytes:
    """The texts of a file; of equal keywords the texts are joined by line ends."""
    texts: dict[str, str] = {}
    for keyword, text in found.text:
        key, value = keyword.replace("\0", "").strip(), text.replace("\0", "")
        if key and value:
            texts[key] = f"{texts[key]}\n{value}" if key in texts else value
    if len(texts) > MAX_TEXTS:
        found.notes.append(f"texts dropped: {len(texts)} of them are too many")
        return b""
    return packed_text(texts)


def _with_resolution(found: Found, block: bytes) -> bytes:
    """EXIF with the file's resolution where there is no EXIF; elsewhere a note where it does not state the same."""
    dpi = found.dpi or found.image.info.get("dpi")
    try:
        x, y = (round(float(v), 2) for v in dpi or (0, 0))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return block
    if not (0 < x < 1e6 and 0 < y < 1e6) or (round(x) in _SCREEN_DPI and round(y) in _SCREEN_DPI):
        return block
    if not block:
        return exif.of_resolution(x, y)
    stated = exif.resolution_of(block)
    if stated is None or abs(stated[0] - x) > 1 or abs(stated[1] - y) > 1:
        found.notes.append(f"resolution of {x:g}x{y:g} dpi dropped: EXIF states none, or another one")
    return block
