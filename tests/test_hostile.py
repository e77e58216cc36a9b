"""Files that are whole and lie: time and memory follow the declared size, and what can be shown is shown."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from PIL import Image, ImageOps

import hpcmcodec
import hpcmcodec.pillow
from hpcmcodec import codec, container, formats, image
from hpcmcodec.cli import cli
from hpcmcodec.container import STREAM_ORDER, Stream
from hpcmcodec.errors import CancelledError, InputError, UnsupportedError
from hpcmcodec.image.colour import Cicp
from hpcmcodec.model.config import PRESETS, Config
from hpcmcodec.quality import Quality


@pytest.fixture(autouse=True, scope="module")
def _tiny() -> Iterator[None]:
    with tiny.installed():
        yield


@pytest.fixture(scope="module")
def coded() -> bytes:
    return tiny.encode(24, 20)


def with_texts(coded: bytes, chunk: bytes) -> bytes:
    return container.edited(coded, {"TEXT": chunk, "XMP": b"<a/>"}, None)


# ------------------------------------------------------------------------------------------------------------ the size


def long_file(width: int, height: int, n_bytes: int) -> bytes:
    streams = {scale: [Stream(bytes(n_bytes if scale == "s3" else 0), 0)] for scale in STREAM_ORDER}
    size: dict[str, Any] = {"width": width, "height": height, "quality": Quality(0)}
    return container.pack(model_id=bytes(4), streams=streams, **size)


def test_streams_longer_than_any_picture_of_the_declared_size_are_refused_by_the_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = 8 * 64 * 64
    assert container.parse_header(long_file(1, 64, most)).lengths[-1] == most
    monkeypatch.setattr(container.writer, "max_stream_bytes", lambda width, height: 2**32)
    data = long_file(64, 1, most + 4)
    end = container.header.extent(data)[1]
    with pytest.raises(InputError, match=f"streams of {most + 4} bytes, 64x1 has {most} at most"):
        container.parse_header(data[:end])


@pytest.mark.parametrize("config", PRESETS.values(), ids=list(PRESETS))
def test_streams_of_every_member_fit_into_the_limit(config: Config) -> None:
    bits = 16 + 4 * 7  # the rarest entry of a table, and the longest escape: `rans`
    assert bits * (16 * config.latent + config.hyper) / 8 + len(STREAM_ORDER) * 8 <= 8 * 64 * 64


def test_file_that_announces_more_than_any_has_is_refused_whatever_the_limit() -> None:
    fields = bytes(4) + bytes((64, 1, 1, 0)) + b"\1EXIF\0" + b"\xff\xff\xff\xff\x0f" + bytes(4)
    header = container.MAGIC + b"\2" + bytes((len(fields) + 2,)) + fields
    data = tiny.resealed(header, b"")[:-4]
    for max_pixels in (256, 10**8, None):
        with pytest.raises(InputError, match="chunks of 4294967295 bytes, a file has 67108864 at most"):
            container.read(io.BytesIO(data), max_pixels=max_pixels)


# --------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("chunk", [b"no zero byte", b"\xff\0\0", b"a\0" * (2 * container.MAX_TEXTS + 2)])
@pytest.mark.parametrize("form", formats.FORMATS)
def test_malformed_texts_are_dropped_with_a_note_and_the_picture_is_shown(
    form: str, chunk: bytes, coded: bytes, tmp_path: Path
) -> None:
    source, target = tmp_path / "a.hpcm", tmp_path / f"a{formats.FORMATS[form].suffixes[0]}"
    source.write_bytes(with_texts(coded, chunk))
    if form == "avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow writes no AVIF")
    result = CliRunner().invoke(cli, ["decode", str(source), "-o", str(target)])
    assert result.exit_code == 0, result.stderr
    assert "note: " in result.stderr
    assert "texts dropped: chunk TEXT" in result.stderr
    with Image.open(target) as shown:
        assert shown.size == (24, 20)


def test_malformed_texts_are_dropped_with_a_warning_in_the_library_and_named_by_info(
    coded: bytes, tmp_path: Path
) -> None:
    data = with_texts(coded, b"no zero byte")
    with pytest.warns(UserWarning, match="texts dropped"):
        shown = hpcmcodec.decode(data)
    assert shown.info == {"xmp": b"<a/>"}
    source = tmp_path / "a.hpcm"
    source.write_bytes(data)
    result = CliRunner().invoke(cli, ["info", "--exif", str(source)])
    assert result.exit_code == 0
    assert "Texts: cannot be read: chunk TEXT" in result.output


def test_whole_files_decode_without_a_warning(coded: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hpcmcodec.decode(with_texts(coded, container.packed_text({"Title": "T"})))


def long_tag(kind: int, size: int, n_tags: int = 1) -> bytes:
    """EXIF whose tags share one value of `size` bytes."""
    n = size // {3: 2, 4: 4, 5: 8, 7: 1}[kind]
    tags = b"".join(struct.pack("<HHII", 300 + tag, kind, n, 8) for tag in range(n_tags))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", n_tags) + tags + bytes(4)).ljust(size + 16, b"\0")


BOMBS = {  # up to 64 MB each, the most that the format has
    "texts": ("TEXT", b"ab\0\0" * (1 << 24)),
    "EXIF": ("EXIF", b"II*\0\x08\0\0\0" + bytes((1 << 26) - 8)),
    "numbers of EXIF": ("EXIF", long_tag(3, 1 << 25)),
    "fractions of EXIF": ("EXIF", long_tag(5, 1 << 24)),
    "one value of many tags": ("EXIF", long_tag(7, 1 << 20, 60_000)),
    "XMP": ("XMP", b"<" * (1 << 26)),
    "a profile": ("ICC", bytes(1 << 26)),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux counts")
@pytest.mark.parametrize("name", BOMBS)
def test_metadata_that_inflate_take_less_than_300_mb_of_memory(name: str, coded: bytes, tmp_path: Path) -> None:
    key, content = BOMBS[name]
    path = tmp_path / "bomb.hpcm"
    path.write_bytes(container.edited(coded, {key: content}, None))
    assert path.stat().st_size < 200_000
    code = (
        "import re, sys, tiny, hpcmcodec.cli\n"
        "peak = lambda: re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]\n"
        "with tiny.installed():\n"
        "    try: hpcmcodec.cli.cli.main(sys.argv[1:])\n"
        "    except SystemExit as end: print(end.code, peak())\n"
    )
    for form in ("png", "jpg"):
        command = [sys.executable, "-c", code, "decode", str(path), "-o", str(tmp_path / f"a.{form}")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
        code_, kilobytes = map(int, done.stdout.split())
        assert code_ in (0, 3, 4, 5), done.stderr
        assert kilobytes < 300_000


# ------------------------------------------------------------------------------------------------------------ metadata


def test_metadata_that_no_file_holds_are_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*args: object, **options: object) -> None:
        raise AssertionError("coded before the metadata were measured")

    monkeypatch.setattr(codec, "_streams_of", work)
    picture = image.Picture(tiny.picture(16, 16), {"XMP": bytes((1 << 26) + 1)})
    with pytest.raises(UnsupportedError, match="bytes of metadata and alpha"):
        hpcmcodec.encode(picture, model=tiny.NAME)


@pytest.mark.parametrize("form", ["jpg", "webp", "tif", "ppm", "bmp"])
@pytest.mark.parametrize("pair", [(2, 2), (1, 3), (99, 13), (9, 16), (255, 255)])
def test_colour_that_a_format_cannot_name_leaves_a_note(form: str, pair: tuple[int, int]) -> None:
    picture = image.Picture(tiny.picture(16, 16), cicp=Cicp(*pair))
    notes = image.write(picture, form, io.BytesIO())
    assert [note for note in notes if "will be shown as sRGB" in note], notes


def test_colour_that_a_profile_describes_leaves_no_note() -> None:
    assert image.write(image.Picture(tiny.picture(16, 16), cicp=Cicp(12, 13)), "jpg", io.BytesIO()) == []


ORIENTATION = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
TURNING = {
    "prefix": b"Exif\0\0II*\0\x08\0\0\0\x01\0" + ORIENTATION + bytes(4),
    "three prefixes": 3 * b"Exif\0\0" + b"II*\0\x08\0\0\0\x01\0" + ORIENTATION + bytes(4),
    "two tags": b"II*\0\x08\0\0\0\x02\0" + ORIENTATION.replace(b"\6", b"\1") + ORIENTATION + bytes(4),
    "another type": b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIi", 0x0112, 9, 1, 6) + bytes(4),
}


TURNING_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("name", [*TURNING, "XMP"])
def test_no_metadata_have_upright_pixels_turned(name: str, form: str, coded: bytes) -> None:
    data = container.edited(coded, {"EXIF": TURNING[name]} if name in TURNING else {"XMP": TURNING_XMP}, None)
    picture = codec.decode_picture(data)
    file = io.BytesIO()
    image.write(picture, form, file)
    with Image.open(file) as shown:
        assert ImageOps.exif_transpose(shown).size == (24, 20)
    with Image.open(io.BytesIO(data)) as opened:
        assert ImageOps.exif_transpose(opened).size == (24, 20)


# -------------------------------------------------------------------------------------------------------------- cancel


@pytest.mark.parametrize("after", [1, 2, 5, 11])
def test_work_ends_where_progress_returns_false_and_the_next_work_is_whole(after: int) -> None:
    def stopping() -> Any:
        calls: list[float] = []

        def progress(done: float) -> bool:
            calls.append(done)
            return len(calls) < after

        return progress

    pixels = tiny.picture(40, 33)
    data = hpcmcodec.encode(pixels, model=tiny.NAME)
    for options in ({}, {"effort": 1}, {"verify": True}, {"target_psnr": 20.0}):
        with pytest.raises(CancelledError, match="progress has returned False"):
            hpcmcodec.encode(pixels, model=tiny.NAME, progress=stopping(), **options)
    with pytest.raises(CancelledError):
        hpcmcodec.decode(data, progress=stopping())
    if after < 6:
        with pytest.raises(CancelledError):
            hpcmcodec.decode(data, thumbnail=True, progress=stopping())
    assert hpcmcodec.encode(pixels, model=tiny.NAME) == data
    assert np.asarray(hpcmcodec.decode(data)).shape == (33, 40, 3)
