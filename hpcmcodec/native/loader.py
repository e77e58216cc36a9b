"""Chooses the exact operations for coding: compiled kernels where they are there already, else the numpy reference.

`HPCM_OPS` chooses:

    auto        (default) a prebuilt library beside the package, else one from the cache, else the reference; in the
                last case, where there is a compiler, kernels are built in the background for the next time
    reference   numpy alone
    cpp         as auto, but missing kernels are built at once; UnsupportedError where that fails
    cuda        kernels.cu on the GPU, with `--device cuda` (native/cuda.py), compiled at once where it is not in the
                cache; UnsupportedError where there is no GPU or no compiler, and for coding on the processor

A command waits for a compiler only with `cpp` or `cuda`. Loading takes 2 ms. A damaged prebuilt library is an error,
since it came with the installation; a damaged one in the cache is ignored and built again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcmcodec import threads
from hpcmcodec.errors import InstallationError, UnsupportedError
from hpcmcodec.exact.constants import PRECISION
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.native import build
from hpcmcodec.native.compiled import KernelOps
from hpcmcodec.native.library import Kernels

__all__ = ["CHOICES", "Status", "choice", "exact_ops", "find"]

CHOICES = ("auto", "reference", "cpp", "cuda")
NOT_HERE = "HPCM_OPS=cuda goes with --device cuda; on the processor it can be auto, reference or cpp"
NO_COMPILER = "no C++ compiler"
SLOWDOWN = "about 3 times as long"  # the entropy path of a Kodak image, without kernels against with them

_loaded: dict[Path, Kernels] = {}
_started_build = False


class Status(NamedTuple):
    """The result of looking for kernels.

    kernels: None where the reference is used. origin: where they come from, "prebuilt", "cache" or "built". path: the
    library's. reasons: why each place that was searched gave no kernels. building: whether this process has started a
    build for the next time.
    """

    kernels: Kernels | None
    origin: str
    path: Path | None
    reasons: tuple[str, ...]
    building: bool

    def note(self) -> str | None:
        """A line that tells the user why coding is slower than it could be; None where it is not."""
        if self.kernels is not None or choice() == "reference":
            return None
        if self.building:
            return f"kernels are being compiled in the background; until then coding takes {SLOWDOWN}"
        why = self.reasons[-1] if self.reasons else "none were found"
        note = f"no compiled kernels ({why}): coding takes {SLOWDOWN}"
        if build.impossible():
            return note
        first = "install g++ (Debian: apt install g++), then " if NO_COMPILER in self.reasons else ""
        return f"{note}; {first}run `hpcm doctor --build`"


def choice() -> str:
    """The value of HPCM_OPS. Raises UnsupportedError for an unknown one."""
    value = os.environ.get("HPCM_OPS") or "auto"
    if value not in CHOICES:
        raise UnsupportedError(f"HPCM_OPS is {value!r}; it can be {', '.join(CHOICES)}")
    return value


def exact_ops(tensors: Mapping[str, np.ndarray], grids: Mapping[str, int], precision: int = PRECISION) -> ExactOps:
    """The operations over numpy arrays that HPCM_OPS asks for; codes of more bits than PRECISION have no kernels.

    Raises UnsupportedError where they are not available.
    """
    kernels = find().kernels
    if kernels is None or precision != PRECISION:
        return ExactOps(NUMPY, tensors, grids, precision)
    return KernelOps(kernels, tensors, grids)


def find(*, background: bool = True, beside_cuda: bool = False) -> Status:
    """Look for kernels as HPCM_OPS says; `background` allows starting a build for the next time.

    beside_cuda: the work runs on the processor in any case, so HPCM_OPS=cuda means the same as auto.

    Raises UnsupportedError where the kernels that HPCM_OPS forces are missing, or its value is unknown;
    InstallationError where the prebuilt library is damaged.
    """
    wanted = choice()
    if wanted == "cuda":
        if not beside_cuda:
            raise UnsupportedError(NOT_HERE)
        wanted = "auto"
    if wanted == "reference":
        return Status(None, "", None, (), False)
    reasons: list[str] = []
    try:
        folder = build.source_folder()
        source = build.source_hash(folder)
    except build.BuildError as error:
        return _none(wanted, [str(error)], False)
    prebuilt = build.prebuilt(folder, source)
    if prebuilt:
        if prebuilt not in _loaded and not build.is_whole(prebuilt):
            raise InstallationError(
                f"{prebuilt} is damaged: it does not have the SHA-256 that its name ends with; reinstall hpcmcodec, or "
                "run `make kernels` in the checkout"
            )
        kernels = _open(prebuilt, source, reasons)
        if kernels:
            return Status(kernels, "prebuilt", prebuilt, (), False)
    else:
        reasons.append(f"no prebuilt library in {folder}")
    compiler, cache = build.find_compiler(), build.cache_folder()
    if cache is None:
        reasons.append("no cache directory: neither XDG_CACHE_HOME nor a home is set")
        return _none(wanted, reasons, False)
    distrust = build.untrusted(cache)
    if distrust:
        return _none(wanted, [*reasons, f"{distrust}, so nothing is loaded from there"], False)
    for path in build.cached(cache, source, compiler):
        kernels = _open(path, source, reasons)
        if kernels:
            return Status(kernels, "cache", path, tuple(reasons), False)
    reasons.append(f"no whole library of these sources in the cache {cache}")
    why_not = build.impossible()
    if why_not or compiler is None:
        return _none(wanted, [*reasons, why_not or NO_COMPILER], False)
    if wanted == "cpp":
        try:
            path = build.build_cached(folder, source, compiler, cache, wait=build.TIMEOUT_SECONDS)
        except build.BuildError as error:
            return _none(wanted, [*reasons, str(error)], False)
        kernels = _open(path, source, reasons)
        return Status(kernels, "built", path, tuple(reasons), False) if kernels else _none(wanted, reasons, False)
    failed = build.failure(cache, source, compiler)
    if failed:
        return _none(wanted, [*reasons, f"the last build failed: {failed}"], False)
    if not _writable(cache):
        return _none(wanted, [*reasons, f"the cache {cache} cannot be written to"], False)
    return _none(wanted, reasons, _build_in_background() if background else _started_build)


def _none(wanted: str, reasons: list[str], building: bool) -> Status:
    if wanted == "cpp":
        raise UnsupportedError(f"HPCM_OPS=cpp, but there are no kernels: {'; '.join(reasons)}")
    return Status(None, "", None, tuple(reasons), building)


def _open(path: Path, source: str, reasons: list[str]) -> Kernels | None:
    """The kernels of a library, loaded once per process; None where it does not fit, with a line in `reasons`."""
    with threads.loading:
        if path not in _loaded:
            try:
                library = ctypes.CDLL(str(path))
                if build.source_of(library) != source:
                    reasons.append(f"{path} was built from other sources")
                    return None
                _loaded[path] = Kernels(library, threads.count())
            except (OSError, AttributeError, UnsupportedError) as error:
                reasons.append(f"{path} cannot be loaded: {error}")
                return None
        return _loaded[path]


def _writable(folder: Path) -> bool:
    """Whether a file could be made in this folder, or in the nearest one above that exists."""
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _build_in_background() -> bool:
    """Start a build that outlives this process and runs only while nothing else wants the processor."""
    global _started_build
    with threads.loading:
        if _started_build:
            return True
        if not sys.executable:
            return False
        with contextlib.suppress(OSError):
            process = subprocess.Popen(
                [sys.executable, "-I", str(Path(build.__file__).resolve()), "cache", "--idle"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
            # A thread waits for the build's exit status, so that no zombie stays where this process outlives the build.
            threading.Thread(target=process.wait, daemon=True).start()
            _started_build = True
        return _started_build
