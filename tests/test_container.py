"""The file format: its specification by examples, its refusals, and what a damaged or cut file gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from hpcmcodec import container
from hpcmcodec.container import (
    CHUNKS,
    STREAM_ORDER,
    Header,
    Reader,
    Stream,
    edited,
    pack,
    packed_text,
    parse_header,
    text_of,
)
from hpcmcodec.errors import HpcmError, InputError, IntegrityError, UnsupportedError
from hpcmcodec.quality import Quality

FORMAT = Path(__file__).parent.parent / "docs" / "FORMAT.md"


def crc(data: bytes, start: int = 0) -> bytes:
    return zlib.crc32(data, start).to_bytes(4, "little")


# A file written by hand from the specification: 1028x3 pixels in tiles of 64 latents, hence two, with every optional
# field, and chunks of all kinds (known and unknown, leading and trailing, deflated).
HEADER = """
    8b 48 50 43                  magic
    02                           version
    36                           rest: 54 bytes
    68 70 63 6d                  model id "hpcm"
    fe 01                        flags: tile side 64, grey, depth, CICP, full, chunks, picture
    84 08                        width 4 + 8 * 128
    03                           height
    d2 09                        quality 82 + 9 * 128 = 1234
    0c                           depth 12
    09 10                        primaries 9, transfer function 16
    78 56 34 12                  CRC of the pixels
    04                           four chunks
    49 43 43 20  02  0b          "ICC ", leading, 11 bytes
    68 69 6e 74  02  05          "hint", leading, unknown, 5 bytes
    45 58 49 46  04  08          "EXIF", trailing, deflated, 8 bytes
    6e 6f 74 65  00  01          "note", trailing, unknown, 1 byte
    02 01                        z: 2 words and 1
    01 00                        s1: 1 word and none
    00 00                        s2
    80 01 05                     s3: 128 words and 5
"""
LEADING_CHUNKS = (b"icc profile", b"extra")
TRAILING_CHUNKS = (bytes.fromhex("f3 f4 d4 62 f0 24 80 01"), b"a")
STREAMS = (b"12345678", b"\0\0\0\0", b"s1 1", b"", b"", b"", b"\0" * 512, b"right" * 4)
CRCS = (1, 2, 3, 0, 5, 0, 0xFFFFFFFF, 8)


def from_dump(dump: str) -> bytes:
    """The bytes at the start of each line, before the note."""
    lines = [re.match(r"\s*((?:[0-9a-f]{2}\s+)+)", line + " ") for line in dump.splitlines()]
    return b"".join(bytes.fromhex(line[1]) for line in lines if line)


def written_by_hand() -> bytes:
    header = from_dump(HEADER)
    data = header + crc(header)[:2] + b"".join(chunk + crc(chunk) for chunk in LEADING_CHUNKS)
    running = [zlib.crc32(header)] * 2
    for i, (stream, latents_crc) in enumerate(zip(STREAMS, CRCS, strict=True)):
        running[i % 2] = zlib.crc32(latents_crc.to_bytes(4, "little"), running[i % 2])
        data += stream + running[i % 2].to_bytes(4, "little")[: 4 if i >= 6 else 2]
    data += b"".join(chunk + crc(chunk) for chunk in TRAILING_CHUNKS)
    return data + crc(data)


EXAMPLE = written_by_hand()
HEADER_BYTES = len(from_dump(HEADER)) + 2


def varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def sealed(body: bytes, *, version: int = 2) -> bytes:
    """A header with the given fields behind `rest`, its size and check as they should be."""
    header = b"\x8bHPC" + bytes([version]) + varint(len(body) + 2) + body
    return header + crc(header)[:2]


def body(
    *,
    flags: bytes | None = None,
    width: bytes = varint(768),
    height: bytes = varint(512),
    quality: int = 5000,
    optional: bytes = b"",
    chunks: tuple[bytes, ...] = (),
    streams: bytes = bytes(4),
) -> bytes:
    """The fields between `rest` and the check, each of which a test can replace."""
    table = bytes([len(chunks)]) + b"".join(chunks) if chunks else b""
    flags = bytes([64 * bool(chunks)]) if flags is None else flags
    return b"hpcm" + flags + width + height + varint(quality) + optional + table + streams


def chunk(tag: bytes, flags: int, length: bytes = varint(1)) -> bytes:
    return tag + bytes([flags]) + length


def small_file(metadata: dict[str, bytes] | None = None, **changes: Any) -> bytes:
    streams = {scale: [Stream(scale.encode().ljust(4) * 3, index)] for index, scale in enumerate(STREAM_ORDER)}
    arguments: dict[str, Any] = {
        "model_id": b"model id",
        "width": 24,
        "height": 9,
        "quality": Quality(5000),
        "streams": streams,
    }
    return pack(**(arguments | changes), metadata=metadata)


def verify(data: bytes) -> None:
    Reader(data).verify_complete()


# The specification


def test_the_hand_written_file_is_read_as_the_specification_says() -> None:
    header = parse_header(EXAMPLE)
    assert (header.version, header.model_id) == (2, b"hpcm")
    assert (header.width, header.height, header.quality) == (1028, 3, Quality(1234))
    assert (header.tile_side, header.depth, header.full, header.grey, header.cicp) == (64, 12, True, True, (9, 16))
    assert header.picture_crc == 0x12345678
    assert (header.latent_height, header.latent_width) == (1, 65)
    assert (header.n_tiles, header.tiles) == (2, [(0, 0, 1, 64), (0, 64, 1, 1)])
    assert (header.header_bytes, header.file_bytes) == (HEADER_BYTES, len(EXAMPLE))
    first = HEADER_BYTES + 15 + 9
    last = first + 8 + 4 + 4 + 8 * 2 + 512 + 20 + 4
    assert [(info.name, info.flags, info.length, info.offset) for info in header.chunks] == [
        ("ICC", 2, 11, HEADER_BYTES),
        ("hint", 2, 5, HEADER_BYTES + 15),
        ("EXIF", 4, 8, last),
        ("note", 0, 1, last + 12),
    ]
    assert header.lengths == tuple(map(len, STREAMS))
    assert header.offsets == (first, first + 10, first + 16, first + 22, *(first + n for n in (24, 26, 28, 544)))
    assert [header.bytes_of(scale) for scale in STREAM_ORDER] == [12, 4, 0, 532]


def test_the_sections_of_the_hand_written_file_are_found() -> None:
    reader = Reader(EXAMPLE)
    reader.verify_complete()
    assert [reader.stream(scale, tile) for scale in STREAM_ORDER for tile in (0, 1)] == list(STREAMS)
    assert reader.metadata() == {"ICC": b"icc profile", "EXIF": b"II*\0" * 9}
    assert reader.scales() == STREAM_ORDER


def test_the_hand_written_file_without_unknown_chunks_is_the_one_that_is_written() -> None:
    reader = Reader(EXAMPLE)
    header = reader.header
    streams = {s: [Stream(STREAMS[2 * i + t], CRCS[2 * i + t]) for t in (0, 1)] for i, s in enumerate(STREAM_ORDER)}
    fields = {
        n: getattr(header, n) for n in ("width", "height", "quality", "tile_side", "depth", "full", "grey", "cicp")
    }
    data = pack(model_id=b"hpcm", streams=streams, picture_crc=header.picture_crc, metadata=reader.metadata(), **fields)
    mine = from_dump(re.sub(r".*(hint|note).*\n", "", HEADER).replace("04    ", "02    "))
    mine = mine.replace(b"\x02\x36", b"\x02" + bytes([0x36 - 12]))
    assert data[: len(mine)] == mine
    assert Reader(data).metadata() == reader.metadata()


def example_of_the_specification() -> bytes:
    data = b""
    for offset, hexadecimal in re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} )+)", FORMAT.read_text(), re.MULTILINE):
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(hexadecimal)
    return data


def test_the_specifications_example_is_a_golden_file() -> None:
    assert example_of_the_specification() == (tiny.DATA / "tiny-7x5.hpcm").read_bytes()


def test_the_specifications_example_is_decoded_byte_by_byte() -> None:
    """Nothing of the package is used here: the specification alone, applied to the bytes that stand in it."""
    data, at = example_of_the_specification(), 0

    def take(n: int) -> bytes:
        nonlocal at
        at += n
        return data[at - n : at]

    def number() -> int:
        value, shift = 0, 0
        while True:
            byte = take(1)[0]
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    assert take(5) == b"\x8bHPC\x02"
    end = number() + at
    assert take(4) == bytes.fromhex("43747537")
    assert [number() for _ in range(4)] == [0, 7, 5, 9550]
    lengths = [4 * number() for _ in STREAM_ORDER]
    running = zlib.crc32(data[:at])
    assert take(2) == running.to_bytes(4, "little")[:2]
    assert (at, lengths) == (end, [8, 0, 0, 12])
    said = re.findall(r"^ +(z|s1|s2|s3): ([0-9A-F]{8})$", FORMAT.read_text(), re.MULTILINE)
    streams = []
    for length, (scale, latents_crc) in zip(lengths, said, strict=True):
        streams.append(take(length))
        running = zlib.crc32(bytes.fromhex(latents_crc)[::-1], running)
        assert take(4 if scale == "s3" else 2) == running.to_bytes(4, "little")[: 4 if scale == "s3" else 2]
    assert zlib.crc32(data[:at]) == int.from_bytes(take(4), "little")
    assert at == len(data)
    assert [scale for scale, _ in said] == list(STREAM_ORDER)
    assert {s: c[0].latents_crc for s, c in tiny.streams_of(data).items()} == {s: int(c, 16) for s, c in said}


def test_the_module_needs_the_standard_library_alone() -> None:
    script = (
        "import sys; before = set(sys.modules); import hpcmcodec.container; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(container.__file__).parents[2])}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert set(result.stdout.split()) - set(sys.stdlib_module_names) == {"hpcmcodec"}


# Writing


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    side = draw(st.sampled_from([64, 128, 256]))
    sizes = st.one_of(st.integers(1, 9000), st.sampled_from([1, 16, 1024, 1025, 4096, 4097, 8193]))
    width, height = draw(sizes), draw(sizes)
    n_tiles = -(-width // (16 * side)) * -(-height // (16 * side))
    stream = st.builds(Stream, st.binary(max_size=50).map(lambda data: data * 4), st.integers(0, 2**32 - 1))
    few = draw(st.lists(stream, min_size=1, max_size=5))
    names = st.sampled_from(sorted(container.CHUNKS))
    return {
        "model_id": draw(st.binary(min_size=4, max_size=4)),
        "width": width,
        "height": height,
        "quality": Quality(draw(st.integers(0, 10000))),
        "tile_side": side,
        "depth": draw(st.integers(8, 16)),
        "full": draw(st.booleans()),
        "grey": draw(st.booleans()),
        "cicp": draw(st.none() | st.tuples(st.integers(0, 255), st.integers(0, 255))),
        "picture_crc": draw(st.none() | st.integers(0, 2**32 - 1)),
        "streams": {s: [few[(i + k) % len(few)] for i in range(n_tiles)] for k, s in enumerate(STREAM_ORDER)},
        "metadata": draw(st.dictionaries(names, st.binary(min_size=1, max_size=40).map(lambda data: data * 7))),
    }


@given(contents())
def test_what_was_packed_is_read(given_contents: dict[str, Any]) -> None:
    data = pack(**given_contents)
    reader = Reader(data)
    reader.verify_complete()
    header = reader.header
    for name in set(given_contents) - {"streams", "metadata"}:
        assert getattr(header, name) == given_contents[name]
    assert header.file_bytes == len(data)
    assert reader.metadata() == given_contents["metadata"]
    for tile in range(header.n_tiles):
        agrees = reader.verifier(tile)
        for scale in STREAM_ORDER:
            stream = given_contents["streams"][scale][tile]
            assert reader.stream(scale, tile) == stream.data
            assert agrees(scale, stream.latents_crc)


@given(st.integers(1, 20000), st.integers(1, 20000), st.sampled_from([256, 128, 64]))
def test_the_tiles_cover_the_latent_plane_in_raster_order(width: int, height: int, side: int) -> None:
    n_tiles = -(-width // (16 * side)) * -(-height // (16 * side))
    flags = bytes([(256, 128, 64).index(side)])
    fields = body(flags=flags, width=varint(width), height=varint(height), streams=bytes(4 * n_tiles))
    header = parse_header(sealed(fields), max_pixels=None)
    rows, cols = -(-height // 16), -(-width // 16)
    assert (header.latent_height, header.latent_width) == (rows, cols)
    assert header.tiles == sorted(header.tiles)
    assert len(header.tiles) == header.n_tiles == n_tiles
    for row, col, n_rows, n_cols in header.tiles:
        assert row % side == col % side == 0
        assert (n_rows, n_cols) == (min(side, rows - row), min(side, cols - col))
    assert sum(n_rows * n_cols for _, _, n_rows, n_cols in header.tiles) == rows * cols


@pytest.mark.parametrize(
    ("side", "n_bytes"),
    [
        *((side, n_bytes) for side in (1, 4096) for n_bytes in ((0, 0, 0, 0), (400, 400, 400, 400))),
        (4096, (65532, 2**22, 2**22, 2**23 - 4)),
    ],
)
def test_a_photo_of_one_tile_costs_at_most_44_bytes_over_its_streams(side: int, n_bytes: tuple[int, ...]) -> None:
    streams = {scale: [Stream(bytes(n), 1)] for scale, n in zip(STREAM_ORDER, n_bytes, strict=True)}
    data = small_file(width=side, height=side, streams=streams, quality=Quality(10000))
    assert len(data) - sum(n_bytes) <= 44


def test_chunks_are_deflated_where_that_makes_them_smaller_and_only_there() -> None:
    long, noise = b"<x:xmpmeta/>" * 1000, os.urandom(1000)
    header = parse_header(data := small_file({"XMP": long, "ALPH": noise}))
    assert {c.name: (c.flags, c.length < 100) for c in header.chunks} == {"ALPH": (1, False), "XMP": (4, True)}
    assert Reader(data).metadata() == {"ALPH": noise, "XMP": long}


@given(st.dictionaries(st.text(min_size=1).filter(lambda k: "\0" not in k), st.text().filter(lambda v: "\0" not in v)))
def test_texts_come_back(text: dict[str, str]) -> None:
    assert text_of(packed_text(text)) == text


@pytest.mark.parametrize("wrong", [b"\xff\0a\0", b"key\0value", b"key\0", b"\0value\0", b"key"])
def test_texts_of_another_form_are_refused(wrong: bytes) -> None:
    with pytest.raises(InputError, match="TEXT"):
        text_of(wrong)
    with pytest.raises(ValueError, match="empty key"):
        packed_text({"": "value"})


def test_the_order_of_the_arguments_does_not_change_the_file() -> None:
    metadata = {"XMP": b"x", "ICC": b"i", "EXIF": b"e"}
    streams = {scale: [Stream(scale.encode().ljust(4), 0)] for scale in reversed(STREAM_ORDER)}
    data = small_file(metadata, streams=streams)
    assert data == small_file(dict(sorted(metadata.items())), streams=dict(sorted(streams.items())))
    assert [chunk.name for chunk in parse_header(data).chunks] == ["ICC", "EXIF", "XMP"]


def test_empty_metadata_is_left_out() -> None:
    assert small_file({"EXIF": b"", "ICC": b""}) == small_file({})


@pytest.mark.parametrize(
    "changes",
    [
        {"model_id": b"3 b"},
        {"tile_side": 32},
        {"depth": 7},
        {"depth": 17},
        {"streams": {scale: [Stream(b"12345", 0)] for scale in STREAM_ORDER}},
        {"width": 0},
        {"height": 2**31},
        {"streams": {}},
        {"streams": {scale: [] for scale in STREAM_ORDER}},
        {"streams": {scale: [Stream(b"", 0)] * 2 for scale in STREAM_ORDER}},
        {"streams": {scale: [Stream(b"", 0)] for scale in (*STREAM_ORDER, "s4")}},
        {"metadata": {"LSHF": b"x"}},
    ],
    ids=str,
)
def test_contents_that_do_not_fit_the_format_are_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\d|LSHF") as caught:
        small_file(**changes)
    assert not isinstance(caught.value, HpcmError)


def test_streams_longer_than_any_reader_takes_are_not_written() -> None:
    streams = {scale: [Stream(bytes(64 * 64 * 2), 0)] for scale in STREAM_ORDER}
    parse_header(small_file(streams=streams))
    with pytest.raises(ValueError, match="streams of 32772 bytes"):
        small_file(streams=streams | {"z": [Stream(bytes(64 * 64 * 2 + 4), 0)]})


# Damage


def test_a_file_that_ends_early_is_refused_at_every_length() -> None:
    for length in range(len(EXAMPLE)):
        message = "empty" if length == 0 else "truncated"
        with pytest.raises(InputError, match=message):
            verify(EXAMPLE[:length])


def test_a_file_that_ends_early_and_is_damaged_too_is_reported_as_truncated() -> None:
    damaged = bytearray(EXAMPLE[:-1])
    damaged[HEADER_BYTES] ^= 1
    with pytest.raises(InputError, match="truncated"):
        verify(bytes(damaged))


def test_every_flipped_bit_is_refused_with_the_error_of_its_place() -> None:
    places: list[tuple[range, type[HpcmError] | tuple[type[HpcmError], ...]]] = [
        (range(4), InputError),
        (range(4, 5), UnsupportedError),
        (range(5, 6), (InputError, IntegrityError)),
        (range(6, len(EXAMPLE)), IntegrityError),
    ]
    for place, expected in places:
        for position in place:
            for bit in range(8):
                damaged = bytearray(EXAMPLE)
                damaged[position] ^= 1 << bit
                with pytest.raises(expected):
                    verify(bytes(damaged))


def test_every_flipped_bit_of_a_header_is_found_by_its_own_check() -> None:
    """`hpcm info` reads nothing else. 1,000 bytes are more than the header of 100 tiles takes."""
    start = b"\x8bHPC\x02" + bytes(1000)
    whole = zlib.crc32(start) & 0xFFFF
    for bit in range(8 * len(start)):
        damaged = bytearray(start)
        damaged[bit // 8] ^= 1 << bit % 8
        assert zlib.crc32(damaged) & 0xFFFF != whole


@given(st.integers(0, len(EXAMPLE)), st.integers(0, 20), st.binary(max_size=20))
def test_bytes_inserted_removed_or_replaced_are_refused(position: int, n_removed: int, inserted: bytes) -> None:
    changed = EXAMPLE[:position] + inserted + EXAMPLE[position + n_removed :]
    if changed != EXAMPLE:
        with pytest.raises(HpcmError):
            verify(changed)


def test_bytes_behind_the_end_are_refused() -> None:
    with pytest.raises(InputError, match="more stand behind its end"):
        verify(EXAMPLE + b"\0")


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_are_refused(noise: bytes, with_valid_start: bool) -> None:
    with pytest.raises(HpcmError):
        verify(sealed(noise) if with_valid_start else noise)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\x8bHP", "truncated"),
        (b"\x8bHPC", "truncated"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "not an .hpcm file"),
        (bytes(byte & 0x7F for byte in EXAMPLE), "not an .hpcm file"),
    ],
    ids=["empty", "cut magic", "magic alone", "JPEG", "7 bits"],
)
def test_the_start_of_a_file_tells_what_happened_to_it(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_header(data)


def test_a_file_of_version_1_is_refused_in_one_line_that_says_so() -> None:
    with pytest.raises(UnsupportedError) as caught:
        parse_header(b"\x8bHPCM\r\n\n\x01\x43" + bytes(100))
    assert str(caught.value) == "a file of format version 1: this program reads version 2 alone"


# Refusals of headers whose CRC is right


@pytest.mark.parametrize(
    "hostile",
    [
        sealed(body(), version=0),
        sealed(body(), version=3),
        sealed(body(flags=varint(256))),
        sealed(body(flags=varint(2**31))),
        sealed(body(flags=b"\x03")),
        sealed(body(chunks=(chunk(b"ALPH", 8 | 1),))),
        sealed(body(chunks=(chunk(b"ICC ", 8 | 2 | 1),))),
        sealed(body(chunks=(chunk(b"LSHF", 1),))),
        sealed(body(chunks=(chunk(b"LSHF", 1 | 2),))),
    ],
)
def test_what_later_versions_may_use_is_refused_as_unsupported(hostile: bytes) -> None:
    with pytest.raises(UnsupportedError):
        parse_header(hostile)


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (sealed(body(width=varint(0))), "width 0"),
        (sealed(body(height=varint(0))), "height 0"),
        (sealed(body(quality=10001)), "quality 10001"),
        (sealed(body(flags=b"\x08", optional=b"\x08")), "depth 8"),
        (sealed(body(flags=b"\x08", optional=b"\x11")), "depth 17"),
        (sealed(body(flags=b"\x10", streams=b"\1")), "inside its colour"),
        (sealed(body(flags=b"\x80\1", streams=b"\1")), "inside its picture CRC"),
        (sealed(body(streams=bytes(5))), "1 bytes behind"),
        (sealed(body(streams=bytes(3))), "ends at byte"),
        (sealed(body(flags=b"\x40", streams=b"\1")), "inside its chunk table"),
        (sealed(body(flags=b"\x40", streams=b"\xff")), "malformed header"),
        (sealed(body(flags=b"\x40", streams=bytes(5))), "without chunks"),
        (sealed(body(chunks=(chunk(b"ICC ", 0),))), "flags 0, not 2"),
        (sealed(body(chunks=(chunk(b"EXIF", 2),))), "flags 2, not 0"),
        (sealed(body(chunks=(chunk(b"ALPH", 4),))), "flags 4, not 1"),
        (sealed(body(chunks=(chunk(b"ALPH", 2),))), "flags 2, not 1"),
        (sealed(body(chunks=(chunk(b"EXIF", 8 | 2), chunk(b"EXIF", 0)))), "EXIF is out of order"),
        (sealed(body(chunks=(chunk(b"more", 2), chunk(b"more", 0)))), "more is out of order"),
        (sealed(body(chunks=(chunk(b"more", 0, varint(2**26 + 1)),))), "chunks of 67108865 bytes"),
        (sealed(body(chunks=(chunk(b"EXIF", 0, varint(2**25)), chunk(b"more", 0, varint(2**25 + 1))))), "67108865"),
        (sealed(body(chunks=(chunk(b"ICC ", 2, varint(0)),))), "ICC is empty"),
        (sealed(body(chunks=(chunk(b"ICC ", 2), chunk(b"ICC ", 2)))), "out of order"),
        (sealed(body(chunks=(chunk(b"XMP ", 0), chunk(b"EXIF", 0)))), "out of order"),
        (sealed(body(chunks=(chunk(b"EXIF", 0), chunk(b"ICC ", 2)))), "out of order"),
        (sealed(body(chunks=(chunk(b"a\0bc", 0),))), "letters and digits"),
        (sealed(body(chunks=(chunk(b" abc", 0),))), "letters and digits"),
        (sealed(body(chunks=(chunk(b"    ", 0),))), "letters and digits"),
        (sealed(body(chunks=(chunk("é..".encode(), 0),))), "letters and digits"),
        (sealed(b""), "inside its model id"),
        (b"\x8bHPC\x02\x01abc", "no room for its check"),
    ],
)
def test_malformed_headers_are_refused(hostile: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_header(hostile)


VARINT_FIELDS: dict[str, Callable[[bytes], bytes]] = {
    "rest": lambda number: b"\x8bHPC\x02" + number + bytes(300),
    "flags": lambda number: sealed(body(flags=number)),
    "width": lambda number: sealed(body(width=number)),
    "height": lambda number: sealed(body(height=number)),
    "chunk length": lambda number: sealed(body(chunks=(chunk(b"ICC ", 2, number),))),
    "stream length": lambda number: sealed(body(streams=bytes(3) + number)),
}


@pytest.mark.parametrize("field", VARINT_FIELDS)
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (b"\x80\x00", "shortest form"),
        (b"\x81\x00", "shortest form"),
        (b"\xff\xff\xff\xff\x00", "shortest form"),
        (b"\xff\xff\xff\xff\x10", "not below 2\\^32"),
        (b"\xff\xff\xff\xff\x7f", "not below 2\\^32"),
        (b"\x80\x80\x80\x80\x80\x01", "more than 5 bytes"),
        (b"\xff" * 12, "more than 5 bytes"),
    ],
)
def test_varints_have_one_form_and_32_bits(field: str, number: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_header(VARINT_FIELDS[field](number))


@given(st.one_of(st.integers(1, 2**26), st.sampled_from([1, 127, 128, 2**14, 2**21 - 1, 2**21, 2**26])))
def test_varints_of_every_length_are_read(length: int) -> None:
    header = parse_header(sealed(body(chunks=(chunk(b"XMP ", 0, varint(length)),))))
    assert header.chunks[0].length == length
    assert header.file_bytes == header.header_bytes + length + 4 + 3 * 2 + 4 + 4


def test_padded_pixels_beyond_the_limit_are_refused_unless_the_limit_is_raised() -> None:
    data = sealed(body(width=varint(10_001), height=varint(10_000), streams=9 * bytes(4)))
    with pytest.raises(UnsupportedError, match=r"10001x10000 is 100160000 pixels.*limit is 100000000 \(--max-pixels"):
        parse_header(data)
    for limit in (100_160_000, None):
        assert parse_header(data, max_pixels=limit).width == 10_001
    with pytest.raises(UnsupportedError, match=r"1x17 is 512 pixels.*the limit is 511"):
        parse_header(small_file(width=1, height=17), max_pixels=511)
    assert parse_header(small_file(width=1, height=17), max_pixels=512).height == 17


def test_sides_beyond_the_limit_are_refused_unless_the_limit_is_raised() -> None:
    data = sealed(body(width=varint(1), height=varint(65_536), streams=16 * bytes(4)))
    with pytest.raises(
        UnsupportedError, match=r"1x65536: the limit of a side is 65535 pixels \(--max-side raises it\)"
    ):
        parse_header(data)
    for limit in (65_536, None):
        assert parse_header(data, max_side=limit).height == 65_536


HUGE = varint(2**32 - 1)
HOSTILE: dict[str, bytes] = {
    "header size of 1 MB": b"\x8bHPC\x02" + varint(2**20) + bytes(100),
    "2^42 tiles": sealed(body(flags=b"\x02", width=varint(2**31 - 1), height=varint(2**31 - 1))),
    "a column of 2^21 tiles": sealed(body(flags=b"\x02", width=varint(1), height=varint(2**31 - 1))),
    "streams of 16 GB": sealed(body(streams=4 * HUGE)),
    "255 chunks of 4 GB": sealed(body(chunks=tuple(chunk(b"c%03d" % number, 2, HUGE) for number in range(255)))),
    "a profile of 4 GB": sealed(body(chunks=(chunk(b"ICC ", 2, HUGE),))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_numbers_in_a_header_do_not_make_the_reader_allocate(name: str) -> None:
    def read_everything(data: bytes) -> None:
        reader = Reader(data, max_pixels=None, max_side=None)
        assert "s3" not in reader.scales()
        for part in (lambda: reader.stream("z", 0), reader.metadata, reader.verify_complete):
            try:
                part()
            except InputError:
                continue
        raise InputError("read to its end")

    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_everything(HOSTILE[name])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 255 entries of a table take some 100 kB as objects; anything that follows a hostile number takes gigabytes.
    assert peak_bytes < 300_000


def test_a_chunk_that_inflates_to_more_than_64_mb_is_refused_before_it_does() -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(2**28)) + packer.flush()
    header = sealed(body(chunks=(chunk(b"ICC ", 6, varint(len(bomb))),)))
    reader = Reader(header + bomb + crc(bomb))
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedError, match="67108864 bytes of metadata"):
            reader.metadata(partial=True)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 0.6 * 2**28


@pytest.mark.parametrize("wrong", [b"\xff\xff", zlib.compress(b"x" * 99, 9, -15) + b"more", b"\x03\x00", b"\x4b"])
def test_a_chunk_that_cannot_be_inflated_is_refused(wrong: bytes) -> None:
    header = sealed(body(chunks=(chunk(b"ICC ", 6, varint(len(wrong))),)))
    with pytest.raises(InputError, match="chunk ICC cannot be inflated"):
        Reader(header + wrong + crc(wrong)).metadata()


# Parts of a file


def test_unknown_ancillary_chunks_are_skipped() -> None:
    assert "hint" not in Reader(EXAMPLE).metadata()
    damaged = bytearray(EXAMPLE)
    damaged[HEADER_BYTES + 15] ^= 1
    reader = Reader(bytes(damaged))
    assert reader.metadata() == {"ICC": b"icc profile", "EXIF": b"II*\0" * 9}
    with pytest.raises(IntegrityError, match="the file is damaged"):
        reader.verify_complete()


@pytest.mark.parametrize("tag", [b"EXIF", b"ALPH", b"more"])
@pytest.mark.parametrize("flags", [8, 128, 0x78])
@pytest.mark.parametrize("leading", [0, 2])
def test_chunks_with_reserved_flags_are_skipped_where_they_are_not_critical(
    tag: bytes, flags: int, leading: int
) -> None:
    header = sealed(body(chunks=(chunk(tag, flags | leading),)))
    streams = bytes(3 * 2 + 4)
    whole = header + (b"x" + crc(b"x") + streams if leading else streams + b"x" + crc(b"x"))
    reader = Reader(whole + crc(whole))
    reader.verify_complete()
    assert [(info.name, info.known) for info in reader.header.chunks] == [(tag.decode(), False)]
    assert reader.metadata() == {}
    with pytest.raises(UnsupportedError, match=f"a chunk {tag.decode()} that this version does not know"):
        edited(whole + crc(whole), {}, None)


def test_a_damaged_chunk_is_refused_even_in_a_cut_file() -> None:
    damaged = bytearray(EXAMPLE[: HEADER_BYTES + 15])
    damaged[HEADER_BYTES] ^= 1
    with pytest.raises(IntegrityError, match="chunk ICC"):
        Reader(bytes(damaged)).metadata(partial=True)


def test_a_file_cut_anywhere_gives_its_whole_scales() -> None:
    header = parse_header(EXAMPLE)
    ends = dict(zip(STREAM_ORDER, (header.offsets[2], header.offsets[4], header.offsets[6], 0), strict=True))
    ends["s3"] = header.chunks[2].offset
    for length in range(HEADER_BYTES, len(EXAMPLE)):
        reader = Reader(EXAMPLE[:length])
        whole = reader.scales()
        assert whole == tuple(scale for scale in STREAM_ORDER if ends[scale] <= length)
        for tile in (0, 1):
            agrees = reader.verifier(tile)
            for scale in whole:
                number = 2 * STREAM_ORDER.index(scale) + tile
                assert reader.stream(scale, tile) == STREAMS[number]
                assert agrees(scale, CRCS[number])
        for scale in STREAM_ORDER[len(whole) :]:
            with pytest.raises(InputError, match=f"truncated: stream {scale} of tile 1"):
                reader.stream(scale, 1)


def test_a_cut_file_gives_the_chunks_that_are_whole_when_asked_for() -> None:
    preview = Reader(EXAMPLE[: parse_header(EXAMPLE).offsets[2]])
    assert preview.metadata(partial=True) == {"ICC": b"icc profile"}
    with pytest.raises(InputError, match="chunk EXIF"):
        preview.metadata()
    assert Reader(EXAMPLE[: HEADER_BYTES + 14]).metadata(partial=True) == {}


@given(st.integers(0, 3), st.integers(1, 2**32 - 1), st.integers(0, 1))
def test_the_checks_of_a_tile_run_on_from_one_scale_to_the_next(wrong: int, difference: int, tile: int) -> None:
    """A wrong integer is found at its own scale, or else at the next, by 16 bits each; at s3 by 32."""
    agrees = Reader(EXAMPLE).verifier(tile)
    found = []
    for number, scale in enumerate(STREAM_ORDER):
        found.append(agrees(scale, CRCS[2 * number + tile] ^ difference * (number == wrong)))
    assert all(found[:wrong])
    assert not found[3]
    assert sum(found[wrong:]) <= 1


def test_a_cut_inside_the_profile_leaves_no_scale_even_where_the_streams_are_empty() -> None:
    data = small_file({"ICC": b"profile"}, streams={scale: [Stream(b"", 0)] for scale in STREAM_ORDER})
    assert Reader(data).scales() == STREAM_ORDER
    assert Reader(data[: parse_header(data).offsets[0] - 1]).scales() == ()


def test_asking_for_what_no_file_has_is_an_error_of_the_caller() -> None:
    reader = Reader(EXAMPLE)
    with pytest.raises(ValueError, match="s4"):
        reader.header.bytes_of("s4")
    for tile in (-1, 2):
        with pytest.raises(IndexError, match="the image has 2"):
            reader.stream("z", tile)


def test_headers_are_values() -> None:
    first, second = parse_header(EXAMPLE), parse_header(EXAMPLE)
    assert first == second
    assert isinstance(first, Header)
    with pytest.raises(AttributeError):
        first.width = 1  # type: ignore[misc]


# Editing


@given(
    before=st.dictionaries(st.sampled_from(sorted(CHUNKS)), st.binary(min_size=1, max_size=40)),
    after=st.dictionaries(st.sampled_from(sorted(CHUNKS)), st.binary(min_size=1, max_size=40)),
    cicp=st.tuples(*[st.none() | st.tuples(st.integers(0, 255), st.integers(0, 255))] * 2),
    size=st.sampled_from([(16, 16), (1028, 3)]),
    crcs=st.lists(st.integers(0, 2**32 - 1), min_size=12, max_size=12),
)
def test_edited_file_is_the_one_that_would_have_been_written(
    before: dict[str, bytes],
    after: dict[str, bytes],
    cicp: tuple[tuple[int, int] | None, tuple[int, int] | None],
    size: tuple[int, int],
    crcs: list[int],
) -> None:
    def file(metadata: dict[str, bytes], colour: tuple[int, int] | None) -> bytes:
        width, height = size
        n_tiles = 1 if width == 16 else 2
        streams = {
            scale: [Stream(bytes([17 * i + tile]) * 4 * tile, crcs[2 * i + tile]) for tile in range(n_tiles)]
            for i, scale in enumerate(STREAM_ORDER)
        }
        return small_file(
            width=width,
            height=height,
            tile_side=64,
            streams=streams,
            metadata=metadata,
            cicp=colour,
            depth=12,
            grey=True,
        )

    assert edited(file(before, cicp[0]), after, cicp[1]) == file(after, cicp[1])


def test_edit_refuses_damage_and_chunks_that_it_would_lose() -> None:
    data = bytearray(small_file())
    data[-1] ^= 1
    with pytest.raises(IntegrityError):
        edited(bytes(data), {}, None)
    with pytest.raises(InputError, match="truncated"):
        edited(bytes(data[:-1]), {}, None)


def test_metadata_that_no_reader_would_take_are_not_written() -> None:
    streams = {scale: [Stream(b"", 0)] for scale in STREAM_ORDER}
    whole = {"XMP": bytes(1 << 25), "EXIF": bytes((1 << 25) + 1)}
    with pytest.raises(UnsupportedError, match="metadata"):
        pack(model_id=bytes(4), width=1, height=1, quality=Quality(0), streams=streams, metadata=whole)
