"""``hpcm decode``: decodes a .hpcm file to a PNG."""

from __future__ import annotations

import io
import time
from pathlib import Path

import click

from hpcmcodec import container
from hpcmcodec.cli.files import Output, about, check_input, opened
from hpcmcodec.cli.messages import Progress, mention_kernels, summarise
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.cli.options import Settings, device_option, force_option, input_argument, output_option, shared_options


@click.command("decode")
@input_argument
@output_option(".png")
@click.option(
    "--scale",
    type=click.Choice(["s1", "s2", "s3"]),
    help="Decode a preview from this scale and the coarser ones; INPUT may have been cut after them.",
)
@force_option
@device_option
@shared_options
@click.pass_obj
def command(settings: Settings, source: str, target: str | None, scale: str | None, force: bool, device: str) -> None:
    """Decode the .hpcm file INPUT to a PNG."""
    started = time.perf_counter()
    if target not in (None, "-") and Path(target).suffix.lower() not in ("", ".png"):
        raise click.UsageError(f"decode writes PNG, so OUTPUT must end in .png, not {Path(target).suffix}")
    check_input(source)
    output = Output(source, target, ".png", force)
    require_memory()
    from hpcmcodec import codec, image

    with about(source), Progress("decoding", settings) as progress:
        with opened(source) as stream:
            data = container.read(stream, **settings.limits)
        picture = codec.decode(data, device=device, scale=scale, progress=progress, **settings.limits)
    png = io.BytesIO()
    image.write_png(picture, png)
    output.write(png.getbuffer())
    summarise(settings, source, output.name, len(data), picture.width * picture.height, started)
    mention_kernels(settings, device)
