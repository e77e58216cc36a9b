"""Whatever ends a run while it writes, by its own hand or another's: no partial file, no lost one, nothing left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner
from PIL import Image

from hpcmcodec import publish
from hpcmcodec.cli import cli
from hpcmcodec.native import build

ROOT = Path(__file__).parent.parent
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
DAY = 24 * 3600

# Every call that may fail, at every time that it is called, with both errors of a disk: (call, errno).
ATTEMPTS = """
import ctypes, errno, os, pathlib, sys
from hpcmcodec import publish
from hpcmcodec.cli.files import Output
from hpcmcodec.errors import OutputError
shim, folder, calls = ctypes.CDLL(None), pathlib.Path(sys.argv[1]), sys.argv[2:]
n_tried = 0
for call in calls:
    for code in (errno.EIO, errno.ENOSPC):
        for state in ("absent", "there", "hard links"):
            for number in (1, 2, 3, 4):
                for half in (0, 1):
                    for path in folder.iterdir():
                        path.unlink()
                    target = folder / "target"
                    if state != "absent":
                        target.write_bytes(b"precious " * 1000)
                    if state == "hard links":
                        os.link(target, folder / "other")
                    output = Output("-", str(target), "", state != "absent")
                    shim.shim_fail(call.encode(), number, code, half)
                    try:
                        output.write(b"the new contents " * 2000)
                        said = ""
                    except OutputError as error:
                        said = str(error)
                    met = shim.shim_calls() >= number
                    shim.shim_fail(b"", 0, 0, 0)
                    n_tried += met
                    found = target.read_bytes() if target.exists() else None
                    new, old = b"the new contents " * 2000, None if state == "absent" else b"precious " * 1000
                    names = {path.name for path in folder.iterdir()} - {"target", "other"}
                    where = (call, code, state, number, half, said, names)
                    assert not names, where
                    assert "\\n" not in said, where
                    # Only hard links are written in place, which cannot be undone once it has begun.
                    in_place = state == "hard links" and said
                    assert found in (new, old) or in_place, where
                    if said and "might not outlast" not in said and not in_place:
                        assert found == old, where
                    if not said:
                        assert found == new, where
print(n_tried)
"""


@linux
@pytest.mark.slow
def test_fault_of_the_disk_at_any_call_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    shim, folder = tmp_path / "shim.so", tmp_path / "folder"
    folder.mkdir()
    build.run(
        [compiler, "-shared", "-fPIC", str(ROOT / "tests" / "fault_shim.c"), "-o", str(shim), "-ldl"], tmp_path, 60
    )
    calls = ["write", "fsync", "rename", "renameat2", "link", "linkat", "chmod", "fchmod", "ftruncate"]
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, str(folder), *calls],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 40  # faults that were met


@linux
@pytest.mark.slow
def test_run_that_is_killed_at_any_time_leaves_a_whole_file_and_what_the_next_day_sweeps(tmp_path: Path) -> None:
    """200 kills, at random times of a run that encodes and writes over and over."""
    target, source = tmp_path / "a.hpcm", tmp_path / "a.png"
    rng, contents = random.Random(0), []
    Image.fromarray(tiny.picture(24, 20)).save(source)
    encode = ["encode", str(source), "-o", str(target), "-f", "--quiet", "-q"]
    for quality in ("10", "90"):
        assert CliRunner().invoke(cli, [*encode, quality]).exit_code == 0
        contents.append(target.read_bytes())
    started = time.monotonic()
    CliRunner().invoke(cli, [*encode, "10"])
    seconds = time.monotonic() - started
    n_left = 0
    for n in range(200):
        if not (child := os.fork()):
            while True:
                # Coding is the same each time; most kills shall meet the writing.
                for data in contents if n % 4 else ():
                    publish.write_whole(target, data)
                if not n % 4:
                    CliRunner().invoke(cli, [*encode, rng.choice(("10", "90"))])
        time.sleep(rng.uniform(0, 2 * seconds if not n % 4 else 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert target.read_bytes() in contents
        n_left += len(list(tmp_path.glob(".hpcm-*.tmp")))
    assert n_left, "no kill has met a file that was being written: the test shows nothing"
    for path in tmp_path.glob(".hpcm-*.tmp"):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    publish._swept.clear()
    publish.write_whole(tmp_path / "b", b"")
    assert {path.name for path in tmp_path.iterdir()} == {"a.hpcm", "a.png", "b"}


# Python's own allocation number n fails, for n = 1, 2, ... until the work no longer reaches n.
SHORTAGES = """
import io, sys, tiny, _testcapi
from hpcmcodec import codec, container
from hpcmcodec.errors import UnsupportedError
data = container.edited((tiny.DATA / "tiny-7x5.hpcm").read_bytes(), {"XMP": b"<a/>" * 100, "TEXT": b"a\\0b\\0"}, None)
def read():
    container.read(io.BytesIO(data))
    reader = container.Reader(data)
    reader.verify_complete()
    return reader.metadata()
def decode():
    return codec.decode_picture(data, depth=8).pixels.tobytes()
with tiny.installed():
    for work, most in ((read, 10_000), (decode, 1500)):
        expected = [work() for _ in range(3)][-1]
        refused = done = n = 0
        while done < 40 and n < most:
            n += 1
            _testcapi.set_nomemory(n, n + 1)
            try:
                found = work()
            except MemoryError:
                refused, done = refused + 1, 0
            except UnsupportedError as error:
                assert str(error) == "not enough memory for an image of this size", error
                refused, done = refused + 1, 0
            except TypeError as error:  # what CPython says where it has no memory to open a path
                assert "not PosixPath" in str(error)
                done = 0
            else:
                done += 1
                assert found == expected
            finally:
                _testcapi.remove_mem_hooks()
        assert refused > 100, (work, refused, n)
"""


@pytest.mark.slow
def test_each_allocation_of_the_reader_that_fails_is_said_to_be_one() -> None:
    pytest.importorskip("_testcapi")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SHORTAGES],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@linux
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, who may mount")
def test_disk_that_is_full_indeed_keeps_what_is_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        source = tmp_path / "a.png"
        Image.effect_noise((300, 300), 90).convert("RGB").save(source)
        target = disk / "a.hpcm"
        target.write_bytes(b"precious")
        for force in ([], ["-f"]):
            result = CliRunner().invoke(cli, ["encode", str(source), "-q", "100", "-o", str(target), *force])
            assert result.exit_code == 6, result.stderr
            assert ("No space left" if force else "exists") in result.stderr
            assert target.read_bytes() == b"precious"
            assert [path.name for path in disk.iterdir()] == ["a.hpcm"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
