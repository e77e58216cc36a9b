"""The command line: ``hpcm encode``, ``hpcm decode``, ``hpcm info``, a thin layer over the library.

What a script can rely on:

- Results go to the named file, or to standard output for ``-``. Everything said to people goes to standard error: one
  line for each error or usage mistake; and, unless ``--quiet`` is given, notes about conversions and one line of bytes,
  bits per pixel and seconds.
- A file appears whole or not at all: it is written beside its place under a hidden name, synchronised and renamed
  (`publish`). Whether it may be written is checked before the work begins. Pipes, devices and open descriptors
  (/dev/stdout, /dev/fd/3) are written to directly. A folder is refused as an output, and so is a path that ends
  in a separator.
- An input is read only as far as its header or its format makes sense, so that a device without end is refused.
- The exit codes of `EXIT_CODES`.

A command is the function `command` in the module of its name, which is imported when the command is called. Programs
have to start quickly: ``hpcm info`` takes about as long as Python and click need to load. So these modules import click
and the standard library only, and a command imports the rest inside its function: numpy and onnxruntime only to code,
rich (0.12 s) only when there is a bar to show.
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

COMMANDS = ("compare", "decode", "doctor", "edit", "encode", "eval", "info", "verify")  # in the order of the help

# Each line of the help stays within 80 columns.
EXIT_CODES = {
    0: "done",
    1: "an error of the program itself: please report it",
    2: "wrong usage: unknown option, missing argument, value out of range",
    3: "the input is not a readable image, or not a valid .hpcm file",
    4: "not supported here: version, model, device, a kind of image, size",
    5: "integrity failure: a checksum or the decoded latents do not agree",
    6: "the output exists or cannot be written",
    7: "some of several inputs failed; their errors have been said",
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
        # Errors are caught here, before click's own handlers see them: those would turn a closed pipe into exit code 1
        # and print an empty line for an interruption.
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
    if isinstance(error, (KeyboardInterrupt, click.Abort)) or interrupts.raised():
        say("error: interrupted")
        return interrupts.EXIT_CODE
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "hpcm"
        say(f"error: {error.format_message().rstrip('.')}{_hint(error)}; see '{command} --help'")
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return OutputError.exit_code  # without a word: the reader has seen enough
    if isinstance(error, HpcmError) and error.exit_code != HpcmError.exit_code:
        say(f"error: {error}")
        return error.exit_code
    if isinstance(error, MemoryError):
        say("error: not enough memory for an image of this size")
        return UnsupportedError.exit_code
    say(f"error: {type(error).__name__}: {error} (an error of the program; --debug shows where)")
    return HpcmError.exit_code


def _hint(error: click.UsageError) -> str:
    """What may have been meant."""
    short = isinstance(error, click.NoSuchOption) and not error.option_name.startswith("--")
    return " (a file whose name begins with a dash is named ./-...)" if short else ""


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
    """Has numpy's OpenBLAS use only cores that nobody else is using, unless OPENBLAS_NUM_THREADS is set.

    OpenBLAS's threads wait for each other in a loop, so that a thread whose core is shared with another program holds
    up all others: on two cores, decoding beside a busy process takes ten times as long as with one thread. OpenBLAS
    reads the variable when numpy is imported, so this has to run before any command.
    """
    cores = threads.count()
    with contextlib.suppress(OSError, ValueError, IndexError):  # no /proc, as on macOS and Windows
        running = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].split("/")[0])  # with this process
        cores = max(1, cores - (running - 1))
    # OpenBLAS ends the process where one of its threads does not start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(cores if threads.can_start(cores - 1) else 1))


def main() -> NoReturn:
    """The ``hpcm`` program: runs `cli` and ends the process.

    SIGTERM and SIGHUP end it as SIGINT does, so that no temporary file stays. Once all output is flushed, the process
    ends through ``os._exit``, because taking down an interpreter that has loaded numpy and onnxruntime takes 50 to
    130 ms.
    """
    _leave_busy_cores()
    interrupts.install()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # Pillow warns of oddities in files, in two lines each
    code: object = HpcmError.exit_code
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # outside commands: before or after the work
        code = interrupts.EXIT_CODE
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # absent, closed, or its reader is gone
            stream.flush()
    number = code if isinstance(code, int) else HpcmError.exit_code
    if "concurrent.futures.process" in sys.modules:  # only the usual end removes its semaphores
        sys.exit(number)
    os._exit(number)
