"""The paper's members as a torch module, and `model_of`, which makes the module of any config.

`OfOneLambda` is what all models of these members share, `Member` the whole: it has CompressAI's interface, `forward`,
`compress` and `decompress`, with the qualities left out, and needs no `update` after its state is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from hpcmcodec.model.config import Config
from hpcmcodec.model.family import gaussian
from hpcmcodec.model.family.flow import CARRY
from hpcmcodec.model.family.transforms import HyperAnalysis, analysis, synthesis
from hpcmcodec.model.hpcm import HPCM, Estimator

MEANS = "h_s/mean/table"  # the parameter that holds z's means
PARAMETERS = "h_s/5/down/bias"  # the parameter that h_s's scales and then means are around


class OfOneLambda(Estimator):
    """A model with the paper's transforms and distributions, for one lambda: qualities q are taken and mean nothing.

    Residuals and z have generalised Gaussian distributions; symbols are rounded to the nearest and reconstructed as
    they are. What the base class calls levels are scales here.
    """

    first_grids: Mapping[str, int] = {CARRY: 6, "s12.parameters": 6, "s3.parameters": 6}  # scales reach 64

    def __init__(self, config: Config, grids: Mapping[str, int] | None = None) -> None:
        super().__init__(config, grids)
        with torch.no_grad():
            # z begins near its means. If they were zero, so would be all that h_s reads, and its gradient.
            self.raw[MEANS].normal_()
            self.raw[PARAMETERS][: config.latent] = 1  # at the least scale, residuals beyond one have no gradient

    def build(self) -> None:
        self.g_a, self.g_s, self.h_a = analysis(self.config), synthesis(self.config), HyperAnalysis(self.config)
        self.z_prior = gaussian.ScaledPrior(self.config.hyper)

    def latents(self, x: Tensor, q: Tensor) -> Tensor:
        y: Tensor = self.g_a(x).float()
        return y

    def hyper_latents(self, y: Tensor) -> Tensor:
        """z around its means, before rounding."""
        return super().hyper_latents(y) - self.raw[MEANS]

    def lambdas(self, q: Tensor) -> Tensor:
        return torch.full_like(q, self.config.fixed_lambda)

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

    def forward(self, x: Tensor, q: Tensor | None = None, *, fake: bool = False) -> dict[str, Any]:
        """As Estimator.forward, without qualities."""
        return super().forward(x, _anything(x) if q is None else q, fake=fake)


class Member(OfOneLambda, HPCM):
    """A member with the paper's flow."""

    def compress(self, x: Tensor, q: Tensor | None = None) -> dict[str, Any]:
        """As HPCM.compress, without qualities."""
        return super().compress(x, _anything(x) if q is None else q)

    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: tuple[int, int], q: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As HPCM.decompress, without qualities."""
        if q is None:
            q = torch.zeros(len(strings[0]), device=next(self.parameters()).device)
        return super().decompress(strings, shape, q)

    def tables(self) -> dict[str, Any]:
        """The tables of z, one for each channel, and of y, one for each level."""
        z = gaussian.tables_of(self.z_prior.bounded().detach().cpu().double().numpy())
        y = gaussian.level_tables()
        centroids = np.zeros((len(y["sizes"]), 3), np.int32)
        return {f"z.{k}": v for k, v in z.items()} | {f"y.{k}": v for k, v in y.items()} | {"y.centroids": centroids}


def _anything(x: Tensor) -> Tensor:
    """Qualities for samples x, where none have a meaning."""
    return x.new_zeros(len(x))


def model_of(config: Config, grids: Mapping[str, int] | None = None) -> HPCM:
    """The torch module of a member of the family."""
    return (Member if config.flow == "hpcm" else HPCM)(config, grids)
