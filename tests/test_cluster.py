"""The same work on Dask: real schedulers and workers on loopback, of which some are killed and others come."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hpcmcodec.batch.records import Record, Task
from hpcmcodec.batch.supervisor import Limits, Lost
from hpcmcodec.cli import cli

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'hpcmcodec[dask]'")

from hpcmcodec.batch import cluster
from tests import jobs

# Dask's own threads, sockets and event loops are not this project's to close in an orderly way.
pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    there = Cluster(tmp_path_factory.mktemp("dask"))
    yield there
    there.end()


class Cluster:
    """A scheduler and workers without nannies, each a process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        log = self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show")
        self.address = self.said(log, r"Scheduler at:\s+(tcp://[\d.:]+)")
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, kind: str, *args: str) -> Path:
        log = self.folder / f"{kind}-{len(self.processes)}.log"
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *args]
        with log.open("wb") as file:
            self.processes.append(
                subprocess.Popen(
                    command, stderr=file, stdout=file, cwd=self.folder, env=os.environ | {"PYTHONPATH": paths()}
                )
            )
        return log

    def add_worker(self) -> None:
        self.start("worker", self.address, "--no-nanny", "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard")
        self.workers.append(self.processes[-1])

    def said(self, log: Path, pattern: str) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if match := re.search(pattern, log.read_text(errors="replace")):
                return match[1]
            time.sleep(0.05)
        raise AssertionError(log.read_text(errors="replace"))

    def end(self) -> None:
        for process in self.processes:
            process.kill()  # asked to end, each would wait for the others
            process.wait()


def paths() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, sys.path)])


def tasks(folder: Path, n: int) -> list[Task]:
    return [Task(f"{folder}/{i}", f"{folder}/{i}.out", 0, False) for i in range(n)]


def test_a_worker_that_is_killed_and_one_that_comes_lose_nothing(scheduler: Cluster, tmp_path: Path) -> None:
    scheduler.add_worker()
    scheduler.add_worker()
    found: dict[str, Any] = {}
    enough = threading.Event()

    def done(task: Task, result: Record | Lost) -> None:
        assert task.source not in found
        found[task.source] = result
        if len(found) >= 16:
            enough.set()

    def change() -> None:
        enough.wait(120)
        scheduler.workers[0].kill()
        scheduler.add_worker()

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    cluster.run(jobs.slow_record, tasks(tmp_path, 160), done, Limits(2), address=scheduler.address)
    thread.join()
    assert scheduler.workers[0].wait() == -signal.SIGKILL
    assert {Path(name).name for name in found} == {str(i) for i in range(160)}
    assert {result.status for result in found.values()} == {"done"}


def test_outputs_that_were_there_are_replaced_on_request_alone(scheduler: Cluster, tmp_path: Path) -> None:
    scheduler.add_worker()
    work = tasks(tmp_path, 3)
    Path(work[0].target).write_bytes(b"mine")
    Path(work[1].target).write_bytes(b"not mine")
    work[1] = work[1]._replace(overwrite=True)
    found: dict[str, Any] = {}

    def done(task: Task, result: Record | Lost) -> None:
        found[Path(task.source).name] = result

    cluster.run(jobs.replacing_record, work, done, Limits(1), address=scheduler.address)
    # Where nothing was there, what a later attempt finds was written by an earlier one.
    assert {name: result.notes for name, result in found.items()} == {"0": ("False",), "1": ("True",), "2": ("True",)}


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tls://127.0.0.1:9"])  # of tls there are no certificates
def test_no_scheduler_at_an_address_is_exit_code_4(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    command = ["encode", str(tmp_path), "-r", "--cluster", address]
    run = CliRunner().invoke(cli, command)
    assert run.exit_code == 4, run.stderr
    assert f"no Dask scheduler answers at {address}" in run.stderr
    gc.collect()
    assert "Traceback" not in capfd.readouterr().err


def test_local_cluster_writes_what_workers_write_and_blames_the_file_that_kills(
    photos: dict[str, Path], tmp_path: Path
) -> None:
    with Image.open(photos["chelsea"]) as photo:
        piece = np.asarray(photo)[60:124, 100:196].copy()
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.roll(piece, i, 1)).save(folder / f"{i}.png")
    (folder / "bad.png").write_bytes(b"bad")
    trees = []
    for options in (["--cluster", "local"], []):
        out, manifest = tmp_path / f"out{len(options)}", tmp_path / f"run{len(options)}.jsonl"
        command = [
            sys.executable,
            "-m",
            "hpcmcodec",
            "encode",
            folder,
            "-r",
            "-o",
            out,
            "--manifest",
            manifest,
            *options,
        ]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONPATH": paths()}, cwd=tmp_path)
        assert done.returncode == 7, done.stderr
        assert done.stderr.decode().splitlines()[-1].startswith("hpcm: 4 inputs: 3 done, 1 failed")
        assert b"Traceback" not in done.stderr
        assert len(manifest.read_bytes().splitlines()) == 4
        trees.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert trees[0] == trees[1]


def test_what_dask_logs_reaches_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def done(task: Task, result: Record | Lost) -> None:
        assert isinstance(result, Record)
        for name in ("distributed.client", "tornado.application", "asyncio"):
            logging.getLogger(name).error("Traceback here")

    cluster.run(jobs.noisy_record, tasks(tmp_path, 1), done, Limits(1), address="local")
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_file_that_kills_its_worker_is_blamed_alone(tmp_path: Path) -> None:
    found: dict[str, Any] = {}

    def done(task: Task, result: Record | Lost) -> None:
        found[Path(task.source).name] = result

    cluster.run(jobs.deadly_record, tasks(tmp_path, 12), done, Limits(2), address="local")
    assert isinstance(found.pop("7"), Lost)
    assert {result.status for result in found.values()} == {"done"}
    assert len(found) == 11
