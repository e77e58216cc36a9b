"""``hpcm compare``: writes a page that compares .hpcm files with their photograph, or codecs on a folder of them."""

from __future__ import annotations

import time
from pathlib import Path

import click

from hpcmcodec.cli.files import Output, check_input, is_folder
from hpcmcodec.cli.messages import Progress, say
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.cli.options import Number, Settings, force_option, names, output_option, shared_options


@click.command("compare")
@click.argument("image", metavar="IMAGE", type=click.Path(readable=False, path_type=Path))
@click.argument("files", metavar="[FILE.hpcm...]", nargs=-1, type=click.Path(readable=False, path_type=Path))
@output_option("The page to write.  [default: IMAGE with .html as its suffix]", "REPORT.html")
@click.option(
    "--against",
    metavar="CODEC,...",
    show_default="for a folder avif-iq,jxl",
    help="Also show these codecs at the same size: webp,avif,jxl,...",
)
@click.option(
    "--bpp",
    type=Number(min=0, min_open=True),
    default=0.2,
    show_default=True,
    help="Size of files of a folder.",
)
@force_option
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    image: Path,
    files: tuple[Path, ...],
    target: str | None,
    against: str | None,
    bpp: float,
    force: bool,
) -> None:
    """Show what .hpcm files make of a photograph.

    IMAGE is the photograph, the result one page for a browser that holds all it shows: a slider over the original and
    each decoded file, crops at the places that differ most, maps of the error and of where the bits went, PSNR, and
    MS-SSIM and SSIMULACRA2 where they are installed.

    With a folder of photographs as IMAGE, and no files, the page has crops of all of them, coded by hpcm and other
    codecs in the same size, whose names are hidden until you have chosen.
    """
    started = time.perf_counter()
    folder = is_folder(str(image))
    if folder == bool(files):
        raise click.UsageError("a photograph is compared with .hpcm files, a folder of photographs without")
    for source in () if folder else (image, *files):
        check_input(str(source))
    output = Output(str(image), target, ".html", force)
    require_memory()
    from hpcmcodec.evaluation import blind, report
    from hpcmcodec.evaluation.codecs import CODECS

    def tell(line: str) -> None:
        if not settings.quiet:
            say(line)

    others = names("avif-iq,jxl" if folder and against is None else against or "", CODECS, "--against")
    with Progress("comparing", settings) as progress:
        if folder:
            codecs = list(dict.fromkeys(["hpcm", *others]))
            limit = settings.limits["max_pixels"]
            text = blind.blind(image, codecs, bpp, max_pixels=limit, say=tell, progress=progress)
        else:
            text = report.report(image, files, others, **settings.limits, say=tell, progress=progress)
        page = text.encode()
    output.write(page)
    if not settings.quiet:
        say(f"{image} -> {output.name}: {len(page)} bytes, {time.perf_counter() - started:.2f} s")
