"""``hpcm decode``: decodes a .hpcm file to an image file."""

from __future__ import annotations

import time
from pathlib import PurePath
from typing import Any

import click

from hpcmcodec import container, formats
from hpcmcodec.cli.batch import convert
from hpcmcodec.cli.files import Output, about, mute_libraries, opened
from hpcmcodec.cli.many import Many, Work, many_options, run
from hpcmcodec.cli.messages import Progress, label, mention_kernels, say, summarise
from hpcmcodec.cli.options import (
    Settings,
    background_option,
    device_option,
    force_option,
    inputs_or_list_argument,
    output_option,
    region_of,
    rgb,
    shared_options,
)
from hpcmcodec.formats import FORMATS


@click.command("decode")
@inputs_or_list_argument
@output_option(
    f"The file to write, whose suffix chooses the format: {', '.join(FORMATS)}; for several inputs the directory."
    "  [default: INPUT with .png as its suffix; '-' where INPUT is '-']"
)
@click.option(
    "--format", "form", type=click.Choice(list(FORMATS)), help="The format to write, for '-' and for other suffixes."
)
@click.option(
    "--depth",
    type=click.Choice(["8", "16"]),
    help="Bits of a sample.  [default: 16 where the coded picture had more than 8 and the format holds them, else 8]",
)
@click.option(
    "--scale",
    type=click.Choice(["s1", "s2", "s3"]),
    help="Decode a preview from this scale and the coarser ones; INPUT may have been cut after them.",
)
@click.option(
    "--region",
    callback=region_of,
    metavar="X,Y,W,H",
    help="Decode this part alone: its corner at the top left, width and height in pixels. The checksum of all pixels "
    "cannot be compared then.",
)
@click.option(
    "--max-size",
    "side",
    type=click.IntRange(min=1),
    metavar="N",
    help="Scale the picture down to fit N x N pixels, from its thumbnail of an eighth where that is large enough.",
)
@background_option("Behind transparent pixels; white where the format holds no transparency.")
@many_options("smaller_or_skip")
@force_option
@device_option
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    sources: tuple[str, ...],
    target: str | None,
    form: str | None,
    depth: str | None,
    scale: str | None,
    region: tuple[int, int, int, int] | None,
    side: int | None,
    background: str | None,
    force: bool,
    device: str,
    many: Many,
) -> None:
    """Decode each .hpcm file INPUT to an image file.

    JPEG is written at quality 95 and AVIF at 90, the other formats without loss. Colour space and metadata are written
    too, and a note says what a format cannot hold.
    """
    chosen = _format(target if len(sources) == 1 else None, form)
    if depth == "16" and not FORMATS[chosen].deep:
        raise click.UsageError(f"{FORMATS[chosen].name} is written with 8 bits: --depth 16 needs png, tif or ppm")
    for source in sources if len(sources) > 1 else ():
        if formats.of_name(source):
            raise click.UsageError(f"{source} is no .hpcm file: a file to write is named with -o")

    wanted: dict[str, Any] = {
        "depth": int(depth) if depth else None,
        "scale": scale,
        "region": region,
        "side": side,
        "background": rgb(background),
    }
    if many.wanted:
        given = {**wanted, "form": form or formats.of_name(target or ""), "device": None if device == "cpu" else device}
        options = {name: value for name, value in given.items() if value is not None}
        run(
            settings,
            many,
            Work("decode", options, (".hpcm",), FORMATS[chosen].suffixes[0], "decode"),
            sources,
            target,
            force,
        )
        return

    def decode(source: str, output: Output) -> None:
        started = time.perf_counter()
        from hpcmcodec.batch import work

        with about(source), Progress("decoding", settings) as progress:
            with opened(source) as stream:
                data = container.read(stream, **settings.limits)
            if region and len(sources) == 1:
                _check_region(region, container.parse_header(data, **settings.limits))
            picture = work.decoded(data, chosen, settings.limits, device=device, progress=progress, **wanted)
        with mute_libraries(settings):
            file, notes = work.written(picture, chosen)
        output.write(file.getbuffer())
        if not settings.quiet:
            for note in notes:
                say(f"note: {label(output.name)}: {note}")
        height, width, _ = picture.pixels.shape
        summarise(settings, source, output.name, len(data), width * height, started)

    convert(settings, sources, target, FORMATS[chosen].suffixes[0], force, decode)
    mention_kernels(settings, device)


def _check_region(region: tuple[int, int, int, int], header: container.Header) -> None:
    """Raises click.BadParameter for a region that is not inside the picture."""
    from hpcmcodec.decoding import check_region

    try:
        check_region(region, header.width, header.height)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--region'") from error


def _format(target: str | None, form: str | None) -> str:
    """The key of the format to write. Raises click.UsageError where name and option do not name one."""
    named = formats.of_name(target) if target else None
    if form and named and form != named:
        raise click.UsageError(f"OUTPUT ends in the suffix of {named}, but --format says {form}")
    if form or named:
        return form or named or ""
    if target and (suffix := PurePath(target).suffix):
        known = ", ".join(FORMATS)
        raise click.UsageError(f"no format that decode writes ends in {suffix}: use one of {known}, or --format")
    return "png"
