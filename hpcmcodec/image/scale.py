"""Pictures in a smaller size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hpcmcodec.image.editing import resized

if TYPE_CHECKING:
    from hpcmcodec.image.picture import Picture


def sides_within(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of a picture that is scaled down to fit `side` x `side` pixels; small ones keep their size."""
    share = min(1.0, side / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))


def scaled_to(picture: Picture, width: int, height: int) -> Picture:
    """The picture in another size, by Pillow's Lanczos filter; colours weigh as much as their pixels are opaque."""
    if picture.pixels.shape[:2] == (height, width):
        return resized(picture)
    peak, alpha = (1 << picture.depth) - 1, picture.alpha

    def plane(levels: Any) -> Any:
        image = Image.fromarray(np.ascontiguousarray(levels, np.float32))
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))

    def levels(values: Any) -> Any:
        return np.rint(np.clip(values, 0, peak)).astype(picture.pixels.dtype)

    opacity = None if alpha is None else plane(alpha / np.float32(peak))
    pixels = np.empty((height, width, 3), picture.pixels.dtype)
    for c in range(3):
        channel = picture.pixels[..., c]
        if alpha is None or opacity is None:
            pixels[..., c] = levels(plane(channel))
        else:
            weighted = plane(channel * (alpha / np.float32(peak)))
            pixels[..., c] = levels(weighted / np.maximum(opacity, np.float32(1 / peak)))
    scaled = replace(picture, pixels=pixels, alpha=None if opacity is None else levels(opacity * peak))
    return resized(scaled)
