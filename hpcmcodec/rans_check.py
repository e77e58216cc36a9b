"""Tests whether the entropy coders agree, for `hpcm doctor`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from hpcmcodec import rans_coders
from hpcmcodec.errors import IntegrityError, UnsupportedError
from hpcmcodec.native import loader
from hpcmcodec.rans_coders import Coder, CompressAI, Native
from hpcmcodec.rans_tables import Tables

__all__ = ["differences", "report"]


def report() -> Iterator[tuple[str, str]]:
    """(name, fact) for each line of the report: which coder is used, why, and that all coders that are here agree.

    Raises UnsupportedError where HPCM_CODER names no coder that is here, IntegrityError where the coders differ.
    """
    yield "HPCM_CODER", os.environ.get("HPCM_CODER") or "not set: auto"
    used, reason = rans_coders.choose()
    yield "Coder", used.name
    yield "Because", reason
    coders: list[Coder] = [Native(None)]
    kernels = loader.find(background=False, beside_cuda=True).kernels
    if kernels is not None:
        coders.append(Native(kernels))
    with contextlib.suppress(UnsupportedError):
        coders.append(CompressAI(kernels))
    wrong = differences(coders)
    if wrong:
        raise IntegrityError(f"these entropy coders differ from the one in plain Python: {', '.join(wrong)}")
    yield "Coder test", f"same bytes, same symbols: {', '.join(coder.name for coder in coders)}"


def differences(coders: Sequence[Coder]) -> list[str]:
    """Names of the coders that write other bytes or read other symbols than the first coder.

    Each coder writes symbols of small and large tables, with escapes of all lengths among them. Then it reads the first
    coder's stream, whole, damaged and cut, and all have to refuse the same.
    """
    rng = np.random.RandomState(0)
    sizes = np.array([4, 3, 60, 1500])
    cdf = np.zeros((len(sizes), sizes.max()), np.int64)
    for row, size in zip(cdf, sizes, strict=True):
        row[1 : size - 1] = np.sort(rng.choice(np.arange(1, 1 << 16), size - 2, replace=False))
        row[size - 1] = 1 << 16
    tables = Tables(cdf, sizes, -(sizes // 3))
    indexes = rng.randint(0, len(tables), 3000)
    low, high = tables.low[indexes], tables.high[indexes]
    symbols = (low + np.floor(rng.random_sample(indexes.shape) * (high + 1 - low))).astype(np.int32)
    symbols[::40] = (rng.choice([-1, 1], 75) << rng.randint(0, 21, 75)).astype(np.int32)

    streams: list[bytes] = []
    found = []
    for coder in coders:
        writer = coder.writer(tables)
        for part in (slice(0, 1000), slice(1000, None)):
            writer.put(symbols[part], indexes[part])
        results = [writer.finish()]
        if not streams:
            whole = results[0]
            streams = [whole, whole[:400] + b"\xff" * 40 + whole[440:], whole[:800]]
        for stream in streams:
            reader = coder.reader(stream, tables)
            for some in np.split(indexes, [7, 2000]):
                try:
                    results.append(reader.get(some).tobytes())
                except IntegrityError as error:
                    results.append(str(error).encode())
                    break
            else:
                results.append(repr((reader.position, reader.state)).encode())
        found.append(results)
    return [coder.name for coder, results in zip(coders, found, strict=True) if results != found[0]]
