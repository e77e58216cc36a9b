"""How far a decoded picture is from its original, in training and for effort, in bits per pixel by lambdas.

    mse      255^2 * MSE
    ms-ssim  MS_SSIM_WEIGHT * (1 - MS-SSIM) over RGB
    mixed    shares of the two
    visual   shares of 255^2 * MSE and VISUAL_WEIGHT * `visual`

MSE alone makes textures smooth, and what measures structure alone lets colours and levels drift: hence the mixtures.
Throughout, x and x_hat are (B, 3, H, W) in [0, 1], sRGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hpcmcodec.errors import InputError
from hpcmcodec.model.config import MIN_SIDE, Config

MS_SSIM_WEIGHT = 1280  # CompressAI's lambdas for MS-SSIM are 1222 to 1340 times those for MSE of the same rate
VISUAL_WEIGHT = 1300  # at which it is as large as MS-SSIM's term, in the middle of JPEGs of photographs

_SCALES = 5
_SIGMA, _RADIUS = 1.5, 5
_BELL = [math.exp(-(at**2) / (2 * _SIGMA**2)) for at in range(-_RADIUS, _RADIUS + 1)]
_WINDOW = [v / sum(_BELL) for v in _BELL]
_STABILISER = 0.0009  # SSIM's C2 for samples in [0, 1]
# Cones' responses to linear RGB and what is added before the cube root, as in JPEG XL's XYB (ISO/IEC 18181-1).
_CONES = ((0.30, 0.622, 0.078), (0.23, 0.692, 0.078), (0.24342268924547819, 0.20476744424496821, 0.5518098665095536))
_BIAS = 0.0037930732552754493
# Red-green, light and blue of three cones' responses, scaled so that each spans about the unit interval.
_OPPOSED = ((7.0, -7.0, 0.0), (0.5, 0.5, 0.0), (-0.5, -0.5, 1.0))


@dataclass(frozen=True)
class Distortion:
    """kind: one of `config.DISTORTIONS`; share: of what is not MSE, in "mixed" and "visual"; weight: of the whole."""

    kind: str = "mse"
    share: float = 0.5
    weight: float = 1.0

    @classmethod
    def of(cls, config: Config) -> Distortion:
        """The distortion that a model was trained for."""
        return cls(config.metric, config.metric_share, config.metric_weight)

    def __call__(self, x_hat: Tensor, x: Tensor, lambdas: Tensor) -> Tensor:
        """Distortion (B,) of x_hat, times its weight and lambdas (B,), and hence in bits per pixel."""
        share = {"mse": 0.0, "ms-ssim": 1.0}.get(self.kind, self.share)
        total = torch.zeros_like(lambdas)
        if share < 1:
            total = total + (1 - share) * 255**2 * (x_hat - x).square().flatten(1).mean(1)
        if share > 0 and self.kind == "visual":
            total = total + share * VISUAL_WEIGHT * visual(x_hat, x)
        elif share > 0:
            total = total + share * MS_SSIM_WEIGHT * (1 - ms_ssim(x_hat, x))
        return self.weight * lambdas * total

    @property
    def followed(self) -> Distortion:
        """What effort makes smaller: this, or squared error where the gradient is not written out in `slope`."""
        return self if self.kind == "visual" else Distortion("mse", weight=self.weight)

    def slope(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """The gradient (B, 3, H, W) of `followed` by x_hat in [0, 1], of sides that are multiples of 16.

        It is times 3 H W / (2 * 255^2) at a lambda of 1, so that squared error alone gives x_hat - x.
        """
        error = x_hat - x
        if self.kind == "visual":
            error = (1 - self.share) * error + self.share * 1.5 * VISUAL_WEIGHT / 255**2 * visual_gradient(x_hat, x)
        return self.weight * error

    def check(self) -> None:
        """Raises InputError where a package that the kind needs is not installed."""
        if self.kind in ("ms-ssim", "mixed"):
            blank = torch.zeros(1, 3, MIN_SIDE, MIN_SIDE)
            ms_ssim(blank, blank)


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """MS-SSIM (B,) of x_hat and x, by pytorch-msssim. Raises InputError where that package is not installed."""
    try:
        from pytorch_msssim import ms_ssim as compute
    except ImportError as error:
        raise InputError('training for MS-SSIM needs pytorch-msssim: pip install "hpcmcodec[train]"') from error
    out: Tensor = compute(x_hat, x, data_range=1.0, size_average=False)
    return out


def visual(x_hat: Tensor, x: Tensor) -> Tensor:
    """Loss of structure (B,), 0 for equal pictures: structure and edges in opponent colours at five scales.

    It takes two ideas of SSIMULACRA2 (J. Sneyers, 2022): structural similarity without the term that compares local
    means by their ratio, in colours that are about as far apart as they look; and edges, where what has been lost
    (blur) and what has been added (ringing) are both counted, by |x - mean| in a window.
    """
    light, light_hat = linear(x), linear(x_hat.clamp(0, 1))
    total = x.new_zeros(len(x))
    for scale in range(_SCALES):
        if scale:
            light, light_hat = F.avg_pool2d(light, 2), F.avg_pool2d(light_hat, 2)
        total = total + _Windows(opponent(light_hat), opponent(light)).loss()
    return total / _SCALES


def visual_gradient(x_hat: Tensor, x: Tensor) -> Tensor:
    """The gradient (B, 3, H, W) by x_hat of H * W * `visual`, for sides that are multiples of 16.

    It is written out, because a graph for onnxruntime cannot hold what autograd does. It passes through the clamp to
    [0, 1] as if it were not there.
    """
    x_hat = x_hat.clamp(0, 1)
    lights, lights_hat = [linear(x)], [linear(x_hat)]
    for _ in range(_SCALES - 1):
        lights.append(F.avg_pool2d(lights[-1], 2))
        lights_hat.append(F.avg_pool2d(lights_hat[-1], 2))
    gradient = torch.zeros_like(lights_hat[-1])
    for scale in reversed(range(_SCALES)):
        windows = _Windows(opponent(lights_hat[scale]), opponent(lights[scale]))
        share = 4**scale / (3 * _SCALES)  # of the mean over all windows and colours, in one of them
        gradient = gradient + _back_through_opponent(lights_hat[scale], share * windows.gradient())
        if scale:
            gradient = F.interpolate(gradient, scale_factor=2.0, mode="nearest") / 4
    slope = torch.where(x_hat <= 0.04045, 1 / 12.92, 2.4 / 1.055 * ((x_hat.clamp(min=0.04045) + 0.055) / 1.055) ** 1.4)
    return gradient * slope


def linear(x: Tensor) -> Tensor:
    """Linear light of sRGB samples (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def opponent(light: Tensor) -> Tensor:
    """Red-green, light and blue (B, 3, H, W) of linear RGB, by cube roots of cones' responses."""
    roots = (_mixed(light, _CONES) + _BIAS) ** (1 / 3) - _BIAS ** (1 / 3)
    return _mixed(roots, _OPPOSED)


def _back_through_opponent(light: Tensor, gradient: Tensor) -> Tensor:
    """The gradient by linear RGB from that by `opponent` of it."""
    slopes = (_mixed(light, _CONES) + _BIAS) ** (-2 / 3) / 3
    return _mixed(_mixed(gradient, tuple(zip(*_OPPOSED, strict=True))) * slopes, tuple(zip(*_CONES, strict=True)))


def _mixed(planes: Tensor, rows: tuple[tuple[float, ...], ...]) -> Tensor:
    """Each output plane is the sum of the inputs with the weights of a row."""
    return F.conv2d(planes, planes.new_tensor(rows)[:, :, None, None])


class _Windows:
    """Statistics of two planes (B, 3, H, W), of a decoded and of an original picture, in a window at each place.

    loss, (B,), is the mean of two terms over all windows and planes: one less structural similarity, and the difference
    between the distances of both pictures from their means, which are large at edges.
    """

    def __init__(self, x_hat: Tensor, x: Tensor) -> None:
        self.x_hat, self.x = x_hat, x
        self.covered = _convolved(torch.ones_like(x[:, :1]), 1)  # how much of the window lies in the picture
        self.mean, self.mean_hat = self._blurred(x), self._blurred(x_hat)
        variance = self._blurred(x * x) - self.mean**2
        variance_hat = self._blurred(x_hat * x_hat) - self.mean_hat**2
        covariance = self._blurred(x * x_hat) - self.mean * self.mean_hat
        self.upper = 2 * covariance + _STABILISER
        self.lower = variance + variance_hat + _STABILISER
        self.near = 1 - (self.mean - self.mean_hat) ** 2
        self.edge, self.edge_hat = x - self.mean, x_hat - self.mean_hat

    def _blurred(self, x: Tensor) -> Tensor:
        return _convolved(x) / self.covered

    def _back(self, gradient: Tensor) -> Tensor:
        """Through `_blurred`: the window is symmetric."""
        return _convolved(gradient / self.covered)

    def loss(self) -> Tensor:
        structure = 1 - self.near * self.upper / self.lower
        return (structure + (self.edge_hat.abs() - self.edge.abs()).abs()).flatten(1).mean(1)

    def gradient(self) -> Tensor:
        """By x_hat, of the sum of both terms over all windows and planes."""
        sign = torch.sign(self.edge_hat.abs() - self.edge.abs()) * torch.sign(self.edge_hat)
        by_covariance = -2 * self.near / self.lower
        by_variance = self.near * self.upper / self.lower**2
        by_mean = -2 * (self.mean - self.mean_hat) * self.upper / self.lower - sign
        by_mean = by_mean - 2 * self.mean_hat * by_variance - self.mean * by_covariance
        spread = 2 * self.x_hat * self._back(by_variance) + self.x * self._back(by_covariance)
        return sign + self._back(by_mean) + spread


def _convolved(x: Tensor, planes: int = 3) -> Tensor:
    """x (B, planes, H, W) with a Gaussian window of 11 pixels; the picture is surrounded by zeros."""
    window = x.new_tensor([[_WINDOW]] * planes)
    x = F.conv2d(x, window[:, :, :, None], padding=(_RADIUS, 0), groups=planes)
    return F.conv2d(x, window[:, :, None, :], padding=(0, _RADIUS), groups=planes)
