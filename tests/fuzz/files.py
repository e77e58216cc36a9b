"""Whole files whose checksums hold, of anything: decoded to the end and written as images.

Streams that decode come from real files and from latents far beyond what pictures have; others are changed at will.
What a stream that was changed decodes to has another CRC than its check: an attacker would compute the right one, so
here every check passes. Now and then they are computed indeed, and the file is decoded as users do.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from hpcmcodec import codec, container, formats, image, weights
from hpcmcodec.container import STREAM_ORDER
from hpcmcodec.engines import light
from hpcmcodec.errors import HpcmError, IntegrityError
from hpcmcodec.image import colour
from hpcmcodec.quality import Quality
from tests import tiny
from tests.fuzz.parts import TAGS, Parts, built, bytes_changed, chunk, in_order

MAX_SIDE = 256
FORMS = [form for form in formats.FORMATS if form != "avif"]  # its encoder takes longer than all the rest
_seen: dict[str, list[int]] = {}


def prepare() -> None:
    seeds()


@lru_cache(maxsize=1)
def seeds() -> list[Parts]:
    """Files that decode: of pictures, of latents of all sizes, and those that are kept with the tests."""
    found = []
    coder = light.LightEngine(tiny.load()).coder
    with tiny.installed():
        for seed in range(12):
            rng = random.Random(seed)
            width, height = rng.randint(1, 70), rng.randint(1, 70)
            data = codec.encode(tiny.picture(width, height, seed), rng.randrange(101), model=tiny.NAME)
            found.append(parts_of(data))
    for seed in range(12):
        rng = random.Random(seed)
        width, height, tile = rng.randint(1, 60), rng.randint(1, 200 if seed < 3 else 60), rng.randrange(3)
        quality, full = rng.randrange(10_001), rng.random() < 0.5
        y, z = tiny.latents(-(-height // 16), -(-width // 16), seed)
        coded, _ = coder.encode(y * np.float32(rng.choice((0.1, 1, 30))), z, Quality(quality), full=full)
        streams = {s: [c.data] for s, c in coded.items()}
        crcs = {s: [c.latents_crc] for s, c in coded.items()}
        found.append(Parts(width, height, quality, tile, full, streams=streams, crcs=crcs))
    return found


def parts_of(data: bytes) -> Parts:
    header = container.parse_header(data)
    found = tiny.streams_of(data)
    return Parts(
        header.width,
        header.height,
        header.quality.hundredths,
        container.TILE_SIDES.index(header.tile_side),
        header.full,
        streams={s: [stream.data for stream in of] for s, of in found.items()},
        crcs={s: [stream.latents_crc for stream in of] for s, of in found.items()},
    )


def make(rng: random.Random) -> bytes:
    seed = rng.choice(seeds())
    parts = Parts(**vars(seed))
    parts.streams = {scale: list(of) for scale, of in parts.streams.items()}
    parts.grey = rng.random() < 0.3
    if rng.random() < 0.3:
        parts.depth = rng.randint(9, 16)
    if rng.random() < 0.3:
        parts.cicp = bytes((rng.choice((0, 1, 2, 9, 12, 99)), rng.choice((1, 2, 8, 13, 16, 18, 255))))
    if rng.random() < 0.1:
        parts.picture = rng.randrange(2**32)
    if rng.random() < 0.15:
        parts.quality = rng.randrange(10_001)
    if rng.random() < 0.15:
        parts.full = not parts.full
    if rng.random() < 0.05:  # more latents than there are
        parts.width, parts.height = rng.randint(1, MAX_SIDE), rng.randint(1, MAX_SIDE)
    elif rng.random() < 0.2:  # another size of as many
        parts.width, parts.height = (16 * ((n - 1) // 16) + rng.randint(1, 16) for n in (parts.width, parts.height))
    if rng.random() < 0.4:
        change_streams(rng, parts)
    if rng.random() < 0.5:
        parts.chunks = [metadata_of(rng, parts) for _ in range(rng.choice((1, 1, 2, 5)))]
        parts = in_order(parts)
    return built(parts)


def change_streams(rng: random.Random, parts: Parts) -> None:
    for scale in rng.sample(STREAM_ORDER, rng.choice((1, 1, 1, 2, 4))):
        kind, data = rng.randrange(6), parts.streams[scale][0]
        if kind == 0:
            data = b""
        elif kind == 1:
            data = rng.randbytes(4 * rng.randrange(2, 60))
        elif kind == 2:
            data = parts.streams[rng.choice(STREAM_ORDER)][0]
        else:
            data = bytes_changed(rng, data, rng.choice((1, 1, 3)))
        if len(data) > 7 and rng.random() < 0.7:  # a first state that the coder takes
            data = data[:7] + bytes([max(data[7], 1) & 0x7F]) + data[8:]
        parts.streams[scale][0] = data[: len(data) // 4 * 4]


def metadata_of(rng: random.Random, parts: Parts) -> tuple[bytes, int, bytes]:
    """A chunk of any kind, in which a little is wrong, or nothing."""
    tag = rng.choice(TAGS[:8])
    content = rng.choice(blocks()[tag.decode().strip()])
    if tag == b"ALPH":
        content = alpha(rng, parts.width, parts.height)
    elif rng.random() < 0.7:
        content = bytes_changed(rng, content, rng.choice((1, 1, 3, 8)))
    return chunk(rng, tag, content)


@lru_cache(maxsize=1)
def blocks() -> dict[str, list[bytes]]:
    """Metadata of each kind that are as they should be."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x011A], exif[0x011B], exif[0x0128] = "Maker", 6, 300.0, 300.0, 2
    exif[0x9C9B] = b"t\0\0\0"
    details, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    details[0xA002], details[0xA003], details[0x9214], details[0x927C] = 40, 30, (1, 2, 3, 4), b"maker note"
    place[1], place[2] = "N", (1.0, 2.0, 3.0)
    block = exif.tobytes()[6:]
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        + (b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>')
    )
    return {
        "EXIF": [block, b"Exif\0\0" + block, b"MM\0*\0\0\0\x08\0\0\0\0\0\0"],
        "XMP": [packet, b"<a/>"],
        "IPTC": [b"\x1c\x02\x05\0\x05Title\x1c\x02\x19\0\x03key"],
        "TEXT": [container.packed_text({"Title": "T", "Comment": "words\nof two lines"})],
        "ICC": [colour.profile_of(colour.Cicp(12, 13)), colour.profile_of(colour.Cicp(9, 14))],
        "ALPH": [b""],
        "abcd": [b"unknown"],
        "zz": [b"unknown"],
    }


def alpha(rng: random.Random, width: int, height: int) -> bytes:
    """A PNG of opacity, whose chunks may be changed and then have right CRCs."""
    if rng.random() < 0.2:
        width = rng.choice((1, width + 1, 70_000))
    depth = rng.choice((8, 8, 16, 1))
    row = bytes(1) + bytes(-(-width * depth // 8))
    header = struct.pack(">IIBBBBB", width, height, depth, rng.choice((0, 0, 0, 4, 3)), 0, 0, rng.random() < 0.1)
    rows = zlib.compress(row * min(height, 300))
    chunks = [(b"IHDR", header), (b"tEXt", b"a\0b"), (b"IDAT", rows), (b"IEND", b"")]
    if rng.random() < 0.5:
        at = rng.randrange(len(chunks))
        chunks[at] = (chunks[at][0], bytes_changed(rng, chunks[at][1], 2))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@contextmanager
def installed() -> Iterator[None]:
    """The tiny model is a packaged one. It is known by its id without looking through all of them."""
    find = weights.find

    def quickly(model_id: bytes) -> str:
        return tiny.NAME if tiny.load().model_id.startswith(model_id) else find(model_id)

    with tiny.installed(), patch.object(weights, "find", quickly):
        yield


def _passing(reader: container.Reader, tile: int) -> Any:
    """In place of `Reader.verifier`: takes all integers, and remembers their CRC."""

    def verify(scale: str, crc: int) -> bool:
        _seen.setdefault(scale, []).append(crc)
        return True

    return verify


def check(data: bytes) -> str:
    rng = random.Random(zlib.adler32(data))  # not a CRC: over bytes with their own one it is always the same
    _seen.clear()
    with installed(), patch.object(container.Reader, "verifier", _passing):
        picture = decoded(rng, data)
    with suppress(IntegrityError):
        if rng.random() < 0.1 and len(_seen) == 4:
            repaired(data, picture)
    form = rng.choice(FORMS)
    file = io.BytesIO()
    image.write(picture, form, file)
    try:
        shown = image.load(file.getvalue(), max_pixels=None)
    except HpcmError as error:
        raise AssertionError(f"what was written as {form} cannot be read: {error}") from error
    assert shown.pixels.shape == picture.pixels.shape
    return form


def decoded(rng: random.Random, data: bytes) -> image.Picture:
    """One of the ways to decode a file, and what must hold of its picture."""
    limits = container.Limits(max_pixels=MAX_SIDE**2, max_side=None)
    header = container.parse_header(data, **limits)
    size = header.width, header.height
    options: dict[str, Any] = rng.choice(
        ({}, {}, {"depth": 8}, {"depth": 16}, {"thumbnail": True}, {"scale": "s2"}, {"region": 1})
    )
    if "region" in options:
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        size = rng.randint(1, size[0] - x), rng.randint(1, size[1] - y)
        options = {"region": (x, y, *size)}
    if "thumbnail" in options:
        size = -(-size[0] // 8), -(-size[1] // 8)
    picture = codec.decode_picture(data, **options, **limits)
    assert picture.pixels.shape == (size[1], size[0], 3)
    assert picture.alpha is None or picture.alpha.shape == (size[1], size[0])
    assert picture.pixels.dtype == (np.uint8 if picture.depth == 8 else np.uint16)
    return picture


def repaired(data: bytes, picture: image.Picture) -> None:
    """Decode the file with the checks that an attacker would have computed: it shows the same."""
    header = container.parse_header(data)
    if header.n_tiles > 1 or header.picture_crc is not None:
        return
    out, running = bytearray(data), header.crc
    for scale in STREAM_ORDER:
        info = header.stream_info(scale, 0)
        running = zlib.crc32(struct.pack("<I", _seen[scale][0]), running)
        n_bytes = info.end - info.offset - info.length
        out[info.end - n_bytes : info.end] = struct.pack("<I", running)[:n_bytes]
    out[-4:] = struct.pack("<I", zlib.crc32(out[:-4]))
    with installed():
        try:
            again = codec.decode_picture(bytes(out), depth=16 if picture.depth > 8 else 8)
        except HpcmError as error:
            raise AssertionError(f"a file with right checks: {error}") from error
    if again.pixels.shape == picture.pixels.shape:
        assert np.array_equal(again.pixels, picture.pixels)
