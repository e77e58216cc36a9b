"""A worker process: it takes jobs from standard input, one by one, and answers on standard output.

    in    the function, then (job, attempt) again and again, then None; each is pickled
    out   ("ready", None) or ("failed", why), then for each job ("done", (result, resident bytes)) or ("raised", why)

It ends when it is told to, and at once where its supervisor has gone. Both ends are this program, so that pickles are
no door to anybody.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from hpcmcodec import interrupts

_STATM = Path("/proc/self/statm")


def main() -> NoReturn:
    """Works until there is no more to do. SIGINT is left to the supervisor; SIGTERM ends the process, and undoes."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.install()
    code = 0
    try:
        _serve(incoming, outgoing)
    except KeyboardInterrupt:
        code = interrupts.EXIT_CODE
    except (EOFError, BrokenPipeError):
        code = 1
    os._exit(code)


def _serve(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    def answer(*message: object) -> None:
        outgoing.write(pickle.dumps(message))
        outgoing.flush()

    try:
        function = pickle.load(incoming)
    except EOFError:
        raise
    except Exception as error:  # noqa: BLE001  told to the supervisor
        answer("failed", f"{type(error).__name__}: {error}")
        return
    answer("ready", None)
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_take, args=(incoming, jobs), daemon=True).start()
    while (message := jobs.get()) is not None:
        reply: tuple[object, ...]
        try:
            reply = "done", (function(*message), resident_bytes())
        except Exception as error:  # noqa: BLE001  told to the supervisor
            reply = "raised", f"{type(error).__name__}: {error}"
        if interrupts.raised():
            raise KeyboardInterrupt  # whatever the function made of it
        answer(*reply)


def _take(incoming: BinaryIO, jobs: queue.SimpleQueue[Any]) -> None:
    """Puts jobs into the queue. Where the pipe ends without a None before, nobody waits for the work at hand."""
    try:
        while (message := pickle.load(incoming)) is not None:
            jobs.put(message)
        jobs.put(None)
    except (EOFError, OSError, pickle.UnpicklingError):
        os.kill(os.getpid(), signal.SIGTERM)


def resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 where the system does not say."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def command() -> list[str]:
    """The command that starts a worker, which finds modules where this process does."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; from {__name__} import main; main()"]
