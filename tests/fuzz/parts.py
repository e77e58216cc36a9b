"""A `.hpcm` file in parts that can be changed one by one, and made into bytes again with checksums that hold."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hpcmcodec.container import STREAM_ORDER, TILE_SIDES
from tests import tiny

NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    17,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    1000,
    4096,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
TAGS = (b"ALPH", b"EXIF", b"ICC ", b"IPTC", b"TEXT", b"XMP ", b"abcd", b"zz  ", b"A\0  ", b"    ")
CHECKS = {"z": 2, "s1": 2, "s2": 2, "s3": 4}


@dataclass
class Parts:
    """What a file says. chunks: tag, flags, content as stored. streams and crcs: for each scale, for each tile."""

    width: int
    height: int
    quality: int = 5000
    tile: int = 0
    full: bool = False
    grey: bool = False
    depth: int | None = None
    cicp: bytes | None = None
    picture: int | None = None
    chunks: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    streams: dict[str, list[bytes]] = field(default_factory=dict)
    crcs: dict[str, list[int]] = field(default_factory=dict)

    @property
    def n_tiles(self) -> int:
        side = 16 * TILE_SIDES[self.tile % len(TILE_SIDES)]
        return -(-self.width // side) * -(-self.height // side)


def varint(value: int, more: int = 0) -> bytes:
    """A number as the format has it; `more`: with as many superfluous bytes."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)] + [0] * more
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def fields(parts: Parts) -> list[bytes]:
    """The header's fields behind its size, in order."""
    flags = parts.tile | 4 * parts.grey | 32 * parts.full
    optional = []
    if parts.depth is not None:
        flags |= 8
        optional.append(bytes([parts.depth & 255]))
    if parts.cicp is not None:
        flags |= 16
        optional.append(parts.cicp)
    if parts.picture is not None:
        flags |= 128
        optional.append(struct.pack("<I", parts.picture))
    if parts.chunks:
        flags |= 64
        optional.append(bytes([len(parts.chunks) & 255]))
        for tag, chunk_flags, content in parts.chunks:
            optional += [tag, bytes([chunk_flags]), varint(len(content))]
    words = [varint(len(data) // 4) for scale in STREAM_ORDER for data in parts.streams[scale]]
    numbers = [varint(number) for number in (flags, parts.width, parts.height, parts.quality)]
    return [tiny.load().model_id[:4], *numbers, *optional, *words]


def sealed(header: list[bytes], size: int | None = None) -> bytes:
    """A header whose size and check hold."""
    body = b"".join(header)
    start = b"\x8bHPC\x02" + varint(len(body) + 2 if size is None else size) + body
    return start + zlib.crc32(start).to_bytes(4, "little")[:2]


def built(parts: Parts, change: Callable[[list[bytes]], list[bytes]] | None = None) -> bytes:
    """The file, whose checksums hold. change: is given the header's fields, and returns others."""
    header = fields(parts)
    data = sealed(change(header) if change else header)
    running = [zlib.crc32(data[:-2])] * max(1, parts.n_tiles)
    out = [data, *(c + struct.pack("<I", zlib.crc32(c)) for _, flags, c in parts.chunks if flags & 2)]
    for scale in STREAM_ORDER:
        for tile, stream in enumerate(parts.streams[scale]):
            of = parts.crcs.get(scale) or [0]
            at = tile % len(running)
            running[at] = zlib.crc32(struct.pack("<I", of[tile % len(of)]), running[at])
            out += [stream, struct.pack("<I", running[at])[: CHECKS[scale]]]
    out += [c + struct.pack("<I", zlib.crc32(c)) for _, flags, c in parts.chunks if not flags & 2]
    whole = b"".join(out)
    return whole + struct.pack("<I", zlib.crc32(whole))


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def bytes_changed(rng: random.Random, data: bytes, most: int = 8) -> bytes:
    """`data` with bits flipped, bytes set, parts cut, doubled or inserted."""
    out = bytearray(data or b"\0")
    for _ in range(rng.randint(1, most)):
        at, kind = rng.randrange(len(out)), rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            number = rng.choice(NUMBERS)
            form = rng.choice(("<I", ">I", "<H", ">H"))
            packed = struct.pack(form, number & (0xFFFFFFFF if form[1] == "I" else 0xFFFF))
            out[at : at + len(packed)] = packed
        elif kind == 3:
            del out[at : at + rng.choice((1, 4, 64))]
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 4, 64))]
        elif kind == 5:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
        else:
            del out[at:]
        if not out:
            return b"\0"
    return bytes(out)


def chunk(rng: random.Random, tag: bytes, content: bytes) -> tuple[bytes, int, bytes]:
    """A chunk with the flags of its tag, perhaps deflated."""
    flags = {b"ICC ": 2, b"ALPH": 1}.get(tag, 0)
    if rng.random() < 0.05:
        flags |= rng.choice((1, 2, 8, 64, 128))
    if rng.random() < 0.3:
        return tag, flags | 4, deflated(content) or b"\0"
    return tag, flags, content or b"\0"


def in_order(parts: Parts) -> Parts:
    """With the chunks as the format wants them: no tag twice, leading ones first, then by their tags."""
    chunks = {tag: (tag, flags, content) for tag, flags, content in parts.chunks}
    return replace(parts, chunks=sorted(chunks.values(), key=lambda c: (not c[1] & 2, c[0])))
