"""What RGB samples mean: CICP code points, ICC profiles, and the way from one to the other.

CICP (ITU-T H.273) names a colour space by two numbers, its primaries and its transfer characteristics. PNG, AVIF and
HEIF carry them, and so does a .hpcm file. A space without a number gets an ICC profile (ICC.1:2022) made of its
primaries and its curve. PQ and HLG are named only: what they show depends on the display, which no profile describes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

_UNSPECIFIED = 2
_SRGB_TRANSFER = 13

# H.273, table 2: chromaticities of red, green, blue and white.
_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
_PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65),
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _DCI),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),
}
_PRIMARY_NAMES = {1: "BT.709", 9: "BT.2020", 11: "DCI P3", 12: "Display P3"}
# H.273, table 3, as the parameters g, a, b, c, d of ICC's curve: (a x + b)^g from d on, c x below (10.18, type 3).
_BT709 = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES: dict[int, tuple[float, ...]] = {
    1: _BT709,
    4: (2.2,),
    5: (2.8,),
    6: _BT709,
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0913),
    8: (1.0,),
    13: (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
    14: _BT709,
    15: _BT709,
}
_TRANSFER_NAMES = {4: "gamma 2.2", 5: "gamma 2.8", 8: "linear", 13: "sRGB", 16: "PQ", 18: "HLG"}
_BLACK_POINT_COMPENSATION: Any = 0x2000  # littleCMS's number; Pillow has a name for it since version 10.3
_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array(((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)))

Chromaticities = tuple[tuple[float, float], ...]


class Cicp(NamedTuple):
    """A colour space by H.273's code points. The samples are RGB in full range.

    Attributes:
        primaries: ColourPrimaries, 1 to 255.
        transfer: TransferCharacteristics, 1 to 255.
    """

    primaries: int
    transfer: int

    def __str__(self) -> str:
        """Such as "Display P3, sRGB curve"."""
        primaries = _PRIMARY_NAMES.get(self.primaries, f"primaries {self.primaries}")
        transfer = _TRANSFER_NAMES.get(self.transfer, f"transfer {self.transfer}")
        return f"{primaries}, {transfer} curve"


SRGB = Cicp(1, _SRGB_TRANSFER)
LINEAR = 8


def srgb_of_linear(light: np.ndarray) -> np.ndarray:
    """Levels of sRGB's curve (IEC 61966-2-1), 0 to 1, of linear light from 0 to 1."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def known(primaries: int, transfer: int) -> Cicp | None:
    """The space that a file's code points name; None for sRGB and for files that leave the space unspecified.

    A number that is not specified, or reserved, counts as sRGB's: that is what viewers do with it.
    """
    named = Cicp(
        primaries if primaries in _PRIMARIES else SRGB.primaries,
        transfer if transfer in (*_CURVES, *_TRANSFER_NAMES) else SRGB.transfer,
    )
    return None if named == SRGB else named


def of_header(primaries: int, transfer: int) -> Cicp:
    """The space of a header's code points, as FORMAT.md has them read: values that name nothing are sRGB's."""
    return known(primaries, transfer) or SRGB


def of_measures(primaries: Chromaticities | None, gamma: float | None) -> Cicp | bytes | None:
    """The space that chromaticities (red, green, blue, white) and the exponent of its curve make.

    Returns:
        Code points where H.273 has both, an ICC profile where it has not, None for sRGB. Without primaries they are
        sRGB's, and so is the curve without an exponent. Exponents of 2.2 mean sRGB's curve beside sRGB's primaries,
        because nearly all files that state both mean that.
    """
    xy = _PRIMARIES[SRGB.primaries] if primaries is None else primaries
    found = next((number for number, known in _PRIMARIES.items() if _close(xy, known)), None)
    curve = _CURVES[_SRGB_TRANSFER] if gamma is None else (gamma,)
    if gamma is None or (found == SRGB.primaries and abs(gamma - 2.2) < 0.05):
        transfer: int | None = _SRGB_TRANSFER
    else:
        transfer = next((n for n in (4, 5, 8) if abs(_CURVES[n][0] - gamma) < 1e-4 * gamma), None)
    if found is not None and transfer is not None:
        return known(found, transfer)
    if not _is_space(xy):
        return None
    return icc_profile(xy, curve, f"RGB, {'sRGB curve' if gamma is None else f'gamma {gamma:.4g}'}")


def profile_of(cicp: Cicp) -> bytes:
    """An ICC profile of the same space; empty for PQ and HLG, which have none."""
    if cicp.transfer not in _CURVES or cicp.primaries not in _PRIMARIES:
        return b""
    return icc_profile(_PRIMARIES[cicp.primaries], _CURVES[cicp.transfer], str(cicp))


def icc_profile(primaries: Chromaticities, curve: Sequence[float], name: str) -> bytes:
    """An ICC profile (version 4.3, matrix and curve) of an RGB space.

    Args:
        primaries: chromaticities x, y of red, green, blue and white.
        curve: an exponent, or g, a, b, c, d of ICC's parametric curve of type 3.
        name: the profile's description, ASCII.
    """
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    white = columns[:, 3]
    matrix = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    # Bradford's adaptation of the white point to D50 (ICC.1:2022, annex E).
    adaptation = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
    matrix = adaptation @ matrix
    trc = b"para\0\0\0\0" + struct.pack(">HH", 3 if len(curve) > 1 else 0, 0) + _fixed(*curve)
    tags = {
        b"desc": _text(name),
        b"cprt": _text("No copyright"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_D50),
        b"chad": b"sf32\0\0\0\0" + _fixed(*adaptation.ravel()),
        **{tag: b"XYZ \0\0\0\0" + _fixed(*matrix[:, i]) for i, tag in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), trc),
    }
    places: dict[bytes, int] = {}
    body = b""
    for data in tags.values():  # equal curves share their place
        if data not in places:
            places[data] = 128 + 4 + 12 * len(tags) + len(body)
            body += data + bytes(-len(data) % 4)
    table = b"".join(tag + struct.pack(">II", places[data], len(data)) for tag, data in tags.items())
    size = 128 + 4 + len(table) + len(body)
    # ICC.1:2022, 7.2. The date is a constant, so that equal spaces have equal profiles.
    header = struct.pack(">I4xI4s4s4s6H4s", size, 0x04300000, b"mntr", b"RGB ", b"XYZ ", 2024, 1, 1, 0, 0, 0, b"acsp")
    header = (header + bytes(28) + _fixed(*_D50)).ljust(128, b"\0")
    return header + struct.pack(">I", len(tags)) + table + body


def _text(text: str) -> bytes:
    """The type multiLocalizedUnicode (ICC.1:2022, 10.15) with one record."""
    data = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(data), 28) + data


def _fixed(*values: float) -> bytes:
    """Numbers as s15Fixed16Number."""
    return struct.pack(f">{len(values)}i", *(round(float(v) * 65536) for v in values))


def _close(a: Chromaticities, b: Chromaticities) -> bool:
    return all(abs(v - w) < 0.0015 for p, q in zip(a, b, strict=True) for v, w in zip(p, q, strict=True))


def _is_space(xy: Chromaticities) -> bool:
    """Whether the primaries span a triangle around a white with light in it."""
    (rx, ry), (gx, gy), (bx, by), (wx, wy) = xy
    area = abs((gx - rx) * (by - ry) - (bx - rx) * (gy - ry))
    return area > 0.01 and all(0 < y <= 1 for _, y in xy) and 0 < wx < 1 and wx + wy <= 1


def space_of(icc: bytes) -> bytes:
    """The colour space that a profile describes, such as b"RGB " or b"GRAY"; empty where it is no profile.

    ICC.1:2022, 7.2: the colour space of the data at byte 16, the file's signature at byte 36.
    """
    return icc[16:20] if len(icc) >= 128 and icc[36:40] == b"acsp" else b""


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image | None:
    """`image` (mode L, RGB or CMYK) converted from `icc` to sRGB, in mode RGB; None where the profile cannot be used.

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
            flags=_BLACK_POINT_COMPENSATION,
        )
    except (ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):
        return None


def grey_curve(icc: bytes) -> np.ndarray | None:
    """What the grey levels 0, 1/255, ..., 1 of a profile of greys or of RGB are in sRGB: 256 float64 from 0 to 1.

    None where the profile cannot be used.
    """
    levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    ramp = to_srgb(levels.convert("RGB") if space_of(icc) == b"RGB " else levels, icc)
    return None if ramp is None else np.asarray(ramp)[0].mean(axis=1) / 255


def rgb_of(colour: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """8-bit RGB of a colour's name as in CSS ("white", "#808080") or of three numbers; ValueError for others."""
    from PIL import ImageColor

    rgb = ImageColor.getrgb(colour) if isinstance(colour, str) else tuple(colour)
    if len(rgb) != 3 or not all(isinstance(level, int) and 0 <= level <= 255 for level in rgb):
        raise ValueError(f"a background is an opaque colour, as white, #808080 or (128, 128, 128), not {colour!r}")
    return rgb[0], rgb[1], rgb[2]
