"""The page of `hpcm compare`: one self-contained file that compares a photograph with its decoded files.

The page is `report.html`, behind the head of all pages, with its places filled in. It holds every picture losslessly,
which takes about two bytes for each pixel of each picture. It loads nothing from anywhere, and its content security
policy forbids loading. It shows, in this order, numbers, a slider over two pictures, crops at the places that differ
most, and maps of the error and of where the bits went.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from hpcmcodec import codec, container
from hpcmcodec.errors import HpcmError, InputError
from hpcmcodec.evaluation.codecs import CODECS, installed, near
from hpcmcodec.evaluation.heat import bits_per_pixel, error_map, heat_image, legend_range
from hpcmcodec.evaluation.metrics import DEFAULT_METRICS, METRICS, MS_SSIM_SIDE, psnr_db
from hpcmcodec.image import load, plain, to_image

__all__ = ["Candidate", "embedded", "filled_page", "places", "report"]

Pixels = npt.NDArray[np.uint8]

CROP = 192
"""Side of a crop in pixels."""
N_CROPS = 4
_WEBP_MAX_SIDE = 16383


class Candidate(NamedTuple):
    """A decoded file: its name on the page, its size, its pixels (H, W, 3), and for hpcm its bits per pixel at each
    position (H/16, W/16).
    """

    name: str
    n_bytes: int
    pixels: Pixels
    bits: npt.NDArray[np.float64] | None = None


def report(
    image: Path,
    files: Sequence[Path],
    against: Sequence[str] = (),
    *,
    max_pixels: int | None = None,
    max_side: int | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[[float], None] | None = None,
) -> str:
    """The page for a photograph and `.hpcm` files of it.

    Args:
        against: keys of `CODECS`. Each codes the photograph in about the size of each file. One that is not installed
            is left out, and `say` is told so.
        max_pixels, max_side: as for `codec.decode`.
        say: called with lines for people.
        progress: called with the fraction of the work that is done, in [0, 1].

    Raises:
        InputError: a file cannot be read, or its picture has another size than the photograph.
        HpcmError: whatever `codec.decode` and `image.load` raise.
    """
    picture = plain(load(image, max_pixels=max_pixels))
    original = picture.pixels
    usable = installed(against, say)
    candidates: list[Candidate] = []
    steps = len(files) * (1 + len(usable))
    for file in files:
        labelled = len({each.stem for each in files}) < len(files)
        own = _decoded(file, original, max_pixels, max_side, labelled=labelled)
        candidates.append(own)
        for key in usable:
            quality, coded = near(CODECS[key], original, own.n_bytes)
            name = (
                f"{CODECS[key].name} {quality:g}, as large as {own.name}" if len(files) > 1 else f"{CODECS[key].name}"
            )
            candidates.append(Candidate(name, len(coded.data), coded.pixels))
            if progress:
                progress(len(candidates) / (steps + 1))
    return page(image.name, original, candidates, to_image(picture).info.get("icc_profile"), say)


def page(
    title: str, original: Pixels, candidates: Sequence[Candidate], icc: bytes | None, say: Callable[[str], None]
) -> str:
    """The text of the page. Its pictures carry the ICC profile of the photograph, so that browsers show its colours.

    original: (H, W, 3) uint8. say: called with a line for each metric that is not installed.
    """
    height, width, _ = original.shape
    errors = [error_map(original, each.pixels) for each in candidates]
    with_bits = [(each, each.bits) for each in candidates if each.bits is not None]
    error_high = legend_range(*errors)
    bits_high = legend_range(*(bits for _, bits in with_bits))
    names = ["original", *(each.name for each in candidates)]
    pictures = [original, *(each.pixels for each in candidates)]
    filled: Mapping[str, str] = {
        "title": html.escape(title),
        "subtitle": f"{width} x {height} pixels",
        "aspect": f"{width / height:.6g}",
        "numbers": _numbers(original, candidates, say),
        "options": "".join(f"<option>{html.escape(name)}</option>" for name in names),
        "crops": "".join(
            _crop_row(box, names, pictures, icc) for box in places(original, [each.pixels for each in candidates])
        ),
        "error_legend": _legend(error_high, "levels and more"),
        "errors": "".join(
            _map(each.name, heat_image(error, error_high), "error")
            for each, error in zip(candidates, errors, strict=True)
        ),
        "bits_legend": _legend(bits_high, "bits per pixel and more"),
        "bits": "".join(_map(each.name, heat_image(bits, bits_high), "bits") for each, bits in with_bits),
        "pictures": "".join(
            f'<img alt="{html.escape(name)}" data-width="{width}" src="{embedded(pixels, icc)}">'
            for name, pixels in zip(names, pictures, strict=True)
        ),
    }
    return filled_page("report.html", filled)


def filled_page(name: str, values: Mapping[str, str]) -> str:
    """The page of a template beside this file, behind the head that all pages have, with its places filled in."""
    template = "".join(Path(__file__).with_name(part).read_text(encoding="utf-8") for part in ("head.html", name))
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], template)


def places(original: Pixels, decoded: Sequence[Pixels], count: int = N_CROPS) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of up to `count` squares where the squared error, summed over `decoded`, is largest.

    original, decoded: (H, W, 3) uint8. The squares do not overlap. Their corners lie an eighth of a side apart or at
    the edges. An image with sides below `CROP` pixels is taken whole.
    """
    height, width, _ = original.shape
    side_y, side_x = min(CROP, height), min(CROP, width)
    step = max(1, CROP // 8)
    squares = np.zeros((height, width))
    for pixels in decoded:
        squares += np.square(original.astype(np.float64) - pixels).sum(axis=2)
    total = np.zeros((height + 1, width + 1))
    total[1:, 1:] = squares.cumsum(axis=0).cumsum(axis=1)
    tops = np.unique([*range(0, height - side_y + 1, step), height - side_y])
    lefts = np.unique([*range(0, width - side_x + 1, step), width - side_x])
    y, x = np.meshgrid(tops, lefts, indexing="ij")
    energy = total[y + side_y, x + side_x] - total[y, x + side_x] - total[y + side_y, x] + total[y, x]
    found: list[tuple[int, int, int, int]] = []
    while len(found) < count and np.isfinite(energy).any():
        i, j = np.unravel_index(int(np.argmax(energy)), energy.shape)
        top, left = int(tops[i]), int(lefts[j])
        found.append((left, top, left + side_x, top + side_y))
        energy[(abs(y - top) < side_y) & (abs(x - left) < side_x)] = -np.inf
    return found


def _decoded(
    file: Path, original: Pixels, max_pixels: int | None, max_side: int | None, *, labelled: bool
) -> Candidate:
    limits = container.Limits(max_pixels=max_pixels, max_side=max_side)
    try:
        with file.open("rb") as stream:
            data = container.read(stream, **limits)
        pixels = plain(codec.decode_picture(data, depth=8, **limits)).pixels
        quality = container.parse_header(data, **limits).quality.percent
        bits = bits_per_pixel(codec.bits_map(data, **limits))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error
    except HpcmError as error:
        raise type(error)(f"{file}: {error}") from error
    if pixels.shape != original.shape:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (pixels.shape, original.shape)]
        raise InputError(f"{file}: {sizes[0]} pixels, but the photograph has {sizes[1]}")
    name = str(file) if labelled else file.name
    return Candidate(f"{name} (q {quality:g})", len(data), pixels, bits)


def _numbers(original: Pixels, candidates: Sequence[Candidate], say: Callable[[str], None]) -> str:
    height, width, _ = original.shape
    metrics = {}
    for key, metric in METRICS.items():
        if metric.missing:
            if key in DEFAULT_METRICS:
                say(f"metric {key} is left out: {metric.missing}")
        elif key != "ms-ssim" or min(height, width) >= MS_SSIM_SIDE:
            metrics[key] = metric
    rows = [["", "bytes", "bits per pixel", *(metric.label for metric in metrics.values())]]
    for each in candidates:
        scores = [
            f"{metric.shown(metric.compute(original, each.pixels)):.{metric.decimals}f}" for metric in metrics.values()
        ]
        rows.append([each.name, f"{each.n_bytes:,}", f"{8 * each.n_bytes / (width * height):.3f}", *scores])
    lines = []
    for i, row in enumerate(rows):
        tag = "td" if i else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _crop_row(
    box: tuple[int, int, int, int], names: Sequence[str], pictures: Sequence[Pixels], icc: bytes | None
) -> str:
    left, top, right, bottom = box
    crops = [pixels[top:bottom, left:right] for pixels in pictures]
    figures = []
    for name, crop in zip(names, crops, strict=True):
        caption = f"<b>{html.escape(name)}</b>"
        if crop is not crops[0]:
            caption += f"<br>{psnr_db(crops[0], crop):.2f} dB here"
        else:
            caption += f"<br>from column {left}, row {top}"
        alt = html.escape(f"{name}, from column {left}, row {top}")
        size = f'width="{right - left}" height="{bottom - top}"'
        style = f'style="width:{right - left}px"'
        figures.append(
            f'<figure {style}><img class="crop" {size} alt="{alt}" src="{embedded(crop, icc)}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="row">{"".join(figures)}</div>'


def _map(name: str, image: Image.Image, kind: str) -> str:
    label = html.escape(name)
    return f'<figure><img alt="{kind} of {label}" src="{_png(image)}"><figcaption><b>{label}</b></figcaption></figure>'


def _legend(high: float, unit: str) -> str:
    scale = heat_image(np.linspace(0, 1, 256)[None], 1.0)
    return f'<div class="legend">0 <img alt="colour scale" src="{_png(scale)}"> {high:.3g} {unit}</div>'


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def embedded(pixels: Pixels, icc: bytes | None) -> str:
    """A data URI that holds the pixels exactly: WebP, a quarter smaller than PNG, or PNG for sides beyond WebP's."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > _WEBP_MAX_SIDE:
        file = io.BytesIO()
        image.save(file, "PNG", icc_profile=icc)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, method=2, quality=50, icc_profile=icc or b"")
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
