"""PSNR of the previews of a file: it is decoded up to each scale, and every scale should raise the PSNR.

    python -m tools previews PATH... [--qualities 10,50,90] [-o previews.json]

Prints a Markdown table of averages over the images. The exit code is 1 where a scale does not raise the PSNR of an
image above that of the scale before.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from hpcmcodec import decode, encode
from hpcmcodec.container import DEFAULT_MAX_PIXELS
from hpcmcodec.evaluation.evaluate import find_photos
from hpcmcodec.evaluation.metrics import psnr_db
from hpcmcodec.evaluation.run import parse_qualities
from hpcmcodec.image import load, plain
from tools import facts

SCALES = ("s1", "s2", "s3")  # s3 is the whole file


@click.command("previews")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--qualities", default="10,50,90", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="JSON", help="Also write the figures.")
def command(paths: tuple[Path, ...], qualities: str, output: Path | None) -> None:
    """PSNR of a file decoded up to each scale, averages over the images, and whether every scale adds to it."""
    try:
        steps = parse_qualities([f"hpcm={qualities}"])["hpcm"]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--qualities'") from error
    results = {
        photo.name: [_measure(photo.path, quality) for quality in steps]
        for photo in find_photos(paths, DEFAULT_MAX_PIXELS)
    }
    click.echo(markdown(results, steps))
    if output:
        told = f"python -m tools previews {' '.join(f'path/to/{path.name}' for path in paths)} --qualities {qualities}"
        psnr = {name: [[round(v, 3) for v in scales] for scales in image] for name, image in results.items()}
        facts.write(output, facts.about(told) | {"qualities": list(steps), "psnr": psnr})
    if falling(results, steps):
        click.get_current_context().exit(1)


def markdown(results: Mapping[str, Sequence[Sequence[float]]], qualities: Sequence[float]) -> str:
    """The table of means. results: image -> for each quality the PSNR in dB up to each scale."""
    lines = ["| quality | s1, dB | s2, dB | whole file, dB |", "|---|---|---|---|"]
    for i, quality in enumerate(qualities):
        means = [statistics.fmean(values) for values in zip(*(image[i] for image in results.values()), strict=True)]
        lines.append(f"| {' | '.join([f'{quality:g}', *(f'{mean:.2f}' for mean in means)])} |")
    wrong = falling(results, qualities)
    if wrong:
        return "\n".join([*lines, "", f"PSNR does not rise from scale to scale: {', '.join(wrong)}."])
    rises = f"PSNR rises from scale to scale on each of {len(results)} images at each quality."
    return "\n".join([*lines, "", rises])


def falling(results: Mapping[str, Sequence[Sequence[float]]], qualities: Sequence[float]) -> list[str]:
    """The cases in which a scale does not raise the PSNR, as "image at quality"; results as for `markdown`."""
    return [
        f"{name} at {quality:g}"
        for name, image in results.items()
        for quality, values in zip(qualities, image, strict=True)
        if not all(a < b for a, b in pairwise(values))
    ]


def _measure(path: Path, quality: float) -> tuple[float, ...]:
    pixels = plain(load(path, max_pixels=DEFAULT_MAX_PIXELS)).pixels
    data = encode(pixels, quality)
    return tuple(psnr_db(pixels, np.asarray(decode(data, scale=scale))) for scale in SCALES)
