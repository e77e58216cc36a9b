"""The entropy path: from z to the parameters of every latent, in eleven steps, each seeing what the earlier ones coded.

    z -> h_s -> features of each scale;  s1 step 0: parameters straight from the features, also the first carry
    every later step:  cat(carry, y_hat so far) -> adaptor, plus the position's group -> prior -> context
                       head of the position's group(context, features, y_hat around in the group) -> means, levels
                       carry = cell(context, carry)      (s3: fused with the memory bank from the second step on)
    to the finer scale: carry -> fusion net -> 1x1 to 4 D -> pixel shuffle, plus the finer scale's features

`walk` is the only driver: encoder, decoder, previews and training hand it a `code` function that turns a step's
parameters into its y_hat. Written over `ops`, which are exact, float or fake-quantised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcmcodec.exact.layers import Depthwise, Head, Linear, Place, QualityBias, Scale
from hpcmcodec.exact.ops import Act, Array, Ops, Qualities
from hpcmcodec.exact.schedule import GROUPS, SCALES, STEPS, Step, grid, refine, valid
from hpcmcodec.model import rwkv
from hpcmcodec.model.config import Config
from hpcmcodec.model.memory import MemoryBank

Code = Callable[[Step, Any, Any, Any], Any]
"""code(step, means, levels, mask) -> y_hat, all folded (B, rows, columns, M / groups); mask None or bool (1, ...)."""


def walk(
    ops: Ops, config: Config, z: Array, quality: Qualities, h: int, w: int, code: Code, finest: str = SCALES[-1]
) -> Array:
    """Run the eleven steps for y of h x w latents; returns y_hat (B, h, w, M).

    finest: the scale to end with; y_hat is on its grid then (`schedule.grid`).

    z: (B, ceil(h/4), ceil(w/4), N) symbols; quality: one a sample (`exact.ops.Qualities`). Exact ops give and take
    means and y_hat as int32 sixteenths and levels as int32 0..63.
    """
    hyper = hyper_synthesis(ops, config, z, quality)
    features = scale_features(ops, config, hyper, h, w)
    evidence = features | {"s3": crop(hyper, h, w)}  # what heads read of h_s
    carry: Any = None
    y_hat: Any = None
    seen: Any = None  # y_hat as the context sees it
    coarser = ""
    for scale in SCALES[: SCALES.index(finest) + 1]:
        rows, columns = grid(scale, h, w)
        shape = (z.shape[0], rows, columns, config.latent)
        finer, finer_code = ops.empty_latent(shape)
        if carry is None:
            carry = features[scale]
        else:
            finer, finer_code = refine(y_hat, coarser, finer), Act(refine(seen.x, coarser, finer_code.x), seen.grid)
            carry = to_finer(ops, config, carry, coarser, features[scale])
        y_hat, seen, coarser = finer, finer_code, scale
        memory = None
        if scale == "s3" and config.memory == "light":
            memory = MemoryBank(
                ops, "memory", config.memory_references, config.memory_compression, config.memory_temperature
            )
            memory.add(carry)
        for step in (s for s in STEPS if s.scale == scale):
            first = step.index == 0
            if first:
                context, inputs = carry, [carry]
            else:
                context = ops.segment(prior, ops, config, step, carry, seen)
                around = ops.folded(ops.depthwise(seen, Depthwise(f"step{step.index}.around"), seen.grid), step)
                inputs = [context, evidence[scale], around]
            means, levels = parameters(ops, config, inputs, step, f"{scale}.first" if first else f"{scale}.head")
            mask = valid(step, h, w, config.latent)
            values = code(step, means, levels, mask)
            y_hat = ops.unfold(values, step, y_hat)
            if step.last_of_scale and scale == finest:
                break
            seen = Act(ops.unfold(ops.latent_code(values), step, seen.x), seen.grid)
            if not first:
                rate = config.cell_rates[SCALES.index(scale)]
                carry = ops.segment(rwkv.context_cell, ops, context, carry, f"{scale}.cell", rate)
                if memory is not None:
                    carry = remember(memory, carry, step)
    return y_hat


def remember(memory: MemoryBank, carry: Act, step: Step) -> Act:
    """Fuse from the scale's second step on; store, except before the last step, after which nothing reads the
    memory.
    """
    if len(memory.keys) > 1:
        carry = memory.retrieve_and_fuse(carry)
    if step is not STEPS[-2]:
        memory.add(carry)
    return carry


def residual_block(ops: Ops, x: Act, layer: str, rate: int = 2) -> Act:
    """x + [depthwise 3x3 -> 1x1 -> LeakyReLU -> 1x1] (HPCM's DWConvRB)."""
    width = x.x.shape[-1]
    hidden = ops.lrelu(ops.linear(ops.depthwise(x, Depthwise(f"{layer}.dw")), Linear(f"{layer}.up", rate * width)))
    return ops.add(x, ops.linear(hidden, Linear(f"{layer}.down", width, branch=True), x.grid))


def shuffle(ops: Ops, a: Act, side: int = 2) -> Act:
    """(B, H, W, s * s * C) -> (B, s H, s W, C); channels are ordered (row, column, C), so that whole pixels move."""
    b, h, w, n = a.x.shape
    c = n // (side * side)
    x = ops.xp.permute(a.x.reshape(b, h, w, side, side, c), (0, 1, 3, 2, 4, 5))
    return Act(x.reshape(b, side * h, side * w, c), a.grid)


def unshuffle(ops: Ops, a: Act, stride: int) -> Act:
    """(B, H, W, C) -> (B, H / s, W / s, s * s * C), the inverse order of `shuffle`."""
    b, h, w, c = a.x.shape
    x = a.x.reshape(b, h // stride, stride, w // stride, stride, c)
    x = ops.xp.permute(x, (0, 1, 3, 2, 4, 5))
    return Act(x.reshape(b, h // stride, w // stride, stride * stride * c), a.grid)


def crop(a: Act, rows: int, columns: int) -> Act:
    """The upper left rows and columns."""
    return Act(a.x[:, :rows, :columns], a.grid)


def hyper_synthesis(ops: Ops, config: Config, z: Array, quality: Qualities) -> Act:
    """h_s: z (B, hz, wz, N) -> features (B, 4 hz, 4 wz, F), the quality entering as a bias on z."""
    n, f = config.hyper, config.features
    bias = QualityBias("h_s.quality", "h_s.z", config.qualities)
    x = residual_block(ops, ops.hyper_latent(z, bias, quality), "h_s.0")
    x = residual_block(ops, shuffle(ops, ops.linear(x, Linear("h_s.1", 4 * n))), "h_s.2")
    return residual_block(ops, shuffle(ops, ops.linear(x, Linear("h_s.3", 4 * f))), "h_s.4")


def scale_features(ops: Ops, config: Config, x: Act, h: int, w: int) -> dict[str, Act]:
    """What each scale sees of h_s: a 1x1 projection of the unshuffled features, cut to the scale's grid."""
    out = {}
    for scale, stride in (("s1", 4), ("s2", 2), ("s3", 1)):
        seen = crop(x if stride == 1 else unshuffle(ops, x, stride), *grid(scale, h, w))
        out[scale] = ops.linear(seen, Linear(f"{scale}.features", config.width), f"{scale}.carry")
    return out


def to_finer(ops: Ops, config: Config, carry: Act, scale: str, features: Act) -> Act:
    """The carry of `scale` on the next finer grid, plus that scale's features (whose grid it takes)."""
    if config.fusion == "rwkv":
        carry = rwkv.fusion_net(ops, carry, f"{scale}.fusion", config.fusion_rate)
    finer = ops.linear(carry, Linear(f"{scale}.finer", 4 * config.width, start="same"), features.grid)
    up = shuffle(ops, finer)
    return ops.add(crop(up, *features.x.shape[1:3]), features)


def prior(ops: Ops, config: Config, step: Step, carry: Act, seen: Act) -> Act:
    """context (B, rows, columns, D) of a step: adaptor (one a step), then the spatial prior shared by the scale's
    steps.
    """
    shared = "s3" if step.scale == "s3" else "s12"
    before, after = config.prior_blocks[shared == "s3"]
    adaptor = Linear(f"step{step.index}.adaptor", config.width, start="first")
    x = ops.linear([carry, seen], adaptor, f"{shared}.context")
    x = ops.place(x, step, Place(f"step{step.index}.place", len(step.groups)))
    for i in range(before):
        x = residual_block(ops, x, f"{shared}.prior.{i}")
    x = ops.channel_scale(x, Scale(f"step{step.index}.scale"))
    for i in range(before, before + after):
        x = residual_block(ops, x, f"{shared}.prior.{i}")
    return x


def parameters(ops: Ops, config: Config, inputs: list[Act], step: Step, layer: str) -> tuple[Any, Any]:
    """Means and levels of a step, folded; each group's head runs on the positions that carry the group alone.

    Head: hidden = LeakyReLU(1x1(inputs)), parameters = 1x1(inputs, hidden): a direct way and one around a corner.
    """
    n = config.latent // GROUPS[step.scale]
    hidden = config.heads[SCALES.index(step.scale)]
    results = []
    for g, rows in ops.gather([a.x for a in inputs], step):
        parts = [Act(x, a.grid) for x, a in zip(rows, inputs, strict=True)]
        if hidden:
            parts.append(ops.lrelu(ops.linear(parts, Linear(f"{layer}.{g}.hidden", hidden), f"{layer}.hidden")))
        results.append((g, ops.head(parts, Head(f"{layer}.{g}", n))))
    shape = (*inputs[0].x.shape[:3], n)
    return tuple(ops.scatter([(g, r[i]) for g, r in results], step, shape) for i in range(2))
