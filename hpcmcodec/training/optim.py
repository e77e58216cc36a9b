"""Optimisers, their learning rates over a run, and how many threads to use beside other work."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcmcodec.training.config import Rates

# Parameters of cells, fusion nets and priors (with their adaptors and factors), of the paper's members and of lite.
_RWKV = re.compile(r"raw\.(s[123]/(cell|fusion|blocks|out|prior)|s12/(blocks|out|prior)|step\d+/(adaptor|scale))/.*")
STEPS = ((2750 / 3001, 0.3), (2850 / 3001, 0.1), (2950 / 3001, 0.01))  # HPCM's schedule: (share of the run, factor)


def faster_in_bf16(device: str = "cpu") -> bool:
    """Whether matrix products are faster in bfloat16 than in float32 on this device.

    On CPUs without units for bfloat16 they are 20 to 40 times slower.
    """
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.ones(256, 256, dtype=dtype, device=device)
        for _ in range(3):  # the first is a warm-up
            start = time.perf_counter()
            (a @ a).sum().item()
            seconds[dtype] = time.perf_counter() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


@torch.no_grad()
def orthogonalise(x: Tensor, dtype: torch.dtype, steps: int = 4) -> Tensor:
    """N matrices (N, rows, columns), rows <= columns -> nearly the nearest semi-orthogonal ones, float32.

    `steps` Newton-Schulz iterations in `dtype`, as in Muon (K. Jordan, 2024).
    """
    x = x.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.float()


class Muon(torch.optim.Optimizer):
    """The Muon optimiser: its update is the orthogonalised momentum. Matrices of one shape are treated as one batch."""

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.95, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "m" not in state:
                    state["m"] = torch.zeros_like(p)
                state["m"].lerp_(p.grad, 1 - group["momentum"])
                u = p.grad.lerp(state["m"], group["momentum"]).flatten(1)
                u = u.T if u.shape[0] > u.shape[1] else u
                shapes.setdefault(tuple(u.shape), []).append((p, u))
            for (_, columns), items in shapes.items():
                updates = orthogonalise(torch.stack([u for _, u in items]), self.dtype)
                for (p, _), u in zip(items, updates, strict=True):
                    u = u.T if p.shape[0] > p.shape[1] else u
                    p.add_(u.reshape(p.shape), alpha=-group["lr"] * 0.2 * math.sqrt(columns))


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: transforms, hyperprior or context, as in `Rates`."""
    if name.startswith(("g_a.", "g_s.", "gain.", "ungain.")):
        return "transforms"
    return "hyperprior" if name.startswith(("h_a.", "z_prior.", "raw.h_s/")) else "context"


def factor_of(name: str, rates: Rates) -> float:
    """What a parameter's learning rate is multiplied by."""
    part = part_of(name)
    factor: float = getattr(rates, part)
    if part == "context":
        if name.endswith(("/decay", "/boost")):
            return factor * rates.recurrence
        if _RWKV.fullmatch(name):
            return factor * rates.rwkv
    return factor


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon trains a parameter: the weights of 1x1 and linear layers, not those of depthwise ones."""
    return (
        name.endswith(("/weight", ".weight"))
        and (p.ndim == 2 or (p.ndim == 4 and p.shape[2] == 1))
        and p[0].numel() > 9
    )


def optimisers(
    model: nn.Module, rates: Rates, fresh: Collection[str], dtype: torch.dtype
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon and AdamW, or Adam, over the parameters that need a gradient, in groups by learning rate; `base` is the full
    rate.

    fresh: names of the parameters for which `init_from` had no values. dtype: of Muon's orthogonalisation.
    """
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            factor = factor_of(name, rates) * (rates.fresh if name in fresh else 1)
            groups.setdefault((rates.optimiser == "muon" and is_matrix(name, p), factor), []).append(p)

    def of(matrices: bool, rate: float) -> list[dict[str, Any]]:
        return [{"params": p, "base": rate * factor} for (m, factor), p in groups.items() if m == matrices]

    if rates.optimiser == "adam":
        return (torch.optim.Adam(of(False, rates.adam), rates.adam, fused=True),)
    return (
        Muon(of(True, rates.muon), rates.muon, dtype=dtype),
        torch.optim.AdamW(of(False, rates.adamw), rates.adamw, betas=(0.9, 0.98), weight_decay=0, fused=True),
    )


def rate_factor(rates: Rates, step: int, since_start: int, progress: float) -> float:
    """The factor of all full rates at a training step.

    since_start: training steps since the run's first. progress: the share of the run that is done, 0 to 1.
    """
    if rates.schedule == "root":
        factor = min(1.0, math.sqrt(rates.hold / (step + 1)))
    elif rates.schedule == "cosine":
        factor = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    else:
        factor = next((v for share, v in reversed(STEPS) if progress >= share), 1.0)
    warm = (since_start + 1) / rates.warm
    if rates.warm_from:
        warm = rates.warm_from + (1 - rates.warm_from) * since_start / rates.warm
    factor *= min(1.0, warm)
    return factor * (min(1.0, max(0.0, 1 - progress) / rates.decay) if rates.decay else 1.0)


class Polite:
    """Sets the number of torch's threads to the cores that other processes leave free.

    Two threads on cores that are shared with other work are slower than one thread on a core of its own.
    """

    def __init__(self) -> None:
        self.cores, self.last = os.cpu_count() or 1, self._read()

    @staticmethod
    def _read() -> tuple[int, int, int] | None:
        """Clock ticks of all processors, those in which they worked, and this process's; None without /proc."""
        try:
            with Path("/proc/stat").open() as f:
                cpu = [int(v) for v in f.readline().split()[1:9]]  # user nice system idle iowait irq softirq steal
            with Path("/proc/self/stat").open() as f:
                own = [int(v) for v in f.read().rsplit(")", 1)[1].split()[11:13]]
        except OSError:
            return None
        return sum(cpu), cpu[0] + cpu[1] + cpu[2] + cpu[5] + cpu[6], sum(own)

    def adapt(self) -> None:
        now = self._read()
        if now is None or self.last is None:  # torch's own choice stays
            return
        total, busy, own = (a - b for a, b in zip(now, self.last, strict=True))
        if total < 100 * self.cores:  # under a second: too short to tell
            return
        self.last = now
        others = (busy - own) / total * self.cores
        torch.set_num_threads(max(1, min(self.cores, round(self.cores - others))))
