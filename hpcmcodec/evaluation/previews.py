"""What previews are worth: PSNR of a file decoded up to each scale, and whether every scale adds to it.

    python -m hpcmcodec.evaluation.previews PATH... [--qualities 10,50,90]

Prints a Markdown table of averages over the images. The exit code is 1 where on some image a scale does not raise the
PSNR of the one before.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpcmcodec import decode, encode
from hpcmcodec.container import DEFAULT_MAX_PIXELS
from hpcmcodec.errors import HpcmError
from hpcmcodec.evaluation.evaluate import find_photos
from hpcmcodec.evaluation.metrics import psnr_db
from hpcmcodec.evaluation.run import parse_qualities
from hpcmcodec.image import load

SCALES = ("s1", "s2", "s3")  # s3 is the whole file


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure previews and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hpcmcodec.evaluation.previews", description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="images, or folders of images")
    parser.add_argument("--qualities", default="10,50,90", help="default: 10,50,90")
    options = parser.parse_args(arguments)
    try:
        qualities = parse_qualities([f"hpcm={options.qualities}"])["hpcm"]
    except ValueError as error:
        parser.error(str(error))
    try:
        results = {
            photo.name: [_measure(photo.path, quality) for quality in qualities]
            for photo in find_photos(options.paths, DEFAULT_MAX_PIXELS)
        }
    except HpcmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown(results, qualities))
    return 0 if not falling(results, qualities) else 1


def markdown(results: dict[str, list[tuple[float, ...]]], qualities: Sequence[float]) -> str:
    """The table; results: image -> for each quality the PSNR of each scale, in dB."""
    lines = ["| quality | s1, dB | s2, dB | whole file, dB |", "|---|---|---|---|"]
    for i, quality in enumerate(qualities):
        means = [statistics.fmean(values) for values in zip(*(image[i] for image in results.values()), strict=True)]
        lines.append(f"| {' | '.join([f'{quality:g}', *(f'{mean:.2f}' for mean in means)])} |")
    wrong = falling(results, qualities)
    if wrong:
        return "\n".join([*lines, "", f"PSNR does not rise from scale to scale: {', '.join(wrong)}."])
    rises = f"PSNR rises from scale to scale on each of {len(results)} images at each quality."
    return "\n".join([*lines, "", rises])


def falling(results: dict[str, list[tuple[float, ...]]], qualities: Sequence[float]) -> list[str]:
    """Where some scale adds nothing: "image at quality"."""
    return [
        f"{name} at {quality:g}"
        for name, image in results.items()
        for quality, values in zip(qualities, image, strict=True)
        if not all(a < b for a, b in pairwise(values))
    ]


def _measure(path: Path, quality: float) -> tuple[float, ...]:
    pixels = load(path, max_pixels=DEFAULT_MAX_PIXELS).pixels
    data = encode(pixels, quality)
    return tuple(psnr_db(pixels, np.asarray(decode(data, scale=scale))) for scale in SCALES)


if __name__ == "__main__":
    sys.exit(main())
