"""What a run over many files shows: a bar with figures on a terminal, lines elsewhere, and a table at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from hpcmcodec import interrupts
from hpcmcodec.batch.records import DONE, FAILED, SKIPPED
from hpcmcodec.cli.files import write_stdout
from hpcmcodec.cli.messages import printable, say

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress

    from hpcmcodec.batch.records import Record
    from hpcmcodec.cli.options import Settings

_PAST = {"encode": "encoded", "decode": "decoded", "verify": "verified"}


class Board:
    """Shows records as they come.

    Args:
        settings: with ``--quiet`` only errors are said, and the counts where there are any.
        kind: "encode", "decode" or "verify".
        n_files, n_bytes: of all inputs that are to be worked on.
        n_current: files that were done before.
    """

    def __init__(self, settings: Settings, kind: str, n_files: int, n_bytes: int, n_current: int) -> None:
        self._settings, self._kind = settings, kind
        self._n_files, self._n_bytes, self._n_current = n_files, n_bytes, n_current
        self._counts = {DONE: 0, FAILED: 0, SKIPPED: 0}
        self._pixels = self._read = self._written = self._seen = 0
        self._started = time.perf_counter()
        self._terminal = not settings.quiet and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Board:
        if self._terminal and self._n_files:
            from rich import progress
            from rich.console import Console

            bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[said]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            bar.add_task(self._kind, total=max(1, self._n_bytes), said=self._said())
            with contextlib.suppress(RuntimeError):  # the system starts no more threads
                bar.start()
                self._bar = bar
                self._undo.callback(bar.stop)
                self._undo.enter_context(interrupts.undoing(bar.stop))  # the bar hides the cursor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()
        self._end()

    def add(self, record: Record) -> None:
        """Counts a file, and says what came of it."""
        self._counts[record.status] += 1
        self._seen += max(0, record.size)
        if record.status == DONE:
            self._pixels += record.width * record.height
            self._read += record.size
            self._written += record.bytes
        if record.status == FAILED:
            say(f"error: {record.error}")
        elif not self._settings.quiet:
            for note in record.notes:
                say(f"note: {record.input}: {note}")
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._seen, said=self._said())
        elif record.status == DONE and not self._settings.quiet and not self._terminal:
            self._line(record)

    def _line(self, record: Record) -> None:
        if self._kind == "verify":
            write_stdout(f"{printable(record.input)}: its checksums agree\n".encode())
            return
        bpp = 8 * (record.bytes if self._kind == "encode" else record.size) / (record.width * record.height)
        n_bytes = record.bytes if self._kind == "encode" else record.size
        say(f"{record.input} -> {record.output}: {n_bytes} bytes, {bpp:.3f} bpp, {record.seconds:.2f} s")

    def _said(self) -> str:
        n = sum(self._counts.values())
        failed = f", [red]{self._counts[FAILED]} failed[/red]" if self._counts[FAILED] else ""
        sizes = f", {_bytes(self._read)} -> {_bytes(self._written)}" if self._kind != "verify" else ""
        return f"{n}/{self._n_files} files, {self._pixels / 1e6:.1f} MP{sizes}{failed}"

    def _end(self) -> None:
        """A table on a terminal, a line elsewhere."""
        n = sum(self._counts.values())
        left_out = self._n_current + self._counts[SKIPPED]
        if self._settings.quiet and not self._counts[FAILED]:
            return
        rows = self._rows()
        if self._terminal:
            from rich.console import Console
            from rich.table import Table

            table = Table(show_header=False, box=None)
            for name, value in rows.items():
                table.add_row(name, value)
            Console(stderr=True).print(table)
            return
        counts = f"{n + self._n_current} inputs: {self._counts[DONE]} done, {self._counts[FAILED]} failed"
        counts += f", {left_out} skipped" if left_out else ""
        facts = "" if self._settings.quiet else "".join(f"; {rows[name]}" for name in ("size", "time") if name in rows)
        say(counts + facts)

    def _rows(self) -> dict[str, str]:
        """What came of all files, by name."""
        seconds = time.perf_counter() - self._started
        rows: dict[str, Any] = {_PAST[self._kind]: self._counts[DONE]}
        rows |= {"failed": self._counts[FAILED]} if self._counts[FAILED] else {}
        rows |= {"not smaller": self._counts[SKIPPED]} if self._counts[SKIPPED] else {}
        rows |= {"done before": self._n_current} if self._n_current else {}
        if self._written and self._kind != "verify":
            share = self._written / max(1, self._read)
            than = f"{100 * (1 - share):.1f}% smaller" if share < 1 else f"{share:.2f} times as large"
            rows["size"] = f"{_bytes(self._read)} -> {_bytes(self._written)}, {than}"
        if self._pixels:
            rate = self._pixels / 1e6 / max(seconds, 1e-9)
            rows["time"] = f"{self._pixels / 1e6:.1f} MP in {seconds:.1f} s, {rate:.2f} MP/s"
        return {name: str(value) for name, value in rows.items()}


def _bytes(n: int) -> str:
    """A number of bytes for people."""
    size, unit = float(n), "bytes"
    for bigger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, bigger
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
