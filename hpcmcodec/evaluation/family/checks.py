"""What every member has to keep, in five groups: forward, memory, training, compression, variations.

Each group is a generator of claims and whether they hold. A claim that raises does not hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcmcodec import container
from hpcmcodec.errors import HpcmError
from hpcmcodec.evaluation.family.coding import Coder, untrained
from hpcmcodec.exact.ops import Act
from hpcmcodec.exact.schedule import SCALES, STEPS, Step, decimate, grid
from hpcmcodec.model.config import Config
from hpcmcodec.model.context import walk
from hpcmcodec.model.family.model import PARAMETERS, Member
from hpcmcodec.model.hpcm import bits, ste_round
from hpcmcodec.model.remember import Memory
from hpcmcodec.training import packing

SIZE = (128, 64)  # rows and columns of the pictures
SAME_BITS = 5e-3  # relative: sums in another order round a latent the other way now and then


class Found(NamedTuple):
    """A claim of a group, whether it holds, and what was raised."""

    group: str
    claim: str
    holds: bool
    said: str = ""


def picture(seed: int, height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
    """Smooth shapes, an edge and some noise: (height, width, 3) uint8."""
    rng = np.random.RandomState(seed)
    v, u = np.mgrid[:height, :width] / 64.0
    waves = [np.sin(rng.uniform(1, 6) * u + rng.uniform(1, 6) * v + rng.uniform(0, 6)) for _ in range(3)]
    edge = (u + v > rng.uniform(0.5, 1.5))[..., None] * 60
    shown: np.ndarray = np.stack(waves, -1) * 60 + 100 + edge + rng.normal(0, 4, (height, width, 3))
    return shown.clip(0, 255).astype(np.uint8)


def run(config: Config) -> Iterator[Found]:
    """All groups, claim by claim."""
    groups: dict[str, Callable[[Config], Iterator[tuple[str, bool]]]] = {
        "forward": forward,
        "memory": memory,
        "training": training,
        "compression": compression,
        "variations": variations,
    }
    for name, group in groups.items():
        claims = group(config)
        while True:
            try:
                claim, holds = next(claims)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001  whatever a broken member raises is the finding
                yield Found(name, "runs to its end", holds=False, said=f"{type(error).__name__}: {error}")
                break
            yield Found(name, claim, bool(holds))


def member_of(config: Config) -> tuple[Member, Tensor]:
    """An untrained member, and two pictures (2, 3, H, W) in [0, 1]."""
    pictures = [picture(seed) for seed in range(2)]
    return untrained(config, pictures), torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def forward(config: Config) -> Iterator[tuple[str, bool]]:
    """The estimate, the schedule, and which half of h_s is which."""
    model, x = member_of(config)
    with torch.no_grad():
        out = model(x)
        each = [model(x[i : i + 1]) for i in range(2)]
    likelihoods = torch.cat(list(out["likelihoods"].values()), 1)
    yield "pixels have the pictures' shape", out["x_hat"].shape == x.shape
    yield "likelihoods are within 0 and 1", bool(((likelihoods > 0) & (likelihoods <= 1)).all())
    alone = torch.cat([bits(e["likelihoods"]) for e in each])
    yield "a batch of two is two batches of one", bool(torch.allclose(bits(out["likelihoods"]), alone, rtol=SAME_BITS))
    yield "each latent is coded once and decoded where it was", _all_coded_once(model, x)
    means, scales = _first_parameters(model, x)
    with _changed(model.raw[PARAMETERS], slice(0, config.latent), 1.0):
        means_after, scales_after = _first_parameters(model, x)
    yield "scales are the first half of h_s", bool(torch.allclose(scales_after, scales + 1, atol=1e-2))
    yield "means do not depend on it", bool(torch.allclose(means_after, means, atol=1e-4))
    yield "no later latent says anything about an earlier one", _causal(model, x)


def memory(config: Config) -> Iterator[tuple[str, bool]]:
    """The banks' operations, with the member's own layers."""
    model, x = member_of(config)
    if config.memory == "none":
        yield "there is no layer of a memory", not any("memory" in name for name in model.layers)
        return
    seen: dict[str, list[tuple[int, int]]] = {scale: [] for scale in SCALES}
    real, banks = Memory.after, list[Any]()

    def after(self: Memory, step: Step, context: Act, carry: Act) -> Act:
        if self.bank is not None:
            seen[step.scale].append((len(self.bank.keys), len(self.bank.values)))
            banks.append((self.bank, carry))
        return real(self, step, context, carry)

    with _patched(Memory, "after", after), torch.no_grad():
        model(x)
    held = config.memory_references if isinstance(config.memory_references, int) else max(config.memory_references)
    counts = [count for of_scale in seen.values() for count in of_scale]
    yield "coding steps find references", bool(counts) and max(k for k, _ in counts) >= 2
    yield "keys and values leave together", all(k == v for k, v in counts)
    yield "no more are kept than the member says", all(k <= held for k, _ in counts)
    bank, carry = banks[-1]
    with torch.no_grad():
        bank.reset()
        yield "reset forgets", not bank.keys and not bank.values
        for i in range(held + 1):
            bank.add(Act(carry.x.roll(i, 1) * (0.5 + i), carry.grid))
        last = bank.keys[-1].x
        yield "the oldest is dropped first", len(bank.keys) == held and not torch.equal(bank.keys[0].x, last)
        order, shares = model.ops().choose(bank.keys[1], bank.keys, min(2, held), config.memory_temperature)
        yield "the most similar key comes first", bool((order[:, 0] == 1).all() and (shares[:, 0] >= 0.5).all())


def training(config: Config) -> Iterator[tuple[str, bool]]:
    """Gradients."""
    model, x = member_of(config)
    gradients = []
    for recompute in (False, True):
        model.train()
        model.recompute = recompute
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        out = model(x)
        (bits(out["likelihoods"]).sum() / 1000 + out["x_hat"].square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    first, again = gradients
    without = [
        name
        for name, g in first.items()
        if g is None or not torch.isfinite(g).all() or not ((g != 0).any() or _alone(config, name))
    ]
    yield f"every parameter has a finite gradient{': not ' + ', '.join(without[:4]) if without else ''}", not without
    pairs = [(g, h) for g, h in ((g, again[k]) for k, g in first.items()) if g is not None and h is not None]
    same = all(torch.allclose(g, h, rtol=1e-3, atol=1e-4) for g, h in pairs)
    yield "gradients are the same when blocks run again", same


def _alone(config: Config, name: str) -> bool:
    """Whether a parameter only weighs references of which one is recalled, whose weight is 1."""
    parts = name.removeprefix("raw.").split("/")
    if len(parts) < 4 or parts[1] != "memory" or parts[2] not in ("key", "query"):
        return False
    return isinstance(config.memory_topk, tuple) and config.memory_topk[SCALES.index(parts[0])] == 1


def compression(config: Config) -> Iterator[tuple[str, bool]]:
    """Real files, decoded by kernels and by plain numpy."""
    model, x = member_of(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{config.name}.safetensors"
        packing.pack(model, path, [picture(seed) for seed in range(2)])
        coder, reference = Coder(path), Coder(path, reference=True)
    pixels = picture(0)[:, :51]
    data = coder.encode(pixels)
    shown = coder.decode(data)
    yield "pixels have the picture's shape", shown.shape == pixels.shape
    yield (
        "kernels and plain numpy decode the same latents",
        np.array_equal(coder.latents(data), reference.latents(data)),
    )
    yield "and the same pixels", np.array_equal(shown, reference.decode(data))
    with torch.no_grad():
        estimated = float(bits(model(x[:1], fake=True)["likelihoods"]))
    reader = container.Reader(coder.encode(picture(0)))
    size = 8 * sum(len(reader.stream(scale, 0)) for scale in container.STREAM_ORDER)
    yield "a file has the bits that are estimated", abs(size - estimated) < 0.05 * estimated + 200
    refused = 0
    places = range(6, len(data), max(1, len(data) // 12))
    for at in places:
        broken = bytearray(data)
        broken[at] ^= 4
        try:
            coder.decode(bytes(broken))
        except HpcmError:
            refused += 1
    yield "files with a changed bit are refused", refused == len(places)


def variations(config: Config) -> Iterator[tuple[str, bool]]:
    """Values of the config that change what is computed: they run, and make a difference."""
    _, x = member_of(config)

    def estimated(changed: Config) -> tuple[float, int]:
        model, _ = member_of(changed)
        with torch.no_grad():
            return float(bits(model(x)["likelihoods"]).sum()), sum(p.numel() for p in model.parameters())

    own = estimated(config)
    for changes in _variations(config):
        said = ", ".join(f"{k} = {v}" for k, v in changes.items())
        found = estimated(replace(config, **changes))
        yield f"{said} makes a difference", bool(np.isfinite(found[0])) and found != own


def _variations(config: Config) -> Iterator[dict[str, Any]]:
    if "rwkv" in (*config.cells, config.fusion, config.prior):
        yield from ({"residual": kind} for kind in ("pre", "lerp", "difference") if kind != config.residual)
    if config.fusion == "rwkv":
        yield {"fusion_blocks": 0}
    if "attention" in config.cells:
        yield {"window": (1, 1, 1)}
    yield {"prior_blocks": ((1, 1), (1, 1))}
    if config.memory != "none":
        yield {"memory_temperature": 2 * config.memory_temperature}
        yield {"memory_references": 2}
    if config.memory in ("full", "linear"):
        yield {"memory_topk": 1}
    if config.memory in ("full", "light"):
        yield {"memory_compression": 2}
    if config.memory == "full":
        yield {"memory_handover": not config.memory_handover}


def _folded(model: Member, y: Tensor, step: Step) -> Tensor:
    plane = decimate(y, step.scale, y.new_zeros(len(y), *grid(step.scale, *y.shape[1:3]), y.shape[3]))
    return model.ops().fold(plane, step)


def _all_coded_once(model: Member, x: Tensor) -> bool:
    """Whether the values that the coding steps fold are each latent once, and unfold to where they were."""
    found: list[Tensor] = []
    with torch.no_grad():
        y, z = model.analyse(x, torch.zeros(len(x)))
        y = torch.arange(y.numel(), dtype=torch.float32).reshape(y.shape)

        def code(step: Step, means: Tensor, levels: Tensor, mask: Any) -> Tensor:
            found.append(_folded(model, y, step).flatten())
            return _folded(model, y, step)

        y_hat = walk(model.ops(), model.config, ste_round(z), torch.zeros(len(x)), y.shape[1], y.shape[2], code)
    coded = torch.cat(found).sort().values
    return torch.equal(coded, y.flatten()) and torch.equal(y_hat, y)


def _first_parameters(model: Member, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and scales of the first coding step, which are those of h_s."""
    return _parameters(model, x)[0]


def _parameters(model: Member, x: Tensor, changed_at: int = -1) -> list[tuple[Tensor, Tensor]]:
    """Means and scales of each coding step; the latents of step `changed_at` are others than those of x."""
    found: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        y, z = model.analyse(x, torch.zeros(len(x)))

        def code(step: Step, means: Tensor, levels: Tensor, mask: Any) -> Tensor:
            found.append((means.clone(), levels.clone()))
            y_hat = _folded(model, y, step)
            return y_hat + 3.0 if step.index == changed_at else y_hat

        walk(model.ops(), model.config, ste_round(z), torch.zeros(len(x)), y.shape[1], y.shape[2], code)
    return found


def _causal(model: Member, x: Tensor) -> bool:
    """Whether other latents of a coding step change the parameters of the next one, and of none before it."""
    before = _parameters(model, x)
    for at in (0, 1, 4, len(STEPS) - 2):
        after = _parameters(model, x, at)
        same = [all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in zip(before, after, strict=True)]
        if not all(same[: at + 1]) or same[at + 1]:
            return False
    return True


@contextmanager
def _changed(parameter: Tensor, at: slice, by: float) -> Iterator[None]:
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter[at] += by
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(kept)


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)
