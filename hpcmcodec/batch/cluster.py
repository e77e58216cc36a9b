"""The same work on Dask: files in small batches on a cluster that exists, or on processes of this machine.

The scheduler sends a batch again whose worker has gone, and gives up where several have died over it; its files are
then sent one by one, so that the one that did it is told from the others. A worker that takes too long over a file ends
itself, which counts as a death. Workers need this package, and the files under the same paths.

A batch that is done again finds outputs of its first time there, and replaces them: those that were not there when it
was sent. Others are replaced only where the task says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpcmcodec.batch.records import Record, Task
from hpcmcodec.batch.supervisor import Limits, Lost
from hpcmcodec.errors import HpcmError, UnsupportedError

__all__ = ["run"]

# A batch ends at so many files or bytes of input: some seconds of work, beside which a round trip does not count.
_FILES, _BYTES = 16, 16 << 20
_AHEAD = 4  # batches for each thread of the cluster that the scheduler holds
_LOGGERS = ("distributed", "tornado", "asyncio")
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def run(
    function: Callable[[Task, int], Record],
    tasks: Sequence[Task],
    done: Callable[[Task, Record | Lost], None],
    limits: Limits,
    *,
    address: str,
    begun: Callable[[Task], None] = lambda task: None,
) -> None:
    """Calls `function(task, 0)` for each task on the workers of a cluster, and `done` here with what comes of it.

    Args:
        function, tasks, done, limits, begun: as for `supervisor.run`. Cores and memory are those of a local cluster;
            other clusters have their own.
        address: of the scheduler, such as "tcp://HOST:8786", or "local".

    Raises `UnsupportedError` where there is no scheduler at the address.
    """
    from distributed import as_completed

    with _client(address, limits) as client:
        batches = list(_batches(tasks))
        batches.reverse()
        sent: dict[Any, list[Task]] = {}
        arriving = as_completed(loop=client.loop)

        def send(batch: list[Task]) -> None:
            batch = [_replacing_its_own(task) for task in batch]
            for task in batch:
                begun(task)
            absolute = [_absolute(task) for task in batch]
            future = client.submit(
                _perform, function, absolute, limits.timeout, retries=limits.retries, pure=False, key=None
            )
            sent[future] = batch
            arriving.add(future)

        def fill() -> None:
            n_threads = sum(client.nthreads().values()) or 1
            while batches and len(sent) < _AHEAD * n_threads:
                send(batches.pop())

        try:
            fill()
            while sent:
                future = next(arriving)
                batch = sent.pop(future)
                for task, result in _results(future, batch):
                    if result is None:
                        batches.append([task])
                    else:
                        done(task, result)
                fill()
        finally:
            client.cancel(list(sent))


@contextlib.contextmanager
def _client(address: str, limits: Limits) -> Iterator[Any]:
    """A client of the cluster; a local one is made for it."""
    import dask
    from distributed import Client, LocalCluster

    _silence()
    if address != "local":

        class WholeOrNone(Client):  # type: ignore[misc]
            def __del__(self) -> None:
                """A client that could not be made waits in vain for its own loop, and prints a traceback."""

        try:
            client = WholeOrNone(address, timeout=10, set_as_default=False)
        except Exception as error:  # also TypeError, for schemes whose packages or settings are not there
            raise UnsupportedError(f"no Dask scheduler answers at {address}: {error}") from error
        with client:
            yield client
        return
    memory: Any = "auto" if limits.memory is None else max(1, limits.memory // limits.cores)
    with (
        LocalCluster(
            n_workers=limits.cores,
            threads_per_worker=1,
            processes=True,
            memory_limit=memory,
            dashboard_address=None,
            host="127.0.0.1",
            preload=[*dask.config.get("distributed.worker.preload"), __name__],
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _silence() -> None:
    """Has Dask and what it stands on log nothing in this process: what goes wrong is said by records.

    Without it a connection that is closed while a worker still speaks is a traceback on the terminal now and then.
    """
    for name in [*_LOGGERS, *logging.root.manager.loggerDict]:
        if name.partition(".")[0] in _LOGGERS:  # several have levels of their own
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def dask_setup(worker: object) -> None:
    """Called by Dask in each worker of a local cluster before it begins, under this name."""
    _silence()


def _batches(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Tasks in their order, in batches of similar work."""
    batch: list[Task] = []
    size = 0
    for task in tasks:
        if batch and (len(batch) == _FILES or size + task.size > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += task.size
    if batch:
        yield batch


def _replacing_its_own(task: Task) -> Task:
    """The task with leave to replace its output where there is none yet: one that is found later is of this run."""
    return task._replace(overwrite=task.overwrite or not os.path.lexists(task.target))


def _absolute(task: Task) -> Task:
    target = str(Path(task.target).absolute()) if task.target else ""
    return task._replace(source=str(Path(task.source).absolute()), target=target)


def _results(future: Any, batch: list[Task]) -> Iterator[tuple[Task, Record | Lost | None]]:
    """Each task with its record under the names that the caller knows; None for one that is to be sent alone."""
    from dataclasses import replace

    error = future.exception()
    if error is None:
        for task, record in zip(batch, future.result(), strict=True):
            said = record.error.replace(record.input, task.source)
            yield task, replace(record, input=task.source, output=task.target, error=said)
    elif len(batch) > 1:
        yield from ((task, None) for task in batch)
    elif type(error).__name__ == "KilledWorker":
        yield batch[0], Lost("the workers that worked on it died, or took too long", HpcmError.exit_code)
    else:
        yield batch[0], Lost(f"{type(error).__name__}: {error}", HpcmError.exit_code)


def _perform(function: Callable[[Task, int], Record], tasks: list[Task], timeout: float | None) -> list[Record]:
    """The records of a batch, in a worker."""
    _keep_memory()
    records = []
    for task in tasks:
        guard = threading.Timer(timeout, os._exit, (1,)) if timeout else None
        if guard:
            guard.start()
        records.append(function(task, 0))
        if guard:
            guard.cancel()
    return records


@lru_cache(maxsize=1)
def _keep_memory() -> None:
    """Lets this process keep memory that it has freed.

    Dask has the C library give back all above 64 KiB, which suits objects that stay. Coding frees and takes the same
    large arrays again and again, and is slower by it.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 256 << 20)
        mallopt(_MMAP_THRESHOLD, 32 << 20)
