"""Whether a larger quality always gives a larger and better file, on every image.

Real files are held to two rules. From one coarse quality (0, 5, ..., 100) to the next, bits per pixel and PSNR both
rise. From one fine quality (0, 1, ..., 100) to the next, bits per pixel fall by no more than 0.2%, and PSNR by no more
than 0.02 dB.

    python -m tools monotone FOLDER            # the coarse rule: 21 files an image
    python -m tools monotone --fine FOLDER     # both rules: 101 files an image
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from hpcmcodec import weights
from hpcmcodec.codec import decode, encode
from hpcmcodec.container import DEFAULT_MAX_PIXELS
from hpcmcodec.evaluation.evaluate import find_photos
from hpcmcodec.evaluation.metrics import psnr_db
from hpcmcodec.image import load, plain

COARSE, FINE = 5, 1
RATE_SLACK, PSNR_SLACK = 0.002, 0.02  # a share of the bits per pixel; dB


class Point(NamedTuple):
    """One file: quality 0..100, bits per pixel of the whole file, PSNR in dB."""

    quality: int
    bpp: float
    psnr: float


@click.command("monotone")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--fine", is_flag=True, help="Steps of 1 as well.")
@click.option("--model", default=weights.DEFAULT_MODEL, show_default=True, help="Which weights.")
def command(paths: tuple[Path, ...], fine: bool, model: str) -> None:
    """Check all images and print what breaks a rule; the exit code is 1 where something does."""
    wrong, curves = 0, []
    for photo in find_photos(paths, DEFAULT_MAX_PIXELS):
        curve = measure(photo.path, range(0, 101, FINE if fine else COARSE), model)
        found = broken(curve)
        wrong += len(found)
        curves.append(curve)
        click.echo(f"{photo.name}: {'; '.join(found) or 'monotone'}")
    low, high = (sum(c[i].bpp for c in curves) / len(curves) for i in (0, -1))
    click.echo(f"{len(curves)} images, {wrong} breaks; mean bits per pixel {low:.4f} at q 0 to {high:.4f} at q 100")
    if wrong:
        click.get_current_context().exit(1)


def measure(path: Path, qualities: Sequence[int], model: str) -> list[Point]:
    """The points of an image, coded to a real file at each quality."""
    pixels = plain(load(path, max_pixels=DEFAULT_MAX_PIXELS)).pixels
    points = []
    for quality in qualities:
        data = encode(pixels, quality, model=model)
        decoded = np.asarray(decode(io.BytesIO(data)))
        points.append(Point(quality, 8 * len(data) / (pixels.shape[0] * pixels.shape[1]), psnr_db(pixels, decoded)))
    return points


def broken(curve: Sequence[Point]) -> list[str]:
    """Each break of a rule in words. The coarse rule holds between multiples of 5, the fine one between neighbours."""
    found = []
    for a, b in pairwise([p for p in curve if p.quality % COARSE == 0]):
        found += [_fall(a, b, "bpp", a.bpp, b.bpp)] if b.bpp <= a.bpp else []
        found += [_fall(a, b, "dB", a.psnr, b.psnr)] if b.psnr <= a.psnr else []
    for a, b in pairwise(curve):
        if b.quality - a.quality < COARSE:
            found += [_fall(a, b, "bpp", a.bpp, b.bpp)] if b.bpp < a.bpp * (1 - RATE_SLACK) else []
            found += [_fall(a, b, "dB", a.psnr, b.psnr)] if b.psnr < a.psnr - PSNR_SLACK else []
    return found


def _fall(a: Point, b: Point, unit: str, before: float, after: float) -> str:
    return f"q {a.quality} to {b.quality}: {before:.4f} to {after:.4f} {unit}"
