"""exp, the sigmoid and 1/sqrt from IEEE adds, multiplies and powers of two: the same bits everywhere.

All but `rsqrt` work on numpy arrays alone: they compute tables, and the constants of a model for one size of image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcmcodec.exact.constants import (
    SCALE_LEVELS,
    SCALE_SHIFT,
    SCALES_MAX,
    SCALES_MIN,
    SIMILARITY_ONE,
    TABLE_MAX,
    WEIGHT_ONE,
)
from hpcmcodec.quality import Quality

_LN2_HI, _LN2_LO = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # ln 2 in two parts (fdlibm, e_exp.c)
_LN_OF_SCALES = 6.279146619559763  # ln(SCALES_MAX / SCALES_MIN)
_INVERSE_FACTORIALS = tuple(
    1.0 / f for f in (6227020800, 479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1)
)


def exact_exp(x: np.ndarray) -> np.ndarray:
    """e^x for float64 |x| <= 700, from IEEE adds, multiplies and one scaling: the same bits everywhere.

    Cody-Waite reduction x = n ln 2 + r, Taylor polynomial of degree 13 in Horner form (relative error below 3e-16).
    """
    x = np.asarray(x, np.float64)
    n = np.rint(x * np.full(x.shape, 1.4426950408889634))
    r = (x - n * np.full(x.shape, _LN2_HI)) - n * np.full(x.shape, _LN2_LO)
    p = np.full(x.shape, _INVERSE_FACTORIALS[0])
    for c in _INVERSE_FACTORIALS[1:]:
        p = p * r + np.full(x.shape, c)
    power = ((n.astype(np.int64) + np.int64(1023)) << np.int64(52)).view(np.float64)
    return p * power


def gains(log_scale: np.ndarray, quality: Quality) -> np.ndarray:
    """exp of the table's rows (anchors, C), linear between them at a quality: float64 (C,)."""
    position = quality.hundredths * (len(log_scale) - 1)
    i = min(position // 10000, len(log_scale) - 2)
    f = position - i * 10000
    below, above = (log_scale[k].astype(np.float64) for k in (i, i + 1))
    whole, rest, part = (np.full(below.shape, float(v)) for v in (10000, 10000 - f, f))
    return exact_exp((below * rest + above * part) / whole)


def exp_table(e: int) -> np.ndarray:
    """exp(code * 2^-e) for code = -2047..2047, float64 (4095,)."""
    return exact_exp(np.arange(-TABLE_MAX, TABLE_MAX + 1, dtype=np.float64) * np.full(2 * TABLE_MAX + 1, 2.0**-e))


def sigmoid_table(e: int) -> np.ndarray:
    """1 / (1 + exp(-code * 2^-e)) for code = -2047..2047, float32 (4095,)."""
    one = np.ones(2 * TABLE_MAX + 1)
    return (one / (one + exp_table(e)[::-1])).astype(np.float32)


def memory_weight_table(temperature: float) -> np.ndarray:
    """The weight of the more similar of two references, from 0 to WEIGHT_ONE: float64 (2 * SIMILARITY_ONE + 1,).

    The index is the difference between the two similarities, 0..2 * SIMILARITY_ONE.
    """
    d = np.arange(2 * SIMILARITY_ONE + 1, dtype=np.float64) / np.full(
        2 * SIMILARITY_ONE + 1, SIMILARITY_ONE * temperature
    )
    one = np.ones_like(d)
    return np.rint(np.full(d.shape, float(WEIGHT_ONE)) / (one + exact_exp(-d)))


def gelu(x: np.ndarray) -> np.ndarray:
    """x sigmoid(1.5957691 (x + 0.044715 x^3)), the usual approximation of x Phi(x), from IEEE operations."""
    cube = (x * x) * x
    inner = (cube * np.full(x.shape, 0.044715) + x) * np.full(x.shape, 1.5957691216057308)
    one = np.ones(x.shape)
    return np.asarray(x / (one + exact_exp(np.clip(-inner, -700, 700))))


def elu_plus_one(x: np.ndarray) -> np.ndarray:
    """x + 1 above 0, e^x below: positive."""
    return np.where(x > 0, x + np.ones(x.shape), exact_exp(np.clip(x, -700, 0)))


CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"elu+1": elu_plus_one, "gelu": gelu}
"""Functions of one value that operations take by name: float64 to float64, the same bits everywhere."""


def similar_weights(temperature: float) -> np.ndarray:
    """The weight of a reference by how much less similar it is than the best: float64 (2 * SIMILARITY_ONE + 1,)."""
    d = np.arange(2 * SIMILARITY_ONE + 1, dtype=np.float64)
    scaled = d / np.full(d.shape, SIMILARITY_ONE * temperature)
    return np.asarray(np.rint(np.full(d.shape, float(WEIGHT_ONE)) * exact_exp(-np.minimum(scaled, 700))))


def level_scales() -> np.ndarray:
    """The scales of generalised Gaussians that the levels stand for, equal ratios apart: float64 (SCALE_LEVELS,)."""
    n = np.arange(SCALE_LEVELS, dtype=np.float64) / np.full(SCALE_LEVELS, SCALE_LEVELS - 1.0)
    return np.full(n.shape, SCALES_MIN) * exact_exp(n * np.full(n.shape, _LN_OF_SCALES))


def scale_levels() -> np.ndarray:
    """The level of each scale 0, 1, ... in 1024ths, int32 (65537,): the first whose own scale is not smaller."""
    scales = level_scales()[:-1] * np.full(SCALE_LEVELS - 1, 2.0**SCALE_SHIFT)
    codes = np.arange(int(SCALES_MAX * 2**SCALE_SHIFT) + 1, dtype=np.float64)
    return np.searchsorted(scales, codes).astype(np.int32)


def rsqrt(xp: Any, x: Any) -> Any:
    """1 / sqrt(x) in float64 for normal x > 0: a first guess from the bits of x, then four Newton iterations.

    The worst relative error measured is 3e-16.
    """
    r = xp.from_bits(xp.full(6910469410427058090, xp.i8) - (xp.bits(x) >> xp.full(1, xp.i8)))
    half, three_halves = x * xp.full(0.5, xp.f8), xp.full(1.5, xp.f8)
    for _ in range(4):
        r = r * (three_halves - (half * r) * r)
    return r
