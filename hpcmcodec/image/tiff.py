"""TIFF beyond what Pillow reads by itself: 16 bits of colour, planes, inverted greys, pages that are no second picture.

A TIFF (TIFF 6.0, section 2) is a list of directories; each has entries of 12 bytes: tag, type, count and value.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.image import colour
from hpcmcodec.image.deep import open_with, replaced, two_passes
from hpcmcodec.image.exif import orient
from hpcmcodec.image.picture import Found

if TYPE_CHECKING:
    import numpy.typing as npt

_NEW_SUBFILE_TYPE, _WIDTH, _BITS, _PHOTOMETRIC, _ORIENTATION = 254, 256, 258, 262, 274
_STRIP_OFFSETS, _SAMPLES, _STRIP_BYTES = 273, 277, 279
_X_RESOLUTION, _Y_RESOLUTION, _PLANAR, _RESOLUTION_UNIT = 282, 283, 284, 296
_WHITE_POINT, _PRIMARIES, _TILE_OFFSETS, _TILE_BYTES = 318, 319, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _XMP, _IPTC = 338, 339, 700, 33723
_HEIGHT, _COMPRESSION, _ROWS_PER_STRIP, _PREDICTOR = 257, 259, 278, 317
_SUB_DIRECTORIES = (0x8769, 0x8825)
_TILE_WIDTH, _MEANINGLESS = 322, 65000
_DEFLATE, _UNDEFINED = 8, 7
# Tags about how pixels are stored, in TIFF 6.0 and its supplements; a block of EXIF says that of another file.
_STORAGE = frozenset(
    tag
    for tags in (
        range(254, 267),
        range(273, 282),
        (284,),
        range(288, 294),
        (297, 301),
        range(317, 326),
        (330,),
        range(332, 348),
        range(512, 533),
        (33421, 33422),
    )
    for tag in tags
)
_REDUCED, _MASK = 1, 4
_MAX_PAGES = 64
# The native order of bytes, in which libtiff hands over samples, and the other one, in Pillow's letters.
_NATIVE, _OTHER = ("L", "B") if sys.byteorder == "little" else ("B", "L")


def look(file: BinaryIO) -> Found:
    """The picture of a TIFF, not decoded yet, and what its tags say.

    Raises UnsupportedError for several pages, and for samples that Pillow does not read.
    """
    pairs = _pairs(file)
    try:
        image = open_with("TIFF", io.BytesIO(pairs.once) if pairs else file)
    except (SyntaxError, OSError) as error:
        if "unknown" in str(error) or "not yet supported" in str(error):
            raise UnsupportedError(f"a TIFF of a kind that is not read here ({_kind(file) or error})") from error
        raise
    found = Found(image)
    _choose_page(found)
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    orientation = tags.get(_ORIENTATION, 1)
    found.turned = orientation if orientation in range(1, 9) else 1
    bits = max(_numbers(tags.get(_BITS), 1))
    planar = tags.get(_PLANAR, 1) == 2
    if bits > 8 and image.mode not in ("I", "F"):
        found.depth = min(bits, 16)
        found.deep = pairs.read if pairs else _deep(file, image, planar)
    if max(_numbers(tags.get(_EXTRA_SAMPLES), 9)) == 0:
        found.notes.append("a channel without a stated meaning dropped")
    if isinstance(tags.get(_XMP), bytes):
        found.metadata["XMP"] = tags[_XMP]
    iptc = tags.get(_IPTC)
    if isinstance(iptc, tuple) and tags.tagtype.get(_IPTC) == 4:  # bytes that old writers declare as 32-bit numbers
        iptc = struct.pack(f"{'<' if tags.prefix == b'II' else '>'}{len(iptc)}I", *iptc)
    if isinstance(iptc, bytes) and iptc:
        found.metadata["IPTC"] = iptc
    found.colour = _measures(tags)
    unit = {2: 1.0, 3: 2.54}.get(tags.get(_RESOLUTION_UNIT, 2))
    x, y = tags.get(_X_RESOLUTION), tags.get(_Y_RESOLUTION)
    if unit and x and y:
        found.dpi = (float(x) * unit, float(y) * unit)
    return found


def _numbers(value: Any, default: int) -> tuple[int, ...]:
    numbers = value if isinstance(value, tuple) else (value,)
    return tuple(n for n in numbers if isinstance(n, int)) or (default,)


def _kind(file: BinaryIO) -> str:
    """What makes the samples of a TIFF special, in words, from its first directory; empty where it cannot be read."""
    from PIL import TiffImagePlugin

    try:
        file.seek(0)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # noqa: BLE001  a damaged directory raises nearly anything; this is about words in a message
        return ""
    bits = "+".join(str(n) for n in _numbers(tags.get(_BITS), 1))
    forms = {1: "", 2: " signed", 3: " floating-point"}
    form = forms.get(_numbers(tags.get(_SAMPLE_FORMAT), 1)[0], " undefined")
    return f"{bits}-bit{form} samples, photometric {tags.get(_PHOTOMETRIC)}"


def _choose_page(found: Found) -> None:
    """Seeks the one page that is a whole picture. Raises UnsupportedError where there are several."""
    image = found.image
    count = getattr(image, "n_frames", 1)
    if count == 1:
        return
    whole, small = [], 0
    for page in range(min(count, _MAX_PAGES)):
        image.seek(page)
        kind = image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)  # type: ignore[attr-defined]
        if isinstance(kind, int) and kind & (_REDUCED | _MASK):
            small += 1
        else:
            whole.append(page)
    if len(whole) != 1 or count > _MAX_PAGES:
        raise UnsupportedError(f"the file has {count} pages; only single pictures are supported")
    image.seek(whole[0])
    found.chosen = True
    found.notes.append(f"{small} further page{'s' * (small > 1)} dropped: smaller versions or masks of the picture")


def _measures(tags: Any) -> colour.Cicp | bytes | None:
    """The colour space of the tags WhitePoint and PrimaryChromaticities; the curve is sRGB's without a profile."""
    try:
        white, xy = (tuple(float(v) for v in tags.get(tag, ())) for tag in (_WHITE_POINT, _PRIMARIES))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if len(white) != 2 or len(xy) != 6:
        return None
    return colour.of_measures(((xy[0], xy[1]), (xy[2], xy[3]), (xy[4], xy[5]), (white[0], white[1])), None)


# --------------------------------------------------------------------------------------------------------- 16 bits


def _deep(file: BinaryIO, image: Image.Image, planar: bool) -> Callable[[], npt.NDArray[np.uint16]] | None:
    """What reads the samples of the page at which `image` stands; None where they cannot be read in full."""
    page = image.tell()
    if planar:
        return lambda: _planes(file, image)
    if image.mode.startswith("I;16"):
        return lambda: _greys(image)
    raw = image.tile[0][3]  # type: ignore[attr-defined]
    raw = raw[0] if isinstance(raw, tuple) else raw
    stem, order = raw[:-1], raw[-1]
    if not stem.endswith(";16") or order not in "LBN":
        raise UnsupportedError(f"a TIFF whose samples are packed as {raw}")
    premultiplied = stem.startswith("RGBa")
    own, other = ("N", _OTHER) if order == "N" else (order, "B" if order == "L" else "L")

    def read() -> npt.NDArray[np.uint16]:
        passes = []
        for letter in (own, other):
            one: Any = open_with("TIFF", file)
            one.seek(page)
            kind = stem.replace("RGBa", "RGBA")
            one.tile = [replaced(tile, f"{kind}{letter}") for tile in one.tile]
            passes.append(one)
        levels = two_passes(*passes)
        return _straight(levels) if premultiplied else levels

    return read


class _Pairs(NamedTuple):
    """A TIFF of 16-bit greys with opacity, as two TIFFs that Pillow reads.

    Attributes:
        once: the file with one channel: right in all but its samples.
        twice: the file with one channel twice as wide, whose samples are those of the pairs.
        orientation: by which pixels are to be turned.
        inverted, premultiplied, differences: whether 0 is white, greys are multiplied by opacity, and samples stand for
            differences from the pixel before.
    """

    once: bytes
    twice: bytes
    orientation: int
    inverted: bool
    premultiplied: bool
    differences: bool

    def read(self) -> npt.NDArray[np.uint16]:
        """(H, W, 2) greys and opacity."""
        image = open_with("TIFF", io.BytesIO(self.twice))
        image.load()
        levels = np.asarray(image).astype(np.uint16)
        levels = levels.reshape(levels.shape[0], -1, 2)
        if self.differences:
            levels = np.cumsum(levels, axis=1, dtype=np.uint16)
        if self.inverted:
            levels[..., 0] = 65535 - levels[..., 0]
        return orient(_straight(levels) if self.premultiplied else levels, self.orientation)


def _pairs(file: BinaryIO) -> _Pairs | None:
    """What makes a TIFF of 16-bit greys with opacity readable, whose kind Pillow does not know; None for all others."""
    from PIL import TiffImagePlugin

    file.seek(0)
    head = file.read(8)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        directory = tags.next
        file.seek(directory)
        tags.load(file)
    except Exception:  # noqa: BLE001  a damaged directory raises nearly anything; Pillow's reader will say so
        return None
    kind = [_numbers(tags.get(tag), 0) for tag in (_BITS, _SAMPLES, _PLANAR, _EXTRA_SAMPLES)]
    predictor = tags.get(_PREDICTOR, 1)
    tiled_differences = predictor == 2 and _TILE_OFFSETS in tags
    if head[2:4] not in (b"*\0", b"\0*") or tags.get(_PHOTOMETRIC) not in (0, 1) or tiled_differences:
        return None
    if kind[:2] != [(16, 16), (2,)] or kind[2] == (2,) or kind[3] not in ((1,), (2,)) or predictor not in (1, 2):
        return None
    file.seek(0)
    data = file.read()
    one = {_BITS: 16, _SAMPLES: 1, _EXTRA_SAMPLES: None}
    wide = {tag: 2 * value for tag in (_WIDTH, _TILE_WIDTH) if isinstance(value := tags.get(tag), int)}
    return _Pairs(
        _with_entries(data, directory, one),
        _with_entries(data, directory, one | wide | {_PREDICTOR: 1, _PHOTOMETRIC: 1, _ORIENTATION: 1}),
        orientation=orientation if (orientation := tags.get(_ORIENTATION, 1)) in range(1, 9) else 1,
        inverted=tags[_PHOTOMETRIC] == 0,
        premultiplied=kind[3] == (1,),
        differences=predictor == 2,
    )


def _with_entries(data: bytes, directory: int, changes: dict[int, int | None]) -> bytes:
    """`data` with other values in entries that the directory has; an entry of None gets a number without a meaning."""
    order = "<" if data[:2] == b"II" else ">"
    changed = bytearray(data)
    (count,) = struct.unpack_from(order + "H", data, directory)
    for place in range(directory + 2, directory + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from(order + "H", data, place)
        if tag in changes:
            value = changes[tag]
            number, value = (_MEANINGLESS, 0) if value is None else (tag, value)
            struct.pack_into(order + "HHII", changed, place, number, 4, 1, value)
    return bytes(changed)


def _straight(levels: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """(H, W, 2 or 4) without its colours being multiplied by alpha, the last channel."""
    alpha = levels[..., -1:].astype(np.uint32)
    colours = (levels[..., :-1].astype(np.uint32) * 65535 + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate((np.minimum(colours, 65535), alpha), axis=2).astype(np.uint16)


def _greys(image: Image.Image) -> npt.NDArray[np.uint16]:
    inverted = image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    peak = (1 << min(16, max(_numbers(image.tag_v2.get(_BITS), 16)))) - 1  # type: ignore[attr-defined]
    image.load()
    levels = np.asarray(image).astype(np.uint16)
    return (peak - levels if inverted else levels)[..., None]


def _planes(file: BinaryIO, image: Image.Image) -> npt.NDArray[np.uint16]:
    """The planes of a file that stores its channels one after the other, each read as a picture of greys.

    Pillow keeps 8 bits of such planes, and mistakes uncompressed ones for planes of 8 bits. So each is given to it as
    a TIFF of its own: the file with a directory behind its end that names the strips of this plane alone.
    """
    file.seek(0)
    data = file.read()
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if data[2:4] not in (b"*\0", b"\0*"):
        raise UnsupportedError("a BigTIFF of 16-bit planes")
    samples = tags.get(_SAMPLES, 1)
    if tags.get(_PHOTOMETRIC) not in (1, 2) or set(_numbers(tags.get(_BITS), 1)) != {16} or samples > 4:
        raise UnsupportedError(f"a TIFF of planes of this kind ({_kind(file)})")
    planes = []
    for plane in range(samples):
        one = open_with("TIFF", io.BytesIO(_with_directory(data, tags, plane, samples)))
        planes.append(_greys(one)[..., 0])
    levels = np.stack(planes, axis=2)
    return _straight(levels) if _numbers(tags.get(_EXTRA_SAMPLES), 9)[0] == 1 else levels


def _with_directory(data: bytes, tags: Any, plane: int, planes: int) -> bytes:
    """`data` whose first directory is one about a plane."""
    order = "<" if data[:2] == b"II" else ">"
    kept = (_WIDTH, 257, 259, 266, 274, 278, 317, 322, 323)  # what says how strips or tiles are packed and turned
    entries = {tag: _numbers(tags[tag], 0) for tag in kept if tag in tags}
    entries |= {_BITS: (16,), _PHOTOMETRIC: (1,), _SAMPLES: (1,)}
    for tag in (_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES):
        if tag in tags:
            places = _numbers(tags[tag], 0)
            each = len(places) // planes
            entries[tag] = places[plane * each : (plane + 1) * each]
    start = len(data) + len(data) % 2
    after = start + 2 + 12 * len(entries) + 4
    directory, values = struct.pack(order + "H", len(entries)), b""
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            values, packed = values + packed, struct.pack(order + "I", after + len(values))
        directory += struct.pack(order + "HHI", tag, 4, len(numbers)) + packed
    return data[:4] + struct.pack(order + "I", start) + data[8:].ljust(start - 8, b"\0") + directory + bytes(4) + values


# --------------------------------------------------------------------------------------------------------- writing


def write(samples: npt.NDArray[Any], file: BinaryIO, blocks: dict[int, bytes], exif: Image.Exif | None) -> None:
    """A TIFF of (H, W, 1..4) uint8 or uint16, compressed by deflate in strips of about 1 MB.

    Args:
        samples: greys or RGB, with opacity as the last of 2 or 4 channels.
        file: to write to, from where it stands; offsets count from there.
        blocks: bytes by the number of their tag.
        exif: tags about the photograph.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    height, width, channels = samples.shape
    size = samples.itemsize
    rows = max(1, (1 << 20) // (size * width * channels))
    strips = []
    for first in range(0, height, rows):
        part = samples[first : first + rows]
        part = np.concatenate((part[:, :1], np.diff(part, axis=1)), axis=1)  # the horizontal predictor
        strips.append(zlib.compress(np.ascontiguousarray(part, f"<u{size}").tobytes(), 6))
    offsets = np.cumsum([0, *(len(strip) for strip in strips)]).tolist()  # Pillow adds where the directory ends
    tags = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    for tag, value in (exif or {}).items():
        if tag in _STORAGE:
            continue
        tags[tag] = exif.get_ifd(tag) if exif and tag in _SUB_DIRECTORIES else value
    tags[_WIDTH], tags[_HEIGHT] = width, height
    tags[_BITS], tags[_SAMPLES] = (8 * size,) * channels, channels
    tags[_COMPRESSION], tags[_PREDICTOR], tags[_PLANAR] = _DEFLATE, 2, 1
    tags[_PHOTOMETRIC] = 1 if channels < 3 else 2
    tags[_ROWS_PER_STRIP], tags[_STRIP_OFFSETS], tags[_STRIP_BYTES] = rows, offsets[:-1], [len(s) for s in strips]
    if channels in (2, 4):
        tags[_EXTRA_SAMPLES] = 2
    for tag, block in blocks.items():
        tags.tagtype[tag] = _UNDEFINED
        tags[tag] = block
    file.write(b"II*\0" + struct.pack("<I", 8) + tags.tobytes(8) + b"".join(strips))
