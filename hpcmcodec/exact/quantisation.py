"""Weights as integers, and the proof that their sums stay exact."""

from __future__ import annotations

import numpy as np

from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import PRECISION, code_max, sum_bound


def quantise_rows(w: np.ndarray, precision: int = PRECISION) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a matrix w (..., n) as integers times a unit for each row, as small as the bound on sums allows.

    Rounding changes each |integer| by at most a half. The sum of |integers| times the largest code therefore stays
    below the bound where unit >= sum |w| / ((bound - 1) / largest code - n / 2). The largest integer must also fit
    int16, which is all that codes of 16 bits ask for: 2^23 products of them stay below 2^53. Returns the integers,
    int16 (..., n), and the units, float32 (...). Fake quantisation and export both call this function.
    """
    w = np.asarray(w, np.float64)
    n = w.shape[-1]
    room = (sum_bound(precision) - 1) / code_max(precision) - n / 2
    total, peak = np.abs(w).sum(-1), np.abs(w).max(-1)
    step = np.maximum(total / room, peak / 32767)
    step = np.where(step > 0, step, 1.0).astype(np.float32)
    step = np.nextafter(step, np.float32(np.inf))  # rounding to float32 must not let the bound slip
    return np.rint(w / step[..., None].astype(np.float64)).astype(np.int16), step


def check_bound(name: str, integers: np.ndarray, precision: int = PRECISION) -> None:
    """Check the bound on sums for stored integers (O, n) that meet codes of so many bits and are summed together.

    Raises IntegrityError where they break it.
    """
    bound = sum_bound(precision)
    worst = int(np.abs(integers.astype(np.int32)).sum(-1, dtype=np.int64).max(initial=0)) * code_max(precision)
    if worst >= bound:
        raise IntegrityError(f"weights of {name} break the exactness bound: {worst} >= 2^{bound.bit_length() - 1}")
