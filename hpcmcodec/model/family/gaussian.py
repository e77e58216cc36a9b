"""The generalised Gaussian distribution with beta 1.5: likelihoods that train, and the tables of the entropy coder.

The density is proportional to exp(-|x / a|^1.5), with a the scale; its standard deviation is 0.8594 a. The cumulative
probability of x <= 0 is Q(2/3, |x / a|^1.5) / 2, where Q is the regularised upper incomplete gamma function, which
keeps its precision in the tail. (Zhang et al., arXiv 2411.19320, have such a model of latents.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcmcodec.exact.constants import SCALES_MAX, SCALES_MIN
from hpcmcodec.exact.elementary import level_scales
from hpcmcodec.model.entropy import pack_tables, symmetric_table
from hpcmcodec.model.float_members import bounded

BETA = 1.5
DEVIATION = math.sqrt(math.gamma(3 / BETA) / math.gamma(1 / BETA))  # the standard deviation at scale 1
REACH = 5.42691  # half the width of a table, in scales: 1e-6 of the mass is outside
LEAST = 1e-9  # likelihoods are not taken for smaller


class _Tail(torch.autograd.Function):
    """The probability of a value below x <= 0, at scale 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        a = torch.full((), 1 / BETA, dtype=x.dtype, device=x.device)
        return torch.special.gammaincc(a, x.abs() ** BETA) / 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.exp(-(x.abs() ** BETA)) * (BETA / (2 * math.gamma(1 / BETA)))


def _below(x: Tensor) -> Tensor:
    """The cumulative probability at x, at scale 1."""
    tail: Tensor = _Tail.apply(-x.abs())  # type: ignore[no-untyped-call]
    return torch.where(x > 0, 1 - tail, tail)


def likelihood(v: Tensor, scales: Tensor) -> Tensor:
    """The probability of v - 0.5 to v + 0.5 under mean 0 and these scales, elementwise; float32."""
    v = v.abs()
    return bounded(_below((0.5 - v) / scales) - _below((-0.5 - v) / scales), LEAST, 1)


class ScaledPrior(nn.Module):
    """The distribution of z around its means: one scale per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.ones(channels))

    def bounded(self) -> Tensor:
        return bounded(self.scales, SCALES_MIN, SCALES_MAX)

    def likelihood(self, z: Tensor) -> Tensor:
        """Of z (..., N)."""
        return likelihood(z, self.bounded())


def tables_of(scales: np.ndarray) -> dict[str, np.ndarray]:
    """One table for each scale, as `entropy.pack_tables` gives them."""
    rows = []
    for scale in scales:
        reach = math.ceil(REACH * float(scale))
        edges = torch.arange(reach + 1, dtype=torch.float64).add(0.5).div(float(scale))
        a = torch.full((), 1 / BETA, dtype=torch.float64)
        above = (torch.special.gammaincc(a, edges**BETA) / 2).numpy()  # P(v > r + 0.5)
        rows.append(symmetric_table(np.concatenate([1 - 2 * above[:1], 2 * -np.diff(above), 2 * above[-1:]])))
    return pack_tables(rows)


def level_tables() -> dict[str, np.ndarray]:
    """One table for each level."""
    return tables_of(level_scales())
