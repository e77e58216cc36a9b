"""The estimated bits per pixel of a model, and a run's curves as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcmcodec.errors import InputError
from hpcmcodec.evaluation.plots import THEMES
from hpcmcodec.exact.constants import FIXED_GRIDS, MEAN_SHIFT
from hpcmcodec.model.hpcm import Estimator, bits
from hpcmcodec.model.synthesis import synthesise
from hpcmcodec.native import loader
from hpcmcodec.quality import Quality
from hpcmcodec.training.data import validation_images
from hpcmcodec.training.records import read_log

QUALITIES = tuple(float(q) for q in range(0, 101, 10))  # at which the price of exact arithmetic is stated
RD_CURVES = 6  # validations whose RD points are shown, evenly spread over the run


@torch.no_grad()
def mean_bpp(model: Estimator, folder: Path, qualities: Sequence[float], *, fake: bool) -> list[float]:
    """Mean estimated bpp over the PNGs of a folder (cut to multiples of 16) at each quality 0..100.

    Latents are rounded, and bits are those of the logistic distributions that training assumes, in float32; with
    `fake` under fake quantisation, which computes what coding computes.
    """
    images = validation_images(folder, side=1 << 16)
    out = []
    for quality in qualities:
        q = torch.tensor([quality / 100])
        ops = model.ops(fake_at=q if fake else None)
        rates = []
        for x in images:
            _, likelihoods = model.estimate(*model.analyse(x, q), q, ops=ops)
            rates.append(bits(likelihoods).item() / (x.shape[2] * x.shape[3]))
        out.append(sum(rates) / len(rates))
    return out


@torch.no_grad()
def synthesis_loss(
    model: Estimator, integers: Mapping[str, np.ndarray], folder: Path, qualities: Sequence[float]
) -> tuple[list[str], float]:
    """What the synthesis loses in integers against floats: a line for each quality and one for all, and the mean in dB.

    integers: its stored tensors. Over the PNGs of a folder, from latents rounded to whole steps, to pixels of 8 bits.
    """
    images, ops = validation_images(folder, side=1 << 16), loader.exact_ops(integers, FIXED_GRIDS)
    means = []
    for quality in qualities:
        q, losses = torch.tensor([quality / 100]), []
        for x in images:
            y_hat = model.analyse(x, q)[0].round()
            ours = torch.from_numpy(
                synthesise(ops, model.config, (y_hat * 2**MEAN_SHIFT).int().numpy(), [Quality.of(quality)]).astype(int)
            )
            theirs = (model.synthesise(y_hat, q) * 255).round().clamp(0, 255).permute(0, 2, 3, 1)
            errors = [((v / 255 - x.permute(0, 2, 3, 1)) ** 2).mean().item() for v in (ours, theirs)]
            losses.append(10 * math.log10(errors[0] / errors[1]))
        means.append(sum(losses) / len(losses))
    mean = sum(means) / len(means)
    lines = [f"q {q:5.1f}  {loss:+.4f} dB" for q, loss in zip(qualities, means, strict=True)]
    return [*lines, f"mean of the losses: {mean:+.4f} dB"], mean


def compare(qualities: Sequence[float], ours: Sequence[float], theirs: Sequence[float]) -> tuple[list[str], float]:
    """Two lists of bits per pixel at the same qualities: a line each and one for all, and the mean of the ratios."""
    rows = list(zip(qualities, ours, theirs, strict=True))
    mean = sum(a / b for _, a, b in rows) / len(rows)
    lines = [f"q {q:5.1f}  {a:.4f} bpp against {b:.4f}: {100 * (a / b - 1):+.2f}%" for q, a, b in rows]
    return [*lines, f"mean of the ratios: {100 * (mean - 1):+.2f}%"], mean


def plot(folder: Path, *, theme: str, image_format: str) -> bytes:
    """Training loss and mean validation loss against hours, and the RD points of some validations, as a file's bytes.

    Stage B's validations have no distortion: their rates are drawn against the quality instead. Needs matplotlib.
    theme: a key of `THEMES`. image_format: "png" or "svg".

    Raises InputError where matplotlib is missing, the run has no log, or the format is neither png nor svg.
    """
    records = read_log(folder / "log.jsonl")
    if not records:
        raise InputError(f"{folder} has no log.jsonl to draw")
    if image_format not in ("png", "svg"):
        raise InputError(f"plots are .png or .svg, not .{image_format}")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('plots need matplotlib: pip install "hpcmcodec[train]"') from error
    colours = THEMES[theme]
    ink = dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color"),
        colours["ink"],
    )
    with mpl.rc_context({"svg.hashsalt": "hpcmcodec", "font.size": 11, **ink}):
        figure = Figure(figsize=(12, 5), layout="constrained", facecolor=colours["paper"])
        loss, rd = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
        validations = [r for r in records if "validation" in r]
        _draw_loss(loss, [r for r in records if "loss" in r], validations)
        _draw_rd(rd, validations, mpl.colormaps["viridis" if theme == "dark" else "viridis_r"])
        for axes in (loss, rd):
            axes.set_facecolor(colours["paper"])
            axes.grid(color=colours["grid"], linewidth=0.8)
            axes.set_axisbelow(True)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(facecolor=colours["paper"], edgecolor=colours["grid"])
        file = io.BytesIO()
        metadata = {"Date": None, "Creator": "hpcmcodec"} if image_format == "svg" else {"Software": "hpcmcodec"}
        figure.savefig(file, format=image_format, dpi=150, metadata=metadata, facecolor=colours["paper"])
    return file.getvalue()


def _draw_loss(axes: Any, losses: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> None:
    hours = [r["hours"] for r in losses]
    axes.plot(hours, [r["loss"] for r in losses], color="#56B4E9", linewidth=1, label="training, weighted")
    rows = [(r["hours"], r["mean"]) for r in validations]
    if rows:
        axes.plot(*zip(*rows, strict=True), color="#D55E00", marker="o", markersize=4, label="validation, EMA")
    # The axis leaves out the first training steps, whose losses are far above all later ones.
    settled = sorted(r["loss"] for r in losses[len(losses) // 20 :])
    shown = settled[: 1 + int(0.98 * (len(settled) - 1))] + [mean for _, mean in rows[1:] or rows]
    if shown:
        low, high = min(shown), max(shown)
        margin = 0.08 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + 3 * margin)
    last = (validations or losses)[-1]
    axes.set_title(f"Loss to step {last['step']:,}")
    axes.set_xlabel("hours")
    axes.set_ylabel("loss, bits per pixel")


def _draw_rd(axes: Any, validations: Sequence[Mapping[str, Any]], colours: Any) -> None:
    count = min(RD_CURVES, len(validations))
    places = [round(i * (len(validations) - 1) / max(1, count - 1)) for i in range(count)]
    joint = bool(validations) and len(validations[-1]["validation"][0]) > 2
    for i, place in enumerate(places):
        record = validations[place]
        shade = colours(0.15 + 0.8 * (i + 1) / count)
        q, bpp, *rest = zip(*record["validation"], strict=True)
        x, y = (bpp, rest[0]) if joint else ([100 * v for v in q], bpp)
        last = i == count - 1
        label = f"step {record['step']:,}, {record['hours']:.2g} h"
        axes.plot(x, y, color=shade, marker="o", markersize=4, linewidth=2.2 if last else 1.3, label=label)
    axes.set_title("Validation")
    axes.set_xlabel("bits per pixel, estimated" if joint else "quality")
    axes.set_ylabel("PSNR, dB" if joint else "bits per pixel, estimated")
