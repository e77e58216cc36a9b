"""Reads image files, PIL images and arrays as a `Picture`. The package's docstring says what becomes of each kind."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from hpcmcodec.container import max_bytes, take
from hpcmcodec.errors import HpcmError, InputError, UnsupportedError
from hpcmcodec.image import bmp, colour, heif, jpeg, netpbm, png, tiff
from hpcmcodec.image.carried import take_metadata
from hpcmcodec.image.colour import Cicp, profile_of
from hpcmcodec.image.deep import open_with
from hpcmcodec.image.exif import one_line, orient
from hpcmcodec.image.picture import Found, Picture
from hpcmcodec.image.samples import Read, Rgb, in_rgb, read_samples, split

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    ImageSource: TypeAlias = (
        "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[Any] | Picture"
    )

# The formats that are read: signature, Pillow's name and module. This list replaces Image.open, which
# 1. warns of or refuses images by a limit that belongs to the whole process, while `max_pixels` belongs to one call;
# 2. would try every decoder of Pillow on a hostile file (EPS starts Ghostscript);
# 3. loads all 45 of Pillow's format modules for a file that no common one accepts.
_FORMATS = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", "JpegImagePlugin"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", "PngImagePlugin"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP", "WebPImagePlugin"),
    (re.compile(rb"....ftyp(avif|avis)", re.DOTALL), "AVIF", "AvifImagePlugin"),
    (re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL), "HEIF", ""),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", "TiffImagePlugin"),
    (re.compile(rb"GIF8[79]a"), "GIF", "GifImagePlugin"),
    (re.compile(rb"P[1-6]\s"), "PPM", "PpmImagePlugin"),
    (re.compile(rb"BM"), "BMP", "BmpImagePlugin"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "), "JPEG2000", "Jpeg2KImagePlugin"),
)
# What is known, and is not read here, with what to do about it.
_ELSEWHERE = (
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL is not read here: djxl converts it to PNG"),
    (re.compile(rb"v/1\x01"), "OpenEXR has floating-point samples, which cannot be coded: tone-map it to PNG first"),
    (re.compile(rb"P7\s"), "PAM is not read here: convert it to PNG or PPM"),
    (re.compile(rb"P[Ff]\s"), "PFM has floating-point samples, which cannot be coded: tone-map it to PNG first"),
    (re.compile(rb"%PDF-|%!PS"), "PDF and PostScript are documents: render a page to PNG first"),
    (re.compile(rb"(?:<\?xml[^>]{0,200}>)?\s{0,9}<svg\b"), "SVG is a drawing: render it to PNG first"),
    (re.compile(rb"\x8bHPC"), "this is an .hpcm file already: hpcm decode turns it into a picture"),
    (re.compile(rb"8BPS"), "Photoshop's PSD is not read here: export it as TIFF or PNG"),
    (re.compile(rb"qoif"), "QOI is not read here: convert it to PNG"),
)
_START_BYTES = 1 << 16
_SIGNATURE_BYTES = 16


def load(source: ImageSource, *, max_pixels: int | None) -> Picture:
    """Reads an image as RGB of 8 to 16 bits, with its alpha.

    Args:
        source: a path, the bytes of an image file, a binary file object (read from where it stands to its end), a PIL
            image, an array in sRGB, or a `Picture`, which is returned as it is. Arrays are (H, W) or (H, W, 1) greys,
            (H, W, 2) greys and alpha, (H, W, 3) RGB or (H, W, 4) RGB and alpha, of uint8, of uint16 (16 bits: 0 to
            65535), or of floating-point numbers from 0 to 1, which become 16 bits.
        max_pixels: the largest width * height that is read, checked before pixels are decoded; None lifts the limit.

    Raises:
        InputError: the file is missing, empty, of no known format, truncated or damaged.
        UnsupportedError: the image has more than `max_pixels` pixels, its file more than `container.max_bytes` bytes,
            it is an animation or of a format or kind that is not read here.
        TypeError, ValueError: the source is of another type, or the array of another shape, dtype or range.
    """
    if isinstance(source, Picture):
        _check_size(source.pixels.shape[1], source.pixels.shape[0], max_pixels)
        return source
    if isinstance(source, np.ndarray):
        return _of_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _convert(_of_image(source), max_pixels)
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


def _of_image(image: Image.Image) -> Found:
    """Pillow's image, with what `to_image` and Pillow's PNG reader put into it beyond the usual."""
    found = Found(image)
    cicp, icc, iptc = (image.info.get(key) for key in ("cicp", "icc_profile", "iptc"))
    if isinstance(cicp, tuple) and len(cicp) == 2 and icc in (None, profile_of(Cicp(*cicp))):
        found.colour, found.by_name = colour.known(*cicp), True
    if isinstance(iptc, bytes):
        found.metadata["IPTC"] = iptc
    texts = image.info.get("text") or getattr(image, "text", None)
    if isinstance(texts, dict):
        unread = ("XML:com.adobe.xmp", "Raw profile type")
        found.text = [(k, str(v)) for k, v in texts.items() if isinstance(k, str) and not k.startswith(unread)]
    return found


def _of_array(array: npt.NDArray[Any], max_pixels: int | None) -> Picture:
    if array.dtype not in (np.uint8, np.uint16) and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"an array of samples must be uint8, uint16 or floating-point in 0..1, not {array.dtype}")
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and not 1 <= array.shape[2] <= 4):
        raise ValueError(f"an array must have the shape (H, W) or (H, W, 1..4), not {array.shape}")
    _check_size(array.shape[1], array.shape[0], max_pixels)
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # NaN fails both
            raise ValueError("floating-point samples must be from 0 to 1; divide them by their largest value")
        array = np.rint(array.astype(np.float64) * 65535).astype(np.uint16)
    levels = array if array.ndim == 3 else array[..., None]
    depth = 8 * levels.itemsize
    notes: list[str] = []
    read = split(levels, depth, notes)
    return _picture(read, in_rgb(read, b"", None, notes), {}, 1, notes)


# ---------------------------------------------------------------------------------------------------------- reading


def _read(file: BinaryIO, max_pixels: int | None, *, seekable: bool) -> Picture:
    """`load` for a binary file. One that is not seekable is first read into memory, from where it stands."""
    start = take(file, _START_BYTES)
    if not start:
        raise InputError("not a readable image: the file is empty")
    found = next(((name, module) for signature, name, module in _FORMATS if signature.match(start)), None)
    if found is None:
        elsewhere = next((words for signature, words in _ELSEWHERE if signature.match(start)), None)
        if elsewhere:
            raise UnsupportedError(elsewhere)
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
        if module:
            importlib.import_module(f"PIL.{module}")
            accept = Image.OPEN[name][1]
            answer = accept(start[:_SIGNATURE_BYTES]) if accept else True
            if isinstance(answer, str):
                raise UnsupportedError(answer)
        opened = _LOOK[name](file, start) if name in _LOOK else Found(open_with(name, file))
    except (HpcmError, MemoryError):
        raise
    except ImportError as error:
        raise UnsupportedError(f"{name} is not read by this version of Pillow: pip install --upgrade pillow") from error
    except Image.DecompressionBombError as error:
        raise UnsupportedError(f"more pixels than Pillow's {name} reader allows ({error})") from error
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything, down to TypeError
        if re.search(r"unsupported|not supported", str(error), re.IGNORECASE):
            raise UnsupportedError(f"a {name} of a kind that is not read here ({one_line(error)})") from error
        raise InputError(f"not a readable image: damaged {name} header ({one_line(error)})") from error
    with opened.image:
        return _convert(opened, max_pixels)


def _look_jpeg(file: BinaryIO, start: bytes) -> Found:
    found = jpeg.look(file)
    found.image = open_with("JPEG", file)
    return found


def _look_bmp(file: BinaryIO, start: bytes) -> Found:
    found = Found(open_with("BMP", file))
    bmp.read_colour(file, found)
    return found


def _look_netpbm(file: BinaryIO, start: bytes) -> Found:
    found = Found(open_with("PPM", file))
    netpbm.add_deep(file, start, found)
    return found


def _look_jpeg2000(file: BinaryIO, start: bytes) -> Found:
    # SIZ marker (ISO 15444-1, A.5.1): Ssiz of the first component stands 42 bytes behind SOC; bit 7 is the sign.
    marker = start.find(b"\xff\x4f\xff\x51")
    bits = (start[marker + 42] & 0x7F) + 1 if 0 <= marker < len(start) - 42 else 8
    found = Found(open_with("JPEG2000", file), depth=max(8, min(bits, 16)))
    if found.depth > 8 and not found.image.mode.startswith("I;16"):
        found.deep = heif.deep_by_imagecodecs(file, "jpeg2k_decode", found.depth)
    return found


_LOOK: dict[str, Callable[[BinaryIO, bytes], Found]] = {
    "JPEG": _look_jpeg,
    "PNG": lambda file, start: png.look(file),
    "AVIF": lambda file, start: heif.look_avif(file),
    "HEIF": lambda file, start: heif.look(file),
    "TIFF": lambda file, start: tiff.look(file),
    "PPM": _look_netpbm,
    "BMP": _look_bmp,
    "JPEG2000": _look_jpeg2000,
}


def _convert(found: Found, max_pixels: int | None) -> Picture:
    """The picture that a reader has found."""
    _check_size(found.image.width, found.image.height, max_pixels)
    notes = found.notes
    try:
        _check_single(found)
        read = read_samples(found)
    except (HpcmError, MemoryError):
        raise
    except Exception as error:  # as in `_read`: damaged files raise nearly anything
        raise InputError(f"not a readable image: {one_line(error)}") from error
    # Decoding can enlarge a GIF: its first frame may be larger than the screen that its header states.
    _check_size(read.levels.shape[1], read.levels.shape[0], max_pixels)
    metadata, orientation = take_metadata(found)
    icc = metadata.pop("ICC", b"")
    icc = b"" if found.by_name else icc
    cicp = found.colour if isinstance(found.colour, Cicp) and not icc else None
    if isinstance(found.colour, bytes) and not icc:
        icc = found.colour
    return _picture(read, in_rgb(read, icc, cicp, notes), metadata, orientation, notes)


def _picture(read: Read, rgb: Rgb, metadata: dict[str, bytes], orientation: int, notes: list[str]) -> Picture:
    return Picture(
        pixels=orient(rgb.pixels, orientation),
        metadata={"ICC": rgb.icc, **metadata} if rgb.icc else metadata,
        notes=tuple(notes),
        depth=read.depth,
        grey=rgb.grey,
        alpha=None if read.alpha is None else orient(read.alpha, orientation),
        cicp=rgb.cicp,
    )


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    if width < 1 or height < 1:
        raise InputError(f"not a readable image: it has no pixels ({width}x{height})")
    if max_pixels is not None and width * height > max_pixels:
        raise UnsupportedError(
            f"{width}x{height} is {width * height} pixels, the limit is {max_pixels}; raise max-pixels to allow it"
        )


def _check_single(found: Found) -> None:
    """Refuses animations and several pages. Of a JPEG with depth or gain maps the first picture is the photograph."""
    image = found.image
    if not getattr(image, "is_animated", False) or found.chosen:
        return
    count = getattr(image, "n_frames", 2)
    if image.format == "MPO":
        if not any("behind the picture" in note for note in found.notes):
            found.notes.append(f"the first of {count} pictures in this JPEG is used")
    elif image.format == "TIFF":
        raise UnsupportedError(f"the file has {count} pages; only single pictures are supported")
    else:
        raise UnsupportedError(f"the image is an animation of {count} frames; only single pictures are supported")
