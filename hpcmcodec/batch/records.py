"""What is to be done with one file, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

DONE, FAILED, SKIPPED = "done", "failed", "skipped"


class Task(NamedTuple):
    """Work on one file.

    Attributes:
        source, target: paths; the target is empty where nothing is written.
        size: bytes of the input, 0 where it cannot be asked for.
        overwrite: whether the output may be replaced.
    """

    source: str
    target: str
    size: int
    overwrite: bool


@dataclass(frozen=True)
class Record:
    """What came of one file. It can be pickled, and is a line of a manifest.

    Attributes:
        input, output: paths as they were given; the output is empty where none was wanted.
        status: "done", "failed", or "skipped" where the output would not have been smaller.
        exit_code: 0, or what the command line would end with for this file alone.
        error: one line, empty where nothing failed.
        size, mtime: bytes of the input and its time of modification in seconds, both taken before it was read; -1 where
            there is none.
        bytes: of the output, of the file that was verified, or of the one that was not written; 0 for failures.
        width, height: in pixels, of the output or of the picture that was verified.
        quality: of the .hpcm file, 0 to 100; None for failures.
        effort: of the encoder; None where nothing was encoded.
        model_id: of the .hpcm file, in hexadecimal.
        seconds: that the file took, in its worker.
        notes: what was converted or could not be kept, a line each.
        settings: those that were given.
        sha256: of the input in hexadecimal, where it was asked for.
    """

    input: str
    output: str = ""
    status: str = FAILED
    exit_code: int = 0
    error: str = ""
    size: int = -1
    mtime: float = -1.0
    bytes: int = 0
    width: int = 0
    height: int = 0
    quality: float | None = None
    effort: int | None = None
    model_id: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] | None = None
    sha256: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


RECORD_FIELDS = frozenset(field.name for field in fields(Record))
