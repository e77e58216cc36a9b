r"""Reads and writes image files: 8-bit RGB pixels, metadata as bytes, and a note for each conversion.

The codec knows one kind of picture, (H, W, 3) uint8 RGB. `load` turns other kinds into it:

    ============================  ===================================================================================
    input                         treatment
    ============================  ===================================================================================
    RGB, 8 bits                   taken as it is, its ICC profile kept
    greyscale, bilevel            converted to sRGB through a greyscale profile; without one repeated in R, G and B
    palette, YCbCr                converted
    9 to 16 bits per sample       reduced to 8 bits
    CMYK                          converted to sRGB through its profile; without one by the plain formula
    alpha opaque everywhere       dropped
    any other alpha, animation,   refused (`UnsupportedError`)
    several pages, Lab, 32 bits
    ============================  ===================================================================================

Every row but the first leaves a line in `Picture.notes`: nothing of the input is changed or dropped in silence.
EXIF's Orientation is applied to the pixels, and set to 1 in the EXIF that is kept, so that nobody applies it again.
Only that value is overwritten: thumbnails and maker notes, whose offsets count from the block's start, stay valid.

Metadata are bytes by name: "ICC" is a profile of the RGB pixels (without one they are sRGB); "EXIF" is a TIFF structure
*without* the prefix ``Exif\0\0``, as PNG, WebP and AVIF hold it; "XMP" is an XMP packet.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image

from hpcmcodec.container import max_bytes, take
from hpcmcodec.errors import HpcmError, InputError, UnsupportedError
from hpcmcodec.metadata import XMP_TAG, exif_of, one_line, orient, parsed_exif, prefixed_exif, take_orientation, xmp_of

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    Pixels: TypeAlias = npt.NDArray[np.uint8]
    ImageSource: TypeAlias = (
        "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | Pixels | Picture"
    )

__all__ = ["DecodedImage", "Picture", "load", "to_image", "write_png"]

# The formats that are read: signature, Pillow's name and module. This list replaces Image.open, which
# 1. warns of or refuses images by a limit that belongs to the whole process, while `max_pixels` belongs to one call;
# 2. would try every decoder of Pillow on a hostile file (EPS starts Ghostscript);
# 3. loads all 45 of Pillow's format modules for a file that no common one accepts.
_FORMATS = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", "JpegImagePlugin"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", "PngImagePlugin"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP", "WebPImagePlugin"),
    (re.compile(rb"....ftyp(avif|avis|mif1|msf1)", re.DOTALL), "AVIF", "AvifImagePlugin"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", "TiffImagePlugin"),
    (re.compile(rb"GIF8[79]a"), "GIF", "GifImagePlugin"),
    (re.compile(rb"P[1-6]\s"), "PPM", "PpmImagePlugin"),
    (re.compile(rb"BM"), "BMP", "BmpImagePlugin"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "), "JPEG2000", "Jpeg2KImagePlugin"),
)
_SIGNATURE_BYTES = 16
# AVIF and JPEG 2000 state their bit depth near the start; Pillow does not report it.
_DEPTH_BYTES = 1 << 16

# A segment of JPEG states its length in 16 bits, which leaves 65533 bytes. The name before XMP takes 29 of them; the 6
# of EXIF's prefix are part of the block that is measured.
_MAX_JPEG_METADATA = 65533 - 29
# Pillow's modes that `_to_rgb` converts, in words (RGB itself leaves no note), and some that it refuses.
_KINDS = {
    "RGB": "",
    "RGBX": "",
    "1": "black and white",
    "L": "greyscale",
    "P": "palette",
    "YCbCr": "YCbCr",
    "CMYK": "CMYK",
}
_REFUSED = {"I": "32-bit or signed integer pixels", "F": "floating-point pixels", "LAB": "Lab pixels"}


class Picture(NamedTuple):
    """An image as `load` returns it.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, contiguous, the right way up.
        metadata: bytes by name, "ICC", "EXIF" and "XMP" where present.
        notes: one line for each conversion that was made.
    """

    pixels: Pixels
    metadata: dict[str, bytes]
    notes: tuple[str, ...]


def load(source: ImageSource, *, max_pixels: int | None) -> Picture:
    """Reads an image as 8-bit RGB.

    Args:
        source: a path, the bytes of an image file, a binary file object (read from where it stands to its end), a PIL
            image, an array (H, W, 3) of uint8 in sRGB, or a `Picture`, which is returned as it is.
        max_pixels: the largest width * height that is read, checked before pixels are decoded; None lifts the limit.

    Raises:
        InputError: the file is missing, empty, of no known format, truncated or damaged.
        UnsupportedError: the image has more than `max_pixels` pixels, its file more than `container.max_bytes` bytes,
            its alpha is not opaque, it is an animation, or its pixels have no meaning in 8-bit RGB.
        TypeError, ValueError: the source is of another type, or the array of another shape or dtype.
    """
    if isinstance(source, Picture):
        _check_size(source.pixels.shape[1], source.pixels.shape[0], max_pixels)
        return source
    if isinstance(source, np.ndarray):
        return Picture(_check_array(source, max_pixels), {}, ())
    if isinstance(source, Image.Image):
        return _convert(source, b"", max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(io.BytesIO(source), max_pixels, seekable=True)
    if isinstance(source, (str, os.PathLike)):
        try:
            with Path(source).open("rb") as file:
                return _read(file, max_pixels, seekable=file.seekable())
        except HpcmError as error:
            raise type(error)(f"{os.fspath(source)}: {error}") from error
        except OSError as error:
            raise InputError(f"{os.fspath(source)}: {error.strerror or error}") from error
    if hasattr(source, "read"):
        return _read(source, max_pixels, seekable=False)
    raise TypeError(
        f"an image must be a path, bytes, a binary file, a PIL image or an array, not {type(source).__name__}"
    )


class DecodedImage(Image.Image):
    """A PIL image whose `save` writes the ICC profile, EXIF and XMP of its `info` by itself.

    Pillow's writers expect the three as options; from `info` some of them take the profile, and no more. Copies, crops
    and conversions are of this class too. The profile describes RGB, so a copy in another mode is written without it.
    """

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002  Pillow's name
        """`Image.save`, with the metadata of `info`. A caller's options override them: ``exif=b""`` leaves EXIF out.

        Metadata that a format cannot hold are left out: with a warning EXIF or XMP of more than 64 KB in a JPEG;
        damaged EXIF where a writer or the next reader would fail on it; all of them in formats without metadata.
        """
        super().save(fp, format, **(self._options(_format_of(fp, format)) | params))

    def _new(self, im: Any) -> Image.Image:
        # Pillow calls this whenever it makes an image from another one.
        new = super()._new(im)
        new.__class__ = type(self)
        return new

    def _options(self, form: str) -> dict[str, Any]:
        from PIL.PngImagePlugin import PngInfo

        icc, exif, xmp = (self.info.get(key) for key in ("icc_profile", "exif", "xmp"))
        options: dict[str, Any] = {"icc_profile": icc if self.mode in ("RGB", "RGBA") else None}
        if form == "JPEG":
            exif, xmp = (_that_fits(block, name) for block, name in ((exif, "EXIF"), (xmp, "XMP")))
        parsed = parsed_exif(exif) if form not in ("PNG", "WEBP") else None
        if form == "TIFF":  # EXIF and XMP are tags of its directory
            tags = Image.Exif() if parsed is None else parsed
            if xmp:
                tags[XMP_TAG] = xmp
            return options | ({"exif": tags} if len(tags) else {})
        if exif and (parsed is not None or form in ("PNG", "WEBP")):
            options["exif"] = exif
        if xmp and form == "PNG":
            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
        elif xmp:
            options["xmp"] = xmp
        return options


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


def to_image(pixels: Pixels, metadata: dict[str, bytes]) -> DecodedImage:
    r"""A PIL image in mode RGB of `pixels` (H, W, 3) uint8, with `metadata` where Pillow's readers put it.

    ``info`` gets "icc_profile", "exif" and "xmp", which ``save`` writes. "exif" has the prefix ``Exif\0\0``: Pillow's
    JPEG writer wants it, and its other writers take it off.
    """
    image = Image.fromarray(pixels)
    image.__class__ = DecodedImage
    if "ICC" in metadata:
        image.info["icc_profile"] = metadata["ICC"]
    if "EXIF" in metadata:
        image.info["exif"] = prefixed_exif(metadata["EXIF"])
    if "XMP" in metadata:
        image.info["xmp"] = metadata["XMP"]
    return cast("DecodedImage", image)


def write_png(image: DecodedImage, file: BinaryIO) -> None:
    """Writes `image` as PNG, with the ICC profile, EXIF and XMP of its ``info``.

    The compression level is 1: photographs get about as small as at Pillow's default level, in a third of the time.
    """
    image.save(file, format="PNG", compress_level=1)


# ---------------------------------------------------------------------------------------------------------- reading


def _read(file: BinaryIO, max_pixels: int | None, *, seekable: bool) -> Picture:
    """`load` for a binary file. One that is not seekable is first read into memory, from where it stands."""
    start = take(file, _DEPTH_BYTES)
    if not start:
        raise InputError("not a readable image: the file is empty")
    found = next(((name, module) for signature, name, module in _FORMATS if signature.match(start)), None)
    if found is None:
        known = ", ".join(name for _, name, _ in _FORMATS)
        raise InputError(f"not a readable image: no format that is read here ({known})")
    name, module = found
    # Only now, as a device may have no end. The limit is for readers of Pillow that take all of a file into memory.
    limit = max_bytes(max_pixels)
    if not seekable:
        file = io.BytesIO(start + take(file, None if limit is None else limit + 1 - len(start)))
    if limit is not None and file.seek(0, os.SEEK_END) > limit:
        raise UnsupportedError(
            f"the file has more than {limit} bytes, the limit for {max_pixels} pixels; raise max-pixels to allow it"
        )
    try:
        importlib.import_module(f"PIL.{module}")
        factory, accept = Image.OPEN[name]
        answer = accept(start[:_SIGNATURE_BYTES]) if accept else True
        if isinstance(answer, str):
            raise UnsupportedError(answer)
        file.seek(0)
        image = factory(file, "")
    except (HpcmError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UnsupportedError(f"more pixels than Pillow's {name} reader allows ({error})") from error
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything, down to TypeError
        raise InputError(f"not a readable image: damaged {name} header ({one_line(error)})") from error
    with image:
        if name == "PNG":
            _check_png_end(file)
        return _convert(image, start, max_pixels)


def _convert(image: Image.Image, start: bytes, max_pixels: int | None) -> Picture:
    """The picture in `image`, perhaps not decoded yet. `start`: the first bytes of its file, if it has one."""
    _check_size(image.width, image.height, max_pixels)
    notes: list[str] = []
    try:
        _check_single(image, notes)
        peak = _peak(image, start)
        image.load()
    except (HpcmError, MemoryError):
        raise
    except Exception as error:  # as in `_read`: damaged files raise nearly anything
        raise InputError(f"not a readable image: {one_line(error)}") from error
    # Decoding can enlarge a GIF: its first frame may be larger than the screen that its header states.
    _check_size(image.width, image.height, max_pixels)

    exif, xmp = exif_of(image, notes), xmp_of(image)
    icc = image.info.get("icc_profile") or b""
    image = _drop_opaque_alpha(image, notes)
    image = _reduce_to_8_bits(image, peak, notes)
    image, icc = _to_rgb(image, icc, notes)
    orientation, exif = take_orientation(exif)
    pixels = orient(np.asarray(image), orientation)
    if orientation != 1:
        # XMP may repeat EXIF's Orientation; a reader that prefers XMP would turn the picture a second time.
        xmp = re.sub(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)[2-8]""", rb"\g<1>1", xmp)
    metadata = {key: value for key, value in (("ICC", icc), ("EXIF", exif), ("XMP", xmp)) if value}
    return Picture(pixels, metadata, tuple(notes))


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    if width < 1 or height < 1:
        raise InputError(f"not a readable image: it has no pixels ({width}x{height})")
    if max_pixels is not None and width * height > max_pixels:
        raise UnsupportedError(
            f"{width}x{height} is {width * height} pixels, the limit is {max_pixels}; raise max-pixels to allow it"
        )


def _check_array(array: npt.NDArray[Any], max_pixels: int | None) -> Pixels:
    if array.dtype != np.uint8:
        raise TypeError(f"an array of pixels must be uint8, not {array.dtype}")
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"an array of pixels must have the shape (H, W, 3), not {array.shape}")
    _check_size(array.shape[1], array.shape[0], max_pixels)
    return np.ascontiguousarray(array)


def _check_single(image: Image.Image, notes: list[str]) -> None:
    """Refuses animations and several pages. Of a JPEG with depth or gain maps the first picture is the photograph."""
    if not getattr(image, "is_animated", False):
        return
    count = getattr(image, "n_frames", 2)
    if image.format == "MPO":
        notes.append(f"the first of {count} pictures in this JPEG is used")
    elif image.format == "TIFF":
        raise UnsupportedError(f"the file has {count} pages; only single pictures are supported")
    else:
        raise UnsupportedError(f"the image is an animation of {count} frames; only single pictures are supported")


def _check_png_end(file: BinaryIO) -> None:
    """Refuses a PNG that is cut behind its pixels: Pillow accepts it, without the EXIF and XMP that may follow them."""
    kept = file.tell()
    size = file.seek(0, os.SEEK_END)
    position, kind = len(b"\x89PNG\r\n\x1a\n"), b""
    while kind != b"IEND":
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        position += 12 + length  # length, kind and CRC take 4 bytes each
        if position > size:
            raise InputError("not a readable image: the PNG is truncated")
    file.seek(kept)


def _peak(image: Image.Image, start: bytes) -> int:
    """The largest value that a sample of the file can have: 255, or more for 9 to 16 bits. Call it before decoding.

    Pillow reduces colour of more than 8 bits to 8 bits. Only the raw mode of its decoder ("RGB;16B") tells; for AVIF
    and JPEG 2000 the file itself has to be asked.
    """
    if image.format == "AVIF":
        # AV1CodecConfigurationBox (AV1 in ISO BMFF, 2.3.3): byte 2 holds tier, high_bitdepth, twelve_bit.
        box = start.find(b"av1C")
        flags = start[box + 6] if 0 <= box < len(start) - 6 else 0
        return {0x40: 1023, 0x60: 4095}.get(flags & 0x60, 255)
    if image.format == "JPEG2000":
        # SIZ marker (ISO 15444-1, A.5.1): Ssiz of the first component stands 42 bytes behind SOC; bit 7 is the sign.
        marker = start.find(b"\xff\x4f\xff\x51")
        bits = (start[marker + 42] & 0x7F) + 1 if 0 <= marker < len(start) - 42 else 8
        return max(255, (1 << bits) - 1)
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for argument in arguments:
            if isinstance(argument, str) and (depth := re.search(r";(12|16)", argument)):
                return (1 << int(depth[1])) - 1
            if image.format == "PPM" and isinstance(argument, int) and argument > 255:
                return 65535  # Pillow scales the samples of PPM to this
    return 65535 if image.mode.startswith("I;16") else 255


# --------------------------------------------------------------------------------------------------------- colour


def _drop_opaque_alpha(image: Image.Image, notes: list[str]) -> Image.Image:
    """`image` without its alpha channel or transparent colour; `UnsupportedError` where a pixel is not opaque."""
    if not image.has_transparency_data:
        return image
    if image.mode == "La":  # premultiplied: Pillow converts it to LA alone
        image = image.convert("LA")
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        # Pillow cannot make an alpha channel from a transparent 16-bit value, so the pixels are compared here.
        opaque = not bool((np.asarray(image) == key).any())
    else:
        if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            # The transparent colour has the file's 16 bits, while Pillow has reduced the pixels to 8: any pixel whose
            # upper 8 bits match counts as transparent.
            image = image.copy()
            image.info["transparency"] = tuple(level >> 8 for level in key)
        opaque = image.convert("RGBA").getchannel("A").getextrema()[0] == 255
    if not opaque:
        raise UnsupportedError("the image has transparent pixels; alpha is not supported")
    notes.append("alpha dropped: it is opaque everywhere")
    if image.mode in ("LA", "RGBA", "RGBa", "PA"):
        return image.convert("L" if image.mode == "LA" else "RGB")
    image = image.copy()
    image.info.pop("transparency", None)
    return image


def _reduce_to_8_bits(image: Image.Image, peak: int, notes: list[str]) -> Image.Image:
    """`image` with 8 bits per sample. Pillow has reduced colour already; greyscale is reduced here."""
    wide = image.mode.startswith("I;16") or (image.mode == "I" and peak == 65535 and image.format in ("PNG", "PPM"))
    if wide:
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels * 255 + peak // 2) // peak).astype(np.uint8))
    if peak > 255:
        notes.append(f"{peak.bit_length()}-bit samples reduced to 8 bits")
    return image


def _to_rgb(image: Image.Image, icc: bytes, notes: list[str]) -> tuple[Image.Image, bytes]:
    """`image` in mode RGB, and the ICC profile that describes it; an empty one means sRGB."""
    mode = image.mode
    if mode not in _KINDS:
        raise UnsupportedError(f"{_REFUSED.get(mode, f'pixels of type {mode}')} cannot be coded as 8-bit RGB")
    kind = _KINDS[mode]
    # ICC.1:2022, 7.2: the colour space of the data at byte 16, the file's signature at byte 36.
    space = icc[16:20] if len(icc) >= 128 and icc[36:40] == b"acsp" else b""
    if space and space == {"1": b"GRAY", "L": b"GRAY", "CMYK": b"CMYK"}.get(mode):
        converted = _through_profile(image.convert("L") if mode == "1" else image, icc)
        if converted is not None:
            notes.append(f"{kind} converted to sRGB through its colour profile")
            return converted, b""
    if kind:
        notes.append(f"{kind} converted to RGB" + (" without a colour profile" if mode == "CMYK" else ""))
    if icc and (space != b"RGB " or mode == "CMYK"):
        notes.append("colour profile dropped: it is damaged or does not describe RGB")
        icc = b""
    return image.convert("RGB"), icc


def _through_profile(image: Image.Image, icc: bytes) -> Image.Image | None:
    """`image` converted from `icc` to sRGB; None where the profile cannot be used.

    The rendering intent is relative colorimetric with black point compensation, as is the default of the programs that
    people make CMYK files with.
    """
    from PIL import ImageCms

    try:
        return ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):
        return None
