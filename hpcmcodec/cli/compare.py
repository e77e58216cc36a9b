"""``hpcm compare``: writes a page that compares .hpcm files with the photograph that they were made from."""

from __future__ import annotations

import time
from pathlib import Path

import click

from hpcmcodec.cli.files import Output, check_input
from hpcmcodec.cli.messages import Progress, say
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.cli.options import Settings, force_option, names, output_option, shared_options


@click.command("compare")
@click.argument("image", metavar="IMAGE", type=click.Path(readable=False, path_type=Path))
@click.argument(
    "files", metavar="FILE.hpcm...", nargs=-1, required=True, type=click.Path(readable=False, path_type=Path)
)
@output_option("The page to write.  [default: IMAGE with .html as its suffix]", "REPORT.html")
@click.option(
    "--against", default="", metavar="CODEC,...", help="Also show these codecs at the same size: webp,avif,jxl,..."
)
@force_option
@shared_options
@click.pass_obj
def command(
    settings: Settings, image: Path, files: tuple[Path, ...], target: str | None, against: str, force: bool
) -> None:
    """Show what .hpcm files make of a photograph.

    IMAGE is the photograph, the result one page for a browser that holds all it shows: a slider over the original and
    each decoded file, crops at the places that differ most, maps of the error and of where the bits went, PSNR, and
    MS-SSIM and SSIMULACRA2 where they are installed.
    """
    started = time.perf_counter()
    for source in (image, *files):
        check_input(str(source))
    output = Output(str(image), target, ".html", force)
    require_memory()
    from hpcmcodec.evaluation import report
    from hpcmcodec.evaluation.codecs import CODECS

    codecs = names(against, CODECS, "--against")
    with Progress("comparing", settings) as progress:
        page = report.report(
            image,
            files,
            codecs,
            **settings.limits,
            say=lambda line: None if settings.quiet else say(line),
            progress=progress,
        ).encode()
    output.write(page)
    if not settings.quiet:
        say(f"{image} -> {output.name}: {len(page)} bytes, {time.perf_counter() - started:.2f} s")
