"""The documents suffice: a decoder written from docs/FORMAT.md and docs/DECODING.md alone, without this package.

`tests/independent/` uses the standard library and nothing else. Whoever mends it does so from the documents, not from
the package.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from hpcmcodec import codec, container
from hpcmcodec.engines import light
from hpcmcodec.image import Picture
from hpcmcodec.image.colour import Cicp
from tests import tiny
from tools.hashes import pixel_hashes, sha256

HERE = Path(__file__).parent / "independent"
GOLDEN = json.loads((tiny.DATA / "golden.json").read_text(encoding="utf-8"))
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_exif = Image.Exif()
_exif[0x010F] = "Maker"
EXIF = _exif.tobytes()[6:]
MODEL = tiny.DATA / f"{tiny.NAME}.safetensors"


def decoded(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(HERE / "decode.py"), str(MODEL), str(path)]  # -S: no installed package
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_decoder_made_from_the_documents_gives_the_golden_latents_pixels_and_thumbnails(name: str) -> None:
    done = decoded(tiny.DATA / f"{name}.hpcm")
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(.+): CRC [0-9A-F]{8}, SHA-256 ([0-9a-f]{64})$", done.stdout, re.MULTILINE))
    found["z"] = found["z of tile 0"]
    for what in ("z", "y_hat", "pixels", "pixels of 16 bits", "thumbnail", "thumbnail of s1 and s2"):
        assert found[what] == GOLDEN[name][what], what


def made(kind: str) -> tuple[bytes, Picture]:
    """A file of what the golden ones have not, and the picture that it was made from."""
    noise, size, options = np.random.default_rng(0), (20, 33), {}
    if kind == "1x1":
        size = (1, 1)
    elif kind.startswith("tiles"):
        size, options = ((20, 1040) if "across" in kind else (1040, 20)), {"tile": 64}
    elif kind == "full":
        dots = np.where(noise.random((48, 48, 1)) < 0.5, 0, 255).astype(np.uint8)
        return codec.encode(
            picture := Picture(np.repeat(dots, 3, axis=2), {}, grey=True), 100, model=tiny.NAME, verify=True
        ), picture
    pixels = tiny.picture(size[1], size[0])
    if kind == "16 bits, opacity, metadata":
        alpha = noise.integers(0, 65536, size, np.uint16)
        metadata = {"ICC": ICC, "EXIF": EXIF, "XMP": b"<x/>" * 50, "TEXT": container.packed_text({"Title": "é" * 99})}
        picture = Picture(pixels.astype(np.uint16) * 257, metadata, depth=16, alpha=alpha)
    elif kind == "grey, code points":
        picture = Picture(np.repeat(pixels[..., :1], 3, axis=2), {}, grey=True, cicp=Cicp(9, 16))
    else:
        picture = Picture(pixels, {})
    return codec.encode(picture, 50, model=tiny.NAME, verify=True, **options), picture


KINDS = ("1x1", "tiles across", "tiles downwards", "full", "16 bits, opacity, metadata", "grey, code points")


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_files_of_every_kind_as_the_package_does(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.hpcm"
    with tiny.installed():
        data, picture = made(kind)
        header = container.parse_header(data)
        assert (len(header.tiles) > 1) == kind.startswith("tiles")
        assert header.full or kind != "full"
        engine = light.LightEngine(tiny.load())
        expected = {"y_hat": sha256(codec.decode_latents(data)), **pixel_hashes(data, engine)}
        levels = codec.decode_picture(data, depth=8).pixels
    path.write_bytes(data)
    done = decoded(path)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(.+): CRC [0-9A-F]{8}, SHA-256 ([0-9a-f]{64})$", done.stdout, re.MULTILINE))
    assert {what: found[what] for what in expected} == expected
    assert found["picture"] == hashlib.sha256(levels.tobytes()).hexdigest()
    assert levels.shape == picture.pixels.shape


def test_it_refuses_what_is_damaged(tmp_path: Path) -> None:
    data = (tiny.DATA / "tiny-7x5.hpcm").read_bytes()
    path = tmp_path / "damaged.hpcm"
    for place in range(0, len(data), 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        done = decoded(path)
        assert (done.returncode, done.stderr.startswith("refused: ")) == (1, True), place


def test_it_imports_the_standard_library_alone() -> None:
    own = {path.stem for path in HERE.glob("*.py")}
    names = {
        name
        for path in HERE.glob("*.py")
        for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert names - own <= set(sys.stdlib_module_names)
