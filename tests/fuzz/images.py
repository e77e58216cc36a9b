"""Input images of all formats, changed at will, with right checksums where the format has them; read, and shown.

The seeds are made by Pillow's writers and by hand (`tests/files.py`): palettes, greys, alpha, 1 to 16 bits,
interlacing, CMYK, metadata of all kinds.
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, features

from hpcmcodec import image
from hpcmcodec.image import colour
from tests import files, tiny
from tests.fuzz.files import blocks
from tests.fuzz.parts import NUMBERS, bytes_changed

MAX_PIXELS = 256 * 256


def prepare() -> None:
    """libtiff and others write lines about damage to standard error, by themselves."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    seeds()


@lru_cache(maxsize=1)
def seeds() -> list[bytes]:
    rgb = Image.fromarray(tiny.picture(37, 23))
    exif = b"Exif\0\0" + blocks()["EXIF"][0]
    icc = blocks()["ICC"][0]
    modes = [rgb.convert(mode) for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16")]
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("PNG", {"exif": exif, "icc_profile": icc}),
        ("JPEG", {"exif": exif, "icc_profile": icc, "comment": b"words"}),
        ("JPEG", {"progressive": True, "subsampling": 2}),
        ("WEBP", {"exif": exif, "icc_profile": icc}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("PPM", {}),
        *(
            ("TIFF", {"compression": c})
            for c in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
        ),
        ("JPEG2000", {}),
        ("AVIF", {"speed": 10, "exif": exif}),
    ]
    if not features.check("avif"):
        wanted.pop()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        wanted.append(("HEIF", {"quality": 50, "exif": exif}))
    found = []
    for form, options in wanted:
        for picture in modes:
            with suppress(Exception):  # not every format holds every mode
                found.append(files.saved(picture, form, **options))
    pixels = np.asarray(rgb)
    deep = pixels.astype(np.uint16) * 257
    found += [files.png_file(deep[..., :n], 16, (b"gAMA", struct.pack(">I", 45455))) for n in (1, 2, 3)]
    found += [files.png_file(pixels[..., :1] >> 8 - n, n, interlaced=True) for n in (1, 2, 4)]
    found.append(files.png_file(pixels, 8, (b"cICP", bytes((9, 16, 0, 1))), (b"tRNS", bytes(6)), interlaced=True))
    found.append(files.tiff_file([files.tiff_tags(deep)], [[deep.tobytes()]]))
    return found


def make(rng: random.Random) -> bytes:
    data = rng.choice(seeds())
    if data.startswith(b"\x89PNG") and rng.random() < 0.8:
        return png_changed(rng, data)
    if data.startswith(b"\xff\xd8") and rng.random() < 0.6:
        return jpeg_changed(rng, data)
    # What matters stands at the beginning of a file, or at its end as in TIFF.
    kind = rng.randrange(4)
    if kind == 0:
        return bytes_changed(rng, data)
    cut = min(len(data), rng.choice((32, 64, 256)))
    if kind == 1:
        return data[:-cut] + bytes_changed(rng, data[-cut:], 3)
    return bytes_changed(rng, data[:cut], 3) + data[cut:]


def png_changed(rng: random.Random, data: bytes) -> bytes:
    """Chunks changed, exchanged, doubled and left out, each with its right CRC; the pixels inflated and changed too."""
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(len(chunks)), rng.randrange(8)
        name, body = chunks[at]
        if kind == 0 and len(chunks) > 1:
            del chunks[at]
        elif kind == 1:
            chunks.insert(rng.randrange(len(chunks)), chunks[at])
        elif kind == 2:
            chunks.insert(rng.randrange(1, len(chunks) + 1), extra(rng))
        elif kind == 3 and name == b"IDAT":
            with suppress(zlib.error):
                chunks[at] = name, zlib.compress(bytes_changed(rng, zlib.decompress(body), 4))
        elif name == b"IHDR" and rng.random() < 0.5:
            width, height = rng.choice(NUMBERS), rng.choice(NUMBERS)
            tail = (rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, rng.randrange(2))
            chunks[at] = name, struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, *tail)
        else:
            chunks[at] = name, bytes_changed(rng, body, 3)
    out = data[:8]
    for name, body in chunks:
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return out


def extra(rng: random.Random) -> tuple[bytes, bytes]:
    """An ancillary chunk of PNG that is nearly as it should be."""
    name, body = rng.choice(
        (
            (b"iCCP", b"p\0\0" + zlib.compress(blocks()["ICC"][0])),
            (b"iCCP", b"p\0\0" + zlib.compress(bytes(3 << 20))),
            (b"zTXt", b"k\0\0" + zlib.compress(bytes(3 << 20))),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + blocks()["XMP"][0]),
            (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(b"\niptc\n 4\n1c020500\n")),
            (b"eXIf", blocks()["EXIF"][0]),
            (b"tEXt", b"k\0v"),
            (b"gAMA", struct.pack(">I", 45455)),
            (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
            (b"cICP", bytes((9, 16, 0, 1))),
            (b"tRNS", bytes(6)),
            (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
            (b"acTL", struct.pack(">II", 2, 0)),
            (b"PLTE", bytes(30)),
        )
    )
    return (name, bytes_changed(rng, body, 3)) if rng.random() < 0.5 else (name, body)


def jpeg_changed(rng: random.Random, data: bytes) -> bytes:
    """Segments changed, doubled, left out and added, each with its right length."""
    segments, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        segments.append((data[place + 1], data[place + 4 : place + 2 + length]))
        place += 2 + length
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(len(segments)), rng.randrange(6)
        marker, body = segments[at]
        if kind == 0 and len(segments) > 1:
            del segments[at]
        elif kind == 1:
            segments.insert(rng.randrange(len(segments)), segments[at])
        elif kind == 2:
            segments.insert(rng.randrange(len(segments)), rng.choice(extras()))
        else:
            segments[at] = marker, bytes_changed(rng, body, 3)[:65533]
    if rng.random() < 0.2:
        at = rng.randrange(len(segments))
        segments[at] = segments[at][0], bytes_changed(rng, segments[at][1], 3)[:65533]
    rest = data[place:]
    return files.with_segments(b"\xff\xd8" + (bytes_changed(rng, rest, 3) if rng.random() < 0.3 else rest), *segments)


@lru_cache(maxsize=1)
def extras() -> list[tuple[int, bytes]]:
    """Segments with metadata, gain maps and Adobe's transform."""
    photoshop = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x08" + blocks()["IPTC"][0][:8]
    ns = b"http://ns.adobe.com/"
    return [
        (0xE1, b"Exif\0\0" + blocks()["EXIF"][0]),
        (0xE1, ns + b"xap/1.0/\0" + blocks()["XMP"][0]),
        (0xE1, ns + b"xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 2**31, 0) + b"<a/>"),
        (0xE2, b"ICC_PROFILE\0\x01\x02" + colour.profile_of(colour.Cicp(9, 14))),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + bytes(20)),
        (0xED, photoshop),
        (0xEE, b"Adobe\0d\0\0\0\0\2"),
        (0xFE, b"a comment"),
    ]


def check(data: bytes) -> str:
    picture = image.load(data, max_pixels=MAX_PIXELS)
    height, width, channels = picture.pixels.shape
    assert channels == 3
    assert width * height <= MAX_PIXELS
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.dtype == (np.uint8 if picture.depth == 8 else np.uint16)
    assert int(picture.pixels.max()) < 1 << picture.depth
    assert picture.alpha is None or picture.alpha.shape == (height, width)
    assert all("\n" not in note for note in picture.notes)
    image.write(image.Picture(picture.pixels[:64, :64], picture.metadata, cicp=picture.cicp), "png", io.BytesIO())
    return "shown"
