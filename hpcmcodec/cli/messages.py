"""What people are told, on standard error: lines, a bar while work lasts, a summary."""

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

# Seconds of work after which a bar appears: shorter work is over before a bar is read.
PROGRESS_AFTER_SECONDS = 1.0


def say(text: str) -> None:
    """Writes one line to standard error; that nobody can read it does not fail the work."""
    with contextlib.suppress(OSError):
        click.echo(f"hpcm: {printable(text)}", err=True)


def printable(text: str) -> str:
    """`text` on one line, with what could steer a terminal escaped: file names may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def label(source: str) -> str:
    """What an input is called."""
    return "standard input" if source == "-" else source


def summarise(settings: Settings, source: str, target: str, n_bytes: int, n_pixels: int, started: float) -> None:
    """One line of bytes, bits per pixel and seconds."""
    if not settings.quiet:
        seconds = time.perf_counter() - started
        written = "standard output" if target == "-" else target
        say(f"{label(source)} -> {written}: {n_bytes} bytes, {8 * n_bytes / n_pixels:.3f} bpp, {seconds:.2f} s")


def mention_kernels(settings: Settings, device: str) -> None:
    """Tells a person at a terminal, not a script, that coding could be quicker here."""
    if device == "cpu" and not settings.quiet and sys.stderr is not None and sys.stderr.isatty():
        from hpcmcodec.native import loader

        note = loader.find(background=False).note()
        if note:
            say(f"note: {note}")


class Progress:
    """A bar on standard error for work that lasts, if that is a terminal; entering gives the callback, or None.

    rich honours NO_COLOR and terminals that cannot draw. The bar is taken away at the end: the summary line stays.
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
            self._undo.enter_context(interrupts.undoing(bar.stop))  # the cursor is hidden
        self._bar.update(self._bar.task_ids[0], completed=fraction)
