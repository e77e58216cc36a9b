"""Changes what a file says about its picture, without touching the streams."""

from __future__ import annotations

from collections.abc import Mapping

from hpcmcodec.container.fields import CRC_BYTES, crc32_bytes, low_bytes, run_on
from hpcmcodec.container.header import CHECK_BYTES, STREAM_ORDER, parse_header
from hpcmcodec.container.reader import Reader
from hpcmcodec.container.writer import Stream, pack
from hpcmcodec.errors import UnsupportedError


def edited(data: bytes, metadata: Mapping[str, bytes], cicp: tuple[int, int] | None) -> bytes:
    """A whole file with other metadata and another colour space; its streams stay as they are, and are not decoded.

    The checks behind the streams run on from the header's CRC, over integers that only decoding would give. But a CRC
    is linear: where two of them run on over the same bytes, their difference (exclusive or) runs on over zeros. So the
    difference of the two headers' CRCs gives what changes in each check.

    Args:
        data: the file.
        metadata: bytes by the names of `CHUNKS`, as `pack` takes them.
        cicp: as in `Header`.

    Raises:
        InputError: the file is cut or malformed.
        IntegrityError: the file is damaged.
        UnsupportedError: the file has a chunk that this version does not know, and which would be lost.
    """
    reader = Reader(data, max_pixels=None, max_side=None)
    reader.verify_complete()
    header = reader.header
    unknown = [chunk.name for chunk in header.chunks if not chunk.known]
    if unknown:
        raise UnsupportedError(f"the file has a chunk {unknown[0]} that this version does not know, and would lose")
    tiles = range(header.n_tiles)
    fresh = bytearray(
        pack(
            model_id=header.model_id,
            width=header.width,
            height=header.height,
            quality=header.quality,
            streams={scale: [Stream(reader.stream(scale, tile), 0) for tile in tiles] for scale in STREAM_ORDER},
            metadata=metadata,
            tile_side=header.tile_side,
            depth=header.depth,
            full=header.full,
            grey=header.grey,
            cicp=cicp,
            picture_crc=header.picture_crc,
        )
    )
    changed = parse_header(bytes(fresh), max_pixels=None, max_side=None)
    difference = header.crc ^ changed.crc
    for scale in STREAM_ORDER:
        difference = run_on(difference, 0) ^ run_on(0, 0)
        n_bytes = CHECK_BYTES[scale]
        mask = int.from_bytes(low_bytes(difference, n_bytes), "little")
        for tile in tiles:
            old, new = (h.stream_info(scale, tile) for h in (header, changed))
            start, place = old.offset + old.length, new.offset + new.length
            check = int.from_bytes(data[start : start + n_bytes], "little") ^ mask
            fresh[place : place + n_bytes] = check.to_bytes(n_bytes, "little")
    fresh[-CRC_BYTES:] = crc32_bytes(bytes(fresh[:-CRC_BYTES]))
    return bytes(fresh)
