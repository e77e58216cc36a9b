"""Times of whole commands, with `python -c "import torch"` on the same machine as the unit.

    python -m hpcmcodec.evaluation.speed [IMAGE] [--rounds 5] [-o times.json]

Machines differ by factors, so seconds alone say little. Each round runs every command once, one after the other, so
that a change in the machine's clock or load meets all of them; one round beforehand, which is not counted, fills the
file cache and leaves bytecode beside the modules, as installing does. The median over the rounds is reported. Nothing
else should be running.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from hpcmcodec.evaluation import sample_photo

UNIT = "import torch"


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the commands and print a Markdown table; the exit code is 1 where one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m hpcmcodec.evaluation.speed", description=__doc__.split("\n")[0])
    parser.add_argument("image", nargs="?", type=Path, help="a photograph (default: a motorcycle, 741 x 500)")
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each command (default: 5)")
    parser.add_argument("-o", "--output", type=Path, metavar="JSON", help="also write every single time")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        image = (options.image or sample_photo("motorcycle_left")).resolve(strict=True)
        times = measure(image, options.rounds)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        detail = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
        print(f"error: {error}\n{detail}".rstrip(), file=sys.stderr)
        return 1
    machine = f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{image.name}, median of {options.rounds} runs on {machine}\n")
    print(markdown(times))
    if options.output:
        result = {"image": image.name, "machine": machine, "seconds": times}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(image: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round; `UNIT` is left out where torch is not installed.

    Raises:
        subprocess.CalledProcessError: a command failed; its ``stderr`` says why.
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
        # Told to leave no bytecode, Python would compile this package in every run, but not torch, which pip compiled.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for counted in [False] + [True] * rounds:
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=environment)
                if counted:
                    times[name].append(time.perf_counter() - start)
    return times


def markdown(times: Mapping[str, Sequence[float]]) -> str:
    """Table of medians in seconds and of their ratios to the median of `UNIT`, where that was measured."""
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    lines = [f"| command | seconds | of `{UNIT}` |", "|---|---|---|"]
    for name, median in medians.items():
        ratio = f"{median / medians[UNIT]:.2f}" if UNIT in medians else "torch is not installed"
        lines.append(f"| `{name}` | {median:.2f} | {ratio} |")
    return "\n".join(lines)


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell the name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
