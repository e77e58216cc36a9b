"""The command line: ``hpcm encode``, ``hpcm decode``, ``hpcm info``, a thin layer over the library.

What a script can rely on:

- Results go to the file named (or standard output for ``-``), everything said to people goes to standard error:
  errors and usage mistakes one line each, then notes about conversions and one line of bytes, bits per pixel and
  seconds, both silenced by ``--quiet``.
- A file appears whole or not at all: it is written beside its place under a hidden name and renamed. Whether it may be
  written is checked before the work. Pipes, devices and open descriptors (/dev/stdout, /dev/fd/3) are written to as
  they are; a folder is no output, whether it exists or only ends in a separator.
- An input is read as far as its header or its format makes sense, so that a device without end is refused.
- The exit codes of `EXIT_CODES`.

A command is one function, `command` in the module of its name, which is imported when it is called. Starting up counts:
``hpcm info`` takes about as long as Python and click need to load. So these modules import click and the standard
library only; a command imports what it needs inside: numpy and onnxruntime for coding alone, rich (0.12 s) when there
is a bar to show.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

from hpcmcodec import interrupts, threads
from hpcmcodec.cli.messages import say
from hpcmcodec.cli.options import Settings, shared_options
from hpcmcodec.errors import HpcmError, OutputError, UnsupportedError

__all__ = ["EXIT_CODES", "cli", "main"]

COMMANDS = ("compare", "decode", "doctor", "encode", "eval", "info")  # in the order of the help

# Each line of the help stays within 80 columns.
EXIT_CODES = {
    0: "done",
    1: "an error of the program itself: please report it",
    2: "wrong usage: unknown option, missing argument, value out of range",
    3: "the input is not a readable image, or not a valid .hpcm file",
    4: "not supported here: version, model, device, alpha, animation, size",
    5: "integrity failure: a checksum or the decoded latents do not agree",
    6: "the output exists or cannot be written",
    130: "interrupted",
}
_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())


class _Cli(click.Group):
    """A click group that reports each failure as one line with the exit code of `EXIT_CODES`."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        settings = Settings()
        kwargs.update(prog_name="hpcm", standalone_mode=False, obj=settings)
        try:
            code = super().main(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  reported, with an exit code
            code = _report(error, settings)
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        # Caught here, before click's own handlers: they would turn a closed pipe into exit code 1 and print an empty
        # line for an interruption.
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise click.exceptions.Exit(_report(error, ctx.ensure_object(Settings))) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        command.epilog = _EPILOG
        return command


def _report(error: BaseException, settings: Settings) -> int:
    """Says in one line what went wrong; returns the exit code."""
    if settings.debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        say("error: interrupted")
        return interrupts.EXIT_CODE
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "hpcm"
        say(f"error: {error.format_message().rstrip('.')}; see '{command} --help'")
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return OutputError.exit_code  # quiet: whoever reads us has seen enough
    if isinstance(error, HpcmError) and error.exit_code != HpcmError.exit_code:
        say(f"error: {error}")
        return error.exit_code
    if isinstance(error, MemoryError):
        say("error: not enough memory for an image of this size")
        return UnsupportedError.exit_code
    say(f"error: {type(error).__name__}: {error} (an error of the program; --debug shows where)")
    return HpcmError.exit_code


@click.group(
    cls=_Cli,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    epilog=_EPILOG,
)
@shared_options
def cli() -> None:
    """A learned codec for photographs.

    \b
      hpcm encode photo.jpg -o photo.hpcm
      hpcm decode photo.hpcm -o photo.png
      hpcm info photo.hpcm
      hpcm compare photo.jpg photo.hpcm -o report.html
      hpcm eval photographs/

    '-' as INPUT or OUTPUT is standard input or output. An ICC profile, EXIF and XMP are kept.
    """


def _leave_busy_cores() -> None:
    """Has numpy's OpenBLAS use the cores that nobody else is using, unless the environment says how many.

    Its threads wait for each other in a loop: one that shares its core with another program holds up all, and decoding
    beside a busy process on two cores takes ten times as long as with one thread. It reads the variable when numpy is
    imported, which no command has done yet.
    """
    cores = threads.count()
    with contextlib.suppress(OSError, ValueError, IndexError):  # no /proc, as on macOS and Windows
        running = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].split("/")[0])  # this one included
        cores = max(1, cores - (running - 1))
    # It ends the process where one of its threads does not start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(cores if threads.can_start(cores - 1) else 1))


def main() -> NoReturn:
    """The ``hpcm`` program: runs `cli` and ends the process.

    SIGTERM and SIGHUP end it as SIGINT does, so that no temporary file stays. The process is left through ``os._exit``
    once all is flushed: taking down an interpreter that has loaded numpy and onnxruntime takes 50 to 130 ms.
    """
    _leave_busy_cores()
    interrupts.install()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # Pillow's, about oddities in files: each takes two lines
    code: object = HpcmError.exit_code
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # outside the commands: while the line was parsed or the last line said
        code = interrupts.EXIT_CODE
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # absent, closed, or its reader is gone
            stream.flush()
    number = code if isinstance(code, int) else HpcmError.exit_code
    if "concurrent.futures.process" in sys.modules:  # removes the semaphores of its processes at the usual end only
        sys.exit(number)
    os._exit(number)
