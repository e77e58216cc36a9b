"""How far a decoded picture is from its original, in training, in bits per pixel by lambdas.

    mse      255^2 * MSE
    ms-ssim  MS_SSIM_WEIGHT * (1 - MS-SSIM) over RGB
    mixed    shares of the two
    visual   shares of 255^2 * MSE and VISUAL_WEIGHT * `visual`

MSE alone makes textures smooth, and what measures structure alone lets colours and levels drift: hence the mixtures.
Throughout, x and x_hat are (B, 3, H, W) in [0, 1], sRGB.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hpcmcodec.errors import InputError
from hpcmcodec.training.config import MIN_SIDE

MS_SSIM_WEIGHT = 1280  # CompressAI's lambdas for MS-SSIM are 1222 to 1340 times those for MSE of the same rate
VISUAL_WEIGHT = 1300  # at which it is as large as MS-SSIM's term, in the middle of JPEGs of photographs

_SCALES = 5
_SIGMA, _RADIUS = 1.5, 5
_STABILISER = 0.0009  # SSIM's C2 for samples in [0, 1]
# Cones' responses to linear RGB and what is added before the cube root, as in JPEG XL's XYB (ISO/IEC 18181-1).
_CONES = ((0.30, 0.622, 0.078), (0.23, 0.692, 0.078), (0.24342268924547819, 0.20476744424496821, 0.5518098665095536))
_BIAS = 0.0037930732552754493
# Red-green, light and blue are scaled so that each spans about the unit interval.
_SPANS = (14.0, 1.0, 1.0)


@dataclass(frozen=True)
class Distortion:
    """kind: one of `config.DISTORTIONS`; share: of what is not MSE, in "mixed" and "visual"."""

    kind: str = "mse"
    share: float = 0.5

    def __call__(self, x_hat: Tensor, x: Tensor, lambdas: Tensor) -> Tensor:
        """Distortion (B,) of x_hat, times lambdas (B,) and hence in bits per pixel."""
        share = {"mse": 0.0, "ms-ssim": 1.0}.get(self.kind, self.share)
        total = torch.zeros_like(lambdas)
        if share < 1:
            total = total + (1 - share) * 255**2 * (x_hat - x).square().flatten(1).mean(1)
        if share > 0 and self.kind == "visual":
            total = total + share * VISUAL_WEIGHT * visual(x_hat, x)
        elif share > 0:
            total = total + share * MS_SSIM_WEIGHT * (1 - ms_ssim(x_hat, x))
        return lambdas * total

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
        total = total + _structure(opponent(light_hat), opponent(light))
    return total / _SCALES


def linear(x: Tensor) -> Tensor:
    """Linear light of sRGB samples (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def opponent(light: Tensor) -> Tensor:
    """Red-green, light and blue (B, 3, H, W) of linear RGB, by cube roots of cones' responses."""
    cones = torch.einsum("ij,bjhw->bihw", light.new_tensor(_CONES), light)
    red, green, blue = ((cones + _BIAS) ** (1 / 3) - _BIAS ** (1 / 3)).unbind(1)
    planes = torch.stack(((red - green) / 2, (red + green) / 2, blue - (red + green) / 2), 1)
    return planes * planes.new_tensor(_SPANS)[:, None, None]


def _structure(x_hat: Tensor, x: Tensor) -> Tensor:
    """(B,) of planes (B, 3, H, W): one less structural similarity, and the difference of edges; means over all."""
    mean, mean_hat = _blurred(x), _blurred(x_hat)
    variance = _blurred(x * x) - mean**2
    variance_hat = _blurred(x_hat * x_hat) - mean_hat**2
    covariance = _blurred(x * x_hat) - mean * mean_hat
    similar = (2 * covariance + _STABILISER) / (variance + variance_hat + _STABILISER)
    structure = 1 - similar * (1 - (mean - mean_hat) ** 2)
    inner = slice(_RADIUS, -_RADIUS)
    edge = (x[..., inner, inner] - mean).abs()
    edge_hat = (x_hat[..., inner, inner] - mean_hat).abs()
    return (structure + (edge_hat - edge).abs()).flatten(1).mean(1)


def _blurred(x: Tensor) -> Tensor:
    """Means in Gaussian windows of 11 pixels, where they fit."""
    at = torch.arange(-_RADIUS, _RADIUS + 1, device=x.device, dtype=x.dtype)
    window = torch.exp(-(at**2) / (2 * _SIGMA**2))
    window = (window / window.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(x, window[:, :, :, None], groups=x.shape[1])
    return F.conv2d(x, window[:, :, None, :], groups=x.shape[1])
