"""What a run is to do: inputs found, outputs named, collisions refused, shards taken, and what is done left out.

An output has the place that its input has: that below the folder which was named, or that in the list of files, if it
is relative; else its name alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import BinaryIO, NamedTuple

from hpcmcodec.batch import work
from hpcmcodec.batch.manifest import Manifest, as_text
from hpcmcodec.batch.records import DONE, SKIPPED, Task
from hpcmcodec.cli.files import is_folder
from hpcmcodec.errors import HpcmError, InputError, OutputError

__all__ = ["Found", "Rules", "found", "left_to_do", "listed", "named", "parsed_shard", "shard"]


_MAX_LIST = 1 << 28  # bytes of a list of files: some millions of paths


class Found(NamedTuple):
    """An input, and its place in the tree: a relative path."""

    path: str
    place: str


class Rules(NamedTuple):
    """When an output that is there stays.

    Attributes:
        if_exists: "error", "skip", "update" (made anew where its input has changed, or the settings) or "force".
        settings: those of this run, as they stand in records.
        model_id: of the model that would be used, in hexadecimal; empty where the input says it.
        checksum: compare the inputs' SHA-256 rather than size and time.
    """

    if_exists: str
    settings: dict[str, object]
    model_id: str
    checksum: bool


def found(paths: Iterable[str], suffixes: Sequence[str], *, recursive: bool) -> Iterator[Found]:
    """The files that paths name; a folder stands for those below it that have one of the suffixes, in order of names.

    Below a folder, links to folders are not followed, and hidden names, pipes and devices are passed over. Raises
    `InputError` for a folder where not `recursive`, for one that cannot be read, and for one without such files.
    """
    for path in paths:
        if not is_folder(path):
            yield Found(path, PurePath(path).name)
            continue
        if not recursive:
            raise InputError(f"{path}: is a directory; -r takes the files in it")
        empty = True
        for inside in _below(path):
            if inside.lower().endswith(tuple(suffixes)):
                empty = False
                yield Found(os.path.join(path, inside), inside)  # noqa: PTH118  a million of them
        if empty:
            raise InputError(f"{path}: no files in it end in {', '.join(suffixes)}")


def _below(folder: str, inside: str = "") -> Iterator[str]:
    """Relative paths of the files below a folder, in order."""
    path = os.path.join(folder, inside)  # noqa: PTH118
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    for entry in entries:
        name = f"{inside}/{entry.name}" if inside else entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(folder, name)
        elif not _is_no_file(entry):
            yield name


def _is_no_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a pipe, a device or a link to a folder. Of a link that leads nowhere the worker says so."""
    try:
        return not entry.is_file(follow_symlinks=False) and not stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False


def listed(stream: BinaryIO) -> Iterator[Found]:
    """The files of a list: a path a line, or paths that end in NUL, as ``find -print0`` writes them.

    Raises `InputError` for a list that is too long, such as a device without end.
    """
    data = stream.read(_MAX_LIST + 1)
    if len(data) > _MAX_LIST:
        raise InputError(f"the list has more than {_MAX_LIST} bytes; take several")
    for line in re.finditer(rb"[^\0]+" if b"\0" in data else rb"[^\r\n]+", data):
        if line[0].strip():
            path = work.as_file(os.fsdecode(line[0]))
            parts = PurePath(path).parts
            inside = not PurePath(path).is_absolute() and ".." not in parts
            yield Found(path, str(PurePath(path)) if inside else PurePath(path).name)


def named(files: Iterable[Found], folder: str | None, suffix: str) -> list[tuple[Found, str]]:
    """Each file with its output: below `folder`, or beside the input where that is None.

    Raises `OutputError` where two inputs would be written to one file, which is found before any work.
    """
    taken: dict[str, str] = {}
    pairs = []
    for file in files:
        place = PurePath(file.path if folder is None else os.path.join(folder, file.place))  # noqa: PTH118
        target = str(place.with_suffix(suffix))
        key = os.path.normcase(target)
        if key in taken:
            if taken[key] == file.path or _is_same(taken[key], file.path):
                continue  # named twice
            raise OutputError(
                f"{target}: {taken[key]} and {file.path} would both be written there; rename one, or code them apart"
            )
        taken[key] = file.path
        pairs.append((file, target))
    return pairs


def _is_same(one: str, other: str) -> bool:
    """Whether two paths lead to one file."""
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False


def shard(place: str, number: int, count: int) -> bool:
    """Whether a file belongs to shard `number` of `count`, from 1. It depends on its place in the tree alone."""
    digest = hashlib.blake2b(os.fsencode(place), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count == number - 1


def left_to_do(pairs: Iterable[tuple[Found, str]], manifest: Manifest, rules: Rules) -> Iterator[Task | str]:
    """A task for each file that is to be worked on, and the input's path for each that is done already.

    Outputs that exist and may not be replaced are tasks, too, and fail with exit code 6.
    """
    for file, target in pairs:
        try:
            facts = os.stat(file.path)  # noqa: PTH116
            size, mtime = facts.st_size, facts.st_mtime
        except OSError:  # the worker will say why
            size, mtime = 0, -1.0
        exists = _size(target) if target else None
        # What a killed run had begun may be replaced even if it is not there yet: its worker may still be writing.
        ours = manifest.was_begun(target) or (exists is not None and _is_wanted(target, mtime, manifest, rules))
        stays = exists is not None and not ours and rules.if_exists in ("skip", "update")
        if stays or _is_current(file, target, exists, size, mtime, manifest, rules):
            yield file.path
        else:
            yield Task(file.path, target, size, ours)


def _size(path: str) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return None


def _is_current(
    file: Found, target: str, exists: int | None, size: int, mtime: float, manifest: Manifest, rules: Rules
) -> bool:
    """Whether the manifest says that the same work has been done, and its output is still there."""
    entry = manifest.get(target or file.path)
    if entry is None or entry.status not in (DONE, SKIPPED) or rules.if_exists == "force":
        return False
    if target and entry.status == DONE and exists != entry.bytes:
        return False
    if entry.settings != as_text(rules.settings):
        return False
    if rules.model_id and not rules.model_id.startswith(entry.model_id):  # a file names the beginning of its model's id
        return False
    if rules.checksum:
        try:
            return bool(entry.sha256) and work.sha256(file.path) == entry.sha256
        except HpcmError:
            return False
    return (entry.size, entry.mtime) == (size, mtime)


def _is_wanted(target: str, mtime: float, manifest: Manifest, rules: Rules) -> bool:
    """Whether an output that is there is to be replaced: always, or as one that is not current."""
    if rules.if_exists == "force":
        return True
    if rules.if_exists != "update":
        return False
    entry = manifest.get(target)
    if entry is not None and entry.status == DONE:
        return True
    return os.stat(target).st_mtime < mtime  # noqa: PTH116


def parsed_shard(text: str) -> tuple[int, int]:
    """I and N of "I/N", from 1/1. Raises ValueError for anything else."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", text)
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(f"{text!r} is not I/N, the I-th of N parts, from 1/N to N/N")
    return int(match[1]), int(match[2])
