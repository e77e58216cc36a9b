"""The float operations that only the paper's members and the larger memory banks use: part of `float_ops.FloatOps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hpcmcodec.exact.constants import MEAN_MAX, MEAN_SHIFT, SCALES_MAX, SCALES_MIN, SIMILARITY_ONE
from hpcmcodec.exact.ops import Act, Composed
from hpcmcodec.exact.resampling import bilinear_matrix, mean_matrix


class _Bounded(torch.autograd.Function):
    """A clamp that lets a gradient pass where following it leads back into the range (as CompressAI's LowerBound)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.range = (low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.range
        return torch.where((x < low) & (g > 0) | (x > high) & (g < 0), torch.zeros_like(g), g), None, None


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """x clamped to low..high; outside, the gradient passes only where following it leads back into the range."""
    out: Tensor = _Bounded.apply(x, float(low), float(high))  # type: ignore[no-untyped-call]
    return out


class FloatMemberOps(Composed):
    """Stands on `FloatOps._act`."""

    grids: Mapping[str, int]

    def _act(self, x: Tensor, grid: str) -> Act:
        raise NotImplementedError

    def attend(self, q: Act, k: Act, v: Act, window: int, heads: int, grid: str) -> Act:
        b, h, w, c = q.x.shape
        beyond = (0, 0, 0, -w % window, 0, -h % window)

        def split(x: Tensor) -> Tensor:
            return rearrange(
                F.pad(x, beyond), "b (y r) (x s) (n d) -> b y x n (r s) d", r=window, s=window, n=heads, d=c // heads
            )

        inside = split(q.x.new_ones(b, h, w, c))[..., :1].transpose(-1, -2)
        scores = split(q.x) @ split(k.x).transpose(-1, -2) / (c // heads) ** 0.5
        weights = scores.float().masked_fill(inside == 0, -torch.inf).softmax(-1)
        out = rearrange(weights @ split(v.x).float(), "b y x n (r s) d -> b (y r) (x s) (n d)", r=window, s=window)
        return self._act(out[:, :h, :w], grid)

    def curve(self, a: Act, name: str, grid: str) -> Act:
        x = a.x.float()
        return self._act(F.gelu(x, approximate="tanh") if name == "gelu" else F.elu(x) + 1, grid)

    def resize(self, a: Act, rows: int, columns: int, how: str) -> Act:
        make = mean_matrix if how == "mean" else bilinear_matrix
        down, across = (make(n, size) for n, size in zip((rows, columns), a.x.shape[1:3], strict=True))
        down, across = down / down.sum(1, keepdims=True), across / across.sum(1, keepdims=True)
        along = (torch.from_numpy(m).to(a.x.device, torch.float32) for m in (down, across))
        return Act(torch.einsum("rh,bhwc,sw->brsc", next(along), a.x.float(), next(along)), a.grid)

    def outer(self, k: Act, v: Act, heads: int, grid: str) -> Act:
        ks, vs = (rearrange(t.x.float(), "b h w (n d) -> b n (h w) d", n=heads) for t in (k, v))
        out = ks.transpose(-1, -2) @ vs / ks.shape[2]
        return self._act(rearrange(out, "b n k v -> b 1 1 (n k v)"), grid)

    def lookup(self, q: Act, table: Act, norm: Act, heads: int, grid: str) -> Act:
        b, h, _, c = q.x.shape
        d = c // heads
        asked = rearrange(q.x.float(), "b h w (n d) -> b n (h w) d", n=heads)
        above = asked @ table.x.float().reshape(b, heads, d, d)
        out = above / (asked @ norm.x.float().reshape(b, heads, d, 1))
        return self._act(rearrange(out, "b n (h w) d -> b h w (n d)", h=h), grid)

    def choose(self, query: Act, keys: Sequence[Act], count: int, temperature: float) -> tuple[Tensor, Tensor]:
        sims = _similarities(query, keys)
        index = torch.arange(len(keys), device=sims.device)
        order = (-8 * (sims.detach() * SIMILARITY_ONE).round() + index).argsort(-1)[:, :count]
        return order, self.shares(query, keys, order, temperature)

    @staticmethod
    def shares(query: Act, keys: Sequence[Act], order: Tensor, temperature: float) -> Tensor:
        """softmax(cosine / temperature) of the keys that `order` (B, n) names."""
        return (_similarities(query, keys).gather(-1, order) / temperature).softmax(-1)

    def mix(self, parts: Sequence[Act], weights: Tensor) -> Act:
        shares = weights / weights.sum(-1, keepdim=True)
        terms = [p.x.float() * shares[:, i].reshape(-1, 1, 1, 1) for i, p in enumerate(parts)]
        return Act(torch.stack(terms).sum(0), parts[0].grid)

    def moments(self, scales: Act, means: Act) -> tuple[Tensor, Tensor]:
        limit = MEAN_MAX / 2**MEAN_SHIFT
        return means.x.float().clamp(-limit, limit), bounded(scales.x.float(), SCALES_MIN, SCALES_MAX)


def _similarities(query: Act, keys: Sequence[Act]) -> Tensor:
    """The cosines (B, number of keys) of a query and keys (B, 1, 1, K)."""
    ks = torch.cat([k.x.float() for k in keys], 1)
    return F.cosine_similarity(ks, query.x.float().expand_as(ks), -1, eps=1e-6)[..., 0]
