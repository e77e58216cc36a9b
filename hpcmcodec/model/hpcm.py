"""The model as a torch module: raw parameters, training's forward pass, and CompressAI's interface.

            x --g_a, gain(q)--> y --h_a--> z --Q--> h_s, eleven steps (`context.walk`) --> means, scales --> y_hat
            x_hat <--g_s-- ungain(q) <-----------------------------------------------------------------------+

The entropy path consists of no torch modules. `raw` is a flat dictionary of parameters of the layers that
`declaration.declare` finds. `derived()` merges them (`model.parameters`) into the tensors that float operations, fake
quantisation and export all read.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hpcmcodec.exact.constants import FIXED_GRIDS, LEVELS, MEAN_SHIFT
from hpcmcodec.exact.layers import quantise
from hpcmcodec.exact.namespaces import TorchNamespace
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.exact.schedule import SCALES, Step, decimate, grid
from hpcmcodec.model import parameters
from hpcmcodec.model.coder import LatentCoder, thresholds
from hpcmcodec.model.config import Config, lmbda
from hpcmcodec.model.context import hyper_synthesis, walk
from hpcmcodec.model.declaration import declare, declare_synthesis
from hpcmcodec.model.distortion import Distortion
from hpcmcodec.model.entropy import (
    LEVEL_OF_ONE,
    LEVELS_PER_OCTAVE,
    Z_BANDS,
    centroids,
    factorised_tables,
    grids_at,
    logistic_tables,
)
from hpcmcodec.model.float_members import bounded
from hpcmcodec.model.float_ops import FakeOps, FloatOps
from hpcmcodec.model.parameters import FIRST_LEVEL, LEVELS_PER_NEPER
from hpcmcodec.model.transforms import Analysis, HyperAnalysis, QScale, Synthesis
from hpcmcodec.quality import Quality
from hpcmcodec.rans import Tables

DEFAULT_GRID = 9
Z_REACH = 40  # values of z within +-Z_REACH have table entries of their own;
Z_EDGES = np.arange(-Z_REACH, Z_REACH + 2) - 0.5  # the borders between those values


class FactorisedPrior(nn.Module):
    """The distribution of z: a mixture of three logistics per channel, a small form of the fully factorised prior
    (Balle et al. 2018).
    """

    def __init__(self, channels: int, components: int = 3) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.randn(channels, components))
        self.ls = nn.Parameter(torch.ones(channels, components))
        self.w = nn.Parameter(torch.zeros(channels, components))

    def cdf(self, x: Tensor) -> Tensor:
        """The cumulative probability at x (..., N), under each channel's own distribution: (..., N)."""
        s = F.softplus(self.ls) + 0.05
        out: Tensor = (torch.sigmoid((x.unsqueeze(-1) - self.mu) / s) * self.w.softmax(1)).sum(-1)
        return out

    def likelihood(self, z: Tensor) -> Tensor:
        return (self.cdf(z + 0.5) - self.cdf(z - 0.5)).clamp_min(1e-9)


def scale_of(levels: Tensor) -> Tensor:
    """`entropy.scale_of_level` for tensors of levels, which need not be integers."""
    return torch.exp2((levels - LEVEL_OF_ONE) / LEVELS_PER_OCTAVE)


def logistic_likelihood(v: Tensor, levels: Tensor) -> Tensor:
    """The probability of v - 0.5 to v + 0.5 under a logistic of mean 0 and the level's spread, elementwise; float32."""
    scale = scale_of(levels)
    v = v.abs()
    return (torch.sigmoid((0.5 - v) / scale) - torch.sigmoid((-0.5 - v) / scale)).clamp_min(1e-9)


def ste_round(x: Tensor) -> Tensor:
    """round(x), with the gradient of x (straight-through)."""
    return x + (x.round() - x).detach()


class Estimator(nn.Module, ABC):
    """A model that can be trained and can estimate bits: transforms, gains, prior of z, and the entropy path's layers.

    grids: exponents by grid name, for those grids that differ from the defaults.
    """

    def __init__(self, config: Config, grids: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.config = config
        self.layers, names = declare(config)
        names += declare_synthesis(config)[1]
        known = FIXED_GRIDS | dict(self.first_grids)
        self.grids: dict[str, int] = {n: known.get(n, DEFAULT_GRID) for n in names} | dict(grids or {})
        self.build()
        self.raw = nn.ParameterDict()
        for layer in self.layers.values():
            for name, value in parameters.first_values(layer).items():
                self.raw[name] = nn.Parameter(value)

    first_grids: Mapping[str, int] = {}  # exponents that training starts with, where they are not DEFAULT_GRID
    recompute = False  # whether spatial priors and cells run again in the backward pass: less memory, more time

    def build(self) -> None:
        """Makes what is no layer of the flow: transforms, gains, the prior of z."""
        config = self.config
        self.g_a: Any = Analysis(config)
        self.g_s: Any = Synthesis(config)
        self.h_a: Any = HyperAnalysis(config)
        self.gain, self.ungain = QScale(config.qualities, config.latent), QScale(config.qualities, config.latent)
        with torch.no_grad():
            anchors = torch.linspace(0, 1, config.qualities)
            log_gain = (0.5 * torch.log(lmbda(anchors) / lmbda(torch.tensor(0.5))) + math.log(4.0))[:, None]
            self.gain.log_scale.add_(log_gain)
            self.ungain.log_scale.sub_(log_gain)
        self.z_prior: Any = FactorisedPrior(config.hyper)
        self.register_buffer("centroids", torch.from_numpy(centroids()), persistent=False)
        least = thresholds(Tables(**logistic_tables()), centroids())
        self.register_buffer("thresholds", torch.from_numpy(least), persistent=False)

    centroids: Tensor
    thresholds: Tensor

    def derived(self) -> dict[str, Tensor]:
        """The derived tensors of all layers, named `<layer>.<tensor>`, which operations and `layers.quantise` read."""
        raw = dict(self.raw.items())
        return {k: v for layer in self.layers.values() for k, v in parameters.derived(layer, raw).items()}

    def integers(self, derived: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """The stored tensors (numpy) that coding with the present parameters would use."""
        p = self.derived() if derived is None else derived
        arrays = {k: v.detach().float().cpu().numpy() for k, v in p.items()}
        return quantise(self.layers.values(), arrays, self.grids, self.config.precision)

    def ops(self, *, fake_at: Tensor | None = None) -> FloatOps:
        """Float operations, or operations under fake quantisation at the qualities `fake_at` (B,) in [0, 1].

        A batch has one set of grids: those of its best quality, which are the coarsest.
        """
        p = self.derived()
        if fake_at is not None:
            grids = grids_at(self.grids, Quality.of_unit(float(fake_at.max())))
            return FakeOps(p, grids, self.integers(p), recompute=self.recompute, precision=self.config.precision)
        return FloatOps(p, self.grids, recompute=self.recompute, precision=self.config.precision)

    def analyse(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, 16 h, 16 w) in [0, 1] at the qualities q (B,) -> y after the gain (B, h, w, M), in quantisation
        steps, and z before rounding (B, ceil(h/4), ceil(w/4), N).
        """
        y = self.latents(x, q)
        return rearrange(y, "b m h w -> b h w m"), self.hyper_latents(y)

    def latents(self, x: Tensor, q: Tensor) -> Tensor:
        """The y of `analyse`, (B, M, h, w)."""
        y: Tensor = self.g_a(x, self.g_a.s8.factors(q)).float() * self.gain.factors(q)
        return y

    def hyper_latents(self, y: Tensor) -> Tensor:
        """The z of `analyse` from its y (B, M, h, w)."""
        return rearrange(self.h_a(y).float(), "b n h w -> b h w n")

    def lambdas(self, q: Tensor) -> Tensor:
        """The lambda of each sample, (B,)."""
        return lmbda(q)

    def synthesise(self, y_hat: Tensor, q: Tensor) -> Tensor:
        """y_hat (B, h, w, M) in quantisation steps -> x_hat (B, 3, 16 h, 16 w), not clamped."""
        y = rearrange(y_hat, "b h w m -> b m h w") * self.ungain.factors(q)
        x_hat: Tensor = self.g_s(y, self.g_s.s8.factors(q)).float()
        return x_hat

    def error_gradient(self, y_hat: Tensor, x: Tensor, weight: Tensor, q: Tensor) -> Tensor:
        """`Synthesis.error_gradient` at y_hat (B, h, w, M) in quantisation steps."""
        ungain = self.ungain.factors(q)
        y = rearrange(y_hat, "b h w m -> b m h w") * ungain
        g = self.g_s.error_gradient(y, self.g_s.s8.factors(q), x, weight, Distortion.of(self.config).slope)
        return rearrange(g * ungain, "b m h w -> b h w m")

    def symbols(self, residuals: Tensor, levels: Tensor) -> Tensor:
        """The encoder's symbols: residuals rounded, or the next integer towards zero (`coder.thresholds`)."""
        with torch.no_grad():
            v = torch.nan_to_num(residuals)
            n = v.abs().round()
            column = n.clamp(max=self.thresholds.shape[1] - 1).long()
            return (n - (v.abs() < self.thresholds[_index(levels), column]).to(n.dtype)) * v.sign()

    def likelihood(self, v: Tensor, levels: Tensor) -> Tensor:
        """The probabilities of residuals v - 0.5 to v + 0.5, elementwise."""
        return logistic_likelihood(v, levels)

    def quantity(self, v: Tensor, coded: Tensor) -> Tensor:
        """The values whose probabilities give the bits: v plus uniform noise in training, else `coded`."""
        return v + torch.rand_like(v) - 0.5 if self.training else coded

    def reconstruct(self, residuals: Tensor, symbols: Tensor, levels: Tensor) -> Tensor:
        """The decoded residuals: the centres of mass of their symbols' bins, with the residuals' gradient."""
        with torch.no_grad():
            nearer = self.centroids[_index(levels), symbols.abs().clamp(max=2).long()] * symbols.sign()
            change = symbols - nearer * 2.0**-MEAN_SHIFT - residuals
        return residuals + change

    @abstractmethod
    def estimate(
        self, y: Tensor, z: Tensor, q: Tensor, *, ops: FloatOps | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """y_hat (B, h, w, M) in quantisation steps, and likelihoods {"y": (B, n), "z": (B, m)}, flat, in coding order.

        y (B, h, w, M), z (B, ceil(h/4), ceil(w/4), N), q (B,). In training mode, likelihoods are taken of the residuals
        plus uniform noise; y_hat always has the values of coding, with the gradient of the residuals.
        """

    def forward(self, x: Tensor, q: Tensor, *, fake: bool = False) -> dict[str, Any]:
        """x (B, 3, H, W) in [0, 1], H and W multiples of 16; q (B,) in [0, 1].

        Returns {"x_hat": (B, 3, H, W), "likelihoods": {"y", "z"}} as CompressAI's models do, but with flat
        likelihoods (B, n).
        """
        y, z = self.analyse(x, q)
        y_hat, likelihoods = self.estimate(y, z, q, ops=self.ops(fake_at=q if fake else None))
        return {"x_hat": self.synthesise(y_hat, q), "likelihoods": likelihoods}


class HPCM(Estimator):
    """A member of the family, built from its config. It codes as well as estimates."""

    # A shipped model's stored tensors ("entropy") and tables ("tables"), with which files are coded.
    stored: dict[str, Any] | None = None

    def estimate(
        self, y: Tensor, z: Tensor, q: Tensor, *, ops: FloatOps | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As Estimator.estimate."""
        ops = ops or self.ops()
        parts: list[Tensor] = []
        scales: dict[str, Tensor] = {}

        def code(step: Step, means: Tensor, levels: Tensor, mask: Any) -> Tensor:
            if step.scale not in scales:
                scales[step.scale] = decimate(
                    y, step.scale, y.new_zeros(y.shape[0], *grid(step.scale, *y.shape[1:3]), y.shape[3])
                )
            r = ops.fold(scales[step.scale], step) - means
            symbols = self.symbols(r, levels)
            likelihood = self.likelihood(self.quantity(r, symbols), levels)
            y_hat = self.reconstruct(r, symbols, levels) + means
            if mask is not None:
                keep = torch.from_numpy(mask).to(y.device)
                likelihood, y_hat = torch.where(keep, likelihood, torch.ones_like(likelihood)), y_hat * keep
            parts.append(likelihood.flatten(1))
            return y_hat

        likelihood_z = self.z_prior.likelihood(self.quantity(z, z.round())).flatten(1)
        y_hat = walk(ops, self.config, ste_round(z), q, y.shape[1], y.shape[2], code)
        return y_hat, {"y": torch.cat(parts, 1), "z": likelihood_z}

    def coder(self) -> LatentCoder:
        """The coder of latents: with the shipped integers where this model was loaded with them, otherwise with those
        that export would make of the present parameters.
        """
        namespace = TorchNamespace(str(next(self.parameters()).device))
        integers, tables = (self.stored["entropy"], self.stored["tables"]) if self.stored else (None, None)
        ops = ExactOps(namespace, integers or self.integers(), self.grids, self.config.precision)
        return LatentCoder(self.config, ops, tables or self.tables())

    @torch.no_grad()
    def z_cdf(self) -> np.ndarray:
        """The cumulative probabilities of the trained prior at Z_EDGES, float64 (N, number of edges)."""
        edges = torch.from_numpy(Z_EDGES).to(self.z_prior.mu)
        return np.asarray(self.z_prior.cdf(edges[:, None].expand(-1, self.config.hyper)).T.double().cpu().numpy())

    def tables(self) -> dict[str, Any]:
        """The tables of z, from the trained prior, and those of y, from the logistic that training assumes."""
        cdf = np.tile(self.z_cdf(), (Z_BANDS, 1))
        return (
            {f"z.{k}": v for k, v in factorised_tables(cdf, -Z_REACH).items()}
            | {f"y.{k}": v for k, v in logistic_tables().items()}
            | {"y.centroids": self.centroids.cpu().numpy()}
        )

    @torch.no_grad()
    def compress(self, x: Tensor, q: Tensor) -> dict[str, Any]:
        """x (B, 3, H, W) in [0, 1], H and W multiples of 16; q (B,) in [0, 1], rounded to 1/10000.

        Returns {"strings": one list of bytes (B,) for each of z, s1, s2, s3, "shape": (h, w) of y}.
        """
        y, z = (t.cpu().numpy() for t in self.analyse(x, q))
        coder = self.coder()
        coded = [coder.encode(a, b, Quality.of_unit(float(v)))[0] for a, b, v in zip(y, z, q, strict=True)]
        return {"strings": [[c[s].data for c in coded] for s in ("z", *SCALES)], "shape": tuple(y.shape[1:3])}

    @torch.no_grad()
    def decompress(self, strings: Sequence[Sequence[bytes]], shape: tuple[int, int], q: Tensor) -> dict[str, Tensor]:
        """The inverse of `compress`: {"x_hat": (B, 3, 16 h, 16 w) in [0, 1]}. Raises IntegrityError for damaged
        strings.
        """
        coder = self.coder()
        y_hat = [
            coder.decode(dict(zip(("z", *SCALES), s, strict=True)), None, Quality.of_unit(float(v)), *shape)
            for s, v in zip(zip(*strings, strict=True), q, strict=True)
        ]
        steps = torch.stack([torch.from_numpy(v) for v in y_hat]).to(q.device).float() * 2.0**-MEAN_SHIFT
        return {"x_hat": self.synthesise(steps, q).clamp(0, 1)}


def _index(levels: Tensor) -> Tensor:
    """Each level's row in the tables: the nearest integer."""
    return torch.nan_to_num(levels).round().long()


class WithoutContext(Estimator):
    """What the context model is measured against: means and levels from a 1x1 head on h_s alone, all at once."""

    def __init__(self, config: Config, grids: Mapping[str, int] | None = None) -> None:
        super().__init__(config, grids)
        self.head = nn.Linear(config.features, 2 * config.latent)
        nn.init.normal_(self.head.weight, std=0.3 / math.sqrt(config.features))
        with torch.no_grad():
            self.head.weight[config.latent :] /= LEVELS_PER_NEPER
            first = torch.full((config.latent,), FIRST_LEVEL / LEVELS_PER_NEPER)
            self.head.bias.copy_(torch.cat([torch.zeros(config.latent), first]))

    def estimate(
        self, y: Tensor, z: Tensor, q: Tensor, *, ops: FloatOps | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As Estimator.estimate."""
        features = hyper_synthesis(ops or self.ops(), self.config, ste_round(z), q).x[:, : y.shape[1], : y.shape[2]]
        with torch.autocast(y.device.type, enabled=False):
            means, scales = self.head(features.float()).chunk(2, -1)
        r, levels = y - means, bounded(scales * LEVELS_PER_NEPER, 0, LEVELS - 1)
        symbols = self.symbols(r, levels)
        likelihood = logistic_likelihood(self.quantity(r, symbols), levels)
        z_likelihood = self.z_prior.likelihood(self.quantity(z, z.round()))
        return self.reconstruct(r, symbols, levels) + means, {"y": likelihood.flatten(1), "z": z_likelihood.flatten(1)}


def bits(likelihoods: Mapping[str, Tensor]) -> Tensor:
    """The bits of each sample, (B,)."""
    return torch.stack([-torch.log2(v).sum(1) for v in likelihoods.values()]).sum(0)
