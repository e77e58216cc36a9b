"""Metadata of a picture taken away, and replaced by those of files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from hpcmcodec.errors import InputError
from hpcmcodec.image import colour, exif, xmp

if TYPE_CHECKING:
    from hpcmcodec.image.picture import Picture

_CHUNKS = {"exif": ("EXIF",), "xmp": ("XMP",), "icc": ("ICC",), "text": ("IPTC", "TEXT")}


def stripped(picture: Picture, kinds: Collection[str]) -> Picture:
    """The picture without some kinds of metadata.

    Args:
        picture: the picture.
        kinds: of `formats.METADATA_KINDS`. "gps" are places in EXIF and XMP, "text" are texts and IPTC, "icc" is the
            colour space, in whatever form; "all" is everything but the colour space, without which a picture would look
            different.
    """
    dropped = {name for kind in kinds for name in _CHUNKS.get(kind, ())}
    if "all" in kinds:
        dropped |= {name for names in _CHUNKS.values() for name in names if name != "ICC"}
    metadata = {name: data for name, data in picture.metadata.items() if name not in dropped}
    if "gps" in kinds:
        for name, clean in (("EXIF", exif.without_gps), ("XMP", xmp.without_gps)):
            if name in metadata:
                metadata[name] = clean(metadata[name])
    return replace(picture, metadata=metadata, cicp=None if "icc" in kinds else picture.cicp)


def resized(picture: Picture) -> Picture:
    """A picture that was cut or scaled, with its own sides in EXIF and XMP, and no thumbnail there."""
    height, width, _ = picture.pixels.shape
    metadata = dict(picture.metadata)
    if "EXIF" in metadata:
        metadata["EXIF"], _ = exif.upright(metadata["EXIF"], 1, width, height)
    if "XMP" in metadata:
        metadata["XMP"] = xmp.upright(metadata["XMP"], width, height)
    return replace(picture, metadata=metadata)


def kept(picture: Picture, kinds: Collection[str]) -> Picture:
    """The picture with these kinds of metadata alone; "all" keeps everything."""
    if "all" in kinds:
        return picture
    picture = stripped(picture, [kind for kind in _CHUNKS if kind not in kinds])
    return picture if "gps" in kinds or "exif" in kinds or "xmp" in kinds else stripped(picture, ["gps"])


def with_exif(picture: Picture, block: bytes) -> Picture:
    """The picture with another EXIF block, which a prefix may precede. Raises InputError where it is none.

    An Orientation in it is set to 1: the picture is upright.
    """
    _, block = exif.take_orientation(exif.bare(block))
    if exif.parsed_exif(block) is None:
        raise InputError("not an EXIF block: it has no TIFF header, or no directory that can be read")
    return replace(picture, metadata={**picture.metadata, "EXIF": block})


def with_xmp(picture: Picture, packet: bytes) -> Picture:
    """The picture with another XMP packet. Raises InputError where it is no well-formed XML.

    An Orientation in it is set to 1: the picture is upright.
    """
    if not xmp.well_formed(packet):
        raise InputError("not an XMP packet: it is no well-formed XML in UTF-8, or has a document type")
    return replace(picture, metadata={**picture.metadata, "XMP": xmp.unturned(packet)})


def with_icc(picture: Picture, icc: bytes) -> Picture:
    """The picture whose pixels are to be understood by a profile. Raises InputError where that is none of RGB."""
    if colour.space_of(icc) != b"RGB ":
        raise InputError("not an ICC profile of RGB")
    return replace(picture, metadata={**picture.metadata, "ICC": icc}, cicp=None)
