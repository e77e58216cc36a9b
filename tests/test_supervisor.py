"""The supervisor: workers that die, hang, cannot start or take too much memory, and no job that is lost by it."""

from __future__ import annotations

import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmcodec.batch import supervisor
from hpcmcodec.batch.supervisor import Limits, Lost
from hpcmcodec.errors import HpcmError
from tests import jobs

MB = 1 << 20


def results(function: Any, work: Any, limits: Limits, **options: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}

    def done(job: Any, result: Any) -> None:
        assert job not in found, "no job has two results"
        found[job] = result

    supervisor.run(function, work, done, limits, **options)
    return found


# ------------------------------------------------------------------------------------------------------- real processes


def test_jobs_are_done_by_workers_of_one_thread_that_stay() -> None:
    found = results(jobs.tell, range(12), Limits(2))
    assert [(job, found[job][:2]) for job in range(12)] == [(job, (job, 0)) for job in range(12)]
    workers = {pid for _, _, pid, _ in found.values()}
    assert len(workers) <= 2
    assert os.getpid() not in workers
    assert {threads for *_, threads in found.values()} == {"1"}


def test_cores_are_shared_out_among_few_large_jobs() -> None:
    large, small = 1 << 30, 1 << 20
    found = results(jobs.tell, [large, small], Limits(4), need=lambda job: job)
    assert (found[large][3], found[small][3]) == ("2", "1")


def test_jobs_that_die_hang_or_raise_cost_themselves_alone() -> None:
    work = [("die", 1), ("die", 9), ("hang", 1), ("hang", 9), ("raise", 0), *(("ok", n) for n in range(6))]
    found = results(jobs.act, work, Limits(2, timeout=1.0))
    assert {found.pop(("ok", n)) for n in range(6)} == {"ok 0"}
    assert found.pop(("die", 1)) == "die 1"
    assert found.pop(("hang", 1)) == "hang 1"
    said = {job: lost.why for job, lost in found.items()}
    assert said.pop(("die", 9)).startswith("the process that worked on it ended with signal 9")
    assert said.pop(("hang", 9)) == "it took longer than 1 seconds, 2 times"
    assert said.pop(("raise", 0)) == "RuntimeError: no result (an error of the program)"
    assert said == {}
    assert {lost.exit_code for lost in found.values()} == {1, 4}


def test_job_that_takes_its_interruption_for_a_failure_has_not_failed() -> None:
    # As modules of C++ do that are being imported; a run that is stopped would record a failure of a good file.
    assert results(jobs.act, [("swallow", 1), ("ok", 0)], Limits(1)) == {("swallow", 1): "swallow 1", ("ok", 0): "ok 0"}


def test_without_retries_the_first_death_is_the_last() -> None:
    assert isinstance(results(jobs.act, [("die", 1)], Limits(1, retries=0))["die", 1], Lost)


def test_function_that_workers_cannot_load_is_an_error_and_not_a_loop() -> None:
    with pytest.raises(HpcmError, match="No module named 'nothing'"):
        results(jobs.Missing(), range(3), Limits(2))


def test_workers_that_never_start_are_an_error_and_not_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "command", lambda: [sys.executable, "-c", "raise SystemExit(9)"])
    with pytest.raises(HpcmError, match="workers do not start: the last one ended with exit code 9"):
        results(jobs.square, range(3), Limits(2))


def test_workers_killed_ten_times_at_random_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, killed, started = random.Random(35), 0, []
    stop = threading.Event()

    class Watched(supervisor._Worker[int]):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            started.append(self.process)

    def kill() -> None:
        nonlocal killed
        while killed < 10 and not stop.wait(0.2 * rng.random()):
            if living := [process for process in started if process.poll() is None]:
                rng.choice(living).kill()
                killed += 1

    monkeypatch.setattr(supervisor, "_Worker", Watched)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        found = results(jobs.pause, range(150), Limits(2, retries=20))
    finally:
        stop.set()
        thread.join()
    assert killed >= 3
    assert found == {n: n for n in range(150)}


INTERRUPTED = """
import sys
from pathlib import Path
from hpcmcodec import interrupts
from hpcmcodec.batch import supervisor
from tests import jobs
interrupts.install()
folder = Path(sys.argv[1])
work = [(str(folder / "short"), 0.0), (str(folder / "long"), 600.0)]
try:
    said = lambda job, result: print("done", Path(job[0]).name, flush=True)
    supervisor.run(jobs.note, work, said, supervisor.Limits(2))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_supervisor_that_is_interrupted_or_killed_takes_its_workers_along(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "done short\n"
        lines = waited_for(lambda: (tmp_path / "long").exists() and (tmp_path / "long").read_text())
        worker = int(str(lines).split()[1])
        process.send_signal(number)
        rest = process.stdout.read()
    assert rest == ("" if number == signal.SIGKILL else "interrupted\n")
    assert waited_for(lambda: not alive(worker))
    assert "ended" not in (tmp_path / "long").read_text()


def waited_for(what: Any) -> Any:
    deadline = time.monotonic() + 60
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.slow
def test_a_hundred_thousand_small_jobs_take_no_more_memory_than_the_first_thousand() -> None:
    sizes = []

    def done(job: int, result: int) -> None:
        if job % 1000 == 999:
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    started = time.process_time()
    supervisor.run(jobs.square, range(100_000), done, Limits(2))
    spent = time.process_time() - started
    print(f"{1e3 * spent / 100_000:.3f} ms of the supervisor's processor time a job")
    assert sizes[-1] - sizes[0] < 4 * MB


# ------------------------------------------------------------------------------------------------- whatever workers do


class Stage:
    """Workers without processes: what they answer, and when they die, is drawn. Time stands still."""

    def __init__(self, draw: Any, limits: Limits, resident: dict[int, int]) -> None:
        self.draw, self.limits, self.resident = draw, limits, resident
        self.begun: Counter[int] = Counter()
        self.workers: list[Any] = []
        self.most_threads = 0

    def make(self, function: bytes, threads: int, answers: queue.SimpleQueue[Any]) -> Any:
        worker = Actor(self, threads, answers)
        self.workers.append(worker)
        return worker


class Actor:
    def __init__(self, stage: Stage, threads: int, answers: queue.SimpleQueue[Any]) -> None:
        self.stage, self.threads, self.answers = stage, threads, answers
        self.job: Any = None
        self.attempt = self.need = self.resident = 0
        self.ready, self.since, self.why = True, 0.0, ""
        self.process = self
        self.returncode = -9
        self.dead = False

    taken = supervisor._Worker.taken

    def start(self, job: Any, attempt: int, need: int) -> None:
        self.job, self.attempt, self.need = job, attempt, need
        self.stage.begun[job] += 1
        running = [worker for worker in self.stage.workers if worker.job is not None and not worker.dead]
        assert len(running) <= self.stage.limits.cores
        there = [worker for worker in self.stage.workers if not worker.dead]
        assert len(there) <= self.stage.limits.cores
        memory = self.stage.limits.memory
        assert memory is None or len(running) == 1 or sum(worker.taken for worker in there) <= memory
        if attempt:
            assert len(running) == 1, "suspects are alone"
        if self.stage.draw(st.integers(0, 3)) == 0:
            self.dead = True
            self.answers.put((self, "died", None))
        else:
            self.answers.put((self, "done", (job, self.stage.resident[job])))

    def end(self) -> None:
        self.dead = True

    def reap(self) -> None:
        self.dead = True

    terminate = kill = end


@settings(max_examples=60)
@given(st.data())
def test_every_job_has_one_result_within_cores_memory_and_retries(data: st.DataObject) -> None:
    needs = data.draw(st.lists(st.integers(1, 900), max_size=12))
    limits = Limits(
        data.draw(st.integers(1, 4)), data.draw(st.none() | st.integers(1, 1000)), data.draw(st.integers(0, 2))
    )
    resident = {n: data.draw(st.integers(0, need)) * MB for n, need in enumerate(needs)}
    if limits.memory is not None:
        limits = limits._replace(memory=limits.memory * MB)
    stage = Stage(data.draw, limits, resident)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "_Worker", stage.make)
        patch.setattr(supervisor, "_LEAVING_SECONDS", 0.0)
        found = results(jobs.square, range(len(needs)), limits, need=lambda job: needs[job] * MB)
    assert sorted(found) == list(range(len(needs)))
    for job, result in found.items():
        lost = isinstance(result, Lost)
        assert stage.begun[job] <= 1 + limits.retries
        assert lost or result == job
        assert not lost or stage.begun[job] == 1 + limits.retries
