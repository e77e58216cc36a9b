"""Worker processes that may die or hang, and a supervisor that loses one file's time by it and no more.

Each job runs in one of up to `cores` processes, which start by spawn and keep what they have loaded. A thread for each
process reads its answers into one queue, so that the supervisor waits in one place, with a time limit, on any system.

- A job begins only while the estimated memory of all that run stays within the budget, or alone.
- Jobs are taken in their order, the largest first if the caller sorts them so. Where the next ones do not fit, the
  last one is tried.
- A process that dies, or takes longer than the time limit and is killed, leaves its job as a suspect. Suspects are
  tried again when all other jobs are done, one at a time, so that no other job is suspected with them, and none takes
  their memory. A job that fails again, `retries` times, is lost, with the reason.
- Where there are fewer jobs than cores, the cores are shared out: processes with more threads take large ones.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import IO, Any, Generic, NamedTuple, TypeVar

from hpcmcodec.batch.worker import command
from hpcmcodec.errors import HpcmError, UnsupportedError

__all__ = ["Limits", "Lost", "run"]

Job = TypeVar("Job")

_TICK_SECONDS = 1.0
_LEAVING_SECONDS = 2.0  # a process that was told to end and has not is killed
# So many processes in a row may end before they have begun: by themselves, or killed, which may be anybody's doing.
_MAX_STILLBORN, _MAX_KILLED = 3, 20
_LOOK_AHEAD = 16
# A process with more threads is started for jobs of this estimate and more: a smaller one is done before it has loaded.
_SPREAD_BYTES = 400 << 20


class Limits(NamedTuple):
    """What `run` may use.

    Attributes:
        cores: processes at a time, and threads of all of them.
        memory: bytes that all processes may take by the estimates; None for no limit.
        retries: how often a job is tried again whose process died or took too long.
        timeout: seconds after which a process is killed; None for no limit.
    """

    cores: int
    memory: int | None = None
    retries: int = 1
    timeout: float | None = None


class Lost(NamedTuple):
    """What becomes of a job that has no result: why, and the exit code of the command line for it."""

    why: str
    exit_code: int


class _Worker(Generic[Job]):
    """A process with `threads` threads, and the job that it has."""

    def __init__(self, function: bytes, threads: int, answers: queue.SimpleQueue[Any]) -> None:
        self.threads = threads
        self.job: Job | None = None
        self.attempt = 0
        self.need = 0
        self.resident = 0
        self.ready = False
        self.since = math.inf
        self.why = ""
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        self.process = subprocess.Popen(
            command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._send(function)
        threading.Thread(target=self._read, args=(self.process.stdout, answers), daemon=True).start()

    @property
    def taken(self) -> int:
        """Bytes that the process has, or will have."""
        return max(self.need, self.resident)

    def start(self, job: Job, attempt: int, need: int) -> None:
        self.job, self.attempt, self.need = job, attempt, need
        self.since = time.monotonic() if self.ready else math.inf
        self._send(pickle.dumps((job, attempt)))

    def end(self) -> None:
        """Tells the process to end, as it has nothing to do."""
        self._send(pickle.dumps(None))

    def reap(self) -> None:
        """Waits for the process, which has been told to end or has ended, and closes its pipes."""
        try:
            self.process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # it has died, which its reader will find
            self.process.stdin.write(data)  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]

    def _read(self, pipe: IO[bytes], answers: queue.SimpleQueue[Any]) -> None:
        with pipe:
            try:
                while True:
                    answers.put((self, *pickle.load(pipe)))
            except Exception:  # noqa: BLE001  the end of the pipe, or a message that was cut
                answers.put((self, "died", None))


class _Run(Generic[Job]):
    """The state of one call of `run`."""

    def __init__(
        self,
        function: Callable[[Job, int], Any],
        jobs: Iterable[Job],
        done: Callable[[Job, Any], None],
        limits: Limits,
        need: Callable[[Job], int],
        begun: Callable[[Job], None],
    ) -> None:
        self.function = pickle.dumps(function)
        self.waiting = deque(jobs)
        self.suspects: deque[tuple[Job, int]] = deque()
        self.done, self.limits, self.need, self.begun = done, limits, need, begun
        self.workers: list[_Worker[Job]] = []
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.needs: dict[int, int] = {}  # estimates of the jobs that have been looked at, by identity
        self.stillborn = 0

    @property
    def running(self) -> list[_Worker[Job]]:
        return [worker for worker in self.workers if worker.job is not None]

    # ------------------------------------------------------------------------------------------------------ what begins

    def fill(self) -> None:
        """Starts jobs as long as there are cores and memory."""
        while self.waiting and len(running := self.running) < self.limits.cores:
            threads = max(1, self.limits.cores // (len(running) + len(self.waiting)))
            last = len(self.waiting) - 1
            for place in dict.fromkeys([*range(min(_LOOK_AHEAD, last + 1)), last]):
                job = self.waiting[place]
                if id(job) not in self.needs:
                    self.needs[id(job)] = self.need(job)
                need = self.needs[id(job)]
                worker = self.place_for(need, threads, alone=not running)
                if worker is not None:
                    del self.waiting[place], self.needs[id(job)]
                    self.begun(job)
                    worker.start(job, 0, need)
                    break
            else:
                return
        if self.suspects and not self.waiting and not self.running:
            job, attempt = self.suspects[0]
            need = self.need(job)
            if worker := self.place_for(need, self.limits.cores, alone=True):
                self.suspects.popleft()
                worker.start(job, attempt, need)

    def place_for(self, need: int, threads: int, *, alone: bool) -> _Worker[Job] | None:
        """A worker that has nothing to do, for a job that takes `need` bytes; None where it would be too much.

        Idle workers are ended where their memory or their cores are wanted for another.
        """
        threads = threads if need >= _SPREAD_BYTES else 1
        idle = [worker for worker in self.workers if worker.job is None]
        chosen = next((worker for worker in idle if worker.threads >= threads), None)
        if self.limits.memory is not None:
            others = [worker for worker in idle if worker is not chosen]
            taken = sum(worker.taken for worker in self.workers if worker is not chosen)
            taken += max(need, chosen.resident if chosen else 0)
            if taken - sum(worker.taken for worker in others) > self.limits.memory and not alone:
                return None
            while taken > self.limits.memory and others:
                taken -= others[-1].taken
                self.dismiss(others.pop())
        if chosen is None:
            idle = [worker for worker in self.workers if worker.job is None]
            # Threads that have nothing to do take no core; processes that wait for nothing take memory.
            for worker in idle if threads > 1 else idle[: len(self.workers) - self.limits.cores + 1]:
                self.dismiss(worker)
            chosen = _Worker(self.function, threads, self.answers)
            self.workers.append(chosen)
        return chosen

    def dismiss(self, worker: _Worker[Job]) -> None:
        """Ends a worker that has nothing to do."""
        self.workers.remove(worker)
        worker.end()
        worker.reap()

    # ----------------------------------------------------------------------------------------------------- what happens

    def take(self, worker: _Worker[Job], kind: str, value: Any) -> None:
        """Takes one answer of a worker."""
        if worker not in self.workers:  # dismissed
            return
        if kind == "ready":
            worker.ready, self.stillborn = True, 0
            worker.since = time.monotonic() if worker.job is not None else math.inf
        elif kind == "failed":
            raise HpcmError(f"workers cannot load what they are to do: {value}")
        elif kind == "died":
            self.bury(worker)
        elif worker.job is not None:
            job, worker.job, worker.need, worker.since = worker.job, None, 0, math.inf
            if kind == "raised":
                self.done(job, Lost(f"{value} (an error of the program)", HpcmError.exit_code))
            else:
                result, worker.resident = value
                self.done(job, result)

    def bury(self, worker: _Worker[Job]) -> None:
        """A worker has died: its job becomes a suspect, or is lost."""
        self.workers.remove(worker)
        worker.reap()
        job, attempt = worker.job, worker.attempt
        if not worker.ready and not worker.why:
            self.stillborn += 1
            if self.stillborn >= (_MAX_KILLED if (worker.process.returncode or 0) < 0 else _MAX_STILLBORN):
                raise HpcmError(f"workers do not start: the last one ended with {_end(worker.process.returncode)}")
            if job is not None and attempt == 0:
                self.waiting.appendleft(job)
            elif job is not None:
                self.suspects.append((job, attempt))
            return
        if job is None:
            return
        if attempt < self.limits.retries:
            self.suspects.append((job, attempt + 1))
            return
        times = "" if attempt == 0 else f", {attempt + 1} times"
        if worker.why:
            self.done(job, Lost(f"{worker.why}{times}", UnsupportedError.exit_code))
        else:
            why = f"the process that worked on it ended with {_end(worker.process.returncode)}{times}"
            self.done(job, Lost(why, HpcmError.exit_code))

    def watch(self) -> None:
        """Kills workers that have taken too long."""
        timeout, now = self.limits.timeout, time.monotonic()
        for worker in self.running:
            if timeout is not None and now - worker.since > timeout:
                worker.since = math.inf
                worker.why = f"it took longer than {timeout:g} seconds"
                worker.process.kill()

    def patience(self) -> float:
        """Seconds until something has to be looked at even if no worker says anything."""
        timeout, now = self.limits.timeout, time.monotonic()
        if timeout is None:
            return _TICK_SECONDS
        ends = [worker.since + timeout - now for worker in self.running]
        return min(_TICK_SECONDS, max(0.001, min(ends, default=_TICK_SECONDS)))

    def stop(self) -> None:
        """Ends all workers. What they had finished by then is taken."""
        for worker in self.workers:
            if worker.job is None:
                worker.end()
            else:
                worker.process.terminate()  # it removes what it has half written
        for worker in self.workers:
            worker.reap()
        deadline = time.monotonic() + _LEAVING_SECONDS
        left = set(map(id, self.workers))
        while left and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                worker, kind, value = self.answers.get(timeout=0.1)
                if kind == "died":
                    left.discard(id(worker))
                elif kind == "done":
                    self.take(worker, kind, value)


def run(
    function: Callable[[Job, int], Any],
    jobs: Iterable[Job],
    done: Callable[[Job, Any], None],
    limits: Limits,
    *,
    need: Callable[[Job], int] = lambda job: 0,
    begun: Callable[[Job], None] = lambda job: None,
) -> None:
    """Calls `function(job, attempt)` for each job in worker processes; attempt is 0 at first.

    Args:
        function: can be pickled by name, as can jobs and results. It should not raise.
        jobs: in the order in which they are to begin.
        done: is called in this process with each job and its result, or `Lost`, as soon as it is there.
        limits: see `Limits`.
        need: estimates the bytes that a process takes for a job; is asked shortly before a job may begin.
        begun: is called before a job is begun for the first time.

    Whatever ends this call, an interruption as well, ends the workers; results that are there by then are given to
    `done`. Raises `HpcmError` where workers do not start.
    """
    state = _Run(function, jobs, done, limits, need, begun)
    try:
        while True:
            state.fill()
            if not state.running:
                return
            with contextlib.suppress(queue.Empty):
                state.take(*state.answers.get(timeout=state.patience()))
            state.watch()
    finally:
        state.stop()


def _end(code: int | None) -> str:
    """How a process ended, for people."""
    if code is None or code >= 0:
        return f"exit code {code}"
    if code == -9:
        return "signal 9 (killed, as a system that is short of memory does)"
    return f"signal {-code}"
