"""The transforms over a whole plane in strips.

A strip comes with a halo as wide as the transform's receptive field, so strips leave no seams and memory stays bounded:
whole, g_s on 12 megapixels takes 1.3 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from hpcmcodec.container import LATENT
from hpcmcodec.model.config import Config
from hpcmcodec.model.synthesis import halo

Progress = Callable[[float], None]

STRIP_LATENTS = 64 * 256  # positions of the latent plane that a transform sees at once, without its halo
PART_COLUMNS = 512  # the widest part of the plane that the synthesis sees at once, without its halo
ANALYSIS_HALO = 8  # latent rows: radius 4 of g_a, 3 of h_a behind it, rounded up to z's stride
Z_STRIDE = 4


def analyse_strips(
    run: Callable[[np.ndarray], Any], pixels: np.ndarray, config: Config, tick: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """The analysis graph over strips that start at multiples of z's stride, so that its own padding acts at the bottom
    only.
    """
    h, w = pixels.shape[0] // LATENT, pixels.shape[1] // LATENT
    y = np.empty((h, w, config.latent), np.float32)
    z = np.empty((-(-h // Z_STRIDE), -(-w // Z_STRIDE), config.hyper), np.float32)
    for a, b in _strips(h, w):
        top, bottom = max(0, a - ANALYSIS_HALO), min(h, b + ANALYSIS_HALO)
        strip_y, strip_z = run(pixels[top * LATENT : bottom * LATENT])
        y[a:b] = strip_y[a - top : b - top]
        z[a // Z_STRIDE : -(-b // Z_STRIDE)] = strip_z[(a - top) // Z_STRIDE : -(-(b - top) // Z_STRIDE)]
        if tick:
            tick(b / h)
    return y, z


def synthesise_strips(
    run: Callable[[np.ndarray], Any], y_hat: np.ndarray, config: Config, depth: int, tick: Progress | None
) -> np.ndarray:
    """The synthesis over parts of the plane, each with the halo that its 3x3 convolutions need: what the whole gives.

    run: y_hat (h, w, M) -> (16 h, 16 w, 3). Returns uint8, uint16 where `depth` is more than 8.
    """
    h, w, _ = y_hat.shape
    around = halo(config)
    pixels = np.empty((h * LATENT, w * LATENT, 3), np.uint8 if depth <= 8 else np.uint16)
    count = -(-w // PART_COLUMNS)
    edges = [w * i // count for i in range(count + 1)]
    for a, b in _strips(h, min(w, PART_COLUMNS)):
        top, bottom = max(0, a - around), min(h, b + around)
        for i, (c, d) in enumerate(pairwise(edges)):
            left, right = max(0, c - around), min(w, d + around)
            part = run(y_hat[top:bottom, left:right])
            rows, columns = (slice(x * LATENT, y * LATENT) for x, y in ((a - top, b - top), (c - left, d - left)))
            pixels[a * LATENT : b * LATENT, c * LATENT : d * LATENT] = part[rows, columns]
            if tick:
                tick((a + (b - a) * (i + 1) / count) / h)
    return pixels


def gradient_strips(
    run: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    y_hat: np.ndarray,
    pixels: np.ndarray,
    weight: np.ndarray,
    config: Config,
    tick: Progress | None,
) -> np.ndarray:
    """The gradient graph over strips, their halo twice that of synthesis: there to the pixels and back again."""
    h, w, _ = y_hat.shape
    around = 2 * halo(config)
    out = np.empty(y_hat.shape, np.float32)
    for a, b in _strips(h, w):
        top, bottom = max(0, a - around), min(h, b + around)
        seen = slice(top * LATENT, bottom * LATENT)
        out[a:b] = run(y_hat[top:bottom], pixels[seen], weight[seen])[a - top : b - top]
        if tick:
            tick(b / h)
    return out


def _strips(h: int, w: int) -> Iterator[tuple[int, int]]:
    rows = max(Z_STRIDE, STRIP_LATENTS // w // Z_STRIDE * Z_STRIDE)
    for a in range(0, h, rows):
        yield a, min(a + rows, h)


def pad(pixels: np.ndarray) -> np.ndarray:
    """Replicate the last row and column up to multiples of 16."""
    h, w, _ = pixels.shape
    return np.pad(pixels, ((0, -h % LATENT), (0, -w % LATENT), (0, 0)), "edge") if h % LATENT or w % LATENT else pixels
