"""The members of the family, side by side.

python -m hpcmcodec.evaluation.family table [--size base|small|lite] [--published]
python -m hpcmcodec.evaluation.family check MEMBER...
python -m hpcmcodec.evaluation.family compare A B [--metric all] [--images DIR]
python -m hpcmcodec.evaluation.family quickstart [MEMBER] [IMAGE]

They need torch. What is printed as a gain or a loss has a 95% interval that does not hold zero.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hpcmcodec.evaluation.counts import count
from hpcmcodec.evaluation.store import write_whole
from hpcmcodec.model.config import PRESETS

EXISTING = click.Path(exists=True, path_type=Path)


@click.group(help="The members of the family, side by side.")
def family() -> None:
    """Holds the commands."""


@family.command()
@click.option("--size", type=click.Choice(("base", "small", "lite")), default="base", help="the members to list")
@click.option("--published", is_flag=True, help="count as the published classes do: merged copies, the dead cell")
def table(size: str, published: bool) -> None:
    """Parameters and thousands of multiplications per pixel, of 256 x 256 pixels; no weights are needed."""
    members = {name: c for name, c in PRESETS.items() if _size(name) == size}
    rows = {name: count(config) for name, config in members.items()}
    first = next(iter(rows.values())).parameters
    click.echo(f"{'member':<18}{'parameters':>14}{'kMAC/px':>10}{'against the first':>20}")
    for name, c in rows.items():
        parameters, kmac = (c.published_parameters, c.published_kmac) if published else (c.parameters, c.kmac)
        click.echo(f"{name:<18}{parameters:>14,}{kmac:>10.1f}{c.parameters / first - 1:>+19.1%}")


@family.command()
@click.argument("members", nargs=-1, required=True)
@click.pass_context
def check(ctx: click.Context, members: tuple[str, ...]) -> None:
    """Check that MEMBERS keep what every member has to: forward, memory, training, compression, variations.

    Ends with exit code 1 where a claim does not hold.
    """
    from hpcmcodec.evaluation.family import checks
    from hpcmcodec.evaluation.family.coding import config_of

    broken = 0
    for config in [config_of(name) for name in members]:
        for found in checks.run(config):
            broken += not found.holds
            said = f": {found.said}" if found.said else ""
            click.echo(f"{config.name}  {found.group:<12}{'ok    ' if found.holds else 'BROKEN'}  {found.claim}{said}")
    click.echo(f"{broken} claims do not hold" if broken else "all claims hold")
    ctx.exit(1 if broken else 0)


@family.command()
@click.argument("first")
@click.argument("second")
@click.option(
    "--metric",
    type=click.Choice(("all", "counts", "rate", "files", "time", "memory")),
    default="all",
    show_default=True,
    help="rate: estimated; files: bytes and PSNR of real ones; time, memory: of coding, in processes of their own",
)
@click.option("--images", type=EXISTING, help="Folder of PNGs.  [default: two pictures that are made]")
@click.option("--rounds", default=9, show_default=True, help="Times that each member codes, in turns.")
@click.option("--seed", default=0, show_default=True, help="Of members that are not trained.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON file of what was measured.")
def compare(
    first: str, second: str, metric: str, images: Path | None, rounds: int, seed: int, output: Path | None
) -> None:
    """Compare two members: presets (untrained), weights files, or runs and states of training.

    Rates and files are compared image by image: the mean of the differences and its 95% interval (bootstrap over the
    images). Rates of members say something only where both were trained, on the same transforms.
    """
    from hpcmcodec.evaluation.family import comparing

    wanted, result = comparing.METRICS if metric == "all" else (metric,), dict[str, Any]()
    for line in comparing.run((first, second), wanted, images, result, rounds=rounds, seed=seed):
        click.echo(line)
    if output is not None:
        write_whole(output, json.dumps(result, indent=1) + "\n")


@family.command()
@click.argument("member", default="small-phase3")
@click.argument("image", required=False, type=EXISTING)
def quickstart(member: str, image: Path | None) -> None:
    """Code a photograph with MEMBER and show what came out: a preset, a weights file, or a run.

    Without IMAGE it is the cup of coffee of scikit-image's wheel. A preset is untrained: its file is valid and large.
    """
    from hpcmcodec.evaluation.family.photograph import run

    for line in run(member, image):
        click.echo(line)


def _size(name: str) -> str:
    """The size that a member is of, by its name."""
    return "base" if name == "large" else name.partition("-")[0]
