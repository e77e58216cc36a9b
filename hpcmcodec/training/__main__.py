"""`python -m hpcmcodec.training`: cache, train, plot, speed, worth, judge, pack, join, export, import."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from hpcmcodec.errors import HpcmError, UnsupportedError
from hpcmcodec.training import config

EXISTING = click.Path(exists=True, path_type=Path)
PATH = click.Path(path_type=Path)


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[float]:
    """A callback of click that reads numbers from 0 to 100. Raises click.BadParameter for anything else."""
    try:
        found = [float(v) for v in value.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= v <= 100 for v in found):  # false for NaN, too
        raise click.BadParameter(f"{value!r} are not numbers from 0 to 100, separated by commas", ctx, param)
    return found


def _lambda(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """A callback of click. Raises click.BadParameter where the number is none that a model can name."""
    if not 1e-6 <= value <= 4096:  # click's own range lets NaN pass
        raise click.BadParameter(f"{value:g} is not from 0.000001 to 4096", ctx, param)
    return value


@click.group()
def main() -> None:
    """Train and export the weights of hpcm.

    A STATE is a file of states, its pieces under its own name, or the folder of a run, whose newest checkpoint counts.
    """


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for each field of a recipe. An option that is not given leaves the recipe's value."""
    for _, f, kind in reversed(list(config.options())):
        name, text = f.name.replace("_", "-"), f.metadata["help"]
        if kind is bool:
            command = click.option(f"--{name}/--no-{name}", default=None, help=text)(command)
        else:
            several = get_args(kind)
            default = ",".join(map(str, f.default)) if several else f.default
            shown = f"{text}  [{default}]" if default not in ("", None) else text
            command = click.option(f"--{name}", type=str if several else kind, default=None, help=shown)(command)
    return command


def chosen(recipe: str | None, overrides: dict[str, Any], folder: Path | None = None) -> config.Recipe:
    """The named recipe, or without a name that of the run in `folder`, with the command line's overrides.

    Raises UsageError where there is neither a name nor a run.
    """
    if recipe is None:
        if folder is None or not (folder / "recipe.json").is_file():
            raise click.UsageError("name a recipe: a TOML file, or one of those that come along")
        recipe = str(folder / "recipe.json")
    return config.load(recipe).override({k: v for k, v in overrides.items() if v is not None})


@main.command()
@click.argument("out", type=PATH)
@click.argument("sources", nargs=-1, required=True, type=EXISTING)
def cache(out: Path, sources: tuple[Path, ...]) -> None:
    """Decode the photographs of SOURCES, folders or tar files, once into OUT."""
    from hpcmcodec.training.data import build_cache

    click.echo(f"{build_cache(out, sources, click.echo)} images in {out}")


@main.command()
@click.argument("recipe", required=False)
@click.option("--run", "folder", required=True, type=PATH, help="Folder of the run, which is resumed where it exists.")
@recipe_options
def train(recipe: str | None, folder: Path, **overrides: Any) -> None:
    """Train as RECIPE says: lite-a to -d, tiny, small-a, -b, base-a, -b, -c, or a TOML file; a run that exists needs
    none.

    A run that was stopped or killed goes on where its newest checkpoint was.
    """
    from hpcmcodec.training.loop import train as run

    run(chosen(recipe, overrides, folder), folder)


@main.command()
@click.argument("folder", type=EXISTING)
@click.option("-o", "--out", type=PATH, help="PNG or SVG file; default: curve.png in the run's folder.")
@click.option("--dark", is_flag=True, help="For dark pages.")
def plot(folder: Path, out: Path | None, dark: bool) -> None:
    """Draw loss and validation of the run in FOLDER against wall time, and its RD points."""
    from hpcmcodec.training.report import plot as run

    out = out or folder / "curve.png"
    out.write_bytes(run(folder, theme="dark" if dark else "light", image_format=out.suffix[1:]))
    click.echo(out)


@main.command()
@click.argument("recipe", default="lite-b")
@click.option("--rounds", default=3, show_default=True, help="Steps that are timed, after one that is not.")
@recipe_options
def speed(recipe: str, rounds: int, **overrides: Any) -> None:
    """Crops a second in bfloat16 and float32 and where a step's time goes, for each kind of RECIPE's crops.

    Of all stages, or the one that --stage names: to find the largest batch that still speeds things up, say
    --stage b --crops 256:16,256:32,256:64.
    """
    from hpcmcodec.training.speed import table

    of = (overrides["stage"],) if overrides["stage"] else tuple(config.STAGES)
    for line in table(chosen(recipe, overrides), rounds, of):
        click.echo(line)


@main.command()
@click.argument("state", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--full", is_flag=True, help="All of it as it is, optimisers included, instead of the EMA in half precision."
)
def pack(state: Path, out: Path, full: bool) -> None:
    """Write STATE to OUT, compressed, in pieces under 16 MiB (OUT.00, OUT.01, ...) where it is larger than that."""
    from hpcmcodec.training import states

    for path in states.cut(states.pack(states.slim(states.read(state, click.echo), full=full)), out):
        click.echo(f"{path}: {path.stat().st_size:,} bytes")


@main.command()
@click.argument("state", type=PATH)
@click.option("--run", "folder", type=PATH, help="Make a full state the checkpoint of a run's folder, to resume.")
def join(state: Path, folder: Path | None) -> None:
    """Join the pieces STATE.00, STATE.01, ... to STATE again, and check the result; or make it a run's checkpoint."""
    from hpcmcodec.training import states

    found = states.read(state)
    if folder is None:
        states.write(state, state.read_bytes() if state.is_file() else states.join(state))
        click.echo(f"{state}: whole")
        return
    if not found.under("optimiser"):
        raise click.UsageError(f"{state} has no optimisers to resume with: start from it with --init-from")
    folder.mkdir(parents=True, exist_ok=True)
    if states.checkpoints(folder):
        raise click.UsageError(f"{folder} has checkpoints of its own")
    states.save_checkpoint(folder, found, keep=1)
    click.echo(f"{folder}: at step {found.facts['step']}")


@main.command()
@click.argument("state", type=PATH)
@click.option("--name", help="Of the model; a packaged one's files stay what they are.")
@click.option("--encoder-of", metavar="MODEL", help="Take the encoder from STATE, the decoder and the name from MODEL.")
@click.option("-o", "--out", required=True, type=PATH, help="Folder of the weights.")
@click.option("--cache", required=True, type=EXISTING, help="Where the crops come from.")
@click.option(
    "--crops",
    type=click.IntRange(min=1),
    show_default="120",
    help="Crops of 384 pixels to fit grids and tables to, and 4 times as many of 512 pixels to fit z's.",
)
@click.option("--held-out", type=EXISTING, help="PNGs on which exact arithmetic may cost 0.3% of the bits, mean of q.")
def export(
    state: Path,
    name: str | None,
    encoder_of: str | None,
    out: Path,
    cache: Path,
    crops: int | None,
    held_out: Path | None,
) -> None:
    """Write weights from STATE, and the graphs with which they encode without torch."""
    from hpcmcodec import weights
    from hpcmcodec.model.family.model import Member
    from hpcmcodec.model.hpcm import HPCM
    from hpcmcodec.training import packing
    from hpcmcodec.training.export import CHECKED, crops_at_all_qualities, export_encoder
    from hpcmcodec.training.export import export as run
    from hpcmcodec.training.states import load_model

    if (name is None) == (encoder_of is None):
        raise click.UsageError("either --name says what the model is called, or --encoder-of whose encoder it becomes")
    if encoder_of and (crops or held_out):
        raise click.UsageError(
            "--crops and --held-out are about what decoding uses, and --encoder-of leaves that alone"
        )
    model = load_model(state)
    if not isinstance(model, HPCM):
        raise click.UsageError(f"{state} is a {type(model).__name__}, which has no context to code with")
    if name is None:
        if isinstance(model, Member):
            raise click.UsageError("--encoder-of is for models of all qualities")
        base = weights.load(str(encoder_of))
        model_id = export_encoder(model, base, out, crops_at_all_qualities(cache, CHECKED))
        click.echo(f"{base.name}: model id {model_id.hex()}, with another encoder")
        return
    crops = crops or 120
    photographs = crops_at_all_qualities(cache, crops)
    if isinstance(model, Member):
        model_id = packing.export(model, name, out, [pixels for pixels, _ in photographs], held_out, click.echo)
    else:
        more = crops_at_all_qualities(cache, 4 * crops, 512)
        model_id = run(model, name, out, photographs, held_out, click.echo, more)
    click.echo(f"{name}: model id {model_id.hex()}")


@main.command("import")
@click.argument("checkpoint", type=PATH)
@click.option("--name", required=True, help="Of the model, by which hpcm encode --model finds it.")
@click.option("-o", "--out", required=True, type=PATH, help="Folder of the weights.")
@click.option("--lambda", "fixed_lambda", required=True, type=float, callback=_lambda, help="It was trained for.")
@click.option("--metric", default="mse", show_default=True, type=click.Choice(["mse", "ms-ssim"]), help="The same.")
@click.option("--calibrate", type=EXISTING, help="Folder of PNGs, photographs whose activations the grids hold.")
@click.option(
    "--precision",
    default="16",
    show_default=True,
    type=click.Choice(["14", "16"]),
    help="Bits of the entropy path's codes: 14 have kernels, 16 lose less.",
)
def import_(
    checkpoint: Path, name: str, out: Path, fixed_lambda: float, metric: str, calibrate: Path | None, precision: str
) -> None:
    """Write the weights that a published checkpoint of HPCM-Base, -Large or -Phi codes files with."""
    from hpcmcodec.training.imports import run

    if not name.isprintable() or name.startswith(".") or set(name) & set("/\\"):
        raise click.UsageError(f"a model is not named {name!r}: it is the name of a file")
    settings = {"name": name, "fixed_lambda": fixed_lambda, "metric": metric, "precision": int(precision)}
    path = out / f"{name}.safetensors"
    model_id = run(checkpoint, path, settings, calibrate, click.echo)
    click.echo(f"{name}: model id {model_id.hex()}; hpcm encode --model {path}")


@main.command()
@click.argument("state", type=PATH)
@click.argument("folder", type=EXISTING)
@click.option(
    "--qualities",
    default=",".join(f"{10 * i}" for i in range(11)),
    show_default=True,
    callback=_numbers,
    help="0 to 100.",
)
@click.option("--against", type=PATH, help="Another state, say that of a run --without-context.")
@click.option("--grids", help="Packaged weights whose grids exact arithmetic runs on, instead of those of training.")
def worth(state: Path, folder: Path, qualities: list[float], against: Path | None, grids: str | None) -> None:
    """Estimated bpp of STATE over the PNGs of FOLDER: exact arithmetic against float, or against another state.

    And what the synthesis loses in integers, its exponents being those that fit the PNGs themselves.
    """
    from hpcmcodec import weights
    from hpcmcodec.training.export import pictures_at_all_qualities
    from hpcmcodec.training.fitting import synthesis_integers
    from hpcmcodec.training.report import compare, mean_bpp, synthesis_loss
    from hpcmcodec.training.states import load_model

    if against and grids:
        raise click.UsageError("--grids are of exact arithmetic, which --against does without")
    model = load_model(state)
    theirs = mean_bpp(load_model(against) if against else model, folder, qualities, fake=False)
    if grids:
        model.grids = weights.load(grids).grids
    ours = mean_bpp(model, folder, qualities, fake=against is None)
    click.echo("\n".join(compare(qualities, ours, theirs)[0]))
    if not against:
        integers = synthesis_integers(model, pictures_at_all_qualities(folder))
        click.echo("\n".join(synthesis_loss(model, integers, folder, qualities)[0]))


@main.command()
@click.argument("states", nargs=-1, required=True, metavar="STATE...", type=PATH)
@click.option("--pictures", "folder", required=True, type=EXISTING, help="Folder of held-out PNG files.")
@click.option("--images", type=click.IntRange(min=1), help="Take the first so many.  [default: all]")
@click.option("--qualities", default="10,25,40,55,70,85", show_default=True, callback=_numbers, help="0 to 100.")
@click.option("--metrics", help="Of psnr, ms-ssim, ssimulacra2, butteraugli.  [default: those that are installed]")
def judge(
    states: tuple[Path, ...], folder: Path, images: int | None, qualities: list[float], metrics: str | None
) -> None:
    """Compare STATEs with the first one by estimated bits and by what eyes see, on held-out pictures."""
    from functools import partial

    from hpcmcodec.evaluation.metrics import METRICS
    from hpcmcodec.training.judge import judge as run
    from hpcmcodec.training.states import load_model

    chosen = metrics.split(",") if metrics else [name for name, metric in METRICS.items() if not metric.missing]
    for name in chosen:
        if name not in METRICS or METRICS[name].missing:
            raise click.UsageError(f"metric {name}: {METRICS[name].missing if name in METRICS else 'not known'}")
    loads = {str(state): partial(load_model, state) for state in states}
    run(loads, folder, qualities, chosen, images, click.echo)


if __name__ == "__main__":
    try:
        main()
    except HpcmError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "hpcmcodec").startswith("hpcmcodec"):
            raise
        install = 'pip install "hpcmcodec[train]"'
        click.echo(f"error: this needs {error.name}, which is not installed: {install}", err=True)
        sys.exit(UnsupportedError.exit_code)
