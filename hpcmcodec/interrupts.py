"""Has signals end the `hpcm` program at once, with one line and exit code 130, and with nothing left behind.

Python runs a signal's handler in the main thread, and only after the C code that this thread is in has returned. That
can take seconds, because onnxruntime and the compiled kernels return when their work is done. But Python writes the
signal's number to a pipe right away (`signal.set_wakeup_fd`), and a second thread waits at the pipe. It gives the main
thread a moment to take the interruption as an exception, as usual. If the main thread is still in C after that, the
second thread undoes what must not stay, says the line and ends the program through ``os._exit``. The codec could run in
another thread instead while the main thread waits, but on Windows such a wait cannot be interrupted, and exceptions
would have to be carried from one thread to the other.

The command line alone installs this. A program that uses the library keeps its own handlers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["EXIT_CODE", "LINE", "install", "raised", "undoing"]

EXIT_CODE = 130
LINE = "hpcm: error: interrupted"

_PATIENCE_SECONDS = 0.15
# Windows has no SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_taken = threading.Event()  # set once the main thread has the interruption
_raised = threading.Event()  # stays set
_deciding = threading.RLock()  # held to decide which of the two threads ends the program
_actions: list[Callable[[], object]] = []


def install() -> None:
    """Have signals end the program, except those that were ignored when it was started (as nohup does with SIGHUP)."""
    wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in wanted:
        signal.signal(number, _interrupt)
    reader, writer = os.pipe()
    with contextlib.suppress(AttributeError, OSError):  # Windows before Python 3.12, where the pipe may block
        os.set_blocking(writer, False)
    thread = threading.Thread(target=_wait, args=(reader, wanted), daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads: an interruption has to wait for C to return
        os.close(reader)
        os.close(writer)
        return
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


@contextlib.contextmanager
def undoing(action: Callable[[], object]) -> Iterator[None]:
    """Registers `action` for the time inside this context, where an interruption may end the program at any point.

    The second thread then calls it, since no `finally` of the main thread runs any more.
    """
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    with _deciding:  # waits for ever where the other thread is ending the program
        _taken.set()
    _raised.set()
    raise KeyboardInterrupt


def raised() -> bool:
    """Whether an interruption was raised in the main thread. What fails after it has not failed by itself.

    Modules of C++ that are being imported, for instance, make an ImportError of it.
    """
    return _raised.is_set()


def _wait(reader: int, wanted: list[int]) -> None:
    if hasattr(signal, "pthread_sigmask"):  # only the main thread takes signals; programs inherit its mask
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    while number := os.read(reader, 1):
        if number[0] not in wanted:
            continue
        if not _taken.wait(_PATIENCE_SECONDS):
            with _deciding:
                if not _taken.is_set():
                    _leave()
        _taken.clear()


def _leave() -> NoReturn:
    for action in reversed(_actions):
        with contextlib.suppress(Exception):
            action()
    with contextlib.suppress(OSError):
        os.write(2, f"{LINE}\n".encode())
    os._exit(EXIT_CODE)
