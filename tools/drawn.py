"""The pictures of a golden corpus, drawn in integers, so that everybody can draw them again to the last bit.

Their noise is SHAKE-128 of a name, which depends on no library's generator. What an entry draws never changes once a
corpus holds its hash: other pictures are other entries, at the end of `ENTRIES`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hpcmcodec.container import packed_text
from hpcmcodec.image import Picture
from hpcmcodec.image.colour import Cicp


class Entry(NamedTuple):
    """A file of a picture.

    Attributes:
        draw: gives the picture as `codec.encode` takes it.
        quality: 0 to 100.
        options: what `codec.encode` is called with besides.
    """

    draw: Callable[[], Picture | Image.Image | np.ndarray]
    quality: float
    options: Mapping[str, Any]


class Latents(NamedTuple):
    """A file of latents that no picture has.

    Attributes:
        rows, columns: of the plane y.
        hundredths: the quality.
        full: whether each latent has a symbol.
    """

    rows: int
    columns: int
    hundredths: int
    full: bool


def noise(name: str, *shape: int, dtype: str = "u1") -> np.ndarray:
    """Bits of SHAKE-128 of a name as integers of a little-endian dtype."""
    kind = np.dtype(dtype).newbyteorder("<")
    digest = hashlib.shake_128(name.encode()).digest(kind.itemsize * int(np.prod(shape)))
    return np.frombuffer(digest, kind).reshape(shape)


# --- kinds of content: (height, width) -> (height, width, 3) uint8 ----------------------------------------------------


def smooth(height: int, width: int) -> np.ndarray:
    """Slow waves, each channel with its own."""
    rows, columns = np.mgrid[:height, :width]
    phases = (3 * rows + columns, 2 * columns + 100, rows * columns // 48 + 2 * rows)
    return _levels(np.stack([_wave(phase) for phase in phases], -1))


def grain(height: int, width: int) -> np.ndarray:
    """Noise of all levels."""
    return noise("grain", height, width, 3)


def text(height: int, width: int) -> np.ndarray:
    """Lines of dark letters of 5x7 dots, which no alphabet has, on paper."""
    rows, columns = np.mgrid[:height, :width]
    line, letter = rows // 10, columns // 6
    dots = noise("letters", height // 10 + 1, width // 6 + 1, 7, 5) < 120
    gaps = noise("gaps", height // 10 + 1, width // 6 + 1) < 40
    inside = (rows % 10 < 7) & (columns % 6 < 5) & ~gaps[line, letter]
    ink = inside & dots[line, letter, rows % 10 % 7, columns % 6 % 5]
    return _levels(np.where(ink[..., None], (20, 24, 40), (244, 240, 228)))


def halftone(height: int, width: int) -> np.ndarray:
    """A slow wave in dots of black and white, by Bayer's matrix of 4x4."""
    matrix = np.array(((0, 8, 2, 10), (12, 4, 14, 6), (3, 11, 1, 9), (15, 7, 13, 5)))
    rows, columns = np.mgrid[:height, :width]
    white = _wave(2 * rows + 3 * columns) > 16 * matrix[rows % 4, columns % 4] + 8
    return _levels(255 * np.repeat(white[..., None], 3, axis=2))


def saturated(height: int, width: int) -> np.ndarray:
    """Squares of 11 pixels of the eight corners of the RGB cube."""
    rows, columns = np.mgrid[:height, :width] // 11
    return _levels(255 * (noise("saturated", height // 11 + 1, width // 11 + 1, 3)[rows, columns] > 127))


def dots(height: int, width: int) -> np.ndarray:
    """Each pixel black or white by chance: what the model expects least."""
    return _levels(255 * np.repeat(noise("dots", height, width, 1) > 127, 3, axis=2))


def mixed(height: int, width: int) -> np.ndarray:
    """A smooth picture with an edge, with some grain above it and text to its left."""
    rows, columns = np.mgrid[:height, :width]
    out = smooth(height, width).astype(np.int64)
    out[(rows + 2 * columns) % 96 < 30] //= 3
    out += (grain(height, width).astype(np.int64) - 128) // 8 * (rows < height // 2)[..., None]
    left = columns < width // 3
    out[left] = text(height, width)[left]
    return _levels(out)


def _wave(phase: np.ndarray) -> np.ndarray:
    """Triangles from 0 to 255, 510 long."""
    wave: np.ndarray = np.abs(phase % 510 - 255)
    return wave


def _levels(integers: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(integers, 0, 255), np.uint8)


# --- what stands beside the content -----------------------------------------------------------------------------------


def exif(orientation: int = 1) -> bytes:
    """A TIFF structure with a maker and an orientation."""
    entries = struct.pack("<HHII", 0x010F, 2, 6, 8 + 2 + 24 + 4) + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + b"Maker\0"


def icc() -> bytes:
    """A profile of a matrix and a curve: sRGB's primaries, adapted to D50, and an exponent of 2.2."""
    columns = ((0x6FA2, 0x38F5, 0x0390), (0x6299, 0xB785, 0x18DA), (0x24A0, 0x0F84, 0xB6CF))
    white = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    label = "golden".encode("utf-16-be")
    tags = {
        b"desc": b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(label), 28) + label,
        b"wtpt": b"XYZ \0\0\0\0" + white,
        **{
            name: b"XYZ \0\0\0\0" + struct.pack(">3I", *xyz)
            for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
        },
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"para\0\0\0\0" + struct.pack(">HHI", 0, 0, 0x23333)),
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4xI4s4s4s6H4s", size, 0x04300000, b"mntr", b"RGB ", b"XYZ ", 2024, 1, 1, 0, 0, 0, b"acsp")
    return (head + bytes(28) + white).ljust(128, b"\0") + table + body


METADATA = {
    "ICC": icc(),
    "EXIF": exif(),
    "XMP": b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + b"<a>golden</a>" * 20 + b"</x:xmpmeta>",
    "IPTC": b"\x1c\x02\x78\x00\x06golden",
    "TEXT": packed_text({"Title": "Gold", "Schlüssel": "ünïcödé " * 9}),
}


def _opacity(height: int, width: int, depth: int) -> np.ndarray:
    """Clear on the left, opaque on the right, a ramp with noise in its low bits between."""
    columns = np.broadcast_to(np.arange(width), (height, width))
    peak = (1 << depth) - 1
    ramp = np.clip((columns - width // 4) * 2 * peak // width, 0, peak)
    inside = (ramp > 0) & (ramp < peak)
    return np.asarray(ramp ^ (noise("opacity", height, width) & 7) * inside, np.uint8 if depth == 8 else np.uint16)


def _deep(levels: np.ndarray, depth: int) -> np.ndarray:
    """Levels of 8 bits with noise in the bits below them."""
    low = noise("low bits", *levels.shape)
    return np.asarray((levels.astype(np.uint16) << 8 | low) >> np.uint16(16 - depth), np.uint16)


# --- the entries ------------------------------------------------------------------------------------------------------


def _entry(
    kind: Callable[[int, int], np.ndarray],
    width: int,
    height: int,
    quality: float = 50,
    *,
    depth: int = 8,
    grey: bool = False,
    alpha: bool = False,
    cicp: tuple[int, int] | None = None,
    metadata: Iterable[str] = (),
    **options: Any,
) -> Entry:
    def draw() -> Picture:
        pixels = kind(height, width)
        pixels = pixels if depth == 8 else _deep(pixels, depth)
        return Picture(
            np.repeat(pixels[..., 1:2], 3, axis=2) if grey else pixels,
            {name: METADATA[name] for name in metadata},
            depth=depth,
            grey=grey,
            alpha=_opacity(height, width, depth) if alpha else None,
            cicp=None if cicp is None else Cicp(*cicp),
        )

    return Entry(draw, quality, options)


def _opaque(depth: int) -> Entry:
    """An array of four channels whose alpha says nothing, so that it is dropped."""

    def draw() -> np.ndarray:
        pixels = mixed(24, 40) if depth == 8 else _deep(mixed(24, 40), depth)
        return np.concatenate([pixels, np.full_like(pixels[..., :1], (1 << depth) - 1)], axis=2)

    return Entry(draw, 50, {})


def _turned(orientation: int) -> Entry:
    """An image of Pillow's whose EXIF asks for a turn."""

    def draw() -> Image.Image:
        image = Image.fromarray(mixed(24, 40))
        image.info["exif"] = b"Exif\0\0" + exif(orientation)
        return image

    return Entry(draw, 50, {})


# Qualities at and beside each border at which decoding changes: bands of z, exponents of grids, stored qualities.
_QUALITIES = (0, 0.01, 10, 19.99, 30, 33.33, 49.99, 50, 70, 74.99, 75, 90, 100)
_SIZES = ((1, 1), (1, 37), (37, 1), (7, 5), (16, 16), (17, 33), (64, 65), (256, 256))
# Every transfer that has a curve or a name here, and every set of primaries.
_SPACES = ((1, 1), (4, 4), (5, 5), (6, 6), (7, 7), (9, 8), (12, 13), (9, 14), (22, 15), (9, 16), (11, 18))

ENTRIES: dict[str, Entry | Latents] = {
    **{f"quality-{q:g}": _entry(mixed, 131, 77, q) for q in _QUALITIES},
    **{f"size-{w}x{h}": _entry(mixed, w, h) for w, h in _SIZES},
    **{f"large-{q}": _entry(mixed, 256, 256, q) for q in (5, 60, 90)},  # Bi-WKV over several blocks of tokens
    # Streams of 1 to 3 symbols, which are filled up.
    "few-1x1": _entry(mixed, 1, 1, 0),
    "few-7x5": _entry(mixed, 7, 5, 0),
    "few-1x37": _entry(smooth, 1, 37, 0),
    **{f"content-{kind.__name__}": _entry(kind, 80, 64, 40) for kind in (smooth, grain, text, halftone, saturated)},
    "grey": _entry(mixed, 40, 24, grey=True),
    "grey-profile": _entry(mixed, 40, 24, grey=True, metadata=["ICC"]),
    "grey-16-bits": _entry(smooth, 40, 24, 80, depth=16, grey=True),
    "grey-alpha": _entry(text, 40, 24, grey=True, alpha=True),
    "alpha-opaque": _opaque(8),
    "alpha-opaque-16-bits": _opaque(16),
    "alpha": _entry(mixed, 40, 24, alpha=True),
    "alpha-16-bits": _entry(mixed, 40, 24, depth=16, alpha=True),
    **{f"depth-{depth}": _entry(smooth, 40, 24, 85, depth=depth) for depth in (9, 12, 16)},
    **{f"colour-{p}-{t}": _entry(saturated, 24, 16, cicp=(p, t)) for p, t in _SPACES},
    "colour-9-16-10-bits": _entry(smooth, 40, 24, 80, depth=10, cicp=(9, 16)),
    **{f"metadata-{name}": _entry(mixed, 16, 16, metadata=[name]) for name in METADATA},
    "metadata-all": _entry(mixed, 40, 24, metadata=METADATA, alpha=True, cicp=(12, 13), depth=12, verify=True),
    "picture-hash": _entry(mixed, 131, 77, 30, verify=True),
    "picture-hash-16-bits": _entry(smooth, 17, 33, 70, depth=16, verify=True),
    "tiles-across": _entry(mixed, 1040, 40, 20, tile=64),
    "tiles-down": _entry(mixed, 40, 1040, 20, tile=64, verify=True),
    "tiles-both": _entry(smooth, 1030, 1027, 10, tile=64),
    "tiles-full": _entry(dots, 1040, 20, 100, tile=64),
    "tiles-default": _entry(smooth, 4112, 16, 30),
    "tile-side-128": _entry(smooth, 2064, 16, tile=128),
    "full": _entry(dots, 48, 48, 100, verify=True),
    "full-grey": _entry(dots, 33, 40, 100, grey=True),
    "latents-full": Latents(5, 6, 8000, full=True),
    "latents-not-full": Latents(5, 6, 3000, full=False),
    "effort-1": _entry(mixed, 64, 48, 30, effort=1),
    "effort-9": _entry(mixed, 64, 48, 60, effort=9),
    "turned": _turned(6),
}
# Entries whose previews are kept, too.
PREVIEWED = (
    *("quality-0", "quality-30", "quality-50", "quality-90", "size-1x1", "content-grain"),
    *("metadata-all", "tiles-across", "full", "latents-full", "latents-not-full"),
)
