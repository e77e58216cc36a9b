"""The training loop of every stage and device. A run can be stopped at any moment and resumed.

All that is random in a training step (crops, qualities, noise) derives from the seed and the number of the training
step. The checkpoint is therefore the whole state of a run: one that was killed and resumed goes through the same
training steps as one that was not. A checkpoint holds the model, the EMA, the optimisers, and what the next line of the
log needs.
"""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcmcodec.errors import InputError
from hpcmcodec.exact.constants import ARITHMETIC
from hpcmcodec.model.config import Config
from hpcmcodec.model.distortion import Distortion
from hpcmcodec.model.family.model import Member, OfOneLambda
from hpcmcodec.model.hpcm import Estimator
from hpcmcodec.training import hyperprior, stages, stand_in, states
from hpcmcodec.training.config import Recipe
from hpcmcodec.training.data import Crops, patches, to_unit, validation_images
from hpcmcodec.training.grow import grow
from hpcmcodec.training.optim import Polite, faster_in_bf16, optimisers, rate_factor
from hpcmcodec.training.records import Log

CROPS, QUALITIES, NOISE, GRIDS, AXES = range(5)  # the uses of random numbers: each has a generator of its own


def train(recipe: Recipe, folder: Path) -> None:
    """Train in `folder` until the recipe's end; a run that is there is resumed.

    After SIGTERM or SIGINT the present training step is finished, a checkpoint saved, and the function returns.

    Raises InputError for a cache, a state or a device that cannot be used, IntegrityError where all checkpoints are
    damaged.
    """
    trainer = Trainer(recipe, folder)
    stop: list[int] = []
    before = {s: signal.signal(s, lambda *_: stop.append(1)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not stop and trainer.progress < 1:
            trainer.advance()
        trainer.finish(stopped=bool(stop))
    finally:
        trainer.close()
        for s, handler in before.items():
            signal.signal(s, handler)


class Trainer:
    """A run in its folder. `advance` does one training step and all that is due after it.

    Raises InputError and IntegrityError as `train`.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        run = recipe.run
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if run.device == "auto" else run.device
        )
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError("device cuda needs an NVIDIA GPU and a CUDA build of torch")
        self.fast = run.precision == "bf16" or (
            run.precision == "auto" and (self.device.type != "cpu" or faster_in_bf16())
        )
        self.joint = run.stage != "b"
        self.distortion = Distortion.of(recipe.model_config())
        self.distortion.check()
        self.crops = Crops(Path(recipe.data.cache), recipe.data.rescale)
        held = validation_images(Path(recipe.data.validation)) if recipe.data.validation else []
        self.held = [x.to(self.device) for x in held[: recipe.data.images]]

        torch.manual_seed(run.seed)
        model = stages.build(recipe)
        resumed = states.newest(folder)
        notes: list[str] = []
        self.step, self.first, self.spent, self.skipped = 0, 0, 0.0, 0
        self.fresh: list[str] = []  # parameters that init_from had no values for
        self.pending: list[float | Tensor] = []  # losses since the last line of the log
        self.crops_done = 0  # crops since the last line of the log, in this process
        known: set[str] = set()  # grids that come with init_from
        if resumed is not None:
            self._resume(model, resumed.facts)
            model.load_state_dict(resumed.under("model"))
        else:
            notes, known = self._start(model)
            self.step = self.first
        self.model = stages.place(model, self.device)
        self.ema = copy.deepcopy(self.model).eval()
        if run.recompute:
            stages.recompute_blocks(self.model)
        self.optimisers = optimisers(
            self.model, recipe.rates, self.fresh, torch.bfloat16 if self.fast else torch.float32
        )
        if resumed is not None:
            self.ema.load_state_dict(resumed.under("ema"))
            self._load_optimisers(resumed.under("optimiser"))
        elif not known >= set(self.model.grids):
            for _ in range(4):  # each call widens a saturated grid by one bit at most
                self._calibrate(known)
        folder.mkdir(parents=True, exist_ok=True)
        states.write(folder / "recipe.json", recipe.to_json().encode())
        self.began = self.since = time.time()
        self.manners = Polite() if run.polite else None
        self.ahead = ThreadPoolExecutor(1) if self.device.type != "cpu" else None
        self.next: Future[Tensor] | None = None
        self.log = Log(folder, self.step if resumed is not None else -1)
        if resumed is None:
            self._record(recipe=asdict(recipe), notes=notes)
            self._validate()
            self.save()

    # --- where a run starts -------------------------------------------------------------------------------------------

    def _start(self, model: Estimator) -> tuple[list[str], set[str]]:
        """Give the model the values of `init_from`, or without one the principal axes of photographs: in stage A, and a
        member of one lambda in any stage. A context of the paper's begins by passing on what h_s says.

        Returns lines for people, and the names of the grids that `init_from` had.
        """
        run = self.recipe.run
        if isinstance(model, Member):
            hyperprior.pass_on(model)
        if not run.init_from:
            if run.stage == "d":
                raise InputError("stage d makes an encoder for a decoder that is there: init_from names its state")
            self.first = max(0, run.first_step)
            start = None
            if isinstance(model, OfOneLambda):
                start = partial(hyperprior.start_from_principal_axes, model)
            elif run.stage == "a":
                start = partial(stand_in.start_from_principal_axes, model)
            if start:
                size, _ = max(self.recipe.crops)
                x = to_unit(self.crops.batch(self._generator(AXES), 4 + 2**18 // size**2, size))
                start(patches(x))
            return [], set()
        state = states.read(Path(run.init_from))
        if run.grow:
            grown = grow(model, state.under("ema"))
            self.fresh, lines = grown.fresh, grown.lines()
            states.take_grids(model, state)
        else:
            match = states.start_from(model, state)
            if not match.matched:
                raise InputError(f"{run.init_from}: none of its tensors fits {run.preset} in stage {run.stage}")
            self.fresh, lines = match.first_values, match.lines()
        if run.stage == "d" and (lacking := [name for name in self.fresh if not name.startswith(stages.ENCODER)]):
            raise InputError(f"{run.init_from} has no values for {lacking[0]}, which stage d does not train")
        if self.recipe.rates.alone and not self.fresh:
            raise InputError(f"{run.init_from} has values for all of {run.preset}: there is nothing to train alone")
        same = state.facts.get("stage") == "a" if run.stage == "a" else state.facts.get("stage") != "a"
        self.first = run.first_step if run.first_step >= 0 else int(state.facts.get("step", 0)) if same else 0
        return lines, set(state.facts.get("grids", ()))

    def _resume(self, model: Estimator, facts: dict[str, Any]) -> None:
        run = self.recipe.run
        for name in ("preset", "stage"):
            if facts[name] != getattr(run, name):
                raise InputError(f"{self.folder} is a run of {name} {facts[name]}, not {getattr(run, name)}")
        found = Config.from_json(facts["config"])  # which fields there are differs between versions
        if any(getattr(found, k) != v for k, v in vars(model.config).items() if not k.startswith("metric")):
            raise InputError(f"{self.folder} is a run of another model: its preset or `model` differs")
        model.grids = states.grids_of(facts)
        self.step, self.first, self.fresh = facts["step"], facts["first"], facts["fresh"]
        self.spent, self.skipped, self.pending = facts["spent"], facts["skipped"], list(facts["pending"])

    def _load_optimisers(self, tensors: dict[str, Tensor]) -> None:
        names = dict(self.model.named_parameters())
        owner = {p: o for o in self.optimisers for g in o.param_groups for p in g["params"]}
        for key, value in tensors.items():
            name, _, slot = key.rpartition("@")
            p = names[name]
            # AdamW keeps its count of updates on the CPU.
            owner[p].state[p][slot] = value if slot == "step" else torch.empty_like(p).copy_(value)

    # --- a step -------------------------------------------------------------------------------------------------------

    @property
    def hours(self) -> float:
        """Hours of training so far, in all processes of this run."""
        return (self.spent + time.time() - self.began) / 3600

    @property
    def progress(self) -> float:
        """The share of the run that is done, 0 to 1: by training steps or by time, whichever is larger."""
        run = self.recipe.run
        by_steps = (self.step - self.first) / max(1, run.steps - self.first)
        return max(by_steps, self.hours / run.end_hours if run.end_hours else 0.0)

    def advance(self) -> None:
        """Do one training step, then what is due: calibrate grids, write to the log, validate, save a checkpoint."""
        recipe, records = self.recipe, self.recipe.records
        factor = rate_factor(recipe.rates, self.step, self.step - self.first, self.progress)
        for group in (g for o in self.optimisers for g in o.param_groups):
            group["lr"] = group["base"] * factor
        if self.manners:
            self.manners.adapt()
        if recipe.rates.alone:
            self._train_alone()
        x = self._batch(self.step)
        q = torch.from_numpy(self._generator(QUALITIES).random(len(x), np.float32))
        q = ((torch.arange(len(x)) + q) / len(x)).to(self.device)
        torch.manual_seed(int(self._generator(NOISE).integers(2**62)))
        fake = recipe.objective.fake > 0 and self.progress >= 1 - recipe.objective.fake
        loss, _ = stages.loss_of(
            self.model,
            x,
            q,
            self.fast,
            joint=self.joint,
            fake=fake,
            distortion=self.distortion,
            limit=recipe.objective.limit,
        )
        for o in self.optimisers:
            o.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, recipe.rates.clip)
        if torch.isfinite(norm):
            for o in self.optimisers:
                o.step()
            self.pending.append(loss.detach())
        else:
            self.skipped += 1
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.ema.parameters()),
                list(self.model.parameters()),
                1 - min(0.9999, (self.step + 1) / (self.step + 10)),  # averages over the last ninth of the training
            )
        self.step += 1
        self.crops_done += len(x)

        if self.step - self.first in recipe.objective.calibrate_at:
            self._calibrate()
            self._record(grids=self.model.grids)
        if self.step % records.log_every == 0:
            self._log_loss(norm, factor)
        if self.step % records.validate_every == 0:
            self._validate()
        if self.step % records.save_every == 0:
            self.save()

    def _train_alone(self) -> None:
        """For the first steps, let only those parameters have a gradient that `init_from` had no values for."""
        alone = self.step - self.first < self.recipe.rates.alone
        names: dict[Tensor, str] = {p: n for n, p in self.model.named_parameters()}
        for p in (p for o in self.optimisers for g in o.param_groups for p in g["params"]):
            p.requires_grad_(not alone or names[p] in self.fresh)

    def _generator(self, use: int, step: int | None = None) -> np.random.Generator:
        return np.random.default_rng([self.recipe.run.seed, self.step if step is None else step, use])

    def _draw(self, step: int) -> Tensor:
        rng = self._generator(CROPS, step)
        kinds = self.recipe.crops
        size, n = kinds[int(rng.integers(len(kinds)))]
        return self.crops.batch(rng, n, size, self.recipe.data.synthetic)

    def _batch(self, step: int) -> Tensor:
        """The crops of a training step, on the device; while a GPU computes, the crops of the next one are cut."""
        if self.ahead is None:
            return to_unit(self._draw(step))
        pixels = self.next.result() if self.next is not None else self._draw(step)
        self.next = self.ahead.submit(self._draw, step + 1)
        return to_unit(pixels.to(self.device))

    def _calibrate(self, keep: Collection[str] = ()) -> None:
        """Let all grids but those in `keep` follow the spread of their activations."""
        size, _ = max(self.recipe.crops)
        x = to_unit(self.crops.batch(self._generator(GRIDS), 16, size).to(self.device))
        seen = stages.calibrate(self.model, x, torch.linspace(0, 1, 16, device=self.device), self.fast)
        self.model.grids |= {k: v for k, v in seen.items() if k not in keep}
        self.ema.grids = dict(self.model.grids)

    # --- records ------------------------------------------------------------------------------------------------------

    def _record(self, **values: Any) -> None:
        self.log.add({"step": self.step, "hours": round(self.hours, 4), **values})

    def _log_loss(self, norm: Tensor, factor: float) -> None:
        now = time.time()
        losses = [float(v) for v in self.pending]
        values = {
            "loss": round(sum(losses) / len(losses), 5) if losses else float("nan"),
            "norm": round(norm.item(), 3),
            "rate": round(factor, 4),
            "crops_per_s": round(self.crops_done / (now - self.since), 2),
            "threads": torch.get_num_threads(),
            "skipped": self.skipped,
        }
        self._record(**values)
        self.log.show(self.step, self.progress, values)
        self.pending, self.since, self.crops_done = [], now, 0

    def _validate(self) -> None:
        if not self.held:
            return
        start = time.time()
        rows = stages.validate(self.ema, self.held, self.fast, joint=self.joint, distortion=self.distortion)
        self._record(validation=rows, mean=round(sum(r[-1] for r in rows) / len(rows), 5))
        self.since += time.time() - start

    def save(self) -> None:
        """Write a checkpoint of the present training step."""
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema/{k}": v for k, v in self.ema.state_dict().items()}
        names: dict[Tensor, str] = {p: n for n, p in self.model.named_parameters()}
        for o in self.optimisers:
            tensors |= {f"optimiser/{names[p]}@{slot}": v for p, s in o.state.items() for slot, v in s.items()}
        facts = {
            "preset": self.recipe.run.preset,
            "config": self.model.config.to_json(),
            "stage": self.recipe.run.stage,
            "step": self.step,
            "first": self.first,
            "fresh": self.fresh,
            "grids": self.model.grids,
            "arithmetic": ARITHMETIC,
            "spent": 3600 * self.hours,
            "skipped": self.skipped,
            "pending": [float(v) for v in self.pending],
        }
        self.log.sync()
        states.save_checkpoint(self.folder, states.State(facts, tensors), self.recipe.records.keep)

    def finish(self, *, stopped: bool) -> None:
        """Save a last checkpoint. A run that came to its end is validated first, where the log lacks it."""
        if not stopped and self.log.validated_at != self.step:
            self._validate()
        self.save()

    def close(self) -> None:
        self.log.close()
        if self.ahead is not None:
            self.ahead.shutdown()
