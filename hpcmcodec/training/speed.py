"""How fast training is on this machine: crops a second in each stage and type, and the parts of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hpcmcodec.model.context import hyper_synthesis
from hpcmcodec.model.family import flow
from hpcmcodec.model.hpcm import Estimator, bits, ste_round
from hpcmcodec.training import stages
from hpcmcodec.training.config import STAGES, Recipe
from hpcmcodec.training.optim import optimisers

PARTS = ("g_a", "h_a, h_s", "context", "g_s", "backward", "optimiser")


def table(recipe: Recipe, rounds: int, of: Collection[str] = tuple(STAGES)) -> Iterator[str]:
    """Lines of a Markdown table, with a row for each stage in `of`, kind of crop of the recipe, and type.

    Crops are noise, since times do not depend on what pixels show. All parts but "backward" and "optimiser" belong to
    the forward pass.
    """
    device = torch.device("cuda" if recipe.run.device == "auto" and torch.cuda.is_available() else "cpu")
    if recipe.run.device != "auto":
        device = torch.device(recipe.run.device)
    yield f"{recipe.run.preset}, {device.type}, {torch.get_num_threads()} threads"
    yield ""
    yield f"| stage | crops | type | crops/s | ms a step | {' | '.join(PARTS)} |"
    yield "|---" * (5 + len(PARTS)) + "|"
    for stage, (size, batch), fast in product(of, recipe.crops, (True, False)):
        one = recipe.override({"stage": stage, "without_context": False, "crops": f"{size}:{batch}"})
        shares = measure(one, device, fast, rounds)
        total = sum(shares.values())
        cells = [f"{size}:{batch}", "bfloat16" if fast else "float32", f"{batch / total:.1f}", f"{1000 * total:.0f}"]
        cells += [f"{100 * shares[part] / total:.0f}%" if shares[part] else "" for part in PARTS]
        yield f"| {stage} | {' | '.join(cells)} |"


def measure(recipe: Recipe, device: torch.device, fast: bool, rounds: int) -> dict[str, float]:
    """Seconds of each part of a training step: the smallest over the rounds."""
    size, batch = recipe.crops[0]
    torch.manual_seed(0)
    model = stages.place(stages.build(recipe), device)
    steppers = optimisers(model, recipe.rates, (), torch.bfloat16 if fast else torch.float32)
    x = torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    q = torch.linspace(0, 1, batch, device=device)
    least = dict.fromkeys(PARTS, float("inf"))
    for i in range(rounds + 1):
        seconds = _step(model, x, q, fast, steppers, joint=recipe.run.stage != "b")
        if i:  # the first is a warm-up
            least = {k: min(v, seconds[k]) for k, v in least.items()}
    return least


def _step(
    model: Estimator, x: Tensor, q: Tensor, fast: bool, steppers: tuple[torch.optim.Optimizer, ...], *, joint: bool
) -> dict[str, float]:
    seconds, h_s = dict.fromkeys(PARTS, 0.0), flow.hyper_synthesis if model.config.flow == "hpcm" else hyper_synthesis

    def timed(part: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        out = run()
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[part] += time.perf_counter() - start
        return out

    with stages.autocast(x.device.type, fast):
        with torch.set_grad_enabled(joint):
            y = timed("g_a", lambda: model.latents(x, q))
        z = timed("h_a, h_s", lambda: model.hyper_latents(y))
        ops = timed("context", model.ops)
        y_hat, likelihoods = timed("context", lambda: model.estimate(y.permute(0, 2, 3, 1), z, q, ops=ops))
        before = seconds["h_a, h_s"]
        with torch.no_grad():
            timed("h_a, h_s", lambda: h_s(ops, model.config, ste_round(z), q))
        seconds["context"] -= seconds["h_a, h_s"] - before  # `estimate` has run h_s too
        loss = bits(likelihoods).mean() / x[0, 0].numel()
        if joint:
            x_hat = timed("g_s", lambda: model.synthesise(y_hat, q))
            loss = loss + stages.MSE(x_hat, x, model.lambdas(q)).mean()
    timed("backward", loss.backward)
    timed("optimiser", lambda: [o.step() for o in steppers])
    for o in steppers:
        o.zero_grad(set_to_none=True)
    return seconds
