"""The members of the family, side by side.

python -m hpcmcodec.evaluation.family table [--size base|small|lite] [--published]
"""

from __future__ import annotations

import click

from hpcmcodec.evaluation.counts import count
from hpcmcodec.model.config import PRESETS


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


def _size(name: str) -> str:
    """The size that a member is of, by its name."""
    return "base" if name == "large" else name.partition("-")[0]


if __name__ == "__main__":
    family(prog_name="python -m hpcmcodec.evaluation.family")
