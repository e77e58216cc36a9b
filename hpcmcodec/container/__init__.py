"""The ``.hpcm`` file format, version 2: reads and writes what docs/FORMAT.md specifies.

`pack` writes a file, `Reader` reads one or the beginning of one. What the bytes of a stream mean is for `rans` and
`model.coder` to know. Importing this needs the standard library alone.
"""

from hpcmcodec.container.chunks import CHUNKS, MAX_TEXTS, ChunkInfo, check_metadata, packed_text, text_of
from hpcmcodec.container.editor import edited
from hpcmcodec.container.header import (
    DEFAULT_MAX_PIXELS,
    DEFAULT_MAX_SIDE,
    LATENT,
    MAGIC,
    STREAM_ORDER,
    TILE_SIDE,
    TILE_SIDES,
    VERSION,
    Header,
    Limits,
    StreamInfo,
    check_size,
    parse_header,
    tiles,
)
from hpcmcodec.container.reader import Reader, max_bytes, read, read_header, take
from hpcmcodec.container.writer import Stream, pack

__all__ = [
    "CHUNKS",
    "DEFAULT_MAX_PIXELS",
    "DEFAULT_MAX_SIDE",
    "LATENT",
    "MAGIC",
    "MAX_TEXTS",
    "STREAM_ORDER",
    "TILE_SIDE",
    "TILE_SIDES",
    "VERSION",
    "ChunkInfo",
    "Header",
    "Limits",
    "Reader",
    "Stream",
    "StreamInfo",
    "check_metadata",
    "check_size",
    "edited",
    "max_bytes",
    "pack",
    "packed_text",
    "parse_header",
    "read",
    "read_header",
    "take",
    "text_of",
    "tiles",
]
