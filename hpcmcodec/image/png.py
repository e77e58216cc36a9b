"""PNG read and written by its chunks: Pillow unpacks and packs pixels, and sees nothing else of the file.

A chunk (PNG, third edition, 5.3) is a length, a name, data and a CRC over name and data. Ancillary chunks are read
here, since Pillow refuses a file for a fault in one of them, limits profiles and texts to 1 MB, and keeps neither cICP
nor 16 bits of colour. What Pillow gets is a file of the critical chunks.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from hpcmcodec.errors import InputError, UnsupportedError
from hpcmcodec.image import colour
from hpcmcodec.image.colour import Cicp
from hpcmcodec.image.deep import open_with, two_passes
from hpcmcodec.image.jpeg import iptc_of
from hpcmcodec.image.picture import Found

if TYPE_CHECKING:
    import numpy.typing as npt

    from hpcmcodec.image.picture import Samples

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Chunks about how to show or store a picture that are not carried along, and that nobody misses in a photograph.
_UNMISSED = (b"bKGD", b"hIST", b"sBIT", b"sPLT", b"tIME", b"acTL", b"fcTL", b"oFFs")
_MAX_INFLATED = 1 << 26  # bytes of all compressed chunks together
_GREY, _RGB, _PALETTE, _GREY_ALPHA = 0, 2, 3, 4


class _Chunks:
    """The chunks of a file, critical ones as they were, the first of each ancillary kind, all of those with text."""

    def __init__(self, file: BinaryIO) -> None:
        self.critical: list[tuple[bytes, bytes]] = []
        self.first: dict[bytes, bytes] = {}
        self.texts: list[tuple[bytes, bytes]] = []
        self.damaged: list[str] = []
        for name, body, whole in _chunks(file):
            if name in _CRITICAL:
                if not whole:
                    raise InputError(f"not a readable image: damaged PNG, the CRC of its chunk {_shown(name)} is wrong")
                self.critical.append((name, body))
            elif not name[0] & 0x20:
                raise UnsupportedError(f"a PNG with the chunk {_shown(name)}, which is none of the standard")
            elif not whole:
                self.damaged.append(_shown(name))
            elif name in (b"tEXt", b"zTXt", b"iTXt"):
                self.texts.append((name, body))
            else:
                self.first.setdefault(name, body)

    def file(self, *more: tuple[bytes, bytes]) -> bytes:
        """A PNG of the critical chunks, and of `more` before the pixels."""
        pixels = next((i for i, (name, _) in enumerate(self.critical) if name == b"IDAT"), len(self.critical))
        return SIGNATURE + b"".join(
            chunk(name, body) for name, body in (*self.critical[:pixels], *more, *self.critical[pixels:])
        )


def bare(data: bytes) -> bytes:
    """A PNG without its ancillary chunks. Raises what `look` raises."""
    return _Chunks(io.BytesIO(data)).file()


def look(file: BinaryIO) -> Found:
    """The image of a PNG, not decoded yet, and what its chunks say.

    Raises:
        InputError: the file is cut, or a critical chunk is damaged or missing.
        UnsupportedError: an animation, an unknown critical chunk.
    """
    chunks = _Chunks(file)
    header = chunks.critical[0][1] if chunks.critical and chunks.critical[0][0] == b"IHDR" else b""
    if len(header) != 13:
        raise InputError("not a readable image: damaged PNG header")
    bits, kind = header[8], header[9]
    palette = [body for name, body in chunks.critical if name == b"PLTE"]
    if kind == _PALETTE and not (palette and 0 < len(palette[0]) <= 768 and len(palette[0]) % 3 == 0):
        raise InputError("not a readable image: a PNG with a palette has none, or a damaged one")
    _refuse_animation(chunks.first.get(b"acTL", b""))

    transparent = chunks.first.get(b"tRNS", b"")
    data = chunks.file(*([(b"tRNS", transparent)] if kind == _PALETTE and transparent else []))
    image = open_with("PNG", io.BytesIO(data))
    found = Found(image, depth=16 if bits == 16 else 8)
    if bits == 16:
        found.deep = _deep(data, kind)
    if kind in (_GREY, _RGB) and len(transparent) == (2, 0, 6)[kind]:
        levels = struct.unpack(f">{len(transparent) // 2}H", transparent)
        peak = (1 << bits) - 1
        found.key = tuple((level & peak) * (65535 if bits == 16 else 255) // peak for level in levels)
    budget = _Budget()
    _read_colour(chunks, found, budget)
    _read_texts(chunks.texts, found, budget)
    if chunks.first.get(b"eXIf"):
        found.metadata["EXIF"] = chunks.first[b"eXIf"]
    if len(chunks.first.get(b"pHYs", b"")) == 9:
        x, y, unit = struct.unpack(">IIB", chunks.first[b"pHYs"])
        found.dpi = (x * 0.0254, y * 0.0254) if unit == 1 else None
    known = (*_UNMISSED, b"tRNS", b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf", b"pHYs")
    dropped = [_shown(name) for name in chunks.first if name not in known]
    if dropped:
        found.notes.append(f"PNG chunks dropped: {', '.join(dropped[:8])}")
    if chunks.damaged:
        found.notes.append(f"damaged PNG chunks dropped: {', '.join(sorted(set(chunks.damaged))[:8])}")
    return found


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes, bool]]:
    """(name, data, whether the CRC holds) of each chunk up to IEND. Raises InputError where the file ends earlier."""
    file.seek(len(SIGNATURE))
    name = b""
    while name != b"IEND":
        start = file.read(8)
        length, name = struct.unpack(">I4s", start.ljust(8, b"\0"))
        body = file.read(length + 4) if length < 1 << 31 else b""
        if len(start) < 8 or len(body) < length + 4:
            raise InputError("not a readable image: the PNG is truncated")
        data = body[:-4]
        yield name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name))) == body[-4:]


def _shown(name: bytes) -> str:
    return name.decode("ascii", "replace") if name.isalpha() else name.hex()


def _refuse_animation(control: bytes) -> None:
    frames = struct.unpack(">I", control[:4])[0] if len(control) == 8 else 1
    if frames > 1:
        raise UnsupportedError(f"the image is an animation of {frames} frames; only single pictures are supported")


def _deep(data: bytes, kind: int) -> Callable[[], npt.NDArray[np.uint16]]:
    def read() -> npt.NDArray[np.uint16]:
        image = open_with("PNG", io.BytesIO(data))
        if kind == _GREY:
            image.load()
            return np.asarray(image).astype(np.uint16)[..., None]
        if kind == _GREY_ALPHA:  # four bytes a pixel, whatever they mean
            quads = open_with("PNG", io.BytesIO(data), "RGBA", mode="RGBA")
            quads.load()
            bytes_ = np.asarray(quads).astype(np.uint16)
            return np.asarray(bytes_[..., 0::2] << 8 | bytes_[..., 1::2], np.uint16)
        raw = "RGB;16" if kind == _RGB else "RGBA;16"
        return two_passes(image, open_with("PNG", io.BytesIO(data), f"{raw}L"))

    return read


# -------------------------------------------------------------------------------------------------------- colour


def _read_colour(chunks: _Chunks, found: Found, budget: _Budget) -> None:
    """The colour space, by the chunk that comes first in PNG's order of precedence: cICP, iCCP, sRGB, gAMA and cHRM."""
    points = chunks.first.get(b"cICP", b"")
    if len(points) == 4 and points[2] == 0:
        if not points[3]:
            raise UnsupportedError("a PNG whose levels use a narrow range (cICP)")
        found.colour = colour.known(points[0], points[1])
        return
    if chunks.first.get(b"iCCP"):
        body = chunks.first[b"iCCP"].partition(b"\0")[2]
        icc = budget.inflate(body[1:])
        if icc is not None:
            found.metadata["ICC"] = icc
            return
        found.notes.append("colour profile dropped: it is damaged, or far too long")
    if b"sRGB" in chunks.first:
        return
    gamma, chromaticities = chunks.first.get(b"gAMA", b""), chunks.first.get(b"cHRM", b"")
    exponent = 100_000 / struct.unpack(">I", gamma)[0] if len(gamma) == 4 and any(gamma) else None
    if exponent is not None and not 0.1 < exponent < 10:
        found.notes.append(f"the exponent {1 / exponent:.3g} of the PNG's gAMA makes no sense and is dropped")
        exponent = None
    primaries = None
    if len(chromaticities) == 32:
        values = [v / 100_000 for v in struct.unpack(">8I", chromaticities)]
        white, red, green, blue = zip(values[::2], values[1::2], strict=True)
        primaries = (red, green, blue, white)
    found.colour = colour.of_measures(primaries, exponent)


# ---------------------------------------------------------------------------------------------------------- text


class _Budget:
    """Bytes that compressed chunks may still grow to."""

    def __init__(self) -> None:
        self.left = _MAX_INFLATED

    def inflate(self, data: bytes) -> bytes | None:
        """The content of a zlib stream; None where it is damaged, cut or longer than what is left."""
        if not self.left:  # zlib takes a limit of 0 for none
            return None
        decoder = zlib.decompressobj()
        try:
            content = decoder.decompress(data, self.left)
        except zlib.error:
            return None
        self.left -= len(content)
        return content if decoder.eof else None


def _read_texts(texts: Iterable[tuple[bytes, bytes]], found: Found, budget: _Budget) -> None:
    lost = 0
    for name, body in texts:
        keyword, _, rest = body.partition(b"\0")
        content: bytes | None = rest
        encoding = "latin-1"
        if name == b"zTXt":
            content = budget.inflate(rest[1:])
        elif name == b"iTXt" and len(rest) >= 2:
            encoding = "utf-8"
            parts = rest[2:].split(b"\0", 2)  # language, translated keyword, text
            content = parts[-1] if len(parts) == 3 else None
            content = budget.inflate(content) if rest[0] and content is not None else content
        if content is None:
            lost += 1
        elif keyword == b"XML:com.adobe.xmp":
            found.metadata.setdefault("XMP", content)
        elif keyword.startswith(b"Raw profile type "):
            _take_raw_profile(keyword[17:].decode("latin-1").lower(), content, found)
        else:
            found.text.append((keyword.decode("latin-1"), content.decode(encoding, "replace")))
    if lost:
        found.notes.append(f"{lost} damaged or far too long PNG texts dropped")


def _take_raw_profile(kind: str, text: bytes, found: Found) -> None:
    """What ImageMagick and exiftool keep in a PNG as a name, a length and hexadecimal digits."""
    try:
        data = bytes.fromhex("".join(text.decode("ascii").split()[2:]))
    except ValueError:
        found.notes.append(f"damaged {kind} profile dropped")
        return
    if kind in ("exif", "app1") and data.startswith((b"Exif\0\0", b"II*\0", b"MM\0*")):
        found.metadata.setdefault("EXIF", data)
    elif kind == "xmp":
        found.metadata.setdefault("XMP", data)
    elif kind in ("iptc", "8bim") and (iptc_of(data) or data.startswith(b"\x1c")):
        found.metadata.setdefault("IPTC", iptc_of(data) or data)
    elif kind in ("icc", "icm"):
        found.metadata.setdefault("ICC", data)
    else:
        found.notes.append(f"profile of the kind {kind} dropped")


# ------------------------------------------------------------------------------------------------------- writing


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk with its length and CRC."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def write_deep(samples: Samples, file: BinaryIO, chunks: Iterable[tuple[bytes, bytes]], level: int = 1) -> None:
    """A PNG of 16 bits of (H, W, 1..4) uint16, with `chunks` before the pixels.

    Each row is filtered by Up or Paeth, whichever gives the smaller sum of magnitudes; `level` is zlib's.
    """
    height, width, channels = samples.shape
    file.write(SIGNATURE)
    kind = (_GREY, _GREY_ALPHA, _RGB, 6)[channels - 1]
    file.write(chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)))
    for name, body in chunks:
        file.write(chunk(name, body))
    packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
    above = np.zeros((1, 2 * channels * width), np.uint8)
    rows = max(1, (1 << 20) // above.size)
    for first in range(0, height, rows):
        part = samples[first : first + rows]
        lines = np.ascontiguousarray(part, ">u2").view(np.uint8).reshape(len(part), -1)
        packed = packer.compress(_filtered(lines, np.concatenate((above, lines[:-1])), 2 * channels).tobytes())
        above = lines[-1:]
        if packed:
            file.write(chunk(b"IDAT", packed))
    file.write(chunk(b"IDAT", packer.flush()))
    file.write(chunk(b"IEND", b""))


def _filtered(lines: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8], step: int) -> npt.NDArray[np.uint8]:
    """Rows (R, B) with the byte that names their filter before them (PNG, clause 9)."""
    left, corner = np.zeros_like(lines), np.zeros_like(lines)
    left[:, step:], corner[:, step:] = lines[:, :-step], above[:, :-step]
    a, b, c = left.astype(np.int16), above.astype(np.int16), corner.astype(np.int16)
    da, db, dc = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where((da <= db) & (da <= dc), left, np.where(db <= dc, above, corner))
    choices = np.stack((lines - above, lines - paeth))
    best = np.abs(choices.view(np.int8).astype(np.int16)).sum(axis=2, dtype=np.int64).argmin(axis=0)
    chosen = choices[best, np.arange(len(lines))]
    return np.concatenate((np.where(best, 4, 2).astype(np.uint8)[:, None], chosen), axis=1)


def with_chunks(data: bytes, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG with `chunks` right behind its header."""
    end = len(SIGNATURE) + 25
    return data[:end] + b"".join(chunk(name, body) for name, body in chunks) + data[end:]


def text_chunk(keyword: str, text: str) -> tuple[bytes, bytes]:
    """A text as tEXt where Latin-1 has its characters, else as iTXt. Keywords are cut to their 79 bytes."""
    name = keyword.encode("latin-1", "replace")[:79].strip() or b"Comment"
    try:
        return b"tEXt", name + b"\0" + text.replace("\0", "").encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", name + b"\0\0\0\0\0" + text.replace("\0", "").encode()


def raw_profile(kind: str, data: bytes) -> tuple[bytes, bytes]:
    """A block of bytes as the text chunk in which ImageMagick and exiftool look for it."""
    digits = data.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return b"zTXt", f"Raw profile type {kind}".encode() + b"\0\0" + zlib.compress(
        f"\n{kind}\n{len(data):8}\n{lines}\n".encode()
    )


def cicp_chunk(cicp: Cicp) -> tuple[bytes, bytes]:
    """The chunk cICP of RGB samples in full range."""
    return b"cICP", bytes((cicp.primaries, cicp.transfer, 0, 1))
