"""Files of every writer, read by every reader: kernels, instruction sets, threads, plain numpy, each entropy coder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import tiny

from hpcmcodec import codec, rans_coders
from hpcmcodec.engines import base
from hpcmcodec.errors import UnsupportedError
from hpcmcodec.native import loader

# HPCM_OPS, HPCM_CODER, instruction set, threads
WRITERS = {
    "kernels": ("auto", "auto", "", 2),
    "one thread, own coder": ("auto", "native", "sse2", 1),
    "plain numpy": ("reference", "native", "", 1),
}
READERS = {
    "kernels": ("auto", "auto", "", 1),
    "four threads": ("auto", "native", "", 4),
    "sse2": ("auto", "native", "sse2", 3),
    "plain numpy": ("reference", "auto", "", 1),
    "plain numpy and plain coder": ("reference", "native", "", 1),
    "CompressAI's coder": ("auto", "compressai", "", 2),
}
SIZES = [(1 + 13 * i % 90, 1 + 29 * i % 70) for i in range(20)]


@contextmanager
def machine(ops: str, coder: str, variant: str, threads: int) -> Iterator[None]:
    """Code as another machine would."""
    base.forget()
    with patch.dict(os.environ, {"HPCM_OPS": ops, "HPCM_CODER": coder}), tiny.installed():
        kernels = loader.find(background=False).kernels
        if kernels is None and ops != "reference":
            pytest.skip("no kernels here")
        best = kernels.variants[0] if kernels else ""
        if kernels:
            kernels.choose(variant if variant in kernels.variants else best)
            kernels.set_threads(threads)
        try:
            rans_coders.choose()
            yield
        finally:
            if kernels:
                kernels.choose(best)
                kernels.set_threads(1)
            base.forget()


@pytest.mark.slow
def test_every_reader_sees_the_same_in_the_files_of_every_writer() -> None:
    files: dict[tuple[str, int], bytes] = {}
    for name, writer in WRITERS.items():
        with machine(*writer):
            for i, (width, height) in enumerate(SIZES):
                model = {} if i % 5 == 4 else {"model": tiny.NAME}
                files[name, i] = codec.encode(tiny.picture(width, height, i), 5 * i, tile=64, **model)
    seen: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    n_read = 0
    for reader in READERS.values():
        try:
            with machine(*reader):
                for key, data in files.items():
                    found = codec.decode_latents(data), np.asarray(codec.decode(data))
                    first = seen.setdefault(key, found)
                    assert all(np.array_equal(a, b) for a, b in zip(first, found, strict=True)), (key, reader)
                    n_read += 1
        except UnsupportedError:  # CompressAI's coder is not installed
            continue
    assert n_read >= 20 * 3 * 5
