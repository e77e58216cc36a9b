"""The flow of the paper's members, as `context.walk` runs it.

The carry is what h_s says of every latent: 2 M channels, scales first, means second, of each scale's lattice. The first
coding step takes its parameters from it; every later one from the context,

    cat(carry, y_hat so far) -> adaptor -> blocks, factors of the coding step, blocks -> 1x1 to 2 M = context

so its scales and means are the context's own halves, at the groups that the coding step codes. To the finer scale the
carry moves as the latents do (`schedule.refine`), each half by itself; where the coarser scale has nothing, h_s's
parameters stand; a fusion net sees both on the finer lattice. All carries are on one grid, since they meet there.
(Li et al., HPCM, ICCV 2025. The published code misplaces h_s's parameters at s2's own positions; this one does not.)
"""

from __future__ import annotations

from typing import Any

from hpcmcodec.exact.layers import Linear, QualityBias, Scale
from hpcmcodec.exact.ops import Act, Array, Ops, Qualities
from hpcmcodec.exact.schedule import SCALES, Step, decimate, grid, refine
from hpcmcodec.model import rwkv
from hpcmcodec.model.arrange import crop, part
from hpcmcodec.model.config import Config
from hpcmcodec.model.family.blocks import depthwise_block, pconv_block, up2

CARRY = "carried"  # the grid of h_s's parameters and of all carries


class HpcmFlow:
    """One walk's flow: see `context.Flow`."""

    def __init__(self, ops: Ops, config: Config, z: Array, quality: Qualities, h: int, w: int) -> None:
        self.ops, self.config, self.size = ops, config, (h, w)
        self.hyper = crop(hyper_synthesis(ops, config, z, quality), h, w)

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
        met = self.first(scale)
        for half in (slice(0, m), slice(m, 2 * m)):
            refine(carry.x[..., half], coarser, met.x[..., half])
        layer = f"{coarser}.fusion"
        if self.config.fusion == "linear" or not self.config.fusion_blocks:
            return self.ops.linear(met, Linear(f"{layer}.out", 2 * m, start="same"), CARRY)
        kind = rwkv.kind_of(self.config)
        return self.ops.segment(
            rwkv.fusion_net, self.ops, met, layer, self.config.fusion_rate, kind, self.config.fusion_blocks
        )

    def parameters(self, step: Step, carry: Act, seen: Act) -> tuple[Act, Any, Any]:
        """The context, and the means and levels of the coding step, folded."""
        first = step.index == 0
        context = carry if first else self.ops.segment(prior, self.ops, self.config, step, carry, seen)
        m = self.config.latent
        halves = [self.ops.folded(part(context, at, at + m), step) for at in (0, m)]
        return context, *self.ops.moments(*halves)


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
