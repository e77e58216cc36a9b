"""``hpcm encode``: codes an image as a .hpcm file."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import click

from hpcmcodec import container
from hpcmcodec.cli.batch import convert
from hpcmcodec.cli.files import Output, about, mute_libraries, opened
from hpcmcodec.cli.many import Many, Work, many_options, run
from hpcmcodec.cli.messages import Progress, label, mention_kernels, say, summarise
from hpcmcodec.cli.metadata import Changes, changes, metadata_options
from hpcmcodec.cli.options import (
    Number,
    Settings,
    background_option,
    device_option,
    force_option,
    inputs_or_list_argument,
    output_option,
    rgb,
    shared_options,
)
from hpcmcodec.container import LATENT, TILE_SIDE, TILE_SIDES
from hpcmcodec.formats import INPUT_SUFFIXES

if TYPE_CHECKING:
    from hpcmcodec.image import Picture


@click.command("encode")
@inputs_or_list_argument
@output_option(
    "The file to write; for several inputs the directory.  [default: INPUT with .hpcm as its suffix; '-' where INPUT "
    "is '-']"
)
@click.option(
    "-q",
    "--quality",
    type=Number(0, 100),
    help="From 0 (smallest file) to 100 (best picture); decimals are allowed.  [default: 50]",
)
@click.option(
    "--model",
    metavar="NAME|FILE",
    help="The weights to code with: the name of a model here, as hpcm doctor lists them, or a weights file. Decoders "
    "need the same.  [default: the one that comes along]",
)
@click.option(
    "--target-size",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Choose the quality so that the file has at most this size, and at most 2% less, in up to six encodes.",
)
@click.option("--target-bpp", type=Number(min=0, min_open=True), metavar="BPP", help="The same, in bits per pixel.")
@click.option(
    "--target-psnr",
    type=Number(min=0, min_open=True),
    metavar="DB",
    help="Choose the quality so that the picture has at least this PSNR, and at most 0.05 dB more.",
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
@click.option("--strict", is_flag=True, help="Refuse pictures that are no photographs: text, drawings, dithers.")
@metadata_options
@many_options()
@force_option
@device_option
@shared_options
@click.pass_obj
def command(
    settings: Settings,
    sources: tuple[str, ...],
    target: str | None,
    quality: float | None,
    model: str | None,
    target_size: int | None,
    target_bpp: float | None,
    target_psnr: float | None,
    effort: int,
    tile: str,
    verify: bool,
    background: str | None,
    strict: bool,
    strip: str,
    keep: str | None,
    exif: str | None,
    xmp: str | None,
    icc: str | None,
    force: bool,
    device: str,
    many: Many,
) -> None:
    """Code each image INPUT as a .hpcm file.

    JPEG, PNG, WebP, AVIF, TIFF, GIF, PPM, BMP, JPEG 2000 and, with pillow-heif, HEIF are read. Greyscale, alpha and up
    to 16 bits are kept, alpha without loss. EXIF's orientation is applied. Palette and CMYK are converted, each with a
    note; animations are refused.
    """
    if sum(given is not None for given in (quality, target_size, target_bpp, target_psnr)) > 1:
        raise click.UsageError("--quality, --target-size, --target-bpp and --target-psnr exclude each other")
    wanted = changes(strip, keep, exif, xmp, icc)
    for source in sources if len(sources) > 1 else ():
        if source.lower().endswith(".hpcm"):
            raise click.UsageError(f"{source} is no image: a file to write is named with -o")

    asked: dict[str, Any] = {
        "quality": quality,
        "target_size": target_size,
        "target_bpp": target_bpp,
        "target_psnr": target_psnr,
        "effort": effort,
        "tile": int(tile),
        "verify": verify,
        "device": device,
        **({} if model is None else {"model": model}),
    }
    if many.wanted:
        rgb(background)
        rest = {"background": background, "strict": strict, "smaller_or_skip": many.smaller_or_skip}
        run(settings, many, _work({**asked, **rest}, wanted), sources, target, force)
        return

    def encode(source: str, output: Output) -> None:
        started = time.perf_counter()
        from hpcmcodec import codec

        behind = rgb(background)
        picture = wanted.applied(_loaded(settings, source, strict))
        with about(source), Progress("encoding", settings) as progress:
            data = codec.encode(picture, **asked, background=behind, progress=progress, **settings.limits)
        output.write(data)
        if not settings.quiet and (target_size or target_bpp or target_psnr):
            say(f"note: {label(source)}: quality {container.parse_header(data, **settings.limits).quality.percent:g}")
        height, width, _ = picture.pixels.shape
        summarise(settings, source, output.name, len(data), width * height, started)

    convert(settings, sources, target, ".hpcm", force, encode)
    mention_kernels(settings, device)


def _work(asked: dict[str, Any], wanted: Changes) -> Work:
    """What is done to each of many files: the options that are not as they are by default."""
    usual = {
        "effort": 0,
        "tile": TILE_SIDE,
        "verify": False,
        "device": "cpu",
        "strict": False,
        "smaller_or_skip": False,
    }
    changed = {
        name: value for name, value in wanted._asdict().items() if value or (name == "keep" and value is not None)
    }
    options = {name: value for name, value in asked.items() if value != usual.get(name)}
    memory = "effort" if {"effort", "verify", "target_psnr"} & options.keys() else "encode"
    return Work("encode", {**options, **changed}, INPUT_SUFFIXES, ".hpcm", memory)


def _loaded(settings: Settings, source: str, strict: bool) -> Picture:
    """The image, once its notes have been said. Raises UnsupportedError for one that is no photograph, if `strict`."""
    from hpcmcodec.batch import work

    with about(source), contextlib.ExitStack() as opening:
        opening.enter_context(mute_libraries(settings))
        file = opening.enter_context(opened(source)) if source == "-" else source
        picture, notes = work.loaded(
            file, strict=strict, judged=not settings.quiet, max_pixels=settings.limits["max_pixels"]
        )
    for note in () if settings.quiet else notes:
        say(f"note: {label(source)}: {note}")
    return picture
