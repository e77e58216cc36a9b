"""What a run reports: log.jsonl in its folder, and on the way a progress bar on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hpcmcodec.training import states


def read_log(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """The records of a log; incomplete lines, and training steps later than `up_to`, are left out."""
    if not path.is_file():
        return []
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the line that was being written when the process ended
            continue
        if up_to is None or record["step"] <= up_to:
            out.append(record)
    return out


class Log:
    """Appends records to a run's log.

    resumed_at: training step at which the run goes on, -1 for a fresh run. Records of later training steps are removed,
    since the run logs these again.
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        self.path = folder / "log.jsonl"
        kept = read_log(self.path, resumed_at)
        self.validated_at = max((r["step"] for r in kept if "validation" in r), default=-1)
        states.write(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        console = Console()
        self._progress: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task("", total=1.0)
            self._progress.start()
        if resumed_at >= 0:
            self._say(f"resumed at step {resumed_at}", {"resumed": resumed_at})

    def add(self, record: dict[str, Any]) -> None:
        """Write a record and show it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if "validation" in record:
            self.validated_at = record["step"]
        self._say(_sentence(record), record)

    def _say(self, sentence: str, record: dict[str, Any]) -> None:
        if self._progress is None:
            print(json.dumps(record), flush=True)
        elif sentence:
            self._progress.console.print(sentence, markup=False, highlight=False)

    def show(self, step: int, progress: float, record: dict[str, Any] | None = None) -> None:
        """Move the progress bar of a terminal. progress: 0 to 1. record: the latest one with a loss, to be shown."""
        if self._progress is not None:
            text = f"step {step}"
            if record:
                text += f"  loss {record['loss']:.4f}  {record['crops_per_s']:.1f} crops/s"
            self._progress.update(self._task, completed=progress, description=text)

    def sync(self) -> None:
        """Force all lines to the disk. Called before a checkpoint is saved, which must not be ahead of the log."""
        with self.path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Stop the progress bar."""
        if self._progress is not None:
            self._progress.stop()


def _sentence(record: dict[str, Any]) -> str:
    """A record in words, empty for one whose content the progress bar shows."""
    if "loss" in record:
        return ""
    if "validation" in record:
        points = ", ".join(f"q {100 * q:g}: {' '.join(f'{v:.4g}' for v in row)}" for q, *row in record["validation"])
        return f"step {record['step']}  validation {record['mean']:.5f}  ({points})"
    about = ", ".join(k for k in record if k not in ("step", "hours", "notes"))
    return "\n".join([f"step {record['step']}  {about}", *record.get("notes", ())])
