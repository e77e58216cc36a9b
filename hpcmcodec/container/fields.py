"""The smallest parts of a file: numbers, checks, and a reader of fields that never leaves the header."""

from __future__ import annotations

import struct
import zlib

from hpcmcodec.errors import InputError

CRC_BYTES = 4
_MAX_U32 = 2**32 - 1


class Fields:
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

    def varint(self, field: str) -> int:
        value = 0
        for shift in (0, 7, 14, 21, 28):
            byte = self.take(1, field)[0]
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


def varint(value: int) -> bytes:
    """`value` in groups of 7 bits, the least significant first. Raises ValueError for 2^32 and more."""
    require(value <= _MAX_U32, f"{value}: the format's limit is {_MAX_U32}")
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def run_on(crc: int, latents_crc: int) -> int:
    """The check `crc` of what came before, continued over the CRC-32 of a scale's integers."""
    return zlib.crc32(struct.pack("<I", latents_crc), crc)


def low_bytes(crc: int, n_bytes: int) -> bytes:
    """The `n_bytes` least significant bytes of a CRC-32, the lowest first."""
    return crc.to_bytes(CRC_BYTES, "little")[:n_bytes]


def crc32_bytes(data: bytes | memoryview) -> bytes:
    """The CRC-32 of `data` as a file holds it."""
    return struct.pack("<I", zlib.crc32(data))


def ceil_div(value: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-value // divisor)


def require(condition: bool, message: str) -> None:
    """Raises ValueError where `condition` does not hold."""
    if not condition:
        raise ValueError(message)
