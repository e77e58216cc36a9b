"""The page of `hpcm compare FOLDER`: crops of photographs that several codecs have coded in one size, names hidden.

Each codec codes each photograph in about the same number of bits per pixel. Crops lie where the decoded pictures are
farthest from the originals, and the order of the codecs changes from crop to crop. Who looks marks the best of each;
the page then says which codec it was, and counts.
"""

from __future__ import annotations

import html
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.evaluation.codecs import CODECS, Coded, installed, near
from hpcmcodec.evaluation.evaluate import find_photos
from hpcmcodec.evaluation.report import embedded, filled_page, places
from hpcmcodec.image import load, plain, to_image

Pixels = npt.NDArray[np.uint8]

N_CROPS = 24


class Crop(NamedTuple):
    """A place in a photograph, (left, top, right, bottom): its pixels (H, W, 3), and what each codec made of them.

    Attributes:
        title: the photograph and the place, in words.
        sizes: bits per pixel of each codec's file of the whole photograph.
    """

    title: str
    original: Pixels
    decoded: dict[str, Pixels]
    sizes: dict[str, float]
    icc: bytes | None


def blind(
    folder: Path,
    codecs: Sequence[str],
    bpp: float,
    *,
    max_pixels: int | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[[float], None] | None = None,
) -> str:
    """The page for the photographs of a folder.

    Args:
        codecs: keys of `CODECS`. One that is not installed is left out, and `say` is told so.
        bpp: size of each file, in bits per pixel.
        max_pixels: the largest photograph that is read; None: no limit.
        say: called with lines for people.
        progress: called with the fraction of the work that is done, in [0, 1].

    Raises:
        InputError: there are no photographs, or one cannot be read.
        UnsupportedError: fewer than two codecs are installed.
    """
    usable = installed(codecs, say)
    if len(usable) < 2:
        raise UnsupportedError("fewer than two codecs are left to compare")
    photos = find_photos([folder], max_pixels)
    crops: list[Crop] = []
    for i, photo in enumerate(photos):
        picture = plain(load(photo.path, max_pixels=max_pixels))
        icc, original = to_image(picture).info.get("icc_profile"), picture.pixels
        pixels = original.shape[0] * original.shape[1]
        coded: dict[str, Coded] = {}
        for j, key in enumerate(usable):
            coded[key] = near(CODECS[key], original, round(bpp * pixels / 8))[1]
            if progress:
                progress((i + (j + 1) / len(usable)) / len(photos))
        sizes = {key: 8 * len(each.data) / pixels for key, each in coded.items()}
        wanted = (N_CROPS - len(crops) + len(photos) - i - 1) // (len(photos) - i)
        for left, top, right, bottom in places(original, [each.pixels for each in coded.values()], wanted):
            inside = np.s_[top:bottom, left:right]
            decoded = {key: each.pixels[inside] for key, each in coded.items()}
            title = f"{photo.name}, column {left}, row {top}"
            crops.append(Crop(title, original[inside], decoded, sizes, icc))
    return page(f"{folder.name}, {bpp:g} bits per pixel", crops)


def page(title: str, crops: Sequence[Crop]) -> str:
    """The text of the page. It holds every crop losslessly and loads nothing."""
    rows = []
    for number, crop in enumerate(crops, 1):
        order = list(crop.decoded)
        random.Random(crop.title).shuffle(order)
        height, width, _ = crop.original.shape
        size = f'width="{width}" height="{height}"'
        figures = [
            f'<figure><img {size} alt="original" src="{embedded(crop.original, crop.icc)}">'
            f"<figcaption>original</figcaption></figure>"
        ]
        for letter, key in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", order, strict=False):
            name = html.escape(f"{CODECS[key].name}, {crop.sizes[key]:.3f} bpp")
            codec_name = html.escape(CODECS[key].name)
            figures.append(
                f'<figure><button type="button" aria-pressed="false" data-codec="{codec_name}">'
                f'<img {size} alt="{letter}" src="{embedded(crop.decoded[key], crop.icc)}"></button>'
                f'<figcaption>{letter}<span class="name">: {name}</span></figcaption></figure>'
            )
        label = html.escape(crop.title)
        rows.append(
            f'<section><h2>{number}</h2><p class="name">{label}</p><div class="row">{"".join(figures)}</div></section>'
        )
    return filled_page("blind.html", {"title": html.escape(title), "crops": "\n".join(rows)})
