"""Writes pictures as image files, with their colour space and metadata as far as each format can hold them."""

from __future__ import annotations

import io
import os
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from PIL import Image

from hpcmcodec.container import check_metadata, text_of
from hpcmcodec.errors import InputError, UnsupportedError
from hpcmcodec.formats import FORMATS
from hpcmcodec.image import colour, isobmff, netpbm, png, tiff
from hpcmcodec.image.colour import Cicp
from hpcmcodec.image.exif import XMP_TAG, bare, parsed_exif, prefixed_exif, resolution_of
from hpcmcodec.image.jpeg import photoshop_segment
from hpcmcodec.image.picture import Picture, flattened, scaled

if TYPE_CHECKING:
    from collections.abc import Mapping

# A segment of JPEG states its length in 16 bits, which leaves 65533 bytes. The name before XMP takes 29 of them; the 6
# of EXIF's prefix are part of the block that is measured.
_MAX_JPEG_METADATA = 65533 - 29
# Pillow and others refuse a PNG whose profile is longer than this once inflated.
_MAX_PNG_PROFILE = 1_000_000
_IPTC_TAG, _ICC_TAG = 33723, 34675
_PNG_BITS = 24  # where a PNG says its bits a sample, and behind them its colour type


_ALL = ("EXIF", "IPTC", "TEXT", "XMP")
_QUALITY: Mapping[str, Mapping[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 90, "subsampling": "4:4:4"},
    "PNG": {"compress_level": 1},  # about as small as Pillow's default level for photographs, in a third of the time
}


def write(
    picture: Picture, form: str, file: BinaryIO, *, background: tuple[int, int, int] = (255, 255, 255)
) -> list[str]:
    """Writes a picture as an image file.

    JPEG is written at quality 95 and AVIF at 90, both without reducing colour; WebP and TIFF losslessly.

    Args:
        picture: of any depth. It is written with 16 bits where it has more than 8 and the format holds them.
        form: a key of `formats.FORMATS`.
        file: to write to, from where it stands.
        background: 8-bit RGB behind transparent pixels where the format has no alpha.

    Returns:
        A line for each thing that the format cannot hold.

    Raises:
        UnsupportedError: a side is longer than the format's longest.
    """
    target = FORMATS[form]
    height, width, _ = picture.pixels.shape
    if max(width, height) > target.max_side:
        raise UnsupportedError(
            f"{target.name} holds sides up to {target.max_side} pixels, the picture has {width}x{height}"
        )
    notes: list[str] = []
    if picture.alpha is not None and not target.alpha:
        notes.append(f"{target.name} holds no transparency: the picture is put on a background")
        picture = flattened(picture, background)
    if picture.depth > 8 and not target.deep:
        notes.append(f"{target.name} is written with 8 bits: the picture's {picture.depth} are reduced")
    if not target.colour:
        picture = _without_profile(picture, target.name, notes)
    elif picture.cicp and not target.cicp and not _profile(picture):
        notes.append(f"{target.name} cannot name the colour space ({picture.cicp}): it will be shown as sRGB")
    icc = b"" if picture.grey else _profile(picture)
    if target.name == "PNG" and picture.depth > 8 and len(icc) > _MAX_PNG_PROFILE:
        notes.append(f"a profile of {len(icc)} bytes, which readers of PNG refuse, is left out")
    lost = [name for name in picture.metadata if name in _ALL and name not in target.metadata]
    if lost == ["TEXT"] and target.name == "JPEG" and list(text_of(picture.metadata["TEXT"])) == ["Comment"]:
        lost = []
    if lost:
        notes.append(f"{target.name} cannot hold all metadata: {', '.join(lost)} left out")
    if target.name == "TIFF" or (picture.depth > 8 and target.deep):
        _write_samples(picture, target.name, file)
        return notes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        to_image(picture).save(file, target.name, **_QUALITY.get(target.name, {}))
    return notes + [str(warning.message) for warning in caught if warning.category is UserWarning]


def _without_profile(picture: Picture, name: str, notes: list[str]) -> Picture:
    """The picture in sRGB for a format without profiles, or a note where that cannot be had."""
    icc = _profile(picture)
    if not icc and not picture.cicp:
        return picture
    converted = colour.to_srgb(Image.fromarray(picture.pixels), icc) if icc and picture.depth == 8 else None
    if converted is None:
        notes.append(f"{name} cannot hold the colour space ({picture.cicp or 'a profile'}): it will be shown as sRGB")
        return picture
    notes.append(f"{name} cannot hold the colour space ({picture.cicp or 'a profile'}): converted to sRGB")
    metadata = {key: value for key, value in picture.metadata.items() if key != "ICC"}
    return replace(picture, pixels=np.asarray(converted), metadata=metadata, cicp=None)


# ------------------------------------------------------------------------------------------------- Pillow's images


class DecodedImage(Image.Image):
    """A PIL image whose `save` writes the colour space and the metadata of its `info` by itself.

    Pillow's writers expect them as options; from `info` some of them take the profile, and no more. Copies, crops and
    conversions are of this class too. The profile describes RGB, so a copy in another mode is written without it.
    """

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002  Pillow's name
        """`Image.save`, with the metadata of `info`. A caller's options override them: ``exif=b""`` leaves EXIF out.

        Metadata that a format cannot hold are left out: with a warning EXIF or XMP of more than 64 KB in a JPEG;
        damaged EXIF where a writer or the next reader would fail on it; all of them in formats without metadata.
        """
        form = _format_of(fp, format)
        options = self._options(form) | params
        cicp = self.info.get("cicp") if self.mode in ("L", "LA", "RGB", "RGBA") else None
        image: Image.Image = self
        if form == "PNG" and len(options.get("icc_profile") or b"") > _MAX_PNG_PROFILE:
            image, options["icc_profile"] = self._in_srgb(options["icc_profile"]), None
        if cicp is None or form not in ("PNG", "AVIF"):
            Image.Image.save(image, fp, format, **options)
            return
        whole = io.BytesIO()
        Image.Image.save(image, whole, form, **options)
        data = whole.getvalue()
        if form == "PNG":
            data = png.with_chunks(data, [png.cicp_chunk(Cicp(*cicp))])
        else:
            data = isobmff.with_cicp(data, Cicp(*cicp))
        if hasattr(fp, "write"):
            fp.write(data)
        else:
            Path(os.fsdecode(fp)).write_bytes(data)

    def _in_srgb(self, icc: bytes) -> Image.Image:
        """The image without a profile that readers of PNG would refuse."""
        rgb = colour.to_srgb(self.convert("RGB"), icc)
        if rgb is None:
            warnings.warn(f"a profile of {len(icc)} bytes, which readers of PNG refuse, is left out", stacklevel=3)
            return self
        warnings.warn(f"colours converted to sRGB: readers of PNG refuse a profile of {len(icc)} bytes", stacklevel=3)
        if self.mode == "RGBA":
            rgb.putalpha(self.getchannel("A"))
        return rgb

    def _new(self, im: Any) -> Image.Image:
        # Pillow calls this whenever it makes an image from another one.
        new = super()._new(im)
        new.__class__ = type(self)
        return new

    def _options(self, form: str) -> dict[str, Any]:
        icc, exif, xmp, iptc = (self.info.get(key) for key in ("icc_profile", "exif", "xmp", "iptc"))
        options: dict[str, Any] = {"icc_profile": icc if self.mode in ("RGB", "RGBA") else None}
        if form == "AVIF" and self.info.get("cicp"):
            options["icc_profile"] = None  # its box names the same space
        if form == "JPEG":
            exif, xmp = (_that_fits(block, name) for block, name in ((exif, "EXIF"), (xmp, "XMP")))
            options["extra"] = photoshop_segment(iptc) if iptc else b""
            options["comment"] = (self.info.get("text") or {}).get("Comment", "").encode()[:65533]
        if form in ("JPEG", "PNG", "BMP") and exif and (dpi := resolution_of(bare(exif))):
            options["dpi"] = dpi
        parsed = parsed_exif(exif) if form not in ("PNG", "WEBP") else None
        if form == "TIFF":  # EXIF, XMP and IPTC are tags of its directory
            tags = Image.Exif() if parsed is None else parsed
            for tag, block in ((XMP_TAG, xmp), (_IPTC_TAG, iptc)):
                if block:
                    tags[tag] = block
            return options | ({"exif": tags} if len(tags) else {})
        if exif and (parsed is not None or form in ("PNG", "WEBP")):
            options["exif"] = exif
        if form == "PNG":
            options["pnginfo"] = _png_info(xmp, iptc, self.info.get("text") or {})
        elif xmp:
            options["xmp"] = xmp
        return options


def _png_info(xmp: bytes | None, iptc: bytes | None, texts: Mapping[str, str]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp)
    if iptc:
        info.add(*png.raw_profile("iptc", iptc))
    for keyword, text in texts.items():
        info.add(*png.text_chunk(keyword, text))
    return info


def _format_of(fp: Any, form: str | None) -> str:
    """Pillow's name of the format that `Image.save` would choose; "" where it would choose none."""
    if form:
        return form.upper()
    name = fp if isinstance(fp, (str, bytes, os.PathLike)) else getattr(fp, "name", "")
    suffix = Path(os.fsdecode(name)).suffix.lower() if isinstance(name, (str, bytes, os.PathLike)) else ""
    return str(Image.registered_extensions().get(suffix, ""))


def _that_fits(block: Any, name: str) -> Any:
    """`block` where it fits into a segment of a JPEG; otherwise None, with a warning."""
    if block and len(block) > _MAX_JPEG_METADATA:
        warnings.warn(f"{name} of {len(block)} bytes does not fit into a JPEG and is left out", stacklevel=4)
        return None
    return block


def to_image(picture: Picture) -> DecodedImage:
    r"""A PIL image of 8 bits in mode L, LA, RGB or RGBA, with the metadata where Pillow's readers put them.

    ``info`` gets "icc_profile", "exif" and "xmp", and beyond Pillow's names "iptc" (bytes), "text" (a dictionary) and
    "cicp" (two code points, beside a profile of the same space). "exif" has the prefix ``Exif\0\0``: Pillow's JPEG
    writer wants it, and its other writers take it off.
    """
    image = Image.fromarray(np.ascontiguousarray(_samples(picture, 8)))
    image.__class__ = DecodedImage
    metadata, info = picture.metadata, image.info
    if icc := _profile(picture):
        info["icc_profile"] = icc
    if picture.cicp:
        info["cicp"] = tuple(picture.cicp)
    if "EXIF" in metadata:
        info["exif"] = prefixed_exif(metadata["EXIF"])
    if "XMP" in metadata:
        info["xmp"] = metadata["XMP"]
    if "IPTC" in metadata:
        info["iptc"] = metadata["IPTC"]
    if "TEXT" in metadata:
        info["text"] = text_of(metadata["TEXT"])
    return cast("DecodedImage", image)


def _profile(picture: Picture) -> bytes:
    """The ICC profile of the samples: the code points' own where they are known, as these go before a profile."""
    of_points = colour.profile_of(picture.cicp) if picture.cicp else b""
    return of_points or picture.metadata.get("ICC", b"")


def write_png(image: DecodedImage, file: BinaryIO) -> None:
    """Writes `image` as PNG, with the ICC profile, EXIF and XMP of its ``info``."""
    image.save(file, format="PNG", **_QUALITY["PNG"])


# --------------------------------------------------------------------------------------------------------- samples


def _samples(picture: Picture, depth: int) -> Any:
    """(H, W) greys, or (H, W, 2..4) levels of `depth` bits, with opacity where there is any."""
    peak, wanted = (1 << picture.depth) - 1, (1 << depth) - 1
    if picture.grey:
        # The mean is nearest to what was coded, which had the same level in all three channels.
        total = picture.pixels.sum(axis=2, dtype=np.uint32)
        levels: Any = scaled(((total + 1) // 3).astype(picture.pixels.dtype), peak, wanted)
        levels = levels[..., None] if picture.alpha is not None else levels
    else:
        levels = scaled(picture.pixels, peak, wanted)
    if picture.alpha is None:
        return levels
    return np.concatenate((levels, scaled(picture.alpha, peak, wanted)[..., None]), axis=2)


def _write_samples(picture: Picture, form: str, file: BinaryIO) -> None:
    """Writes TIFF of 8 or 16 bits, or PPM or PNG of 16."""
    samples = _samples(picture, 16 if picture.depth > 8 else 8)
    samples = samples if samples.ndim == 3 else samples[..., None]
    metadata = picture.metadata
    dpi = resolution_of(metadata.get("EXIF", b""))
    icc = b"" if picture.grey else _profile(picture)
    if form == "PPM":
        netpbm.write(samples, 16, file)
    elif form == "TIFF":
        blocks = {_ICC_TAG: icc, XMP_TAG: metadata.get("XMP", b""), _IPTC_TAG: metadata.get("IPTC", b"")}
        exif = parsed_exif(metadata.get("EXIF"))
        tiff.write(samples, file, {tag: block for tag, block in blocks.items() if block}, exif)
    else:
        png.write_deep(samples, file, _chunks(picture, icc, dpi))


def _chunks(picture: Picture, icc: bytes, dpi: tuple[float, float] | None) -> list[tuple[bytes, bytes]]:
    """The ancillary chunks of a PNG."""
    import zlib

    metadata = picture.metadata
    chunks = [png.cicp_chunk(picture.cicp)] if picture.cicp else []
    if 0 < len(icc) <= _MAX_PNG_PROFILE:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
    if dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(v / 0.0254) for v in dpi), 1)))
    if "EXIF" in metadata:
        chunks.append((b"eXIf", metadata["EXIF"]))
    if "XMP" in metadata:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata["XMP"]))
    if "IPTC" in metadata:
        chunks.append(png.raw_profile("iptc", metadata["IPTC"]))
    chunks += [png.text_chunk(*pair) for pair in text_of(metadata.get("TEXT", b"")).items()]
    return chunks


# ----------------------------------------------------------------------------------------------------------- alpha


def alpha_png(picture: Picture) -> bytes:
    """The opacity of a picture as a grey PNG of 8 bits, or of 16 where the picture has more than 8."""
    alpha = picture.alpha
    file = io.BytesIO()
    if picture.depth == 8:
        Image.fromarray(np.ascontiguousarray(alpha)).save(file, "PNG", optimize=True)
    else:
        deep = scaled(cast("Any", alpha), (1 << picture.depth) - 1, 65535)
        png.write_deep(deep[..., None], file, (), level=9)
    return file.getvalue()


def with_alpha_chunk(picture: Picture) -> Picture:
    """The picture with its opacity among the metadata, as the chunk ALPH, where it has any.

    Raises UnsupportedError where a file could not hold all of them.
    """
    if picture.alpha is not None:
        picture = replace(picture, metadata={**picture.metadata, "ALPH": alpha_png(picture)})
    check_metadata(picture.metadata)
    return picture


def read_alpha(data: bytes, width: int, height: int, depth: int) -> Any:
    """The opacity (height, width) in levels of `depth` bits that `alpha_png` has written.

    Raises InputError where the PNG is none, of another size, or anything else than greys of 8 or 16 bits.
    """
    import importlib

    from hpcmcodec.image.samples import read_samples

    importlib.import_module("PIL.PngImagePlugin")
    if not data.startswith(png.SIGNATURE):
        raise InputError("the alpha channel is no PNG")
    try:
        data = png.bare(data)
        found = png.look(io.BytesIO(data))
        bits, kind = data[_PNG_BITS : _PNG_BITS + 2]
        if found.image.size != (width, height) or bits not in (8, 16) or kind != 0:
            raise InputError(
                f"the alpha channel is a PNG of {found.image.size[0]}x{found.image.size[1]}, {bits} bits, colour type "
                f"{kind}, not {width}x{height} greys of 8 or 16 bits"
            )
        read = read_samples(found)
    except InputError as error:
        raise InputError(f"the alpha channel: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise InputError(f"the alpha channel cannot be read ({' '.join(str(error).split())})") from error
    return scaled(read.levels[..., 0], (1 << read.depth) - 1, (1 << depth) - 1)


def thumbnail_of_alpha(alpha: Any, width: int, height: int) -> Any:
    """Opacity of 8 bits (height, width): the means of an opacity eight times as large."""
    return np.asarray(Image.fromarray(alpha).reduce(8).resize((width, height)))
