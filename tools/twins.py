"""Trained members beside a baseline: bytes of real files after equal steps, and rates after equal seconds.

    python -m tools twins BASELINE... OTHER... --images FOLDER [--qualities 20,50,80] [-o twins.json]

Runs of stage B on the transforms of one stage A: their distortion differs by no more than what latents around other
means are rounded to, so that bytes compare as they are; the PSNR is shown. Runs of the first run's config are the
baseline; their seeds say how far apart runs of one member lie by chance. Each run's EMA is packed, or exported where it
has qualities, and codes the PNGs of the folder. The interval of a difference has two sources, taken as independent: the
images, by bootstrap, and the seeds, by Student's t over those of the baseline. A difference is called one where its 95%
interval does not hold zero.

Equal seconds: a step of each member is timed here, and rates are read from the runs' validations at the step that each
member reaches while the baseline does all of its steps. That means something where the learning rate is held.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from hpcmcodec import search
from hpcmcodec.evaluation.results import Difference, difference, table
from hpcmcodec.evaluation.run import parse_qualities
from tools import facts

if TYPE_CHECKING:
    from hpcmcodec.training.config import Recipe

HEAD = (
    *("member", "parameters", "seeds", "bits per pixel", "PSNR, dB"),
    *("bytes after equal steps", "ms a step", "rate after equal seconds"),
)
_FITTED = 24  # crops of training photographs to which grids are fitted, and the tables of a model with qualities
_SIDE = 256  # of those crops
_ROUNDS = 5  # steps that are timed, of which the quickest counts


@click.command("twins")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--images", "folder", required=True, type=click.Path(path_type=Path), help="Folder of PNG files.")
@click.option("--qualities", help="Of files, for models that have qualities.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="JSON", help="Also write the figures.")
@click.option("--note", help="A sentence on the circumstances, for the page of results.")
def command(runs: tuple[Path, ...], folder: Path, qualities: str | None, output: Path | None, note: str | None) -> None:
    """Rates of trained members, after equal steps and after equal seconds."""
    from hpcmcodec.training.data import pictures

    photographs = list(pictures(folder))
    if not photographs:
        raise click.UsageError(f"{folder} has no PNG files")
    try:
        asked = parse_qualities([f"hpcm={qualities}"])["hpcm"] if qualities else ()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    told = " ".join(["python -m tools twins", *(run.name for run in runs), f"--images path/to/{folder.name}"])
    head = facts.about(told + (f" --qualities {qualities}" if qualities else ""))
    head |= {"model": "the runs' own"} | ({"note": note} if note else {})
    content: dict[str, Any] = head | {"images": len(photographs), "qualities": list(asked), "runs": []}
    content["pixels"] = [int(np.prod(pixels.shape[:2])) for pixels in photographs]
    for run in runs:
        content["runs"].append(measured(run, photographs, asked))
        click.echo(f"{run.name}: {', '.join(_facts(content, content['runs'][-1:]))}")
        if output:
            facts.write(output, content)
    click.echo("\n".join(markdown(content)))


def measured(run: Path, photographs: Sequence[np.ndarray], qualities: Sequence[float]) -> dict[str, Any]:
    """What a run is, and the bytes and PSNR of its files: a list for each quality, an entry for each image."""
    import torch

    from hpcmcodec import codec, weights
    from hpcmcodec.evaluation.counts import count
    from hpcmcodec.evaluation.metrics import psnr_db
    from hpcmcodec.training import config, records, states
    from hpcmcodec.training.speed import measure

    recipe, facts_of_run = config.load(run / "recipe.json"), states.read(run).facts
    found, last = recipe.model_config(), facts_of_run["step"]
    if bool(qualities) != bool(found.qualities):
        raise click.UsageError(f"{run}: {found.name} has {'' if found.qualities else 'no '}qualities")
    logged = records.read_log(run / "log.jsonl", last)
    seconds = measure(recipe, torch.device("cpu"), False, _ROUNDS)
    with written(run, recipe) as path:
        model_id = weights.load_file(path).model_id.hex()
        options: list[dict[str, Any]] = [{"quality": q} for q in qualities] or [{}]
        files = [[codec.encode(p, model=str(path), **option) for p in photographs] for option in options]
        shown = [[np.asarray(codec.decode(data)) for data in each] for each in files]
    return {
        "name": run.name,
        "member": recipe.run.preset,
        "model": json.loads(recipe.run.model or "{}"),
        "seed": recipe.run.seed,
        "steps": last - facts_of_run["first"],
        "crops": list(recipe.data.crops),
        "model_id": model_id,
        "parameters": count(found).parameters,
        "seconds_a_step": round(sum(seconds.values()), 4),
        "bytes": [[len(data) for data in each] for each in files],
        "psnr": [[round(psnr_db(a, b), 3) for a, b in zip(photographs, each, strict=True)] for each in shown],
        "validated": [[r["step"], r["mean"]] for r in logged if "validation" in r],
    }


@contextmanager
def written(run: Path, recipe: Recipe) -> Iterator[Path]:
    """The weights file of a run's EMA, which decoding finds while the context lasts."""
    from hpcmcodec.evaluation.family.coding import weights_of
    from hpcmcodec.training.export import crops_at_all_qualities, export
    from hpcmcodec.training.states import load_model

    crops = crops_at_all_qualities(Path(recipe.data.cache), _FITTED, _SIDE)
    before = os.environ.get(search.VARIABLE)
    with ExitStack() as stack:
        if recipe.model_config().qualities:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpcm-twins-")))
            path = place / f"{run.name}.safetensors"
            export(load_model(run), run.name, place, crops)  # type: ignore[arg-type]
        else:
            path, _ = stack.enter_context(weights_of(str(run), [pixels for pixels, _ in crops]))
        os.environ[search.VARIABLE] = str(path.parent)
        try:
            yield path
        finally:
            del os.environ[search.VARIABLE]
            if before is not None:
                os.environ[search.VARIABLE] = before


def markdown(content: Mapping[str, Any]) -> list[str]:
    """Lines of a table, and of a sentence on the seeds. The first run's config is the baseline."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in content["runs"]:
        groups.setdefault(label(run), []).append(run)
    (name, baseline), *others = groups.items()
    spread = statistics.stdev(map(mean_log, baseline)) if len(baseline) > 1 else None
    rows = [[name, *_facts(content, baseline), "", _step(baseline), ""]]
    for other, runs in others:
        by_steps = said(interval(baseline, runs, spread))
        rows.append([other, *_facts(content, runs), by_steps, _step(runs), equal_seconds(baseline, runs)])
    if spread is None:
        words = "One seed: the intervals are those of the images alone, and say nothing of chance in training."
    else:
        words = f"Runs of {name} with {len(baseline)} seeds differ by {spread:.2%} in bytes (standard deviation)."
    return [*table(HEAD, rows), "", words]


def label(run: Mapping[str, Any]) -> str:
    """The member of a run, with what was changed in it."""
    changed = ", ".join(f"{key} {value}" for key, value in run["model"].items())
    return f"{run['member']} with {changed}" if changed else str(run["member"])


def _facts(content: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Parameters, seeds, and the means over images and runs of bits per pixel and PSNR, of each quality."""
    rates = (np.mean([run["bytes"] for run in runs], axis=0) * 8 / np.asarray(content["pixels"])).mean(1)
    quality = np.mean([run["psnr"] for run in runs], axis=(0, 2))
    seeds = ", ".join(str(run["seed"]) for run in runs)
    means = (", ".join(f"{v:.{digits}f}" for v in values) for values, digits in ((rates, 4), (quality, 3)))
    return [f"{runs[0]['parameters']:,}", seeds, *means]


def _step(runs: Sequence[Mapping[str, Any]]) -> str:
    return f"{1000 * min(run['seconds_a_step'] for run in runs):,.0f}"


def mean_log(run: Mapping[str, Any]) -> float:
    """The mean over images and qualities of the logarithm of the bytes."""
    return float(np.log(run["bytes"]).mean())


def interval(
    baseline: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], spread: float | None
) -> Difference:
    """The mean relative difference in bytes, and its 95% interval; spread: of the baseline's seeds."""
    from scipy.stats import t

    first, second = (np.exp(np.log([run["bytes"] for run in group]).mean((0, 1))) for group in (baseline, runs))
    by_image = difference(first.tolist(), second.tolist())
    mean, low, high = (math.log1p(v) for v in by_image)
    chance = 0.0
    if spread is not None:
        chance = float(t.ppf(0.975, len(baseline) - 1)) * spread * math.sqrt(1 / len(baseline) + 1 / len(runs))
    ends = mean, mean - math.hypot(mean - low, chance), mean + math.hypot(high - mean, chance)
    return Difference(*map(math.expm1, ends))


def said(gap: Difference) -> str:
    """A difference, its interval, and what it shows."""
    verdict = "no difference shown" if gap.low <= 0 <= gap.high else "smaller" if gap.high < 0 else "larger"
    return f"{gap.mean:+.1%} [{gap.low:+.1%}, {gap.high:+.1%}]: {verdict}"


def equal_seconds(baseline: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    """The relative difference in validated rate when each has trained for as long as the baseline's steps take; empty
    where a run was not validated.
    """
    if not all(run["validated"] for run in (*baseline, *runs)):
        return ""
    per_step = [min(run["seconds_a_step"] for run in group) for group in (baseline, runs)]
    limit = min(run["steps"] for run in baseline) * per_step[0]
    rates = []
    for group, seconds in zip((baseline, runs), per_step, strict=True):
        curves = [np.asarray(run["validated"]) for run in group]
        rates.append(statistics.fmean(float(np.interp(limit / seconds, c[:, 0], c[:, 1])) for c in curves))
    return f"{rates[1] / rates[0] - 1:+.1%}"
