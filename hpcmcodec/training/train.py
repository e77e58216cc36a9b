"""Training of stages B and C: resumable, bf16 where that is faster, Muon for matrices and AdamW for the rest.

Stage B: rate alone, on frozen g_a and gains (distortion does not depend on what is trained): h_a, h_s, z's prior and
the context. Stage C: everything, rate + lmbda(q) 255^2 MSE. `--fake-from` turns fake quantisation on from that step.
q is stratified over each batch, each sample weighted (lmbda / lmbda(0.5))^-0.45, so that every quality learns.
"""

from __future__ import annotations

import copy
import json
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcmcodec.model.config import PRESETS
from hpcmcodec.model.float_ops import FloatOps
from hpcmcodec.model.hpcm import FIXED_GRIDS, HPCM, WithoutContext, bits
from hpcmcodec.model.transforms import lmbda
from hpcmcodec.numerics import CODE_MAX
from hpcmcodec.training.data import Crops, validation_images
from hpcmcodec.training.optim import Muon, Polite, faster_in_bf16

VALIDATION_QUALITIES = (0.1, 0.3, 0.5, 0.7, 0.9)


def autocast(device: str, fast: bool) -> Any:
    """bfloat16 for convolutions and matrix products, where that is the faster type."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=fast)


def rate(model: HPCM, x: Tensor, q: Tensor, fast: bool, *, fake: bool) -> tuple[Tensor, Tensor]:
    """Bits per pixel (B,) of x and y_hat. g_a runs without gradient where it is frozen."""
    kind = x.device.type
    with autocast(kind, fast), torch.set_grad_enabled(torch.is_grad_enabled() and model.g_a.stem.weight.requires_grad):
        y = model.g_a(x, model.g_a.s8.factors(q)).float() * model.gain.factors(q)
    with autocast(kind, fast):
        z = model.h_a(y).float().permute(0, 2, 3, 1)
        y_hat, likelihoods = model.estimate(y.permute(0, 2, 3, 1), z, q, ops=model.ops(fake=fake))
    return bits(likelihoods) / (x.shape[2] * x.shape[3]), y_hat


def loss_of(model: HPCM, x: Tensor, q: Tensor, fast: bool, *, joint: bool, fake: bool) -> tuple[Tensor, Tensor]:
    """The weighted training loss and the plain bpp of each sample."""
    bpp, y_hat = rate(model, x, q, fast, fake=fake)
    weight = (lmbda(q) / lmbda(torch.tensor(0.5))) ** -0.45
    cost = bpp
    if joint:
        with autocast(x.device.type, fast):
            x_hat = model.synthesise(y_hat, q)
        cost = bpp + lmbda(q) * 255**2 * (x_hat - x).square().flatten(1).mean(1)
    return (weight * cost).mean(), bpp.detach()


@torch.no_grad()
def validate(model: HPCM, images: list[Tensor], fast: bool, *, joint: bool, fake: bool) -> list[list[float]]:
    """For each validation quality: q, mean bpp, and (joint) mean PSNR in dB and mean loss."""
    model.eval()
    rows = []
    for quality in VALIDATION_QUALITIES:
        bpps, psnrs, losses = [], [], []
        for x in images:
            q = torch.full((1,), quality, device=x.device)
            bpp, y_hat = rate(model, x, q, fast, fake=fake)
            bpps.append(bpp.item())
            if joint:
                with autocast(x.device.type, fast):
                    mse = (model.synthesise(y_hat, q) - x).square().mean().item()
                psnrs.append(-10 * math.log10(mse))
                losses.append(bpp.item() + lmbda(q).item() * 65025 * mse)
        rows.append([quality] + [round(sum(v) / len(v), 5) for v in (bpps, psnrs, losses) if v])
    model.train()
    return rows


@torch.no_grad()
def calibrate(model: HPCM, x: Tensor, q: Tensor, fast: bool) -> dict[str, int]:
    """Exponents from the activations' own spread: the largest e with 99.99% of the values within half the clamp.

    The clamps stay in place while it looks, since the network may lean on them: a grid that saturates is widened by one
    bit a call at most. Grids whose meaning is fixed (sigmoid, exp, y) stay.
    """
    seen: dict[str, float] = {}

    def observe(grid: str, values: Tensor) -> None:
        v = values.float().abs().flatten()
        k = max(1, int(len(v) * 0.9999))
        v = v.clamp(max=CODE_MAX * 2.0 ** -model.grids[grid])
        seen[grid] = max(seen.get(grid, 0.0), v.kthvalue(k).values.item())

    with autocast(x.device.type, fast):
        y = model.g_a(x, model.g_a.s8.factors(q)).float() * model.gain.factors(q)
        z = model.h_a(y).float().permute(0, 2, 3, 1)
        model.estimate(y.permute(0, 2, 3, 1), z, q, ops=FloatOps(model.derived(), model.grids, observe))
    out = dict(model.grids)
    for grid, peak in seen.items():
        if grid not in FIXED_GRIDS:
            wanted = math.floor(math.log2((CODE_MAX / 2) / max(peak, 1e-3)))
            out[grid] = max(0, min(11, max(wanted, model.grids[grid] - 1)))
    return out


def start_from_stage_a(model: HPCM, state: Mapping[str, Tensor]) -> list[str]:
    """Take transforms, gains, z's prior and h_s from a stage A state (`pretrain.py`); returns what did not fit
    anywhere.
    """
    own = model.state_dict()
    new: dict[str, Tensor] = {}

    def rows_in_pixel_order(w: Tensor) -> Tensor:  # torch shuffles (C, row, column), we (row, column, C)
        return w.reshape(-1, 4, *w.shape[1:]).transpose(0, 1).reshape(w.shape)

    for name, value in state.items():
        value = value.float()
        if name in ("log_gain", "log_ungain"):
            new[f"{name.removeprefix('log_')}.log_scale"] = value
        elif name == "h_s.qbias":
            new["raw.h_s/quality/table"] = value
        elif name.startswith("h_s.net."):
            index, *rest, tensor = name.removeprefix("h_s.net.").split(".")
            v = value.flatten(1) if value.ndim == 4 else value
            if index in ("1", "3"):
                new[f"raw.h_s/{index}/{tensor}"] = rows_in_pixel_order(v)
            else:
                new[f"raw.h_s/{index}/{rest[0]}/{tensor}"] = v
        else:
            new[name] = value
    fits = {k: v for k, v in new.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(own | fits)
    return sorted(set(new) - set(fits))


def pack(state: Path, out: Path) -> None:
    """Write a run's EMA in half precision, with what `--init-from` and export need beside it."""
    s = torch.load(state, map_location="cpu", weights_only=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in s["ema"].items()}
    torch.save({"ema": half, "grids": s["grids"], "step": s["step"], "preset": s["preset"], "stage": s["stage"]}, out)


def train(
    *,
    preset: str,
    cache: Path,
    run: Path,
    stage: str,
    steps: int,
    batch: int,
    size: int,
    lr: float,
    adam_lr: float,
    hold: int,
    warm: int,
    decay_from: int | None,
    fake_from: int | None,
    calibrate_at: tuple[int, ...],
    validation: Path | None,
    every: int,
    images: int,
    init: Path | None,
    stage_a: Path | None,
    device: str,
    polite: bool,
    seed: int,
    without_context: bool,
) -> None:
    """Train until `steps` or SIGTERM; `run/last.pt` is written at every validation and at the end, and resumed from."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    fast = device != "cpu" or faster_in_bf16()
    joint = stage == "c"
    model = (WithoutContext if without_context else HPCM)(PRESETS[preset]).to(device)
    last = run / "last.pt"
    resumed: dict[str, Any] | None = torch.load(last, map_location=device, weights_only=True) if last.exists() else None
    started: dict[str, Any] | None = None
    if resumed is not None:
        model.load_state_dict(resumed["model"])
        model.grids = dict(resumed["grids"])
    elif init is not None:
        started = torch.load(init, map_location=device, weights_only=True)
        model.load_state_dict({k: v.float() for k, v in started["ema"].items()})
        model.grids = dict(started["grids"])
    elif stage_a is not None:
        a = torch.load(stage_a, map_location=device, weights_only=True)
        print("not used of stage A:", start_from_stage_a(model, a["ema"]), flush=True)
    crops = Crops(cache, size, seed + (resumed or started or {"step": 0})["step"])
    if resumed is None and init is None:
        for _ in range(4):  # each look widens a saturated grid by one bit
            model.grids = calibrate(model, crops.batch(16).to(device), torch.linspace(0, 1, 16, device=device), fast)
    if not joint:
        for part in (model.g_a, model.g_s, model.gain, model.ungain):
            part.requires_grad_(False)
    ema = copy.deepcopy(model).eval()
    if resumed is not None:
        ema.load_state_dict(resumed["ema"])
    matrices: list[Tensor] = []
    fresh: list[Tensor] = []
    old: list[Tensor] = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        is_matrix = (
            name.endswith(("/weight", ".weight"))
            and p.ndim in (2, 4)
            and (p.ndim == 2 or p.shape[2] == 1)
            and p[0].numel() > 9
        )
        (matrices if is_matrix else fresh if name.startswith("raw") else old).append(p)
    optimisers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr, dtype=torch.bfloat16 if fast else torch.float32),
        torch.optim.AdamW([{"params": fresh}, {"params": old}], adam_lr, betas=(0.9, 0.98), weight_decay=0),
    ]
    step, spent, began = 0, 0.0, 0  # began: the step at which the optimisers were fresh
    if started is not None:
        step = began = int(started["step"])  # the rates go on from there, after a warm-up
    if resumed is not None:
        step, spent = resumed["step"], resumed["spent"]
        for o, s in zip(optimisers, resumed["optimisers"], strict=True):
            o.load_state_dict(s)
    held = validation_images(validation)[:images] if validation else []
    held = [x.to(device) for x in held]
    start = since = time.time()
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))  # finish the step, save, leave
    manners = Polite() if polite else None
    losses: list[Tensor] = []
    skipped = 0

    def log(**record: Any) -> None:
        with (run / "log.jsonl").open("a") as f:
            f.write(
                json.dumps({"step": step, "hours": round((spent + time.time() - start) / 3600, 4), **record}) + "\n"
            )
        print(step, record, flush=True)

    def save() -> None:
        torch.save(
            {
                "model": model.state_dict(),
                "ema": ema.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers],
                "step": step,
                "grids": model.grids,
                "spent": spent + time.time() - start,
                "preset": preset,
                "stage": stage,
            },
            run / "last.tmp",
        )
        (run / "last.tmp").replace(last)

    def check() -> None:
        nonlocal since
        if held:
            rows = validate(ema, held, fast, joint=joint, fake=False)
            log(validation=rows, mean=round(sum(r[-1] for r in rows) / len(rows), 5))
        save()
        since = time.time()

    while not stop and step < steps:
        if step in calibrate_at:
            model.grids = calibrate(model, crops.batch(16).to(device), torch.linspace(0, 1, 16, device=device), fast)
            ema.grids = dict(model.grids)
            log(grids=model.grids)
        factor = min(1, math.sqrt(hold / (step + 1))) * min(1, (step - began + 1) / warm)
        if decay_from is not None:
            factor *= 1 - max(0, step - decay_from) / (steps - decay_from)
        for o, base in zip(optimisers, (lr, adam_lr), strict=True):
            for group in o.param_groups:
                group["lr"] = base * factor
        if manners:
            manners.adapt()
        x = crops.batch(batch).to(device)
        q = ((torch.arange(batch) + torch.rand(batch)) / batch).to(device)
        loss, _ = loss_of(model, x, q, fast, joint=joint, fake=fake_from is not None and step >= fake_from)
        for o in optimisers:
            o.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        if torch.isfinite(norm):
            for o in optimisers:
                o.step()
        else:
            skipped += 1
        with torch.no_grad():
            torch._foreach_lerp_(
                list(ema.parameters()), list(model.parameters()), 1 - min(0.9999, (step + 1) / (step + 10))
            )
        step += 1
        losses.append(loss.detach())
        if step % 50 == 0:
            now = time.time()
            log(
                loss=round(torch.stack(losses).mean().item(), 5),
                norm=round(norm.item(), 3),
                rate=round(factor, 4),
                crops_per_s=round(50 * batch / (now - since), 2),
                threads=torch.get_num_threads(),
                skipped=skipped,
            )
            since, losses = now, []
        if step % every == 0:
            check()
    save()
    if not stop:
        check()
