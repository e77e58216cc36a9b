"""Headers with right checks whose fields are anything: parsed, and their metadata read as far as they are there."""

from __future__ import annotations

import random

from hpcmcodec import container
from hpcmcodec.container import STREAM_ORDER
from hpcmcodec.errors import InputError
from tests.fuzz.parts import NUMBERS, TAGS, Parts, built, bytes_changed, chunk, in_order, varint


def make(rng: random.Random) -> bytes:
    parts = Parts(
        rng.choice((1, 16, 17, 300, 4096)), rng.choice((1, 5, 64, 700)), rng.randrange(10_001), rng.randrange(3)
    )
    parts.full, parts.grey = rng.random() < 0.3, rng.random() < 0.3
    if rng.random() < 0.3:
        parts.depth = rng.randint(9, 16)
    if rng.random() < 0.3:
        parts.cicp = rng.randbytes(2)
    if rng.random() < 0.3:
        parts.picture = rng.randrange(2**32)
    parts.chunks = [
        chunk(rng, tag, rng.choice((b"x", b"a\0b\0", bytes(300), rng.randbytes(20))))
        for tag in rng.sample(TAGS, rng.choice((0, 0, 1, 2, 4)))
    ]
    if rng.random() < 0.8:
        parts = in_order(parts)
    parts.streams = {scale: [bytes(4 * rng.randrange(5)) for _ in range(parts.n_tiles)] for scale in STREAM_ORDER}
    data = built(parts, None if rng.random() < 0.15 else lambda fields: changed(rng, fields))
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    return bytes_changed(rng, data, 2) if rng.random() < 0.05 else data


def changed(rng: random.Random, fields: list[bytes]) -> list[bytes]:
    """Other numbers, in other forms, fields left out, doubled and exchanged."""
    fields = list(fields)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, kind = rng.randrange(len(fields)), rng.randrange(8)
        if kind < 3:
            fields[at] = varint(rng.choice(NUMBERS), rng.random() < 0.1)
        elif kind == 3:
            fields[at] = bytes_changed(rng, fields[at], 1)
        elif kind == 4:
            fields[at] = b""
        elif kind == 5:
            fields.insert(at, fields[at])
        elif kind == 6:
            other = rng.randrange(len(fields))
            fields[at], fields[other] = fields[other], fields[at]
        else:
            fields[at] = bytes([rng.randrange(256)]) * rng.choice((1, 1, 2, 6))
    return fields


def check(data: bytes) -> str:
    reader = container.Reader(data, max_pixels=None, max_side=None)
    header = reader.header
    assert container.parse_header(data[: header.header_bytes], max_pixels=None, max_side=None) == header
    assert list(header.offsets) == sorted(header.offsets)
    assert header.file_bytes >= header.header_bytes + 4
    assert 8 <= header.depth <= 16
    assert header.n_tiles == len(header.tiles)
    scales = reader.scales()
    assert scales == STREAM_ORDER[: len(scales)]
    metadata = reader.metadata(partial=True)
    if "TEXT" in metadata:
        try:
            container.text_of(metadata["TEXT"])
        except InputError:
            return "malformed texts"
    try:
        reader.verify_complete()
    except InputError:
        return "cut"
    if all(c.known for c in header.chunks):
        # A header has one form: written again, it has the same bytes.
        streams = {s: [container.Stream(reader.stream(s, i), 0) for i in range(header.n_tiles)] for s in STREAM_ORDER}
        kept = {c.name: metadata[c.name] for c in header.chunks}
        again = container.pack(
            model_id=header.model_id,
            width=header.width,
            height=header.height,
            quality=header.quality,
            streams=streams,
            metadata=kept,
            tile_side=header.tile_side,
            full=header.full,
            depth=header.depth,
            grey=header.grey,
            cicp=header.cicp,
            picture_crc=header.picture_crc,
        )
        written = container.parse_header(again, max_pixels=None, max_side=None)
        if [(c.name, c.flags, c.length) for c in written.chunks] == [
            (c.name, c.flags, c.length) for c in header.chunks
        ]:
            assert again[: header.header_bytes] == data[: header.header_bytes]
    return "read"
