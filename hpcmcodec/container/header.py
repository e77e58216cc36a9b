"""The header: what it says about the picture, and where the sections of the file stand."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import accumulate
from typing import TypedDict

from hpcmcodec.container.chunks import LEADING, ChunkInfo, placed, read_chunk_table
from hpcmcodec.container.fields import CRC_BYTES, Fields, ceil_div, low_bytes, require
from hpcmcodec.errors import InputError, IntegrityError, UnsupportedError
from hpcmcodec.quality import Quality

MAGIC = b"\x8bHPC"
VERSION = 2
STREAM_ORDER = ("z", "s1", "s2", "s3")
LATENT = 16
"""Side in pixels of a position of the plane y."""
Z_LATENT = 4 * LATENT
"""Side in pixels of a position of the hyper-latent z."""
TILE_SIDES = (256, 128, 64)
"""Sides that a whole tile can have, in positions of the plane y, in the order of the header's field."""
TILE_SIDE = TILE_SIDES[0]
DEFAULT_MAX_PIXELS = 100_000_000
"""Images of more padded pixels are refused unless the caller raises the limit: decoding needs memory in proportion."""
BYTES_PER_PIXEL = 8
"""More than a picture takes in any form: 16-bit RGBA without compression, or the longest streams of any model.

A symbol takes at most 44 bits (`rans`). 320 latents at 16 x 16 pixels and 128 hyper-latents at 64 x 64 take 7.1 bytes a
pixel.
"""
DEFAULT_MAX_SIDE = 65_535
"""Images of a longer side, in pixels, are refused unless the caller raises the limit."""

MAX_HEADER = 1 << 20
MODEL_ID_BYTES = 4
MAX_SIDE = 2**31 - 1
_MAX_QUALITY = 10_000
DEPTHS = range(8, 17)
HEADER_CHECK_BYTES = 2
CHECK_BYTES = {"z": 2, "s1": 2, "s2": 2, "s3": 4}
WORD_BYTES = 4  # streams consist of words
_TILE_BITS, GREY, DEPTH, CICP, FULL, CHUNK_TABLE, PICTURE, _KNOWN_FLAGS = 3, 4, 8, 16, 32, 64, 128, 255


class Limits(TypedDict):
    """The limits on what is read, as keyword arguments: None lifts one."""

    max_pixels: int | None
    max_side: int | None


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """Where a stream stands: `length` is in bytes, `offset` is the place of its first byte in the file."""

    scale: str
    tile: int
    length: int
    offset: int

    @property
    def end(self) -> int:
        """The place behind the stream's check."""
        return self.offset + self.length + CHECK_BYTES[self.scale]


@dataclass(frozen=True, slots=True)
class Header:
    """The contents of a header.

    Attributes:
        version: format version.
        model_id: the first 4 bytes of the id of the weights.
        width, height: size of the image in pixels.
        quality: the quality that the file was made with.
        tile_side: side of a whole tile in positions of the plane y, one of `TILE_SIDES`.
        depth: bits of each sample of the picture that was coded, 8 to 16.
        full: whether every latent has a symbol, also where the model expects nothing but zeros.
        grey: whether the picture was grey, and is shown and saved so.
        cicp: colour primaries and transfer function of the decoded RGB pixels (ITU-T H.273); None: see the chunk ICC,
            and where there is none either, sRGB.
        picture_crc: CRC-32 of the decoded 8-bit pixels, where the writer has decoded the file; None otherwise.
        chunks: one entry for each chunk, unknown ancillary ones included, in the order of the file.
        lengths, offsets: for each stream, in the order of the file, its length in bytes and its place in the file.
        header_bytes: size of the header itself in bytes.
        file_bytes: size of the whole file in bytes.
        crc: CRC-32 of the header's bytes before its check; the checks of the tiles run on from it.
    """

    version: int
    model_id: bytes
    width: int
    height: int
    quality: Quality
    tile_side: int
    depth: int
    full: bool
    grey: bool
    cicp: tuple[int, int] | None
    picture_crc: int | None
    chunks: tuple[ChunkInfo, ...]
    lengths: tuple[int, ...]
    offsets: tuple[int, ...]
    header_bytes: int
    file_bytes: int
    crc: int

    @property
    def latent_height(self) -> int:
        """Rows of the plane y."""
        return ceil_div(self.height, LATENT)

    @property
    def latent_width(self) -> int:
        """Columns of the plane y."""
        return ceil_div(self.width, LATENT)

    @property
    def tiles(self) -> list[tuple[int, int, int, int]]:
        """The tiles of the plane y, as the function `tiles` gives them."""
        return tiles(self.latent_height, self.latent_width, self.tile_side)

    @property
    def alpha(self) -> bool:
        """Whether the file has an alpha channel."""
        return any(chunk.name == "ALPH" and chunk.known for chunk in self.chunks)

    @property
    def n_tiles(self) -> int:
        """The number of tiles."""
        return len(self.lengths) // len(STREAM_ORDER)

    def bytes_of(self, scale: str) -> int:
        """Bytes of all streams of a scale. Raises `ValueError` for a name that is not in `STREAM_ORDER`."""
        first = self._first_of(scale)
        return sum(self.lengths[first : first + self.n_tiles])

    def stream_info(self, scale: str, tile: int) -> StreamInfo:
        """Where a stream stands. Raises `ValueError` for an unknown scale, `IndexError` for an unknown tile."""
        if not 0 <= tile < self.n_tiles:
            raise IndexError(f"tile {tile}: the image has {self.n_tiles}")
        index = self._first_of(scale) + tile
        return StreamInfo(scale, tile, self.lengths[index], self.offsets[index])

    def _first_of(self, scale: str) -> int:
        require(scale in STREAM_ORDER, f"scale {scale!r} is none of {STREAM_ORDER}")
        return STREAM_ORDER.index(scale) * self.n_tiles


def tiles(latent_height: int, latent_width: int, side: int = TILE_SIDE) -> list[tuple[int, int, int, int]]:
    """The tiles of a plane y as (first row, first column, rows, columns), counted in positions; row by row."""
    return [
        (row, col, min(side, latent_height - row), min(side, latent_width - col))
        for row in range(0, latent_height, side)
        for col in range(0, latent_width, side)
    ]


def check_size(width: int, height: int, max_pixels: int | None, max_side: int | None) -> None:
    """Raises UnsupportedError where the padded pixels, or a side in pixels, are beyond a limit; None is no limit."""
    pixels = _padded(width, height, LATENT)
    if max_side is not None and max(width, height) > max_side:
        raise UnsupportedError(f"{width}x{height}: the limit of a side is {max_side} pixels (--max-side raises it)")
    if max_pixels is not None and pixels > max_pixels:
        raise UnsupportedError(
            f"{width}x{height} is {pixels} pixels, padded to multiples of {LATENT}; the limit is {max_pixels} "
            "(--max-pixels raises it)"
        )


def _padded(width: int, height: int, multiple: int) -> int:
    """Pixels of a picture, padded to multiples of this."""
    return multiple**2 * ceil_div(width, multiple) * ceil_div(height, multiple)


def max_stream_bytes(width: int, height: int) -> int:
    """The most bytes that all streams of a picture have together."""
    return BYTES_PER_PIXEL * _padded(width, height, Z_LATENT)


def parse_header(
    data: bytes, *, max_pixels: int | None = DEFAULT_MAX_PIXELS, max_side: int | None = DEFAULT_MAX_SIDE
) -> Header:
    """Read and check the header at the start of `data`. Whatever follows the header is not looked at.

    This takes time and memory in proportion to the header's own bytes, whatever numbers stand in it.

    Args:
        data: a file or its beginning.
        max_pixels: the most pixels that are read, padded to multiples of 16; None lifts the limit.
        max_side: the longest side that is read, in pixels; None lifts the limit.

    Raises:
        InputError: not an ``.hpcm`` file, cut inside the header, or malformed.
        UnsupportedError: another version, reserved bits, an unknown critical chunk, more pixels than allowed.
        IntegrityError: the header's check does not hold.
    """
    fields, header_bytes, crc = _verified_fields(data)
    model_id = fields.take(MODEL_ID_BYTES, "model id")
    flags = fields.varint("flags")
    if flags & ~_KNOWN_FLAGS or flags & _TILE_BITS >= len(TILE_SIDES):
        raise UnsupportedError(f"flags {flags:#04x}: a later version of the format, or a tile side that has no meaning")
    tile_side = TILE_SIDES[flags & _TILE_BITS]
    width, height = fields.varint("width"), fields.varint("height")
    for name, side in (("width", width), ("height", height)):
        if not 1 <= side <= MAX_SIDE:
            raise InputError(f"malformed header: {name} {side} is not in 1..{MAX_SIDE}")
    check_size(width, height, max_pixels, max_side)
    quality = fields.varint("quality")
    if quality > _MAX_QUALITY:
        raise InputError(f"malformed header: quality {quality} is not in 0..{_MAX_QUALITY}")
    depth = fields.take(1, "depth")[0] if flags & DEPTH else DEPTHS.start
    if depth not in DEPTHS or (flags & DEPTH and depth == DEPTHS.start):
        raise InputError(f"malformed header: depth {depth} is not in {DEPTHS.start + 1}..{DEPTHS.stop - 1}")
    primaries_and_transfer = fields.take(2, "colour") if flags & CICP else None
    picture_crc = int.from_bytes(fields.take(CRC_BYTES, "picture CRC"), "little") if flags & PICTURE else None
    table = read_chunk_table(fields) if flags & CHUNK_TABLE else []
    # A header can announce 2^50 tiles in its first 40 bytes: nothing is made for a tile before its entry is read.
    n_tiles = n_tiles_of(width, height, tile_side)
    words = [fields.varint("stream table") for scale in STREAM_ORDER for _ in range(n_tiles)]
    if fields.position != fields.end:
        raise InputError(f"malformed header: {fields.end - fields.position} bytes behind the stream table")

    lengths = tuple(n * WORD_BYTES for n in words)
    if sum(lengths) > (most := max_stream_bytes(width, height)):
        raise InputError(f"malformed header: streams of {sum(lengths)} bytes, {width}x{height} has {most} at most")
    leading, offset = placed((c for c in table if c[1] & LEADING), header_bytes)
    checks = (CHECK_BYTES[scale] for scale in STREAM_ORDER for _ in range(n_tiles))
    offsets = tuple(accumulate((a + b for a, b in zip(lengths, checks, strict=True)), initial=offset))
    trailing, offset = placed((c for c in table if not c[1] & LEADING), offsets[-1])
    return Header(
        version=VERSION,
        model_id=model_id,
        width=width,
        height=height,
        quality=Quality(quality),
        tile_side=tile_side,
        depth=depth,
        full=bool(flags & FULL),
        grey=bool(flags & GREY),
        cicp=None if primaries_and_transfer is None else (primaries_and_transfer[0], primaries_and_transfer[1]),
        picture_crc=picture_crc,
        chunks=(*leading, *trailing),
        lengths=lengths,
        offsets=offsets[:-1],
        header_bytes=header_bytes,
        file_bytes=offset + CRC_BYTES,
        crc=crc,
    )


def _verified_fields(data: bytes) -> tuple[Fields, int, int]:
    """The fields between the header's size and its check, which holds; the header's size in bytes; and its CRC-32."""
    start, header_bytes = extent(data)
    if header_bytes > len(data):
        raise InputError(f"truncated: the header takes {header_bytes} bytes, {len(data)} are there")
    end = header_bytes - HEADER_CHECK_BYTES
    if end < start:
        raise InputError(f"malformed header: its size of {header_bytes - start} leaves no room for its check")
    crc = zlib.crc32(memoryview(data)[:end])
    if data[end:header_bytes] != low_bytes(crc, HEADER_CHECK_BYTES):
        raise IntegrityError("the header is damaged: its check does not hold")
    return Fields(data, start, end, "header"), header_bytes, crc


def extent(data: bytes) -> tuple[int, int]:
    """The offset behind the field of the header's size, and the offset of the header's end, perhaps beyond `data`."""
    start = bytes(data[: len(MAGIC)])
    if not start:
        raise InputError("not an .hpcm file: it is empty")
    if not MAGIC.startswith(start):
        raise InputError(f"not an .hpcm file: it starts with {start.hex(' ')}")
    fields = Fields(data, len(MAGIC), len(data), "file")
    version = fields.take(1, "version")[0]
    if version == ord("M"):  # files of version 1 spell the name out
        version = 1
    if version != VERSION:
        raise UnsupportedError(f"a file of format version {version}: this program reads version {VERSION} alone")
    rest = fields.varint("header size")
    if rest > MAX_HEADER:
        raise UnsupportedError(f"the header takes {rest} bytes: this program reads up to {MAX_HEADER}")
    return fields.position, fields.position + rest


def n_tiles_of(width: int, height: int, tile_side: int) -> int:
    """The number of tiles of an image of this size in pixels."""
    side = LATENT * tile_side
    return ceil_div(height, side) * ceil_div(width, side)
