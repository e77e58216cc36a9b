"""The transforms of the paper's members as torch modules (NCHW): g_a, g_s and h_a, built from partial convolutions.

    g_a  4x4 down, 2 blocks, 2x2 down, 2 blocks, 2x2 down, `deep_blocks`, 2x2 down to M        x in [0, 1]
    g_s  the reverse, with transposed convolutions                                              x_hat, not clamped
    h_a  block, 2x2 down, 3 blocks, 2x2 down

A block is x + [3x3 on the first quarter of the channels -> 1x1 to 4 C -> LeakyReLU -> 1x1] (PConvRB). This is ordinary
floating point; the synthesis that decoders run is `family.synthesis`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcmcodec.model.config import Config
from hpcmcodec.model.family.blocks import SLOPE


class PConvBlock(nn.Module):
    """x (B, C, H, W) plus its branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.conv = nn.Conv2d(quarter, quarter, 3, padding=1)
        self.up = nn.Conv2d(channels, 4 * channels, 1)
        self.down = nn.Conv2d(4 * channels, channels, 1)
        with torch.no_grad():
            self.down.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        quarter = self.conv.in_channels
        inside = torch.cat([self.conv(x[:, :quarter]), x[:, quarter:]], 1)
        out: Tensor = x + self.down(F.leaky_relu(self.up(inside), SLOPE))
        return out


def _blocks(channels: int, n: int) -> list[nn.Module]:
    return [PConvBlock(channels) for _ in range(n)]


def analysis(c: Config) -> nn.Sequential:
    """g_a: x (B, 3, 16 h, 16 w) in [0, 1] -> y (B, M, h, w)."""
    c2, c4, c8 = c.transform_widths
    return nn.Sequential(
        nn.Conv2d(3, c2, 4, 2, 1),
        *_blocks(c2, 2),
        nn.Conv2d(c2, c4, 2, 2),
        *_blocks(c4, 2),
        nn.Conv2d(c4, c8, 2, 2),
        *_blocks(c8, c.deep_blocks),
        nn.Conv2d(c8, c.latent, 2, 2),
    )


def synthesis(c: Config) -> nn.Sequential:
    """g_s: y_hat (B, M, h, w) -> x_hat (B, 3, 16 h, 16 w), not clamped to [0, 1]."""
    c2, c4, c8 = c.transform_widths
    return nn.Sequential(
        nn.ConvTranspose2d(c.latent, c8, 2, 2),
        *_blocks(c8, c.deep_blocks),
        nn.ConvTranspose2d(c8, c4, 2, 2),
        *_blocks(c4, 2),
        nn.ConvTranspose2d(c4, c2, 2, 2),
        *_blocks(c2, 2),
        nn.ConvTranspose2d(c2, 3, 4, 2, 1),
    )


class HyperAnalysis(nn.Module):
    """h_a: y (B, M, h, w) -> z (B, N, ceil(h / 4), ceil(w / 4)).

    The last row and column of y are repeated until h and w are multiples of 4.
    """

    def __init__(self, c: Config) -> None:
        m, n = c.latent, c.hyper
        super().__init__()
        self.net = nn.Sequential(PConvBlock(m), nn.Conv2d(m, n, 2, 2), *_blocks(n, 3), nn.Conv2d(n, n, 2, 2))

    def forward(self, y: Tensor) -> Tensor:
        y = F.pad(y, (0, -y.shape[3] % 4, 0, -y.shape[2] % 4), mode="replicate")
        z: Tensor = self.net(y)
        return z
