"""Weights as integers, and the proof that their sums stay exact."""

from __future__ import annotations

import numpy as np

from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import CODE_MAX, SUM_BOUND


def quantise_rows(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers and steps of a matrix (..., n): w ~ integers * step, the step per row as small as the 2^31 bound allows.

    Rounding moves each |integer| by at most a half, so (SUM_BOUND - 1) - 8191 n / 2 is shared out over sum |w|; int16
    caps the largest. Returns int16 (..., n) and float32 steps (...), the same for fake quantisation and export.
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
    """Prove the 2^31 bound of the stored integers (O, n) that are summed together; raises IntegrityError."""
    worst = int(np.abs(integers.astype(np.int64)).sum(-1).max(initial=0)) * CODE_MAX
    if worst >= SUM_BOUND:
        raise IntegrityError(f"weights of {name} break the exactness bound: {worst} >= 2^31")
