"""Code every image with every codec, decode the files, and measure size, distortion and time.

Images are coded in processes of their own with one thread each, and the times are those of one thread. A task is one
image under one codec at all its qualities; its records are stored as soon as it is done. `process` measures peak memory
in another run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hpcmcodec import checksums
from hpcmcodec.errors import HpcmError, InputError, UnsupportedError
from hpcmcodec.evaluation.codecs import CODECS
from hpcmcodec.evaluation.metrics import METRICS, MS_SSIM_SIDE
from hpcmcodec.evaluation.process import THREAD_VARIABLES
from hpcmcodec.evaluation.store import Record, Store
from hpcmcodec.image import load, plain

__all__ = ["IMAGE_SUFFIXES", "Photo", "evaluate", "find_photos"]

IMAGE_SUFFIXES = (".png", ".ppm", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".webp", ".avif")

DATA_SETS = {"kodak": "HPCM_KODAK", "clic": "HPCM_CLIC", "tecnick": "HPCM_TECNICK"}


class Photo(NamedTuple):
    """An image file: its path, the SHA-256 of its bytes, its width and height in pixels. `name` is for reports."""

    path: Path
    sha256: str
    width: int
    height: int

    @property
    def name(self) -> str:
        return self.path.name


class _Task(NamedTuple):
    photo: Photo
    codec: str
    qualities: tuple[float, ...]
    metrics: tuple[str, ...]
    max_pixels: int | None


def find_photos(paths: Sequence[Path], max_pixels: int | None) -> list[Photo]:
    """The images that `paths` name, in order. A folder stands for the image files in it, and copies are left out.

    A name in `DATA_SETS` stands for the folder that its environment variable names, where nothing of that name is here.

    Raises:
        InputError: a path is not there, a data set's variable is not set, a folder has no images, or a file is not a
            readable image.
        UnsupportedError: an image is of a kind that is not supported, or has more pixels than the limit.
    """
    photos: dict[str, Photo] = {}
    for path in map(_data_set, paths):
        files = [path]
        try:
            if path.is_dir():
                files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        if not files:
            raise InputError(f"{path}: no images ({', '.join(IMAGE_SUFFIXES)})")
        for file in files:
            try:
                if not stat.S_ISREG(file.stat().st_mode):
                    raise InputError(f"{file}: is not a regular file, which can be read again and again")
                with file.open("rb") as stream:
                    digest = checksums.sha256(stream)
            except OSError as error:
                raise InputError(f"{file}: {error.strerror or error}") from error
            if digest not in photos:
                height, width, _ = load(file, max_pixels=max_pixels).pixels.shape
                photos[digest] = Photo(file.resolve(), digest, width, height)
    return list(photos.values())


def _data_set(path: Path) -> Path:
    variable = DATA_SETS.get(str(path))
    if variable is None or path.exists():
        return path
    if not os.environ.get(variable):
        raise InputError(
            f"{path}: is not here; as the data set it is the folder that {variable} names, which is not set"
        )
    return Path(os.environ[variable])


def evaluate(
    photos: Sequence[Photo],
    codecs: Mapping[str, Sequence[float]],
    metrics: Sequence[str],
    store: Store,
    *,
    jobs: int = 1,
    max_pixels: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Record]:
    """Measure what the store does not hold; returns a record for each photo, codec and quality, in this order.

    Args:
        codecs: keys of `CODECS` -> qualities.
        metrics: keys of `METRICS`.
        store: where records are looked up and added.
        jobs: number of processes.
        max_pixels: the largest image that is read; None: no limit.
        progress: called with the fraction of the work that is done, in [0, 1].

    Raises:
        UnsupportedError: an image is too small for a metric.
        HpcmError: an image cannot be coded; what was measured until then is stored.
    """
    for photo in photos:
        if "ms-ssim" in metrics and min(photo.width, photo.height) < MS_SSIM_SIDE:
            raise UnsupportedError(
                f"{photo.name}: {photo.width}x{photo.height}, but MS-SSIM needs {MS_SSIM_SIDE} pixels a side"
            )
    wanted = [
        (photo, (photo.sha256, key, CODECS[key].settings, CODECS[key].version(), float(quality)))
        for photo in photos
        for key, qualities in codecs.items()
        for quality in qualities
    ]
    versions = {name: METRICS[name].version for name in metrics}
    missing: dict[tuple[Photo, str], list[float]] = {}
    for photo, key in wanted:
        if store.get(key, versions) is None:
            missing.setdefault((photo, key[1]), []).append(key[4])
    tasks = [
        _Task(photo, codec, tuple(qualities), tuple(metrics), max_pixels)
        for (photo, codec), qualities in missing.items()
    ]
    total = len(photos) * len(codecs)
    for done, records in enumerate(_run(tasks, jobs), total - len(tasks) + 1):
        store.add(records)
        if progress:
            progress(done / total)
    found = [store.get(key, versions) for _, key in wanted]
    return [record for record in found if record is not None]


def _run(tasks: Sequence[_Task], jobs: int) -> Iterator[list[Record]]:
    if not tasks:
        return
    # Fresh processes: a fork would share the state of onnxruntime's and BLAS's thread pools.
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), multiprocessing.get_context("spawn"), initializer=_ignore_signals)
    try:
        with _single_threaded(), _interrupts_held():
            futures = {pool.submit(_measure, task): task for task in tasks}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool as error:
                raise UnsupportedError(
                    "a process that was coding ended of itself, perhaps for want of memory; "
                    "try fewer at once (-j), what is done is kept"
                ) from error
    finally:
        # An interrupted evaluation ends its processes, or else it would wait for all tasks that were begun.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(wait=True)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Let numpy, onnxruntime and torch use one thread in the processes that are started inside."""
    kept = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block SIGINT (Ctrl-C) inside. Processes that are started inside inherit the mask and never see the signal.

    `_ignore_signals` alone comes too late for a process that is still importing, which would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)


def _ignore_signals() -> None:
    # Ctrl-C reaches the whole group of processes: the parent ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _measure(task: _Task) -> list[Record]:
    codec = CODECS[task.codec]
    photo = task.photo
    try:
        pixels = plain(load(photo.path, max_pixels=task.max_pixels)).pixels
        if task.codec.startswith("hpcm"):  # this loads the model, so that no file's time includes it
            codec.code(pixels[:16, :16], 50)
        records = []
        for quality in task.qualities:
            start = time.perf_counter()
            data = codec.encode(pixels, quality, 1)
            encoded = time.perf_counter()
            decoded = codec.decode(data, 1)
            end = time.perf_counter()
            records.append(
                Record(
                    photo.sha256,
                    photo.width,
                    photo.height,
                    task.codec,
                    codec.settings,
                    codec.version(),
                    float(quality),
                    len(data),
                    {name: METRICS[name].compute(pixels, decoded) for name in task.metrics},
                    {name: METRICS[name].version for name in task.metrics},
                    encoded - start,
                    end - encoded,
                )
            )
    except HpcmError as error:
        raise type(error)(f"{photo.name}, {codec.name}: {error}") from error
    return records
