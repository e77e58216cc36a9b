"""Messages to people on standard error: lines, a bar while work lasts, a summary."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from typing import TYPE_CHECKING

import click

from hpcmcodec import interrupts

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from rich.progress import Progress as BarOfRich

    from hpcmcodec.cli.options import Settings

# A bar appears after this many seconds of work: shorter work is over before anybody could read the bar.
PROGRESS_AFTER_SECONDS = 1.0


def say(text: str) -> None:
    """Writes one line to standard error. The work goes on where that fails."""
    with contextlib.suppress(OSError):
        click.echo(f"hpcm: {printable(text)}", err=True)


def printable(text: str) -> str:
    """`text` on one line. Characters that could control a terminal are escaped, since file names may hold any."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def label(source: str) -> str:
    """The name of an input in messages."""
    return "standard input" if source == "-" else source


def summarise(settings: Settings, source: str, target: str, n_bytes: int, n_pixels: int, started: float) -> None:
    """Says in one line how many bytes, bits per pixel and seconds the work took, unless ``--quiet`` was given."""
    if not settings.quiet:
        seconds = time.perf_counter() - started
        written = "standard output" if target == "-" else target
        say(f"{label(source)} -> {written}: {n_bytes} bytes, {8 * n_bytes / n_pixels:.3f} bpp, {seconds:.2f} s")


def mention_kernels(settings: Settings, device: str) -> None:
    """Tells a person at a terminal, but no script, where compiled kernels would make coding faster."""
    if device == "cpu" and not settings.quiet and sys.stderr is not None and sys.stderr.isatty():
        from hpcmcodec.native import loader

        note = loader.find(background=False).note()
        if note:
            say(f"note: {note}")


class Progress:
    """A bar on standard error for long work, if standard error is a terminal.

    Entering it gives the callback that takes the fraction done, from 0 to 1; None where no bar is wanted. rich honours
    NO_COLOR and terminals that cannot draw. At the end the bar is removed, and only the summary line stays.
    """

    def __init__(self, label: str, settings: Settings) -> None:
        self._label = label
        self._wanted = not settings.quiet and sys.stderr is not None and sys.stderr.isatty()
        self._started = time.perf_counter()
        self._bar: BarOfRich | None = None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Callable[[float], None] | None:
        return self._update if self._wanted else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _update(self, fraction: float) -> None:
        if self._bar is None:
            if time.perf_counter() - self._started < PROGRESS_AFTER_SECONDS:
                return
            from rich import progress
            from rich.console import Console

            bar = progress.Progress(console=Console(stderr=True), transient=True)
            bar.add_task(self._label, total=1.0)
            try:
                bar.start()
            except RuntimeError:  # the system starts no more threads
                self._started = math.inf
                return
            self._bar = bar
            self._undo.callback(bar.stop)
            self._undo.enter_context(interrupts.undoing(bar.stop))  # the bar hides the cursor
        self._bar.update(self._bar.task_ids[0], completed=fraction)
