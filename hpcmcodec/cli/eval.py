"""``hpcm eval``: measures rate and distortion against other codecs."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmcodec import threads
from hpcmcodec.cli.files import write_stdout
from hpcmcodec.cli.messages import Progress, say
from hpcmcodec.cli.needs import require, require_memory
from hpcmcodec.cli.options import Settings, names, shared_options
from hpcmcodec.container import DEFAULT_MAX_PIXELS


@click.command("eval")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(readable=False, path_type=Path))
@click.option(
    "--codecs",
    default="hpcm,jpeg,webp,avif",
    show_default=True,
    help="More: hpcm:MODEL, hpcm-slow (effort 9), avif-slow (speed 4), avif-ssim, avif-iq, jxl, heic, jpeg2000.",
)
@click.option(
    "--qualities",
    multiple=True,
    metavar="[CODEC=]Q,Q,...",
    help="For hpcm, or for the codec named; can be repeated.  [default: the codec's whole range]",
)
@click.option(
    "--metrics",
    show_default="psnr,ms-ssim,ssimulacra2, as far as they are installed and images large enough",
    help="Of psnr, ms-ssim, ssimulacra2, butteraugli (3-norm).",
)
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="CODEC|FILE.json",
    help="For BD-rates: a codec, or a result file of CompressAI's schema; can be repeated.  [default: each codec]",
)
@click.option("--linear", is_flag=True, help="Plot over linear bits per pixel, not logarithmic.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: all cores]")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    default="evaluation",
    show_default=True,
    help="Where results go. A later run goes on from what is there.",
)
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    paths: tuple[Path, ...],
    codecs: str,
    qualities: tuple[str, ...],
    metrics: str | None,
    anchors: tuple[str, ...],
    linear: bool,
    jobs: int | None,
    folder: Path,
) -> None:
    """Measure rate and distortion against other codecs.

    Each image is coded by each codec to the bytes of a file and decoded. A folder stands for the images in it; kodak,
    clic and tecnick stand for the folders that HPCM_KODAK, HPCM_CLIC and HPCM_TECNICK name. DIR gets results.json and
    results.csv, plots as PNG and SVG, and results.md, the tables that are also printed: settings, speed, memory,
    BD-rates, averages. An evaluation that was interrupted, or is asked for more, measures only what is missing.
    """
    require("evaluation", "eval", "matplotlib")
    require_memory()
    from hpcmcodec.evaluation import run
    from hpcmcodec.evaluation.codecs import CODECS
    from hpcmcodec.evaluation.metrics import METRICS

    try:
        wanted = run.parse_qualities(qualities)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--qualities'") from error
    chosen = names(codecs, CODECS, "--codecs")
    for anchor in anchors:
        if anchor in CODECS and anchor not in chosen:
            raise click.BadParameter(f"{anchor!r} is not among --codecs", param_hint="'--anchor'")
    with Progress("evaluating", settings) as progress:
        tables = run.run(
            paths,
            folder,
            codecs=chosen,
            metrics=names(metrics, METRICS, "--metrics") if metrics else None,
            qualities=wanted,
            anchors=anchors,
            jobs=jobs or threads.count(),
            log=not linear,
            max_pixels=settings.max_pixels or DEFAULT_MAX_PIXELS,
            say=lambda line: None if settings.quiet else say(line),
            progress=progress,
        )
    write_stdout(tables.encode())
