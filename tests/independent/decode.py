"""Decode an `.hpcm` file and print the hashes of what it holds.

Usage: python decode.py MODEL.safetensors FILE.hpcm [previews]

With "previews" it also decodes what the file shows from its first scales alone.
"""

import hashlib
import struct
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from container import SCALES, Container, parse
from errors import InvalidFileError, UnsupportedFileError
from flow import Check, Flow, TileDecoder
from operations import Grid, Plane
from schedule import OFFSETS, SIDES
from synthesis import Synthesis, samples

from weights import Model

WIDEST = 1 << 30
Y_GRID = Grid(4, WIDEST)


@dataclass
class Decoded:
    """The integers of all tiles, the plane y_hat, and the CRC-32 of each scale."""

    z: list[list[list[int]]]
    y_hat: Plane
    log: list[str]


def decode_latents(model: Model, container: Container, scales: Sequence[str] = SCALES) -> Decoded:
    """Decode all tiles of a file into one plane, from the streams of these scales."""
    header = container.header
    if header.model_id != model.id[:4]:
        raise UnsupportedFileError("the file was written with another model")
    rows, columns = header.positions
    plane = Plane(rows, columns, Y_GRID, [[] for _ in range(rows * columns)])
    decoded = Decoded([], plane, [])
    flow = Flow(model, header.quality, header.full)
    for index, (top, left, height, width) in enumerate(header.tiles()):
        tile, check = TileDecoder(flow, height, width), Check(header.crc)
        streams = [container.streams[scale][index] for scale in scales]
        latents = tile.decode(streams, [container.checks[scale][index] for scale in scales], check)
        for row in range(height):
            start = (top + row) * columns + left
            plane.cells[start : start + width] = latents.cells[row * width : (row + 1) * width]
        decoded.z.append(tile.z)
        decoded.log += [f"tile {index} {line}" for line in check.log]
    return decoded


def lattice_of_s2(y_hat: Plane) -> Plane:
    """Return the latents of s1 and s2 on the lattice of s2."""
    side, offsets, channels = SIDES["s2"], OFFSETS["s2"], len(y_hat.cells[0])
    rows, columns = -(-y_hat.rows // side), -(-y_hat.columns // side)
    cells = []
    for row in range(rows):
        for column in range(columns):
            cell = []
            for channel in range(channels):
                down, right = offsets[channel * len(offsets) // channels]
                place = side * row + down, side * column + right
                cell.append(y_hat.cell(*place)[channel] if place[0] < y_hat.rows and place[1] < y_hat.columns else 0)
            cells.append(cell)
    return Plane(rows, columns, y_hat.grid, cells)


def show(name: str, data: bytes) -> None:
    """Print the hashes of some bytes."""
    print(f"{name}: CRC {zlib.crc32(data):08X}, SHA-256 {hashlib.sha256(data).hexdigest()}")


def packed(values: Sequence[int], kind: str) -> bytes:
    """Return integers as little-endian bytes."""
    return struct.pack(f"<{len(values)}{kind}", *values)


def report(model: Model, data: bytes, previews: bool) -> None:
    """Decode a file, and print the hashes of its latents, pixels, thumbnails and metadata."""
    container = parse(data)
    header = container.header
    decoded = decode_latents(model, container)
    print("\n".join(decoded.log))
    show("z", packed([value for z in decoded.z for cell in zip(*z, strict=True) for value in cell], "i"))
    show("y_hat", packed([value for cell in decoded.y_hat.cells for value in cell], "i"))
    synthesis = Synthesis(model, header.quality)
    picture = synthesis.pixels(decoded.y_hat)
    pixels = bytes(samples(picture, 8, header.height, header.width))
    if header.picture_crc is not None and zlib.crc32(pixels) != header.picture_crc:
        raise InvalidFileError("the pixels have not the CRC of the picture")
    show("picture", pixels)
    shown = [(sum(rgb) + 1) // 3 for rgb in zip(*[iter(pixels)] * 3, strict=True)] if header.grey else list(pixels)
    show("shown", packed(shown, "i"))
    show("pixels", whole_plane(picture, 8))
    show("pixels of 16 bits", whole_plane(picture, 16))
    show("thumbnail", whole_plane(synthesis.thumbnail(decoded.y_hat), 8))
    show("thumbnail of s1 and s2", whole_plane(synthesis.coarse_thumbnail(lattice_of_s2(decoded.y_hat)), 8))
    for tag, content in container.chunks.items():
        show(f"chunk {tag.decode().rstrip()}", content)
    for name, count in (("preview of s1", 2), ("preview of s1 and s2", 3)) if previews else ():
        seen = synthesis.pixels(decode_latents(model, container, SCALES[:count]).y_hat)
        show(name, packed(samples(seen, 8, header.height, header.width), "i"))


def whole_plane(x: Plane, depth: int) -> bytes:
    """Return all samples of a plane, padding included, as int32."""
    return packed(samples(x, depth, x.rows, x.columns), "i")


def main() -> int:
    """Run the program."""
    if len(sys.argv) not in (3, 4) or sys.argv[3:] not in ([], ["previews"]):
        print(__doc__)
        return 2
    started = time.monotonic()
    try:
        report(Model(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]).read_bytes(), len(sys.argv) == 4)
    except (InvalidFileError, UnsupportedFileError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    print(f"{time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
