"""Time and memory of the paper's members, untrained, each beside one that it was made from.

    python -m tools family [--size base|small] [--rounds 3] [--pairs baseline:imported] [-o family.json]

`imported` is the baseline with codes of 16 bits, as imports of published checkpoints have them. It needs torch and a
machine to itself. How untrained members come to their values is said in
`hpcmcodec.evaluation.family.coding`: their files are too large, and take as long as those of trained ones.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hpcmcodec.evaluation.results import table
from tools import facts

IMPORTED = "imported"
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
@click.option("--pairs", help="first:second, separated by commas.  [default: all but imported]")
@click.option("--rounds", default=3, show_default=True, help="Times that each member codes, in turns.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="JSON", help="Also write the figures.")
@click.option("--note", help="A sentence on the circumstances, for the page of results.")
def command(size: str, pairs: str | None, rounds: int, output: Path | None, note: str | None) -> None:
    """Time and memory of the paper's members, untrained, coding 768 x 512 pixels."""
    from hpcmcodec.evaluation.family import comparing

    chosen = [tuple(pair.split(":")) for pair in pairs.split(",")] if pairs else PAIRS
    known = {IMPORTED, *itertools.chain(*PAIRS)}
    if not all(len(pair) == 2 and known.issuperset(pair) for pair in chosen):
        raise click.UsageError(f"--pairs are two of {', '.join(sorted(known))}, with a colon between them")
    found: list[dict[str, Any]] = []
    told = f"python -m tools family --size {size}" + (f" --pairs {pairs}" if pairs else "") + f" --rounds {rounds}"
    head = facts.about(told) | {"model": "untrained members, seed 0"} | ({"note": note} if note else {})
    for first, second in chosen:
        found.append({})
        with member(size, first) as a, member(size, second) as b:
            for line in comparing.run((a, b), ("time", "memory"), None, found[-1], rounds=rounds):
                click.echo(line)
        if output:
            facts.write(output, head | {"pairs": found})
    click.echo("\n".join(markdown(found)))


@contextmanager
def member(size: str, name: str) -> Iterator[str]:
    """What `comparing.run` takes for a member, while the context lasts."""
    from hpcmcodec.evaluation.family.checks import picture
    from hpcmcodec.evaluation.family.coding import untrained
    from hpcmcodec.model.config import MEMBERS
    from hpcmcodec.training.packing import pack

    if name != IMPORTED:
        yield f"{size}-{name}"
        return
    config = replace(MEMBERS[f"{size}-baseline"], precision=16, hyper_s2="published")
    with tempfile.TemporaryDirectory(prefix="hpcm-family-") as folder:
        path, photographs = Path(folder) / f"{size}-{name}.safetensors", [picture(0, 256, 256)]
        pack(untrained(config, photographs), path, photographs)
        yield str(path)


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
