"""Chunks: metadata, alpha, and what later versions add; their table in the header and their contents."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hpcmcodec.container.fields import CRC_BYTES, Fields, require
from hpcmcodec.errors import InputError, UnsupportedError

MAX_METADATA = 1 << 26  # bytes of all chunks of a file, as stored, and of those that are known, once inflated
MAX_TEXTS = 1 << 16
"""Texts of a chunk TEXT: strings take far more memory than their characters, so that megabytes would be gigabytes."""
CRITICAL, LEADING, DEFLATED = 1, 2, 4
CHUNKS = {"ICC": LEADING, "ALPH": CRITICAL, "EXIF": 0, "IPTC": 0, "TEXT": 0, "XMP": 0}
"""The names of metadata, and the flags of their chunks without `DEFLATED`.

"ICC" is a profile of the decoded RGB pixels, "EXIF" a TIFF structure, "IPTC" IIM records, "XMP" a packet, "TEXT" what
`packed_text` gives, "ALPH" a grey PNG of the picture's size, whose samples are the opacity.
"""


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """An entry of the chunk table.

    `name` is the tag without its padding, `length` is in bytes as stored, without the CRC behind them, `offset` is the
    place of the chunk's first byte in the file.
    """

    name: str
    flags: int
    length: int
    offset: int

    @property
    def known(self) -> bool:
        """Whether this version knows what the chunk holds: one of `CHUNKS`, without reserved flags."""
        return _known(self.name, self.flags)


def _known(name: str, flags: int) -> bool:
    return name in CHUNKS and not flags & ~(CRITICAL | LEADING | DEFLATED)


def read_chunk_table(fields: Fields) -> list[tuple[str, int, int]]:
    """For each chunk its name, its flags and its length in bytes."""
    entries: list[tuple[str, int, int]] = []
    previous, names = (False, b""), set[str]()
    count = fields.take(1, "number of chunks")[0]
    if not count:
        raise InputError("malformed header: a chunk table without chunks")
    for _ in range(count):
        tag = fields.take(4, "chunk table")
        if not tag.rstrip(b" ").isalnum():
            raise InputError(f"malformed header: chunk tag {tag.hex(' ')} is not of letters and digits")
        name = tag.rstrip(b" ").decode("ascii")
        flags = fields.take(1, "chunk table")[0]
        known = _known(name, flags)
        if flags & CRITICAL and not known:
            raise UnsupportedError(
                f"the image cannot be decoded without chunk {name}, flags {flags:#04x}: this program does not know it"
            )
        if known and flags & ~DEFLATED != CHUNKS[name]:
            raise InputError(f"malformed header: chunk {name} has flags {flags}, not {CHUNKS[name]}")
        order = (not flags & LEADING, tag)
        if order <= previous or name in names:
            raise InputError(f"malformed header: chunk {name} is out of order")
        previous = order
        names.add(name)
        length = fields.varint(f"length of chunk {name}")
        if length == 0:
            raise InputError(f"malformed header: chunk {name} is empty")
        entries.append((name, flags, length))
    if (total := sum(length for _, _, length in entries)) > MAX_METADATA:
        raise InputError(f"malformed header: chunks of {total} bytes, a file has {MAX_METADATA} at most")
    return entries


def placed(table: Iterable[tuple[str, int, int]], offset: int) -> tuple[list[ChunkInfo], int]:
    """The chunks that follow each other from `offset` on, and the offset behind the last one's CRC."""
    chunks = []
    for name, flags, length in table:
        chunks.append(ChunkInfo(name, flags, length, offset))
        offset += length + CRC_BYTES
    return chunks, offset


def chunks_to_write(metadata: Mapping[str, bytes]) -> list[tuple[bytes, int, bytes]]:
    """Tag, flags and content of each chunk, in the order of the chunk table; deflated where that makes it smaller.

    Raises ValueError for an unknown name, UnsupportedError for more bytes than are read.
    """
    unknown = set(metadata) - set(CHUNKS)
    require(not unknown, f"metadata {sorted(unknown)}: the format has {list(CHUNKS)}")
    check_metadata(metadata)
    chunks = []
    for name, data in metadata.items():
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        deflated = packer.compress(data) + packer.flush()
        smaller = len(deflated) < len(data)
        flags = CHUNKS[name] | DEFLATED * smaller
        if data:
            chunks.append((name.encode("ascii").ljust(4), flags, deflated if smaller else data))
    return sorted(chunks, key=lambda chunk: (not chunk[1] & LEADING, chunk[0]))


def check_metadata(metadata: Mapping[str, bytes]) -> None:
    """Raises UnsupportedError for more bytes of metadata and alpha than are read."""
    n_bytes = sum(map(len, metadata.values()))
    if n_bytes > MAX_METADATA:
        raise UnsupportedError(f"{n_bytes} bytes of metadata and alpha: a file may have {MAX_METADATA}")


def inflated(data: bytes, most: int, name: str) -> bytes:
    """What a raw deflate stream holds, or its first `most` + 1 bytes where that is more."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(data, most + 1)
    except zlib.error as error:
        if str(error).startswith("Error -4 "):  # Z_MEM_ERROR, which says nothing about the data
            raise MemoryError(str(error)) from error
        raise InputError(f"chunk {name} cannot be inflated ({error})") from error
    if len(found) <= most and (not unpacker.eof or unpacker.unused_data or not found):
        raise InputError(f"chunk {name} cannot be inflated: it is cut, empty, or bytes stand behind its end")
    return found


def packed_text(text: Mapping[str, str]) -> bytes:
    """The content of a chunk TEXT: keys and values in UTF-8, each ended by a zero byte.

    Raises ValueError for an empty key and for a zero character.
    """
    parts = [part for pair in text.items() for part in pair]
    require(all(text) and not any("\0" in part for part in parts), "an empty key, or a zero character in a text")
    return "".join(f"{part}\0" for part in parts).encode()


def text_of(chunk: bytes) -> dict[str, str]:
    """The keys and values of a chunk TEXT; of equal keys the last one.

    Raises InputError for another form, and for more than `MAX_TEXTS`.
    """
    if chunk.count(b"\0") > 2 * MAX_TEXTS:
        raise InputError(f"chunk TEXT has more than {MAX_TEXTS} texts")
    try:
        parts = chunk.decode().split("\0")
    except UnicodeDecodeError as error:
        raise InputError(f"chunk TEXT is not UTF-8 ({error})") from error
    if parts.pop() or len(parts) % 2 or not all(parts[::2]):
        raise InputError("chunk TEXT does not consist of keys and values that zero bytes end")
    return dict(zip(parts[::2], parts[1::2], strict=True))
