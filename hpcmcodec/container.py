r"""The ``.hpcm`` file format, version 1: this text is its specification, the code below reads and writes it.

MUST, MUST NOT and MAY are meant as in RFC 2119. "Writer" and "reader" are programs, "file" is a valid file.

1. Conventions
==============
- Integers are unsigned and little-endian: ``u8``, ``u16``, ``u32`` take 1, 2 and 4 bytes.
- ``varint``: a ``u32`` in groups of 7 bits, least significant group first, bit 7 of a byte set where another byte
  follows (LEB128). It takes 1 to 5 bytes and MUST be as short as possible (no last byte of zero, except for the value 0
  itself); values of 2^32 and more are invalid. So every header has exactly one form.
- ``crc``: a ``u32``, CRC-32 as in PNG, gzip and zlib (reflected, polynomial 0xEDB88320, initial value and final xor
  0xFFFFFFFF; the CRC of no bytes is 0).
- The *plane y* has one *position* for each 16x16 pixels: ceil(height / 16) rows and ceil(width / 16) columns.
- The plane y is cut from its top left corner into *tiles* of 256x256 positions (4096x4096 pixels); those at the right
  and bottom edges may be smaller. Tiles are numbered row by row, from 0.
- The four *scales* are coded from coarse to fine: z, s1, s2, s3.

2. File
=======
The sections follow each other without gaps, and nothing follows the last one:

    ==================  =============================================================================================
    section             content
    ==================  =============================================================================================
    header              section 3
    leading chunks      chunks that a preview needs too (ICC), in the order of the chunk table
    streams             z of all tiles, then s1 of all tiles, then s2, then s3; inside a scale in the order of the tiles
    trailing chunks     all other chunks (EXIF, XMP), in the order of the chunk table
    ==================  =============================================================================================

A file that is cut after the last stream of a scale is not a valid file, but a preview of the image can be decoded from
it: everything that verifies those scales stands in the header.

3. Header
=========
    ======  ======  =============  ==================================================================================
    offset  size    field          value
    ======  ======  =============  ==================================================================================
    0       8       magic          8B 48 50 43 4D 0D 0A 0A: a byte outside ASCII (never first in UTF-8, and damaged by
                                   a 7-bit transfer), "HPCM", CR LF and LF (damaged by a conversion of line ends)
    8       u8      version        1
    9       varint  rest           bytes of the header that follow this field, its CRC included
    .       8       model id       names the weights that the streams were written with
    .       u8      flags          0; all bits are reserved
    .       u8      tile side      8: the base-2 logarithm of the side of a tile in positions
    .       varint  width          1 .. 2^31 - 1, pixels
    .       varint  height         1 .. 2^31 - 1, pixels
    .       u16     quality        0 .. 10000: hundredths of q
    .       u8      chunks         number of entries of the chunk table
    .               chunk table    one entry for each chunk, section 4
    .               stream table   4 * tiles entries, in the order of the streams, section 5
    .       crc     header CRC     of all bytes of the file before this field, the magic included
    ======  ======  =============  ==================================================================================

Without metadata the header of an image of one tile (up to 4096x4096 pixels) takes at most 79 bytes; nothing else is
added to the streams.

4. Chunks
=========
An entry of the chunk table:

    ======  =======  =================================================================================================
    size    field    value
    ======  =======  =================================================================================================
    4       tag      1 to 4 ASCII letters or digits, filled up with spaces on the right
    u8      flags    bit 0: critical; bit 1: leading (the chunk stands before the streams); bits 2..7: reserved, 0
    varint  length   bytes of the chunk, at least 1
    crc     crc      of the chunk
    ======  =======  =================================================================================================

All leading chunks come before all others; in each of the two groups the tags, compared as bytes, MUST be strictly
ascending (hence none occurs twice). Chunks of version 1, none of them critical:

    =======  =======  ================================================================================================
    tag      flags    content
    =======  =======  ================================================================================================
    "ICC "   2        ICC profile of the decoded RGB pixels. Without it they are sRGB.
    "EXIF"   0        EXIF, a TIFF structure (it starts with "II*\0" or "MM\0*"), with or without "Exif\0\0" before it.
                      The pixels are upright: a tag Orientation in it MUST NOT be applied to them.
    "XMP "   0        XMP packet, UTF-8
    =======  =======  ================================================================================================

Their flags MUST be as stated. A reader MUST skip ancillary (not critical) chunks that it does not know, and MUST refuse
a file with a critical chunk that it does not know.

5. Streams
==========
An entry of the stream table, for scale z, s1, s2, s3 and inside a scale for each tile:

    ======  =============  ===========================================================================================
    size    field          value
    ======  =============  ===========================================================================================
    varint  length         bytes of the stream; 0 where the scale has no coded symbol in this tile
    crc     crc            of the stream
    crc     latents crc    of the integers that a decoder gets for this scale and tile, as 32-bit two's complement,
                           little-endian, in the order of coding: for z its values, channel by channel, in each channel
                           row by row; for s1, s2 and s3 the values y_hat (in the model's fixed point) at the positions
                           that the scale codes, coding step by coding step, in each of them as for z
    ======  =============  ===========================================================================================

What the bytes of a stream mean is defined by the model that the model id names; a decoder that does not have this model
MUST refuse the file, and one whose integers miss the latents CRC MUST report that instead of showing a picture.

6. Readers, limits, versions
============================
- A reader MUST check magic, then version, then that the whole header is there, then the header CRC, and only then use
  what the header says: a damaged header is reported as damaged, whatever it says.
- It MUST refuse as invalid: a table that passes the end of the header, bytes between the stream table and the CRC,
  values outside the ranges above. It MUST refuse as unsupported: another version, another tile side, reserved bits that
  are set (in flags, in the flags of a chunk), unknown critical chunks.
- It MUST NOT allocate memory by a number from the file before the bytes that belong to the number are there (each tile
  has at least 36 bytes in the header), and SHOULD refuse images of more pixels than a limit that its user can raise
  (here 100,000,000). It MAY refuse a header of more than 2^26 bytes, which no image of up to 4 * 10^9 pixels has, and a
  file of more than 2^26 bytes and 8 for each pixel of its limit.
  Limits of the format itself: 2^31 - 1 for width and height, 2^32 - 1 bytes for a stream or chunk, 255 chunks.
- A reader that decodes the whole image MUST refuse a file that is shorter or longer than its sections.
- Magic, version and their places are the same in all versions. A change that a reader of version 1 would decode to
  another picture, or could not decode, raises the version, sets a reserved bit or adds a critical chunk; ancillary
  chunks MAY be added without any of these. New weights change the model id only.
- The file name extension is ``.hpcm``.

7. Example
==========
768x512 pixels (one tile), q = 50, one chunk (XMP). The streams are placeholders of 8, 4, 0 and 12 bytes, and so are the
latents CRCs.

    0000  8b 48 50 43 4d 0d 0a 0a              magic
    0008  01                                   version 1
    0009  43                                   rest: 67 bytes, the header ends at 004d
    000a  01 23 45 67 89 ab cd ef              model id
    0012  00                                   flags
    0013  08                                   tile side 2^8
    0014  80 06                                width 0 + 6 * 128 = 768
    0016  80 04                                height 512
    0018  88 13                                quality 5000: q = 50
    001a  01                                   one chunk
    001b  58 4d 50 20  00  04  2b 84 26 12     "XMP ", trailing, 4 bytes, CRC
    0025  08  97 3e 3d 0d  11 11 11 11         z: 8 bytes, CRC, latents CRC
    002e  04  fd 88 e4 1a  22 22 22 22         s1: 4 bytes
    0037  00  00 00 00 00  00 00 00 00         s2: empty
    0040  0c  05 94 ff 37  44 44 44 44         s3: 12 bytes
    0049  78 6d 3b 7b                          header CRC
    004d  a0 a0 a0 a0 a0 a0 a0 a0              stream z
    0055  a1 a1 a1 a1                          stream s1
    0059  a3 a3 a3 a3 a3 a3 a3 a3 a3 a3 a3 a3  stream s3
    0065  3c 78 2f 3e                          chunk XMP: <x/>
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from hpcmcodec.errors import InputError, IntegrityError, UnsupportedError
from hpcmcodec.quality import Quality

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "LATENT",
    "MAGIC",
    "STREAM_ORDER",
    "TILE_SIDE",
    "VERSION",
    "ChunkInfo",
    "Header",
    "Reader",
    "Stream",
    "StreamInfo",
    "max_bytes",
    "pack",
    "parse_header",
    "read",
    "read_header",
    "take",
]

MAGIC = b"\x8bHPCM\r\n\n"
VERSION = 1
STREAM_ORDER = ("z", "s1", "s2", "s3")
LATENT = 16
"""Side in pixels of a position of the plane y."""
TILE_SIDE = 256
"""Side of a whole tile in positions of the plane y."""
DEFAULT_MAX_PIXELS = 100_000_000
"""Images of more pixels are refused unless the caller raises the limit: decoding needs memory in proportion."""

_MAX_HEADER = 1 << 26
_BYTES_PER_PIXEL = 8
_PIECE = 1 << 20
_FIRST_PIECE = 1 << 16  # bytes; nearly every header is far shorter

_TILE_SIDE_LOG2 = TILE_SIDE.bit_length() - 1
_MODEL_ID_BYTES = 8
_MAX_SIDE = 2**31 - 1
_MAX_QUALITY = 10_000
_MAX_U32 = 2**32 - 1
_CRC_BYTES = 4

_CRITICAL = 1
_LEADING = 2
_CHUNK_FLAGS = {"ICC": _LEADING, "EXIF": 0, "XMP": 0}


@dataclass(frozen=True, slots=True)
class Stream:
    """One coded stream, as the encoder hands it over.

    Attributes:
        data: the bytes of the entropy coder.
        latents_crc: CRC-32 of the integers that the stream decodes to (section 5 of the format), 0..2^32-1.
    """

    data: bytes
    latents_crc: int


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """An entry of the stream table.

    `length` is in bytes, `offset` is the place of the stream's first byte in the file.
    """

    scale: str
    tile: int
    length: int
    crc: int
    latents_crc: int
    offset: int


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """An entry of the chunk table.

    `name` is the tag without its padding, `length` is in bytes, `offset` is the place of the chunk's first byte in the
    file.
    """

    name: str
    leading: bool
    length: int
    crc: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """The contents of a header.

    Attributes:
        version: format version.
        model_id: the 8 bytes that name the weights.
        width, height: size of the image in pixels.
        quality: the quality that the file was made with.
        flags: 0 in version 1.
        tile_rows, tile_cols: numbers of rows and columns of tiles.
        streams: one entry for each stream, in the order of the file: scale by scale, inside a scale tile by tile.
        chunks: one entry for each chunk, unknown ancillary ones included, in the order of the file.
        header_bytes: size of the header itself in bytes.
        file_bytes: size of the whole file in bytes.
    """

    version: int
    model_id: bytes
    width: int
    height: int
    quality: Quality
    flags: int
    tile_rows: int
    tile_cols: int
    streams: tuple[StreamInfo, ...]
    chunks: tuple[ChunkInfo, ...]
    header_bytes: int
    file_bytes: int

    @property
    def latent_height(self) -> int:
        """Rows of the plane y."""
        return _ceil_div(self.height, LATENT)

    @property
    def latent_width(self) -> int:
        """Columns of the plane y."""
        return _ceil_div(self.width, LATENT)

    @property
    def tiles(self) -> list[tuple[int, int, int, int]]:
        """The tiles of the plane y, as the function `tiles` gives them."""
        return tiles(self.latent_height, self.latent_width)

    def bytes_of(self, scale: str) -> int:
        """Bytes of all streams of a scale. Raises `ValueError` for a name that is not in `STREAM_ORDER`."""
        return sum(info.length for info in self._streams_of(scale))

    def stream_info(self, scale: str, tile: int) -> StreamInfo:
        """A stream's entry of the table. Raises `ValueError` for an unknown scale, `IndexError` for an unknown tile."""
        if not 0 <= tile < self.tile_rows * self.tile_cols:
            raise IndexError(f"tile {tile}: the image has {self.tile_rows * self.tile_cols}")
        return self._streams_of(scale)[tile]

    def _streams_of(self, scale: str) -> tuple[StreamInfo, ...]:
        _require(scale in STREAM_ORDER, f"scale {scale!r} is none of {STREAM_ORDER}")
        n_tiles = self.tile_rows * self.tile_cols
        first = STREAM_ORDER.index(scale) * n_tiles
        return self.streams[first : first + n_tiles]


def tiles(latent_height: int, latent_width: int) -> list[tuple[int, int, int, int]]:
    """The tiles of a plane y as (first row, first column, rows, columns), counted in positions; row by row."""
    return [
        (row, col, min(TILE_SIDE, latent_height - row), min(TILE_SIDE, latent_width - col))
        for row in range(0, latent_height, TILE_SIDE)
        for col in range(0, latent_width, TILE_SIDE)
    ]


def pack(
    *,
    model_id: bytes,
    width: int,
    height: int,
    quality: Quality,
    streams: Mapping[str, Sequence[Stream]],
    metadata: Mapping[str, bytes] | None = None,
) -> bytes:
    """Write a file.

    Args:
        model_id: the 8 bytes that name the weights.
        width: pixels, 1..2^31-1.
        height: pixels, 1..2^31-1.
        quality: the quality that the streams were made with.
        streams: for each scale of `STREAM_ORDER` one stream for each tile.
        metadata: bytes by name, "ICC", "EXIF" and "XMP"; empty ones are left out, as the format has no empty chunks.

    Raises:
        ValueError: an argument does not fit the format.
    """
    _require(len(model_id) == _MODEL_ID_BYTES, f"model_id has {len(model_id)} bytes, not {_MODEL_ID_BYTES}")
    for name, side in (("width", width), ("height", height)):
        _require(1 <= side <= _MAX_SIDE, f"{name} {side} is not in 1..{_MAX_SIDE}")
    tile_rows, tile_cols = _tile_grid(width, height)
    _require(set(streams) == set(STREAM_ORDER), f"streams are those of {sorted(streams)}, not of {list(STREAM_ORDER)}")
    for scale in STREAM_ORDER:
        n_streams, n_tiles = len(streams[scale]), tile_rows * tile_cols
        _require(n_streams == n_tiles, f"{scale} has {n_streams} streams for {n_tiles} tiles")

    chunks = _chunks_to_write(metadata or {})
    body = [
        model_id,
        bytes((0, _TILE_SIDE_LOG2)),
        _varint(width),
        _varint(height),
        struct.pack("<HB", quality.hundredths, len(chunks)),
    ]
    for tag, flags, data in chunks:
        body += [tag, bytes((flags,)), _varint(len(data)), _crc(data)]
    for scale in STREAM_ORDER:
        for stream in streams[scale]:
            _require(0 <= stream.latents_crc <= _MAX_U32, f"latents_crc {stream.latents_crc} is not a CRC-32")
            body += [_varint(len(stream.data)), _crc(stream.data), struct.pack("<I", stream.latents_crc)]
    rest = sum(map(len, body)) + _CRC_BYTES
    header = b"".join([MAGIC, bytes((VERSION,)), _varint(rest), *body])
    return b"".join(
        [
            header,
            _crc(header),
            *(data for _, flags, data in chunks if flags & _LEADING),
            *(stream.data for scale in STREAM_ORDER for stream in streams[scale]),
            *(data for _, flags, data in chunks if not flags & _LEADING),
        ]
    )


def parse_header(data: bytes, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Header:
    """Read and check the header at the start of `data`. Whatever follows the header is not looked at.

    This takes time and memory in proportion to the header's own bytes, whatever numbers stand in it.

    Args:
        data: a file or its beginning.
        max_pixels: the largest width * height that is read; None lifts the limit.

    Raises:
        InputError: not an ``.hpcm`` file, cut inside the header, or malformed.
        UnsupportedError: another version, reserved bits, an unknown critical chunk, more pixels than `max_pixels`.
        IntegrityError: the header's CRC does not hold.
    """
    fields, header_bytes = _verified_fields(data)
    model_id = fields.take(_MODEL_ID_BYTES, "model id")
    flags = fields.u8("flags")
    if flags:
        raise UnsupportedError(f"flags {flags:#04x}: this program knows none")
    tile_side_log2 = fields.u8("tile side")
    if tile_side_log2 != _TILE_SIDE_LOG2:
        raise UnsupportedError(f"tile side 2^{tile_side_log2}: this program reads 2^{_TILE_SIDE_LOG2}")
    width = fields.varint("width")
    height = fields.varint("height")
    for name, side in (("width", width), ("height", height)):
        if not 1 <= side <= _MAX_SIDE:
            raise InputError(f"malformed header: {name} {side} is not in 1..{_MAX_SIDE}")
    if max_pixels is not None and width * height > max_pixels:
        raise UnsupportedError(
            f"{width}x{height} is {width * height} pixels, the limit is {max_pixels} (--max-pixels raises it)"
        )
    quality = fields.u16("quality")
    if quality > _MAX_QUALITY:
        raise InputError(f"malformed header: quality {quality} is not in 0..{_MAX_QUALITY}")
    chunk_table = _read_chunk_table(fields)
    tile_rows, tile_cols = _tile_grid(width, height)

    chunks: list[ChunkInfo] = []
    streams: list[StreamInfo] = []
    offset = header_bytes
    for name, leading, length, crc in (entry for entry in chunk_table if entry[1]):
        chunks.append(ChunkInfo(name, leading, length, crc, offset))
        offset += length
    for scale in STREAM_ORDER:
        # A header can announce 2^38 tiles in its first 40 bytes: nothing is made for a tile before its entry is read.
        for tile in range(tile_rows * tile_cols):
            length = fields.varint("stream table")
            crc = fields.u32("stream table")
            streams.append(StreamInfo(scale, tile, length, crc, fields.u32("stream table"), offset))
            offset += length
    for name, leading, length, crc in (entry for entry in chunk_table if not entry[1]):
        chunks.append(ChunkInfo(name, leading, length, crc, offset))
        offset += length
    if fields.position != fields.end:
        raise InputError(f"malformed header: {fields.end - fields.position} bytes between the stream table and the CRC")
    return Header(
        version=VERSION,
        model_id=model_id,
        width=width,
        height=height,
        quality=Quality(quality),
        flags=flags,
        tile_rows=tile_rows,
        tile_cols=tile_cols,
        streams=tuple(streams),
        chunks=tuple(chunks),
        header_bytes=header_bytes,
        file_bytes=offset,
    )


def max_bytes(max_pixels: int | None) -> int | None:
    """The most bytes that are read for an image of up to `max_pixels`, whatever its format; None for no limit.

    The limit has room for 8 bytes per pixel, as 16-bit RGBA takes without compression, and 2^26 bytes of metadata.
    """
    return None if max_pixels is None else _BYTES_PER_PIXEL * max_pixels + (1 << 26)


def take(file: BinaryIO, n_bytes: int | None) -> bytes:
    """The next bytes of `file`, at most `n_bytes` of them (None: all). Memory is taken as the bytes come."""
    pieces = []
    while n_bytes is None or n_bytes > 0:
        piece = file.read(_PIECE if n_bytes is None else min(_PIECE, n_bytes))
        if not piece:
            break
        pieces.append(piece)
        if n_bytes is not None:
            n_bytes -= len(piece)
    return b"".join(pieces)


def read_header(file: BinaryIO, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> tuple[Header, bytes]:
    """The header at the start of `file`, and the bytes that were read: the whole header and perhaps some more.

    Raises what `parse_header` raises, and UnsupportedError for a header of more than 2^26 bytes.
    """
    data = take(file, _FIRST_PIECE)
    _, header_bytes = _extent(data)
    if header_bytes > _MAX_HEADER:
        raise UnsupportedError(f"the header takes {header_bytes} bytes: this program reads up to {_MAX_HEADER}")
    data += take(file, header_bytes - len(data))
    return parse_header(data, max_pixels=max_pixels), data


def read(file: BinaryIO, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> bytes:
    """The bytes that the header of `file` announces, and one more if there is one: `file` may be a pipe without end.

    Raises what `read_header` raises, and UnsupportedError where the header announces more than `max_bytes`.
    """
    header, data = read_header(file, max_pixels=max_pixels)
    limit = max_bytes(max_pixels)
    if limit is not None and header.file_bytes > limit:
        raise UnsupportedError(
            f"the header announces {header.file_bytes} bytes, the limit for {max_pixels} pixels is {limit} "
            "(--max-pixels raises it)"
        )
    wanted = header.file_bytes + 1
    return data[:wanted] + take(file, wanted - len(data))


class Reader:
    """Gives the sections of a file, or of the beginning of one. Each section's CRC is computed once.

    Raises what `parse_header` raises.
    """

    header: Header

    def __init__(self, data: bytes, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> None:
        self.header = parse_header(data, max_pixels=max_pixels)
        self._data = memoryview(data)
        self._verified: set[tuple[str, int]] = set()

    def scales(self) -> tuple[str, ...]:
        """The scales whose streams are there to their last byte, in `STREAM_ORDER`. Their CRCs are not checked."""
        n_tiles = self.header.tile_rows * self.header.tile_cols
        last_streams = self.header.streams[n_tiles - 1 :: n_tiles]
        return tuple(info.scale for info in last_streams if info.offset + info.length <= len(self._data))

    def stream(self, scale: str, tile: int) -> bytes:
        """The bytes of one stream.

        Raises:
            InputError: the file is cut before the stream's end.
            IntegrityError: the stream's CRC does not hold.
        """
        return bytes(self._section(self.header.stream_info(scale, tile)))

    def metadata(self, *, partial: bool = False) -> dict[str, bytes]:
        """The chunks that version 1 defines, by name ("ICC", "EXIF", "XMP"), as far as the file has them.

        Args:
            partial: leave out the chunks that a cut file does not hold to their last byte.

        Raises:
            InputError: the file is cut before a chunk's end, and `partial` is false.
            IntegrityError: a chunk's CRC does not hold.
        """
        return {
            chunk.name: bytes(self._section(chunk))
            for chunk in self.header.chunks
            if chunk.name in _CHUNK_FLAGS and not (partial and chunk.offset + chunk.length > len(self._data))
        }

    def verify_complete(self) -> None:
        """Check that the file is whole: its length, and the CRC of every chunk (unknown ones too) and stream.

        Raises:
            InputError: bytes are missing, or stand behind the last section.
            IntegrityError: a CRC does not hold.
        """
        expected, found = self.header.file_bytes, len(self._data)
        if found < expected:
            raise InputError(f"truncated: the file should have {expected} bytes, {found} are there")
        if found > expected:
            raise InputError(f"the file should have {expected} bytes, but more stand behind its end")
        for chunk in self.header.chunks:
            self._section(chunk)
        for stream in self.header.streams:
            self._section(stream)

    def _section(self, info: StreamInfo | ChunkInfo) -> memoryview:
        """The section that a table's entry describes, after a check of its length and CRC."""
        if isinstance(info, StreamInfo):
            key, name = (info.scale, info.tile), f"stream {info.scale} of tile {info.tile}"
        else:
            key, name = (info.name, -1), f"chunk {info.name}"
        end = info.offset + info.length
        if end > len(self._data):
            raise InputError(
                f"truncated: {name} takes the bytes from {info.offset} to {end}, {len(self._data)} are there"
            )
        section = self._data[info.offset : end]
        if key not in self._verified:
            if zlib.crc32(section) != info.crc:
                raise IntegrityError(f"{name} is damaged: its CRC does not hold")
            self._verified.add(key)
        return section


class _Fields:
    """Reads the fields of a header one after the other, and never beyond byte `end`.

    `enclosing` says in errors what ends there: "file" or "header".
    """

    def __init__(self, data: bytes, position: int, end: int, enclosing: str) -> None:
        self._data = data
        self.position = position
        self.end = end
        self._enclosing = enclosing

    def take(self, n_bytes: int, field: str) -> bytes:
        if n_bytes > self.end - self.position:
            problem = "truncated" if self._enclosing == "file" else "malformed header"
            raise InputError(f"{problem}: the {self._enclosing} ends at byte {self.end}, inside its {field}")
        self.position += n_bytes
        return bytes(self._data[self.position - n_bytes : self.position])

    def u8(self, field: str) -> int:
        return self.take(1, field)[0]

    def u16(self, field: str) -> int:
        return int.from_bytes(self.take(2, field), "little")

    def u32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "little")

    def varint(self, field: str) -> int:
        value = 0
        for shift in (0, 7, 14, 21, 28):
            byte = self.u8(field)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise InputError(f"malformed header: {field} is not written in its shortest form")
                break
        else:
            raise InputError(f"malformed header: {field} takes more than 5 bytes")
        if value > _MAX_U32:
            raise InputError(f"malformed header: {field} {value} is not below 2^32")
        return value


def _verified_fields(data: bytes) -> tuple[_Fields, int]:
    """The fields between the header's size and its CRC, which is checked; and the header's size in bytes."""
    start, header_bytes = _extent(data)
    if header_bytes > len(data):
        raise InputError(f"truncated: the header takes {header_bytes} bytes, {len(data)} are there")
    rest = header_bytes - start
    if rest < _CRC_BYTES:
        raise InputError(f"malformed header: its size of {rest} leaves no room for its CRC")
    end = header_bytes - _CRC_BYTES
    (crc,) = struct.unpack_from("<I", data, end)
    if zlib.crc32(memoryview(data)[:end]) != crc:
        raise IntegrityError("the header is damaged: its CRC does not hold")
    return _Fields(data, start, end, "header"), header_bytes


def _extent(data: bytes) -> tuple[int, int]:
    """The offset behind the field of the header's size, and the offset of the header's end, perhaps beyond `data`."""
    _check_magic(data)
    fields = _Fields(data, len(MAGIC), len(data), "file")
    version = fields.u8("version")
    if version != VERSION:
        raise UnsupportedError(f"format version {version}: this program reads version {VERSION}")
    rest = fields.varint("header size")
    return fields.position, fields.position + rest


def _check_magic(data: bytes) -> None:
    found = bytes(data[: len(MAGIC)])
    if found == MAGIC:
        return
    if not found:
        raise InputError("not an .hpcm file: it is empty")
    if MAGIC.startswith(found):
        raise InputError(f"truncated: the file has {len(found)} bytes")
    if b"HPCM" in found:
        raise InputError(
            f"the file's first bytes are damaged ({found.hex(' ')}, expected {MAGIC.hex(' ')}), "
            "as by a transfer that converts line ends"
        )
    raise InputError(f"not an .hpcm file: it starts with {found.hex(' ')}")


def _read_chunk_table(fields: _Fields) -> list[tuple[str, bool, int, int]]:
    """For each chunk its name, whether it is leading, its length in bytes and its CRC."""
    entries: list[tuple[str, bool, int, int]] = []
    previous = (False, b"")
    for _ in range(fields.u8("number of chunks")):
        tag = fields.take(4, "chunk table")
        if not tag.rstrip(b" ").isalnum():
            raise InputError(f"malformed header: chunk tag {tag.hex(' ')} is not of letters and digits")
        name = tag.rstrip(b" ").decode("ascii")
        flags = fields.u8("chunk table")
        if flags & ~(_CRITICAL | _LEADING):
            raise UnsupportedError(f"chunk {name} has flags {flags:#04x}: this program knows bits 0 and 1")
        if flags != _CHUNK_FLAGS.get(name, flags):
            raise InputError(f"malformed header: chunk {name} has flags {flags}, not {_CHUNK_FLAGS[name]}")
        if flags & _CRITICAL:
            raise UnsupportedError(
                f"the image cannot be decoded without chunk {name}, which this program does not know"
            )
        leading = bool(flags & _LEADING)
        order = (not leading, tag)
        if order <= previous:
            raise InputError(f"malformed header: chunk {name} is out of order")
        previous = order
        length = fields.varint(f"length of chunk {name}")
        if length == 0:
            raise InputError(f"malformed header: chunk {name} is empty")
        entries.append((name, leading, length, fields.u32("chunk table")))
    return entries


def _chunks_to_write(metadata: Mapping[str, bytes]) -> list[tuple[bytes, int, bytes]]:
    """Tag, flags and content of each chunk, in the order of the chunk table."""
    unknown = set(metadata) - set(_CHUNK_FLAGS)
    _require(not unknown, f"metadata {sorted(unknown)}: the format has {list(_CHUNK_FLAGS)}")
    chunks = [(name.encode("ascii").ljust(4), _CHUNK_FLAGS[name], data) for name, data in metadata.items() if data]
    return sorted(chunks, key=lambda chunk: (not chunk[1] & _LEADING, chunk[0]))


def _tile_grid(width: int, height: int) -> tuple[int, int]:
    """The numbers of rows and columns of tiles."""
    side = LATENT * TILE_SIDE
    return _ceil_div(height, side), _ceil_div(width, side)


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _varint(value: int) -> bytes:
    _require(value <= _MAX_U32, f"{value} bytes: the format's limit is {_MAX_U32}")
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _crc(data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
