"""States compared by what eyes see: estimated rate and every metric of decoded pictures, without writing files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcmcodec.errors import InputError
from hpcmcodec.evaluation.metrics import METRICS, BDRate, Curve
from hpcmcodec.evaluation.results import bd_rate_in
from hpcmcodec.model.hpcm import Estimator, bits
from hpcmcodec.training.data import validation_images

Scores = Mapping[str, Sequence[Curve]]
"""Metric -> a curve for each picture, in the order of their names."""


@torch.no_grad()
def scores(
    model: Estimator, folder: Path, qualities: Sequence[float], metrics: Sequence[str], *, images: int | None = None
) -> Scores:
    """What a model makes of the PNGs of a folder (cut to multiples of 16).

    Rates are estimated as in `report.mean_bpp`; pictures are decoded in float32 from rounded latents, to 8 bits.

    Args:
        qualities: 0 to 100.
        metrics: keys of `METRICS`.
        images: the first so many; None: all.

    Raises InputError where there are none.
    """
    pictures = validation_images(folder, side=1 << 16)[:images]
    if not pictures:
        raise InputError(f"{folder} has no PNG files")
    found: dict[str, list[Curve]] = {metric: [] for metric in metrics}
    for x in pictures:
        original = _pixels(x)
        points: dict[str, list[tuple[float, float]]] = {metric: [] for metric in metrics}
        for quality in qualities:
            q = torch.tensor([quality / 100])
            y, z = model.analyse(x, q)
            y_hat, likelihoods = model.estimate(y, z, q)
            bpp = bits(likelihoods).item() / (x.shape[2] * x.shape[3])
            decoded = _pixels(model.synthesise(y_hat, q))
            for metric in metrics:
                points[metric].append((bpp, METRICS[metric].shown(METRICS[metric].compute(original, decoded))))
        for metric in metrics:
            found[metric].append(Curve(*zip(*points[metric], strict=True)))
    return found


def _pixels(x: Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of (1, 3, H, W) in [0, 1]."""
    levels: np.ndarray = (x[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
    return levels


def averaged(curves: Sequence[Curve]) -> Curve:
    """The mean rate and the mean score at each quality."""
    rates, values = ([statistics.fmean(v) for v in zip(*part, strict=True)] for part in zip(*curves, strict=True))
    return Curve(rates, values)


def lines(name: str, ours: Scores, anchor: Scores | None, qualities: Sequence[float]) -> list[str]:
    """Text about a state: its averages, and its BD-rates against the anchor, of averaged curves and of pictures."""
    text, means = [name], {metric: averaged(curves) for metric, curves in ours.items()}
    for i, quality in enumerate(qualities):
        shown = [f"{metric} {mean.score[i]:.{METRICS[metric].decimals}f}" for metric, mean in means.items()]
        rate = next(iter(means.values())).bpp[i]
        text.append(f"  q {quality:5.1f}  {rate:.4f} bpp  {'  '.join(shown)}")
    if anchor is None:
        return text
    for metric, curves in ours.items():
        found = [bd_rate_in(theirs, mine, metric) for mine, theirs in zip(curves, anchor[metric], strict=True)]
        rates = [each.percent for each in found if isinstance(each, BDRate)]
        whole = bd_rate_in(averaged(anchor[metric]), means[metric], metric)
        mean = f"none ({whole})" if isinstance(whole, str) else f"{whole.percent:+.2f}%"
        spread = f", images {statistics.fmean(rates):+.2f}% ({min(rates):+.2f} to {max(rates):+.2f})" if rates else ""
        left = f", {len(found) - len(rates)} left out" if len(rates) < len(found) else ""
        text.append(f"  {metric}: averaged curves {mean}{spread}{left}")
    return text


def judge(
    models: Mapping[str, Callable[[], Estimator]],
    folder: Path,
    qualities: Sequence[float],
    metrics: Sequence[str],
    images: int | None,
    say: Callable[[str], None],
) -> None:
    """Says of each model, by its name, what `lines` has, against the first one."""
    anchor: Scores | None = None
    for name, load in models.items():
        found = scores(load().eval(), folder, qualities, metrics, images=images)
        say("\n".join(lines(name, found, anchor, qualities)))
        anchor = anchor or found
