"""Times and memory on pictures of fixed sizes, by phase, beside other codecs.

    python -m tools bench [--sizes 0.4,2,12] [--rounds 3] [--threads N] [-o bench.json]

The pictures are the photographs of scikit-image's wheel, mirrored to fill 768x512, 1728x1152 and 4224x2816 pixels.
Every codec runs in processes of its own (`process`), at a quality that gives files of a similar size. Each round runs
each codec once, so that a change in the machine's load meets all of them. Times are medians over the rounds, peak
memory is the largest of all rounds. "In-process" is the time without start-up, loading, and reading and writing files.
CompressAI's models have random weights, so that only their times mean something. They are left out at sizes at which a
run takes minutes.

The roofline lines say which share of the machine's rate for float32 matrix products hpcm reaches: the operations of its
matrix products and convolutions (two for each multiplication), divided by those that the machine could do in the
in-process time. Where there are compiled kernels, the lines after them say how many times as long decoding takes as its
multiplications alone would at the rate of the kernels' products of int16 (a matrix product whose operands stay in the
cache). Both rates are measured in the same run. Nothing else should be running.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from hpcmcodec import weights
from hpcmcodec.evaluation import compressai_models, process, sample_photo
from hpcmcodec.evaluation.codecs import CODECS
from hpcmcodec.exact.layers import Depthwise, Head, Linear, quantise
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.ops import Act, Composed
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.model.context import walk
from hpcmcodec.native import loader
from hpcmcodec.native.compiled import KernelOps
from hpcmcodec.quality import Quality
from hpcmcodec.threads import count
from tools import facts

SIZES: Mapping[str, tuple[int, int]] = {"0.4": (768, 512), "2": (1728, 1152), "12": (4224, 2816)}
"""Megapixels -> width and height in pixels, which are multiples of 64 as CompressAI's models need."""

QUALITIES: Mapping[str, float] = {"hpcm": 50, "avif": 45, "jxl": 55, "webp": 60}
_LARGEST = {"mbt2018-mean": 2.0, "cheng2020-anchor": 0.4}  # megapixels beyond which a run takes minutes
_PIECE = (448, 288)  # width and height, in pixels, of what is cut from the middle of each photograph
PHOTOS = ("coffee", "chelsea", "astronaut", "motorcycle_left")
_NOT_IN_PROCESS = ("start-up", "load", "I/O", "other")

# How many positions for each pixel a layer of `lite`'s transforms has. A layer is found by the beginning of its name;
# where several fit, the longest counts.
_DENSITY = {
    "g_a.": 1 / 256,
    "g_a.stem.": 1 / 64,
    "g_a.b8.": 1 / 64,
    "g_s.": 1 / 256,
    "g_s.b8.": 1 / 64,
    "g_s.head.": 1 / 64,
    "h_a.": 1 / 256,
    "h_a.net.2.": 1 / 1024,
    "h_a.net.3.": 1 / 1024,
    "h_a.net.4.": 1 / 4096,
}

_GEMM = """
import time, numpy
a, b = numpy.ones((2048, 2048), numpy.float32), numpy.ones((2048, 2048), numpy.float32)
best = float("inf")
for _ in range(8):
    start = time.perf_counter()
    a @ b
    best = min(best, time.perf_counter() - start)
print(2 * 2048**3 / best)
"""


class Run(NamedTuple):
    """One codec, direction and size: median seconds by phase and of the whole process, bytes of memory and file."""

    phases: dict[str, float]
    total: float
    peak_bytes: float
    n_bytes: int

    @property
    def in_process(self) -> float:
        """Seconds of coding alone, from memory to memory."""
        return sum(seconds for name, seconds in self.phases.items() if name not in _NOT_IN_PROCESS)


Results = dict[str, dict[str, dict[str, Run]]]  # size -> codec -> "encode" or "decode"


@click.command("bench")
@click.option("--sizes", default=",".join(SIZES), show_default=True, help="Megapixels.")
@click.option("--codecs", help="Default: all that are installed.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Counted runs of each.")
@click.option("--threads", type=click.IntRange(min=1), help="Of each codec.  [default: all cores]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="JSON", help="Also write the figures.")
def command(sizes: str, codecs: str | None, rounds: int, threads: int | None, output: Path | None) -> None:
    """Speed and memory by size of the picture and by phase, beside other codecs, as Markdown tables."""
    known = [*QUALITIES, *compressai_models.MODELS]
    chosen_sizes, wanted = sizes.split(","), codecs.split(",") if codecs else known
    for name, found, allowed in (("--sizes", chosen_sizes, list(SIZES)), ("--codecs", wanted, known)):
        if not set(found) <= set(allowed):
            raise click.UsageError(f"{name} is of {', '.join(allowed)}, not {','.join(found)}")
    threads = threads or os.cpu_count() or 1
    rate, products = gemm_rate(threads), dot_rate(threads)
    runs = measure(chosen_sizes, [codec for codec in wanted if not _left_out(codec)], rounds, threads)
    macs = macs_per_pixel(weights.load())
    about = facts.about(f"python -m tools bench --sizes {sizes} --rounds {rounds} --threads {threads}")
    click.echo(f"{about['machine']}; {threads} threads, median of {rounds}\n")
    click.echo(markdown(runs, macs, rate, products))
    if output:
        content = {
            "threads": threads,
            "gemm_flops": rate,
            "int16_products": products,
            "macs_per_pixel": macs,
            "results": {
                size: {codec: {kind: run._asdict() for kind, run in both.items()} for codec, both in each.items()}
                for size, each in runs.items()
            },
        }
        facts.write(output, about | content)


def bench_photo(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Pixels (height, width, 3) uint8: a 2 x 2 mosaic of photographs, continued by mirroring, which adds no edges.

    Raises:
        FileNotFoundError: scikit-image's photographs are not installed.
    """
    pieces = []
    for name in PHOTOS:
        with Image.open(sample_photo(name)) as image:
            rgb = np.asarray(image.convert("RGB"))
        top, left = (rgb.shape[0] - _PIECE[1]) // 2, (rgb.shape[1] - _PIECE[0]) // 2
        pieces.append(rgb[top : top + _PIECE[1], left : left + _PIECE[0]])
    mosaic = np.concatenate([np.concatenate(pieces[:2], axis=1), np.concatenate(pieces[2:], axis=1)])
    return mirrored(mosaic, width, height)[:height, :width]


def mirrored(pixels: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3) continued by mirroring to the right and below, where they are smaller than width and height."""
    beyond = [(0, max(0, wanted - there)) for wanted, there in zip((height, width), pixels.shape, strict=False)]
    return np.pad(pixels, [*beyond, (0, 0)], "symmetric")


def measure(sizes: Sequence[str], codecs: Sequence[str], rounds: int, threads: int) -> Results:
    """Encode and decode with each codec at each size, `rounds` times.

    At the first size one more round, which is not counted, fills the file cache beforehand.

    Raises:
        FileNotFoundError: as for `bench_photo`.
        subprocess.CalledProcessError: a codec failed; the error's ``stderr`` says why.
    """
    results: Results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            width, height = SIZES[size]
            photo, decoded = folder / f"{size}.png", folder / "decoded.png"
            Image.fromarray(bench_photo(width, height)).save(photo, compress_level=1)
            here = [codec for codec in codecs if float(size) <= _LARGEST.get(codec, math.inf)]
            samples: dict[str, dict[str, list[dict[str, float]]]] = {
                codec: {"encode": [], "decode": []} for codec in here
            }
            for counted in [False] * (size == sizes[0]) + [True] * rounds:
                for codec in here:
                    coded = folder / f"{size}.{codec}"
                    quality = QUALITIES.get(codec, 0)
                    runs = {
                        "encode": process.run("encode", codec, photo, coded, quality=quality, threads=threads),
                        "decode": process.run("decode", codec, coded, decoded, threads=threads),
                    }
                    for kind, run in runs.items():
                        if counted:
                            samples[codec][kind].append(run)
                    print(f"{size} MP, {codec}: {runs['encode']['total']:.2f} s", file=sys.stderr)
            results[size] = {
                codec: {
                    kind: _summed_up(each, (folder / f"{size}.{codec}").stat().st_size) for kind, each in both.items()
                }
                for codec, both in samples.items()
            }
    return results


def gemm_rate(threads: int) -> float:
    """Operations a second in numpy's float32 matrix product, counting two for each multiplication."""
    environment = os.environ | dict.fromkeys(process.THREAD_VARIABLES, str(threads))
    done = subprocess.run([sys.executable, "-c", _GEMM], env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def dot_rate(threads: int) -> float:
    """Multiplications a second in the kernels' product of int16 matrices, (6144, 192) x (192, 384); 0 without kernels.

    The rows are done 96 at a time, so the operands stay in the cache.
    """
    kernels = loader.find(background=False).kernels
    if kernels is None:
        return 0.0
    layer = Linear("product", 384).over(192)
    made = {f"product.{k}": v for k, v in layer.example(np.random.RandomState(0)).items()}
    grids = {"x": 9, "product": 9}
    ops, a = KernelOps(kernels, quantise([layer], made, grids), grids), Act(np.ones((1, 64, 96, 192), np.int16), "x")
    best = math.inf
    kernels.set_threads(threads)
    try:
        for _ in range(16):
            start = time.perf_counter()
            ops.linear(a, layer)
            best = min(best, time.perf_counter() - start)
    finally:
        kernels.set_threads(count())
    return float(a.x.size * layer.channels / best)


def macs_per_pixel(w: weights.Weights) -> dict[str, float]:
    """Multiplications for each pixel in matrix products and convolutions, for "encode" and "decode".

    Those of the transforms follow from the shapes of the weights. Those of the entropy path are counted while it runs.
    """
    parts = dict.fromkeys(("g_a", "h_a", "g_s"), 0.0)
    for name, tensor in w.tensors.items():
        start = max((prefix for prefix in _DENSITY if name.startswith(prefix)), key=len, default="")
        if start and name.endswith(".weight"):
            parts[name[:3]] += _DENSITY[start] * tensor.size
    side = 32  # positions: a multiple of the stride of every scale
    counter = _Counter(ExactOps(NUMPY, w.under("entropy"), w.grids))
    z = np.zeros((1, side // 4, side // 4, w.config.hyper), np.int32)
    walk(counter, w.config, z, [Quality.of(50)], side, side, lambda step, means, levels, mask: np.zeros_like(means))
    entropy = counter.macs / (16 * side) ** 2
    return {"encode": parts["g_a"] + parts["h_a"] + entropy, "decode": parts["g_s"] + entropy}


class _Counter(Composed):
    """The exact operations, with a count of the multiplications that they do."""

    xp = NUMPY

    def __init__(self, ops: ExactOps) -> None:
        self._ops = ops
        self.macs = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear(self, inputs: Act | Sequence[Act], layer: Linear, grid: str | None = None) -> Act:
        for each in [inputs] if isinstance(inputs, Act) else inputs:
            self.macs += each.x.size * layer.out
        return self._ops.linear(inputs, layer, grid)

    def head(self, inputs: Sequence[Act], layer: Head) -> Any:
        self.macs += sum(a.x.size for a in inputs) * layer.out
        return self._ops.head(inputs, layer)

    def depthwise(self, a: Act, layer: Depthwise, grid: str | None = None) -> Act:
        self.macs += a.x.size * layer.k**2
        return self._ops.depthwise(a, layer, grid)


def markdown(results: Results, macs: Mapping[str, float], rate: float, products: float = 0.0) -> str:
    """Tables of all codecs and of hpcm's phases, and the roofline lines.

    macs: as `macs_per_pixel` gives them. rate: operations a second, as `gemm_rate` gives it. products: multiplications
    a second, as `dot_rate` gives them.
    """
    lines = []
    for kind in ("encode", "decode"):
        head = ["MP", kind, "bytes", "whole process, s", "of hpcm's", "in-process, s", "of hpcm's", "MP/s", "peak MB"]
        lines += [_row(head), _row(["---"] * len(head))]
        for size, codecs in results.items():
            reference = codecs.get("hpcm", {}).get(kind)
            for codec, runs in codecs.items():
                run = runs[kind]
                name = CODECS[codec].name if codec in CODECS else f"{codec} (random weights)"
                ratios = ["", ""]
                if reference and run is not reference:
                    ratios = [f"{run.total / reference.total:.2f}", f"{run.in_process / reference.in_process:.2f}"]
                size_cell = f"{run.n_bytes:,}" if codec in CODECS else ""
                speed = f"{_megapixels(size) / run.in_process:.2f}"
                times = [f"{run.total:.2f}", ratios[0], f"{run.in_process:.2f}", ratios[1]]
                lines.append(_row([size, name, size_cell, *times, speed, f"{run.peak_bytes / 1e6:.0f}"]))
        lines.append("")
    used = [phase for phase in process.PHASES if phase != "other"]
    hpcm = [(size, codecs["hpcm"]) for size, codecs in results.items() if "hpcm" in codecs]
    if not hpcm:
        return "\n".join(lines)
    lines += [_row(["hpcm, seconds by phase", *used]), _row(["---"] * (1 + len(used)))]
    for size, runs in hpcm:
        for kind, run in runs.items():
            lines.append(_row([f"{kind}, {size} MP", *(f"{run.phases[phase]:.2f}" for phase in used)]))
    lines.append("")
    for size, runs in hpcm:
        for kind, run in runs.items():
            operations = 2 * macs[kind] * _megapixels(size) * 1e6
            lines.append(
                f"Roofline, {kind}, {size} MP: {operations / 1e9:.1f} G operations / ({run.in_process:.2f} s * "
                f"{rate / 1e9:.0f} G/s) = {operations / run.in_process / rate:.0%} of the matrix product's rate"
            )
    for size, runs in hpcm if products else []:
        alone = macs["decode"] * _megapixels(size) * 1e6 / products
        lines.append(
            f"Products of int16, decode, {size} MP: {alone:.2f} s alone at {products / 1e9:.0f} G multiplications/s; "
            f"decode takes {runs['decode'].in_process / alone:.2f} times as long"
        )
    return "\n".join(lines)


def _summed_up(runs: Sequence[Mapping[str, float]], n_bytes: int) -> Run:
    phases = {name: statistics.median(run[name] for run in runs) for name in process.PHASES}
    total = statistics.median(run["total"] for run in runs)
    return Run(phases, total, max(run["peak_bytes"] for run in runs), n_bytes)


def _left_out(codec: str) -> bool:
    needed = CODECS[codec].missing() if codec in CODECS else compressai_models.missing()
    if needed:
        print(f"{codec} is left out: pip install {' '.join(needed)}", file=sys.stderr)
    return bool(needed)


def _megapixels(size: str) -> float:
    width, height = SIZES[size]
    return width * height / 1e6


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
