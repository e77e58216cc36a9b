"""The inputs and outputs of commands: paths, pipes, devices, standard input and output."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcmcodec import interrupts, publish
from hpcmcodec.cli.messages import label, say
from hpcmcodec.errors import HpcmError, InputError, InstallationError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from hpcmcodec.cli.options import Settings

# A pipe that goes on for more than this many bytes behind the end of the file is taken to have no end.
_MAX_TRAILING = 1 << 26
# Names by which shells and scripts hand over open descriptors.
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


@contextlib.contextmanager
def about(source: str) -> Iterator[None]:
    """Puts the name of the input before errors raised inside, except those about this installation."""
    try:
        yield
    except InstallationError:
        raise
    except HpcmError as error:
        if str(error).startswith(f"{source}: "):
            raise
        raise type(error)(f"{label(source)}: {error}") from error


@contextlib.contextmanager
def mute_libraries(settings: Settings) -> Iterator[None]:
    """Keeps libtiff from writing lines about damage to the file descriptor of standard error, except with --debug."""
    try:
        kept = -1 if settings.debug else os.dup(2)
    except OSError:  # standard error is closed
        kept = -1
    if kept < 0:
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        with interrupts.undoing(lambda: os.dup2(kept, 2)):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def is_folder(path: str) -> bool:
    """Whether there is a folder; False where the system does not let us know, which opening will tell."""
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises for names that are too long


def is_there(path: str) -> bool:
    """Whether there is a file or a folder; False where the system does not let us know."""
    return os.path.exists(path)  # noqa: PTH110  as above


def check_input(source: str) -> None:
    """Raises `InputError` where `source` is no file. Commands call it before they look at the output."""
    if source == "-":
        return
    try:
        mode = Path(source).stat().st_mode
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{source}: is a directory; name the files in it")


@contextlib.contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """The input as a binary file. Raises `InputError` where it cannot be opened or read."""
    try:
        if source != "-":
            with Path(source).open("rb") as file:
                yield file
        elif sys.stdin is None:
            raise InputError("standard input is closed")
        else:
            yield sys.stdin.buffer
    except OSError as error:
        raise InputError(f"{label(source)}: {error.strerror or error}") from error


def size_of(stream: BinaryIO, n_read: int, file_bytes: int) -> int:
    """The size in bytes of an input of which `n_read` bytes have been read.

    A regular file is asked for its size. Any other input is read to its end, and its bytes are thrown away; raises
    `InputError` where it goes far beyond the `file_bytes` that the header announces.
    """
    with contextlib.suppress(OSError, AttributeError, ValueError):  # `stream` has no file descriptor
        facts = os.fstat(stream.fileno())
        if stat.S_ISREG(facts.st_mode):
            # The program that handed over standard input may have read from it already.
            return facts.st_size - (stream.tell() - n_read)
    while piece := stream.read(1 << 20):
        n_read += len(piece)
        if n_read > file_bytes + _MAX_TRAILING:
            raise InputError(f"the file should have {file_bytes} bytes, but it goes on without end")
    return n_read


def descriptor_of(path: str) -> int | None:
    """The number of the open descriptor that a path such as /dev/fd/3 stands for; None for other paths."""
    found = _DESCRIPTOR.fullmatch(path)
    return int(found[1]) if found else _STREAMS.get(path)


def write_stdout(data: bytes | memoryview) -> None:
    """Writes all of `data` to standard output. Raises `OutputError`, or BrokenPipeError where its reader has gone."""
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    try:
        rest = memoryview(data)
        while rest:  # with PYTHONUNBUFFERED standard output is a raw file, which may write only a part
            rest = rest[sys.stdout.buffer.write(rest) or 0 :]
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: {error.strerror or error}") from error


class Output:
    """The place of a result. It is refused at once if it may not be written; a file is written whole or not at all.

    A link is followed, so that the link stays and its target is replaced. Devices and pipes are written to directly:
    renaming a file over /dev/null would replace the device.

    Args:
        source: the input, as the user named it.
        target: the output, as the user named it; None derives it from `source` and `suffix`.
        suffix: of the derived name, such as ".png".
        force: whether a file that exists is overwritten.
        in_place: whether the input itself may be the output.

    Attributes:
        name: the path as given or derived, "-" for standard output.
        notes: what was peculiar about a file that was written; a command says it at once.

    Raises:
        OutputError: the output cannot be written, is the input itself, or exists already and `force` is false.
        click.UsageError: binary data would go to the terminal.
    """

    def __init__(self, source: str, target: str | None, suffix: str, force: bool, *, in_place: bool = False) -> None:
        derived = target is None
        if target is None:
            piped = source == "-" or descriptor_of(source) is not None
            target = "-" if piped else str(Path(source).with_suffix(suffix))
        self.name = target
        self.notes: list[str] = []
        self._descriptor = 1 if target == "-" else descriptor_of(target)
        if self._descriptor == 1:
            if not force and sys.stdout is not None and sys.stdout.isatty():
                raise click.UsageError("the output is binary and would go to the terminal: name a file with -o")
            return
        try:
            if self._descriptor is not None:
                os.write(self._descriptor, b"")  # fails on a closed or a read-only descriptor
                return
            self._path = Path(target).resolve()
            mode = Path(target).stat().st_mode if Path(target).exists() else None
            self._direct = mode is not None and not stat.S_ISREG(mode)
            folder_there = self._path.parent.is_dir()
            same = mode is not None and not self._direct and source != "-" and self._path.samefile(source)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise OutputError(f"{target}: {getattr(error, 'strerror', None) or error}") from error
        self._force = force
        if mode is not None and stat.S_ISDIR(mode):
            raise OutputError(f"{target or '(no name)'}: is a directory; name the file to write")
        if re.split(r"[\\/]" if os.altsep else "/", target)[-1] in ("", ".", ".."):
            raise OutputError(f"{target}: there is no such directory; name the file to write")
        if same and not in_place:
            raise OutputError(f"{target}: is the input itself" + ("; name another output with -o" if derived else ""))
        if self._direct:
            self._path = Path(target)  # a link in /proc may resolve to something that is no path
            return
        if mode is not None and not force:
            raise self._exists()
        if not folder_there:
            raise OutputError(f"{target}: there is no directory {self._path.parent}")
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{target}: the directory cannot be written to")

    def write(self, data: bytes | memoryview) -> None:
        """Writes `data`. Raises `OutputError` on failure, and then leaves no file behind.

        Raises BrokenPipeError where the reader of a pipe has gone.
        """
        if self._descriptor == 1:
            write_stdout(data)
            return
        try:
            if self._descriptor is not None:
                with open(self._descriptor, "wb", closefd=False) as file:
                    file.write(data)
            elif self._direct:
                self._path.write_bytes(data)
            else:
                self._publish(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"{self.name}: {error.strerror or error}") from error

    def _publish(self, data: bytes | memoryview) -> None:
        try:
            self.notes = publish.write_whole(self._path, data, force=self._force)
        except FileExistsError as error:  # it appeared during the work
            raise self._exists() from error
        context = click.get_current_context(silent=True)
        if context and not getattr(context.obj, "quiet", True):  # other programs on click have contexts, too
            for note in self.notes:
                say(f"note: {self.name}: {note}")

    def _exists(self) -> OutputError:
        return OutputError(f"{self.name}: exists already; -f overwrites it")
