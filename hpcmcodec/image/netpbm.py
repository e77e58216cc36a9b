"""PGM and PPM of 9 to 16 bits, binary: a header of three numbers, then big-endian samples of two bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from hpcmcodec.errors import InputError
from hpcmcodec.image.picture import Found, scaled

if TYPE_CHECKING:
    import numpy.typing as npt

    from hpcmcodec.image.picture import Samples

_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([56])" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)\s")


def add_deep(file: BinaryIO, start: bytes, found: Found) -> None:
    """Has the samples of a file with more than 255 levels read in full. Pillow reads the other files, and text."""
    header = _HEADER.match(start[:4096])
    if header is None or not 255 < int(header[4]) < 65536:
        return
    channels = 1 if header[1] == b"5" else 3
    width, height, peak = (int(header[i]) for i in (2, 3, 4))
    found.depth = peak.bit_length()

    def read() -> npt.NDArray[np.uint16]:
        file.seek(header.end())
        data = file.read(2 * width * height * channels)
        if len(data) < 2 * width * height * channels:
            raise InputError("not a readable image: the file is truncated")
        levels = np.frombuffer(data, ">u2").reshape(height, width, channels)
        if levels.max() > peak:
            raise InputError(f"not a readable image: a level of {levels.max()}, where the header allows {peak}")
        return scaled(levels.astype(np.uint16), peak, (1 << found.depth) - 1).astype(np.uint16)

    found.deep = read


def write(samples: Samples, depth: int, file: BinaryIO) -> None:
    """PGM or PPM of (H, W, 1 or 3) samples of `depth` bits."""
    height, width, channels = samples.shape
    file.write(b"P%d\n%d %d\n%d\n" % (5 if channels == 1 else 6, width, height, (1 << depth) - 1))
    file.write(np.ascontiguousarray(samples, ">u2" if depth > 8 else np.uint8).tobytes())
