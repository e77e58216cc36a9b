"""``hpcm encode``: codes an image as a .hpcm file."""

from __future__ import annotations

import time

import click

from hpcmcodec.cli.files import Output, about, check_input, mute_libraries, opened
from hpcmcodec.cli.messages import Progress, label, mention_kernels, say, summarise
from hpcmcodec.cli.metadata import changes, metadata_options
from hpcmcodec.cli.needs import require_memory
from hpcmcodec.cli.options import (
    Number,
    Settings,
    background_option,
    device_option,
    finite,
    force_option,
    input_argument,
    output_option,
    rgb,
    shared_options,
)
from hpcmcodec.container import LATENT, TILE_SIDE, TILE_SIDES


@click.command("encode")
@input_argument
@output_option(".hpcm")
@click.option(
    "-q",
    "--quality",
    type=Number(0, 100),
    callback=finite,
    default=50,
    show_default=True,
    help="From 0 (smallest file) to 100 (best picture); decimals are allowed.",
)
@click.option(
    "-e",
    "--effort",
    type=click.IntRange(0, 9),
    default=0,
    show_default=True,
    help="Refine what is coded: a better picture in a file of about the same size. 1 to 4 take that many rounds, each "
    "about as long as encoding and decoding; 9 takes 16.",
)
@click.option(
    "--tile",
    type=click.Choice([str(side) for side in sorted(TILE_SIDES)]),
    default=str(TILE_SIDE),
    show_default=True,
    help=f"Side of the squares that are coded one by one, in units of {LATENT} pixels.",
)
@click.option("--verify", is_flag=True, help="Decode the result, and have it carry a checksum of its pixels.")
@background_option("Put a picture with transparency on this colour, rather than keep the transparency.")
@metadata_options
@force_option
@device_option
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    source: str,
    target: str | None,
    quality: float,
    effort: int,
    tile: str,
    verify: bool,
    background: str | None,
    strip: str,
    keep: str | None,
    exif: str | None,
    xmp: str | None,
    icc: str | None,
    force: bool,
    device: str,
) -> None:
    """Code the image INPUT as a .hpcm file.

    JPEG, PNG, WebP, AVIF, TIFF, GIF, PPM, BMP, JPEG 2000 and, with pillow-heif, HEIF are read. Greyscale, alpha and up
    to 16 bits are kept, alpha without loss. EXIF's orientation is applied. Palette and CMYK are converted, each with a
    note; animations are refused.
    """
    started = time.perf_counter()
    wanted = changes(strip, keep, exif, xmp, icc)
    check_input(source)
    output = Output(source, target, ".hpcm", force)
    require_memory()
    from hpcmcodec import codec, image

    behind = rgb(background)
    max_pixels = settings.limits["max_pixels"]
    with about(source):
        with mute_libraries(settings):
            if source == "-":
                with opened(source) as stream:
                    picture = image.load(stream, max_pixels=max_pixels)
            else:
                picture = image.load(source, max_pixels=max_pixels)
        if not settings.quiet:
            for note in picture.notes:
                say(f"note: {label(source)}: {note}")
    picture = wanted.applied(picture)
    with about(source), Progress("encoding", settings) as progress:
        data = codec.encode(
            picture,
            quality,
            effort=effort,
            tile=int(tile),
            verify=verify,
            background=behind,
            device=device,
            progress=progress,
            **settings.limits,
        )
    output.write(data)
    height, width, _ = picture.pixels.shape
    summarise(settings, source, output.name, len(data), width * height, started)
    mention_kernels(settings, device)
