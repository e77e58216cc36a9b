"""What the boxes of AVIF and HEIF files say of their picture: colour space, depth, gain maps.

A box (ISO 14496-12, 4.2) is a length, a name and content. The box "meta" lists items; "ipma" links items to properties
in "ipco", of which "colr" states the colour space and "av1C", "hvcC" or "pixi" the depth.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from hpcmcodec.image import colour
from hpcmcodec.image.colour import Cicp

_MAX_META = 1 << 24
_MAX_BOXES = 4096


@dataclass
class Facts:
    """Of the primary picture: colour space, bits of a sample; and what stands beside it, in words."""

    cicp: Cicp | None = None
    depth: int = 8
    beside: list[str] = field(default_factory=list)


def facts(file: BinaryIO) -> Facts:
    """What the boxes of a file say; the defaults where they are damaged, which decoders report."""
    found = Facts()
    meta = _meta(file)
    boxes = dict(_boxes(meta[4:]))
    pitm = boxes.get(b"pitm", b"")
    if len(pitm) < 6:
        return found
    primary = int.from_bytes(pitm[4 : 6 if pitm[0] == 0 else 8], "big")
    properties = dict(_boxes(boxes.get(b"iprp", b"")))
    listed = list(_boxes(properties.get(b"ipco", b"")))
    for index in _associated(properties.get(b"ipma", b""), primary):
        if not 0 < index <= len(listed):
            continue
        name, body = listed[index - 1]
        if name == b"colr" and body[:4] == b"nclx" and len(body) >= 11:
            found.cicp = colour.known(*struct.unpack_from(">HH", body, 4))
        elif name == b"av1C" and len(body) >= 3:
            # AV1CodecConfigurationBox (AV1 in ISO BMFF, 2.3.3): byte 2 holds tier, high_bitdepth, twelve_bit.
            found.depth = {0x40: 10, 0x60: 12}.get(body[2] & 0x60, 8)
        elif name == b"hvcC" and len(body) >= 18:
            found.depth = 8 + (body[17] & 7)  # bitDepthLumaMinus8 (ISO 14496-15, 8.3.2)
        elif name == b"pixi" and len(body) >= 6 and found.depth == 8:
            found.depth = max(8, body[5])
    items = boxes.get(b"iinf", b"")
    if b"tmap" in items or b"urn:com:apple:photo:2020:aux:hdrgainmap" in meta:
        found.beside.append("gain map")
    return found


def _meta(file: BinaryIO) -> bytes:
    """The content of the box "meta"; empty where there is none."""
    position, size = 0, file.seek(0, 2)
    for _ in range(_MAX_BOXES):
        file.seek(position)
        start = file.read(16)
        if len(start) < 8:
            break
        length, name = struct.unpack(">I4s", start[:8])
        header = 8
        if length == 1 and len(start) == 16:
            length, header = int.from_bytes(start[8:], "big"), 16
        if name == b"meta" and header <= length <= _MAX_META:
            file.seek(position + header)
            return file.read(length - header)
        if length < header or position + length > size:
            break
        position += length
    return b""


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    for _ in range(_MAX_BOXES):
        if position + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, position)
        if length < 8 or position + length > len(data):
            return
        yield name, data[position + 8 : position + length]
        position += length


def _associated(ipma: bytes, item: int) -> list[int]:
    """The properties of an item, counted from 1 (ISO 23008-12, 9.3.1)."""
    if len(ipma) < 8:
        return []
    wide_item, wide_index = ipma[0] >= 1, ipma[3] & 1
    (count,) = struct.unpack_from(">I", ipma, 4)
    position = 8
    for _ in range(count):
        size = 4 if wide_item else 2
        if position + size + 1 > len(ipma):
            break
        found = int.from_bytes(ipma[position : position + size], "big")
        n = ipma[position + size]
        position += size + 1
        width, mask = (2, 0x7FFF) if wide_index else (1, 0x7F)
        places = range(position, position + n * width, width)
        indices = [int.from_bytes(ipma[place : place + width], "big") & mask for place in places]
        if found == item:
            return indices
        position += n * width
    return []


def with_cicp(data: bytes, cicp: Cicp) -> bytes:
    """An AVIF whose first box nclx names another colour space; the matrix stays."""
    place = data.find(b"colrnclx")
    if place < 0:
        return data
    return data[: place + 8] + struct.pack(">HH", *cicp) + data[place + 12 :]
