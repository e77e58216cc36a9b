"""Distortion and rate: PSNR of 8-bit images, and the average difference of two rate-distortion curves.

BD-rate follows G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", ITU-T VCEG-M33 (2001):
the logarithm of the rate is interpolated over PSNR, and both curves are averaged over the range of PSNR that they
share. The interpolation is the piecewise cubic one (PCHIP) that JCT-VC uses since, with the slopes of F. N. Fritsch
and J. Butland, "A method for constructing local monotone piecewise cubic interpolants", SIAM J. Sci. Stat. Comput. 5
(1984); it does not overshoot between unevenly spaced points, as a single cubic does.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def psnr_db(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE), the MSE over all pixels and channels of ``(H, W, 3)``.

    Infinite for equal images.

    Raises:
        ValueError: the shapes differ, or an array is empty or not uint8.
    """
    if a.shape != b.shape or a.size == 0 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"two equal shapes of uint8 are expected, found {a.shape} {a.dtype} and {b.shape} {b.dtype}")
    difference = np.subtract(a, b, dtype=np.int32)
    squares = int(np.multiply(difference, difference, out=difference).sum(dtype=np.int64))
    return math.inf if squares == 0 else 10 * math.log10(255**2 * a.size / squares)


class Curve(NamedTuple):
    """Rate-distortion points of one codec, one a quality: ``bpp`` (bits per pixel) and ``psnr_db``."""

    bpp: Sequence[float]
    psnr_db: Sequence[float]


class BDRate(NamedTuple):
    """``percent``: how much more (less, if negative) rate is needed on average between ``low_db`` and ``high_db``."""

    percent: float
    low_db: float
    high_db: float


def bd_rate(anchor: Curve, test: Curve) -> BDRate:
    """Average difference in rate of ``test`` against ``anchor`` at equal PSNR, over the PSNRs that both reach.

    Raises:
        ValueError: a curve has fewer than two points, a rate that is not positive, or a PSNR that does not rise with
            the rate; or the two share no range of PSNR.
    """
    knots = [_knots(curve) for curve in (anchor, test)]
    low = max(float(psnr[0]) for psnr, _ in knots)
    high = min(float(psnr[-1]) for psnr, _ in knots)
    if not low < high:
        ranges = " and ".join(f"{psnr[0]:.2f} to {psnr[-1]:.2f} dB" for psnr, _ in knots)
        raise ValueError(f"the curves share no range of PSNR: {ranges}")
    means = [_integral(psnr, log_rate, low, high) / (high - low) for psnr, log_rate in knots]
    return BDRate(100 * math.expm1(means[1] - means[0]), low, high)


def _knots(curve: Curve) -> tuple[Floats, Floats]:
    """The curve's PSNR, rising, and its log rate there, both ``(n,)``."""
    if len(curve.bpp) != len(curve.psnr_db) or len(curve.bpp) < 2:
        raise ValueError(f"a curve needs two points or more, found {len(curve.bpp)} and {len(curve.psnr_db)} values")
    points = np.array(sorted(zip(curve.bpp, curve.psnr_db, strict=True)), dtype=np.float64)
    bpp, psnr = points[:, 0], points[:, 1]
    if not (np.isfinite(points).all() and bpp[0] > 0):
        raise ValueError(f"rates must be positive and all values finite, found {points.tolist()}")
    if not ((np.diff(bpp) > 0).all() and (np.diff(psnr) > 0).all()):
        raise ValueError(f"PSNR must rise with the rate, found {points.tolist()}")
    return psnr, np.log(bpp)


def _slopes(step: Floats, secant: Floats) -> Floats:
    """Derivatives at the n knots of the monotone interpolant, from the n - 1 interval widths and secants."""
    if len(secant) == 1:
        return np.repeat(secant, 2)
    slopes = np.empty(len(secant) + 1)
    before, after = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
    slopes[1:-1] = (before + after) / (before / secant[:-1] + after / secant[1:])
    for end, i, j in ((0, 0, 1), (-1, -1, -2)):
        three_point = ((2 * step[i] + step[j]) * secant[i] - step[i] * secant[j]) / (step[i] + step[j])
        slopes[end] = max(three_point, 0.0)  # rising data: a negative slope at the end would overshoot
    return slopes


def _integral(x: Floats, y: Floats, low: float, high: float) -> float:
    """Integral from ``low`` to ``high``, both within ``x``, of the PCHIP interpolant of rising ``y`` over ``x``."""
    step = np.diff(x)
    secant = np.diff(y) / step
    slope = _slopes(step, secant)
    quadratic = (3 * secant - 2 * slope[:-1] - slope[1:]) / step
    cubic = (slope[:-1] + slope[1:] - 2 * secant) / step**2

    def antiderivative(s: Floats) -> Floats:
        return s * (y[:-1] + s * (slope[:-1] / 2 + s * (quadratic / 3 + s * cubic / 4)))

    begin = np.clip(low - x[:-1], 0, step)
    end = np.clip(high - x[:-1], 0, step)
    return float((antiderivative(end) - antiderivative(begin)).sum())
