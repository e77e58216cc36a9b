"""The paper's members as a torch module, and `model_of`, which makes the module of any config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from hpcmcodec.model.config import Config
from hpcmcodec.model.family import gaussian
from hpcmcodec.model.family.flow import CARRY
from hpcmcodec.model.family.transforms import HyperAnalysis, analysis, synthesis
from hpcmcodec.model.hpcm import HPCM

MEANS = "h_s/mean/table"  # the parameter that holds z's means


class Member(HPCM):
    """A member with the paper's flow, trained for one lambda: qualities q are taken and mean nothing.

    Residuals and z have generalised Gaussian distributions; symbols are rounded to the nearest and reconstructed as
    they are. What the base class calls levels are scales here.
    """

    first_grids: Mapping[str, int] = {CARRY: 6, "s12.parameters": 6, "s3.parameters": 6}  # scales reach 64

    def build(self) -> None:
        self.g_a, self.g_s, self.h_a = analysis(self.config), synthesis(self.config), HyperAnalysis(self.config)
        self.z_prior = gaussian.ScaledPrior(self.config.hyper)

    def analyse(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, 16 h, 16 w) in [0, 1] -> y (B, h, w, M) and z around its means, before rounding
        (B, ceil(h/4), ceil(w/4), N).
        """
        y = self.g_a(x).float()
        z = rearrange(self.h_a(y).float(), "b n h w -> b h w n")
        return rearrange(y, "b m h w -> b h w m"), z - self.raw[MEANS]

    def synthesise(self, y_hat: Tensor, q: Tensor) -> Tensor:
        """y_hat (B, h, w, M) -> x_hat (B, 3, 16 h, 16 w), not clamped."""
        x_hat: Tensor = self.g_s(rearrange(y_hat, "b h w m -> b m h w")).float()
        return x_hat

    def likelihood(self, v: Tensor, levels: Tensor) -> Tensor:
        return gaussian.likelihood(v, levels)

    def symbols(self, residuals: Tensor, levels: Tensor) -> Tensor:
        return torch.nan_to_num(residuals.detach()).round()

    def reconstruct(self, residuals: Tensor, symbols: Tensor, levels: Tensor) -> Tensor:
        return residuals + (symbols - residuals).detach()

    def tables(self) -> dict[str, Any]:
        """The tables of z, one for each channel, and of y, one for each level."""
        z = gaussian.tables_of(self.z_prior.bounded().detach().cpu().double().numpy())
        y = gaussian.level_tables()
        centroids = np.zeros((len(y["sizes"]), 3), np.int32)
        return {f"z.{k}": v for k, v in z.items()} | {f"y.{k}": v for k, v in y.items()} | {"y.centroids": centroids}


def model_of(config: Config, grids: Mapping[str, int] | None = None) -> HPCM:
    """The torch module of a member of the family."""
    return (Member if config.flow == "hpcm" else HPCM)(config, grids)
