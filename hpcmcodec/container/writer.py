"""Writes files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcmcodec.container.chunks import LEADING, chunks_to_write
from hpcmcodec.container.fields import crc32_bytes, low_bytes, require, run_on, varint
from hpcmcodec.container.header import (
    CHECK_BYTES,
    CHUNK_TABLE,
    CICP,
    DEPTH,
    DEPTHS,
    FULL,
    GREY,
    HEADER_CHECK_BYTES,
    MAGIC,
    MAX_HEADER,
    MAX_SIDE,
    MODEL_ID_BYTES,
    PICTURE,
    STREAM_ORDER,
    TILE_SIDE,
    TILE_SIDES,
    VERSION,
    WORD_BYTES,
    max_stream_bytes,
    n_tiles_of,
)
from hpcmcodec.quality import Quality


@dataclass(frozen=True, slots=True)
class Stream:
    """One coded stream, as the encoder hands it over.

    Attributes:
        data: the bytes of the entropy coder, whole words of 4 bytes.
        latents_crc: CRC-32 of the integers that the stream decodes to, 0..2^32-1.
    """

    data: bytes
    latents_crc: int


def pack(
    *,
    model_id: bytes,
    width: int,
    height: int,
    quality: Quality,
    streams: Mapping[str, Sequence[Stream]],
    metadata: Mapping[str, bytes] | None = None,
    tile_side: int = TILE_SIDE,
    full: bool = False,
    depth: int = 8,
    grey: bool = False,
    cicp: tuple[int, int] | None = None,
    picture_crc: int | None = None,
) -> bytes:
    """Write a file.

    Args:
        model_id: the id of the weights, of which the file holds the first 4 bytes.
        width, height: pixels, 1..2^31-1.
        quality, tile_side, full, depth, grey, cicp, picture_crc: as in `Header`.
        streams: for each scale of `STREAM_ORDER` one stream for each tile.
        metadata: bytes by the names of `CHUNKS`; empty ones are left out, as the format has no empty chunks.

    Raises:
        ValueError: an argument does not fit the format.
        UnsupportedError: metadata take more than 2^26 bytes, which readers refuse.
    """
    require(len(model_id) >= MODEL_ID_BYTES, f"model_id has {len(model_id)} bytes, not {MODEL_ID_BYTES} or more")
    for name, side in (("width", width), ("height", height)):
        require(1 <= side <= MAX_SIDE, f"{name} {side} is not in 1..{MAX_SIDE}")
    require(tile_side in TILE_SIDES, f"tile side {tile_side} is none of {TILE_SIDES}")
    require(depth in DEPTHS, f"depth {depth} is not in {DEPTHS.start}..{DEPTHS.stop - 1}")
    require(set(streams) == set(STREAM_ORDER), f"streams are those of {sorted(streams)}, not of {list(STREAM_ORDER)}")
    n_tiles = n_tiles_of(width, height, tile_side)
    for scale in STREAM_ORDER:
        require(len(streams[scale]) == n_tiles, f"{scale} has {len(streams[scale])} streams for {n_tiles} tiles")
    n_bytes = sum(len(stream.data) for of_scale in streams.values() for stream in of_scale)
    require(n_bytes <= max_stream_bytes(width, height), f"streams of {n_bytes} bytes: no reader takes as many")

    chunks = chunks_to_write(metadata or {})
    flags, optional = TILE_SIDES.index(tile_side) | FULL * full | GREY * grey, b""
    if depth != DEPTHS.start:
        flags, optional = flags | DEPTH, bytes([depth])
    if cicp is not None:
        flags, optional = flags | CICP, optional + bytes(cicp)
    if picture_crc is not None:
        flags, optional = flags | PICTURE, optional + struct.pack("<I", picture_crc)
    if chunks:
        flags, optional = flags | CHUNK_TABLE, optional + bytes([len(chunks)])
        optional += b"".join(tag + bytes([chunk_flags]) + varint(len(data)) for tag, chunk_flags, data in chunks)
    body = [model_id[:MODEL_ID_BYTES], *map(varint, (flags, width, height, quality.hundredths)), optional]
    for scale in STREAM_ORDER:
        for stream in streams[scale]:
            require(len(stream.data) % WORD_BYTES == 0, f"a stream of {scale} has {len(stream.data)} bytes")
            body.append(varint(len(stream.data) // WORD_BYTES))
    rest = sum(map(len, body)) + HEADER_CHECK_BYTES
    require(rest <= MAX_HEADER, f"a header of {rest} bytes: the format's limit is {MAX_HEADER}")
    header = b"".join([MAGIC, varint(VERSION), varint(rest), *body])
    crc = zlib.crc32(header)
    sections = [header, low_bytes(crc, HEADER_CHECK_BYTES)]
    sections += [data + crc32_bytes(data) for _, chunk_flags, data in chunks if chunk_flags & LEADING]
    running = [crc] * n_tiles
    for scale in STREAM_ORDER:
        for tile, stream in enumerate(streams[scale]):
            running[tile] = run_on(running[tile], stream.latents_crc)
            sections += [stream.data, low_bytes(running[tile], CHECK_BYTES[scale])]
    sections += [data + crc32_bytes(data) for _, chunk_flags, data in chunks if not chunk_flags & LEADING]
    whole = b"".join(sections)
    return whole + crc32_bytes(whole)
