"""Reads files, whole or cut, from memory or from a pipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from hpcmcodec.container.chunks import DEFLATED, MAX_METADATA, inflated
from hpcmcodec.container.fields import CRC_BYTES, crc32_bytes, low_bytes, run_on
from hpcmcodec.container.header import (
    BYTES_PER_PIXEL,
    CHECK_BYTES,
    DEFAULT_MAX_PIXELS,
    DEFAULT_MAX_SIDE,
    STREAM_ORDER,
    Header,
    extent,
    parse_header,
)
from hpcmcodec.errors import InputError, IntegrityError, UnsupportedError

_PIECE = 1 << 20
_FIRST_PIECE = 1 << 16  # bytes; nearly every header is far shorter


def max_bytes(max_pixels: int | None) -> int | None:
    """The most bytes that are read for an image of up to `max_pixels`, whatever its format; None for no limit.

    The limit has room for 8 bytes per pixel, as 16-bit RGBA takes without compression, and 2^26 bytes of metadata.
    """
    return None if max_pixels is None else BYTES_PER_PIXEL * max_pixels + MAX_METADATA


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


def read_header(
    file: BinaryIO, *, max_pixels: int | None = DEFAULT_MAX_PIXELS, max_side: int | None = DEFAULT_MAX_SIDE
) -> tuple[Header, bytes]:
    """The header at the start of `file`, and the bytes that were read: the whole header and perhaps some more.

    Raises what `parse_header` raises.
    """
    data = take(file, _FIRST_PIECE)
    _, header_bytes = extent(data)
    data += take(file, header_bytes - len(data))
    return parse_header(data, max_pixels=max_pixels, max_side=max_side), data


def read(
    file: BinaryIO, *, max_pixels: int | None = DEFAULT_MAX_PIXELS, max_side: int | None = DEFAULT_MAX_SIDE
) -> bytes:
    """The bytes that the header of `file` announces, and one more if there is one: `file` may be a pipe without end.

    Raises what `read_header` raises.
    """
    header, data = read_header(file, max_pixels=max_pixels, max_side=max_side)
    wanted = header.file_bytes + 1
    return data[:wanted] + take(file, wanted - len(data))


class Reader:
    """Gives the sections of a file, or of the beginning of one. Raises what `parse_header` raises."""

    header: Header

    def __init__(
        self, data: bytes, *, max_pixels: int | None = DEFAULT_MAX_PIXELS, max_side: int | None = DEFAULT_MAX_SIDE
    ) -> None:
        self.header = parse_header(data, max_pixels=max_pixels, max_side=max_side)
        self._data = memoryview(data)

    def scales(self) -> tuple[str, ...]:
        """The scales whose streams and checks are there to their last byte, in `STREAM_ORDER`; nothing is verified."""
        last = self.header.n_tiles - 1
        return tuple(s for s in STREAM_ORDER if self.header.stream_info(s, last).end <= len(self._data))

    def stream(self, scale: str, tile: int) -> bytes:
        """The bytes of one stream. Only what they decode to can be verified, by `verifier`, or the whole file.

        Raises:
            InputError: the file is cut before the end of the stream or of its check.
        """
        info = self.header.stream_info(scale, tile)
        self._take(info.offset, info.end, f"stream {scale} of tile {tile}")
        return bytes(self._data[info.offset : info.offset + info.length])

    def verifier(self, tile: int) -> Callable[[str, int], bool]:
        """Takes each scale in `STREAM_ORDER` and the CRC-32 of its decoded integers: do they pass the file's check?

        The checks of z, s1 and s2 have 16 bits, that of s3 has 32; each runs on from those before it.
        """
        running = self.header.crc

        def verify(scale: str, latents_crc: int) -> bool:
            nonlocal running
            running = run_on(running, latents_crc)
            info, size = self.header.stream_info(scale, tile), CHECK_BYTES[scale]
            found = self._take(info.offset + info.length, info.end, f"the check of {scale} of tile {tile}")
            return found == low_bytes(running, size)

        return verify

    def metadata(self, *, partial: bool = False) -> dict[str, bytes]:
        """The chunks that are known, by the names of `CHUNKS` and inflated, as far as the file has them.

        Args:
            partial: leave out the chunks that a cut file does not hold to their last byte.

        Raises:
            InputError: the file is cut before a chunk's end, and `partial` is false; or a chunk cannot be inflated.
            IntegrityError: a chunk's CRC does not hold.
            UnsupportedError: the chunks take more than 2^26 bytes.
        """
        found: dict[str, bytes] = {}
        room = MAX_METADATA
        for chunk in self.header.chunks:
            end = chunk.offset + chunk.length + CRC_BYTES
            if not chunk.known or (partial and end > len(self._data)):
                continue
            stored = self._take(chunk.offset, end, f"chunk {chunk.name}")
            data = bytes(stored[:-CRC_BYTES])
            if stored[-CRC_BYTES:] != crc32_bytes(data):
                raise IntegrityError(f"chunk {chunk.name} is damaged: its CRC does not hold")
            found[chunk.name] = inflated(data, room, chunk.name) if chunk.flags & DEFLATED else data
            room -= len(found[chunk.name])
            if room < 0:
                raise UnsupportedError(f"the file has more than {MAX_METADATA} bytes of metadata")
        return found

    def verify_complete(self) -> None:
        """Check that the file is whole, by its length and by the CRC over all its bytes.

        Raises:
            InputError: bytes are missing, or stand behind the end.
            IntegrityError: the CRC does not hold.
        """
        expected, found = self.header.file_bytes, len(self._data)
        if found < expected:
            raise InputError(f"truncated: the file should have {expected} bytes, {found} are there")
        if found > expected:
            raise InputError(f"the file should have {expected} bytes, but more stand behind its end")
        if self._data[-CRC_BYTES:] != crc32_bytes(self._data[:-CRC_BYTES]):
            raise IntegrityError("the file is damaged: its CRC does not hold")

    def _take(self, start: int, end: int, name: str) -> memoryview:
        if end > len(self._data):
            raise InputError(f"truncated: {name} ends at byte {end}, {len(self._data)} are there")
        return self._data[start:end]
