"""What the dead zone and the centroids are worth: BD-rates in PSNR and MS-SSIM of ways to quantise the latents.

The dead zone is as wide as a bit weighs (`coder.RATE_WEIGHT`); latents are reconstructed at the centres of mass of
their bins (`entropy.centroids`). Varied are the weight of a bit, the reconstruction (`centres`: in the middle of each
bin), and all at once (`plain`: the nearest integers in the middle of their bins, every symbol coded, under the
logistic tables that training assumes, since the fitted ones expect the dead zone's symbols: codecs without either
quantise like this). All with the shipped weights, against what encoders do. Sizes are those of streams with the bytes
around them.

    python -m tools deadzone PATH... [--qualities 10,30,50,70,90] [--weights 0,0.03,0.09,0.12]
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from hpcmcodec import weights
from hpcmcodec.container import DEFAULT_MAX_PIXELS
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.engines.strips import pad
from hpcmcodec.evaluation.evaluate import find_photos
from hpcmcodec.evaluation.metrics import METRICS, MS_SSIM_SIDE, Curve, bd_rate
from hpcmcodec.evaluation.run import parse_qualities
from hpcmcodec.image import load, plain
from hpcmcodec.model import entropy
from hpcmcodec.model.coder import RATE_WEIGHT, LatentCoder
from hpcmcodec.quality import Quality

SCORES = ("psnr", "ms-ssim")
AROUND = 44  # at most so many bytes of a file are not in its streams


class Way(NamedTuple):
    """How latents are quantised: what a bit weighs, and other tables of y than the fitted ones."""

    name: str
    rate_weight: float = RATE_WEIGHT
    tables: Mapping[str, np.ndarray] = {}
    full: bool = False


AS_SHIPPED = Way("as shipped")
CENTRES = {"y.centroids": np.zeros_like(entropy.centroids())}
LOGISTIC = {f"y.{name}": table for name, table in entropy.logistic_tables().items()}
OTHERS = (Way("centres", tables=CENTRES), Way("plain", 0.0, CENTRES | LOGISTIC, full=True))


@click.command("deadzone")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--qualities", default="10,30,50,70,90", show_default=True)
@click.option("--weights", "weighed", default="0,0.03,0.09,0.12", show_default=True, help="What a bit may weigh.")
def command(paths: tuple[Path, ...], qualities: str, weighed: str) -> None:
    """BD-rates of other weights of a bit and of plain quantisation, against what encoders do: means over images."""
    try:
        steps = parse_qualities([f"hpcm={qualities}"])["hpcm"]
        ways = [AS_SHIPPED, *(Way(f"a bit weighs {v}", float(v)) for v in weighed.split(",") if v), *OTHERS]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    photos = [p for p in find_photos(paths, DEFAULT_MAX_PIXELS) if min(p.width, p.height) >= MS_SSIM_SIDE]
    bench = Bench(LightEngine(weights.load()), ways)
    rates: dict[str, list[list[float]]] = {way.name: [] for way in ways}
    for photo in photos:
        pixels = plain(load(photo.path, max_pixels=DEFAULT_MAX_PIXELS)).pixels
        anchor, *curves = (bench.curves(pixels, steps, way) for way in ways)
        for way, of_metric in zip(ways[1:], curves, strict=True):
            rates[way.name].append([bd_rate(a, c).percent for a, c in zip(anchor, of_metric, strict=True)])
    click.echo(markdown({name: found for name, found in rates.items() if found}))


def markdown(rates: dict[str, list[list[float]]]) -> str:
    """The table of means with their standard errors. rates: way -> for each image the BD-rate in each score, in %."""
    lines = ["| quantisation | BD-rate, PSNR | BD-rate, MS-SSIM |", "|---|---|---|"]
    for name, of_images in rates.items():
        cells = []
        for values in zip(*of_images, strict=True):
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            cells.append(f"{statistics.fmean(values):+.2f}% +- {error:.2f}")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


class Bench:
    """Codes images in any `Way` with the weights of an engine."""

    def __init__(self, engine: LightEngine, ways: Sequence[Way]) -> None:
        w = engine.weights
        self.engine = engine
        self.coders = {v.name: LatentCoder(w.config, engine.coder.ops, {**w.under("tables"), **v.tables}) for v in ways}

    def curves(self, pixels: np.ndarray, qualities: Sequence[float], way: Way) -> list[Curve]:
        """The curve of an image in each score; pixels (H, W, 3) uint8."""
        rows, columns, _ = pixels.shape
        padded = pad(pixels)
        bpp, scores = [], []
        for value in qualities:
            quality = Quality.of(value)
            y, z = self.engine.analyse(padded, quality, None)
            coded, y_hat = self.coders[way.name].encode(y, z, quality, rate_weight=way.rate_weight, full=way.full)
            shown = self.engine.synthesise(y_hat, quality)[:rows, :columns].astype(np.uint8)
            bpp.append(8 * (AROUND + sum(len(c.data) for c in coded.values())) / (rows * columns))
            scores.append([METRICS[s].shown(METRICS[s].compute(pixels, shown)) for s in SCORES])
        return [Curve(bpp, score) for score in zip(*scores, strict=True)]
