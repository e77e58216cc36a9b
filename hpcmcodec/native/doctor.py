"""The report of `hpcm doctor`: which exact operations are used and why, and whether they give the reference's bits."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from hpcmcodec import threads
from hpcmcodec.errors import IntegrityError, UnsupportedError
from hpcmcodec.native import build, loader, selftest
from hpcmcodec.native.compiled import KernelOps

__all__ = ["build_now", "report"]


def build_now() -> None:
    """Build the kernels in the cache, even where an earlier build failed. Raises UnsupportedError where it fails."""
    compiler, cache = build.find_compiler(), build.cache_folder()
    if compiler is None:
        raise UnsupportedError(f"{loader.NO_COMPILER}: install g++ (Debian: apt install g++), or name one in CXX")
    if cache is None:
        raise UnsupportedError("no cache directory: neither XDG_CACHE_HOME nor a home is set")
    try:
        folder = build.source_folder()
        build.build_cached(folder, build.source_hash(folder), compiler, cache, wait=build.TIMEOUT_SECONDS)
    except build.BuildError as error:
        raise UnsupportedError(str(error)) from error


def report() -> Iterator[tuple[str, str]]:
    """The lines of the report as (name, fact); several facts may share a name.

    Raises UnsupportedError where the operations that HPCM_OPS asks for are missing, IntegrityError where their bits
    differ from the reference's.
    """
    compiler, cache = build.find_compiler(), build.cache_folder()
    yield "HPCM_OPS", os.environ.get("HPCM_OPS") or "not set: auto"
    yield "Compiler", f"{compiler.version()}, {compiler.command[0]}" if compiler else "no g++, no c++, no CXX"
    yield "Cache", str(cache or "none: neither XDG_CACHE_HOME nor a home is set")
    if loader.choice() == "cuda":
        yield from _gpu()
        return
    status = loader.find(background=False)
    if status.kernels is None:
        yield "In use", "the numpy reference"
    else:
        yield "In use", f"C++ kernels, threads: {threads.count()}"
        variants = ", ".join(status.kernels.variants)
        yield "Processor", f"instructions: {status.kernels.variant}, possible: {variants}"
        yield "Library", f"{status.path} ({status.origin})"
    for reason in status.reasons:
        yield "Because", reason
    note = status.note()
    if note:
        yield "Note", note
    kernels = status.kernels
    if kernels is not None:
        wrong = selftest.differences(lambda tensors: KernelOps(kernels, tensors, selftest.GRIDS))
        if wrong:
            raise IntegrityError(f"these kernels differ from the reference: {', '.join(wrong)}; set HPCM_OPS=reference")
        yield "Self-test", f"all operations give the bits of the reference (numpy {np.__version__})"


def _gpu() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            'HPCM_OPS=cuda needs torch, which is not installed: pip install "hpcmcodec[torch]"'
        ) from error
    from hpcmcodec.native import cuda

    index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    found = cuda.find(index, wait=True)
    if found.kernels is None:
        raise UnsupportedError(f"HPCM_OPS=cuda, but there are no CUDA kernels: {'; '.join(found.reasons)}")
    yield "In use", f"CUDA kernels on {torch.cuda.get_device_name(index)}, with --device cuda"
    yield "Compiled by", found.made_by
    for reason in found.reasons:
        yield "Because", reason
    yield "Self-test", f"all operations give the bits of the reference (numpy {np.__version__})"
