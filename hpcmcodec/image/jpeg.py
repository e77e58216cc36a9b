"""What stands in the segments of a JPEG beside its pixels, and what Pillow would drop of it without a word.

A segment (ITU-T T.81, B.1.1.4) is the byte FF, a marker, a length of two bytes that counts itself, and its content.
Metadata stand in segments before the first scan; a second picture may follow the first one's end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.image import xmp
from hpcmcodec.image.picture import Found

_SOI, _EOI, _SOS, _COM, _APP1, _APP2, _APP13 = 0xD8, 0xD9, 0xDA, 0xFE, 0xE1, 0xE2, 0xED
# Frames by their marker: 0 to 2 are baseline, extended and progressive, 9 and 10 the latter two with arithmetic coding.
_FRAMES = {0xC0 + n for n in range(16)} - {0xC4, 0xC8, 0xCC}
_READ_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_ICC = b"ICC_PROFILE\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"


def look(file: BinaryIO) -> Found:
    """The metadata of a JPEG's segments, and notes about what cannot be kept; `image` is left to the caller.

    Raises:
        UnsupportedError: samples of 12 bits, or a frame that no reader here knows (lossless, hierarchical).
    """
    found = Found(image=None)  # type: ignore[arg-type]
    packet = b""
    extended: dict[tuple[bytes, int], dict[int, bytes]] = {}
    profile: dict[int, tuple[int, bytes]] = {}
    photoshop: list[bytes] = []
    gain_map = False
    for marker, body in _segments(file):
        if marker in _FRAMES:
            _check_frame(marker, body)
        elif marker == _COM:
            comment = body.rstrip(b"\0").decode("utf-8", "replace").strip()
            found.text += [("Comment", comment)] if comment else []
        elif marker == _APP1 and body.startswith(_XMP) and not packet:
            packet = body[len(_XMP) :]
        elif marker == _APP1 and body.startswith(_EXTENDED_XMP) and len(body) >= len(_EXTENDED_XMP) + 40:
            guid, size, offset = struct.unpack_from(">32sII", body, len(_EXTENDED_XMP))
            extended.setdefault((guid, size), {})[offset] = body[len(_EXTENDED_XMP) + 40 :]
        elif marker == _APP2 and body.startswith(_ICC) and len(body) >= len(_ICC) + 2:
            profile[body[len(_ICC)]] = (body[len(_ICC) + 1], body[len(_ICC) + 2 :])
        elif marker == _APP2 and body.startswith(_GAIN_MAP):
            gain_map = True
        elif marker == _APP13 and body.startswith(_PHOTOSHOP):
            photoshop.append(body[len(_PHOTOSHOP) :])
    if profile:
        _take_profile(profile, found)
    if packet:
        packet = _whole_packet(packet, extended, found.notes)
        appended = xmp.announces_appended(packet)
        found.notes += [f"the {appended} behind the picture is dropped"] if appended else []
        gain_map = gain_map and not appended
        found.metadata["XMP"] = xmp.without_appended(packet)
    if gain_map:
        found.notes.append("the gain map behind the picture is dropped")
    iptc = iptc_of(b"".join(photoshop))
    if iptc:
        found.metadata["IPTC"] = iptc
    return found


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of each segment before the first scan; ends without a word where the file is cut or damaged."""
    file.seek(2)
    while True:
        start = file.read(2)
        while start[1:] == b"\xff":  # fill bytes
            start = b"\xff" + file.read(1)
        if len(start) < 2 or start[0] != 0xFF or start[1] in (_SOS, _EOI):
            return
        if start[1] == 0x01 or 0xD0 <= start[1] <= _SOI:  # markers without a length
            continue
        (length,) = struct.unpack(">H", file.read(2).rjust(2, b"\0"))
        body = file.read(max(0, length - 2))
        if length < 2 or len(body) < length - 2:
            return
        yield start[1], body


def _check_frame(marker: int, body: bytes) -> None:
    if marker not in _READ_FRAMES:
        raise UnsupportedError(f"a JPEG of a rare kind (frame {marker - 0xC0}: lossless or hierarchical)")
    if body and body[0] != 8:
        raise UnsupportedError(f"a JPEG of {body[0]}-bit samples; convert it to TIFF or PNG of 16 bits")


def _take_profile(parts: dict[int, tuple[int, bytes]], found: Found) -> None:
    """Puts a profile together (ICC.1:2022, B.4), or leaves a note where a part of it is missing."""
    count = max(number for number, _ in parts.values())
    if sorted(parts) == list(range(1, count + 1)):
        found.metadata["ICC"] = b"".join(parts[i][1] for i in range(1, count + 1))
    else:
        missing = ", ".join(str(i) for i in range(1, count + 1) if i not in parts)
        found.notes.append(f"colour profile dropped: part {missing} of {count} is missing, so colours may be off")


def _whole_packet(packet: bytes, extended: dict[tuple[bytes, int], dict[int, bytes]], notes: list[str]) -> bytes:
    """The XMP packet with its extension (XMP part 3, 1.1.3.1), which its main packet names by a digest."""
    guid = xmp.extension_of(packet)
    if not guid:
        return packet
    for (name, size), pieces in extended.items():
        if name == guid:
            whole = b"".join(pieces[offset] for offset in sorted(pieces))
            ends = [offset + len(piece) for offset, piece in sorted(pieces.items())]
            merged = xmp.merged(packet, whole) if sorted(pieces) == [0, *ends[:-1]] and ends[-1] == size else None
            if merged:
                return merged
    notes.append("extended XMP dropped: it is incomplete or cannot be read")
    return xmp.without_extension(packet)


def iptc_of(resources: bytes) -> bytes:
    """The IPTC block among Photoshop's image resources: "8BIM", a number, a padded name, a length, padded data."""
    position = 0
    while resources[position : position + 4] == b"8BIM" and position + 12 <= len(resources):
        (number,) = struct.unpack_from(">H", resources, position + 4)
        name = resources[position + 6]
        start = position + 6 + (name + 2 & ~1)
        if start + 4 > len(resources):
            break
        (length,) = struct.unpack_from(">I", resources, start)
        data = resources[start + 4 : start + 4 + length]
        if len(data) < length:
            break
        if number == 0x0404:
            return data
        position = start + 4 + (length + 1 & ~1)
    return b""


def photoshop_segment(iptc: bytes) -> bytes:
    """The segment APP13 that holds an IPTC block; empty where it is too long for one."""
    body = _PHOTOSHOP + b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body if len(body) < 65534 else b""
