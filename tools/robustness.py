"""How pictures that are no photographs are coded, compared with AVIF and with a flat picture.

For each image and quality 0, 10, ..., 100 it prints bits per pixel and PSNR of a real file, the difference from the
PSNR of a flat picture of the image's mean colour, and the size relative to AVIF's (speed 6, as in `hpcm eval`) at equal
PSNR. The BD-rate is the mean difference in size. There are two rules: PSNR falls by no more than 0.05 dB from one of
these qualities to the next, and at quality 90 it is no lower than the flat picture's. The aim for text and controls is
at most 15% more than AVIF's size.

    python -m tools robustness --make FOLDER   # write held-out pages, panels, patterns and dithers
    python -m tools robustness FOLDER          # measure these images, or any others

The held-out images share neither fonts nor layouts nor code with the synthetic crops of training; only a checkerboard
of one pixel is the same in both. Their text is set in matplotlib's DejaVu fonts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hpcmcodec import weights
from hpcmcodec.container import DEFAULT_MAX_PIXELS
from hpcmcodec.errors import InputError, OutputError, UnsupportedError
from hpcmcodec.evaluation.codecs import CODECS, Pixels
from hpcmcodec.evaluation.evaluate import find_photos
from hpcmcodec.evaluation.metrics import Curve, bd_rate, psnr_db
from hpcmcodec.image import load, plain
from tools.monotone import Point, measure

QUALITIES = range(0, 101, 10)
AVIF_QUALITIES = (0, 5, *range(10, 100, 10), 95, 100)
SLACK = 0.05  # dB by which PSNR may fall from one quality to the next
NOT_BELOW_FLAT = 90  # the quality at which a lower PSNR than the flat picture's is a fault
WIDTH, HEIGHT = 384, 288

PROSE = """Rain had fallen since the early morning, and the harbour lay quiet under a grey sky. Two boats were tied to
the long pier; a third, painted blue, turned slowly at its anchor. "Nobody sails today," said the woman at the kiosk.
She sold 12 postcards, 3 umbrellas and a map of 1968 before noon. Later the wind went round to the west, windows were
opened, and somebody in Quay Street (number 47?) began to play the clarinet: the same five bars, again and again."""


class Row(NamedTuple):
    """A file, and the ratio of its size to AVIF's at equal PSNR; nan for a PSNR that no AVIF file of the image has."""

    point: Point
    ratio: float


class Verdict(NamedTuple):
    """The rows of an image, the PSNR of its mean colour in dB, its BD-rate against AVIF in per cent, and its faults.

    The BD-rate is nan where the curves have too little in common.
    """

    rows: list[Row]
    flat: float
    bd_rate: float
    faults: list[str]


@click.command("robustness")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--make", "wanted", is_flag=True, help="Write the held-out images to the folder PATH instead.")
@click.option("--seed", type=int, default=20, show_default=True, help="Of the images to make.")
@click.option("--model", default=weights.DEFAULT_MODEL, show_default=True, help="Which weights.")
def command(paths: tuple[Path, ...], wanted: bool, seed: int, model: str) -> None:
    """Make or measure images; the exit code is 1 where an image breaks a rule."""
    if wanted:
        if len(paths) != 1:
            raise click.UsageError("--make takes one folder")
        make(paths[0], seed)
        return
    if missing := CODECS["avif"].missing():
        raise UnsupportedError(f"AVIF, which is compared with, is missing: pip install {' '.join(missing)}")
    faults = 0
    for photo in find_photos(paths, DEFAULT_MAX_PIXELS):
        verdict = judge(photo.path, model)
        faults += len(verdict.faults)
        click.echo("\n".join(lines(photo.name, verdict)))
    click.echo(f"{faults} faults")
    if faults:
        click.get_current_context().exit(1)


def make(folder: Path, seed: int) -> None:
    """Write the held-out images as PNG files. Raises OutputError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, pixels in held_out(seed):
            Image.fromarray(pixels).save(folder / f"{name}.png")
            click.echo(folder / f"{name}.png")
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}") from error


# --- measuring --------------------------------------------------------------------------------------------------------


def judge(path: Path, model: str) -> Verdict:
    """Code an image at all qualities with hpcm and with AVIF, and compare."""
    pixels = plain(load(path, max_pixels=DEFAULT_MAX_PIXELS)).pixels
    points = measure(path, QUALITIES, model)
    flat = psnr_db(pixels, np.broadcast_to(np.rint(pixels.mean((0, 1))).astype(np.uint8), pixels.shape))
    avif = []
    for quality in AVIF_QUALITIES:
        coded = CODECS["avif"].code(pixels, quality)
        avif.append((8 * len(coded.data) * 3 / pixels.size, psnr_db(pixels, coded.pixels)))
    anchor, ours = frontier(avif), frontier([(p.bpp, p.psnr) for p in points])
    try:
        rate = bd_rate(anchor, ours).percent
    except ValueError:  # the curves have too little in common
        rate = math.nan
    faults = [
        f"q {a.quality} to {b.quality}: {a.psnr:.2f} to {b.psnr:.2f} dB"
        for a, b in pairwise(points)
        if b.psnr < a.psnr - SLACK
    ]
    faults += [
        f"q {p.quality}: {p.psnr:.2f} dB, flat {flat:.2f}"
        for p in points
        if p.quality == NOT_BELOW_FLAT and p.psnr < flat
    ]
    return Verdict([Row(p, p.bpp / _bpp_at(anchor, p.psnr)) for p in points], flat, rate, faults)


def frontier(points: Sequence[tuple[float, float]]) -> Curve:
    """The curve of those (bpp, PSNR) whose PSNR is finite and higher than that of every smaller file."""
    bpps: list[float] = []
    scores: list[float] = []
    for bpp, score in sorted(points, key=lambda p: (p[0], -p[1])):
        if math.isfinite(score) and (not scores or score > scores[-1]):
            bpps.append(bpp)
            scores.append(score)
    return Curve(bpps, scores)


def _bpp_at(curve: Curve, psnr: float) -> float:
    """Bits per pixel at a PSNR, their logarithm interpolated linearly; nan beyond the curve's ends."""
    if not curve.bpp:
        return math.nan
    return math.exp(np.interp(psnr, curve.score, np.log(curve.bpp), left=math.nan, right=math.nan))


def lines(name: str, verdict: Verdict) -> Iterator[str]:
    """The lines that tell a verdict."""
    bd = "no range in common" if math.isnan(verdict.bd_rate) else f"{verdict.bd_rate:+.1f}%"
    yield f"{name}: flat {verdict.flat:.2f} dB; BD-rate against AVIF: {bd}"
    for (quality, bpp, psnr), ratio in verdict.rows:
        against = "beyond AVIF's range" if math.isnan(ratio) else f"{ratio:6.3f} of AVIF's size"
        yield f"  q {quality:3d}  {bpp:7.4f} bpp  {psnr:6.2f} dB, {psnr - verdict.flat:+7.2f} to flat  {against}"
    yield from (f"  fault: {fault}" for fault in verdict.faults)


# --- held-out images --------------------------------------------------------------------------------------------------


def held_out(seed: int) -> Iterator[tuple[str, Pixels]]:
    """(name, (H, W, 3) uint8): pages, panels, checkerboards, stripes and dithers.

    Raises:
        InputError: matplotlib, whose fonts and plots they show, is not installed.
    """
    rng = np.random.default_rng(seed)
    for name, style, paper, ink in (
        ("serif", "Serif", (255, 255, 255), (0, 0, 0)),
        ("sans-dark", "Sans", (24, 26, 33), (222, 224, 219)),
        ("mono-tinted", "SansMono", (253, 246, 227), (88, 110, 117)),
    ):
        for height, subpixel in ((int(rng.integers(11, 15)), False), (int(rng.integers(13, 18)), True)):
            yield (
                f"text-{name}{'-subpixel' if subpixel else ''}",
                _page(rng, style, height, paper, ink, subpixel=subpixel),
            )
    yield "panel-bevel", _panel(rng, (192, 192, 192), (0, 0, 0), (255, 255, 255))
    yield "panel-dark", _panel(rng, (43, 43, 46), (230, 230, 230), (70, 70, 74))
    yield "panel-plot", _plot(rng)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    black, white, green, rose = (np.array(c) for c in ((0, 0, 0), (255, 255, 255), (40, 160, 70), (230, 90, 150)))
    for name, mask, a, b in (
        ("checkerboard-grey", (rows + columns) % 2, black + 68, black + 188),
        ("checkerboard-black", (rows + columns) % 2, black, white),
        ("checkerboard-colour", (rows + columns) % 2, green, rose),
        ("stripes-rows", rows % 2, black + 100, black + 156),
        ("stripes-columns", columns % 3 == 0, rose, white),
    ):
        yield name, np.where(mask[..., None] > 0, a, b).astype(np.uint8)
    scene = _scene(rng)
    grey = Image.fromarray(scene).convert("L")
    yield "dither-diffused", np.asarray(grey.convert("1").convert("RGB"))
    palette = Image.fromarray(scene).quantize(12)
    dithered = Image.fromarray(scene).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    yield "dither-palette", np.asarray(dithered.convert("RGB"))
    thresholds = np.array([[1, 7, 4], [5, 8, 3], [6, 2, 9]])[rows % 3, columns % 3] / 10  # clusters 3 pixels apart
    yield "halftone", np.repeat(255 * (np.asarray(grey) > 255 * thresholds).astype(np.uint8)[..., None], 3, 2)
    shaded = scene.copy()
    shaded[60:200, 90:290][(rows + columns)[60:200, 90:290] % 2 == 0] = 0
    yield "shaded", shaded


def _font(style: str, height: int) -> ImageFont.FreeTypeFont:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError("held-out images need matplotlib: pip install matplotlib") from error
    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", f"DejaVu{style}.ttf")), height)


def _page(
    rng: np.random.Generator,
    style: str,
    height: int,
    paper: tuple[int, ...],
    ink: tuple[int, ...],
    *,
    subpixel: bool,
) -> Pixels:
    """A page of text (H, W, 3) whose lines never repeat, since AVIF would copy them.

    With `subpixel` it is written three times as large, and each channel takes its own third of every pixel.
    """
    fine, words, y = 3 if subpixel else 1, [str(w) for w in rng.choice(PROSE.split(), 600)], height
    mask = Image.new("L", (WIDTH * fine, HEIGHT * fine))
    draw, font, margin = ImageDraw.Draw(mask), _font(style, height * fine), 20
    while y < HEIGHT:
        line = words.pop()
        while font.getlength(f"{line} {words[-1]}") < fine * (WIDTH - 2 * margin):
            line += f" {words.pop()}"
        draw.text((margin * fine, y * fine), line, 255, font)
        y += round(1.4 * height)
    cover = np.asarray(mask, np.float64)[..., None].repeat(3, 2) / 255
    if subpixel:
        thirds = np.pad(cover[..., 0].reshape(HEIGHT, 3, -1).mean(1), ((0, 0), (1, 1)))
        blurred = (thirds[:, :-2] + thirds[:, 1:-1] + thirds[:, 2:]) / 3
        cover = blurred.reshape(HEIGHT, WIDTH, 3)
    return np.rint(cover * ink + (1 - cover) * paper).astype(np.uint8)


def _panel(rng: np.random.Generator, face: tuple[int, ...], ink: tuple[int, ...], light: tuple[int, ...]) -> Pixels:
    """A window of bevelled controls: title, menu, buttons, a list with a selection, a tree of boxes, a status line."""
    image = Image.new("RGB", (WIDTH, HEIGHT), face)
    draw, font = ImageDraw.Draw(image), _font("Sans", 11)
    shadow, accent = tuple(v // 2 for v in face), (10, 36, 106)
    words = [w.strip('.,;:"?()') for w in PROSE.split()]

    def bevel(x: int, y: int, w: int, h: int, text: str = "", *, sunken: bool = False) -> None:
        a, b = (shadow, light) if sunken else (light, shadow)
        draw.line([(x, y + h), (x, y), (x + w, y)], fill=a)
        draw.line([(x + w, y), (x + w, y + h), (x, y + h)], fill=b)
        draw.text((x + 6, y + h / 2), text, ink, font, anchor="lm")

    draw.rectangle((2, 2, WIDTH - 3, 20), fill=accent)
    draw.text((8, 11), f"{words[0]} {words[1]} - {words[-1]}", (255, 255, 255), _font("Sans-Bold", 11), anchor="lm")
    for k, x in enumerate(range(6, WIDTH - 40, 58)):
        draw.text((x, 31), words[10 + k].title(), ink, font, anchor="lm")
        bevel(x, 42, 52, 20, words[30 + k].title())
    bevel(6, 70, 180, HEIGHT - 100, sunken=True)
    for k, y in enumerate(range(74, HEIGHT - 46, 16)):
        if k == 4:
            draw.rectangle((8, y, 184, y + 15), fill=accent)
        draw.text((30, y + 8), f"{words[40 + k]}  {rng.integers(9999)}", (255, 255, 255) if k == 4 else ink, font, "lm")
        draw.rectangle((12, y + 3, 22, y + 12), outline=ink, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    for k, y in enumerate(range(72, HEIGHT - 60, 26)):
        draw.rectangle((200, y + 4, 212, y + 16), outline=shadow, fill=light)
        if k % 2:
            draw.line([(202, y + 10), (205, y + 14), (211, y + 6)], fill=ink, width=2)
        draw.text((220, y + 10), " ".join(words[50 + 2 * k : 52 + 2 * k]), ink, font, anchor="lm")
        bevel(310, y, 66, 20, str(rng.integers(10**6)), sunken=True)
    bevel(2, HEIGHT - 22, WIDTH - 5, 18, " ".join(words[20:26]), sunken=True)
    return np.array(image)


def _plot(rng: np.random.Generator) -> Pixels:
    """A picture of curves and bars, drawn by matplotlib."""
    _font("Sans", 10)  # raises the error that names matplotlib where it is missing
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 96, HEIGHT / 96), dpi=96, layout="constrained")
    left, right = figure.subplots(1, 2)
    for k in range(3):
        left.plot(rng.normal(k, 1, 40).cumsum(), label=f"run {k}", linewidth=1.2)
    left.legend(fontsize=7)
    left.grid(linewidth=0.5)
    right.bar(range(8), rng.random(8), color="tab:green")
    right.set_title("share", fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _scene(rng: np.random.Generator) -> Pixels:
    """A scene in place of a photograph: soft discs before a gradient, with noise."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    out = np.stack([90 + 0.5 * rows, 120 + 0.2 * rows, 220 - 0.4 * rows], -1)
    for _ in range(14):
        y, x, r = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH), rng.uniform(15, 70)
        distance = np.hypot(rows - y, columns - x) / r
        cover = (1 / (1 + np.exp(12 * (distance - 1))))[..., None]
        out = out * (1 - cover) + cover * rng.uniform(10, 245, 3) * (1.1 - 0.5 * distance[..., None].clip(0, 1))
    return np.rint(out + rng.normal(0, 2, out.shape)).clip(0, 255).astype(np.uint8)
