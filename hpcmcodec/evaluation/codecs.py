"""The codecs compared with, through Pillow: pixels -> a file's bytes -> pixels.

Files hold the picture alone, without metadata. JPEG and AVIF keep the colour planes whole (4:4:4); lossy WebP knows
half resolution (4:2:0) only.
"""

import functools
import io
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from hpcmcodec.evaluation.metrics import psnr_db

Pixels = npt.NDArray[np.uint8]


class Coded(NamedTuple):
    """A coded picture: the file's bytes, and the pixels ``(H, W, 3)`` uint8 decoded from them."""

    data: bytes
    pixels: Pixels


def jpeg(pixels: Pixels, quality: int, subsampling: Literal["4:4:4", "4:2:0"] = "4:4:4") -> Coded:
    """Baseline JPEG with Huffman tables fitted to the picture; ``quality`` 1..100."""
    return _coded(pixels, "JPEG", quality=quality, subsampling=subsampling, optimize=True)


def webp(pixels: Pixels, quality: int) -> Coded:
    """Lossy WebP at its slowest method; ``quality`` 0..100."""
    return _coded(pixels, "WEBP", quality=quality, method=6)


def avif(pixels: Pixels, quality: int) -> Coded:
    """AVIF by libaom at speed 6, tuned for PSNR; ``quality`` 0..100. Needs Pillow 11.3."""
    return _coded(pixels, "AVIF", quality=quality, speed=6, subsampling="4:4:4", codec="aom", advanced={"tune": "psnr"})


def jpeg_near(pixels: Pixels, n_bytes: int) -> Coded:
    """The JPEG whose size is nearest to ``n_bytes``, found by halving the range of qualities.

    4:4:4 and 4:2:0 are both tried (the second wins at low rates) and the one with the better PSNR is taken.
    """

    def nearest(subsampling: Literal["4:4:4", "4:2:0"]) -> Coded:
        at = functools.cache(lambda quality: jpeg(pixels, quality, subsampling))
        low, high = 1, 100
        while high - low > 1:
            middle = (low + high) // 2
            if len(at(middle).data) < n_bytes:
                low = middle
            else:
                high = middle
        return min((at(low), at(high)), key=lambda coded: abs(len(coded.data) - n_bytes))

    return max((nearest("4:4:4"), nearest("4:2:0")), key=lambda coded: psnr_db(pixels, coded.pixels))


class Anchor(NamedTuple):
    """A codec to measure against: its settings in words, and the qualities that span the range of interest."""

    name: str
    description: str
    code: Callable[[Pixels, int], Coded]
    qualities: tuple[int, ...]


ANCHORS: Mapping[str, Anchor] = {
    "jpeg": Anchor("JPEG", "4:4:4, optimised Huffman tables", jpeg, (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)),
    "webp": Anchor("WebP", "4:2:0, method 6", webp, (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)),
    "avif": Anchor("AVIF", "4:4:4, libaom, speed 6, tune psnr", avif, (10, 20, 30, 40, 50, 60, 70, 80, 90)),
}


def _coded(pixels: Pixels, image_format: str, **options: object) -> Coded:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    with Image.open(file) as image:
        return Coded(file.getvalue(), np.asarray(image.convert("RGB")))
