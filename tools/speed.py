"""Times of whole commands, in units of the time of `python -c "import torch"` on the same machine.

    python -m tools speed [IMAGE] [--rounds 5] [-o times.json]

Machines differ by factors, so seconds alone say little. Each round runs every command once, one after the other, so
that a change in the machine's clock or load meets all of them. One round beforehand, which is not counted, fills the
file cache and leaves bytecode beside the modules, as installing does. The median over the rounds is reported. Nothing
else should be running.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import click

from hpcmcodec.evaluation import sample_photo
from tools import facts

UNIT = "import torch"


@click.command("speed")
@click.argument("image", required=False, type=click.Path(path_type=Path))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Counted runs of each.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="JSON", help="Also write every single time.")
def command(image: Path | None, rounds: int, output: Path | None) -> None:
    """Times of whole commands, in units of `import torch`; IMAGE: a photograph (default: a motorcycle, 741 x 500)."""
    image = (image or sample_photo("motorcycle_left")).resolve(strict=True)
    times = measure(image, rounds)
    about = facts.about(f"python -m tools speed {image.name} --rounds {rounds}")
    click.echo(f"{image.name}, median of {rounds} runs on {about['machine']}\n")
    click.echo(markdown(times))
    if output:
        facts.write(output, {**about, "image": image.name, "seconds": times})


def measure(image: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round; `UNIT` is left out where torch is not installed.

    Raises:
        subprocess.CalledProcessError: a command failed; the error's ``stderr`` says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        coded, decoded = str(Path(folder, "image.hpcm")), str(Path(folder, "image.png"))
        hpcm = [sys.executable, "-m", "hpcmcodec"]
        commands = {
            "hpcm encode": [*hpcm, "encode", str(image), "-o", coded, "-f"],
            "hpcm decode": [*hpcm, "decode", coded, "-o", decoded, "-f"],
            "hpcm info": [*hpcm, "info", coded],
        }
        if find_spec("torch"):
            commands = {UNIT: [sys.executable, "-c", UNIT], **commands}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for counted in [False] + [True] * rounds:
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=environment())
                if counted:
                    times[name].append(time.perf_counter() - start)
    return times


def environment() -> dict[str, str]:
    """This process's environment, but with bytecode written.

    Otherwise Python would compile this package in every run, but not torch, which pip has compiled.
    """
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def markdown(times: Mapping[str, Sequence[float]]) -> str:
    """Table of medians in seconds and of their ratios to the median of `UNIT`, where that was measured."""
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    lines = [f"| command | seconds | of `{UNIT}` |", "|---|---|---|"]
    for name, median in medians.items():
        ratio = f"{median / medians[UNIT]:.2f}" if UNIT in medians else "torch is not installed"
        lines.append(f"| `{name}` | {median:.2f} | {ratio} |")
    return "\n".join(lines)
