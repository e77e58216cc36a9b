"""Many files: workers against one process, against a process for each file, and within a limit of memory.

    python -m tools many [PATH]... [--count 400] [--small 60] [--max-memory 1.5G] [-o many.json]

The pictures are JPEG files of 0.1 to 12 megapixels, many small and few large ones, and as many of 0.4 megapixels as
`--small` says: photographs of the paths, or scikit-image's, cut to their sizes, or mirrored to fill them. Everything is
done on two workers, or two processes at once; the one process codes one half of the files before the workers have
their turn and the other half after it, so that a change in the machine's clock or load meets both. Nothing else should
be running. The memory is the sum over all processes, shared pages counted once, looked at ten times a second.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from PIL import Image

from hpcmcodec.container import DEFAULT_MAX_PIXELS
from hpcmcodec.evaluation import sample_photo
from hpcmcodec.evaluation.evaluate import find_photos
from hpcmcodec.evaluation.process import THREAD_VARIABLES
from hpcmcodec.evaluation.results import table
from tools import facts, speed
from tools.bench import PHOTOS, mirrored

SMALLEST, LARGEST = 0.1, 12.0  # megapixels
_DENSITY = -1.8  # the number of pictures of a size falls with this power of the size
_SHAPES = ((3, 2), (4, 3), (2, 3), (16, 9), (1, 1))
_SMALL = (768, 512)
_LOOK_SECONDS = 0.1

# Codes the files that standard input names, one thread, and prints the sum of their own seconds.
_LOOP = """
import sys
from hpcmcodec import batch
records = [batch.encode_file(path, f"{sys.argv[1]}/{n}.hpcm") for n, path in enumerate(sys.stdin.read().split("\\n"))]
assert all(record.status == "done" for record in records), records
print(sum(record.seconds for record in records))
"""


class Ran(NamedTuple):
    """A command: seconds on the clock and of the processors, the most memory in bytes, and what it printed."""

    elapsed: float
    processor: float
    peak_bytes: int
    printed: str


@click.command("many")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--count", default=400, show_default=True, type=click.IntRange(min=4), help="Pictures of all sizes.")
@click.option("--small", default=60, show_default=True, type=click.IntRange(min=2), help="Pictures of 0.4 megapixels.")
@click.option("--max-memory", default="1.5G", show_default=True, metavar="SIZE", help="The limit of the last run.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="JSON", help="Also write the figures.")
def command(paths: tuple[Path, ...], count: int, small: int, max_memory: str, output: Path | None) -> None:
    """What workers take for many files, beside one process and beside a process for each file."""
    photos = [photo.path for photo in find_photos(paths or [*map(sample_photo, PHOTOS)], DEFAULT_MAX_PIXELS)]
    told = " ".join(["python -m tools many", *(f"path/to/{path.name}" for path in paths)])
    about = facts.about(f"{told} --count {count} --small {small} --max-memory {max_memory}")
    with tempfile.TemporaryDirectory() as place:
        figures = measure(photos, count, small, max_memory, Path(place))
    click.echo(f"{about['machine']}\n")
    click.echo(markdown(figures))
    if output:
        facts.write(output, about | figures)


def sizes(count: int) -> list[tuple[int, int]]:
    """Width and height of each picture, from the smallest to the largest."""
    ends = (np.array([SMALLEST, LARGEST])) ** (_DENSITY + 1)
    megapixels = np.linspace(ends[0], ends[1], count) ** (1 / (_DENSITY + 1))
    found = []
    for n, each in enumerate(megapixels):
        across, down = _SHAPES[n % len(_SHAPES)]
        unit = float(np.sqrt(each * 1e6 / (across * down)))
        found.append((round(across * unit), round(down * unit)))
    return found


def make(photos: Sequence[Path], wanted: Sequence[tuple[int, int]], folder: Path) -> list[Path]:
    """Writes a JPEG file for each width and height; returns their paths."""
    folder.mkdir()
    paths = []
    for n, (width, height) in enumerate(wanted):
        with Image.open(photos[n % len(photos)]) as image:
            pixels = np.asarray(image.convert("RGB"))
        filled = mirrored(pixels, width, height)
        top, left = (filled.shape[0] - height) // 2, (filled.shape[1] - width) // 2
        paths.append(folder / f"{n:05}.jpg")
        Image.fromarray(filled[top : top + height, left : left + width]).save(paths[-1], quality=92)
    return paths


def measure(photos: Sequence[Path], count: int, small: int, max_memory: str, place: Path) -> dict[str, Any]:
    """The figures of all runs, see `markdown`. `place` is an empty folder.

    Raises:
        subprocess.CalledProcessError: a command failed; the error's ``stderr`` says why.
    """
    wanted = sizes(count)
    paths = make(photos, wanted, place / "all")
    few = make(photos, [_SMALL] * small, place / "small")
    python = [sys.executable, "-m", "hpcmcodec", "encode"]

    def workers(source: str, name: str, *options: str) -> Ran:
        return run([*python, str(place / source), "-r", "-o", str(place / name), "-j", "2", "--quiet", *options])

    def loop(part: Sequence[Path], name: str) -> Ran:
        (place / name).mkdir()
        return run([sys.executable, "-c", _LOOP, str(place / name)], "\n".join(map(str, part)))

    # Every second file, so that both halves have sizes of all kinds.
    first = loop(paths[::2], "one-a")
    supervised = workers("all", "two")
    second = loop(paths[1::2], "one-b")
    before, started = processor_seconds(), time.perf_counter()
    with ThreadPoolExecutor(2) as both:
        pair = list(both.map(lambda n: loop(paths[n::2], f"both-{n}"), range(2)))
    at_once, pair_processor = time.perf_counter() - started, processor_seconds() - before
    small_workers = workers("small", "few-two")
    each = run(["xargs", "-P2", "-n1", *python], "\n".join(map(str, few)))
    limited = workers("all", "limited", "--max-memory", max_memory)
    return {
        "count": count,
        "megapixels": sum(width * height for width, height in wanted) / 1e6,
        "bytes": sum(path.stat().st_size for path in paths),
        "small": small,
        "max_memory": max_memory,
        "own_seconds": float(first.printed) + float(second.printed),
        "runs": {
            "one process": {
                "elapsed": first.elapsed + second.elapsed,
                "processor": first.processor + second.processor,
                "peak_bytes": max(first.peak_bytes, second.peak_bytes),
            },
            "two workers": _figures(supervised),
            "two such processes at once": {
                "elapsed": at_once,
                "processor": pair_processor,
                "peak_bytes": sum(ran.peak_bytes for ran in pair),
            },
            "two workers, limited": _figures(limited),
            "small, two workers": _figures(small_workers),
            "small, a process each": _figures(each),
        },
    }


def _figures(ran: Ran) -> dict[str, float]:
    return {"elapsed": ran.elapsed, "processor": ran.processor, "peak_bytes": ran.peak_bytes}


def run(command: Sequence[str], said: str = "") -> Ran:
    """Runs a command with one thread for each process, `said` on its standard input.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before, started = processor_seconds(), time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=speed.environment() | dict.fromkeys(THREAD_VARIABLES, "1"),
        text=True,
    ) as child:
        peak, ended = [0], threading.Event()

        def look() -> None:
            while not ended.wait(_LOOK_SECONDS):
                peak[0] = max(peak[0], memory_of_tree(child.pid))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            out, err = child.communicate(said)
        finally:
            ended.set()
            looking.join()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, out, err)
    return Ran(time.perf_counter() - started, processor_seconds() - before, peak[0], out)


def processor_seconds() -> float:
    """What all children that have ended took of the processors."""
    times = os.times()
    return times.children_user + times.children_system


def memory_of_tree(pid: int) -> int:
    """Bytes of memory of a process and all below it, of pages that several share each one's part; Linux alone."""
    total = 0
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"), re.MULTILINE)
        total += 1024 * int(found[1]) if found else 0
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text(encoding="ascii").split():
                total += memory_of_tree(int(child))
    except OSError:  # it has ended
        pass
    return total


def markdown(figures: dict[str, Any]) -> str:
    """A table and the ratios that matter."""
    runs = figures["runs"]
    names = {
        "one process": "one process, one thread: `batch.encode_file` in a loop",
        "two such processes at once": "two of these at once, half of the files each",
        "two workers": "two workers: `hpcm encode FOLDER -r -o DIR -j 2`",
        "two workers, limited": f"the same with `--max-memory {figures['max_memory']}`",
        "small, two workers": f"{figures['small']} files of 0.4 megapixels, two workers",
        "small, a process each": "the same, `xargs -P2 -n1 hpcm encode`",
    }
    rows = [
        [said, f"{each['elapsed']:.1f} s", f"{each['processor']:.1f} s", f"{each['peak_bytes'] / 1e6:.0f} MB"]
        for said, each in ((said, runs[name]) for name, said in names.items())
    ]
    half = figures["own_seconds"] / 2
    elapsed = {name: each["elapsed"] for name, each in runs.items()}
    lines = [
        f"{figures['count']} files of {SMALLEST} to {LARGEST:.0f} megapixels, {figures['megapixels']:.0f} in all,"
        f" {figures['bytes'] / 1e6:.0f} MB; the sum of their own seconds is {figures['own_seconds']:.1f}.",
        "",
        *table(("", "elapsed", "processor", "most memory"), rows),
        "",
        f"Two workers take {elapsed['two workers'] / half:.2f} times half of that sum, two processes at once"
        f" {elapsed['two such processes at once'] / half:.2f}. A process for each small file takes"
        f" {elapsed['small, a process each'] / elapsed['small, two workers']:.2f} times as long as workers.",
    ]
    return "\n".join(lines)
