"""The documents suffice: a decoder written from docs/FORMAT.md and docs/DECODING.md alone, without this package.

`tests/independent/` uses the standard library and nothing else. Whoever mends it does so from the documents, not from
the package.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

HERE = Path(__file__).parent / "independent"
GOLDEN = json.loads((tiny.DATA / "golden.json").read_text(encoding="utf-8"))
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
