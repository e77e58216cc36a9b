"""Streams of the entropy coder: hostile ones under good tables, and any under tables of noise.

HPCM_FUZZ_LIBRARY names a library of kernels, sanitized ones for instance; without it those of `make kernels` are used.
"""

from __future__ import annotations

import os
import pickle
import random
from typing import Any

import numpy as np

from hpcmcodec.errors import IntegrityError
from tests import coders, test_rans, test_rans_coders

_coder: Any = None


def prepare() -> None:
    global _coder
    from hpcmcodec.native import build

    folder = build.source_folder()
    library = os.environ.get("HPCM_FUZZ_LIBRARY") or build.prebuilt(folder, build.source_hash(folder))
    _coder = coders.named("native C++", str(library)) if library else coders.named("native Python", "")


def make(rng: random.Random) -> bytes:
    data, indexes = next(test_rans.hostile_streams(rng, 1, max_symbols=400, first=rng.randrange(6)))
    return pickle.dumps((data, indexes.tolist(), rng.randrange(2**32)))


def check(data: bytes) -> str:
    if _coder is None:
        prepare()
    stream, numbers, seed = pickle.loads(data)
    indexes = np.array(numbers, np.intp)
    with coders.used(_coder):
        read = not isinstance(test_rans_coders.ending(stream, indexes), str)
        if len(stream) >= 8 and len(stream) % 4 == 0:
            test_rans_coders.among_noise(_coder, stream, len(indexes), np.random.RandomState(seed))
    if not read:
        raise IntegrityError("refused")
    return "read"
