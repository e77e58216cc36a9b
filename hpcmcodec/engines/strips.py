"""The transforms over a whole plane in strips.

A strip comes with a halo as high as the transform's receptive field reaches, so that strips leave no seams. They keep
memory bounded: without strips, g_s takes 1.3 GB for 12 megapixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hpcmcodec.container import LATENT
from hpcmcodec.model.config import Config

Progress = Callable[[float], None]

STRIP_LATENTS = 64 * 256  # positions of y that a strip has at most, without its halo
ANALYSIS_HALO = 8  # rows of y: the radius 4 of g_a and 3 of h_a behind it, rounded up to a multiple of Z_STRIDE
Z_STRIDE = 4  # positions of y for each position of z, in each direction


def analyse_strips(
    run: Callable[[np.ndarray], Any], pixels: np.ndarray, config: Config, tick: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the analysis over strips.

    Strips start at multiples of `Z_STRIDE`, so that the padding inside h_a acts at the bottom of the plane only.

    Args:
        run: pixels (16 r, 16 w, 3) uint8 -> y (r, w, M) and z (ceil(r/4), ceil(w/4), N), float32.
        pixels: (16 h, 16 w, 3) uint8.
        config: gives M (`latent`) and N (`hyper`).
        tick: is called with the fraction done, from 0 to 1.

    Returns:
        y (h, w, M) and z (ceil(h/4), ceil(w/4), N), float32.
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
    run: Callable[[np.ndarray], Any], y_hat: np.ndarray, config: Config, tick: Progress | None
) -> np.ndarray:
    """Runs the synthesis over strips, with the halo that its 3x3 convolutions need.

    The whole plane at once gives the same pixels, or pixels that differ by one in 255 where a library sums in another
    order for another height.

    Args:
        run: y_hat (r, w, M) int32 in sixteenths -> pixels (16 r, 16 w, 3) uint8.
        y_hat: (h, w, M) int32 in sixteenths.
        config: gives the halo.
        tick: is called with the fraction done, from 0 to 1.

    Returns:
        pixels (16 h, 16 w, 3) uint8.
    """
    h, w, _ = y_hat.shape
    halo = _synthesis_halo(config)
    pixels = np.empty((h * LATENT, w * LATENT, 3), np.uint8)
    for a, b in _strips(h, w):
        top, bottom = max(0, a - halo), min(h, b + halo)
        strip = run(y_hat[top:bottom])
        pixels[a * LATENT : b * LATENT] = strip[(a - top) * LATENT : (b - top) * LATENT]
        if tick:
            tick(b / h)
    return pixels


def gradient_strips(
    run: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    y_hat: np.ndarray,
    pixels: np.ndarray,
    weight: np.ndarray,
    config: Config,
    tick: Progress | None,
) -> np.ndarray:
    """Runs the gradient over strips. Their halo is twice that of the synthesis: g_s is gone through forth and back.

    Args:
        run: the three arrays below, of some rows -> their gradient (r, w, M) float32.
        y_hat: (h, w, M) int32 in sixteenths.
        pixels: (16 h, 16 w, 3) uint8.
        weight: (16 h, 16 w, 1) float32, the weight of each pixel's squared error.
        config: gives the halo.
        tick: is called with the fraction done, from 0 to 1.

    Returns:
        The gradient per quantisation step, (h, w, M) float32.
    """
    h, w, _ = y_hat.shape
    halo = 2 * _synthesis_halo(config)
    out = np.empty(y_hat.shape, np.float32)
    for a, b in _strips(h, w):
        top, bottom = max(0, a - halo), min(h, b + halo)
        seen = slice(top * LATENT, bottom * LATENT)
        out[a:b] = run(y_hat[top:bottom], pixels[seen], weight[seen])[a - top : b - top]
        if tick:
            tick(b / h)
    return out


def _synthesis_halo(config: Config) -> int:
    """Rows of y above and below a position that g_s sees.

    Each 3x3 convolution at 1/16 of the resolution adds a row, each one at 1/8 adds half a row.
    """
    return config.synthesis_blocks[1] + -(-config.synthesis_blocks[0] // 2)


def _strips(h: int, w: int) -> Iterator[tuple[int, int]]:
    rows = max(Z_STRIDE, STRIP_LATENTS // w // Z_STRIDE * Z_STRIDE)
    for a in range(0, h, rows):
        yield a, min(a + rows, h)


def pad(pixels: np.ndarray) -> np.ndarray:
    """`pixels` (H, W, 3), with the last row and column repeated until both sides are multiples of 16."""
    h, w, _ = pixels.shape
    return np.pad(pixels, ((0, -h % LATENT), (0, -w % LATENT), (0, 0)), "edge") if h % LATENT or w % LATENT else pixels
