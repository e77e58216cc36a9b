"""Writes files that appear whole or not at all, and that outlast a loss of power once the call has returned.

A file is written under a hidden name in the folder of its target and synchronised, then takes its name in one step of
the system, then the folder is synchronised. A process that is killed leaves the hidden file at most, and the next run
that writes in this folder removes it a day later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from pathlib import Path

from hpcmcodec import interrupts

__all__ = ["write_whole"]

_LEFTOVER = re.compile(r"\.hpcm-[0-9a-f]{16}\.tmp")
_LEFT_SECONDS = 24 * 3600.0  # no run writes this long: an older file was left by one that was killed
_NO_DIRECTORY = -100  # AT_FDCWD of Linux: paths are relative to the working directory, as usual
_RENAME_NOREPLACE = 1  # of renameat2, Linux
_RENAME_EXCL = 4  # of renamex_np, macOS
# What file systems answer that do not have what was asked for.
_NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EMLINK)

_swept: set[Path] = set()


def write_whole(path: Path, data: bytes | memoryview, *, force: bool = True) -> list[str]:
    """Writes `data` as the file `path`, whose folder is there.

    With `force`, a file that is there is treated as cp -f treats it. One of several hard links stays one: the file is
    written in place, so that all its names show the new contents, and this alone is not done in one step. A file that
    may not be written to is replaced by another one with the usual permissions. Any other is replaced and hands on its
    permissions and, where that is allowed, its owner.

    Returns:
        A line for each of these peculiarities that was met.

    Raises:
        FileExistsError: there is a file of this name, and `force` is false. It is as it was.
        OSError: the file cannot be written. There is no new file, and one that was there is as it was; except where the
            folder cannot be synchronised, as the message then says.
    """
    _sweep(path.parent)
    notes: list[str] = []
    like: os.stat_result | None = None
    if force and path.exists():
        try:
            descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            notes.append("it could not be written to, and was replaced")
        else:
            with os.fdopen(descriptor, "wb", 0) as file:
                like = os.fstat(descriptor)
                if like.st_nlink > 1:
                    _write_over(file.fileno(), data, like.st_size)
                    return [f"it has {like.st_nlink} names (hard links): all of them show the new contents"]
    # The name has a fixed length: one made from the target's could exceed the 255 bytes that file systems allow.
    temporary = path.with_name(f".hpcm-{os.urandom(8).hex()}.tmp")
    with interrupts.undoing(temporary.unlink):
        try:
            with temporary.open("xb", 0) as file:
                _write(file.fileno(), data)
                if like is not None:
                    _hand_on(like, temporary)
                os.fsync(file.fileno())
            if force:
                temporary.replace(path)
            else:
                _rename_unless_there(temporary, path)
        except BaseException:  # interruptions too
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)
    return notes


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _write_over(descriptor: int, data: bytes | memoryview, size: int) -> None:
    """Gives an open file other contents. A disk that is too full for them is found before the first byte changes."""
    if hasattr(os, "posix_fallocate") and len(data) > size:
        try:
            os.posix_fallocate(descriptor, size, len(data) - size)
        except OSError as error:
            os.ftruncate(descriptor, size)
            if error.errno not in _NOT_HERE:
                raise
    _write(descriptor, data)
    os.truncate(descriptor, len(data))
    os.fsync(descriptor)


def _hand_on(like: os.stat_result, path: Path) -> None:
    """Permissions and owner of a file for the one that takes its place."""
    if hasattr(os, "chown") and (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(OSError):
            os.chown(path, like.st_uid, like.st_gid)
    path.chmod(stat.S_IMODE(like.st_mode))


def _rename_unless_there(old: Path, new: Path) -> None:
    """Renames a file in one step that fails where there is one of the new name. Raises FileExistsError then."""
    if os.name == "nt":  # where renaming never replaces
        old.rename(new)
        return
    if _renamed_exclusively(old, new):
        return
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        # A file system with neither, such as FAT below an old system: what appears in this moment would be replaced.
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from error
        old.rename(new)
    else:
        old.unlink()


def _renamed_exclusively(old: Path, new: Path) -> bool:
    """Whether the system's own call has renamed the file; False where it has none. Raises FileExistsError."""
    import ctypes  # takes 10 ms, which commands that write nothing should not cost

    names = os.fsencode(old), os.fsencode(new)
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, _RENAME_EXCL)
    elif sys.platform.startswith("linux") and hasattr(library, "renameat2"):
        failed = library.renameat2(_NO_DIRECTORY, names[0], _NO_DIRECTORY, names[1], _RENAME_NOREPLACE)
    else:
        return False
    number = ctypes.get_errno()
    if failed and number not in _NOT_HERE:
        raise OSError(number, os.strerror(number), str(new))
    return not failed


def _sync_folder(folder: Path) -> None:
    """Has the names in a folder outlast a loss of power. Raises OSError where the disk reports a fault."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            reason = f"{error.strerror}: the file is written, but might not outlast a loss of power"
            raise OSError(error.errno, reason) from error
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Removes what runs that were killed have left in a folder, once for each process."""
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not _LEFTOVER.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                facts = entry.stat(follow_symlinks=False)
                mine = not hasattr(os, "geteuid") or facts.st_uid == os.geteuid()
                if mine and time.time() - facts.st_mtime > _LEFT_SECONDS:
                    Path(entry.path).unlink()
