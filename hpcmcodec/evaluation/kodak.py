"""Rate and distortion on a folder of images, real files on every side.

    python -m hpcmcodec.evaluation.kodak FOLDER [--qualities 10,30,50,70,90] [--anchors jpeg,webp] [-j N] [-o JSON]

Every PNG of the folder is encoded at each quality, the file is decoded, and the decoded pixels are compared with the
original: bits per pixel of the whole file, PSNR over all pixels and RGB channels. The codecs compared with take the
same pixels in the same run. Files hold the picture alone on both sides. Previews are decoded from the same files.

Markdown tables go to standard output. The JSON has the schema of CompressAI's result files (`name`, `description`,
`results` with `bpp` and `psnr-rgb`, averages over the images), and beside it the same for each codec compared with,
the BD-rates, the previews and every single image.

BD-rates come in two kinds that are both in use and differ: the mean over the images of each image's own BD-rate, and
the BD-rate of the averaged curves (mean bpp and mean PSNR at each quality).
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcmcodec import decode, encode
from hpcmcodec.container import DEFAULT_MAX_PIXELS, parse_header
from hpcmcodec.errors import HpcmError
from hpcmcodec.evaluation.codecs import ANCHORS
from hpcmcodec.evaluation.metrics import BDRate, Curve, bd_rate, psnr_db
from hpcmcodec.image import load
from hpcmcodec.weights import model_name

DEFAULT_QUALITIES = (10.0, 30.0, 50.0, 70.0, 90.0)
PREVIEWS = ("s1", "s2")  # s3 is the whole file


class Point(NamedTuple):
    """One file: its size, and in dB what its previews from s1 and s2 and the whole of it are worth."""

    quality: float
    n_bytes: int
    psnr_db: float
    previews_db: tuple[float, ...]

    @property
    def rises(self) -> bool:
        """Whether every scale adds to the PSNR of the one before."""
        steps = (*self.previews_db, self.psnr_db)
        return all(a < b for a, b in pairwise(steps))


class ImageResult(NamedTuple):
    """All measurements of one image; ``anchors`` maps names in `ANCHORS` to curves."""

    name: str
    width: int
    height: int
    model: str
    points: tuple[Point, ...]
    anchors: Mapping[str, Curve]

    @property
    def curve(self) -> Curve:
        """Rate and distortion of the codec on this image."""
        pixels = self.width * self.height
        return Curve([8 * point.n_bytes / pixels for point in self.points], [point.psnr_db for point in self.points])


class Comparison(NamedTuple):
    """BD-rates against one anchor; ``refused`` names the images whose curves cannot be compared, and why."""

    per_image: Mapping[str, BDRate]
    refused: Mapping[str, str]
    averaged: BDRate | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a folder and print the tables; the exit code is 1 where a preview is worth less than a coarser one."""
    parser = argparse.ArgumentParser(prog="python -m hpcmcodec.evaluation.kodak", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="PNG images, such as the 24 of Kodak")
    parser.add_argument("--qualities", type=_qualities, default=DEFAULT_QUALITIES, help="default: 10,30,50,70,90")
    parser.add_argument("--anchors", type=_anchors, default=("jpeg", "webp"), help=f"of {','.join(ANCHORS)}")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("-o", "--output", type=Path, metavar="JSON", help="also write all measurements")
    options = parser.parse_args(arguments)
    paths = sorted(options.folder.glob("*.png"))
    if not paths:
        parser.error(f"no PNG images in {options.folder}")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    try:
        results = measure(paths, options.qualities, options.anchors, options.jobs)
    except HpcmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    comparisons = {key: compare(results, key) for key in options.anchors}
    print(markdown(results, comparisons))
    if options.output:
        text = json.dumps(as_json(results, comparisons), indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if all(point.rises for result in results for point in result.points) else 1


def measure(
    paths: Sequence[Path], qualities: Sequence[float], anchors: Sequence[str], jobs: int = 1
) -> list[ImageResult]:
    """Measure every image, in ``jobs`` processes; the results are in the order of ``paths``.

    Raises:
        HpcmError: an image cannot be read, or a file that was just written cannot be decoded.
    """
    results: dict[Path, ImageResult] = {}
    for path, result in _measured(paths, qualities, anchors, jobs):
        results[path] = result
        print(f"{len(results)}/{len(paths)} {result.name}", file=sys.stderr)
    return [results[path] for path in paths]


def _measured(
    paths: Sequence[Path], qualities: Sequence[float], anchors: Sequence[str], jobs: int
) -> Iterator[tuple[Path, ImageResult]]:
    if jobs == 1:
        for path in paths:
            yield path, measure_image(path, qualities, anchors)
        return
    # Fresh processes: a fork would share the state of onnxruntime's and BLAS's thread pools.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(measure_image, path, qualities, anchors): path for path in paths}
        for future in as_completed(pending):
            yield pending[future], future.result()


def measure_image(path: Path, qualities: Sequence[float], anchors: Sequence[str]) -> ImageResult:
    """Code one image with the codec at each quality, and with each anchor at the anchor's own qualities."""
    pixels = load(path, max_pixels=DEFAULT_MAX_PIXELS).pixels
    height, width, _ = pixels.shape
    points = []
    for quality in sorted(qualities):
        data = encode(pixels, quality)
        psnr, *previews = (psnr_db(pixels, np.asarray(decode(data, scale=scale))) for scale in (None, *PREVIEWS))
        points.append(Point(quality, len(data), psnr, tuple(previews)))
    curves = {}
    for key in anchors:
        coded = [ANCHORS[key].code(pixels, quality) for quality in ANCHORS[key].qualities]
        bpp = [8 * len(each.data) / (width * height) for each in coded]
        curves[key] = Curve(bpp, [psnr_db(pixels, each.pixels) for each in coded])
    model_id = parse_header(data).model_id
    return ImageResult(path.name, width, height, model_name(model_id) or model_id.hex(), tuple(points), curves)


def averaged(curves: Sequence[Curve]) -> Curve:
    """Mean bpp and mean PSNR over the images, quality by quality."""
    bpp = [statistics.fmean(values) for values in zip(*(curve.bpp for curve in curves), strict=True)]
    psnr = [statistics.fmean(values) for values in zip(*(curve.psnr_db for curve in curves), strict=True)]
    return Curve(bpp, psnr)


def compare(results: Sequence[ImageResult], anchor: str) -> Comparison:
    """BD-rates of the codec against an anchor, image by image and of the averaged curves."""
    per_image: dict[str, BDRate] = {}
    refused: dict[str, str] = {}
    for result in results:
        try:
            per_image[result.name] = bd_rate(result.anchors[anchor], result.curve)
        except ValueError as error:
            refused[result.name] = str(error)
    try:
        mean = bd_rate(
            averaged([result.anchors[anchor] for result in results]), averaged([result.curve for result in results])
        )
    except ValueError:
        mean = None
    return Comparison(per_image, refused, mean)


def markdown(results: Sequence[ImageResult], comparisons: Mapping[str, Comparison]) -> str:
    """The tables of README: rate and distortion, previews, BD-rates."""
    lines = [
        f"Averages over {_images(len(results))}, model {results[0].model}:",
        "",
        "| quality | bytes | bpp | PSNR (dB) | preview s1 (dB) | preview s2 (dB) |",
        "|---|---|---|---|---|---|",
    ]
    curve = averaged([result.curve for result in results])
    for i, (bpp, psnr) in enumerate(zip(*curve, strict=True)):
        points = [result.points[i] for result in results]
        n_bytes = statistics.fmean(point.n_bytes for point in points)
        previews = [statistics.fmean(values) for values in zip(*(p.previews_db for p in points), strict=True)]
        cells = [f"{points[0].quality:g}", f"{n_bytes:.0f}", f"{bpp:.3f}", *(f"{db:.2f}" for db in (psnr, *previews))]
        lines.append(f"| {' | '.join(cells)} |")
    falling = [f"{r.name} at {p.quality:g}" for r in results for p in r.points if not p.rises]
    every = f"PSNR rises from s1 to s2 to the whole file for every one of {_images(len(results))} at every quality."
    lines += ["", f"PSNR does not rise from scale to scale: {', '.join(falling)}." if falling else every]
    if comparisons:
        lines += [
            "",
            "| BD-rate against | mean of the images' own | best and worst image | of the averaged curves | over |",
            "|---|---|---|---|---|",
        ]
    for key, comparison in comparisons.items():
        anchor = ANCHORS[key]
        percents = [each.percent for each in comparison.per_image.values()]
        own = ["none", "none"]
        if percents:
            own = [f"{statistics.fmean(percents):+.1f}%", f"{min(percents):+.1f}% and {max(percents):+.1f}%"]
        mean = ["none", "none"]
        if comparison.averaged:
            percent, low, high = comparison.averaged
            mean = [f"{percent:+.1f}%", f"{low:.1f} to {high:.1f} dB"]
        lines.append(f"| {' | '.join([f'{anchor.name} ({anchor.description})', *own, *mean])} |")
    for key, comparison in comparisons.items():
        for name, reason in comparison.refused.items():
            lines += ["", f"{name} is not in the mean against {ANCHORS[key].name}: {reason}."]
    return "\n".join(lines)


def as_json(results: Sequence[ImageResult], comparisons: Mapping[str, Comparison]) -> dict[str, object]:
    """Everything measured; the top level and each of ``anchors`` have CompressAI's schema."""
    qualities = [point.quality for point in results[0].points]
    over = f"averages over {_images(len(results))}"
    packages = ("compressai", "numpy", "onnxruntime", "pillow")
    entry = _entry(f"hpcm {results[0].model}", over, qualities, averaged([result.curve for result in results]))
    anchors = {}
    for key in comparisons:
        curve = averaged([result.anchors[key] for result in results])
        anchors[key] = _entry(ANCHORS[key].name, f"{ANCHORS[key].description}; {over}", ANCHORS[key].qualities, curve)
    return {
        **entry,
        "anchors": anchors,
        "bd_rate": {key: _bd_json(comparison) for key, comparison in comparisons.items()},
        "images": [
            {
                "name": result.name,
                "width": result.width,
                "height": result.height,
                "files": [
                    {
                        "quality": point.quality,
                        "bytes": point.n_bytes,
                        "psnr-rgb": point.psnr_db,
                        **{f"psnr-rgb-{scale}": db for scale, db in zip(PREVIEWS, point.previews_db, strict=True)},
                    }
                    for point in result.points
                ],
                "anchors": {
                    key: {"bpp": list(curve.bpp), "psnr-rgb": list(curve.psnr_db)}
                    for key, curve in result.anchors.items()
                },
            }
            for result in results
        ],
        "versions": {package: version(package) for package in packages},
    }


def _entry(name: str, description: str, qualities: Sequence[float], curve: Curve) -> dict[str, object]:
    results = {"quality": list(qualities), "bpp": list(curve.bpp), "psnr-rgb": list(curve.psnr_db)}
    return {"name": name, "description": description, "results": results}


def _bd_json(comparison: Comparison) -> dict[str, object]:
    return {
        "averaged_curves": comparison.averaged._asdict() if comparison.averaged else None,
        "images": {name: each._asdict() for name, each in comparison.per_image.items()},
        "refused": dict(comparison.refused),
    }


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _qualities(text: str) -> tuple[float, ...]:
    try:
        qualities = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers separated by commas are expected, found {text!r}") from None
    if not all(math.isfinite(quality) and 0 <= quality <= 100 for quality in qualities):
        raise argparse.ArgumentTypeError(f"qualities are 0 to 100, found {text!r}")
    return qualities


def _anchors(text: str) -> tuple[str, ...]:
    keys = tuple(key for key in text.split(",") if key)
    unknown = sorted(set(keys) - set(ANCHORS))
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not one of {', '.join(ANCHORS)}")
    return keys


if __name__ == "__main__":
    sys.exit(main())
