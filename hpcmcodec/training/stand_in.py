"""Stage A's context: a causal 5x5 convolution that stands in for the progressive one while the transforms learn.

It sees the rounded latents above and to the left of each position (D. Minnen, J. Balle, G. Toderici, "Joint
autoregressive and hierarchical priors for learned image compression", 2018) beside the features of h_s. It trains in
one pass instead of eleven coding steps, and gives the transforms gradients that are close to the real context's.

A decoder could follow it. y is rounded around first means that h_s alone gives; the stand-in sees these rounded values,
and its own means and levels say how likely each of them is. If it saw y rounded in any other way, the transforms would
learn to hide information in the difference, which no bits pay for.

The transforms start as the best linear ones: g_a keeps the principal axes of 16x16 patches, g_s is its inverse, and
every block is the identity. The codec thus begins as a transform coder and learns from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcmcodec.exact.constants import LEVELS
from hpcmcodec.model.config import Config
from hpcmcodec.model.context import hyper_synthesis
from hpcmcodec.model.float_members import bounded
from hpcmcodec.model.float_ops import FloatOps
from hpcmcodec.model.hpcm import Estimator, logistic_likelihood, scale_of, ste_round
from hpcmcodec.model.parameters import FIRST_LEVEL, LEVELS_PER_NEPER
from hpcmcodec.model.transforms import SLOPE, Block


class _Causal(nn.Conv2d):
    """A 5x5 convolution (B, C, H, W) that sees only the positions before its own in raster order."""

    mask: Tensor

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 5, padding=2)
        before = torch.arange(25).reshape(1, 1, 5, 5) < 12
        self.register_buffer("mask", before.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=2)


class StandIn(Estimator):
    """The model with the stand-in context. Of the entropy path it has only h_s."""

    def __init__(self, config: Config, grids: Mapping[str, int] | None = None) -> None:
        super().__init__(config, grids)
        self.layers = {k: v for k, v in self.layers.items() if k.startswith("h_s.")}
        self.raw = nn.ParameterDict({k: v for k, v in self.raw.items() if k.startswith("h_s/")})
        self.grids = {k: v for k, v in self.grids.items() if k.startswith("h_s.")}
        m, narrow = config.latent, max(4, 3 * config.latent // 10)
        hidden, head = nn.Conv2d(config.features + 2 * narrow, 4 * narrow, 1), nn.Conv2d(4 * narrow, 2 * m, 1)
        nn.init.normal_(head.weight, std=0.3 / (4 * narrow) ** 0.5)
        nn.init.constant_(head.get_parameter("bias"), 0)
        self.stand_in = nn.ModuleDict(
            {
                "first": nn.Conv2d(config.features, m, 1),
                "inp": nn.Conv2d(m, narrow, 1),
                "causal": _Causal(narrow, 2 * narrow),
                "hidden": hidden,
                "head": head,
            }
        )

    def estimate(
        self, y: Tensor, z: Tensor, q: Tensor, *, ops: FloatOps | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As Estimator.estimate."""
        x = hyper_synthesis(ops or self.ops(), self.config, ste_round(z), q).x[:, : y.shape[1], : y.shape[2]]
        features, y = x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)
        with torch.autocast(y.device.type, enabled=False):  # means reach hundreds, too coarse in bfloat16
            first = self.stand_in["first"](features.float())
        values = ste_round(y - first) + first
        seen = self.stand_in["causal"](self.stand_in["inp"](values))
        hidden = F.leaky_relu(self.stand_in["hidden"](torch.cat([features, seen], 1)), SLOPE)
        with torch.autocast(y.device.type, enabled=False):
            means, log_scales = self.stand_in["head"](hidden.float()).chunk(2, 1)
        levels = bounded(FIRST_LEVEL + LEVELS_PER_NEPER * log_scales, 0, LEVELS - 1)
        likelihood = logistic_likelihood(self.quantity(y - first, values - first) + first - means, levels)
        z_likelihood = self.z_prior.likelihood(self.quantity(z, z.round()))
        around = values - means
        y_hat = values + (centre_of_mass(around, levels) - around).detach()
        return y_hat.permute(0, 2, 3, 1), {"y": likelihood.flatten(1), "z": z_likelihood.flatten(1)}


def centre_of_mass(v: Tensor, levels: Tensor) -> Tensor:
    """The centre of mass, within the unit bin around each v, of a zero-mean logistic of the level's spread (float32).

    v and levels have one shape, which the result has too. It does the same as `entropy.centroids`, for bins that lie
    anywhere. Far out, where a bin's mass is too small for float32, the result is the end of the bin nearer to 0.
    """
    scale = scale_of(levels)
    a, b = (v.abs() - 0.5) / scale, (v.abs() + 0.5) / scale
    above, below = torch.sigmoid(-a), torch.sigmoid(-b)
    mean = scale * (a * above - b * below + F.softplus(-a) - F.softplus(-b)) / (above - below)
    nearer = v.abs() - 0.5
    return v.sign() * torch.where(above > 1e-30, mean, nearer).clamp(nearer, nearer + 1)


@torch.no_grad()
def start_from_principal_axes(model: Estimator, patches: Tensor) -> None:
    """Give the transforms the best linear ones for patches (N, 3, 16, 16) in [0, 1] as first values.

    Raises ValueError where the widths of g_a and g_s differ.
    """
    g_a, g_s = model.g_a, model.g_s

    def axes(v: Tensor, keep: int) -> Tensor:
        """The first principal axes (keep, C) of samples (N, C), by falling variance."""
        _, vectors = torch.linalg.eigh((v.T @ v / len(v)).double())
        return vectors.flip(1).T[:keep].float()

    v = g_a.unshuffle(patches - 0.5)
    first = axes(v.permute(0, 2, 3, 1).flatten(0, 2), g_a.stem.out_channels)
    v = F.pixel_unshuffle(F.conv2d(v, first[:, :, None, None]), 2).flatten(1)
    second = axes(v, g_a.out.in_channels)
    starts: list[tuple[Any, Tensor]] = [
        (g_a.stem, first),
        (g_a.down[1], second),
        (g_a.out, torch.eye(g_a.out.out_channels, len(second))),
        (g_s.inp, torch.eye(g_s.inp.out_channels, g_s.inp.in_channels)),
        (g_s.up[0], second.T),
        (g_s.head, first.T),
    ]
    for conv, w in starts:
        if conv.weight.shape[:2] != w.shape:
            raise ValueError(f"analysis and synthesis of {model.config.name} differ in width: axes do not fit both")
        conv.weight.copy_(w[:, :, None, None])
        conv.bias.zero_()
    for block in model.modules():
        if isinstance(block, Block):
            block.down.weight.zero_()
            torch.nn.init.zeros_(block.down.bias)  # type: ignore[arg-type]
            block.dw.weight.mul_(0.3)  # near the identity in space
            block.dw.weight[:, 0, 1, 1] += 1
