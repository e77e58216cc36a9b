"""Measurements on disk, one JSON object a line, so that an evaluation goes on where it was interrupted.

The key of a record is the hash of an image file, a codec, its settings, its version and a quality: where one of these
changes, the image is measured anew. Each call of `add` appends its lines in one write and synchronises the file. A
process that is killed therefore leaves whole lines and at most one cut line, which is dropped when the store is opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hpcmcodec import publish
from hpcmcodec.errors import OutputError

__all__ = ["Key", "Record", "Store", "write_whole"]

Key = tuple[str, str, str, str, float]


@dataclass(frozen=True)
class Record:
    """One image coded once.

    Attributes:
        sha256: hash of the image file, in hexadecimal.
        width, height: size of the image in pixels.
        codec, settings, version, quality: what coded the image, as in `codecs.Codec`.
        n_bytes: size of the coded file.
        scores: metric -> value, as result files hold it.
        metric_versions: metric -> `Metric.version` of what computed the value.
        encode_seconds, decode_seconds: time in one thread, from pixels in memory to bytes in memory and back.
    """

    sha256: str
    width: int
    height: int
    codec: str
    settings: str
    version: str
    quality: float
    n_bytes: int
    scores: dict[str, float]
    metric_versions: dict[str, str]
    encode_seconds: float
    decode_seconds: float

    @property
    def key(self) -> Key:
        return (self.sha256, self.codec, self.settings, self.version, self.quality)

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole file."""
        return 8 * self.n_bytes / (self.width * self.height)


class Store:
    """The records of a file. Where there is no file, the first `add` makes it.

    Raises:
        OutputError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[Key, Record] = {}
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(path, whole)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}") from error
        for line in data[:whole].splitlines():
            record = _parsed(line)
            if record:
                self._records[record.key] = record

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """Every record, in the order in which their keys were first measured."""
        return iter(self._records.values())

    def get(self, key: Key, metric_versions: dict[str, str]) -> Record | None:
        """The record of a key, or None where it lacks one of these metrics or has it from another version."""
        record = self._records.get(key)
        if record is None or not metric_versions.items() <= record.metric_versions.items():
            return None
        return record

    def add(self, records: Iterable[Record]) -> None:
        """Append records. A later record of a key takes the place of an earlier one."""
        records = list(records)
        lines = b"".join(json.dumps(asdict(record), sort_keys=True).encode() + b"\n" for record in records)
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(lines)
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror or error}") from error
        self._records.update((record.key, record) for record in records)


def _parsed(line: bytes) -> Record | None:
    """The record of a line; None where the line is damaged or of another format, so that it is measured again."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(Record)}:
        return None
    return Record(**values)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file that appears whole or not at all. Raises OutputError where it cannot be written."""
    try:
        publish.write_whole(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
