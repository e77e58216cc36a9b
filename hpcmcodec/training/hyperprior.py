"""Stage A of the paper's members: latents whose means and scales come from h_s alone, and where transforms start.

h_s gives scales and means of every latent; the later stages' context begins with them as its first carry. So what stage
A learns is taken over whole.

The transforms start as the best linear ones, level by level: each convolution of g_a keeps the principal axes of its
input's 2 x 2 neighbours (of the 4 x 4 taps that the first one has, those in the middle), g_s is its inverse, and every
block is the identity. The latents are scaled so that steps of one are the best for the lambda at high rates.

The context starts by passing on what h_s says (`pass_on`), so that a member's rate begins where stage A's ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcmcodec.exact.constants import SCALES_MAX, SCALES_MIN
from hpcmcodec.exact.layers import Linear
from hpcmcodec.model.config import Config
from hpcmcodec.model.family.flow import CARRY, hyper_synthesis
from hpcmcodec.model.family.gaussian import DEVIATION
from hpcmcodec.model.family.model import PARAMETERS, Member, OfOneLambda
from hpcmcodec.model.family.transforms import PConvBlock
from hpcmcodec.model.float_members import bounded
from hpcmcodec.model.float_ops import FloatOps
from hpcmcodec.model.hpcm import ste_round
from hpcmcodec.model.parameters import raw_name
from hpcmcodec.training.grow import CLOSED

BRANCH = 0.02  # times the usual size of the weights with which branches of the context begin
SPARE = 0.1  # size of the weights of channels that no axis is left for
OFFSET = 0.5  # the middle of pixels' range


class Hyperprior(OfOneLambda):
    """A member without its context: of the entropy path it has only h_s."""

    def __init__(self, config: Config, grids: Mapping[str, int] | None = None) -> None:
        super().__init__(config, grids)
        self.layers = {k: v for k, v in self.layers.items() if k.startswith("h_s.")}
        self.raw = nn.ParameterDict({k: v for k, v in self.raw.items() if k.startswith("h_s/")})
        self.grids = {k: v for k, v in self.grids.items() if k.startswith("h_s.") or k == CARRY}

    def estimate(
        self, y: Tensor, z: Tensor, q: Tensor, *, ops: FloatOps | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As Estimator.estimate."""
        x = hyper_synthesis(ops or self.ops(), self.config, ste_round(z), q).x[:, : y.shape[1], : y.shape[2]]
        with torch.autocast(y.device.type, enabled=False):
            scales, means = x.float().chunk(2, -1)
        scales = bounded(scales, SCALES_MIN, SCALES_MAX)
        residuals = y - means
        symbols = self.symbols(residuals, scales)
        likelihood = self.likelihood(self.quantity(residuals, symbols), scales)
        z_likelihood = self.z_prior.likelihood(self.quantity(z, z.round()))
        y_hat = self.reconstruct(residuals, symbols, scales) + means
        return y_hat, {"y": likelihood.flatten(1), "z": z_likelihood.flatten(1)}


@torch.no_grad()
def start_from_principal_axes(model: OfOneLambda, patches: Tensor) -> None:
    """Give transforms and h_s first values for patches (N, 3, 16, 16) in [0, 1]: see above."""
    downs = [m for m in model.g_a if not isinstance(m, PConvBlock)]
    ups = [m for m in model.g_s if not isinstance(m, PConvBlock)][::-1]
    x = patches - OFFSET
    for i, (down, up) in enumerate(zip(downs, ups, strict=True)):
        axes = _axes(F.pixel_unshuffle(x, 2), down.out_channels)  # (out, 4 C): channel, then row and column
        w = axes.reshape(len(axes), -1, 2, 2)
        x = F.conv2d(x, w, stride=2)
        known = min(len(axes), axes.shape[1])
        for conv, kernel in ((down, w), (up, torch.cat([w[:known], 0 * w[known:]]))):
            conv.weight.zero_()
            at = slice(1, 3) if i == 0 else slice(0, 2)
            conv.weight[:, :, at, at] = kernel
            conv.bias.zero_()
    downs[0].bias.copy_(-OFFSET * downs[0].weight.sum((1, 2, 3)))
    ups[0].bias.fill_(OFFSET)
    step = math.sqrt(18 / (math.log(2) * model.config.fixed_lambda * 255**2))
    downs[-1].weight.div_(step)
    ups[-1].weight.mul_(step)
    for block in (*model.g_a, *model.g_s):
        if isinstance(block, PConvBlock):
            block.down.weight.zero_()
            nn.init.zeros_(block.down.get_parameter("bias"))
    y = (x / step).transpose(0, 1).flatten(1)
    scales = (y.std(1) / DEVIATION).clamp(SCALES_MIN, SCALES_MAX)
    model.raw[PARAMETERS].copy_(torch.cat([scales, y.mean(1)]))
    model.raw["h_s/4/weight"].mul_(0.1)  # at first it is these that say most


@torch.no_grad()
def pass_on(model: Member) -> None:
    """Let the context begin with what h_s says of every latent, to which its branches add little.

    Ten coding steps follow each other, each on what the one before it made of scales and means, whose sizes differ by
    hundreds between channels. What random first values add would grow from step to step beyond all latents.
    """
    for layer in model.layers.values():
        if not isinstance(layer, Linear) or layer.name.startswith("h_s."):
            continue
        weight = model.raw[raw_name(layer, "weight")]
        if layer.start in ("same", "mean"):
            weight.copy_(torch.eye(*weight.shape))
        elif layer.start == "small" or layer.branch or layer.name.endswith(".cell.v"):
            weight.mul_(BRANCH)
        elif layer.name.endswith(".gate"):
            weight.zero_()
            model.raw[raw_name(layer, "bias")].fill_(CLOSED)


def _axes(v: Tensor, keep: int) -> Tensor:
    """The first principal axes (keep, C) of v (N, C, H, W), by falling variance; beyond C, small random vectors."""
    samples = v.transpose(0, 1).flatten(1)
    _, vectors = torch.linalg.eigh((samples @ samples.T / samples.shape[1]).double())
    axes = vectors.flip(1).T[:keep].float()
    return torch.cat([axes, SPARE * torch.randn(keep - len(axes), axes.shape[1]) / math.sqrt(axes.shape[1])])
