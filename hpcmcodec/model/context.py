"""The entropy path, from z to the means and levels of every latent in eleven coding steps.

Each coding step sees what the earlier ones coded:

    z -> h_s -> features of each scale
    coding step 0 (s1):  the features of s1 are the first carry; means and levels come from them alone
    every later one:     cat(carry, y_hat so far) -> adaptor; + vector of the group coded there; -> prior -> context
                         the group's head(context, features, that group's y_hat nearby) -> means, levels
                         carry = cell(context, carry)      (on s3, from its second coding step on, fused with memory)
    to the finer scale:  carry -> fusion net -> 1x1 to 4 D -> pixel shuffle; + the finer scale's features

`walk` runs all this for encoder, decoder, previews and training, which each give it a function `code` that turns the
means and levels of a coding step into its y_hat. The operations `ops` are exact, float or fake-quantised. Above is the
flow of `lite` (`LiteFlow`); `family.flow` has the paper's, which differs in how carries begin and move and in where
means and levels come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from hpcmcodec.exact.layers import Depthwise, Head, Linear, Place, QualityBias, Scale
from hpcmcodec.exact.ops import Act, Array, Ops, Qualities
from hpcmcodec.exact.schedule import GROUPS, SCALES, STEPS, Step, grid, refine, valid
from hpcmcodec.model import rwkv
from hpcmcodec.model.arrange import crop, shuffle, unshuffle
from hpcmcodec.model.blocks import residual_block
from hpcmcodec.model.config import Config
from hpcmcodec.model.family.blocks import attention_cell, no_cell
from hpcmcodec.model.family.flow import HpcmFlow
from hpcmcodec.model.remember import Memory

Code = Callable[[Step, Any, Any, Any], Any]
"""code(step, means, levels, mask) -> y_hat, all folded: (B, rows, columns, M / groups).

mask (1, rows, columns, M / groups) is True where a latent exists; None where all exist.
"""


def rwkv_cell(ops: Ops, config: Config, context: Act, carry: Act, scale: str) -> Act:
    """`rwkv.context_cell`, at the scale's rate."""
    rate = config.cell_rates[SCALES.index(scale)]
    return rwkv.context_cell(ops, context, carry, f"{scale}.cell", rate, rwkv.kind_of(config))


CELLS = {"attention": attention_cell, "none": no_cell, "rwkv": rwkv_cell}
"""The context cells by the values of `Config.cells`: cell(ops, config, context, carry, scale) -> the next carry."""


class Flow(Protocol):
    """What differs between the flows of one walk: how carries begin and move, and what a coding step takes from them.

    Made of the arguments of `walk`.
    """

    def first(self, scale: str) -> Act:
        """The carry (B, rows, columns, D) that the coarsest scale begins with."""

    def finer(self, carry: Act, coarser: str) -> Act:
        """The carry of the scale `coarser`, moved to the next finer one."""

    def parameters(self, step: Step, carry: Act, seen: Act) -> tuple[Act, Any, Any]:
        """The context, and the means and levels of the coding step, folded; seen: y_hat as the context sees it."""


def walk(
    ops: Ops, config: Config, z: Array, quality: Qualities, h: int, w: int, code: Code, finest: str = SCALES[-1]
) -> Array:
    """Run the eleven coding steps for y of h x w positions; returns y_hat (B, h, w, M).

    finest: the scale to end with; y_hat is on its grid then (`schedule.grid`).

    z: symbols (B, ceil(h/4), ceil(w/4), N); quality: one per sample (`exact.ops.Qualities`). With exact operations,
    means and y_hat are int32 in sixteenths of a quantisation step, and levels are int32 from 0 to 63.
    """
    flow = FLOWS[config.flow](ops, config, z, quality, h, w)
    memory = Memory(ops, config)
    carry: Any = None
    y_hat: Any = None
    seen: Any = None  # y_hat as the context sees it
    coarser = ""
    for scale in SCALES[: SCALES.index(finest) + 1]:
        rows, columns = grid(scale, h, w)
        shape = (z.shape[0], rows, columns, config.latent)
        finer, finer_code = ops.empty_latent(shape)
        if carry is None:
            carry = flow.first(scale)
        else:
            finer, finer_code = refine(y_hat, coarser, finer), Act(refine(seen.x, coarser, finer_code.x), seen.grid)
            carry = flow.finer(carry, coarser)
        y_hat, seen, coarser = finer, finer_code, scale
        memory.begin(scale, carry)
        for step in (s for s in STEPS if s.scale == scale):
            context, means, levels = flow.parameters(step, carry, seen)
            mask = valid(step, h, w, config.latent)
            values = code(step, means, levels, mask)
            y_hat = ops.unfold(values, step, y_hat)
            if step.last_of_scale and scale == finest:
                break
            seen = Act(ops.unfold(ops.latent_code(values), step, seen.x), seen.grid)
            if step.index:
                cell = CELLS[config.cells[SCALES.index(scale)]]
                carry = ops.segment(cell, ops, config, context, carry, scale)
                carry = memory.after(step, context, carry)
    return y_hat


class LiteFlow:
    """The flow of `lite`: features of h_s begin the carries, heads read the context."""

    def __init__(self, ops: Ops, config: Config, z: Array, quality: Qualities, h: int, w: int) -> None:
        self.ops, self.config = ops, config
        hyper = hyper_synthesis(ops, config, z, quality)
        self.features = scale_features(ops, config, hyper, h, w)
        self.evidence = self.features | {"s3": crop(hyper, h, w)}  # what the heads of each scale see of h_s

    def first(self, scale: str) -> Act:
        return self.features[scale]

    def finer(self, carry: Act, coarser: str) -> Act:
        finer = SCALES[SCALES.index(coarser) + 1]
        return to_finer(self.ops, self.config, carry, coarser, self.features[finer])

    def parameters(self, step: Step, carry: Act, seen: Act) -> tuple[Act, Any, Any]:
        ops, scale = self.ops, step.scale
        if step.index == 0:
            return carry, *parameters(ops, self.config, [carry], step, f"{scale}.first")
        context = ops.segment(prior, ops, self.config, step, carry, seen)
        around = ops.around(seen, Depthwise(f"step{step.index}.around"), step, seen.grid)
        return context, *parameters(ops, self.config, [context, self.evidence[scale], around], step, f"{scale}.head")


FLOWS: dict[str, Callable[[Ops, Config, Array, Qualities, int, int], Flow]] = {"hpcm": HpcmFlow, "lite": LiteFlow}
"""The flows by the values of `Config.flow`."""


def hyper_synthesis(ops: Ops, config: Config, z: Array, quality: Qualities) -> Act:
    """h_s: z (B, hz, wz, N) -> features (B, 4 hz, 4 wz, F). The quality enters as a bias on z."""
    n, f = config.hyper, config.features
    bias = QualityBias("h_s.quality", "h_s.z", config.qualities)
    x = residual_block(ops, ops.hyper_latent(z, bias, quality), "h_s.0")
    x = residual_block(ops, shuffle(ops, ops.linear(x, Linear("h_s.1", 4 * n))), "h_s.2")
    return residual_block(ops, shuffle(ops, ops.linear(x, Linear("h_s.3", 4 * f))), "h_s.4")


def scale_features(ops: Ops, config: Config, x: Act, h: int, w: int) -> dict[str, Act]:
    """The features of each scale: a 1x1 projection of the unshuffled features of h_s, cut to the scale's lattice.

    x: (B, >= h, >= w, F); returns (B, rows, columns, D) for each of s1, s2, s3.
    """
    out = {}
    for scale, stride in (("s1", 4), ("s2", 2), ("s3", 1)):
        seen = crop(x if stride == 1 else unshuffle(ops, x, stride), *grid(scale, h, w))
        out[scale] = ops.linear(seen, Linear(f"{scale}.features", config.width), f"{scale}.carry")
    return out


def to_finer(ops: Ops, config: Config, carry: Act, scale: str, features: Act) -> Act:
    """The carry (B, rows, columns, D) of `scale`, moved to the next finer lattice, plus the finer scale's features.

    The result has the shape and the grid of `features`.
    """
    if config.fusion == "rwkv":
        kind = rwkv.kind_of(config)
        carry = rwkv.fusion_net(ops, carry, f"{scale}.fusion", config.fusion_rate, kind, config.fusion_blocks)
    finer = ops.linear(carry, Linear(f"{scale}.finer", 4 * config.width, start="same"), features.grid)
    up = shuffle(ops, finer)
    return ops.add(crop(up, *features.x.shape[1:3]), features)


def prior(ops: Ops, config: Config, step: Step, carry: Act, seen: Act) -> Act:
    """The context (B, rows, columns, D) of a coding step: its own adaptor, then a spatial prior.

    All coding steps of s1 and s2 share one prior, those of s3 another; `seen` is y_hat as the context sees it.
    """
    shared = "s3" if step.scale == "s3" else "s12"
    before, after = config.prior_blocks[shared == "s3"]
    adaptor = Linear(f"step{step.index}.adaptor", config.width, start="first")
    x = ops.linear([carry, seen], adaptor, f"{shared}.context")
    x = ops.place(x, step, Place(f"step{step.index}.place", len(step.groups)))
    layer = f"{shared}.prior"
    x = rwkv.prior_blocks(ops, config, x, layer, range(before), residual_block)
    x = ops.channel_scale(x, Scale(f"step{step.index}.scale"))
    return rwkv.prior_blocks(ops, config, x, layer, range(before, before + after), residual_block)


def parameters(ops: Ops, config: Config, inputs: list[Act], step: Step, layer: str) -> tuple[Any, Any]:
    """Means and levels of a coding step, folded. Each group's head runs only where the coding step codes the group.

    Head: hidden = LeakyReLU(1x1(inputs)), parameters = 1x1(inputs, hidden), so the inputs count both directly and
    through the hidden layer.
    """
    n, width, groups = config.latent // GROUPS[step.scale], config.heads[SCALES.index(step.scale)], len(step.groups)
    heads = [Head(f"{layer}.{g}", n) for g in range(groups)]
    hidden = [Linear(f"{layer}.{g}.hidden", width) for g in range(groups)] if width else []
    return ops.heads(inputs, step, heads, hidden, f"{layer}.hidden")
