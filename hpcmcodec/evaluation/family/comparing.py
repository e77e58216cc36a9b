"""Two members side by side: sizes, estimated rates, real files, time and memory.

What is measured image by image is compared image by image: the mean of the relative differences, and its 95% interval
from 2,000 bootstrap samples of the images. Times are of coding in one process, the members taking turns; the mean of
the ratios of the turns has an interval of the same kind. Memory is the peak of a process of its own, less what it had
after its imports.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcmcodec import search
from hpcmcodec.errors import InputError
from hpcmcodec.evaluation.counts import count
from hpcmcodec.evaluation.family.checks import picture
from hpcmcodec.evaluation.family.coding import Coder, config_of, module_of, weights_of
from hpcmcodec.evaluation.metrics import psnr_db
from hpcmcodec.evaluation.process import peak_bytes
from hpcmcodec.evaluation.results import difference
from hpcmcodec.model.config import MEMBERS, Config
from hpcmcodec.model.hpcm import bits
from hpcmcodec.training.data import pictures

TIMED = (512, 768)  # rows and columns of the picture that times and memory are of
METRICS = ("counts", "rate", "files", "time", "memory")


def run(
    members: tuple[str, str],
    wanted: Sequence[str],
    folder: Path | None,
    result: dict[str, Any],
    *,
    rounds: int = 9,
    seed: int = 0,
) -> Iterator[str]:
    """Lines for people; `result` gets the measurements, as JSON has them.

    members: as `coding.weights_of` takes them. wanted: of METRICS. folder: of PNGs.

    Raises InputError where a member or the folder cannot be used.
    """
    measured: dict[str, Any]
    images = _images(folder)
    result |= {"machine": _machine(), "images": len(images), "rounds": rounds, "members": []}
    if list(wanted) == ["counts"]:
        result["counts"] = measured = {}
        yield from _counts([_config_of(member) for member in members], measured)
    else:
        with ExitStack() as stack:
            paths: list[Path] = []
            for member in members:
                fitted = [np.ascontiguousarray(image[:256, :256]) for image in images[:1]]
                path, said = stack.enter_context(weights_of(member, fitted, seed))
                paths.append(path)
                w = Coder(path).weights
                result["members"].append({"name": w.name, "from": said, "model_id": w.model_id.hex()})
                yield f"{w.name}: {said}, model id {w.model_id.hex()}"
            yield f"{len(images)} images; {_machine()}"
            for name in wanted:
                result[name] = measured = {}
                if name == "counts":
                    yield from _counts([Coder(path).weights.config for path in paths], measured)
                else:
                    yield from _MEASURES[name](paths, images, rounds, measured)


def _images(folder: Path | None) -> list[np.ndarray]:
    """Pixels (16 h, 16 w, 3) uint8."""
    if folder is None:
        return [picture(seed, *TIMED) for seed in range(2)]
    found = list(pictures(folder))
    if not found:
        raise InputError(f"{folder} has no PNG files")
    return found


def _machine() -> str:
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}, torch {torch.__version__}"


def _config_of(member: str) -> Config:
    is_file = member not in MEMBERS and search.is_file(Path(member))
    return Coder(Path(member)).weights.config if is_file else config_of(member)


def _counts(configs: Sequence[Config], out: dict[str, Any]) -> Iterator[str]:
    found = [count(config) for config in configs]
    for what in ("parameters", "kmac", "published_parameters", "published_kmac"):
        a, b = (getattr(c, what) for c in found)
        out[what] = [a, b]
        digits = 0 if what.endswith("parameters") else 1
        yield f"{what.replace('_', ' '):<28}{a:>14,.{digits}f}{b:>14,.{digits}f}  {b / a - 1:+.2%}"


@torch.no_grad()
def _rate(paths: Sequence[Path], images: Sequence[np.ndarray], rounds: int, out: dict[str, Any]) -> Iterator[str]:
    found: list[list[float]] = []
    for path in paths:
        model, rates = module_of(path), []
        for pixels in images:
            x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
            y, z = model.analyse(x, torch.zeros(1))
            _, likelihoods = model.estimate(y, z, torch.zeros(1))
            rates.append(float(bits(likelihoods)) / pixels[..., 0].size)
        found.append(rates)
    yield _paired("bits per pixel, estimated", found, out)


def _files(paths: Sequence[Path], images: Sequence[np.ndarray], rounds: int, out: dict[str, Any]) -> Iterator[str]:
    sizes: list[list[float]] = []
    quality: list[list[float]] = []
    for path in paths:
        coder = Coder(path)
        files = [coder.encode(pixels) for pixels in images]
        sizes.append([float(len(data)) for data in files])
        quality.append([psnr_db(p, coder.decode(data)) for p, data in zip(images, files, strict=True)])
    yield _paired("bytes of files", sizes, out)
    a, b = (statistics.fmean(v) for v in quality)
    out["psnr_db"] = quality
    yield f"{'PSNR in dB':<28}{a:>14.3f}{b:>14.3f}  {b - a:+.3f}"


def _time(paths: Sequence[Path], images: Sequence[np.ndarray], rounds: int, out: dict[str, Any]) -> Iterator[str]:
    coders, pixels = [Coder(path) for path in paths], picture(0, *TIMED)
    data = [coder.encode(pixels) for coder in coders]  # and a warm-up
    seconds: dict[str, list[list[float]]] = {"encoding": [[], []], "decoding": [[], []]}
    for n in range(rounds):
        for i in (0, 1) if n % 2 else (1, 0):
            start = time.perf_counter()
            coders[i].encode(pixels)
            between = time.perf_counter()
            coders[i].decode(data[i])
            seconds["encoding"][i].append(between - start)
            seconds["decoding"][i].append(time.perf_counter() - between)
    for what, found in seconds.items():
        yield _paired(f"seconds of {what}, {TIMED[1]}x{TIMED[0]}", found, out, median=True)


def _memory(paths: Sequence[Path], images: Sequence[np.ndarray], rounds: int, out: dict[str, Any]) -> Iterator[str]:
    for what in ("forward", "encoding", "decoding"):
        found = []
        for path in paths:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found.append(pool.submit(peak_of, path, what).result() / 2**20)
        out[what] = found
        name = f"peak MB of {'the torch module' if what == 'forward' else what}"
        yield f"{name:<28}{found[0]:>14,.0f}{found[1]:>14,.0f}  {found[1] / found[0] - 1:+.1%}"


_MEASURES = {"rate": _rate, "files": _files, "time": _time, "memory": _memory}


def peak_of(path: Path, what: str) -> int:
    """Bytes that this process took at most, beyond what it had after its imports. what: a forward pass of the module,
    encoding, or decoding of a picture of TIMED.
    """
    before, pixels = peak_bytes(), picture(0, *TIMED)
    if what == "forward":
        with torch.no_grad():
            module_of(path)(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
        return peak_bytes() - before
    file = path.with_suffix(".hpcm")
    if what == "encoding":
        file.write_bytes(Coder(path).encode(pixels))
    else:
        Coder(path).decode(file.read_bytes())
    return peak_bytes() - before


def _paired(what: str, found: Sequence[Sequence[float]], out: dict[str, Any], *, median: bool = False) -> str:
    """The line of two members' values, and their difference."""
    middle = statistics.median if median else statistics.fmean
    a, b = (middle(v) for v in found)
    gap = difference(*found)
    out[what] = {"values": [list(v) for v in found], "difference": gap._asdict()}
    return f"{what:<28}{a:>14,.4g}{b:>14,.4g}  {gap.line()}"
