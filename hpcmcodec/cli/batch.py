"""Several inputs in one command: one process, one line for each, a summary, and an exit code where some failed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcmcodec.cli.files import Output, about, check_input, is_folder
from hpcmcodec.cli.messages import say
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.errors import HpcmError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hpcmcodec.cli.options import Settings

SOME_FAILED = 7


def each(settings: Settings, sources: Sequence[str], work: Callable[[str], None]) -> None:
    """Calls `work` for each input and goes on after failures. The errors of a single input are left to the caller.

    Raises click.exceptions.Exit with `SOME_FAILED` where some of several failed.
    """
    if len(sources) == 1:
        work(sources[0])
        return
    if "-" in sources:
        raise click.UsageError("'-' is an input on its own")
    failed = 0
    for source in sources:
        try:
            with about(source):
                work(source)
        except HpcmError as error:
            failed += 1
            say(f"error: {error}")
    if failed or not settings.quiet:
        say(f"{len(sources)} inputs: {len(sources) - failed} done, {failed} failed")
    if failed:
        raise click.exceptions.Exit(SOME_FAILED)


def convert(
    settings: Settings,
    sources: Sequence[str],
    target: str | None,
    suffix: str,
    force: bool,
    work: Callable[[str, Output], None],
) -> None:
    """`each` for work that writes a file: `target` names it, or for several inputs the folder of all of them."""
    taken: dict[str, str] = {}

    def one(source: str) -> None:
        check_input(source)
        name = target
        if len(sources) > 1:
            place = Path(source).with_suffix(suffix)
            name = str(place if target is None else Path(target) / place.name)
            if name in taken:
                raise OutputError(f"{name}: {taken[name]} is written there too; name the output of one of them with -o")
            taken[name] = source
        output = Output(source, name, suffix, force)
        require_memory()
        work(source, output)

    if len(sources) > 1 and target is not None and not is_folder(target):
        raise OutputError(f"{target}: for several inputs the output is a directory, and there is none of this name")
    each(settings, sources, one)
