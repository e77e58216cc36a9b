"""HPCM as its authors published it, in plain floats: names of tensors and what they compute, by the description.

This is what imports are compared with, so it shares nothing with the walk: masks pick latents out of whole planes and
put them back, windows are cut one by one, probabilities are differences of cumulative ones. Only the patterns of the
coding steps (`schedule.PARTS`) are taken from there. Sides of pictures are multiples of 64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hpcmcodec.exact.schedule import PARTS, TILE

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
S2_IN_Y = ((0, 0), (1, 1), (0, 1), (1, 0)) * 2  # by group: its phase in y on the lattice of s2,
S1_IN_S2 = tuple(PHASES[g // 2] for g in range(8))  # that of s1 on the lattice of s2,
BELIEVED = ((0, 0), (1, 1), (0, 1), (1, 0), (0, 2), (1, 3), (0, 3), (1, 2))  # and where s1 is believed to be in y


class Sizes(NamedTuple):
    """Widths and numbers of blocks; those of HPCM-Base."""

    m: int = 320
    n: int = 256
    widths: tuple[int, int, int] = (96, 192, 384)
    deep: int = 4
    priors: tuple[tuple[int, int], tuple[int, int]] = ((2, 1), (3, 2))
    heads: int = 32
    cells: bool = True
    adaptive: bool = False


class PConv(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.pconv = nn.Conv2d(n // 4, n // 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        n = self.pconv.in_channels
        return torch.cat([self.pconv(x[:, :n]), x[:, n:]], 1)


class Block(nn.Module):
    def __init__(self, first: nn.Module, n: int, rate: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(first, nn.Conv2d(n, rate * n, 1), nn.LeakyReLU(0.01), nn.Conv2d(rate * n, n, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def pconv_rb(n: int, count: int = 1) -> list[nn.Module]:
    return [Block(PConv(n), n, 4) for _ in range(count)]


def dwconv_rb(n: int, count: int) -> list[nn.Module]:
    return [Block(nn.Conv2d(n, n, 3, padding=1, groups=n), n, 2) for _ in range(count)]


class Branch(nn.Module):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)


class Prior(nn.Module):
    def __init__(self, m: int, before: int, after: int) -> None:
        super().__init__()
        self.branch_1 = nn.Sequential(*dwconv_rb(3 * m, before))
        self.branch_2 = nn.Sequential(*dwconv_rb(3 * m, after), nn.Conv2d(3 * m, 2 * m, 1))

    def forward(self, x: Tensor, factors: Tensor) -> Tensor:
        return self.branch_2(self.branch_1(x) * factors)


class Attention(nn.Module):
    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.conv_q, self.conv_k, self.conv_v, self.conv_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, context: Tensor, carry: Tensor) -> Tensor:
        q, k, v = self.conv_q(context), self.conv_k(carry), self.conv_v(carry)
        out, (h, w), d = torch.zeros_like(v), q.shape[2:], q.shape[1] // self.heads
        for r in range(0, h, self.window):
            for s in range(0, w, self.window):
                at = (0, slice(None), slice(r, r + self.window), slice(s, s + self.window))
                tokens = [t[at].reshape(self.heads, d, -1).transpose(1, 2) for t in (q, k, v)]
                weights = (tokens[0] @ tokens[1].transpose(1, 2) / d**0.5).softmax(-1)
                out[at] = (weights @ tokens[2]).transpose(1, 2).reshape(out[at].shape)
        return out + self.conv_out(context)


class Published(nn.Module):
    """HPCM-Base, -Large or -Phi of random values: latents of some steps, scales around one."""

    def __init__(self, sizes: Sizes = Sizes(), seed: int = 0) -> None:  # noqa: B008  it does not change
        super().__init__()
        torch.manual_seed(seed)
        self.sizes, m, n, (c2, c4, c8) = sizes, sizes.m, sizes.n, sizes.widths
        self.g_a = Branch(
            *(nn.Conv2d(3, c2, 4, 2, 1), *pconv_rb(c2, 2), nn.Conv2d(c2, c4, 2, 2), *pconv_rb(c4, 2)),
            *(nn.Conv2d(c4, c8, 2, 2), *pconv_rb(c8, sizes.deep), nn.Conv2d(c8, m, 2, 2)),
        )
        up = nn.ConvTranspose2d
        self.g_s = Branch(
            *(up(m, c8, 2, 2), *pconv_rb(c8, sizes.deep), up(c8, c4, 2, 2), *pconv_rb(c4, 2)),
            *(up(c4, c2, 2, 2), *pconv_rb(c2, 2), up(c2, 3, 4, 2, 1)),
        )
        self.h_a = Branch(*pconv_rb(m), nn.Conv2d(m, n, 2, 2), *pconv_rb(n, 3), nn.Conv2d(n, n, 2, 2))
        self.h_s = Branch(up(n, n, 2, 2), *pconv_rb(n, 3), up(n, 2 * m, 2, 2), *pconv_rb(2 * m))
        for scale, count in (("s1", 1), ("s2", 3), ("s3", 6)):
            adaptors = nn.ModuleList(nn.Conv2d(3 * m, 3 * m, 1) for _ in range(count))
            setattr(self, f"y_spatial_prior_adaptor_list_{scale}", adaptors)
            if sizes.cells:
                setattr(self, f"attn_{scale}", Attention(2 * m, 4 if scale == "s1" else 8, sizes.heads))
        self.y_spatial_prior_s1_s2, self.y_spatial_prior_s3 = (Prior(m, *blocks) for blocks in sizes.priors)
        self.context_net = nn.ModuleList(nn.Conv2d(2 * m, 2 * m, 1) for _ in range(2))
        self.means_hyper = nn.Parameter(torch.randn(1, n, 1, 1))
        self.scales_hyper = nn.Parameter(torch.empty(1, n, 1, 1).uniform_(0.3, 3))
        if sizes.adaptive:
            factors = (nn.Parameter(torch.empty(1, 3 * m, 1, 1).uniform_(0.5, 1.5)) for _ in range(10))
            self.adaptive_params_list = nn.ParameterList(factors)
        with torch.no_grad():
            self.g_a.branch[-1].weight.mul_(20)
            self.h_a.branch[-1].weight.mul_(5)
            for out in (self.h_s.branch[-1].branch[-1], self.y_spatial_prior_s1_s2.branch_2[-1]):
                out.bias[:m] += 1
            self.y_spatial_prior_s3.branch_2[-1].bias[:m] += 1
        self.eval()

    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x (1, 3, H, W) in [0, 1] -> likelihoods and y_hat (M, h, w), likelihoods of z (N, h / 4, w / 4), x_hat."""
        y = self.g_a(x)
        z = self.h_a(y)
        rounded = (z - self.means_hyper).round()
        coder = _Coder(self, y[0], self.h_s(rounded + self.means_hyper)[0])
        coder.run()
        return {
            "y": coder.likelihood,
            "y_hat": coder.y_hat,
            "z": likelihood(rounded, self.scales_hyper)[0],
            "x_hat": self.g_s(coder.y_hat[None]),
        }


def cumulative(x: Tensor) -> Tensor:
    """The probability below x of the generalised Gaussian with beta 1.5 and scale 1."""
    a = torch.full((), 2 / 3, dtype=x.dtype)
    return (1 + x.sign() * torch.special.gammainc(a, x.abs() ** 1.5)) / 2


def likelihood(symbols: Tensor, scales: Tensor) -> Tensor:
    a = scales.clamp(min=0.12).double()
    s = symbols.double()
    return (cumulative((s + 0.5) / a) - cumulative((s - 0.5) / a)).clamp(min=1e-9)


class _Coder:
    """The eleven coding steps over planes (C, h, w)."""

    def __init__(self, model: Any, y: Tensor, hyper: Tensor) -> None:
        self.model, self.y, self.hyper, self.m = model, y, hyper, model.sizes.m
        self.y_hat, self.likelihood = torch.zeros_like(y), torch.zeros(y.shape, dtype=torch.float64)
        self.index = 0

    def mask(self, of: Any, period: int, h: int, w: int, twice: bool = False) -> Tensor:
        """Where each channel's group has its position, (row, column) by group, in a pattern that repeats."""
        mask = torch.zeros(8, period, period, dtype=torch.bool)
        for g, (r, c) in enumerate(of):
            mask[g, r, c] = True
        mask = mask.repeat(1, h // period, w // period).repeat_interleave(self.m // 8, 0)
        return torch.cat([mask, mask]) if twice else mask

    def run(self) -> None:
        h, w = self.y.shape[1:]
        s1 = self.mask([(2 * a + c, 2 * b + d) for (a, b), (c, d) in zip(S1_IN_S2, S2_IN_Y, strict=True)], 4, h, w)
        s2 = self.mask(S2_IN_Y, 2, h, w)
        believed = self.mask(BELIEVED, 4, h, w)
        in_s2 = self.mask(S1_IN_S2, 2, h // 2, w // 2)
        both = lambda mask: torch.cat([mask, mask])  # noqa: E731  scales and means
        model = self.model

        carry = self.hyper[both(s1)].reshape(2 * self.m, h // 4, w // 4)
        carry = self.scale("s1", carry, s1, [None, 0])
        finer = torch.zeros(2 * self.m, h // 2, w // 2)
        finer[both(in_s2)] = carry.flatten()
        finer[both(~in_s2)] = self.hyper[both(s2 & ~believed)]
        carry = self.scale("s2", model.context_net[0](finer[None])[0], s2, [2, 0, 1])
        finer = self.hyper.clone()
        finer[both(s2)] = carry.flatten()
        self.scale("s3", model.context_net[1](finer[None])[0], torch.ones_like(s2), [5, 0, 1, 2, 3, 4])

    def scale(self, name: str, carry: Tensor, mask: Tensor, adaptors: list[int | None]) -> Tensor:
        """The coding steps of a scale; returns the carry behind the last."""
        rows, columns = carry.shape[1:]
        y = self.y[mask].reshape(self.m, rows, columns)
        parts = PARTS[name][-len(adaptors) :]
        prior = self.model.y_spatial_prior_s3 if name == "s3" else self.model.y_spatial_prior_s1_s2
        for adaptor, part in zip(adaptors, parts, strict=True):
            seen = self.y_hat[mask].reshape(y.shape)
            context = carry
            if adaptor is not None:
                adapt = getattr(self.model, f"y_spatial_prior_adaptor_list_{name}")[adaptor]
                x = adapt(torch.cat([carry, seen])[None])
                factors = self.model.adaptive_params_list[self.index] if self.model.sizes.adaptive else torch.ones(1)
                context, self.index = prior(x, factors)[0], self.index + 1
            scales, means = context[: self.m], context[self.m :]
            symbols = (y - means).round()
            coded = self.coded(name, part, rows, columns)
            found = likelihood(symbols, scales)
            for plane, values in ((self.y_hat, symbols + means), (self.likelihood, found)):
                inside = plane[mask].reshape(y.shape)
                plane[mask] = torch.where(coded, values.to(plane.dtype), inside).flatten()
            if adaptor is not None:
                cell = getattr(self.model, f"attn_{name}") if self.model.sizes.cells else None
                carry = cell(context[None], carry[None])[0] if cell else context
        return carry

    def coded(self, name: str, part: Any, rows: int, columns: int) -> Tensor:
        """Where a coding step codes, (M, rows, columns)."""
        period, groups = TILE[name], len(part)
        mask = torch.zeros(groups, period, period, dtype=torch.bool)
        for g, offsets in enumerate(part):
            for r, c in offsets:
                mask[g, r, c] = True
        mask = mask.repeat(1, -(-rows // period), -(-columns // period))[:, :rows, :columns]
        return mask.repeat_interleave(self.m // groups, 0)
