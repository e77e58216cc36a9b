"""`python -m tools COMMAND`: the measurements behind the project's figures, and the page that shows them.

speed       whole commands, in units of `import torch`
bench       times and memory by size of the picture and by phase, beside other codecs
kernels     times of each operation: the numpy reference, the compiled kernel, and the machine's bound
previews    PSNR of a file decoded up to each scale
monotone    whether a larger quality is always a better file
tiles       what tiles cost in bytes, and the time of a region
deadzone    what the dead zone and the centroids are worth, in PSNR and MS-SSIM
robustness  pictures that are no photographs, compared with AVIF and with a flat picture
many        workers against one process and against a process for each file
family      time and memory of the research members at full size
twins       rates of trained members, after equal steps and after equal seconds
collect     makes a small result file from a folder that `hpcm eval` has written
published   compares a result file with published tables of other codecs
results     makes docs/RESULTS.md and its plots from the result files
golden      makes the golden corpus of a model: files, and what they decode to for ever
desktop     makes the manual page and the completion scripts in docs/desktop
"""

from __future__ import annotations

import subprocess
from typing import Any

import click

from hpcmcodec.errors import HpcmError
from tools import (
    bench,
    collect,
    deadzone,
    desktop,
    family,
    golden,
    kernels,
    many,
    monotone,
    previews,
    results,
    robustness,
    speed,
    tiles,
    twins,
)


class _Group(click.Group):
    """A group that prints an error of a command in one line, and below it what a failed process printed."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HpcmError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or ""
            said = said.decode(errors="replace") if isinstance(said, bytes) else said
            click.echo(f"error: {error}\n{said}".rstrip(), err=True)
            ctx.exit(1)


@click.group(cls=_Group)
def main() -> None:
    """Measure the codec, and make the page of results. Run it from a checkout."""


for command in (
    speed.command,
    bench.command,
    kernels.command,
    previews.command,
    monotone.command,
    tiles.command,
    deadzone.command,
    robustness.command,
    many.command,
    family.command,
    twins.command,
    collect.collect,
    collect.published,
    results.command,
    golden.command,
    desktop.command,
):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m tools")
