"""Image files made by hand, for what Pillow cannot write: PNG of any kind, TIFF of 16 bits, segments of JPEG."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_chunk(name: bytes, body: bytes, *, damaged: bool = False) -> bytes:
    crc = zlib.crc32(name + body) ^ damaged
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def png_file(
    samples: np.ndarray,
    depth: int,
    *chunks: tuple[bytes, bytes],
    palette: bytes = b"",
    interlaced: bool = False,
    damaged: Iterable[bytes] = (),
) -> bytes:
    """A PNG of (H, W, C) levels: C is 1 to 4, or 1 with a palette. Chunks named in `damaged` get a wrong CRC."""
    height, width, channels = samples.shape
    kind = 3 if palette else (0, 4, 2, 6)[channels - 1]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = b""
    for top, left, down, right in passes:
        part = samples[top::down, left::right]
        if part.size:
            rows += b"".join(b"\0" + packed(row, depth) for row in part)
    parts = [(b"IHDR", header), *((b"PLTE", palette) for _ in range(bool(palette))), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, body, damaged=name in damaged) for name, body in parts)


def packed(row: np.ndarray, depth: int) -> bytes:
    if depth >= 8:
        return row.astype(f">u{depth // 8}").tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def tiff_file(
    pages: Iterable[dict[int, tuple[str, tuple[int, ...]]]], strips: Iterable[list[bytes]], order: str = "<"
) -> bytes:
    """A TIFF of pages, each with tags as (format of struct, numbers) and strips, whose tags are added."""
    data = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 0)
    link = 4
    for tags, parts in zip(pages, strips, strict=True):
        offsets = []
        for part in parts:
            offsets.append(len(data))
            data += part + bytes(len(part) % 2)
        entries = {**tags, 273: ("I", tuple(offsets)), 279: ("I", tuple(map(len, parts)))}
        directory = b""
        place = len(data) + 2 + 12 * len(entries) + 4
        values = b""
        for tag, (form, numbers) in sorted(entries.items()):
            body = struct.pack(order + form * len(numbers), *numbers)
            if len(body) > 4:
                values, body = values + body + bytes(len(body) % 2), struct.pack(order + "I", place + len(values))
            directory += struct.pack(order + "HHI", tag, {"H": 3, "I": 4, "B": 7}[form], len(numbers)) + body.ljust(
                4, b"\0"
            )
        data = data[:link] + struct.pack(order + "I", len(data)) + data[link + 4 :]
        link = len(data) + 2 + len(directory)
        data += struct.pack(order + "H", len(entries)) + directory + bytes(4) + values
    return data


def tiff_tags(samples: np.ndarray, **changes: int) -> dict[int, tuple[str, tuple[int, ...]]]:
    """The tags of (H, W, C) samples in one strip, or in one for each plane with planar=2."""
    height, width, channels = samples.shape
    numbers = {"compression": 1, "photometric": 1 if channels < 3 else 2, "planar": 1, "extra": 2, **changes}
    tags: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", (8 * samples.itemsize,) * channels),
        259: ("H", (numbers["compression"],)),
        262: ("H", (numbers["photometric"],)),
        277: ("H", (channels,)),
        278: ("I", (height,)),
        284: ("H", (numbers["planar"],)),
    }
    if channels in (2, 4):
        tags[338] = ("H", (numbers["extra"],))
    return tags


def with_segments(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with more segments right behind its start: (marker, content)."""
    return jpeg[:2] + b"".join(b"\xff" + bytes([m]) + struct.pack(">H", len(b) + 2) + b for m, b in segments) + jpeg[2:]
