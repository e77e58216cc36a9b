"""Time and memory of the paper's members, untrained, each beside one that it was made from.

    python -m tools family [--size base|small] [--rounds 3] [-o family.json]

It needs torch and a machine to itself. How untrained members come to their values is said in
`hpcmcodec.evaluation.family.coding`: their files are too large, and take as long as those of trained ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hpcmcodec.evaluation.results import table
from tools import facts

PAIRS = (
    ("baseline", "phase1"),
    ("baseline", "phase2"),
    ("phase2", "phase3"),
    ("phase3", "phase4"),
    ("baseline", "light"),
    ("baseline", "full"),
    ("baseline", "linear"),
)
HEAD = ("second against first", "encoding, s", "", "decoding, s", "", "peak MB of encoding", "of decoding")


@click.command("family")
@click.option("--size", type=click.Choice(("base", "small")), default="base", show_default=True, help="Of the members.")
@click.option("--rounds", default=3, show_default=True, help="Times that each member codes, in turns.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="JSON", help="Also write the figures.")
@click.option("--note", help="A sentence on the circumstances, for the page of results.")
def command(size: str, rounds: int, output: Path | None, note: str | None) -> None:
    """Time and memory of the paper's members, untrained, coding 768 x 512 pixels."""
    from hpcmcodec.evaluation.family import comparing

    pairs: list[dict[str, Any]] = []
    head = facts.about(f"python -m tools family --size {size} --rounds {rounds}")
    head |= {"model": "untrained members, seed 0"} | ({"note": note} if note else {})
    for first, second in PAIRS:
        pairs.append({})
        members = f"{size}-{first}", f"{size}-{second}"
        for line in comparing.run(members, ("time", "memory"), None, pairs[-1], rounds=rounds):
            click.echo(line)
        if output:
            facts.write(output, head | {"pairs": pairs})
    click.echo("\n".join(markdown(pairs)))


def markdown(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table. Differences are means of ratios with 95% intervals."""
    rows = []
    for each in pairs:
        first, second = (member["name"] for member in each["members"])
        row = [f"{second} against {first}"]
        for what in each["time"].values():
            row.append(" and ".join(f"{statistics.median(values):.2f}" for values in reversed(what["values"])))
            gap = what["difference"]
            row.append(f"{gap['mean']:+.1%} [{gap['low']:+.1%}, {gap['high']:+.1%}]")
        for what in ("encoding", "decoding"):
            a, b = each["memory"][what]
            row.append(f"{b:,.0f} and {a:,.0f}: {b / a - 1:+.1%}")
        rows.append(row)
    return table(HEAD, rows)
