"""From an image as its reader gives it to RGB or grey levels and opacity, and from any colour space to a known one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.image import colour
from hpcmcodec.image.picture import Found, opaque, scaled

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from hpcmcodec.image.colour import Cicp
    from hpcmcodec.image.picture import Samples

# Pillow's modes that are converted, in words (those without words leave no note), and some that are refused.
_KINDS = {
    "RGB": "",
    "RGBX": "",
    "L": "",
    "1": "",
    "P": "palette",
    "YCbCr": "YCbCr",
    "CMYK": "CMYK",
}
_REFUSED = {"I": "32-bit or signed integer pixels", "F": "floating-point pixels", "LAB": "Lab pixels"}
_WITHOUT_ALPHA = {"LA": "L", "RGBA": "RGB", "PA": "P"}


class Read(NamedTuple):
    """Decoded samples.

    Attributes:
        levels: (H, W, 1) greys, (H, W, 3) RGB or (H, W, 4) CMYK, from 0 to 2^depth - 1, as uint8 or uint16.
        depth: bits of a sample.
        alpha: (H, W), of the type and range of `levels`; None where all is opaque.
        kind: "grey", "RGB", or the words for what is to be converted.
    """

    levels: Samples
    depth: int
    alpha: Samples | None
    kind: str


def read_samples(found: Found) -> Read:
    """Decodes an image. Raises UnsupportedError for pixels without a meaning in RGB, and whatever Pillow raises."""
    image = found.image
    if found.deep is None and image.mode.startswith("I;16"):
        found.deep, found.depth = _greys_of(image), max(found.depth, 16)
    if found.deep is not None:
        levels = found.deep()
        if image.mode == "CMYK":
            found.notes.append(f"{found.depth}-bit samples reduced to 8 bits")
            return Read(scaled(levels, 65535, 255), 8, None, "CMYK")
        return split(levels, found.depth, found.notes, found.key)
    reduced = max(found.depth, _depth_of(image))
    image.load()
    if image.mode == "I" and reduced == 16 and image.format == "PPM":
        return split(np.asarray(image).astype(np.uint16)[..., None], 16, found.notes)
    if reduced > 8:
        found.notes.append(f"{reduced}-bit samples reduced to 8 bits" + _how_to_keep(image.format))
    return _read_8_bits(image, found)


def _greys_of(image: Image.Image) -> Callable[[], npt.NDArray[np.uint16]]:
    def read() -> npt.NDArray[np.uint16]:
        image.load()
        return np.asarray(image).astype(np.uint16)[..., None]

    return read


def _depth_of(image: Image.Image) -> int:
    """The bits of a sample of an image that Pillow will reduce to 8 when it is loaded, by its decoder's raw mode."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for argument in arguments:
            if isinstance(argument, str) and (";16" in argument or ";12" in argument):
                return 12 if ";12" in argument else 16
            if image.format == "PPM" and isinstance(argument, int) and argument > 255:
                return 16  # Pillow scales the samples of PPM to this
    return 8


def _how_to_keep(form: str | None) -> str:
    if form not in ("AVIF", "JPEG2000"):
        return ""
    return '; imagecodecs reads all of them: pip install "hpcmcodec[deep]"'


def _read_8_bits(image: Image.Image, found: Found) -> Read:
    alpha = None
    if image.has_transparency_data:
        if image.mode == "La":  # premultiplied: Pillow converts it to LA alone
            image = image.convert("LA")
        elif image.mode == "RGBa":
            image = image.convert("RGBA")
        key = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            # The transparent colour has the 16 bits of a file whose pixels have been reduced.
            image = image.copy()
            image.info["transparency"] = tuple(level >> 8 for level in key)
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if image.mode in _WITHOUT_ALPHA:
            image = image.convert(_WITHOUT_ALPHA[image.mode])
        else:
            image = image.copy()
            image.info.pop("transparency", None)
    if image.mode not in _KINDS:
        raise UnsupportedError(f"{_REFUSED.get(image.mode, f'pixels of type {image.mode}')} cannot be coded as RGB")
    kind = _KINDS[image.mode]
    if image.mode == "CMYK":
        return Read(np.asarray(image), 8, alpha, "CMYK")
    if image.mode in ("1", "L"):
        greys = np.asarray(image.convert("L"))[..., None]
        if found.key:
            alpha = _keyed(greys, found.key, 255)
        return Read(greys, 8, opaque(alpha, 255, found.notes), "grey")
    pixels = np.asarray(image.convert("RGB"))
    if found.key:
        alpha = _keyed(pixels, found.key, 255)
    return Read(pixels, 8, opaque(alpha, 255, found.notes), kind or "RGB")


def split(levels: Samples, depth: int, notes: list[str], key: tuple[int, ...] | None = None) -> Read:
    """Levels of (H, W, 1..4), the last of 2 or 4 being opacity, with the transparent colour `key`."""
    peak = (1 << depth) - 1
    channels = levels.shape[2]
    alpha = np.ascontiguousarray(levels[..., -1]) if channels in (2, 4) else None
    colours = levels[..., : channels - 1 + channels % 2]
    if key and alpha is None:
        alpha = _keyed(colours, key, peak)
    return Read(colours, depth, opaque(alpha, peak, notes), "grey" if channels < 3 else "RGB")


def _keyed(levels: Samples, key: tuple[int, ...], peak: int) -> Samples:
    """The opacity of levels of which one colour is transparent."""
    matches = (levels == np.array(key, levels.dtype)).all(axis=2)
    return np.where(matches, 0, peak).astype(levels.dtype)


# -------------------------------------------------------------------------------------------------------- colour


class Rgb(NamedTuple):
    """RGB levels (H, W, 3), whether they are greys, and their colour space: sRGB without a profile or code points."""

    pixels: Samples
    grey: bool
    icc: bytes
    cicp: Cicp | None


def in_rgb(read: Read, icc: bytes, cicp: Cicp | None, notes: list[str]) -> Rgb:
    """Samples in RGB. Greys and CMYK are converted through their profile to sRGB; RGB keeps its profile.

    Linear light gets sRGB's curve, because what is coded is to be as exact as eyes are, which is not linear.
    """
    if cicp is not None and cicp.transfer == colour.LINEAR and read.kind in ("grey", "RGB"):
        levels = _through(read.levels, colour.srgb_of_linear(np.linspace(0, 1, 1 << read.depth)), read.depth)
        notes.append("linear light converted to sRGB's curve")
        read, cicp = read._replace(levels=levels), colour.known(cicp.primaries, colour.SRGB.transfer)
    space = colour.space_of(icc)
    if read.kind == "CMYK":
        image = Image.fromarray(np.ascontiguousarray(read.levels), "CMYK")
        converted = colour.to_srgb(image, icc) if space == b"CMYK" else None
        if converted is not None:
            notes.append("CMYK converted to sRGB through its colour profile")
            return Rgb(np.asarray(converted), False, b"", None)
        notes.append("CMYK converted to RGB without a colour profile")
        if icc:
            notes.append(_DROPPED)
        return Rgb(np.asarray(image.convert("RGB")), False, b"", None)
    if read.kind == "grey":
        levels = read.levels
        if icc:
            curve = colour.grey_curve(icc) if space in (b"GRAY", b"RGB ") else None
            if curve is None:
                notes.append(_DROPPED)
            elif np.abs(curve * 255 - np.arange(256)).max() > 0.51:
                levels = _through(levels, curve, read.depth)
                notes.append("greyscale converted to sRGB through its colour profile")
        return Rgb(np.repeat(levels, 3, axis=2), True, b"", cicp)
    if read.kind != "RGB":
        notes.append(f"{read.kind} converted to RGB")
    if icc and space != b"RGB ":
        notes.append(_DROPPED)
        icc = b""
    return Rgb(np.ascontiguousarray(read.levels), False, icc, cicp)


_DROPPED = "colour profile dropped: it is damaged or does not describe the picture"


def _through(levels: Samples, curve: npt.NDArray[np.float64], depth: int) -> Samples:
    """Levels through a curve that is given at equal distances from 0 to 1."""
    peak = (1 << depth) - 1
    table = np.interp(np.arange(peak + 1) / peak, np.linspace(0, 1, len(curve)), curve)
    return np.rint(table * peak).astype(levels.dtype)[levels]
