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
from hypothesis import given
from hypothesis import strategies as st

from hpcmcodec import container
from hpcmcodec.container import STREAM_ORDER, Header, Reader, Stream, pack, parse_header
from hpcmcodec.errors import HpcmError, InputError, IntegrityError, UnsupportedError
from hpcmcodec.quality import Quality

# A file written by hand from the specification: 4100x3 pixels, hence two tiles, chunks of all four kinds (known and
# unknown, leading and trailing). CBF43926 is the published check value of CRC-32, of "123456789".
HEADER = """
    8b 48 50 43 4d 0d 0a 0a                  magic
    01                                       version
    85 01                                    rest: 5 + 1 * 128 = 133 bytes
    68 70 63 6d 2d 31 32 33                  model id "hpcm-123"
    00                                       flags
    08                                       tiles of 2^8 latents
    84 20                                    width 4 + 32 * 128
    03                                       height
    d2 04                                    quality 1234 = 04d2
    04                                       four chunks
    49 43 43 20  02  0b        64 0c 6d fa   "ICC ", leading, 11 bytes
    68 69 6e 74  02  05        65 0d 3f 4d   "hint", leading, unknown, 5 bytes
    45 58 49 46  00  04        cc b2 78 d7   "EXIF", trailing, 4 bytes
    6e 6f 74 65  00  01        43 be b7 e8   "note", trailing, unknown, 1 byte
    09     26 39 f4 cb         01 00 00 00   z of tile 0
    04     1c df 44 21         02 00 00 00   z of tile 1
    02     f0 38 15 14         03 00 00 00   s1 of tile 0
    00     00 00 00 00         00 00 00 00   s1 of tile 1, empty
    02     4a 69 1c 8d         05 00 00 00   s2 of tile 0
    00     00 00 00 00         00 00 00 00   s2 of tile 1, empty
    c8 01  76 a8 71 c9         ff ff ff ff   s3 of tile 0: 72 + 1 * 128 = 200 bytes
    05     14 75 ca b4         08 00 00 00   s3 of tile 1
    a7 92 9b e6                              CRC of the header
"""
LEADING_CHUNKS = (b"icc profile", b"extra")
STREAMS = (b"123456789", b"\0\0\0\0", b"s1", b"", b"s2", b"", b"\0" * 200, b"right")
TRAILING_CHUNKS = (b"II*\0", b"a")
HEADER_BYTES = 144


def from_dump(dump: str) -> bytes:
    """The bytes at the start of each line, before the note."""
    lines = [re.match(r"\s*((?:[0-9a-f]{2}\s+)+)", line + " ") for line in dump.splitlines()]
    return b"".join(bytes.fromhex(line[1]) for line in lines if line)


EXAMPLE = from_dump(HEADER) + b"".join(LEADING_CHUNKS + STREAMS + TRAILING_CHUNKS)


def varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def sealed(body: bytes, *, version: int = 1) -> bytes:
    """A header with the given fields behind `rest`, its size and CRC as they should be."""
    header = b"\x8bHPCM\r\n\n" + bytes([version]) + varint(len(body) + 4) + body
    return header + zlib.crc32(header).to_bytes(4, "little")


ENTRY = varint(0) + bytes(8)


def body(
    *,
    flags: int = 0,
    tile_side: int = 8,
    width: bytes = varint(768),
    height: bytes = varint(512),
    quality: int = 5000,
    n_chunks: int | None = None,
    chunks: tuple[bytes, ...] = (),
    streams: bytes = 4 * ENTRY,
) -> bytes:
    """The fields between `rest` and the CRC, each of which a test can replace."""
    n_chunks = len(chunks) if n_chunks is None else n_chunks
    fixed = b"model id" + bytes([flags, tile_side]) + width + height + quality.to_bytes(2, "little") + bytes([n_chunks])
    return fixed + b"".join(chunks) + streams


def chunk(tag: bytes, flags: int, length: bytes = varint(1)) -> bytes:
    return tag + bytes([flags]) + length + bytes(4)


def small_file(metadata: dict[str, bytes] | None = None, **changes: Any) -> bytes:
    streams = {scale: [Stream(scale.encode() * 3, index)] for index, scale in enumerate(STREAM_ORDER)}
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
    assert (header.version, header.model_id, header.flags) == (1, b"hpcm-123", 0)
    assert (header.width, header.height, header.quality) == (4100, 3, Quality(1234))
    assert (header.latent_height, header.latent_width) == (1, 257)
    assert (header.tile_rows, header.tile_cols) == (1, 2)
    assert header.tiles == [(0, 0, 1, 256), (0, 256, 1, 1)]
    assert (header.header_bytes, header.file_bytes) == (HEADER_BYTES, len(EXAMPLE))
    assert [(info.name, info.leading, info.length, info.offset) for info in header.chunks] == [
        ("ICC", True, 11, 144),
        ("hint", True, 5, 155),
        ("EXIF", False, 4, 382),
        ("note", False, 1, 386),
    ]
    assert [(info.scale, info.tile, info.length, info.latents_crc, info.offset) for info in header.streams] == [
        ("z", 0, 9, 1, 160),
        ("z", 1, 4, 2, 169),
        ("s1", 0, 2, 3, 173),
        ("s1", 1, 0, 0, 175),
        ("s2", 0, 2, 5, 175),
        ("s2", 1, 0, 0, 177),
        ("s3", 0, 200, 0xFFFFFFFF, 177),
        ("s3", 1, 5, 8, 377),
    ]
    assert header.streams[0].crc == 0xCBF43926
    assert [header.bytes_of(scale) for scale in STREAM_ORDER] == [13, 2, 2, 205]


def test_the_sections_of_the_hand_written_file_are_found() -> None:
    reader = Reader(EXAMPLE)
    reader.verify_complete()
    assert [reader.stream(scale, tile) for scale in STREAM_ORDER for tile in (0, 1)] == list(STREAMS)
    assert reader.metadata() == {"ICC": b"icc profile", "EXIF": b"II*\0"}
    assert reader.scales() == STREAM_ORDER


def test_the_specifications_example_is_a_file_as_described() -> None:
    dump = re.findall(r"^    ([0-9a-f]{4})  ((?:[0-9a-f]{2} +)+)", container.__doc__ or "", re.MULTILINE)
    data = b""
    for offset, hexadecimal in dump:
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(hexadecimal)
    reader = Reader(data)
    reader.verify_complete()
    assert reader.header.header_bytes == 0x4D
    assert reader.metadata() == {"XMP": b"<x/>"}
    streams = {
        "z": [Stream(b"\xa0" * 8, 0x11111111)],
        "s1": [Stream(b"\xa1" * 4, 0x22222222)],
        "s2": [Stream(b"", 0)],
        "s3": [Stream(b"\xa3" * 12, 0x44444444)],
    }
    model_id = bytes.fromhex("0123456789abcdef")
    metadata = {"XMP": b"<x/>"}
    assert data == pack(
        model_id=model_id, width=768, height=512, quality=Quality(5000), streams=streams, metadata=metadata
    )


def test_the_module_needs_the_standard_library_alone() -> None:
    script = (
        "import sys; before = set(sys.modules); import hpcmcodec.container; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(container.__file__).parents[1])}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert set(result.stdout.split()) - set(sys.stdlib_module_names) == {"hpcmcodec"}


# Writing


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    width = draw(st.one_of(st.integers(1, 9000), st.sampled_from([1, 16, 4096, 4097, 8192, 8193])))
    height = draw(st.one_of(st.integers(1, 9000), st.sampled_from([1, 16, 4096, 4097, 8192, 8193])))
    n_tiles = -(-width // 4096) * -(-height // 4096)
    stream = st.builds(Stream, st.binary(max_size=200), st.integers(0, 2**32 - 1))
    streams = {scale: draw(st.lists(stream, min_size=n_tiles, max_size=n_tiles)) for scale in STREAM_ORDER}
    return {
        "model_id": draw(st.binary(min_size=8, max_size=8)),
        "width": width,
        "height": height,
        "quality": Quality(draw(st.integers(0, 10000))),
        "streams": streams,
        "metadata": draw(st.dictionaries(st.sampled_from(["EXIF", "ICC", "XMP"]), st.binary(min_size=1, max_size=300))),
    }


@given(contents())
def test_what_was_packed_is_read(given_contents: dict[str, Any]) -> None:
    data = pack(**given_contents)
    reader = Reader(data)
    reader.verify_complete()
    header = reader.header
    for name in ("model_id", "width", "height", "quality"):
        assert getattr(header, name) == given_contents[name]
    assert header.file_bytes == len(data)
    assert reader.metadata() == given_contents["metadata"]
    for scale in STREAM_ORDER:
        for tile, stream in enumerate(given_contents["streams"][scale]):
            assert reader.stream(scale, tile) == stream.data
            assert header.stream_info(scale, tile).latents_crc == stream.latents_crc


@given(st.integers(1, 20000), st.integers(1, 20000))
def test_the_tiles_cover_the_latent_plane_in_raster_order(width: int, height: int) -> None:
    n_tiles = -(-width // 4096) * -(-height // 4096)
    header = parse_header(
        sealed(body(width=varint(width), height=varint(height), streams=4 * n_tiles * ENTRY)), max_pixels=None
    )
    rows, cols = -(-height // 16), -(-width // 16)
    assert (header.latent_height, header.latent_width) == (rows, cols)
    assert header.tiles == sorted(header.tiles)
    assert len(header.tiles) == header.tile_rows * header.tile_cols == n_tiles
    for row, col, n_rows, n_cols in header.tiles:
        assert row % 256 == col % 256 == 0
        assert (n_rows, n_cols) == (min(256, rows - row), min(256, cols - col))
    assert sum(n_rows * n_cols for _, _, n_rows, n_cols in header.tiles) == rows * cols


@pytest.mark.parametrize("n_bytes", [0, 1, 127, 128, 20_000, 2**21])
def test_a_photo_of_one_tile_costs_at_most_80_bytes_over_its_streams(n_bytes: int) -> None:
    streams = {scale: [Stream(bytes(n_bytes), 1)] for scale in STREAM_ORDER}
    assert len(small_file(width=4096, height=4096, streams=streams)) - 4 * n_bytes <= 80


def test_the_order_of_the_arguments_does_not_change_the_file() -> None:
    metadata = {"XMP": b"x", "ICC": b"i", "EXIF": b"e"}
    streams = {scale: [Stream(scale.encode(), 0)] for scale in reversed(STREAM_ORDER)}
    data = small_file(metadata, streams=streams)
    assert data == small_file(dict(sorted(metadata.items())), streams=dict(sorted(streams.items())))
    assert data[parse_header(data).header_bytes :] == b"i" + b"z" + b"s1" + b"s2" + b"s3" + b"e" + b"x"


def test_empty_metadata_is_left_out() -> None:
    assert small_file({"EXIF": b"", "ICC": b""}) == small_file({})


@pytest.mark.parametrize(
    "changes",
    [
        {"model_id": b"seven b"},
        {"width": 0},
        {"height": 2**31},
        {"streams": {}},
        {"streams": {scale: [] for scale in STREAM_ORDER}},
        {"streams": {scale: [Stream(b"", 0)] * 2 for scale in STREAM_ORDER}},
        {"streams": {scale: [Stream(b"", 0)] for scale in (*STREAM_ORDER, "s4")}},
        {"streams": {scale: [Stream(b"", 2**32)] for scale in STREAM_ORDER}},
        {"metadata": {"IPTC": b"x"}},
    ],
    ids=str,
)
def test_contents_that_do_not_fit_the_format_are_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\d|IPTC") as caught:
        small_file(**changes)
    assert not isinstance(caught.value, HpcmError)


# Damage


def test_a_file_that_ends_early_is_refused_at_every_length() -> None:
    for length in range(len(EXAMPLE)):
        message = "empty" if length == 0 else "truncated" if length < HEADER_BYTES else "should have 387 bytes"
        with pytest.raises(InputError, match=message):
            verify(EXAMPLE[:length])


def test_a_file_that_ends_early_and_is_damaged_too_is_reported_as_truncated() -> None:
    damaged = bytearray(EXAMPLE[:-1])
    damaged[HEADER_BYTES] ^= 1
    with pytest.raises(InputError, match="truncated"):
        verify(bytes(damaged))


def test_every_flipped_bit_is_refused_with_the_error_of_its_place() -> None:
    places: list[tuple[range, type[HpcmError] | tuple[type[HpcmError], ...]]] = [
        (range(8), InputError),
        (range(8, 9), UnsupportedError),
        (range(9, 11), (InputError, IntegrityError)),
        (range(11, len(EXAMPLE)), IntegrityError),
    ]
    for place, expected in places:
        for position in place:
            for bit in range(8):
                damaged = bytearray(EXAMPLE)
                damaged[position] ^= 1 << bit
                with pytest.raises(expected):
                    verify(bytes(damaged))


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
        (b"\x8bHPC", "truncated"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "not an .hpcm file"),
        (EXAMPLE.replace(b"\r\n", b"\n"), "line ends"),
        (EXAMPLE.replace(b"\n", b"\r\n"), "line ends"),
        (bytes(byte & 0x7F for byte in EXAMPLE), "damaged"),
    ],
    ids=["empty", "cut magic", "JPEG", "CR LF to LF", "LF to CR LF", "7 bits"],
)
def test_the_start_of_a_file_tells_what_happened_to_it(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_header(data)


def test_no_byte_of_a_section_goes_through_two_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []

    class CountingZlib:
        @staticmethod
        def crc32(data: bytes) -> int:
            checked.append(len(data))
            return zlib.crc32(data)

    monkeypatch.setattr(container, "zlib", CountingZlib)
    reader = Reader(EXAMPLE)
    reader.verify_complete()
    reader.metadata()
    for scale in STREAM_ORDER:
        reader.stream(scale, 0)
    assert sum(checked) == len(EXAMPLE) - 4


# Refusals of headers whose CRC is right


@pytest.mark.parametrize(
    "hostile",
    [
        sealed(body(), version=0),
        sealed(body(), version=2),
        sealed(body(flags=1)),
        sealed(body(flags=128)),
        sealed(body(tile_side=7)),
        sealed(body(tile_side=255)),
        sealed(body(chunks=(chunk(b"ICC ", 4 | 2),))),
        sealed(body(chunks=(chunk(b"alph", 1),))),
        sealed(body(chunks=(chunk(b"alph", 1 | 2),))),
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
        (sealed(body(width=varint(2**31))), "width 2147483648"),
        (sealed(body(quality=10001)), "quality 10001"),
        (sealed(body(streams=4 * ENTRY + b"\0")), "1 bytes between"),
        (sealed(body(streams=3 * ENTRY)), "ends at byte"),
        (sealed(body(streams=4 * ENTRY[:-1])), "ends at byte"),
        (sealed(body(n_chunks=1, streams=b"")), "inside its chunk table"),
        (sealed(body(n_chunks=255)), "malformed header"),
        (sealed(body(chunks=(chunk(b"ICC ", 0),))), "flags 0, not 2"),
        (sealed(body(chunks=(chunk(b"EXIF", 2),))), "flags 2, not 0"),
        (sealed(body(chunks=(chunk(b"ICC ", 2, varint(0)),))), "ICC is empty"),
        (sealed(body(chunks=(chunk(b"ICC ", 2), chunk(b"ICC ", 2)))), "out of order"),
        (sealed(body(chunks=(chunk(b"XMP ", 0), chunk(b"EXIF", 0)))), "out of order"),
        (sealed(body(chunks=(chunk(b"EXIF", 0), chunk(b"ICC ", 2)))), "out of order"),
        (sealed(body(chunks=(chunk(b"a\0bc", 0),))), "letters and digits"),
        (sealed(body(chunks=(chunk(b" abc", 0),))), "letters and digits"),
        (sealed(body(chunks=(chunk(b"    ", 0),))), "letters and digits"),
        (sealed(body(chunks=(chunk("é..".encode(), 0),))), "letters and digits"),
        (sealed(b""), "inside its model id"),
        (b"\x8bHPCM\r\n\n\x01\x03abc", "no room for its CRC"),
    ],
)
def test_malformed_headers_are_refused(hostile: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_header(hostile)


VARINT_FIELDS: dict[str, Callable[[bytes], bytes]] = {
    "rest": lambda number: b"\x8bHPCM\r\n\n\x01" + number + bytes(300),
    "width": lambda number: sealed(body(width=number)),
    "height": lambda number: sealed(body(height=number)),
    "chunk length": lambda number: sealed(body(chunks=(chunk(b"ICC ", 2, number),))),
    "stream length": lambda number: sealed(body(streams=3 * ENTRY + number + bytes(8))),
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


@given(st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 127, 128, 2**14, 2**21, 2**28 - 1, 2**28])))
def test_varints_of_every_length_are_read(length: int) -> None:
    header = parse_header(sealed(body(streams=3 * ENTRY + varint(length) + bytes(8))))
    assert header.bytes_of("s3") == length
    assert header.file_bytes == header.header_bytes + length


def test_sizes_beyond_the_pixel_limit_are_refused_unless_the_limit_is_raised() -> None:
    data = sealed(body(width=varint(10_001), height=varint(10_000), streams=9 * 4 * ENTRY))
    with pytest.raises(UnsupportedError, match=r"10001x10000 is 100010000 pixels, the limit is 100000000"):
        parse_header(data)
    for limit in (100_010_000, None):
        assert parse_header(data, max_pixels=limit).width == 10_001
    with pytest.raises(UnsupportedError, match="the limit is 99"):
        parse_header(small_file(width=10, height=10), max_pixels=99)
    assert parse_header(small_file(width=10, height=10), max_pixels=100).width == 10


HUGE = varint(2**32 - 1)
HOSTILE: dict[str, bytes] = {
    "header size of 4 GB": b"\x8bHPCM\r\n\n\x01" + HUGE + bytes(100),
    "2^38 tiles": sealed(body(width=varint(2**31 - 1), height=varint(2**31 - 1))),
    "a column of 2^19 tiles": sealed(body(width=varint(1), height=varint(2**31 - 1))),
    "streams of 4 GB": sealed(body(streams=4 * (HUGE + bytes(8)))),
    "255 chunks of 4 GB": sealed(
        body(chunks=tuple(chunk(b"c%03d" % number, 2, HUGE) for number in range(255)), streams=4 * ENTRY)
    ),
    "a profile of 4 GB": sealed(body(chunks=(chunk(b"ICC ", 2, HUGE),))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_numbers_in_a_header_do_not_make_the_reader_allocate(name: str) -> None:
    def read_everything(data: bytes) -> None:
        reader = Reader(data, max_pixels=None)
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


# Parts of a file


def test_unknown_ancillary_chunks_are_skipped_but_still_checked() -> None:
    assert "hint" not in Reader(EXAMPLE).metadata()
    damaged = bytearray(EXAMPLE)
    damaged[155] ^= 1
    reader = Reader(bytes(damaged))
    assert reader.metadata() == {"ICC": b"icc profile", "EXIF": b"II*\0"}
    assert reader.stream("z", 0) == b"123456789"
    with pytest.raises(IntegrityError, match="chunk hint"):
        reader.verify_complete()


def test_a_file_cut_anywhere_gives_its_whole_scales() -> None:
    ends = {"z": 173, "s1": 175, "s2": 177, "s3": 382}
    for length in range(HEADER_BYTES, len(EXAMPLE)):
        reader = Reader(EXAMPLE[:length])
        whole = reader.scales()
        assert whole == tuple(scale for scale in STREAM_ORDER if ends[scale] <= length)
        for scale in whole:
            for tile in (0, 1):
                assert reader.stream(scale, tile) == STREAMS[2 * STREAM_ORDER.index(scale) + tile]
        for scale in STREAM_ORDER[len(whole) :]:
            with pytest.raises(InputError, match=f"truncated: stream {scale} of tile 1"):
                reader.stream(scale, 1)


def test_a_cut_file_gives_the_chunks_that_are_whole_when_asked_for() -> None:
    preview = Reader(EXAMPLE[:175])
    assert preview.metadata(partial=True) == {"ICC": b"icc profile"}
    with pytest.raises(InputError, match="chunk EXIF"):
        preview.metadata()
    assert Reader(EXAMPLE[:154]).metadata(partial=True) == {}


def test_a_damaged_scale_of_a_cut_file_is_refused_and_the_others_are_read() -> None:
    damaged = bytearray(EXAMPLE[:175])
    damaged[173] ^= 1
    reader = Reader(bytes(damaged))
    assert reader.stream("z", 0) == b"123456789"
    with pytest.raises(IntegrityError, match="stream s1 of tile 0"):
        reader.stream("s1", 0)


def test_a_cut_inside_the_profile_leaves_no_scale_even_where_the_streams_are_empty() -> None:
    data = small_file({"ICC": b"profile"}, streams={scale: [Stream(b"", 0)] for scale in STREAM_ORDER})
    assert Reader(data).scales() == STREAM_ORDER
    assert Reader(data[:-1]).scales() == ()


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
