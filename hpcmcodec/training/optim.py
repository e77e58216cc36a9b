"""Optimisers and the manners of a background process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def faster_in_bf16(device: str = "cpu") -> bool:
    """Whether matrices multiply faster in bfloat16 than in float32 here (CPUs without its units: 20 to 40 times
    slower).
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
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrices (Muon, Jordan 2024); x (N, rows <=
    columns).
    """
    x = x.to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; matrices of one shape go through the iteration as one batch."""

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


class Polite:
    """Threads to use beside other work: two threads that share a core with somebody are slower than one that
    does not.
    """

    def __init__(self) -> None:
        self.cores, self.last = os.cpu_count() or 1, self._read()

    @staticmethod
    def _read() -> tuple[int, int, int]:
        with Path("/proc/stat").open() as f:
            cpu = [int(v) for v in f.readline().split()[1:9]]  # user nice system idle iowait irq softirq steal
        with Path("/proc/self/stat").open() as f:
            own = [int(v) for v in f.read().rsplit(")", 1)[1].split()[11:13]]
        return sum(cpu), cpu[0] + cpu[1] + cpu[2] + cpu[5] + cpu[6], sum(own)

    def adapt(self) -> None:
        now = self._read()
        total, busy, own = (a - b for a, b in zip(now, self.last, strict=True))
        if total < 100 * self.cores:  # under a second: too short to tell
            return
        self.last = now
        others = (busy - own) / total * self.cores
        torch.set_num_threads(max(1, min(self.cores, round(self.cores - others))))
