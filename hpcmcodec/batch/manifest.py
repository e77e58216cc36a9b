"""The manifest of a run: a line of JSON for each file, from which a later run goes on.

A line is a `Record`, in ASCII, with its fields in order, and is appended in one write when the file is done. A process
that is killed therefore leaves whole lines and at most one that is cut, which is passed over. A file with any other
line is none of ours, and is refused. Of the lines about an output, or about an input where there are no outputs, the
last one counts that does not tell of a failure.

Between the moment in which an output appears and the one in which its line does, a run may be killed. So the outputs
that are being worked on are named in a second file beside the manifest, ``FILE.running``, which is removed at the end
of a run. What it names and the manifest does not was begun by this run: a later one may overwrite it. While a run lasts
it has this file locked, where the system has locks, so that no second run does the same work.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from hpcmcodec.batch.records import DONE, FAILED, RECORD_FIELDS, SKIPPED, Record
from hpcmcodec.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Entry", "Manifest"]

_SYNC_SECONDS = 5.0
_MAX_LINE = 1 << 22  # bytes; more than names, notes and settings take
_START = b'{"input": '  # of each line; nowhere else in one, since strings have their quotes escaped
_ELSEWHERE = ("device", "max_pixels", "max_side")


class Entry(NamedTuple):
    """What a later run has to know of a record; `settings` and `model_id` tell whether it would do the same again."""

    status: str
    size: int
    mtime: float
    bytes: int
    settings: str
    model_id: str
    sha256: str


class Manifest:
    """The manifest at `path`, which is made where it is missing.

    Args:
        path: of the manifest; None keeps nothing and remembers nothing.
        part: is added to the name of the file of what runs, for processes that share a manifest.
        writing: whether records will be added; else nothing is made or changed.

    Raises:
        OutputError: it cannot be read or written, has lines that are no records, or another run is at work with it.
    """

    def __init__(self, path: Path | None, part: str = "", *, writing: bool = True) -> None:
        self._entries: dict[str, Entry] = {}
        self._begun: set[str] = set()
        self._file: IO[bytes] | None = None
        self._running: IO[bytes] | None = None
        self._synced = time.monotonic()
        if path is None:
            return
        self._path = path
        _check_place(path)
        self._beside = path.with_name(f"{path.name}{part}.running")
        _check_place(self._beside)
        with self._told():
            if writing:
                self._running = self._taken()
            try:
                self._read()
                if writing:
                    self._open()
            except BaseException:
                self._close(keep=self._beside.exists() and self._beside.stat().st_size > 0)
                raise

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._close(keep=bool(error))

    def get(self, key: str) -> Entry | None:
        """The last record of an output, or of an input where there is no output."""
        return self._entries.get(key)

    def was_begun(self, key: str) -> bool:
        """Whether an earlier run was at work on this output when it was killed."""
        return key in self._begun

    def begin(self, key: str) -> None:
        """Notes that work on an output begins."""
        if self._running:
            with self._told():
                _append(self._running, key)

    def add(self, record: Record) -> None:
        """Appends a record. Every few seconds the file is synchronised with its disk."""
        if not self._file:
            return
        with self._told():
            _append(self._file, record.as_dict())
            if time.monotonic() > self._synced + _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def _taken(self) -> IO[bytes]:
        """The file of what runs, locked. Raises OutputError where another run has it."""
        while True:
            file = self._beside.open("a+b", buffering=0)
            if not _locked(file):
                file.close()
                raise OutputError(f"{self._path}: another run is at work with this manifest")
            with contextlib.suppress(FileNotFoundError):  # the run that had it has ended, and removed it
                if os.path.samestat(os.fstat(file.fileno()), self._beside.stat()):
                    return file
            file.close()

    def _read(self) -> None:
        """Takes what the two files say."""
        for number, line in enumerate(_lines(self._path), 1):
            try:
                values = _parsed(line)
            except ValueError as error:
                why = f"{self._path}: line {number} is no record of a manifest; name another file"
                raise OutputError(why) from error
            if values is None:
                continue
            key = values["output"] or values["input"]
            if values["status"] == FAILED and key in self._entries:
                continue  # what was made before is there still, and the same failure would come again
            values["settings"] = as_text(values["settings"])
            self._entries[key] = Entry(*(values[name] for name in Entry._fields))
        for line in _lines(self._beside):
            with contextlib.suppress(ValueError, RecursionError):  # a cut line: its work had not begun
                key = json.loads(line)
                if isinstance(key, str) and not self._is_done(key):
                    self._begun.add(key)

    def _is_done(self, key: str) -> bool:
        return key in self._entries and self._entries[key].status != FAILED

    def _open(self) -> None:
        """Has both files ready for further lines, whether or not the last ones were cut."""
        self._file = self._path.open("ab", buffering=0)
        for file, path in ((self._file, self._path), (self._running, self._beside)):
            if file and file.seek(0, os.SEEK_END) and not _ends_whole(path):
                file.write(b"\n")

    def _close(self, *, keep: bool) -> None:
        """Closes both files; what runs is forgotten, unless it is to be kept."""
        if self._running and not keep and fcntl:  # while it is locked: it could be another run's a moment later
            self._beside.unlink(missing_ok=True)
        for file in filter(None, (self._file, self._running)):
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
            file.close()
        if self._running and not keep and not fcntl:
            self._beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror or error}") from error


def as_text(settings: dict[str, Any] | None) -> str:
    """Settings in one form, so that they can be compared; without those that decide nothing about an output."""
    return json.dumps({k: v for k, v in (settings or {}).items() if k not in _ELSEWHERE}, sort_keys=True)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The fields of a record; None for an empty line and for one that was cut. Raises ValueError for any other.

    A line that was cut may have the next one behind it, where another process has added that.
    """
    for text in (line, line[max(0, line.rfind(_START)) :]):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not _is_record(values):
            raise ValueError(line)
        return dict(values)
    if line.strip() and not line.startswith(_START) and not _START.startswith(line.rstrip(b"\r\n")):
        raise ValueError(line)
    return None


def _is_record(values: Any) -> bool:
    if not isinstance(values, dict) or not values.keys() >= RECORD_FIELDS:
        return False
    texts = all(isinstance(values[name], str) for name in ("input", "output", "model_id", "sha256"))
    numbers = isinstance(values["size"], int) and isinstance(values["bytes"], int)
    times = isinstance(values["mtime"], (int, float))
    settings = values["settings"] is None or isinstance(values["settings"], dict)
    return texts and numbers and times and settings and values["status"] in (DONE, FAILED, SKIPPED)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, none where there is no file. One that is too long comes in pieces."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        yield from iter(lambda: file.readline(_MAX_LINE), b"")


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _append(file: IO[bytes], value: object) -> None:
    """Appends a line of JSON. A disk that is full takes a part, and raises OSError for the rest."""
    rest = memoryview(json.dumps(value).encode() + b"\n")
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _locked(file: IO[bytes]) -> bool:
    """Whether this process has locked a file; False where another one has. A system without locks is trusted."""
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True


def _check_place(path: Path) -> None:
    """Raises OutputError where there is something else than a file. Opening a pipe would wait for its other end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise OutputError(f"{path}: {'is a directory' if stat.S_ISDIR(mode) else 'is no regular file'}")
