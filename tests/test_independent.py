"""The documents suffice: a decoder written from docs/FORMAT.md and docs/DECODING.md alone, without this package.

`tests/independent/` uses the standard library and nothing else. Whoever mends it does so from the documents, not from
the package. `test_golden_corpus.py` has it read files of more kinds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmcodec import container
from hpcmcodec.quality import Quality
from tests import tiny

HERE = Path(__file__).parent / "independent"
GOLDEN = json.loads((tiny.DATA / "golden.json").read_text(encoding="utf-8"))
MODEL = tiny.DATA / f"{tiny.NAME}.safetensors"


def decoded(path: Path, *options: str, model: Path = MODEL) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(HERE / "decode.py"), str(model), str(path), *options]  # -S: nothing installed
    return subprocess.run(command, capture_output=True, text=True, check=False)


def hashes_of(path: Path, *options: str, model: Path = MODEL) -> dict[str, str]:
    """SHA-256 of all that a file decodes to, by name."""
    done = decoded(path, *options, model=model)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^(.+): CRC [0-9A-F]{8}, SHA-256 ([0-9a-f]{64})$", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("name", GOLDEN)
def test_a_decoder_made_from_the_documents_gives_the_golden_latents_pixels_and_thumbnails(name: str) -> None:
    found = hashes_of(tiny.DATA / f"{name}.hpcm")
    for what in ("z", "y_hat", "pixels", "pixels of 16 bits", "thumbnail", "thumbnail of s1 and s2"):
        assert found[what] == GOLDEN[name][what], what


def test_it_refuses_what_is_damaged(tmp_path: Path) -> None:
    data = (tiny.DATA / "tiny-7x5.hpcm").read_bytes()
    path = tmp_path / "damaged.hpcm"
    for place in range(0, len(data), 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        done = decoded(path)
        assert (done.returncode, done.stderr.startswith("refused: ")) == (1, True), place


def test_it_refuses_streams_that_are_longer_than_those_of_any_picture_of_this_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container.writer, "max_stream_bytes", lambda width, height: 2**32)
    streams = {s: [container.Stream(bytes(4 * 8193 * (s == "z")), 0)] for s in container.STREAM_ORDER}
    options = {"model_id": tiny.load().model_id, "quality": Quality(0), "streams": streams}
    path = tmp_path / "long.hpcm"
    path.write_bytes(container.pack(width=64, height=64, **options))
    assert "the streams are longer" in decoded(path).stderr
    path.write_bytes(container.pack(width=65, height=64, **options))
    assert "the streams are longer" not in decoded(path).stderr


def test_it_imports_the_standard_library_alone() -> None:
    own = {path.stem for path in HERE.glob("*.py")}
    names = {
        name
        for path in HERE.glob("*.py")
        for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert names - own <= set(sys.stdlib_module_names)
