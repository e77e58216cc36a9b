"""What each stage trains: its model, its loss, its validation, and the grids of its activations.

    a   StandIn, or Hyperprior for the paper's members: transforms, gains, hyperprior; rate + distortion
    b   HPCM: hyperprior and context on frozen transforms; rate alone, since distortion does not depend on them
    c   HPCM: everything; rate + distortion

The loss is bpp + lmbda(q) * 255^2 * MSE, or with another distortion than MSE (`distortion`). The qualities q of a batch
are spread evenly over 0 to 1, and the loss of each crop is weighted by (lmbda(q) / lmbda(0.5))^-0.45, so that every
quality learns; the paper's members have one lambda and no weights. A limit bounds the influence of single crops: the
gradient of a dithered crop can be thousands of times that of a photograph.

Throughout, x is (B, 3, H, W) in [0, 1] and q (B,) in [0, 1]. `fast` lets convolutions and matrix products run in
bfloat16, `joint` includes the distortion, `fake` turns fake quantisation on.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hpcmcodec.exact.constants import FIXED_GRIDS, PRECISION, code_max, limit_of
from hpcmcodec.model.config import lmbda
from hpcmcodec.model.distortion import Distortion
from hpcmcodec.model.family.model import Member
from hpcmcodec.model.family.transforms import PConvBlock
from hpcmcodec.model.float_ops import FloatOps
from hpcmcodec.model.hpcm import HPCM, Estimator, WithoutContext, bits
from hpcmcodec.model.transforms import Block
from hpcmcodec.training.config import Recipe
from hpcmcodec.training.hyperprior import Hyperprior
from hpcmcodec.training.optim import part_of
from hpcmcodec.training.stand_in import StandIn

VALIDATION_QUALITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
MSE = Distortion()
ENCODER = ("g_a.", "h_a.", "gain.")
"""The beginnings of the names of what the encoder has alone."""


def build(recipe: Recipe) -> Estimator:
    """The model of a stage, with its first values; what the stage does not train is frozen."""
    run, config = recipe.run, recipe.model_config()
    first, bare, whole = (Hyperprior, Hyperprior, Member) if config.flow == "hpcm" else (StandIn, WithoutContext, HPCM)
    kind: type[Estimator] = first if run.stage == "a" else bare if run.without_context else whole
    model = kind(config)
    if run.stage == "b":
        for name, p in model.named_parameters():
            p.requires_grad_(part_of(name) != "transforms")
    elif run.stage == "d":
        for name, p in model.named_parameters():
            p.requires_grad_(name.startswith(ENCODER))
    return model


def place(model: Estimator, device: torch.device) -> Estimator:
    """Move the model to a device, with convolutions in the channels-last layout, the quickest on CPUs and GPUs."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def recompute_blocks(model: Estimator) -> None:
    """Save memory: the transforms' blocks and the context's priors and cells keep only their inputs for the backward
    pass, which runs them again.
    """
    model.recompute = True
    for block in model.modules():
        if isinstance(block, Block | PConvBlock):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def autocast(device: str, fast: bool) -> Any:
    """A context in which convolutions and matrix products run in bfloat16 where `fast` is set."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=fast)


def rate(model: Estimator, x: Tensor, q: Tensor, fast: bool, *, fake: bool) -> tuple[Tensor, Tensor]:
    """Bits per pixel (B,) of x, and y_hat (B, H/16, W/16, M). g_a runs without gradient where it is frozen."""
    kind, trained = x.device.type, any(p.requires_grad for p in model.g_a.parameters())
    with autocast(kind, fast), torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        y = model.latents(x, q)
    with autocast(kind, fast):
        z = model.hyper_latents(y)
        y_hat, likelihoods = model.estimate(
            rearrange(y, "b m h w -> b h w m"), z, q, ops=model.ops(fake_at=q if fake else None)
        )
    return bits(likelihoods) / (x.shape[2] * x.shape[3]), y_hat


def loss_of(
    model: Estimator,
    x: Tensor,
    q: Tensor,
    fast: bool,
    *,
    joint: bool,
    fake: bool,
    distortion: Distortion = MSE,
    limit: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The weighted training loss, a scalar, and the unweighted bpp (B,). limit: see `limited`; 0 for none."""
    bpp, y_hat = rate(model, x, q, fast, fake=fake)
    cost = bpp
    if joint:
        with autocast(x.device.type, fast):
            x_hat = model.synthesise(y_hat, q)
        cost = bpp + distortion(x_hat, x, model.lambdas(q))
    if model.config.qualities:
        cost = (lmbda(q) / lmbda(torch.tensor(0.5))) ** -0.45 * cost
    return (limited(cost, limit) if limit else cost).mean(), bpp.detach()


def limited(cost: Tensor, limit: float) -> Tensor:
    """Losses (B,), those above the limit L as L (1 + ln(loss / L)), which scales their gradients by L / loss."""
    return torch.where(cost <= limit, cost, limit * (1 + (cost.clamp(min=limit) / limit).log()))


@torch.no_grad()
def validate(
    model: Estimator, images: list[Tensor], fast: bool, *, joint: bool, distortion: Distortion = MSE
) -> list[list[float]]:
    """A row for each validation quality: q, mean bpp, and with `joint` mean PSNR in dB and mean loss, unweighted.

    A member of one lambda has one row, whose q is 0.
    """
    model.eval()
    rows = []
    for quality in VALIDATION_QUALITIES if model.config.qualities else (0.0,):
        bpps, psnrs, losses = [], [], []
        for x in images:
            q = torch.full((1,), quality, device=x.device)
            bpp, y_hat = rate(model, x, q, fast, fake=False)
            bpps.append(bpp.item())
            if joint:
                with autocast(x.device.type, fast):
                    x_hat = model.synthesise(y_hat, q)
                psnrs.append(-10 * math.log10((x_hat - x).square().mean().item()))
                losses.append(bpp.item() + distortion(x_hat, x, model.lambdas(q)).item())
        rows.append([quality] + [round(sum(v) / len(v), 5) for v in (bpps, psnrs, losses) if v])
    model.train()
    return rows


@torch.no_grad()
def peaks(model: Estimator, x: Tensor, q: Tensor, fast: bool, share: float) -> dict[str, float]:
    """For each grid, the magnitude within which `share` of its values stay, on the images x.

    The clamps stay in place meanwhile, since the network may depend on them.
    """
    seen: dict[str, float] = {}

    def observe(grid: str, values: Tensor) -> None:
        v = values.float().abs().flatten()
        k = max(1, int(len(v) * share))
        v = v.clamp(max=limit_of(grid, model.config.precision) * 2.0 ** -model.grids[grid])
        seen[grid] = max(seen.get(grid, 0.0), v.kthvalue(k).values.item())

    ops = FloatOps(model.derived(), model.grids, observe, precision=model.config.precision)
    with autocast(x.device.type, fast):
        y, z = model.analyse(x, q)
        model.estimate(y, z, q, ops=ops)
    return seen


def room(peak: float, within: float, precision: int = PRECISION) -> float:
    """The exponent, with its fraction, at which a magnitude is `within` (0 to 1) of the clamp; below the precision."""
    return min(precision - 1.0, math.log2(within * code_max(precision) / max(peak, 1e-3)))


def calibrate(model: Estimator, x: Tensor, q: Tensor, fast: bool) -> dict[str, int]:
    """Exponents by grid, from the spread of the activations on x: the largest e with 99.99% of the values within half
    the clamp.

    A call widens a grid that saturates by one bit at most. Grids whose meaning is fixed (sigmoid, exp, y) stay.
    """
    out = dict(model.grids)
    for grid, peak in peaks(model, x, q, fast, 0.9999).items():
        if grid not in FIXED_GRIDS:
            out[grid] = max(0, math.floor(room(peak, 0.5, model.config.precision)), model.grids[grid] - 1)
    return out
