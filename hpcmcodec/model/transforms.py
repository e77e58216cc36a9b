"""Analysis and synthesis transforms of `lite` (torch, NCHW): g_a, g_s, h_a, and the quality gains.

After a pixel unshuffle of 8, everything runs at 1/8 and 1/16 of the image's resolution. The blocks are a depthwise 3x3
convolution and an inverted bottleneck: CPUs run them at the speed of their matrix products, and 12 megapixels fit into
memory. This is ordinary floating point; nothing here is part of the entropy path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcmcodec.model.config import Config
from hpcmcodec.model.float_ops import interpolate

SLOPE = 0.1
Backward = Callable[[Tensor], Tensor]  # the gradient at a block's output -> the gradient at its input


class QScale(nn.Module):
    """A factor per channel; its logarithm is linear in the quality between the stored qualities (`anchors` of them)."""

    def __init__(self, anchors: int, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(anchors, channels))

    def factors(self, q: Tensor) -> Tensor:
        """The factors at the qualities q (B,) in [0, 1]: (B, C, 1, 1)."""
        return interpolate(self.log_scale, q).exp()[:, :, None, None]


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution outside of blocks, which computes in float32 under autocast too.

    Every value of an image passes through these. bfloat16 would round it to 8 bits, a loss of 0.1 dB at high qualities.
    Blocks only add to the values that they pass on, so bfloat16 in their branches loses nothing.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Block(nn.Module):
    """x + [depthwise 3x3 -> 1x1 to 2 C -> LeakyReLU -> 1x1]; x is (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.up = nn.Conv2d(channels, hidden, 1)
        self.down = nn.Conv2d(hidden, channels, 1)
        nn.init.normal_(self.down.weight, std=0.1 / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(F.leaky_relu(self.up(self.dw(x)), SLOPE))
        return out

    def vjp(self, x: Tensor) -> tuple[Tensor, Backward]:
        """forward(x), and a function for its backward pass, made of operations that exported graphs can hold.

        The backward pass needs only the signs of the hidden values. The forward pass uses the signs too: otherwise
        onnxruntime would compute them as late as the backward pass, and keep the hidden values in memory until then.
        """
        inside = self.up(self.dw(x))
        positive = inside > 0

        def backward(g: Tensor) -> Tensor:
            inner = _transposed(self.down, g)
            inner = _transposed(self.up, torch.where(positive, inner, SLOPE * inner))
            # The kernel turned by 180 degrees. flip() would do this too, but torch's exporter warns of it.
            weight = self.dw.weight
            turned = weight.flatten(2).index_select(2, torch.arange(8, -1, -1, device=weight.device))
            return g + F.conv2d(inner, turned.reshape(weight.shape), padding=1, groups=self.dw.groups)

        return x + self.down(torch.where(positive, inside, SLOPE * inside)), backward


def _transposed(conv: nn.Module, g: Tensor) -> Tensor:
    """g times the transposed matrix of a 1x1 convolution: the gradient at its input from g, the one at its output."""
    weight: Tensor = conv.get_parameter("weight")
    return F.conv2d(g, weight.transpose(0, 1))


def patch_down(c_in: int, c_out: int) -> nn.Sequential:
    """A 2x2 convolution of stride 2, as a pixel unshuffle and a 1x1 convolution."""
    return nn.Sequential(nn.PixelUnshuffle(2), Conv1x1(4 * c_in, c_out))


class Analysis(nn.Module):
    """g_a: x (B, 3, 16 h, 16 w) in [0, 1] -> y (B, M, h, w), before the gain; scale8: `s8.factors(q)`."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        c8, c16 = c.analysis_widths
        self.unshuffle = nn.PixelUnshuffle(8)
        self.stem = Conv1x1(192, c8)
        self.b8 = nn.ModuleList(Block(c8) for _ in range(c.analysis_blocks[0]))
        self.s8 = QScale(c.qualities, c8)
        self.down = patch_down(c8, c16)
        self.b16 = nn.ModuleList(Block(c16) for _ in range(c.analysis_blocks[1]))
        self.out = Conv1x1(c16, c.latent)

    def forward(self, x: Tensor, scale8: Tensor) -> Tensor:
        x = self.stem(self.unshuffle(x - 0.5))
        for b in self.b8:
            x = b(x)
        x = self.down(x * scale8.to(x.dtype))
        for b in self.b16:
            x = b(x)
        y: Tensor = self.out(x)
        return y


class Synthesis(nn.Module):
    """g_s: y_hat (B, M, h, w), after the ungain -> x_hat (B, 3, 16 h, 16 w), not clamped to [0, 1]."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        c8, c16 = c.synthesis_widths
        self.inp = Conv1x1(c.latent, c16)
        self.b16 = nn.ModuleList(Block(c16) for _ in range(c.synthesis_blocks[1]))
        self.up = nn.Sequential(Conv1x1(c16, 4 * c8), nn.PixelShuffle(2))
        self.s8 = QScale(c.qualities, c8)
        self.b8 = nn.ModuleList(Block(c8) for _ in range(c.synthesis_blocks[0]))
        self.head = Conv1x1(c8, 192)
        self.shuffle = nn.PixelShuffle(8)

    def forward(self, y: Tensor, scale8: Tensor) -> Tensor:
        x = self.inp(y)
        for b in self.b16:
            x = b(x)
        x = self.up(x)
        x = x * scale8.to(x.dtype)
        for b in self.b8:
            x = b(x)
        x_hat: Tensor = self.shuffle(self.head(x)) + 0.5
        return x_hat

    def error_gradient(
        self, y: Tensor, scale8: Tensor, x: Tensor, weight: Tensor, slope: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The gradient by y of a distortion of x_hat, which is forward(y, scale8), clamped to [0, 1].

        y and the result (B, M, h, w); x (B, 3, 16 h, 16 w) in [0, 1]; weight (B, 1, 16 h, 16 w). slope: takes x_hat and
        x; times weight, it gives the distortion's gradient by x_hat: `Distortion.slope`. The gradient passes through
        the clamp as if it were not there.
        """
        way_back: list[Backward] = []

        def through(blocks: Iterable[Any], v: Tensor) -> Tensor:
            for b in blocks:
                v, backward = b.vjp(v)
                way_back.append(backward)
            return v

        v = self.up(through(self.b16, self.inp(y))) * scale8
        way_back.append(lambda g: _transposed(self.up[0], F.pixel_unshuffle(g * scale8, 2)))
        x_hat = self.shuffle(self.head(through(self.b8, v))) + 0.5
        g = _transposed(self.head, F.pixel_unshuffle(slope(x_hat.clamp(0, 1), x) * weight, 8))
        for backward in reversed(way_back):
            g = backward(g)
        return _transposed(self.inp, g)


class HyperAnalysis(nn.Module):
    """h_a: y after the gain (B, M, h, w) -> z (B, N, ceil(h / 4), ceil(w / 4)).

    The last row and column of y are repeated until h and w are multiples of 4.
    """

    def __init__(self, c: Config) -> None:
        super().__init__()
        w, n = c.hyper_analysis_width, c.hyper
        self.net = nn.Sequential(Conv1x1(c.latent, w), Block(w), patch_down(w, n), Block(n), patch_down(n, n))

    def forward(self, y: Tensor) -> Tensor:
        y = F.pad(y, (0, -y.shape[3] % 4, 0, -y.shape[2] % 4), mode="replicate")
        z: Tensor = self.net(y)
        return z
