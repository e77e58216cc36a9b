"""Attacks on whatever reads bytes, which know the form of what they attack and repair its checksums.

    python -m tests.fuzz headers --seconds 10     # headers, with right checks: parsed, their metadata read
    python -m tests.fuzz files --seconds 10       # whole files, with right checks: decoded and written as images
    python -m tests.fuzz streams --seconds 10     # the entropy coder's streams, under its tables and under noise
    python -m tests.fuzz images --seconds 10      # input images, with right checksums where their format has them

Input number n of a seed is the same on every run: `--seed 7 --first 4711 --count 1` makes it again. An input may end in
a result or in an error of `hpcmcodec.errors` of one line. Any other exception is a finding, and so are more than two
seconds of processor time, more than 300 MB of memory, and a process that dies or hangs. Findings are written to
`tests/fuzz/found`, where `tests/test_fuzz.py` tries them again for ever.

`make sanitize` runs `streams` and `files` on kernels under the sanitizers.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import importlib
import mmap
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from hpcmcodec.errors import HpcmError

ROOT = Path(__file__).parent.parent.parent
FOUND = Path(__file__).parent / "found"
KINDS = ("headers", "files", "streams", "images")
HANG_SECONDS = 120  # of time on the clock, on a machine that others use too
CPU_SECONDS = 2.0
MEMORY_KB = 300_000
ADDRESSES = 4 << 30  # bytes: no input may take the machine's memory
LOOK_EVERY = {"headers": 1000, "streams": 100}  # inputs between two looks at the memory
COUNTER_BYTES = 8


def target_of(kind: str) -> Any:
    """The module that attacks: `make(rng)` gives an input, `check(data)` returns in what it has ended."""
    return importlib.import_module(f"tests.fuzz.{kind}")


def tried(target: Any, data: bytes) -> str:
    """In what an input ends. Raises whatever must not happen."""
    started = time.process_time()
    try:
        ending = str(target.check(data))
    except HpcmError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"an error of more lines than one, or of none: {str(error)!r}") from error
        ending = type(error).__name__
    seconds = time.process_time() - started
    assert seconds < CPU_SECONDS, f"{seconds:.1f} seconds"
    return ending


def peak_kb() -> int:
    """The most memory that this process has had, in kB."""
    text = Path("/proc/self/status").read_text(encoding="ascii") if Path("/proc/self/status").exists() else ""
    found = re.search(r"VmHWM:\s*(\d+)", text)
    return int(found[1]) if found else 0


def attack(options: argparse.Namespace, counter: mmap.mmap) -> int:
    """Try inputs until time or count are up; returns how many findings there were."""
    target = target_of(options.kind)
    if hasattr(target, "prepare"):
        target.prepare()
    if not options.sanitized:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    warnings.simplefilter("ignore")  # Pillow warns of oddities
    endings: Counter[str] = Counter()
    seen: set[str] = set()
    number, deadline = options.first, time.monotonic() + options.seconds
    look_every = LOOK_EVERY.get(options.kind, 1)
    while number < options.first + options.count and time.monotonic() < deadline:
        counter[:COUNTER_BYTES] = number.to_bytes(COUNTER_BYTES, "little")
        data = target.make(random.Random(f"{options.seed} {number}"))
        try:
            if number % look_every == 0:
                faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)  # starts a thread
            endings[tried(target, data)] += 1
            if not options.sanitized and number % look_every == 0 and peak_kb() > MEMORY_KB:
                raise AssertionError(f"{peak_kb()} kB of memory")
        except Exception as error:  # noqa: BLE001  a finding
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} {place.filename}:{place.lineno}"
            if where not in seen:
                seen.add(where)
                keep(options, number, data, "".join(traceback.format_exception(error)))
            if "kB of memory" in str(error):
                break
        number += 1
    faulthandler.cancel_dump_traceback_later()
    ways = ", ".join(f"{ending} {n}" for ending, n in endings.most_common())
    print(f"{options.kind}: {number - options.first} inputs of seed {options.seed}, {len(seen)} findings: {ways}")
    return len(seen)


def keep(options: argparse.Namespace, number: int, data: bytes, why: str) -> None:
    """Write a finding where the tests try it again, and say what it is."""
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{options.kind}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"{why}{options.kind}: --seed {options.seed} --first {number} --count 1, kept as {path}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--count", type=int, default=1 << 62)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sanitized", action="store_true", help="no limits on memory, which sanitizers need")
    parser.add_argument("--counter", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.counter:
        with options.counter.open("r+b") as file, mmap.mmap(file.fileno(), COUNTER_BYTES) as counter:
            return min(attack(options, counter), 1)
    # A process of its own: one that dies leaves behind at which input.
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(COUNTER_BYTES))
        file.flush()
        command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:], "--counter", file.name]
        done = subprocess.run(command, cwd=ROOT, check=False, env={"OMP_NUM_THREADS": "1", **os.environ})
        if done.returncode not in (0, 1):
            number = int.from_bytes(Path(file.name).read_bytes()[:COUNTER_BYTES], "little")
            target = target_of(options.kind)
            with contextlib.suppress(AttributeError):
                target.prepare()
            data = target.make(random.Random(f"{options.seed} {number}"))
            keep(options, number, data, f"the process ended with {done.returncode}\n")
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
