"""Take a file apart into its header, chunks and streams, with all checks that need no decoding."""

import itertools
import re
import zlib
from dataclasses import dataclass, field

from errors import InvalidFileError, UnsupportedFileError

MAGIC = b"\x8bHPC"
VERSION = 2
LATENT_SIDE = 16
SCALES = ("z", "s1", "s2", "s3")
CHECK_BYTES = {"z": 2, "s1": 2, "s2": 2, "s3": 4}
MAX_REST = 1 << 20
MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535
BYTES_PER_PIXEL = 8
PADDED_SIDE = 64
MAX_INFLATED = 1 << 26
KNOWN_CHUNKS = {
    b"ICC ": (False, True),
    b"ALPH": (True, False),
    b"EXIF": (False, False),
    b"IPTC": (False, False),
    b"TEXT": (False, False),
    b"XMP ": (False, False),
}


class Cursor:
    """Read fields one after the other from a part of a file."""

    def __init__(self, data: bytes, position: int, end: int) -> None:
        """Begin at a position, and refuse to read at the end or behind it."""
        self.data, self.position, self.end = data, position, min(end, len(data))

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if size > self.end - self.position:
            raise InvalidFileError("the file, or its header, ends too early")
        self.position += size
        return self.data[self.position - size : self.position]

    def unsigned(self, size: int) -> int:
        """Read a little-endian integer of some bytes."""
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        """Read an integer in groups of 7 bits, which has to be as short as possible."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.unsigned(1)
            value |= (byte & 127) << shift
            if byte < 128:
                if value >> 32 or (byte == 0 and shift):
                    raise InvalidFileError("a varint is too large or too long")
                return value
        raise InvalidFileError("a varint has more than 5 bytes")

    def between(self, value: int, low: int, high: int) -> int:
        """Pass a value on, or refuse it where it is out of range."""
        if not low <= value <= high:
            raise InvalidFileError("a field of the header is out of its range")
        return value


@dataclass(frozen=True)
class ChunkEntry:
    """An entry of the chunk table."""

    tag: bytes
    leading: bool
    deflated: bool
    length: int
    known: bool


@dataclass
class Header:
    """What the header says; `crc` is the CRC-32 of its bytes before its check."""

    size: int
    crc: int
    model_id: bytes
    flags: int
    width: int
    height: int
    quality: int
    depth: int = 8
    colour: tuple[int, int] | None = None
    picture_crc: int | None = None
    chunks: list[ChunkEntry] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Say whether every latent has a symbol."""
        return bool(self.flags & 32)

    @property
    def grey(self) -> bool:
        """Say whether the picture is shown as one of greys."""
        return bool(self.flags & 4)

    @property
    def positions(self) -> tuple[int, int]:
        """Return the rows and columns of the plane y."""
        return -(-self.height // LATENT_SIDE), -(-self.width // LATENT_SIDE)

    def tiles(self) -> list[tuple[int, int, int, int]]:
        """Return top, left, rows and columns of each tile, in positions."""
        side = 256 >> (self.flags & 3)
        rows, columns = self.positions
        return [
            (top, left, min(side, rows - top), min(side, columns - left))
            for top in range(0, rows, side)
            for left in range(0, columns, side)
        ]


@dataclass
class Container:
    """A file whose sections are known to be whole, but whose streams are not decoded."""

    header: Header
    streams: dict[str, list[bytes]]
    checks: dict[str, list[int]]
    chunks: dict[bytes, bytes]


def parse_header(data: bytes) -> Header:
    """Verify and read the header at the beginning of a file."""
    cursor = Cursor(data, 0, len(data))
    if cursor.take(4) != MAGIC:
        raise InvalidFileError("this is not an .hpcm file")
    if cursor.unsigned(1) != VERSION:
        raise UnsupportedFileError("this version of the format is unknown")
    rest = cursor.varint()
    if rest > MAX_REST:
        raise UnsupportedFileError("the header is larger than this reader allows")
    size = cursor.position + rest
    if rest < 2 or size > len(data):
        raise InvalidFileError("the header is cut off")
    crc = zlib.crc32(data[: size - 2])
    if crc & 0xFFFF != int.from_bytes(data[size - 2 : size], "little"):
        raise InvalidFileError("the header is damaged")
    cursor.end = size - 2
    model_id, flags = cursor.take(4), cursor.varint()
    if flags & 3 == 3 or flags >> 8:
        raise UnsupportedFileError("a reserved flag is set")
    width = cursor.between(cursor.varint(), 1, 2**31 - 1)
    height = cursor.between(cursor.varint(), 1, 2**31 - 1)
    header = Header(size, crc, model_id, flags, width, height, cursor.between(cursor.varint(), 0, 10000))
    if flags & 8:
        header.depth = cursor.between(cursor.unsigned(1), 9, 16)
    if flags & 16:
        header.colour = (cursor.unsigned(1), cursor.unsigned(1))
    if flags & 128:
        header.picture_crc = cursor.unsigned(4)
    if flags & 64:
        header.chunks = _chunk_table(cursor)
    _refuse_large(header)
    for _ in range(4 * _number_of_tiles(header, cursor.end - cursor.position)):
        header.words.append(cursor.varint())
    if cursor.position != cursor.end:
        raise InvalidFileError("there are bytes between the stream table and the check")
    if 4 * sum(header.words) > BYTES_PER_PIXEL * PADDED_SIDE**2 * -(-width // PADDED_SIDE) * -(-height // PADDED_SIDE):
        raise InvalidFileError("the streams are longer than those of any picture of this size")
    return header


def _refuse_large(header: Header) -> None:
    """Refuse pictures beyond the limits of this reader."""
    rows, columns = header.positions
    if rows * columns * LATENT_SIDE**2 > MAX_PIXELS or max(header.width, header.height) > MAX_SIDE:
        raise UnsupportedFileError("the picture is larger than this reader allows")


def _number_of_tiles(header: Header, space: int) -> int:
    """Count the tiles, and refuse a stream table that cannot fit into the header."""
    side = 256 >> (header.flags & 3)
    rows, columns = header.positions
    tiles = -(-rows // side) * -(-columns // side)
    if 4 * tiles > space:
        raise InvalidFileError("the stream table passes the end of the header")
    return tiles


def _chunk_table(cursor: Cursor) -> list[ChunkEntry]:
    """Read the chunk table, and verify the order and the flags of its entries."""
    entries: list[ChunkEntry] = []
    for _ in range(cursor.between(cursor.unsigned(1), 1, 255)):
        tag, flags, length = cursor.take(4), cursor.unsigned(1), cursor.varint()
        critical, leading = bool(flags & 1), bool(flags & 2)
        if not re.fullmatch(rb"[0-9A-Za-z]{1,4} *", tag) or length == 0:
            raise InvalidFileError("an entry of the chunk table is malformed")
        known = flags < 8 and tag in KNOWN_CHUNKS
        if critical and not known:
            raise UnsupportedFileError("a chunk needs another reader")
        if known and KNOWN_CHUNKS[tag] != (critical, leading):
            raise InvalidFileError("a chunk has the flags of another one")
        entries.append(ChunkEntry(tag, leading, bool(flags & 4), length, known))
    if sum(entry.length for entry in entries) > MAX_INFLATED:
        raise InvalidFileError("the chunks are longer than those of any file")
    order = [(not entry.leading, entry.tag) for entry in entries]
    tags = {entry.tag for entry in entries}
    if len(tags) < len(entries) or any(first >= second for first, second in itertools.pairwise(order)):
        raise InvalidFileError("the chunks are out of order")
    return entries


def parse(data: bytes) -> Container:
    """Cut a whole file into its sections, and verify the CRC-32 of the file and of the chunks."""
    header = parse_header(data)
    tiles = len(header.words) // 4
    stored = sum(entry.length + 4 for entry in header.chunks)
    if header.size + stored + 4 * sum(header.words) + 10 * tiles + 4 != len(data):
        raise InvalidFileError("the file is shorter or longer than its sections")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise InvalidFileError("the file is damaged")
    cursor = Cursor(data, header.size, len(data) - 4)
    container = Container(header, {}, {}, {})
    room = [MAX_INFLATED]
    for entry in header.chunks:
        if entry.leading:
            _take_chunk(cursor, entry, room, container.chunks)
    for index, scale in enumerate(SCALES):
        container.streams[scale], container.checks[scale] = [], []
        for words in header.words[index * tiles : (index + 1) * tiles]:
            container.streams[scale].append(cursor.take(4 * words))
            container.checks[scale].append(cursor.unsigned(CHECK_BYTES[scale]))
    for entry in header.chunks:
        if not entry.leading:
            _take_chunk(cursor, entry, room, container.chunks)
    return container


def _take_chunk(cursor: Cursor, entry: ChunkEntry, room: list[int], chunks: dict[bytes, bytes]) -> None:
    """Read a chunk, and keep it where it is known."""
    content = _chunk(cursor, entry, room)
    if entry.known:
        chunks[entry.tag] = content


def _chunk(cursor: Cursor, entry: ChunkEntry, room: list[int]) -> bytes:
    """Read a chunk, verify its CRC-32, and inflate it within the room that is left for all chunks."""
    content = cursor.take(entry.length)
    if zlib.crc32(content) != cursor.unsigned(4):
        raise InvalidFileError("a chunk is damaged")
    if not entry.deflated or not entry.known:
        return content
    inflater = zlib.decompressobj(-15)
    try:
        inflated = inflater.decompress(content, room[0] + 1)
    except zlib.error as error:
        raise InvalidFileError("a chunk cannot be inflated") from error
    room[0] -= len(inflated)
    if room[0] < 0:
        raise UnsupportedFileError("the chunks inflate to more than this reader allows")
    if not inflated or not inflater.eof or inflater.unused_data:
        raise InvalidFileError("a deflated chunk is not one whole stream of something")
    return inflated
