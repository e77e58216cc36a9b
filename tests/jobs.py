"""What workers do in the tests of the supervisor: functions of (job, attempt), found by name in other processes."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from hpcmcodec.batch.records import Record, Task


def square(job: int, attempt: int) -> int:
    return job * job


def tell(job: Any, attempt: int) -> tuple[Any, int, int, str]:
    return job, attempt, os.getpid(), os.environ["OMP_NUM_THREADS"]


def act(job: tuple[str, int], attempt: int) -> str:
    """("die", n): dies the first n times; ("hang", n): hangs the first n times; ("raise", 0); ("ok", n).

    ("swallow", n): is interrupted the first n times, and takes that for a failure of its own.
    """
    what, n = job
    if what == "die" and attempt < n:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang" and attempt < n:
        time.sleep(3600)
    if what == "raise":
        raise RuntimeError("no result")
    if what == "swallow" and attempt < n:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
    return f"{what} {attempt}"


def note(job: tuple[str, float], attempt: int) -> str:
    """Appends a line when it begins and when it ends."""
    path, seconds = job
    with Path(path).open("a") as file:
        file.write(f"begun {os.getpid()}\n")
    time.sleep(seconds)
    with Path(path).open("a") as file:
        file.write("ended\n")
    return "noted"


class Missing:
    """A function that cannot be loaded by a worker."""

    def __call__(self, job: int, attempt: int) -> int:
        return job

    def __reduce__(self) -> tuple[Any, ...]:
        return load_nothing, ()


def load_nothing() -> None:
    raise ModuleNotFoundError("No module named 'nothing'")


def pause(job: int, attempt: int) -> int:
    time.sleep(0.02)
    return job


def slow_record(task: Task, attempt: int) -> Record:
    time.sleep(0.02)
    return Record(task.source, task.target, "done")


def deadly_record(task: Task, attempt: int) -> Record:
    if task.source.endswith("/7"):
        os.kill(os.getpid(), signal.SIGKILL)
    return Record(task.source, task.target, "done")


def replacing_record(task: Task, attempt: int) -> Record:
    """Says in its notes whether the output may be replaced."""
    return Record(task.source, task.target, "done", notes=(str(task.overwrite or attempt > 0),))


def noisy_record(task: Task, attempt: int) -> Record:
    """Has its worker's loggers say what they say of a connection that is closed."""
    for name in ("distributed.worker", "distributed.client", "tornado.application", "asyncio"):
        logging.getLogger(name).error("Traceback in a worker")
    return Record(task.source, task.target, "done")
