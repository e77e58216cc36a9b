"""Weights as integers, and the proof that their sums stay exact."""

from __future__ import annotations

import numpy as np

from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import CODE_MAX, SUM_BOUND


def quantise_rows(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a matrix w (..., n) as integers times a unit for each row, as small as the bound 2^31 allows.

    Rounding changes each |integer| by at most a half. The sum of |integers| times 8191 therefore stays below SUM_BOUND
    where unit >= sum |w| / ((SUM_BOUND - 1) / 8191 - n / 2). The largest integer must also fit int16. Returns the
    integers, int16 (..., n), and the units, float32 (...). Fake quantisation and export both call this function.
    """
    w = np.asarray(w, np.float64)
    n = w.shape[-1]
    room = (SUM_BOUND - 1) / CODE_MAX - n / 2
    total, peak = np.abs(w).sum(-1), np.abs(w).max(-1)
    step = np.maximum(total / room, peak / 32767)
    step = np.where(step > 0, step, 1.0).astype(np.float32)
    step = np.nextafter(step, np.float32(np.inf))  # rounding to float32 must not let the bound slip
    return np.rint(w / step[..., None].astype(np.float64)).astype(np.int16), step


def check_bound(name: str, integers: np.ndarray) -> None:
    """Check the bound 2^31 for stored integers (O, n) summed together. Raises IntegrityError where they break it."""
    worst = int(np.abs(integers.astype(np.int32)).sum(-1, dtype=np.int64).max(initial=0)) * CODE_MAX
    if worst >= SUM_BOUND:
        raise IntegrityError(f"weights of {name} break the exactness bound: {worst} >= 2^31")
