"""Signals that end the `hpcm` program: at once, with one line and exit code 130, and with nothing left behind.

Python runs a handler in the main thread once that is back from whatever C it is in, which can take seconds: onnxruntime
and the compiled kernels return when their work is done. The signal's number is written to a pipe right away, though
(`signal.set_wakeup_fd`), and a thread waits there. It gives the main thread a moment to take the interruption in the
usual way, as an exception; a main thread that is still away then is not waited for: the thread undoes what must not
stay, says the line and leaves through ``os._exit``. Work in another thread, with the main thread waiting, would do as
well, but on Windows such a wait cannot be interrupted, and other exceptions would have to be carried over.

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

__all__ = ["EXIT_CODE", "LINE", "install", "undoing"]

EXIT_CODE = 130
LINE = "hpcm: error: interrupted"

_PATIENCE_SECONDS = 0.15
# Windows has no SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_taken = threading.Event()  # the main thread has the interruption
_deciding = threading.RLock()  # which of the two threads ends the program
_actions: list[Callable[[], object]] = []


def install() -> None:
    """Have signals end the program, but those that it was started with ignored (as nohup does with SIGHUP)."""
    wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in wanted:
        signal.signal(number, _interrupt)
    reader, writer = os.pipe()
    with contextlib.suppress(AttributeError, OSError):  # Windows before Python 3.12: there the pipe may block
        os.set_blocking(writer, False)
    thread = threading.Thread(target=_wait, args=(reader, wanted), daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system starts no more threads: an interruption waits for C to return
        os.close(reader)
        os.close(writer)
        return
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


@contextlib.contextmanager
def undoing(action: Callable[[], object]) -> Iterator[None]:
    """What has to be done where the program is left from inside, by a thread that no `finally` of this one knows."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    with _deciding:  # for ever where the other thread is ending the program
        _taken.set()
    raise KeyboardInterrupt


def _wait(reader: int, wanted: list[int]) -> None:
    if hasattr(signal, "pthread_sigmask"):  # signals are the main thread's, whose mask programs it starts inherit
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
