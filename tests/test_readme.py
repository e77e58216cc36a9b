"""README's examples run as they stand, and the make targets and exit codes that it names are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs" / "USAGE.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(photos: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with a photo.jpg, as the examples suppose."""
    with Image.open(photos["chelsea"]) as image:
        image.save(tmp_path / "photo.jpg", quality=95)
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_the_library_example_runs(folder: Path) -> None:
    (example,) = blocks("python")
    done = run(["-W", "error", "-c", example], folder)
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "photo.png") as image:
        assert image.size == (451, 300)


def test_the_commands_run(folder: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("hpcm ")]
    commands = [command for command in commands if "path/to" not in command]  # a folder that the reader has
    assert [shlex.split(command)[1] for command in commands] == ["encode", "decode", "info", "compare"]
    for command in commands:
        done = run(["-m", "hpcmcodec", *shlex.split(command, comments=True)[1:]], folder)
        assert done.returncode == 0, done.stderr
    assert (folder / "photo.hpcm").stat().st_size < (folder / "photo.jpg").stat().st_size


def test_the_exit_codes_are_those_of_the_help(tmp_path: Path) -> None:
    help_text = run(["-m", "hpcmcodec", "--help"], tmp_path).stdout
    in_help = re.findall(r"^ +(\d+)  \S", help_text, re.MULTILINE)
    (table,) = re.findall(r"^\| exit code \| meaning \|\n(.*?)\n\n", USAGE, re.MULTILINE | re.DOTALL)
    assert in_help == re.findall(r"^\| (\d+) \|", table, re.MULTILINE)


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
