"""The manifest of a run: a line of JSON for each file, from which a later run goes on.

A line is a `Record`, in ASCII, with its fields in order, and is appended in one write when the file is done. A process
that is killed therefore leaves whole lines and at most one that is cut, which is passed over. Of the lines about an
output, or about an input where there are no outputs, the last one counts that does not tell of a failure.

Between the moment in which an output appears and the one in which its line does, a run may be killed. So the outputs
that are being worked on are named in a second file beside the manifest, ``FILE.running``, which is removed at the end
of a run. What it names and the manifest does not was begun by this run: a later one may overwrite it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from hpcmcodec.batch.records import FAILED, RECORD_FIELDS, Record
from hpcmcodec.errors import OutputError

__all__ = ["Entry", "Manifest"]

_SYNC_SECONDS = 5.0
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

    Raises:
        OutputError: it cannot be read or written, or has lines that are no records.
    """

    def __init__(self, path: Path | None, part: str = "") -> None:
        self._entries: dict[str, Entry] = {}
        self._begun: set[str] = set()
        self._file: IO[bytes] | None = None
        self._running: IO[bytes] | None = None
        self._synced = time.monotonic()
        if path is None:
            return
        self._path = path
        self._beside = path.with_name(f"{path.name}{part}.running")
        with self._told():
            if path.exists():
                self._read()
            self._file = path.open("ab", buffering=0)
            if self._file.tell() and not self._ends_whole():
                self._file.write(b"\n")
            begun = self._beside.read_bytes().splitlines() if self._beside.exists() else []
            for line in begun:
                with contextlib.suppress(ValueError):  # a cut line: its work had not begun
                    self._begun.add(json.loads(line))
            self._begun -= {key for key, entry in self._entries.items() if entry.status != FAILED}
            self._running = self._beside.open("wb", buffering=0)
            for key in sorted(self._begun):
                self.begin(key)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for file in filter(None, (self._file, self._running)):
            with contextlib.suppress(OSError):
                os.fsync(file.fileno())
            file.close()
        if self._running and not error:
            self._beside.unlink(missing_ok=True)

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
                self._running.write(json.dumps(key).encode() + b"\n")

    def add(self, record: Record) -> None:
        """Appends a record. Every few seconds the file is synchronised with its disk."""
        if not self._file:
            return
        with self._told():
            self._file.write(json.dumps(record.as_dict()).encode() + b"\n")
            if time.monotonic() > self._synced + _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def _read(self) -> None:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                values = _parsed(line)
                if values is None:
                    if line.strip() and line.endswith(b"}\n"):
                        raise OutputError(f"{self._path}: line {number} is no record of a manifest; name another file")
                    continue
                key = values["output"] or values["input"]
                if values["status"] == FAILED and key in self._entries:
                    continue  # what was made before is there still, and the same failure would come again
                self._entries[key] = Entry(
                    values["status"],
                    values["size"],
                    values["mtime"],
                    values["bytes"],
                    as_text(values["settings"]),
                    values["model_id"],
                    values["sha256"],
                )

    def _ends_whole(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

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
    """The fields of a record; None for a line that is cut or is none."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and values.keys() >= RECORD_FIELDS else None
