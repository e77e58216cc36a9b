"""Kernels are found, built or done without: whatever happens to compiler and cache, coding works or says why."""

import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hpcmcodec import cli
from hpcmcodec.engines import light
from hpcmcodec.errors import UnsupportedError
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.native import abi, build, doctor, loader
from hpcmcodec.native.compiled import KernelOps
from tests import tiny

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0  # seconds until something that should happen counts as not happening


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


class Place:
    """A copy of the package and the kernels' sources without a prebuilt library, a cache, and a compiler to choose."""

    def __init__(self, folder: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.library, self.monkeypatch = folder, library, monkeypatch
        self.package = folder / "site"
        shutil.copytree(
            ROOT / "hpcmcodec", self.package / "hpcmcodec", ignore=shutil.ignore_patterns("__pycache__", "data")
        )
        self.sources = self.package / "kernels"
        self.sources.mkdir()
        for name in build.SOURCES:
            shutil.copy(ROOT / "kernels" / name, self.sources)
        self.cache = folder / "home" / "hpcmcodec" / "kernels"
        self.source = build.source_hash(self.sources)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
        monkeypatch.delenv("HPCM_OPS", raising=False)
        monkeypatch.setattr(build, "source_folder", lambda: self.sources)
        monkeypatch.setattr(build, "__file__", str(self.package / "hpcmcodec" / "native" / "build.py"))
        monkeypatch.setattr(loader, "_started_build", False)
        self.compiler("copy")

    def compiler(self, kind: str) -> None:
        """Make $CXX one that copies a library that is there already ("copy"), first waits for a file named go ("wait"),
        never ends ("hang"), fails ("fail"), writes rubbish ("rubbish"), or does not exist ("none").
        """
        copy = f'cp "{self.library}" "$out"'
        body = {
            "copy": copy,
            "wait": f'touch "{self.folder}/waiting"; while [ ! -e "{self.folder}/go" ]; do sleep 0.05; done; {copy}; '
            f'touch "{self.folder}/done"',
            "hang": f'echo $$ > "{self.folder}/pid"; sleep 600',
            "fail": 'echo "kernels.cpp:1: error: no such thing" >&2; exit 1',
            "rubbish": 'echo rubbish > "$out"',
            "none": "",
        }[kind]
        script = self.folder / f"compiler-{kind}"
        if body:
            script.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\nout=$2\n{body}\n')
            script.chmod(0o755)
        self.monkeypatch.setenv("CXX", str(script))

    def recording_compiler(self) -> Path:
        """Make $CXX one whose calls are lines of the file returned. Objects are what it was given, dependencies those
        that a line of the source names in quotes; a library is a copy of one that is there already.
        """
        calls, script = self.folder / "calls", self.folder / "compiler-recording"
        script.write_text(
            f'#!/bin/sh\necho "$*" >> "{calls}"\n'
            'while [ "$1" != -o ]; do case $1 in -MF) depfile=$2;; -c) unit=$2;; esac; shift; done\nout=$2\n'
            f'[ "$unit" ] || exec cp "{self.library}" "$out"\n'
            'cp "$unit" "$out"\n'
            'echo "$out: $unit" $(sed -n \'s/^#include "\\(.*\\)"/\\1/p\' "$unit") > "$depfile"\n'
        )
        script.chmod(0o755)
        self.monkeypatch.setenv("CXX", str(script))
        return calls

    def prebuild(self, source: str | None = None) -> Path:
        compiler = build.find_compiler()
        assert compiler is not None
        return build.prebuild(self.sources, source or self.source, compiler)

    def build(self, **options: float) -> Path:
        compiler = build.find_compiler()
        assert compiler is not None
        return build.build_cached(self.sources, self.source, compiler, self.cache, **{"wait": PATIENCE} | options)

    def process(self) -> subprocess.Popen[str]:
        """What a build in the background is."""
        command = [sys.executable, "-I", str(self.package / "hpcmcodec" / "native" / "build.py"), "cache"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def libraries(self) -> list[Path]:
        return sorted(self.cache.glob("*.so"))

    def leftovers(self) -> list[Path]:
        return sorted(self.cache.glob(".build-*"))


@pytest.fixture
def place(tmp_path: Path, kernel_library: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, kernel_library, monkeypatch)


def finds_reference(**options: bool) -> loader.Status:
    status = loader.find(**options)
    assert status.kernels is None
    return status


def codes_a_picture() -> None:
    """A file of the tiny model is decoded and its integers are checked, whatever operations are there."""
    header, streams, verify = tiny.parts_of((tiny.DATA / "tiny-7x5.hpcm").read_bytes())
    size = header.latent_height, header.latent_width
    light.LightEngine(tiny.load()).coder.decode(streams, verify, header.quality, *size)


# --- the order of looking --------------------------------------------------------------------------------------------


def test_a_prebuilt_library_comes_first_then_the_cache_then_the_reference(place: Place) -> None:
    assert finds_reference(background=False).reasons
    cached = place.build()
    assert loader.find()[1:3] == ("cache", cached)
    prebuilt = place.prebuild()
    assert loader.find()[1:3] == ("prebuilt", prebuilt)
    codes_a_picture()


def test_the_choice_is_made_when_an_engine_is_made(place: Place) -> None:
    place.build()
    tensors, grids = tiny.load().under("entropy"), tiny.load().grids
    assert type(loader.exact_ops(tensors, grids)) is KernelOps
    place.monkeypatch.setenv("HPCM_OPS", "reference")
    assert type(loader.exact_ops(tensors, grids)) is ExactOps


def test_a_library_of_other_sources_is_not_used(place: Place) -> None:
    place.build()
    stale = place.prebuild()
    (place.sources / "core.h").write_text("// changed\n" + (place.sources / "core.h").read_text())
    finds_reference(background=False)
    # Under the new name, but it says itself what it was built from.
    stale.rename(stale.with_name(stale.name.replace(place.source, build.source_hash(place.sources))))
    assert any("other sources" in r for r in finds_reference(background=False).reasons)


@pytest.mark.parametrize("name", ["PANEL", "the size of Linear", "the place of Input.scale"])
def test_a_library_that_takes_the_shared_structs_for_something_else_is_not_used(place: Place, name: str) -> None:
    place.build()
    place.monkeypatch.setitem(abi.VALUES, name, 48)
    (why,) = [r for r in finds_reference(background=False).reasons if "Python" in r]
    assert re.search(rf"{name} is \d+ in the kernels, 48 in Python$", why)
    assert "\n" not in why


def test_another_compiler_builds_a_library_of_its_own_and_without_one_any_will_do(place: Place) -> None:
    first = place.build()
    script = place.folder / "compiler-copy"
    script.write_text(script.read_text() + "# a new version\n")
    finds_reference(background=False)
    second = place.build()
    assert first != second
    place.compiler("none")
    assert loader.find().path in (first, second)


@pytest.mark.parametrize("value", ["gpu", "CPP"])
def test_an_unknown_choice_is_refused(place: Place, value: str) -> None:
    place.monkeypatch.setenv("HPCM_OPS", value)
    with pytest.raises(UnsupportedError, match="auto, reference, cpp, cuda"):
        loader.find()


def test_kernels_are_refused_on_the_engine_and_device_that_they_are_not_for(place: Place) -> None:
    place.monkeypatch.setenv("HPCM_OPS", "cuda")
    with pytest.raises(UnsupportedError, match="goes with --device cuda"):
        loader.find()
    pytest.importorskip("torch")
    from hpcmcodec.engines.torch import TorchEngine

    for choice, words in (("cuda", "goes with --device cuda"), ("cpp", "no C\\+\\+ kernels")):
        place.monkeypatch.setenv("HPCM_OPS", choice)
        with pytest.raises(UnsupportedError, match=words):
            TorchEngine(tiny.load(), "cpu")


# --- nothing there, nothing possible ---------------------------------------------------------------------------------


def test_without_a_compiler_the_reference_is_used_and_one_line_says_so(place: Place) -> None:
    place.compiler("none")
    note = finds_reference().note()
    assert note
    assert "no C++ compiler" in note
    assert "install g++" in note
    assert "\n" not in note
    codes_a_picture()
    place.monkeypatch.setenv("HPCM_OPS", "cpp")
    with pytest.raises(UnsupportedError, match=r"HPCM_OPS=cpp.*no C\+\+ compiler"):
        loader.find()
    with pytest.raises(UnsupportedError, match="CXX"):
        doctor.build_now()


def unusable_cache(place: Place) -> None:
    (place.folder / "home").write_text("a file where the directory should be")


def read_only_cache(place: Place) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is read-only for root")
    (place.folder / "home").mkdir(mode=0o555)


@pytest.mark.parametrize("spoil", [unusable_cache, read_only_cache])
def test_a_cache_that_cannot_be_written_leaves_the_reference_and_one_message(place: Place, spoil) -> None:
    spoil(place)
    status = finds_reference()
    assert not status.building
    assert "cannot be written" in (status.note() or "")
    codes_a_picture()
    place.monkeypatch.setenv("HPCM_OPS", "cpp")
    with pytest.raises(UnsupportedError, match="cannot be written"):
        loader.find()


def test_a_cache_that_others_can_write_to_is_not_trusted(place: Place) -> None:
    place.build()
    place.cache.chmod(0o777)
    assert "written to by others" in finds_reference().reasons[-1]
    with pytest.raises(build.BuildError, match="written to by others"):
        place.build()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("above", range(3))
def test_a_cache_below_a_folder_of_another_user_is_not_trusted(place: Place, above: int) -> None:
    place.build()
    folder = [place.cache, *place.cache.parents][above]
    os.chown(folder, 65534, 65534)
    assert "belongs to another user" in finds_reference().reasons[-1]
    with pytest.raises(build.BuildError, match="belongs to another user"):
        place.build()


@pytest.mark.parametrize("above", range(3))
def test_a_cache_below_a_folder_that_others_can_write_to_is_trusted_with_the_sticky_bit_alone(
    place: Place, above: int
) -> None:
    place.build()
    folder = [place.cache, *place.cache.parents][above]
    for mode, trusted in ((0o777, False), (0o775, False), (0o1777, above > 0)):
        folder.chmod(mode)
        assert (loader.find().kernels is not None) == trusted


def test_a_link_on_the_way_to_the_cache_is_judged_by_what_it_leads_to(place: Place) -> None:
    place.build()
    elsewhere, home = place.folder / "elsewhere", place.folder / "home"
    home.rename(elsewhere)
    home.symlink_to(elsewhere)
    assert loader.find().origin == "cache"
    elsewhere.chmod(0o777)
    assert "written to by others" in finds_reference().reasons[-1]


def test_a_library_that_is_a_link_or_that_others_may_write_to_is_not_loaded(place: Place) -> None:
    library = place.build()
    library.chmod(0o666)
    finds_reference(background=False)
    library.chmod(0o600)
    assert loader.find().origin == "cache"
    elsewhere = place.folder / library.name
    library.rename(elsewhere)
    library.symlink_to(elsewhere)
    finds_reference(background=False)
    assert place.build() == library  # it takes the place of the link
    assert not library.is_symlink()
    assert elsewhere.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_library_of_another_user_is_not_loaded(place: Place) -> None:
    os.chown(place.build(), 65534, 65534)
    finds_reference(background=False)


def test_folders_that_the_cache_needs_are_made_for_this_user_alone_whatever_the_umask(place: Place) -> None:
    before = os.umask(0)
    try:
        place.build()
    finally:
        os.umask(before)
    assert loader.find().origin == "cache"


@pytest.mark.parametrize(
    "words", ["final close failed: No space left on device", "ld terminated with signal 7 [Bus error]"]
)
def test_a_full_disk_is_not_remembered_as_a_compiler_that_fails(place: Place, words: str) -> None:
    script = place.folder / "compiler-fail"
    script.write_text(f'#!/bin/sh\necho "as: error: something else" >&2; echo "{words}" >&2; exit 1\n')
    script.chmod(0o755)
    place.monkeypatch.setenv("CXX", str(script))
    with pytest.raises(build.BuildError, match="something else"):
        place.build()
    assert not list(place.cache.glob("*.failed"))
    shutil.copy(place.folder / "compiler-copy", script)
    place.build()


def test_a_compiler_that_fails_on_a_disk_without_room_is_not_remembered(place: Place) -> None:
    place.compiler("fail")
    full = SimpleNamespace(f_bavail=1, f_frsize=4096)
    place.monkeypatch.setattr(os, "statvfs", lambda folder: full)
    with pytest.raises(build.BuildError):
        place.build()
    assert not list(place.cache.glob("*.failed"))


def test_without_sources_the_reference_is_used(place: Place) -> None:
    shutil.rmtree(place.sources)
    assert "sources of the kernels are not here" in finds_reference().reasons[-1]
    codes_a_picture()


def test_the_cache_directory_is_the_users_alone(place: Place) -> None:
    place.build()
    assert stat.S_IMODE(place.cache.stat().st_mode) & 0o077 == 0


def test_the_cache_is_where_xdg_says_or_under_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert build.cache_folder() == tmp_path / ".cache" / "hpcmcodec" / "kernels"


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 100, 5000, -1])
def test_a_damaged_library_in_the_cache_is_not_loaded_and_is_replaced(place: Place, length: int) -> None:
    path = place.build()
    whole = path.read_bytes()
    path.write_bytes(whole[:length] if length >= 0 else whole[:-1] + bytes([whole[-1] ^ 1]))
    finds_reference(background=False)
    codes_a_picture()
    assert place.build().read_bytes() == whole
    assert len(place.libraries()) == 1
    assert loader.find().origin == "cache"


def test_a_prebuilt_library_that_cannot_be_loaded_is_passed_over(place: Place) -> None:
    digest = hashlib.sha256(b"of another libc").hexdigest()[:16]
    path = place.prebuild()
    path.unlink()
    path.with_name(f"{path.stem.rpartition('-')[0]}-{digest}.so").write_bytes(b"of another libc")
    assert any("cannot be loaded" in r for r in finds_reference(background=False).reasons)
    place.build()
    assert loader.find().origin == "cache"


def test_a_deleted_cache_costs_a_build_and_nothing_else(place: Place) -> None:
    place.build()
    in_use = loader.find().kernels
    assert in_use
    shutil.rmtree(place.cache)
    codes_a_picture()
    place.build()
    assert loader.find().origin == "cache"


# --- builds ----------------------------------------------------------------------------------------------------------


def test_the_real_compiler_builds_what_the_loader_takes(place: Place) -> None:
    place.monkeypatch.delenv("CXX")
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    place.monkeypatch.setenv("HPCM_OPS", "cpp")
    status = loader.find()
    assert status.origin == "built"
    assert not place.leftovers()
    codes_a_picture()


def test_a_first_run_does_not_wait_for_the_compiler_and_the_next_one_has_the_kernels(place: Place) -> None:
    place.compiler("wait")
    status = finds_reference()  # returns while the compiler waits for `go`
    assert status.building
    assert "in the background" in (status.note() or "")
    codes_a_picture()
    wait_for((place.folder / "waiting").exists)
    (place.folder / "go").touch()
    wait_for(lambda: bool(place.libraries()))
    assert loader.find().origin == "cache"
    codes_a_picture()


def test_one_process_starts_one_build_at_most(place: Place) -> None:
    place.compiler("wait")
    started = []
    place.monkeypatch.setattr(loader.subprocess, "Popen", lambda *a, **k: started.append(a) or _Done())
    for _ in range(3):
        assert finds_reference().building
    assert len(started) == 1


class _Done:
    def wait(self) -> int:
        return 0


def test_of_two_processes_one_builds_and_both_end(place: Place) -> None:
    place.compiler("wait")
    first = place.process()
    wait_for((place.folder / "waiting").exists)
    second = place.process()
    assert "another process is building" in second.communicate(timeout=PATIENCE)[1]
    assert second.returncode == 1
    finds_reference(background=False)  # and nobody sees half a library
    (place.folder / "go").touch()
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 0
    assert len(place.libraries()) == 1
    assert loader.find().origin == "cache"


def test_a_forced_choice_waits_for_the_process_that_is_building(place: Place) -> None:
    place.compiler("wait")
    first = place.process()
    wait_for((place.folder / "waiting").exists)
    place.monkeypatch.setattr(build.time, "sleep", lambda s: (place.folder / "go").touch())
    place.monkeypatch.setenv("HPCM_OPS", "cpp")
    assert loader.find().kernels
    first.communicate(timeout=PATIENCE)
    assert len(place.libraries()) == 1


def test_a_killed_build_blocks_nothing_and_leaves_nothing_behind(place: Place) -> None:
    place.compiler("wait")
    killed = place.process()
    wait_for((place.folder / "waiting").exists)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=PATIENCE)
    assert place.leftovers(), "what this test is about"
    finds_reference(background=False)
    codes_a_picture()
    (place.folder / "go").touch()
    wait_for((place.folder / "done").exists)  # the orphaned compiler still writes into what is left behind until then
    assert place.build() == place.libraries()[0]
    assert not place.leftovers()
    assert loader.find().origin == "cache"


def test_a_hanging_compiler_is_ended_with_all_that_it_started(place: Place) -> None:
    place.compiler("hang")
    with pytest.raises(build.BuildError, match=r"did not end within 0\.5 s"):
        place.build(timeout=0.5)
    pid = int((place.folder / "pid").read_text())

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone)
    assert not place.leftovers()


@pytest.mark.parametrize(("kind", "words"), [("fail", "no such thing"), ("rubbish", "cannot be loaded")])
def test_a_failed_build_is_remembered_and_not_tried_again_each_time(place: Place, kind: str, words: str) -> None:
    place.compiler(kind)
    with pytest.raises(build.BuildError, match=words):
        place.build()
    assert not place.libraries()
    assert not place.leftovers()
    status = finds_reference()
    assert not status.building
    assert words in (status.note() or "")
    (remembered,) = place.cache.glob("*.failed")
    long_ago = time.time() - 2 * build.RETRY_SECONDS
    os.utime(remembered, (long_ago, long_ago))
    assert "last build failed" not in "".join(finds_reference(background=False).reasons)


def test_a_failure_is_forgotten_when_a_build_succeeds(place: Place) -> None:
    place.compiler("fail")
    with pytest.raises(build.BuildError):
        place.build()
    script = place.folder / "compiler-fail"
    shutil.copy(place.folder / "compiler-copy", script)
    place.build()
    doctor.build_now()
    assert loader.find().origin == "cache"


def test_file_systems_without_locks_still_publish_whole_libraries(place: Place) -> None:
    import fcntl

    def no_locks(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    place.monkeypatch.setattr(fcntl, "flock", no_locks)
    place.build()
    assert loader.find().origin == "cache"


def test_prebuilding_replaces_what_older_sources_left(place: Place) -> None:
    path = place.prebuild()
    old = path.with_name(path.name.replace(place.source, "0" * 16))
    path.rename(old)
    path = place.prebuild()
    assert sorted(place.sources.glob("*.so")) == [path]
    assert loader.find().origin == "prebuilt"


@pytest.mark.parametrize(("options", "code"), [(("--optional",), 0), ((), 1)])
def test_make_kernels_needs_a_compiler_and_make_demo_does_not(place: Place, options, code: int, capsys) -> None:
    place.compiler("none")
    assert build.main(["prebuild", *options]) == code
    assert "no C++ compiler" in capsys.readouterr().err


# --- ninja -----------------------------------------------------------------------------------------------------------


needs_ninja = pytest.mark.skipif(build.find_ninja() is None, reason="no ninja")
OBJECTS = {str(Path(unit).with_suffix(".o")) for unit in build.UNITS}


def made(calls: Path) -> set[str]:
    """What the recorded calls wrote; they are forgotten."""
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return {line.rsplit("-o ", 1)[1] for line in lines}


@needs_ninja
def test_beside_the_sources_ninja_compiles_only_what_changed(place: Place) -> None:
    calls = place.recording_compiler()
    place.prebuild()
    assert made(calls) == OBJECTS | {"library"}
    place.prebuild()
    assert made(calls) == set()
    avx2, cpu = place.sources / "avx2.cpp", place.sources / "cpu.h"
    older = avx2.stat().st_mtime - 1000
    avx2.write_text(avx2.read_text() + "// changed\n")
    os.utime(avx2, (older, older))  # as a checkout of an older state leaves it, in some tools
    place.prebuild()
    assert made(calls) == {"avx2.o", "library"}
    cpu.write_text(cpu.read_text() + "// changed\n")
    place.prebuild()
    assert made(calls) == {"avx512.o", "avx2.o", "sse2.o", "plain.o", "library"}


@needs_ninja
def test_another_name_of_the_sources_compiles_nothing_but_the_unit_that_holds_it(place: Place) -> None:
    calls = place.recording_compiler()
    place.prebuild()
    made(calls)
    with pytest.raises(build.BuildError, match="built something else"):  # the stand-in's library has its own name
        place.prebuild("0123456789abcdef")
    assert made(calls) == {"source.o", "library"}


@needs_ninja
def test_another_compiler_starts_from_nothing(place: Place) -> None:
    calls = place.recording_compiler()
    place.prebuild()
    made(calls)
    script = place.folder / "compiler-recording"
    script.write_text(script.read_text() + "# a new version\n")
    place.prebuild()
    assert made(calls) == OBJECTS | {"library"}
    kept = {path.name for path in (place.sources / build.OBJECTS).iterdir()}
    assert kept == {"lock", build.find_compiler().key}  # type: ignore[union-attr]


@pytest.mark.parametrize("state", ["missing", "does not work", "cannot be run"])
def test_without_ninja_one_call_of_the_compiler_gets_all_sources(place: Place, state: str) -> None:
    calls, ninja = place.recording_compiler(), place.folder / "ninja"
    if state != "missing":
        ninja.write_text("#!/bin/sh\nexit 1\n")
        ninja.chmod(0o755 if state == "does not work" else 0o644)
    place.monkeypatch.setattr(build, "find_ninja", lambda: None if state == "missing" else str(ninja))
    place.build()
    (call,) = calls.read_text().splitlines()
    for unit in build.UNITS:
        assert str(place.sources / unit) in call
    for flag in (*build.FLAGS, "-shared"):
        assert flag in call.split()
    assert loader.find().origin == "cache"


def test_ninja_is_that_of_the_package_before_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("package", "path"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ninja").write_text("#!/bin/sh\n")
        (tmp_path / folder / "ninja").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setitem(sys.modules, "ninja", SimpleNamespace(BIN_DIR=str(tmp_path / "package")))
    assert build.find_ninja() == str(tmp_path / "package" / "ninja")
    monkeypatch.setitem(sys.modules, "ninja", None)
    assert build.find_ninja() == str(tmp_path / "path" / "ninja")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.find_ninja() is None


def test_names_that_mean_something_to_ninja_or_the_shell_are_only_names(place: Place) -> None:
    odd = place.folder / "a $b 'c: d"
    odd.mkdir()
    shutil.move(place.folder / "compiler-copy", odd / "g++")
    compiler = build.Compiler((str(odd / "g++"),), "0")
    assert build.build_cached(place.sources, place.source, compiler, place.cache).exists()


# --- other systems ---------------------------------------------------------------------------------------------------


def test_where_the_system_has_no_locks_nothing_is_built_and_the_reference_is_used(place: Place) -> None:
    place.monkeypatch.setattr(build, "fcntl", None)
    place.monkeypatch.setattr(build.platform, "system", lambda: "Windows")
    status = finds_reference()
    assert not status.building
    note = status.note() or ""
    assert "kernels are not built on Windows" in note
    assert "doctor --build" not in note
    codes_a_picture()
    for attempt in (doctor.build_now, place.prebuild):
        with pytest.raises((UnsupportedError, build.BuildError), match="not built on Windows"):
            attempt()


def test_without_process_groups_a_hanging_compiler_is_ended_all_the_same(place: Place) -> None:
    place.monkeypatch.delattr(os, "killpg")
    place.monkeypatch.setattr(build, "find_ninja", lambda: None)
    script = place.folder / "hangs"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o755)
    place.monkeypatch.setenv("CXX", str(script))
    with pytest.raises(build.BuildError, match=r"did not end within 0\.\d"):
        place.build(timeout=0.5)
    assert not place.leftovers()


# --- the command line ------------------------------------------------------------------------------------------------


def run_doctor(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.cli.main(["doctor", *options])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_doctor_says_what_is_in_use_and_why(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_doctor(capsys)
    assert code == 0
    assert "the numpy reference" in out
    assert f"no prebuilt library in {place.sources}" in out
    code, out, _ = run_doctor(capsys, "--build")
    assert code == 0
    for words in (str(place.cache), str(place.folder / "compiler-copy"), "C++ kernels", "bits of the reference"):
        assert words in out
    place.monkeypatch.setenv("HPCM_OPS", "reference")
    assert "the numpy reference" in run_doctor(capsys)[1]


def test_doctor_fails_where_a_forced_choice_is_not_there(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.compiler("none")
    place.monkeypatch.setenv("HPCM_OPS", "cpp")
    code, _, err = run_doctor(capsys)
    assert code == UnsupportedError.exit_code
    assert err.count("\n") == 1
    assert "no C++ compiler" in err


def test_doctor_finds_kernels_that_compute_something_else(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.build()
    kernels = loader.find().kernels
    assert kernels

    def wrong(n: int, a: int, b: int, limit: int, out: int) -> None:
        np.ctypeslib.as_array((np.ctypeslib.ctypes.c_int16 * n).from_address(out))[:] = 1

    place.monkeypatch.setattr(kernels, "add", wrong)
    code, _, err = run_doctor(capsys)
    assert code == 5
    assert "differ from the reference: add, add, one row, hyper_latent, place, segment;" in err  # which add


def test_info_loads_no_kernels_and_no_numpy() -> None:
    code = (
        "import sys; from hpcmcodec import cli\n"
        f"try: cli.cli.main(['info', {str(tiny.DATA / 'tiny-7x5.hpcm')!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in sys.modules if m == 'numpy' or m.startswith('hpcmcodec.native')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
