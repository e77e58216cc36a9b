"""Files appear whole or not at all, without taking the place of what nobody gave up, and are synchronised."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from hpcmcodec import publish
from hpcmcodec.cli import cli
from hpcmcodec.cli.files import Output
from hpcmcodec.errors import OutputError

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
DAY = 24 * 3600


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def output(target: Path, *, force: bool = False) -> Output:
    return Output("-", str(target), "", force)


@posix
def test_file_that_appears_at_the_last_moment_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    sync, exists = os.fsync, Path.exists

    def appear() -> None:
        if not os.path.lexists(target):
            target.write_bytes(b"precious")

    def synced(descriptor: int) -> None:
        sync(descriptor)
        appear()

    def looked(path: Path, **options: bool) -> bool:
        found = exists(path, **options)
        if path == target:
            appear()
        return found

    place = output(target)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "exists", looked)
    with pytest.raises(OutputError, match="exists already; -f overwrites it"):
        place.write(b"ours")
    assert target.read_bytes() == b"precious"
    assert names(tmp_path) == {"a"}


@posix
@pytest.mark.parametrize("missing", ["nothing", "renameat2", "renameat2 and link"])
def test_without_force_no_way_of_renaming_replaces_a_file(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if "renameat2" in missing:
        monkeypatch.setattr(publish, "_renamed_exclusively", lambda old, new: False)
    if "link" in missing:
        monkeypatch.setattr(os, "link", not_here)
    target = tmp_path / "a"
    publish.write_whole(target, b"first", force=False)
    with pytest.raises(FileExistsError):
        publish.write_whole(target, b"second", force=False)
    assert target.read_bytes() == b"first"
    assert names(tmp_path) == {"a"}


@posix
@pytest.mark.parametrize("force", [False, True])
def test_file_is_synchronised_before_it_has_its_name_and_the_folder_after(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen, sync = tmp_path / "a", [], os.fsync

    def noted(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        seen.append(
            ("folder" if folder else "file", target.exists(), os.fstat(descriptor).st_size if not folder else 4)
        )
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    output(target, force=force).write(b"ours")
    assert seen == [("file", False, 4), ("folder", True, 4)]


@posix
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("force", [False, True])
def test_fault_of_the_disk_leaves_the_old_file_and_nothing_else(
    code: int, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    if force:
        target.write_bytes(b"old")
    place = output(target, force=force)

    def broken(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OutputError, match=os.strerror(code)):
        place.write(b"ours")
    assert names(tmp_path) == ({"a"} if force else set())
    assert not force or target.read_bytes() == b"old"


@posix
def test_folder_that_cannot_be_synchronised_is_an_error_that_says_what_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OutputError, match="written, but might not outlast a loss of power"):
        output(tmp_path / "a").write(b"ours")
    assert (tmp_path / "a").read_bytes() == b"ours"


@posix
def test_hard_links_stay_links_to_one_file_and_a_note_says_so(tmp_path: Path) -> None:
    target, other = tmp_path / "a", tmp_path / "b"
    for old in (b"a longer old file", b"old"):
        target.write_bytes(old)
        other.unlink(missing_ok=True)
        os.link(target, other)
        written = output(target, force=True)
        written.write(b"our bytes")
        assert target.read_bytes() == other.read_bytes() == b"our bytes"
        assert target.samefile(other)
        assert "2 names (hard links)" in " ".join(written.notes)
    assert names(tmp_path) == {"a", "b"}


@posix
def test_hard_links_on_a_full_disk_keep_the_old_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")
    os.link(target, tmp_path / "b")

    def full(descriptor: int, start: int, length: int) -> None:
        os.ftruncate(descriptor, start + length)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left"):
        output(target, force=True).write(b"our bytes")
    assert target.read_bytes() == b"old"


@posix
def test_read_only_target_is_replaced_by_an_ordinary_file_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, inner = tmp_path / "a", os.open
    target.write_bytes(b"old")
    target.chmod(0o444)

    def as_nobody(path: object, flags: int, *rest: object, **options: object) -> int:  # root may write to it
        if path == target and flags & os.O_WRONLY and not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return inner(path, flags, *rest, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", as_nobody)
    written = output(target, force=True)
    written.write(b"ours")
    assert target.read_bytes() == b"ours"
    assert target.stat().st_mode & stat.S_IWUSR
    assert "could not be written to, and was replaced" in " ".join(written.notes)


@posix
@pytest.mark.parametrize("quiet", [False, True])
def test_a_command_says_the_notes_on_its_output(quiet: bool, tmp_path: Path) -> None:
    image, target = tmp_path / "a.png", tmp_path / "a.hpcm"
    Image.new("RGB", (16, 16), "teal").save(image)
    target.write_bytes(b"old")
    os.link(target, tmp_path / "b.hpcm")
    done = CliRunner().invoke(cli, ["encode", str(image), "-o", str(target), "-f", *(["--quiet"] if quiet else [])])
    assert done.exit_code == 0
    assert ("2 names (hard links)" in done.stderr) != quiet


def test_what_killed_runs_left_a_day_ago_is_swept_and_nothing_else(tmp_path: Path) -> None:
    old, young, other = (
        tmp_path / n for n in (".hpcm-0123456789abcdef.tmp", f".hpcm-{'0' * 16}.tmp", ".hpcm-mine.tmp")
    )
    folder = tmp_path / f".hpcm-{'1' * 16}.tmp"
    folder.mkdir()
    for path in (old, young, other):
        path.write_bytes(b"rest")
    for path in (old, other, folder):
        os.utime(path, (time.time() - DAY - 60,) * 2)
    output(tmp_path / "a").write(b"ours")
    assert names(tmp_path) == {"a", young.name, other.name, folder.name}


@posix
def test_a_link_with_the_name_of_a_leftover_is_not_swept(tmp_path: Path) -> None:
    link = tmp_path / ".hpcm-0123456789abcdef.tmp"
    link.symlink_to(tmp_path / "nowhere")
    os.utime(link, (0, 0), follow_symlinks=False)
    output(tmp_path / "a").write(b"ours")
    assert link.is_symlink()


def test_commands_that_write_nothing_do_not_load_ctypes() -> None:
    code = "import sys, hpcmcodec.publish; sys.exit('ctypes' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]).returncode == 0
    )
