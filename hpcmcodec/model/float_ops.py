"""The entropy path's operations in differentiable floats, and under fake quantisation (torch).

`FloatOps` computes in real values, which are clamped to the range of the grid's codes but not rounded. `FakeOps` gives
the exact operation's result with the float operation's gradient, exact + (f - f.detach()). Training then sees the
values of coding, without a third implementation of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hpcmcodec.exact.constants import (
    CHANNEL_GRID,
    LEVELS,
    MEAN_MAX,
    MEAN_SHIFT,
    PIXEL_GRID,
    PRECISION,
    SIMILARITY_ONE,
    SLOPE,
    WIDE_GRID,
    Y_GRID,
    limit_of,
)
from hpcmcodec.exact.elementary import level_scales
from hpcmcodec.exact.layers import (
    Depthwise,
    Dequantise,
    Gain,
    Head,
    Linear,
    Norm,
    Place,
    QualityBias,
    Read,
    Residual,
    Scale,
    Wkv,
)
from hpcmcodec.exact.namespaces import TorchNamespace
from hpcmcodec.exact.ops import COMPUTING, Act, Qualities
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.exact.schedule import Step, positions
from hpcmcodec.model.float_members import FloatMemberOps, bounded
from hpcmcodec.native.torch_ops import biwkv4
from hpcmcodec.quality import Quality


class _TorchFloat:
    @staticmethod
    def permute(x: Tensor, axes: Sequence[int]) -> Tensor:
        return x.permute(tuple(axes))

    @staticmethod
    def zeros_like(x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.new_zeros(tuple(shape))

    @staticmethod
    def concat(xs: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(xs), axis)


class FloatOps(FloatMemberOps):
    """The operations in floats. p: derived tensors by name (`<layer>.<tensor>`); grids: exponent by grid name.

    observe: called with the name of a grid and each tensor on it, before clamping. recompute: see `segment`. precision:
    bits of a code.
    """

    xp: Any = _TorchFloat()

    def __init__(
        self,
        p: Mapping[str, Tensor],
        grids: Mapping[str, int],
        observe: Callable[[str, Tensor], None] | None = None,
        *,
        recompute: bool = False,
        precision: int = PRECISION,
    ) -> None:
        self.p, self.grids, self.observe, self.recompute, self.precision = p, grids, observe, recompute, precision
        self.device = next(iter(p.values())).device

    def _act(self, x: Tensor, grid: str) -> Act:
        if self.observe is not None:
            self.observe(grid, x.detach())
        limit = limit_of(grid, self.precision) * 2.0 ** -self.grids[grid]
        return Act(F.hardtanh(x, -limit, limit), grid)  # clamp, with a backward of one kernel instead of four

    def linear(self, inputs: Act | Sequence[Act], layer: Linear, grid: str | None = None) -> Act:
        parts, grid = [inputs] if isinstance(inputs, Act) else list(inputs), grid or layer.name
        w, b = self.p[f"{layer.name}.weight"], self.p.get(f"{layer.name}.bias")
        if len({p.x.shape[:-1] for p in parts}) == 1:
            x = parts[0].x if len(parts) == 1 else torch.cat([p.x for p in parts], -1)
            return self._act(F.linear(x, w, b), grid)
        y, start = torch.zeros_like(w[:, 0]) if b is None else b, 0
        for p in parts:
            y = y + F.linear(p.x, w[:, start : start + p.x.shape[-1]])
            start += p.x.shape[-1]
        return self._act(y, grid)

    def head(self, inputs: Sequence[Act], layer: Head) -> tuple[Tensor, Tensor]:
        """Means in quantisation steps and real-valued levels from 0 to 63.

        Both are float32 even under autocast, since means reach hundreds.
        """
        x = torch.cat([a.x.float() for a in inputs], -1)
        with torch.autocast(x.device.type, enabled=False):
            o = F.linear(x, self.p[f"{layer.name}.weight"], self.p[f"{layer.name}.bias"])
        limit, means = MEAN_MAX / 2**MEAN_SHIFT, o[..., : layer.channels]
        return means.clamp(-limit, limit), bounded(o[..., layer.channels :] * 2**MEAN_SHIFT, 0, LEVELS - 1)

    def depthwise(self, a: Act, layer: Depthwise, grid: str | None = None) -> Act:
        w, b, k = self.p[f"{layer.name}.weight"], self.p[f"{layer.name}.bias"], layer.k
        x = F.conv2d(a.x.permute(0, 3, 1, 2), w.view(-1, 1, k, k), b, padding=k // 2, groups=w.shape[0])
        return self._act(x.permute(0, 2, 3, 1), grid or layer.name)

    def norm(self, a: Act, layer: Norm, grid: str | None = None) -> Act:
        gamma, beta = self.p[f"{layer.name}.gamma"], self.p[f"{layer.name}.beta"]
        x = F.layer_norm(a.x.float(), a.x.shape[-1:], gamma, beta, 4.0 ** -self.grids[a.grid])
        return self._act(x, grid or layer.name)

    def lrelu(self, a: Act, slope: float = SLOPE) -> Act:
        return Act(F.leaky_relu(a.x, slope), a.grid)

    def relu_squared(self, a: Act, grid: str) -> Act:
        return self._act(F.relu(a.x).square(), grid)

    def gate(self, r: Act, a: Act) -> Act:
        return Act(torch.sigmoid(r.x) * a.x, a.grid)

    def blend(self, r: Act, a: Act, b: Act) -> Act:
        return Act(torch.sigmoid(r.x) * (a.x - b.x) + b.x, b.grid)

    def add(self, a: Act, b: Act) -> Act:
        return self._act(a.x + b.x, a.grid)

    def channel_scale(self, a: Act, layer: Scale | Residual) -> Act:
        return self._act(a.x * self.p[f"{layer.name}.scale"], a.grid)

    def place(self, a: Act, step: Step, layer: Place) -> Act:
        table = self.p[f"{layer.name}.table"]
        return self._act(a.x + _mask(step, *a.x.shape[1:3], a.x.device).to(table.dtype) @ table, a.grid)

    def wkv(self, k: Act, v: Act, layer: Wkv, grid: str | None = None) -> Act:
        b, h, w, c = v.x.shape
        decay, boost = self.p[f"{layer.name}.decay"], self.p[f"{layer.name}.boost"]
        out = biwkv4(k.x.reshape(b, h * w, c), v.x.reshape(b, h * w, c), decay, boost)
        return self._act(out.reshape(b, h, w, c), grid or layer.name)

    def pool(self, a: Act, grid: str) -> Act:
        return self._act(a.x.float().mean((1, 2), keepdim=True), grid)

    def recall(self, query: Act, keys: Sequence[Act], values: Sequence[Act], temperature: float) -> Act:
        if len(keys) == 1:
            return values[0]
        ks = torch.cat([k.x.float() for k in keys], 1)  # (B, R, 1, K)
        sims = F.cosine_similarity(ks, query.x.float().expand_as(ks), -1, eps=1e-6)[..., 0]  # (B, R)
        index = torch.arange(len(keys), device=sims.device)
        order = (-8 * (sims.detach() * SIMILARITY_ONE).round() + index).argsort(-1)[:, :2]
        weights = (sims.gather(-1, order) / temperature).softmax(-1)[:, None, None, :, None]
        stacked = torch.stack([v.x.float() for v in values], -2)  # (B, 1, 1, R, C)
        chosen = stacked.gather(-2, order[:, None, None, :, None].expand(-1, 1, 1, -1, stacked.shape[-1]))
        return Act((weights * chosen).sum(-2), values[0].grid)

    # What is on CHANNEL_GRID counts codes, whose channels mean different steps: the weights that they meet know which.

    def dequantise(self, y_hat: Tensor, layer: Dequantise, quality: Qualities) -> Act:
        factors = self._gains(layer.name, quality, y_hat.device) * (self.p[f"{layer.name}.scale"] * 2**MEAN_SHIFT)
        return self._act(y_hat * factors, CHANNEL_GRID)

    def _gains(self, layer: str, quality: Qualities, device: torch.device) -> Tensor:
        """(B, 1, 1, C)."""
        q = torch.as_tensor(quality, device=device, dtype=torch.float32)
        return interpolate(self.p[f"{layer}.log_scale"], q).exp()[:, None, None, :]

    def read(self, a: Act, layer: Read) -> Act:
        return self._act(a.x * (self.p[f"{layer.name}.scale"] * 2 ** self.grids[a.grid]), CHANNEL_GRID)

    def wide(self, a: Act, layer: Linear, grid: str, onto: Act | None = None) -> Act:
        out = self._act(F.linear(a.x, self.p[f"{layer.name}.weight"], self.p[f"{layer.name}.bias"]), grid)
        return out if onto is None else Act(onto.x + out.x, grid)

    def amplify(self, a: Act, layer: Linear, gain: Gain, quality: Qualities) -> Act:
        factors = self._gains(gain.name, quality, a.x.device)
        out = F.linear(a.x, self.p[f"{layer.name}.weight"], self.p[f"{layer.name}.bias"])
        return self._act(out * factors.repeat(1, 1, 1, layer.channels // gain.channels), WIDE_GRID)

    def pixels(self, a: Act, depth: int) -> Tensor:
        top = 2**depth - 1
        return (a.x * top + top / 2).clamp(0, top)

    def hyper_latent(self, z: Tensor, layer: QualityBias, quality: Qualities) -> Act:
        q = torch.as_tensor(quality, device=z.device, dtype=torch.float32)
        bias = interpolate(self.p[f"{layer.name}.table"], q)
        return self._act(self._act(z, layer.grid).x + bias[:, None, None, :], layer.grid)

    def latent_code(self, y_hat: Tensor) -> Tensor:
        return self._act(y_hat, "y").x

    def empty_latent(self, shape: Sequence[int]) -> tuple[Tensor, Act]:
        return torch.zeros(tuple(shape), device=self.device), Act(torch.zeros(tuple(shape), device=self.device), "y")

    def segment(self, f: Callable[..., Act], *arguments: Any) -> Act:
        """f(*arguments). With `recompute`, no intermediate result is kept: the backward pass runs f again."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(f, *arguments, use_reentrant=False)
        return f(*arguments)

    def gather(self, xs: Sequence[Tensor], step: Step) -> list[tuple[int, list[Tensor]]]:
        """As ExactOps.gather, but through one index array, since the backward pass of many slices is slow."""
        order, _, sizes = _order(step, *xs[0].shape[1:3], xs[0].device)
        counts = [n for _, n in sizes]
        split = [torch.split(x.flatten(1, 2).index_select(1, order), counts, 1) for x in xs]
        return [(g, [rows[i][:, None] for rows in split]) for i, (g, _) in enumerate(sizes)]

    def scatter(self, rows: Sequence[tuple[int, Tensor]], step: Step, shape: Sequence[int]) -> Tensor:
        _, inverse, _ = _order(step, shape[1], shape[2], rows[0][1].device)
        return torch.cat([r[:, 0] for _, r in rows], 1).index_select(1, inverse).reshape(tuple(shape))

    def unfold(self, folded: Tensor, step: Step, target: Tensor) -> Tensor:
        b, h, w, n = folded.shape
        groups = target.shape[-1] // n
        mask = _mask(step, h, w, folded.device)[..., None]
        spread = folded[:, :, :, None].expand(b, h, w, groups, n)
        return torch.where(mask, spread, target.reshape(b, h, w, groups, n)).reshape(target.shape)

    def folded(self, a: Act, step: Step) -> Act:
        return Act(self.fold(a.x, step), a.grid)

    def fold(self, x: Tensor, step: Step) -> Tensor:
        """At each position of x (B, H, W, M), the channels of the group coded there: (B, H, W, M / groups)."""
        b, h, w, m = x.shape
        groups = len(step.groups)
        return (x.reshape(b, h, w, groups, m // groups) * _mask(step, h, w, x.device)[..., None]).sum(3)


@lru_cache(maxsize=256)
def _order(step: Step, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """(order, inverse, sizes) for `gather` and `scatter`.

    order: row-major indexes of all positions, group by group as in ExactOps.gather; inverse: the inverse permutation;
    sizes: (group, number of positions) of each group that has any.
    """
    index = np.arange(h * w).reshape(1, h, w)
    found = [(g, index[at].ravel()) for g, at in positions(step)]
    order = torch.from_numpy(np.concatenate([at for _, at in found])).to(device)
    counts = [sum(len(at) for k, at in found if k == g) for g in range(len(step.groups))]
    return order, order.argsort(), [(g, n) for g, n in enumerate(counts) if n]


@lru_cache(maxsize=256)
def _mask(step: Step, h: int, w: int, device: torch.device) -> Tensor:
    """Which group a coding step codes at each point of its lattice: bool (1, h, w, groups)."""
    mask = np.zeros((1, h, w, len(step.groups)), bool)
    for g, at in positions(step):
        mask[(*at, g)] = True
    return torch.from_numpy(mask).to(device)


def interpolate(table: Tensor, q: Tensor) -> Tensor:
    """table (K, C), q (B,) in [0, 1] -> (B, C): linear between the rows, one per stored quality."""
    position = q.clamp(0, 1) * (len(table) - 1)
    i = position.floor().clamp(max=len(table) - 2).long()
    f = (position - i)[:, None]
    return table[i] * (1 - f) + table[i + 1] * f


def _faked(method: str) -> Any:
    @wraps(getattr(FloatOps, method))
    def run(self: FakeOps, *args: Any, **kwargs: Any) -> Any:
        with self.namespace.exact_mode():
            e = getattr(self.exact, method)(*(self._codes(a) for a in args), **kwargs)
        one = isinstance(e, Act)
        steps = (2.0 ** -self.grids[e.grid],) if one else (2.0**-MEAN_SHIFT, 1.0)
        values = [x * step for x, step in zip((e.x,) if one else e, steps, strict=True)]
        if torch.is_grad_enabled():  # the float operation is for its gradient alone
            f = getattr(FloatOps, method)(self, *args, **kwargs)
            values = [_straight(v, x) for v, x in zip(values, (f.x,) if one else f, strict=True)]
        return Act(values[0], e.grid) if one else tuple(values)

    return run


def _rounded(quality: Qualities) -> list[Quality]:
    return [Quality.of_unit(float(q)) for q in quality]


def _straight(exact: Tensor, f: Tensor) -> Tensor:
    f = f.float()
    return exact.float() + (f - f.detach())


class FakeOps(FloatOps):
    """FloatOps with the forward values of ExactOps over `integers`, which `layers.quantise` makes of the same p."""

    def __init__(
        self,
        p: Mapping[str, Tensor],
        grids: Mapping[str, int],
        integers: Mapping[str, Any],
        *,
        recompute: bool = False,
        precision: int = PRECISION,
    ) -> None:
        super().__init__(p, grids, recompute=recompute, precision=precision)
        self.namespace = TorchNamespace(str(self.device))
        self.exact = ExactOps(self.namespace, integers, grids, precision)

    def _codes(self, a: Any) -> Any:
        if isinstance(a, Act):
            codes = (a.x.detach().float() * 2.0 ** self.grids[a.grid]).round_()
            return Act(codes.int() if a.grid in (WIDE_GRID, PIXEL_GRID) else codes, a.grid)
        if isinstance(a, (list, tuple)) and a and isinstance(a[0], Act):
            return [self._codes(i) for i in a]
        return a

    def hyper_latent(self, z: Tensor, layer: QualityBias, quality: Qualities) -> Act:
        f = super().hyper_latent(z, layer, quality)
        with self.namespace.exact_mode():
            e = self.exact.hyper_latent(z.detach().round().int(), layer, _rounded(quality))
        return Act(_straight(e.x * 2.0 ** -self.grids[layer.grid], f.x), layer.grid)

    def dequantise(self, y_hat: Tensor, layer: Dequantise, quality: Qualities) -> Act:
        f = super().dequantise(y_hat, layer, quality)
        with self.namespace.exact_mode():
            e = self.exact.dequantise((y_hat.detach() * 2**MEAN_SHIFT).round().int(), layer, _rounded(quality))
        return Act(_straight(e.x, f.x), f.grid)

    def amplify(self, a: Act, layer: Linear, gain: Gain, quality: Qualities) -> Act:
        f = super().amplify(a, layer, gain, quality)
        with self.namespace.exact_mode():
            e = self.exact.amplify(self._codes(a), layer, gain, _rounded(quality))
        return Act(_straight(e.x * 2.0 ** -self.grids[e.grid], f.x), f.grid)

    def pixels(self, a: Act, depth: int) -> Tensor:
        f = super().pixels(a, depth)
        with self.namespace.exact_mode():
            e = self.exact.pixels(self._codes(a), depth)
        return _straight(e, f)

    def choose(self, query: Act, keys: Sequence[Act], count: int, temperature: float) -> tuple[Tensor, Tensor]:
        with self.namespace.exact_mode():
            order, weights = self.exact.choose(self._codes(query), self._codes(keys), count, temperature)
        soft = self.shares(query, keys, order, temperature)
        return order, _straight(weights, soft * weights.sum(-1, keepdim=True).float())

    def mix(self, parts: Sequence[Act], weights: Tensor) -> Act:
        f = super().mix(parts, weights)
        with self.namespace.exact_mode():
            e = self.exact.mix(self._codes(parts), weights.detach().double())
        return Act(_straight(e.x * 2.0 ** -self.grids[e.grid], f.x), f.grid)

    def moments(self, scales: Act, means: Act) -> tuple[Tensor, Tensor]:
        """Scales are those of the levels."""
        f = super().moments(scales, means)
        with self.namespace.exact_mode():
            mean, level = self.exact.moments(self._codes(scales), self._codes(means))
        known = torch.from_numpy(level_scales()).to(level.device, torch.float32)
        return _straight(mean * 2.0**-MEAN_SHIFT, f[0]), _straight(known[level.long()], f[1])

    def latent_code(self, y_hat: Tensor) -> Tensor:
        f = super().latent_code(y_hat)
        with self.namespace.exact_mode():
            e = self.exact.latent_code((y_hat.detach() * 2**MEAN_SHIFT).round().int())
        return _straight(e * 2.0**-Y_GRID, f)


for _name in COMPUTING:
    if _name not in vars(FakeOps):
        setattr(FakeOps, _name, _faked(_name))
