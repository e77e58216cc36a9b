"""The colour space of a BMP, which Pillow does not read: endpoints and gammas, or a profile behind the pixels.

Microsoft's BITMAPV4HEADER and BITMAPV5HEADER stand behind a file header of 14 bytes.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from hpcmcodec.image import colour
from hpcmcodec.image.picture import Found

_V4, _V5 = 108, 124
_CALIBRATED, _LINKED, _EMBEDDED = 0, 0x4C494E4B, 0x4D424544
_MAX_PROFILE = 1 << 26


def read_colour(file: BinaryIO, found: Found) -> None:
    """Puts the colour space that the header states into `found`, or a note."""
    file.seek(14)
    header = file.read(_V5)
    size = struct.unpack("<I", header[:4].ljust(4, b"\0"))[0]
    if len(header) < _V4 or size < _V4:
        return
    (kind,) = struct.unpack_from("<I", header, 56)
    if kind == _CALIBRATED:
        xyz = [v / (1 << 30) for v in struct.unpack_from("<9i", header, 60)]
        gammas = [v / 65536 for v in struct.unpack_from("<3I", header, 96)]
        ends = [xyz[i : i + 3] for i in (0, 3, 6)]
        if all(sum(end) > 0 for end in ends):
            white = [sum(end[i] for end in ends) for i in range(3)]
            red, green, blue, point = ((x / (x + y + z), y / (x + y + z)) for x, y, z in (*ends, white))
            gamma = sum(gammas) / 3 if all(0.1 < gamma < 10 for gamma in gammas) else None
            found.colour = colour.of_measures((red, green, blue, point), gamma)
    elif kind == _EMBEDDED and size >= _V5 and len(header) >= _V5:
        offset, length = struct.unpack_from("<II", header, 112)
        file.seek(14 + offset)
        found.metadata["ICC"] = file.read(min(length, _MAX_PROFILE))
    elif kind == _LINKED:
        found.notes.append("colour profile dropped: the BMP names a file that holds it")
