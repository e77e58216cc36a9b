"""Distortion and rate: four measures of 8-bit images, and the average difference of two RD curves.

PSNR is computed here. The others come from what the field uses, which is optional: MS-SSIM (Z. Wang, E. P. Simoncelli,
A. C. Bovik, "Multiscale structural similarity for image quality assessment", 2003) over RGB from pytorch-msssim, as in
CompressAI's result files; SSIMULACRA2, made for the judgement of JPEG XL, from ssimulacra2; the 3-norm of Butteraugli's
map of visible differences from libjxl's program butteraugli_main.

BD-rate follows G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", ITU-T VCEG-M33 (2001):
the logarithm of the rate is interpolated over the score, and both curves are averaged over the range of scores that
they share. The interpolation is the piecewise cubic one (PCHIP) that JCT-VC uses since, with the slopes of
F. N. Fritsch and J. Butland, "A method for constructing local monotone piecewise cubic interpolants", SIAM J. Sci.
Stat. Comput. 5 (1984); it does not overshoot between unevenly spaced points, as a single cubic does.
"""

import functools
import hashlib
import importlib.util
import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from hpcmcodec.errors import HpcmError

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

MIN_OVERLAP = 0.5
"""Share of the narrower range of scores that two curves must have in common for a BD-rate. With less in common, the
average says little about either curve."""

MS_SSIM_SIDE = 161
"""Smallest side of an image in pixels, so that a window of 11 pixels fits into it after four halvings."""


def psnr_db(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE), the MSE over all pixels and channels of ``(H, W, 3)``.

    Infinite for equal images.

    Raises:
        ValueError: the shapes differ, or an array is empty or not uint8.
    """
    _check_pair(a, b)
    difference = np.subtract(a, b, dtype=np.int32)
    squares = int(np.multiply(difference, difference, out=difference).sum(dtype=np.int64))
    return math.inf if squares == 0 else 10 * math.log10(255**2 * a.size / squares)


def ms_ssim(a: Pixels, b: Pixels) -> float:
    """MS-SSIM, at most 1, the mean of the three RGB channels of ``(H, W, 3)``. Needs pytorch-msssim and torch.

    Raises:
        ValueError: as for `psnr_db`, or a side is below `MS_SSIM_SIDE`.
    """
    _check_pair(a, b)
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        raise ValueError(f"MS-SSIM needs {MS_SSIM_SIDE} pixels a side, found {a.shape[1]}x{a.shape[0]}")
    import torch
    from pytorch_msssim import ms_ssim as compute

    planes = [torch.from_numpy(np.array(x)).permute(2, 0, 1)[None].float() for x in (a, b)]
    with torch.inference_mode():
        return float(compute(*planes, data_range=255.0))


def ssimulacra2(a: Pixels, b: Pixels) -> float:
    """SSIMULACRA2 of ``b`` against the original ``a``, both ``(H, W, 3)``. Needs ssimulacra2.

    At 90 the two are hard to tell apart, 50 is medium quality.

    Raises:
        ValueError: as for `psnr_db`.
    """
    _check_pair(a, b)
    from ssimulacra2 import compute_ssimulacra2

    files = [io.BytesIO(), io.BytesIO()]  # the package reads image files
    for pixels, file in zip((a, b), files, strict=True):
        Image.fromarray(pixels).save(file, "BMP")
    return float(compute_ssimulacra2(*files))


def butteraugli(a: Pixels, b: Pixels) -> float:
    """The 3-norm of Butteraugli's distances of ``b`` from ``a``, both ``(H, W, 3)``; 0 for equal images.

    Needs the program butteraugli_main.

    Raises:
        ValueError: as for `psnr_db`.
        HpcmError: the program fails.
    """
    _check_pair(a, b)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("a.ppm", "b.ppm")]
        for pixels, path in zip((a, b), paths, strict=True):
            Image.fromarray(pixels).save(path)
        done = subprocess.run(["butteraugli_main", *paths, "--pnorm", "3"], capture_output=True, text=True)
    last = done.stdout.splitlines()[-1:]
    if done.returncode or not (last and last[0].startswith("3-norm: ")):
        raise HpcmError(f"butteraugli_main: {' '.join((done.stderr or done.stdout).split()) or done.returncode}")
    return float(last[0].removeprefix("3-norm: "))


@dataclass(frozen=True)
class Metric:
    """How a distortion is measured, stored and shown.

    Attributes:
        label: text at the axis of a plot.
        unit: of a value, with a space before it; empty where there is none.
        key: name in result files, CompressAI's where it has one.
        compute: (original, decoded) -> the value that result files hold.
        shown: that value -> the value that plots show and BD-rates are computed from.
        packages: those that must be installed, as pairs of import name and name in the package index.
        program: one that must be on the path, and where it comes from.
        decimals: the number of them that are worth printing.
        between: the scores, as shown, that BD-rates are averaged over, where the curves have them; None: all.
    """

    label: str
    unit: str
    key: str
    compute: Callable[[Pixels, Pixels], float]
    shown: Callable[[float], float] = float
    packages: tuple[tuple[str, str], ...] = ()
    program: tuple[str, str] | None = None
    decimals: int = 2
    between: tuple[float, float] | None = None

    @property
    def missing(self) -> str:
        """What to do before the metric can be used, in words; empty where it can."""
        packages = [package for module, package in self.packages if importlib.util.find_spec(module) is None]
        if packages:
            return f"pip install {' '.join(packages)}"
        if self.program and not shutil.which(self.program[0]):
            return f"the program {self.program[0]} is needed, {self.program[1]}"
        return ""

    @property
    def version(self) -> str:
        """The versions of what computes the values. Values of different versions cannot be compared."""
        if self.program:
            return f"{self.program[0]} {_program_version(self.program[0])}"
        return " ".join(f"{package} {version(package)}" for _, package in self.packages) or "1"


@functools.cache
def _program_version(program: str) -> str:
    """Eight digits of a program's hash, since not every one says its version."""
    path = shutil.which(program)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8] if path else "not installed"


def to_db(similarity: float) -> float:
    """An MS-SSIM s in dB, -10 log10(1 - s), which spreads out the values near 1; infinite at 1."""
    return math.inf if similarity >= 1 else -10 * math.log10(1 - similarity)


METRICS: Mapping[str, Metric] = {
    "psnr": Metric("PSNR (dB)", " dB", "psnr-rgb", psnr_db),
    "ms-ssim": Metric(
        "MS-SSIM (dB)", " dB", "ms-ssim-rgb", ms_ssim, to_db, (("pytorch_msssim", "pytorch-msssim"), ("torch", "torch"))
    ),
    "ssimulacra2": Metric(
        "SSIMULACRA2",
        "",
        "ssimulacra2",
        ssimulacra2,
        packages=(("ssimulacra2", "ssimulacra2"),),
        decimals=1,
        between=(30, 90),  # below, pictures are ruins; above, nobody sees a difference
    ),
    "butteraugli": Metric(
        "Butteraugli 3-norm, negative",
        "",
        "butteraugli-3-norm",
        butteraugli,
        lambda distance: -distance,
        program=("butteraugli_main", "for instance from Debian's libjxl-devtools"),
        decimals=3,
    ),
}
DEFAULT_METRICS = ("psnr", "ms-ssim", "ssimulacra2")


class Curve(NamedTuple):
    """Rate-distortion points of one codec, one for each quality: ``bpp`` and a metric's ``score``, each ``(n,)``."""

    bpp: Sequence[float]
    score: Sequence[float]


class BDRate(NamedTuple):
    """``percent``: how much more rate (less, if negative) is needed on average for scores from ``low`` to ``high``."""

    percent: float
    low: float
    high: float


def bd_rate(
    anchor: Curve, test: Curve, min_overlap: float = MIN_OVERLAP, between: tuple[float, float] | None = None
) -> BDRate:
    """Average difference in rate of ``test`` against ``anchor`` at equal score, over the scores that both reach.

    Args:
        anchor, test: scores that rise with the rate, such as PSNR in dB.
        between: scores below and above which rates are not compared; None: all are.
        min_overlap: share of the narrower of the two ranges of score that the range they share must have.

    Raises:
        ValueError: a curve has fewer than two points, a rate that is not positive, or a score that does not rise with
            the rate; or the two share too small a range of scores.
    """
    knots = [_knots(curve) for curve in (anchor, test)]
    low = max(float(score[0]) for score, _ in knots)
    high = min(float(score[-1]) for score, _ in knots)
    if between:
        low, high = max(low, between[0]), min(high, between[1])
    ranges = " and ".join(f"{score[0]:.2f} to {score[-1]:.2f}" for score, _ in knots)
    if not low < high:
        raise ValueError(f"the curves share no range: {ranges}")
    floor, ceiling = between or (-math.inf, math.inf)
    share = (high - low) / min(min(float(score[-1]), ceiling) - max(float(score[0]), floor) for score, _ in knots)
    if share < min_overlap:
        raise ValueError(f"the curves share {share:.0%} of the narrower range, too little to compare: {ranges}")
    means = [_integral(score, log_rate, low, high) / (high - low) for score, log_rate in knots]
    return BDRate(100 * math.expm1(means[1] - means[0]), low, high)


def _check_pair(a: Pixels, b: Pixels) -> None:
    if a.shape != b.shape or a.size == 0 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"two equal shapes of uint8 are expected, found {a.shape} {a.dtype} and {b.shape} {b.dtype}")


def _knots(curve: Curve) -> tuple[Floats, Floats]:
    """A curve's scores in rising order, and the logarithm of the rate at each, both ``(n,)``."""
    if len(curve.bpp) != len(curve.score) or len(curve.bpp) < 2:
        raise ValueError(f"a curve needs two points or more, found {len(curve.bpp)} and {len(curve.score)} values")
    points = np.array(sorted(zip(curve.bpp, curve.score, strict=True)), dtype=np.float64)
    bpp, score = points[:, 0], points[:, 1]
    if not (np.isfinite(points).all() and bpp[0] > 0):
        raise ValueError(f"rates must be positive and all values finite, found {points.tolist()}")
    fall = (np.diff(bpp) <= 0) | (np.diff(score) <= 0)
    if fall.any():
        i = int(fall.argmax())
        (a, at), (b, then) = points[i], points[i + 1]
        raise ValueError(f"the score must rise with the rate: {at:.4g} at {a:.4g} bpp, {then:.4g} at {b:.4g} bpp")
    return score, np.log(bpp)


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
