"""Crops that are no photographs, made while training: such pictures are handed to a codec beside photographs.

The kinds are pages of text and panels of controls as screens show them, one-pixel patterns, dithers, halftones, flat
areas, gradients, and photographs that share a crop with any of these. A crop depends on the generator, on the
photograph that it replaces, and on the release of Pillow, whose built-in fonts write the text.

The filter of subpixel text is FreeType's default one (FT_LCD_FILTER_DEFAULT: 8, 77, 86, 77, 8 of 256).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Rng = np.random.Generator
Kind = Callable[[Rng, Pixels], Pixels]

LETTERS = tuple("etaoinshrdlucmfwypvbgkqjxz")  # by their frequency in English
FREQUENCIES = np.arange(3, 29) ** -1.0 / (np.arange(3, 29) ** -1.0).sum()
MARKS = tuple(".,;:!?)%=+-&@#*")
RENDERINGS = ("lcd", "lcd sharp", "grey", "hinted", "aliased", "bitmap")
RENDERED = (0.3, 0.1, 0.25, 0.2, 0.1, 0.05)  # probability of each
LCD_TAPS = ((8, 77, 86, 77, 8), (0, 85, 86, 85, 0))
CONTROLS = ("button", "field", "check", "radio", "slider", "progress", "switch", "icon", "label", "cell")
MIXED = ("page", "panel", "pattern", "dither", "halftone", "blocks")  # kinds that share a crop with a photograph


def make(rng: Rng, photograph: Pixels) -> Pixels:
    """A crop (S, S, 3) uint8 of a random kind, in place of a photograph (S, S, 3) uint8."""
    names = list(KINDS)
    return KINDS[names[rng.choice(len(names), p=[KINDS[n][1] for n in names])]][0](rng, photograph)


# --- text -------------------------------------------------------------------------------------------------------------


class Label(NamedTuple):
    """A run of text: its left top corner and height in pixels, and by how many thirds of a pixel its strokes grow."""

    x: float
    y: float
    text: str
    height: int
    weight: int = 0


def _text(rng: Rng, canvas: Floats, layers: Mapping[tuple[int, ...], Sequence[Label]]) -> Pixels:
    """The canvas (H, W, 3) with labels written over it. layers: colour -> labels. All are rendered in one way."""
    rendering, contrast = rng.choice(RENDERINGS, p=RENDERED), rng.uniform(0.7, 1.4)
    taps, blue_first = LCD_TAPS[int(rng.integers(2))], rng.random() < 0.1
    for colour, labels in layers.items():
        ink = _coverage(rendering, canvas.shape[:2], labels, taps) ** contrast
        canvas = canvas + (ink[..., ::-1] if blue_first else ink) * (np.array(colour, np.float32) - canvas)
    return _bytes(canvas)


def _coverage(rendering: str, shape: Sequence[int], labels: Sequence[Label], taps: Sequence[int]) -> Floats:
    """(H, W, 3): how much of each subpixel the text covers, 0 to 1."""
    h, w = shape
    fine = 3 if rendering in ("lcd", "lcd sharp", "grey") else 1
    mask = Image.new("L", (w * fine, h * fine))
    draw = ImageDraw.Draw(mask)
    draw.fontmode = "1" if rendering == "aliased" else "L"
    for x, y, text, height, weight in labels:
        font = _font(0 if rendering == "bitmap" else height * fine)
        draw.text((x * fine, y * fine), text, 255, font, stroke_width=weight if fine == 3 else weight // 3)
    ink = np.asarray(mask, np.float32) / 255
    if fine == 3:
        rows = ink[1::3] if rendering == "lcd sharp" else ink.reshape(h, 3, 3 * w).mean(1)
        if rendering != "grey":
            spread = np.pad(rows, ((0, 0), (2, 2)))
            subpixels = sum(tap / 256 * spread[:, k : k + 3 * w] for k, tap in enumerate(taps))
            return np.asarray(subpixels, np.float32).reshape(h, w, 3)
        ink = rows.reshape(h, w, 3).mean(2)
    return np.repeat(ink[..., None], 3, 2)


@lru_cache(maxsize=256)
def _font(height: int) -> Any:
    """Pillow's own outline font, or its bitmap font for 0."""
    return ImageFont.load_default(height) if height else ImageFont.load_default_imagefont()


def _words(rng: Rng, count: int) -> list[str]:
    """Made-up words with letters about as frequent as in English, and now and then numbers, capitals and marks."""
    lengths = rng.integers(1, 11, count)
    letters = rng.choice(LETTERS, lengths.sum(), p=FREQUENCIES)
    words = []
    for n, end, kind in zip(lengths, lengths.cumsum(), rng.random(count), strict=True):
        word = "".join(letters[end - n : end])
        if kind < 0.1:
            word = str(rng.integers(10 ** min(int(n), 6)))
        elif kind < 0.25:
            word = word.title() if kind < 0.2 else word.upper()
        elif kind < 0.35:
            word += str(rng.choice(MARKS))
        words.append(word)
    return words


def _theme(rng: Rng) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Colours of the paper and of four inks (main, weak, two accents): dark on light, light on dark, or any."""
    kind, tint = rng.random(), rng.integers(-6, 7, 3)
    if kind < 0.55:
        paper, ink = 255 - rng.integers(0, 25) + tint, rng.integers(0, 80) + tint
        if kind < 0.25:
            paper, ink = paper * 0 + 255, ink * 0
    elif kind < 0.85:
        paper, ink = rng.integers(0, 55) + tint, 255 - rng.integers(0, 90) + tint
    else:
        paper, ink = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
        if abs(paper.mean() - ink.mean()) < 70:
            ink = np.where(paper.mean() < 128, 255, 0) + tint
    accents = [_saturated(rng) for _ in range(2)]
    weak = 0.6 * ink + 0.4 * paper
    return _colour(paper), [_colour(ink), _colour(weak), *accents]


def _page(rng: Rng, photograph: Pixels) -> Pixels:
    """Lines of text as a crop of a page shows them: prose, or code with coloured words."""
    size = _larger(rng, len(photograph))
    paper, inks = _theme(rng)
    canvas = np.broadcast_to(np.array(paper, np.float32), (size, size, 3)).copy()
    body = int(rng.integers(9, 18) if rng.random() < 0.85 else rng.integers(18, 64))
    leading, left, code = round(body * rng.uniform(1.1, 1.8)), int(rng.integers(-80, 30)), rng.random() < 0.3
    right = left + size * rng.uniform(0.6, 2.0)
    weight, layers = int(rng.choice(3, p=(0.65, 0.2, 0.15))), {ink: list[Label]() for ink in inks}
    y = -int(rng.integers(leading))
    while y < size:
        kind, height, bold = rng.random(), body, weight
        words = _words(rng, max(1, round((right - left) / (3.2 * body))))
        if kind < 0.1:
            words = []
        elif kind < 0.16:
            height, bold, words = round(body * rng.uniform(1.2, 2.2)), 2, words[:5]
        elif kind < 0.35:
            words = words[: int(rng.integers(1, len(words) + 1))]
        x, runs = float(left), words if code else [" ".join(words)]
        if code:
            x += int(rng.integers(0, 5)) * 2 * body
        for run in runs:
            ink = inks[int(rng.choice(4, p=(0.5, 0.2, 0.15, 0.15)))] if code or kind > 0.95 else inks[0]
            length = _font(height).getlength(run)
            if kind > 0.97:  # a link is underlined, a selection is marked
                row, end = max(0, y + round(1.1 * height)), max(0, round(x + length))
                top = max(0, y) if kind > 0.985 else row
                canvas[top : row + 1, max(0, round(x)) : end] = ink if top == row else inks[3]
            layers[ink].append(Label(x, y, run, height, bold))
            x += length + 0.3 * height
        y += max(leading, round(1.25 * height))
    return _shrunk(_text(rng, canvas, {k: v for k, v in layers.items() if v}), len(photograph))


def _captioned(rng: Rng, photograph: Pixels) -> Pixels:
    """A photograph with text over it, on a band or with an outline."""
    size, canvas = len(photograph), photograph.astype(np.float32)
    dark, light = _colour(rng.integers(0, 60, 3)), _colour(rng.integers(200, 256, 3))
    over = _saturated(rng) if rng.random() < 0.2 else light
    layers: dict[tuple[int, ...], list[Label]] = {dark: [], over: []}
    for _ in range(int(rng.integers(1, 4))):
        height = int(rng.integers(10, 24) if rng.random() < 0.6 else rng.integers(24, 72))
        x, y = int(rng.integers(-40, size // 2)), int(rng.integers(0, max(1, size - height)))
        text, style = " ".join(_words(rng, int(rng.integers(1, 8)))), rng.random()
        if style < 0.35:
            band = canvas[max(0, y - 3) : y + height + height // 3 + 3]
            band += rng.uniform(0.4, 1) * (np.array(dark, np.float32) - band)
        elif style < 0.7:
            layers[dark].append(Label(x, y, text, height, int(rng.integers(3, 10))))
        layers[over].append(Label(x, y, text, height, int(rng.choice((0, 1, 3)))))
    return _text(rng, canvas, {k: v for k, v in layers.items() if v})


# --- controls ---------------------------------------------------------------------------------------------------------


def _panel(rng: Rng, photograph: Pixels) -> Pixels:
    """Rows of controls, drawn three times as large and reduced: edges lie on pixels, corners and strokes are smooth."""
    size = _larger(rng, len(photograph))
    paper, inks = _theme(rng)
    image = Image.new("RGB", (3 * size, 3 * size), paper)
    draw = ImageDraw.Draw(image)
    layers = {ink: list[Label]() for ink in [*inks, paper]}
    rounding, gap = int(rng.choice((0, 2, 4, 8, 30))), int(rng.integers(0, 14))
    text, y = int(rng.integers(9, 16)), -int(rng.integers(24))
    while y < size:
        h, x = int(rng.integers(text + 6, 3 * text)), -int(rng.integers(48))
        if rng.random() < 0.25:  # a bar behind the row
            draw.rectangle((0, 3 * y, 3 * size, 3 * (y + h) - 1), fill=_mixed(rng, paper, inks[rng.integers(4)]))
        if rng.random() < 0.2:
            draw.rectangle((0, 3 * (y + h), 3 * size, 3 * (y + h) + 2), fill=inks[1])
        alike, control, width = rng.random() < 0.6, rng.choice(CONTROLS), int(rng.integers(h, 5 * h))
        while x < size:
            if not alike:
                control, width = rng.choice(CONTROLS), int(rng.integers(h, 5 * h))
            _control(rng, draw, layers, control, (x, y, width, h), (text, min(rounding, h // 2)), paper, inks)
            x += width + gap
        y += h + gap
    canvas = np.asarray(image.reduce(3), np.float32)
    return _shrunk(_text(rng, canvas, {k: v for k, v in layers.items() if v}), len(photograph))


def _control(
    rng: Rng,
    draw: ImageDraw.ImageDraw,
    layers: Mapping[tuple[int, ...], list[Label]],
    control: str,
    box: tuple[int, int, int, int],
    measures: tuple[int, int],
    paper: tuple[int, ...],
    inks: Sequence[tuple[int, ...]],
) -> None:
    """Draw a control into a box (x, y, width, height). measures: height of text, radius of corners. All in pixels."""
    (x, y, w, h), (text, radius) = box, measures
    middle, accent = y + h // 2, inks[int(rng.integers(2, 4))]
    words = " ".join(_words(rng, max(1, w // (5 * text))))
    while len(words) > 1 and _font(text).getlength(words) > w - (text + 7 if control in ("check", "radio") else 6):
        words = words[:-1]

    def rounded(x: int, y: int, w: int, h: int, r: int, fill: tuple[int, ...], edge: tuple[int, ...] | None) -> None:
        corners = (3 * x, 3 * y, 3 * (x + max(w, 1)) - 1, 3 * (y + max(h, 1)) - 1)
        draw.rounded_rectangle(corners, 3 * min(r, h // 2, w // 2), fill, edge, width=3)

    def write(x: float, ink: tuple[int, ...]) -> None:
        layers[ink].append(Label(x, middle - 0.6 * text, words, text, int(rng.choice(3, p=(0.7, 0.2, 0.1)))))

    if control in ("button", "field", "cell"):
        filled = control == "button" and rng.random() < 0.4
        fill = accent if filled else _mixed(rng, paper, inks[1]) if control == "button" else paper
        rounded(x, y, w, h, 0 if control == "cell" else radius, fill, inks[1] if rng.random() < 0.7 else None)
        indent = (w - _font(text).getlength(words)) / 2 if control == "button" else 5
        write(x + indent, paper if filled else inks[0])
    elif control in ("check", "radio"):
        side, on = text + 2, rng.random() < 0.5
        fill = accent if on else paper
        rounded(x, middle - side // 2, side, side, side if control == "radio" else min(radius, 3), fill, inks[1])
        if on and control == "radio":
            rounded(x + 4, middle - side // 2 + 4, side - 8, side - 8, side, paper, None)
        elif on:
            tick = ((0.2, 0.0), (0.45, 0.25), (0.8, -0.3))
            draw.line([(3 * (x + a * side), 3 * (middle + b * side)) for a, b in tick], fill=paper, width=5)
        write(x + side + 5, inks[0])
    elif control in ("slider", "progress", "switch"):
        thick = {"slider": 4, "progress": min(h, 10), "switch": text + 4}[control]
        width = 2 * thick if control == "switch" else w
        done = int(width * rng.random())
        rounded(x, middle - thick // 2, width, thick, thick, _mixed(rng, paper, inks[1]), inks[1])
        rounded(x, middle - thick // 2, max(1, done), thick, thick, accent, None)
        if control != "progress":
            knob = text if control == "slider" else thick - 4
            rounded(x + done - knob // 2, middle - knob // 2, knob, knob, knob, paper, inks[0])
    elif control == "icon":
        side = min(w, h) - 4
        points = [(3 * (x + side * a), 3 * (y + 2 + side * b)) for a, b in rng.random((int(rng.integers(3, 7)), 2))]
        if rng.random() < 0.5:
            rounded(x, y + 2, side, side, int(rng.choice((0, 4, side))), accent, None)
        shape = rng.random()
        if shape < 0.5:
            draw.polygon(points, fill=inks[0])
        elif shape < 0.8:
            draw.line(points, fill=inks[0], width=int(rng.integers(3, 8)), joint="curve")
        else:
            for k in range(0, max(4, side - 4), 4):
                draw.rectangle((3 * x + 12, 3 * (y + 2 + k), 3 * (x + side) - 12, 3 * (y + 3 + k) + 2), fill=inks[0])
    else:
        write(x, inks[int(rng.integers(2))])


# --- patterns ---------------------------------------------------------------------------------------------------------


def _pattern_mask(rng: Rng, size: int) -> npt.NDArray[np.bool_]:
    """A mask (S, S): a checkerboard, stripes, dots, or random squares or bars, most of them one pixel fine."""
    cell = int(rng.choice((1, 2, 3, 4), p=(0.65, 0.2, 0.1, 0.05)))
    rows, columns = np.mgrid[:size, :size] // cell + rng.integers(8, size=2)[:, None, None]
    period = int(rng.integers(2, 5))
    masks: Sequence[Callable[[], Any]] = (
        lambda: (rows + columns) % 2 == 0,
        lambda: rows % period == 0,
        lambda: columns % period == 0,
        lambda: (rows + int(rng.choice((-1, 1))) * columns) % (period + 1) == 0,
        lambda: (rows % period == 0) & (columns % period == 0),
        lambda: (rows % (2 * period) == 0) | (columns % (2 * period) == 0),
        lambda: (rng.random((size, size)) < 0.5)[rows % size, columns % size],
        lambda: (rng.random(size) < 0.5)[columns % size],
    )
    mask = masks[int(rng.choice(len(masks), p=(0.3, 0.12, 0.12, 0.12, 0.12, 0.08, 0.08, 0.06)))]()
    return np.asarray(mask if rng.random() < 0.8 else ~mask, np.bool_)


def _pair(rng: Rng) -> tuple[Floats, Floats]:
    """Two colours: black and white, greys or a hue of random contrast, or any two."""
    kind, base = rng.random(), rng.uniform(0, 255, 3)
    if kind < 0.15:
        return np.zeros(3, np.float32), np.full(3, 255, np.float32)
    if kind < 0.75:
        base = base if kind < 0.4 else base[:1].repeat(3)
        step = 128 * rng.random() ** 2 * (rng.uniform(-1, 1, 3) if kind < 0.3 else np.ones(3))
        return np.asarray(base - step, np.float32), np.asarray(base + step, np.float32)
    return np.asarray(base, np.float32), np.asarray(rng.uniform(0, 255, 3), np.float32)


def _pattern(rng: Rng, photograph: Pixels) -> Pixels:
    """A pattern all over, or in a rectangle on a flat area."""
    size = len(photograph)
    a, b = _pair(rng)
    out = np.where(_pattern_mask(rng, size)[..., None], a, b)
    if rng.random() < 0.35:
        top, left, h, w = _rectangle(rng, size)
        flat = np.broadcast_to(_pair(rng)[1] if rng.random() < 0.5 else (a + b) / 2, out.shape).copy()
        flat[top : top + h, left : left + w] = out[top : top + h, left : left + w]
        out = flat
    return _bytes(out)


def _shaded(rng: Rng, photograph: Pixels) -> Pixels:
    """A photograph, part of it shaded by a pattern: a selection, a disabled window, scan lines."""
    top, left, h, w = _rectangle(rng, len(photograph))
    out = photograph.astype(np.float32)
    part, mask = out[top : top + h, left : left + w], _pattern_mask(rng, len(out))[:h, :w, None]
    colour = np.asarray(_pair(rng)[0] if rng.random() < 0.5 else np.zeros(3), np.float32)
    part += np.where(mask, rng.uniform(0.2, 1) if rng.random() < 0.5 else 1, 0) * (colour - part)
    return _bytes(out)


def _blocks(rng: Rng, photograph: Pixels) -> Pixels:
    """A flat area or a gradient, in most cases with rectangles and ellipses of saturated colours on it."""
    size = len(photograph)
    if rng.random() < 0.5:
        image = Image.fromarray(_gradient(rng, size))
    else:
        image = Image.new("RGB", (size, size), _saturated(rng) if rng.random() < 0.3 else _theme(rng)[0])
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.choice((0, 1, 3, 8, 20), p=(0.3, 0.15, 0.25, 0.2, 0.1)))):
        top, left, h, w = _rectangle(rng, size, 4)
        shape = draw.rectangle if rng.random() < 0.7 else draw.ellipse
        shape((left, top, left + w - 1, top + h - 1), fill=_saturated(rng))
    return np.array(image)


def _gradient(rng: Rng, size: int) -> Pixels:
    """A gradient (S, S, 3) uint8 between two colours, along a line or from a point."""
    rows, columns = np.mgrid[:size, :size] / size - rng.uniform(0, 1, 2)[:, None, None]
    angle = rng.uniform(0, 2 * np.pi)
    way = np.hypot(rows, columns) if rng.random() < 0.3 else rows * np.cos(angle) + columns * np.sin(angle)
    way = (way - way.min()) / (way.max() - way.min())
    a, b = _pair(rng)
    return _bytes(a + way[..., None] * (b - a))


# --- photographs in few colours ---------------------------------------------------------------------------------------


def _dither(rng: Rng, photograph: Pixels) -> Pixels:
    """A photograph or gradient in few colours: by error diffusion, with or without a palette, or ordered dither."""
    source = photograph if rng.random() < 0.8 else _gradient(rng, len(photograph))
    image, kind = Image.fromarray(source), rng.random()
    if kind < 0.3:  # error diffusion, two colours or eight
        bits = (image if rng.random() < 0.4 else image.convert("L")).split()
        out = np.stack([np.asarray(b.convert("1"), np.float32) for b in bits], -1)
        a, b = (np.zeros(3), np.full(3, 255)) if rng.random() < 0.6 else _pair(rng)
        return _bytes(a + out * (b - a))
    if kind < 0.6:  # error diffusion, a palette
        palette = image.quantize(int(rng.choice((3, 4, 8, 16, 32, 64))))
        return np.array(image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB"))
    order = int(rng.choice((2, 4, 8)))
    bayer: npt.NDArray[np.float64] = np.zeros((1, 1))
    while len(bayer) < order:
        bayer = np.block([[4 * bayer, 4 * bayer + 2], [4 * bayer + 3, 4 * bayer + 1]])
    repeats = -(-len(source) // order)
    threshold = np.tile((bayer + 0.5) / order**2, (repeats, repeats))[: len(source), : len(source), None]
    values = (source if rng.random() < 0.5 else np.array(image.convert("L"))[..., None]) / 255
    levels = int(rng.choice((1, 1, 2, 3, 5)))
    stepped = np.floor(values * levels + threshold) * (255 / levels)
    return _bytes(np.broadcast_to(stepped, source.shape))


def _halftone(rng: Rng, photograph: Pixels) -> Pixels:
    """Dots of a printed photograph, in black or in cyan, magenta, yellow, on paper; their edges sharp or soft."""
    size, grey = len(photograph), rng.random() < 0.5
    period = float(rng.integers(2, 7)) if rng.random() < 0.5 else rng.uniform(2.5, 9)
    turn = 0.0 if rng.random() < 0.3 else rng.uniform(0, np.pi / 2)
    rows, columns = np.mgrid[:size, :size]
    values = photograph.astype(np.float32) / 255
    if grey:
        values = values.mean(2, keepdims=True)
    soft = float(rng.choice((1e-3, 0.3, 1.0)))
    out = []
    for channel, angle in zip(np.moveaxis(values, 2, 0), (turn, turn + 0.52, turn + 1.05), strict=False):
        along, across = rows * np.cos(angle) + columns * np.sin(angle), columns * np.cos(angle) - rows * np.sin(angle)
        screen = (2 + np.cos(2 * np.pi * along / period) + np.cos(2 * np.pi * across / period)) / 4
        out.append(np.clip((channel - screen) / soft + 0.5, 0, 1))
    return _bytes(np.broadcast_to(np.stack(out, -1) * rng.uniform(215, 255), photograph.shape))


def _beside(rng: Rng, photograph: Pixels) -> Pixels:
    """Half a photograph and half another kind, or one of them in a rectangle on the other."""
    other = KINDS[str(rng.choice(MIXED))][0](rng, photograph)
    inner, outer = (other, photograph) if rng.random() < 0.5 else (photograph, other)
    top, left, h, w = _rectangle(rng, len(outer))
    out = outer.copy()
    out[top : top + h, left : left + w] = inner[top : top + h, left : left + w]
    return out


# --- small things -----------------------------------------------------------------------------------------------------


def _rectangle(rng: Rng, size: int, smallest: int = 32) -> tuple[int, int, int, int]:
    """Top, left, height and width of a rectangle within a square; one in three is a half that a straight line cuts."""
    smallest = min(smallest, size // 2)
    h, w = (int(v) for v in rng.integers(smallest, size + 1, 2))
    kind = rng.random()
    h, w = size if kind < 1 / 6 else h, size if 1 / 6 <= kind < 1 / 3 else w
    return int(rng.integers(size - h + 1)), int(rng.integers(size - w + 1)), h, w


def _larger(rng: Rng, size: int) -> int:
    """The side at which to draw a crop: larger in one case of five, like a screen that is seen scaled down."""
    return size if rng.random() < 0.8 else round(size * rng.uniform(1.1, 2))


def _shrunk(pixels: Pixels, size: int) -> Pixels:
    if len(pixels) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))


def _saturated(rng: Rng) -> tuple[int, ...]:
    """A colour with one channel near 0, one near 255, and one anywhere."""
    return _colour(rng.permutation([rng.integers(0, 40), rng.integers(0, 256), rng.integers(190, 256)]))


def _mixed(rng: Rng, a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """The first colour with a little of the second."""
    share = rng.uniform(0.03, 0.3)
    return _colour((1 - share) * np.array(a) + share * np.array(b))


def _colour(values: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(v) for v in values.clip(0, 255))


def _bytes(values: npt.NDArray[Any]) -> Pixels:
    return np.asarray(np.rint(values).clip(0, 255), np.uint8)


KINDS: Mapping[str, tuple[Kind, float]] = {  # with the probability of each
    "page": (_page, 0.24),
    "panel": (_panel, 0.18),
    "captioned": (_captioned, 0.08),
    "beside": (_beside, 0.12),
    "shaded": (_shaded, 0.08),
    "pattern": (_pattern, 0.10),
    "dither": (_dither, 0.08),
    "halftone": (_halftone, 0.05),
    "blocks": (_blocks, 0.07),
}
