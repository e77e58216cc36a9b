"""The plugin for Pillow: opening is quick and lazy, saving keeps what the image has, mistakes are Pillow's errors."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

import hpcmcodec
import hpcmcodec.pillow
from hpcmcodec import container
from hpcmcodec.image import Picture, colour
from hpcmcodec.image.colour import Cicp
from hpcmcodec.quality import Quality


@pytest.fixture(scope="module")
def photo(photos: dict[str, Path]) -> Image.Image:
    with Image.open(photos["coffee"]) as image:
        return image.convert("RGB").crop((100, 100, 260, 196))


def saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "HPCM", **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "YCbCr", "I;16"])
def test_every_mode_is_saved_and_opened(photo: Image.Image, mode: str) -> None:
    image = photo.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(photo.size))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    with Image.open(io.BytesIO(saved(image, quality=80))) as opened:
        expected = {"1": "L", "I;16": "L", "L": "L", "LA": "LA", "RGBA": "RGBA", "P": "RGBA"}
        assert opened.mode == expected.get(mode, "RGB")
        assert (opened.size, opened.format) == (photo.size, "HPCM")
        assert opened.get_format_mimetype() == "image/x-hpcm"
        if mode in ("RGBA", "LA"):
            assert np.array_equal(np.asarray(opened)[..., -1], np.asarray(image)[..., -1])


def test_opened_image_has_the_pixels_of_the_library_and_is_decoded_when_asked_for(
    photo: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "photo.hpcm"
    photo.save(path, quality=60)
    assert container.parse_header(path.read_bytes()).quality.percent == 60
    expected = np.asarray(hpcmcodec.decode(path))
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        with Image.open(source) as image:
            assert image.size == photo.size
            assert image.tile
            assert np.array_equal(np.asarray(image), expected)
            assert not image.tile
    with path.open("rb") as file, Image.open(file) as image:
        image.load()
        assert not file.closed
    with Image.open(path) as image:
        copies = [image.copy(), image.crop((0, 0, 9, 9)), image.resize((5, 5)), pickle.loads(pickle.dumps(image))]
        assert [copy.size for copy in copies] == [photo.size, (9, 9), (5, 5), photo.size]
        image.verify()


def test_metadata_are_taken_along_overridden_and_left_out(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker of cameras"
    icc = colour.profile_of(Cicp(9, 14))
    photo = photo.copy()
    photo.info |= {"exif": exif.tobytes(), "icc_profile": icc, "xmp": b"<a/>"}
    with Image.open(io.BytesIO(saved(photo))) as image:
        assert dict(image.getexif()) == {0x010F: "Maker of cameras"}
        assert (image.info["icc_profile"], image.info["xmp"]) == (icc, b"<a/>")
    exif[0x010F] = "Another"
    with Image.open(io.BytesIO(saved(photo, exif=exif, icc_profile=None, xmp=b""))) as image:
        assert dict(image.getexif()) == {0x010F: "Another"}
        assert set(image.info) == {"exif"}


def test_file_that_is_opened_and_saved_again_keeps_all_it_carries(photo: Image.Image) -> None:
    metadata = {"IPTC": b"\x1c\x02\x05\0\x01T", "TEXT": container.packed_text({"Title": "T"})}
    source = Picture(np.asarray(photo), metadata, cicp=Cicp(12, 13))
    with Image.open(io.BytesIO(hpcmcodec.encode(source))) as image:
        assert image.info["icc_profile"] == colour.profile_of(Cicp(12, 13))
        reader = container.Reader(saved(image))
        assert reader.header.cicp == (12, 13)
        assert reader.metadata() == source.metadata


def test_thumbnail_comes_from_the_files_own_where_that_is_large_enough(photo: Image.Image) -> None:
    data = saved(photo)
    small = hpcmcodec.decode(data, thumbnail=True)
    assert small.size == (20, 12)
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((20, 20))
        assert np.array_equal(np.asarray(image), np.asarray(small))
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((10, 10))
        assert image.size == (10, 6)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(small.resize((10, 6)))).mean() < 3
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((40, 40))  # the whole picture is decoded
        assert image.size == (40, 24)
    with Image.open(io.BytesIO(data)) as image:
        assert image.draft("L", (20, 12)) == ("RGB", (0, 0, 20.0, 12.0))
        assert (image.mode, image.size) == ("RGB", (20, 12))
    with Image.open(io.BytesIO(data)) as image:
        assert image.draft("RGB", (21, 12)) is None
        image.load()
        assert image.draft("RGB", (1, 1)) is None


def test_what_is_no_file_or_damaged_or_cannot_be_saved_gives_pillows_errors(photo: Image.Image, tmp_path: Path) -> None:
    data = saved(photo)
    for start in (b"\x8bHPC", data[:20], b"\x8bHPCM\r\n\n" + data[8:], data[:4] + b"\x09" + data[5:]):
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(start))
    with Image.open(io.BytesIO(data[:-10])) as image, pytest.raises(OSError, match="truncated"):
        image.load()
    damaged = bytearray(data)
    damaged[-20] ^= 1
    with Image.open(io.BytesIO(bytes(damaged))) as image, pytest.raises(OSError, match="damaged"):
        image.load()
    path = tmp_path / "float.hpcm"
    with pytest.raises(OSError, match="cannot write mode F"):
        Image.new("F", (4, 4)).save(path)
    assert not path.exists()
    with pytest.raises(ValueError, match="quality"):
        saved(photo, quality=101)


def test_more_pixels_than_pillow_allows_are_a_bomb(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


def test_opening_loads_neither_numpy_nor_onnxruntime(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.hpcm"
    exif = Image.Exif()
    exif[0x010F] = "M"
    photo.save(path, exif=exif)
    code = (
        "import sys, hpcmcodec.pillow; from PIL import Image; image = Image.open(sys.argv[1]); image.getexif();"
        "print(image.size, image.mode, sorted({'numpy', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "(160, 96) RGB []\n"


def test_malformed_texts_are_dropped_with_a_warning(photo: Image.Image) -> None:
    data = container.edited(saved(photo), {"TEXT": b"no zero byte", "XMP": b"<a/>"}, None)
    with pytest.warns(UserWarning, match="texts dropped"):
        image = Image.open(io.BytesIO(data))
    with pytest.warns(UserWarning, match="texts dropped"):
        assert np.asarray(image).shape == (photo.height, photo.width, 3)
    assert image.info == {"xmp": b"<a/>"}


def test_upright_pixels_are_not_turned_again(photo: Image.Image) -> None:
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "Maker of cameras"
    block = turned.tobytes()[6:]
    data = container.edited(saved(photo), {"EXIF": block}, None)
    with Image.open(io.BytesIO(data)) as image:
        assert ImageOps.exif_transpose(image).size == photo.size
        assert image.getexif()[0x010F] == "Maker of cameras"


def test_pixels_are_counted_as_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    header = {"model_id": bytes(4), "width": 1, "height": 100, "quality": Quality(0)}
    streams = {scale: [container.Stream(b"", 0)] for scale in container.STREAM_ORDER}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(container.pack(**header, streams=streams)))


def test_saving_with_what_another_file_said_works(photo: Image.Image) -> None:
    small = photo.crop((0, 0, 16, 16))
    for nothing in (Image.Exif(), Image.Exif().tobytes()):
        assert "EXIF" not in container.Reader(saved(small, exif=nothing)).metadata()
    assert container.Reader(saved(small, xmp="<a/>")).metadata() == {"XMP": b"<a/>"}
    grey = small.convert("L")
    grey.info["icc_profile"] = b"a profile of greys"
    assert container.Reader(saved(grey, icc_profile=grey.info["icc_profile"])).metadata() == {}
