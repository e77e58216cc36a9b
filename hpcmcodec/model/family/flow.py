"""The flow of the paper's members, as `context.walk` runs it.

The carry is what h_s says of every latent: 2 M channels, scales first, means second, of each scale's lattice. The first
coding step takes its parameters from it; every later one from the context,

    cat(carry, y_hat so far) -> adaptor -> blocks, factors of the coding step, blocks -> 1x1 to 2 M = context

so its scales and means are the context's own halves, at the groups that the coding step codes. To the finer scale the
carry moves as the latents do (`schedule.refine`), each half by itself; where the coarser scale has nothing, h_s's
parameters stand; a fusion net sees both on the finer lattice. All carries are on one grid, since they meet there.
(Li et al., HPCM, ICCV 2025. The published code misplaces h_s's parameters at s2's own positions, and so do networks
that were trained with it: `hyper_s2 = "published"`, see `published_places`. All others have them where they belong.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from hpcmcodec.exact.layers import Linear, QualityBias, Scale
from hpcmcodec.exact.ops import Act, Array, Ops, Qualities
from hpcmcodec.exact.schedule import GROUPS, PHASE_IN_Y, SCALES, Step, decimate, grid, refine
from hpcmcodec.model import rwkv
from hpcmcodec.model.arrange import crop, part
from hpcmcodec.model.config import Config
from hpcmcodec.model.family.blocks import depthwise_block, pconv_block, up2

CARRY = "carried"  # the grid of h_s's parameters and of all carries


class HpcmFlow:
    """One walk's flow: see `context.Flow`."""

    def __init__(self, ops: Ops, config: Config, z: Array, quality: Qualities, h: int, w: int) -> None:
        self.ops, self.config, self.size = ops, config, (h, w)
        self.whole = hyper_synthesis(ops, config, z, quality)
        self.hyper = crop(self.whole, h, w)

    def first(self, scale: str) -> Act:
        """h_s's parameters on the scale's lattice, (B, rows, columns, 2 M)."""
        m, x = self.config.latent, self.hyper.x
        out = self.ops.xp.zeros_like(x, (x.shape[0], *grid(scale, *self.size), 2 * m))
        for half in (slice(0, m), slice(m, 2 * m)):
            decimate(x[..., half], scale, out[..., half])
        return Act(out, CARRY)

    def finer(self, carry: Act, coarser: str) -> Act:
        """The carry on the next finer lattice, fused with h_s's parameters there."""
        m, scale = self.config.latent, SCALES[SCALES.index(coarser) + 1]
        met = self.misplaced() if (scale, self.config.hyper_s2) == ("s2", "published") else self.first(scale)
        for half in (slice(0, m), slice(m, 2 * m)):
            refine(carry.x[..., half], coarser, met.x[..., half])
        layer = f"{coarser}.fusion"
        if self.config.fusion == "linear" or not self.config.fusion_blocks:
            return self.ops.linear(met, Linear(f"{layer}.out", 2 * m, start="same"), CARRY)
        kind = rwkv.kind_of(self.config)
        return self.ops.segment(
            rwkv.fusion_net, self.ops, met, layer, self.config.fusion_rate, kind, self.config.fusion_blocks
        )

    def misplaced(self) -> Act:
        """h_s's parameters on the lattice of s2 as the published code has them, zero where those of s1 stand."""
        x, m = self.whole.x, self.config.latent // GROUPS["s3"]
        b, h, w, c = x.shape
        flat, out = x.reshape(b, h * w, c), self.ops.xp.zeros_like(x, (b, h // 2 * (w // 2), c))
        for at in range(0, c, m):
            taken, put = published_places(at // m % GROUPS["s3"], h, w)
            out[:, put, at : at + m] = flat[:, taken, at : at + m]
        return crop(Act(out.reshape(b, h // 2, w // 2, c), CARRY), *grid("s2", *self.size))

    def parameters(self, step: Step, carry: Act, seen: Act) -> tuple[Act, Any, Any]:
        """The context, and the means and levels of the coding step, folded."""
        first = step.index == 0
        context = carry if first else self.ops.segment(prior, self.ops, self.config, step, carry, seen)
        m = self.config.latent
        halves = [self.ops.folded(part(context, at, at + m), step) for at in (0, m)]
        return context, *self.ops.moments(*halves)


# Where the published code believes that s1 has coded a group, in the pattern of 4 x 4 positions of y that repeats. Only
# for the first two groups it is right.
_TAKEN_FOR_S1 = ((0, 0), (1, 1), (0, 1), (1, 0), (0, 2), (1, 3), (0, 3), (1, 2))


@lru_cache(maxsize=64)
def published_places(group: int, h: int, w: int) -> tuple[Array, Array]:
    """Which positions of y (h, w), multiples of 4, a group's parameters at s2's own positions are taken from, and where
    on s2's lattice they are put: flat indexes, int64.

    The published code takes, in raster order, the positions of s2 without those that it believes to be s1's, and fills
    the positions of s2 that really are not s1's, in raster order. The two do not agree, so that most parameters of the
    last groups come from other places, which depend on the width. This is no mistake to be mended here: checkpoints
    have been trained with it.
    """
    rows, columns = np.mgrid[:h, :w]
    r, c = PHASE_IN_Y["s2"][group]
    of_s2 = (rows % 2 == r) & (columns % 2 == c)
    r, c = _TAKEN_FOR_S1[group]
    believed = (rows % 4 == r) & (columns % 4 == c)
    r, c = PHASE_IN_Y["s1"][group]
    coded = ((rows % 4 == r) & (columns % 4 == c))[of_s2]
    return np.flatnonzero(of_s2 & ~believed), np.flatnonzero(~coded)


def hyper_synthesis(ops: Ops, config: Config, z: Array, quality: Qualities) -> Act:
    """h_s: z (B, hz, wz, N), around its means -> scales and means (B, 4 hz, 4 wz, 2 M)."""
    x = ops.hyper_latent(z, QualityBias("h_s.mean", "h_s.z", 1), quality)
    x = up2(ops, x, "h_s.0", config.hyper)
    for i in (1, 2, 3):
        x = pconv_block(ops, x, f"h_s.{i}")
    return pconv_block(ops, up2(ops, x, "h_s.4", 2 * config.latent, CARRY), "h_s.5")


def prior(ops: Ops, config: Config, step: Step, carry: Act, seen: Act) -> Act:
    """The context (B, rows, columns, 2 M) of a coding step: its own adaptor, then a spatial prior.

    The coding steps of s1 and s2 share one prior, those of s3 another; `seen` is y_hat as the context sees it.
    """
    shared = "s3" if step.scale == "s3" else "s12"
    before, after = config.prior_blocks[shared == "s3"]
    adaptor = Linear(f"step{step.index}.adaptor", 3 * config.latent, start="same")
    x = ops.linear([carry, seen], adaptor, f"{shared}.stem")
    layer = f"{shared}.blocks"
    x = rwkv.prior_blocks(ops, config, x, layer, range(before), depthwise_block)
    x = ops.channel_scale(x, Scale(f"step{step.index}.scale"))
    x = rwkv.prior_blocks(ops, config, x, layer, range(before, before + after), depthwise_block)
    # Without a cell the context is the next carry, on whose grid it has to be.
    where = CARRY if "none" in config.cells else f"{shared}.parameters"
    return ops.linear(x, Linear(f"{shared}.out", 2 * config.latent, start="same"), where)
