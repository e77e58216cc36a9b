"""What is installed: damaged parts are refused before they compute anything, and nothing is sent or left behind."""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from hpcmcodec import checksums, weights
from hpcmcodec.engines import light
from hpcmcodec.errors import HpcmError, InstallationError, IntegrityError
from hpcmcodec.native import build, loader
from tests import tiny

ROOT = Path(__file__).parent.parent
MODEL = weights.DEFAULT_MODEL
PARTS = [f"{MODEL}.safetensors", *(f"{MODEL}.{g}.onnx" for g in ("analysis", "gradient")), checksums.LIST]
LIBRARY = "library"

# --- damage ----------------------------------------------------------------------------------------------------------


class Installation:
    """A copy of the package with weights and a prebuilt library, in which files can be damaged."""

    def __init__(self, site: Path, library: Path) -> None:
        self.site = site
        skipped = shutil.ignore_patterns("__pycache__", "data")
        shutil.copytree(ROOT / "hpcmcodec", site / "hpcmcodec", ignore=skipped)
        self.weights, self.kernels = (site / "hpcmcodec" / "data" / name for name in ("weights", "kernels"))
        self.weights.mkdir(parents=True)
        self.kernels.mkdir()
        for name in PARTS:
            shutil.copy(ROOT / "weights" / name, self.weights)
        for name in build.SOURCES:
            shutil.copy(ROOT / "kernels" / name, self.kernels)
        stem = build.prebuilt_stem(build.source_hash(self.kernels))
        self.library = self.kernels / f"{stem}-{library.stem.rpartition('-')[2]}.so"
        shutil.copy(library, self.library)
        self.model_id = bytes.fromhex(weights.read_metadata(self.weights / PARTS[0])["model_id"])

    def path(self, part: str) -> Path:
        return self.library if part == LIBRARY else self.weights / part

    def use(self) -> None:
        """What comes before decoding and before encoding, as in a process that has not done it yet."""
        checksums._digest_of.cache_clear()
        for model in (lambda: weights.find(self.model_id), lambda: MODEL):
            weights.load.cache_clear()
            weights.load(model(), transforms=False)
            assert loader.find(background=False).origin == "prebuilt"
            loader._loaded.clear()

    def refused(self, part: str) -> None:
        """Every use ends in one line that names the part, with exit code 5."""
        checksums._digest_of.cache_clear()
        weights.load.cache_clear()
        steps: list[Callable[[], object]] = [lambda: loader.find(background=False)]
        if part != LIBRARY:
            steps = [lambda: weights.load(weights.find(self.model_id)), lambda: weights.load(MODEL)]
        for step in steps:
            with pytest.raises(InstallationError, match=re.escape(self.path(part).name)) as raised:
                step()
            assert raised.value.exit_code == 5
            assert "reinstall hpcmcodec" in str(raised.value)
            assert len(str(raised.value).splitlines()) == 1

    def hpcm(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpcmcodec", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(self.site), "HPCM_OPS": "auto"}
        return subprocess.run(command, cwd=self.site, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory, kernel_library: Path) -> Installation:
    return Installation(tmp_path_factory.mktemp("installed"), kernel_library)


@pytest.fixture
def installation(copied: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    monkeypatch.setattr(weights, "folder", lambda: copied.weights)
    monkeypatch.setattr(build, "source_folder", lambda: copied.kernels)
    monkeypatch.setattr(loader, "_loaded", {})
    monkeypatch.delenv("HPCM_OPS", raising=False)
    weights.load.cache_clear()
    yield copied
    weights.load.cache_clear()


@contextmanager
def holding(path: Path, data: bytes | None) -> Iterator[None]:
    """The file holds other bytes, or is not there, for a while."""
    kept = path.with_name(f"{path.name}.kept")
    path.rename(kept)
    try:
        if data is not None:
            path.write_bytes(data)
        yield
    finally:
        kept.replace(path)


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(bit // 8)
            (byte,) = file.read(1)
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))

    flip()
    try:
        yield
    finally:
        flip()


def damages(part: str, whole: bytes) -> dict[str, bytes | None]:
    other = {LIBRARY: ROOT / "kernels" / "core.h", checksums.LIST: tiny.DATA / checksums.LIST}
    return {
        "first kilobyte zeroed": bytes(min(1024, len(whole))) + whole[1024:],
        "last kilobyte zeroed": whole[:-1024] + bytes(min(1024, len(whole))),
        "without its last byte": whole[:-1],
        "cut in the middle": whole[: len(whole) // 2],
        "empty": b"",
        "another model's": other.get(part, tiny.DATA / part.replace(MODEL, tiny.NAME)).read_bytes(),
    } | ({} if part == LIBRARY else {"missing": None})


def test_what_is_whole_is_used(installation: Installation) -> None:
    installation.use()


@pytest.mark.parametrize("part", [*PARTS, LIBRARY])
@pytest.mark.parametrize("flips", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused(installation: Installation, part: str, flips: int) -> None:
    path, rng = installation.path(part), random.Random(flips)
    for bit in (0, *(rng.randrange(8 * path.stat().st_size) for _ in range(flips - 1))):
        with flipped(path, bit):
            installation.refused(part)
    installation.use()


@pytest.mark.parametrize("part", [*PARTS, LIBRARY])
def test_a_file_that_was_cut_zeroed_replaced_or_lost_is_refused(installation: Installation, part: str) -> None:
    path = installation.path(part)
    for name, data in damages(part, path.read_bytes()).items():
        with holding(path, data):
            # A list of another model's files is whole: the files that it names are what is missing.
            named = f"{tiny.NAME}." if (part, name) == (checksums.LIST, "another model's") else part
            installation.refused(named)
    installation.use()


def test_graphs_in_each_others_place_are_refused(installation: Installation) -> None:
    first, second = (installation.path(f"{MODEL}.{g}.onnx") for g in ("analysis", "gradient"))
    with holding(first, second.read_bytes()), holding(second, first.with_name(f"{first.name}.kept").read_bytes()):
        installation.refused(first.name)


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        (PARTS[0], "last kilobyte zeroed"),
        (PARTS[0], "missing"),
        (PARTS[1], "cut in the middle"),
        (checksums.LIST, "without its last byte"),
        (LIBRARY, "first kilobyte zeroed"),
    ],
)
def test_encode_says_in_one_line_what_is_damaged_and_leaves_nothing(copied, photos, tmp_path, part, damage) -> None:
    path = copied.path(part)
    with holding(path, damages(part, path.read_bytes())[damage]):
        done = copied.hpcm("encode", photos["chelsea"], "-o", tmp_path / "cat.hpcm")
    assert done.returncode == 5
    assert re.fullmatch(r"hpcm: error: [^\n]*\n", done.stderr)
    assert f"error: {path}" in done.stderr, "the photograph is not what is damaged"
    assert list(tmp_path.iterdir()) == []


def test_decode_and_info_of_a_model_whose_header_is_damaged_say_so(copied, photos, tmp_path: Path) -> None:
    coded, path = tmp_path / "cat.hpcm", copied.path(PARTS[0])
    assert copied.hpcm("encode", photos["chelsea"], "-o", coded).returncode == 0
    at = path.read_bytes().index(copied.model_id.hex().encode())
    for bit in (8 * at, 8 * 20):  # the id of another model, and no JSON
        with flipped(path, bit):
            for command in (("decode", coded, "-o", tmp_path / "cat.png"), ("info", coded)):
                done = copied.hpcm(*command)
                assert (done.returncode, done.stdout) == (5, "")
                assert re.fullmatch(r"hpcm: error: [^\n]*\n", done.stderr)
                assert f"error: {path} is damaged" in done.stderr
    assert list(tmp_path.iterdir()) == [coded]


def test_a_file_that_changes_under_a_running_process_is_refused(installation: Installation) -> None:
    loaded = weights.load(MODEL, transforms=False)
    assert loaded.graph("gradient").name == f"{MODEL}.gradient.onnx"
    for part in (PARTS[0], f"{MODEL}.gradient.onnx"):
        path = installation.path(part)
        with holding(path, path.read_bytes() + b"\0"), pytest.raises(InstallationError, match=re.escape(part)):
            loaded.graph("gradient")


def test_each_file_is_hashed_once_in_a_process(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = Mock(wraps=checksums._digest)
    monkeypatch.setattr(checksums, "_digest", hashed)
    checksums._digest_of.cache_clear()
    for transforms in (False, True):
        engine = light.LightEngine(weights.load(MODEL, transforms=transforms))
        engine._session("gradient")
        engine._session("analysis")
    assert sorted(call.args[0].name for call in hashed.call_args_list) == sorted(PARTS[:-1])


# --- the lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [ROOT / "weights", tiny.DATA], ids=["weights", "tests"])
def test_the_lists_in_the_repository_are_of_the_files_beside_them(folder: Path) -> None:
    files = {path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".onnx")}
    assert set(checksums.read(folder) or {}) == files
    for path in folder.glob("*.safetensors"):
        assert set(weights.verify(path)) == {name for name in files if name.startswith(f"{path.stem}.")}


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum")
def test_sha256sum_reads_the_list() -> None:
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", checksums.LIST], cwd=ROOT / "weights", check=True)


def test_writing_a_list_keeps_files_that_are_there_and_forgets_others(tmp_path: Path) -> None:
    assert checksums.read(tmp_path) is None
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    checksums.write(tmp_path, ["b", "a"])
    (tmp_path / "b").unlink()
    (tmp_path / "a").write_text("changed")
    checksums.write(tmp_path, ["c"])
    assert set(checksums.read(tmp_path) or {}) == {"a", "c"}
    with pytest.raises(InstallationError, match="a is damaged"):
        checksums.verify(tmp_path / "a", (checksums.read(tmp_path) or {})["a"])
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c", checksums.LIST}


# --- weights from elsewhere -------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Weights that no list names."""
    return Path(shutil.copy(tiny.DATA / f"{tiny.NAME}.safetensors", tmp_path))


@pytest.mark.parametrize("transforms", [False, True])
def test_weights_without_a_list_are_read_alike(elsewhere: Path, transforms: bool) -> None:
    found, listed = (weights.load_file(p, transforms=transforms) for p in (elsewhere, tiny.DATA / elsewhere.name))
    assert found.sums == {} != listed.sums
    assert found.model_id == listed.model_id
    assert found.tensors.keys() == listed.tensors.keys()


@pytest.mark.parametrize("prefix", ["entropy.", "tables.", "g_s.", "ungain."])
def test_weights_without_a_list_must_have_the_id_that_they_say(elsewhere: Path, prefix: str) -> None:
    tensors = weights.load_file(elsewhere).tensors
    largest = max((t for name, t in tensors.items() if name.startswith(prefix)), key=lambda t: t.nbytes)
    at = elsewhere.read_bytes().index(largest.tobytes())
    for bit in (8 * at, 8 * (at + largest.nbytes) - 1):
        with flipped(elsewhere, bit), pytest.raises(IntegrityError, match="damaged weights"):
            weights.load_file(elsewhere, transforms=False)


def test_a_damaged_header_of_weights_without_a_list_is_refused_or_decodes_alike(elsewhere: Path) -> None:
    whole, rng = weights.load_file(elsewhere), random.Random(1)
    (header,) = struct.unpack("<Q", elsewhere.read_bytes()[:8])
    for bit in (rng.randrange(8 * (8 + header)) for _ in range(100)):
        with flipped(elsewhere, bit):
            try:
                found = weights.load_file(elsewhere)
            except HpcmError:
                continue
        assert found.model_id == whole.model_id
        assert found.config.decoding_json() == whole.config.decoding_json()
        for name in (n for n in whole.tensors if n.startswith(weights._DECODING)):
            np.testing.assert_array_equal(found.tensors[name], whole.tensors[name])


# --- nothing is sent, nothing is left behind --------------------------------------------------------------------------


def test_onnxruntime_is_imported_in_one_place() -> None:
    importing = set()
    for folder in ("hpcmcodec", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                if any(name.partition(".")[0] == "onnxruntime" for name in names):
                    importing.add(path.relative_to(ROOT).as_posix())
    assert importing == {"hpcmcodec/ort.py"}


@pytest.mark.parametrize("home", ["empty", "a file"])
def test_coding_writes_its_output_alone_and_is_quiet(home: str, photos: dict[str, Path], tmp_path: Path) -> None:
    """A home that cannot be written to, even by root, is one below a file."""
    (tmp_path / "tmp").mkdir()
    if home == "empty":
        (tmp_path / "home").mkdir()
    else:
        (tmp_path / "home").write_bytes(b"")
    # Without a compiler: the kernels' cache is what a home may be written to for.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))}
    environment |= {"HOME": str(tmp_path / "home" / ("" if home == "empty" else "user")), "CXX": "none"}
    environment |= {"TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    for command in (("encode", photos["chelsea"], "-o", "cat.hpcm"), ("decode", "cat.hpcm")):
        done = subprocess.run(
            [sys.executable, "-m", "hpcmcodec", "--quiet", *map(str, command)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"home", "tmp", "cat.hpcm", "cat.png"}
