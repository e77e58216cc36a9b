"""The recipe of a training run: dataclasses hold the defaults, TOML files and the command line override them.

A TOML file has one table for each section and names only what differs from the defaults. Field names are unique over
all sections, so that the command line overrides any of them by its name alone. Unknown tables and keys are refused.
"""

from __future__ import annotations

import json
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hpcmcodec.errors import InputError, UnsupportedError
from hpcmcodec.model.config import DISTORTIONS, MIN_SIDE, PRESETS, Config

CONFIGS = Path(__file__).parent / "configs"
SCHEDULES = ("root", "cosine", "steps")
STAGES = {
    "a": "transforms, gains and hyperprior, with a causal context that stands in for the progressive one",
    "b": "hyperprior and context on frozen transforms, rate alone",
    "c": "everything together",
    "d": "the encoder alone, g_a, h_a and the gains, beside a decoder that stays as it is",
}


def option(default: Any, text: str) -> Any:
    """A dataclass field with a default and the help text of its option."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Run:
    """What is trained, for how long, from where."""

    preset: str = option("lite", "member of the family")
    model: str = option("", 'fields in which the model differs from the preset, as JSON: {"memory": "none"}')
    stage: str = option("a", "; ".join(f"{k}: {v}" for k, v in STAGES.items()))
    without_context: bool = option(False, "the yardstick: a 1x1 head on h_s alone in the context's place")
    steps: int = option(100_000, "step at which the run ends")
    end_hours: float = option(0.0, "hours of training after which the run ends, whichever comes first; 0: no limit")
    init_from: str = option("", "state whose tensors the run starts from: a file, or a run's folder")
    grow: bool = option(False, "init_from is of a smaller member of the family: what is new begins by adding nothing")
    first_step: int = option(-1, "number of the first step; -1: goes on from init_from's, at 0 where the stage is new")
    seed: int = option(0, "all that is random in step n derives from this and n")
    device: str = option("auto", "cpu, cuda, or auto")
    precision: str = option("auto", "bf16 or float32 for convolutions and products; auto: bf16 where it is faster")
    recompute: bool = option(False, "run blocks, priors and cells again in the backward pass: less memory, more time")
    polite: bool = option(False, "leave cores to other work as it comes and goes")


@dataclass(frozen=True)
class Data:
    """Where crops come from, and what is done to them."""

    cache: str = option("", "folder of decoded photographs, made by `cache`")
    crops: tuple[str, ...] = option(("192:8",), "size:batch, one of them drawn each step; sizes are multiples of 16")
    rescale: tuple[float, ...] = option((), "factors low,high: crops are scaled down by a random one in between")
    synthetic: float = option(0.0, "share of crops that are made: text, controls, patterns, dithers, halftones")
    validation: str = option("", "folder of held-out PNG files; none: no validation")
    images: int = option(16, "validation images to use")


@dataclass(frozen=True)
class Rates:
    """Learning rates: they warm up, follow the schedule, and at the end fall linearly to nothing."""

    optimiser: str = option("muon", "muon: Muon for 1x1 matrices and AdamW for the rest; adam: Adam alone")
    adam: float = option(1e-4, "Adam's rate")
    muon: float = option(2e-3, "Muon's rate, for 1x1 matrices")
    adamw: float = option(1e-3, "AdamW's rate, for the rest")
    transforms: float = option(1.0, "times the rates, for g_a, g_s and the gains")
    hyperprior: float = option(1.0, "times the rates, for h_a, h_s and the prior of z")
    context: float = option(1.0, "times the rates, for the context")
    rwkv: float = option(1.0, "times those of the context, for cells, fusion nets and priors")
    recurrence: float = option(1.0, "times those of the context, for Bi-WKV's decay and boost, in place of rwkv")
    fresh: float = option(1.0, "times the rates, for what init_from had no values for")
    alone: int = option(0, "steps from the start of the run that train only what init_from had no values for")
    warm: int = option(100, "steps of warm-up from the start of the run")
    warm_from: float = option(0.0, "share of the full rates that warm-up begins at; 0: 1 / warm")
    schedule: str = option(
        "root", "root: hold, then fall as 1 / sqrt(step); cosine: over the run; steps: 1, .3, .1, .01, most at the end"
    )
    hold: int = option(500, "steps at the full rates of schedule root")
    decay: float = option(0.0, "last share of the run in which rates also fall linearly to nothing")
    clip: float = option(1.0, "largest norm of the gradient")


@dataclass(frozen=True)
class Objective:
    """What is minimised."""

    distortion: str = option("mse", "mse, ms-ssim, mixed or visual; MS-SSIM needs crops of 176 pixels or more")
    share: float = option(0.5, "share in mixed and visual of what is not mse")
    weight: float = option(1.0, "times the distortion; with 1.4, a quality has about the size with visual as with mse")
    limit: float = option(0.0, "loss of a crop above which it counts by its logarithm; 0: none")
    fake: float = option(0.0, "last share of the run that computes the entropy path as coding does")
    calibrate_at: tuple[int, ...] = option((), "steps of the run after which the grids follow the activations' spread")


@dataclass(frozen=True)
class Records:
    """What the run leaves behind, and how often."""

    log_every: int = option(50, "steps between lines of the log")
    validate_every: int = option(500, "steps between validations")
    save_every: int = option(250, "steps between checkpoints")
    keep: int = option(3, "checkpoints to keep")


@dataclass(frozen=True)
class Recipe:
    """All settings of one run. Raises InputError for values that make no sense, alone or together."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    rates: Rates = field(default_factory=Rates)
    objective: Objective = field(default_factory=Objective)
    records: Records = field(default_factory=Records)

    def __post_init__(self) -> None:
        run, rates = self.run, self.rates
        _among("preset", run.preset, PRESETS)
        self.model_config()
        _among("stage", run.stage, STAGES)
        _among("precision", run.precision, ("auto", "bf16", "float32"))
        _among("device", run.device.split(":")[0], ("auto", "cpu", "cuda"))
        _among("distortion", self.objective.distortion, DISTORTIONS)
        _among("optimiser", rates.optimiser, ("muon", "adam"))
        _among("schedule", rates.schedule, SCHEDULES)
        for name, whole, share in (
            ("decay", "the run", rates.decay),
            ("fake", "the run", self.objective.fake),
            ("warm_from", "the full rates", rates.warm_from),
            ("synthetic", "the crops", self.data.synthetic),
            ("share", "the distortion", self.objective.share),
        ):
            if not 0 <= share <= 1:
                raise InputError(f"{name} is a share of {whole}, 0 to 1, not {share:g}")
        if not self.objective.limit >= 0:
            raise InputError(f"limit is a loss, or 0 for none, not {self.objective.limit:g}")
        if not self.objective.weight > 0:
            raise InputError(f"weight multiplies the distortion, not by {self.objective.weight:g}")
        if rates.warm < 1 or rates.hold < 1 or min(asdict(self.records).values()) < 1:
            raise InputError("warm, hold and all of [records] are at least 1")
        for name, asked in (("grow", run.grow), ("alone", rates.alone)):
            if asked and not run.init_from:
                raise InputError(f"{name} is about the state that init_from names, and it names none")
        if run.stage == "a" and run.without_context:
            raise InputError("stage a has a context of its own: without_context belongs to stages b and c")
        if self.data.rescale and not (len(self.data.rescale) == 2 and 0 < self.data.rescale[0] <= self.data.rescale[1]):
            raise InputError(f"rescale is two factors, low,high, not {self.data.rescale}")
        smallest = min(size for size, _ in self.crops)
        if self.objective.distortion in ("ms-ssim", "mixed") and smallest < MIN_SIDE:
            raise InputError(f"{self.objective.distortion} needs crops of at least {MIN_SIDE} pixels, found {smallest}")

    def model_config(self) -> Config:
        """The preset's config, with the fields that `model` names replaced, and the distortion that is asked for.

        Raises InputError where it is invalid.
        """
        objective = self.objective
        metric = {"metric": objective.distortion, "metric_share": objective.share, "metric_weight": objective.weight}
        try:
            changes = json.loads(self.run.model or "{}") | metric
            return Config.from_json(json.dumps(asdict(PRESETS[self.run.preset]) | changes))
        except (ValueError, TypeError, UnsupportedError) as error:
            raise InputError(f"model {self.run.model!r}: {error}") from error

    @property
    def crops(self) -> tuple[tuple[int, int], ...]:
        """(side in pixels, batch) of each kind of crop. Raises InputError where a text is not size:batch."""
        out = []
        for text in self.data.crops:
            size, _, batch = text.partition(":")
            if not (size.isdecimal() and batch.isdecimal() and int(size) > 0 and int(size) % 16 == 0 and int(batch)):
                raise InputError(f"crops are size:batch, the size a multiple of 16, not {text!r}")
            out.append((int(size), int(batch)))
        if not out:
            raise InputError("crops names none")
        return tuple(out)

    def override(self, values: Mapping[str, Any]) -> Recipe:
        """This recipe with the named fields replaced. Raises InputError for an unknown name or a wrong type."""
        known = {f.name: (section, kind) for section, f, kind in options()}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        sections: dict[str, Any] = {}
        for name, value in values.items():
            section, kind = known[name]
            before = sections.get(section, getattr(self, section))
            sections[section] = replace(before, **{name: _typed(kind, name, value)})
        return replace(self, **sections)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def options() -> Iterator[tuple[str, Any, Any]]:
    """(name of the section, dataclass field, type) of every option of a recipe."""
    for section in fields(Recipe):
        kind: Any = section.default_factory
        types_of = typing.get_type_hints(kind)
        for f in fields(kind):
            yield section.name, f, types_of[f.name]


def load(source: str | Path) -> Recipe:
    """A recipe by the name of a packaged one (`lite-b`), from a TOML file, or from a run's recipe.json.

    Raises InputError where there is none, or for unknown tables, keys and wrong types.
    """
    path = Path(source)
    if not path.suffix:
        path = CONFIGS / f"{source}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
        raise InputError(f"no recipe {source}: it is a TOML file, or one of {names}")
    text = path.read_text(encoding="utf-8")
    try:
        tables = json.loads(text) if path.suffix == ".json" else _toml(text)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    known = {f.name: {o.name for s, o, _ in options() if s == f.name} for f in fields(Recipe)}
    wrong = [k for k in tables if k not in known or not isinstance(tables[k], dict)]
    wrong += [f"{k}.{name}" for k in tables if k not in wrong for name in tables[k] if name not in known[k]]
    if wrong:
        raise InputError(f"{path}: unknown: {', '.join(wrong)}")
    try:
        return Recipe().override({name: value for table in tables.values() for name, value in table.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise InputError('recipes in TOML need tomli on Python 3.10: pip install "hpcmcodec[train]"') from error
    return tomllib.loads(text)


def _typed(wanted: Any, name: str, value: Any) -> Any:
    if isinstance(wanted, types.GenericAlias):  # tuple[item, ...]
        item = typing.get_args(wanted)[0]
        values = [v for v in value.split(",") if v] if isinstance(value, str) else value
        if isinstance(values, (list, tuple)):
            return tuple(_scalar(item, name, v) for v in values)
        raise InputError(f"{name} is a list, not {value!r}")
    return _scalar(wanted, name, value)


def _scalar(wanted: type, name: str, value: Any) -> Any:
    found = value
    if wanted in (int, float) and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            found = wanted(value)
        except (ValueError, OverflowError):
            found = None
    fits = isinstance(found, wanted) and (wanted is bool or not isinstance(found, bool))
    if not fits or (isinstance(found, float) and not math.isfinite(found)):
        raise InputError(f"{name} is {wanted.__name__}, not {value!r}")
    return found


def _among(name: str, value: str, known: typing.Iterable[str]) -> None:
    if value not in known:
        raise InputError(f"{name} is one of {', '.join(known)}, not {value!r}")
