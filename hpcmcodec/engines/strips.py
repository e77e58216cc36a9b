"""The transforms over a whole plane in strips.

Strips keep memory bounded, and leave no seams. In the synthesis, a strip takes up where the one above has ended. In the
encoder's transforms, it comes with a halo as high as the transform's receptive field reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from hpcmcodec.container import LATENT
from hpcmcodec.model.config import Config
from hpcmcodec.model.synthesis import Rows, analysis_halo, halo

Progress = Callable[[float], object]

STRIP_LATENTS = 64 * 256  # positions of y that a strip has at most, without its halo
SYNTHESIS_LATENTS = 8 * 256  # the same in the synthesis: what passes from layer to layer stays in a processor's cache
PART_COLUMNS = 512  # columns of y that a part of the plane has at most in the synthesis, without its halo
LARGER = {"hpcm": 4, "lite": 1}  # how much more memory a flow's transforms take at a position than those of lite
Z_STRIDE = 4  # positions of y for each position of z, in each direction


def analyse_strips(
    run: Callable[[np.ndarray], Any], pixels: np.ndarray, config: Config, tick: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the analysis over strips.

    Strips start at multiples of `Z_STRIDE`, so that the padding inside h_a acts at the bottom of the plane only.

    Args:
        run: pixels (16 r, 16 w, 3) -> y (r, w, M) and z (ceil(r/4), ceil(w/4), N), float32.
        pixels: (16 h, 16 w, 3) uint8 or float32.
        config: gives M (`latent`) and N (`hyper`).
        tick: is called with the fraction done, from 0 to 1.

    Returns:
        y (h, w, M) and z (ceil(h/4), ceil(w/4), N), float32.
    """
    h, w = pixels.shape[0] // LATENT, pixels.shape[1] // LATENT
    around = -(-analysis_halo(config) // Z_STRIDE) * Z_STRIDE
    y = np.empty((h, w, config.latent), np.float32)
    z = np.empty((-(-h // Z_STRIDE), -(-w // Z_STRIDE), config.hyper), np.float32)
    for a, b in _strips(config, h, w):
        top, bottom = max(0, a - around), min(h, b + around)
        strip_y, strip_z = run(pixels[top * LATENT : bottom * LATENT])
        y[a:b] = strip_y[a - top : b - top]
        z[a // Z_STRIDE : -(-b // Z_STRIDE)] = strip_z[(a - top) // Z_STRIDE : -(-(b - top) // Z_STRIDE)]
        if tick:
            tick(b / h)
    return y, z


def synthesise_strips(
    run: Callable[[np.ndarray, Rows], Any], y_hat: np.ndarray, config: Config, depth: int, tick: Progress | None
) -> np.ndarray:
    """Runs the synthesis over the plane in strips. A wide plane is cut into parts, with halos at their sides.

    The whole plane at once gives the same pixels.

    Args:
        run: y_hat (r, c, M) int32 in sixteenths and the part's state -> the pixels that come next, (n, 16 c, 3).
        y_hat: (h, w, M) int32 in sixteenths.
        config: gives the halo.
        depth: the bits of a pixel.
        tick: is called with the fraction done, from 0 to 1.

    Returns:
        pixels (16 h, 16 w, 3) uint8, uint16 where `depth` is more than 8.
    """
    h, w, _ = y_hat.shape
    around = halo(config)
    pixels = np.empty((h * LATENT, w * LATENT, 3), np.uint8 if depth <= 8 else np.uint16)
    if config.flow == "hpcm":  # its synthesis keeps no rows from one strip to the next
        _synthesise_parts(run, y_hat, config, pixels, tick)
        return pixels
    count = -(-w // PART_COLUMNS)
    for i, (c, d) in enumerate(pairwise(w * i // count for i in range(count + 1))):
        left, right = max(0, c - around), min(w, d + around)
        height = max(1, SYNTHESIS_LATENTS // (d - c))
        rows, at = Rows(), 0
        for a in range(0, h, height):
            rows.last = a + height >= h
            part = run(y_hat[a : a + height, left:right], rows)
            pixels[at : at + len(part), c * LATENT : d * LATENT] = part[:, (c - left) * LATENT : (d - left) * LATENT]
            at += len(part)
            if tick:
                tick((i + min(h, a + height) / h) / count)
    return pixels


def _synthesise_parts(
    run: Callable[[np.ndarray, Rows], Any],
    y_hat: np.ndarray,
    config: Config,
    pixels: np.ndarray,
    tick: Progress | None,
) -> None:
    """Fills `pixels` by parts of the plane, each with a halo on all four sides."""
    h, w, _ = y_hat.shape
    around, count = halo(config), -(-w // PART_COLUMNS)
    edges = [w * i // count for i in range(count + 1)]
    for a, b in _strips(config, h, min(w, PART_COLUMNS)):
        top, bottom = max(0, a - around), min(h, b + around)
        for i, (c, d) in enumerate(pairwise(edges)):
            left, right = max(0, c - around), min(w, d + around)
            part = run(y_hat[top:bottom, left:right], Rows(last=True))
            rows, columns = (slice(x * LATENT, y * LATENT) for x, y in ((a - top, b - top), (c - left, d - left)))
            pixels[a * LATENT : b * LATENT, c * LATENT : d * LATENT] = part[rows, columns]
            if tick:
                tick((a + (b - a) * (i + 1) / count) / h)


def gradient_strips(
    run: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    y_hat: np.ndarray,
    pixels: np.ndarray,
    weight: np.ndarray,
    config: Config,
    tick: Progress | None,
) -> np.ndarray:
    """Runs the gradient over strips. Their halo is twice that of the synthesis: g_s is gone through forth and back.
    The windows of `distortion.visual` reach farther, but what they bring from there hardly weighs anything.

    Args:
        run: the three arrays below, of some rows -> their gradient (r, w, M) float32.
        y_hat: (h, w, M) int32 in sixteenths.
        pixels: (16 h, 16 w, 3) uint8 or float32.
        weight: (16 h, 16 w, 1) float32, the weight of each pixel's squared error.
        config: gives the halo.
        tick: is called with the fraction done, from 0 to 1.

    Returns:
        The gradient per quantisation step, (h, w, M) float32.
    """
    h, w, _ = y_hat.shape
    around = 2 * halo(config)
    out = np.empty(y_hat.shape, np.float32)
    for a, b in _strips(config, h, w):
        top, bottom = max(0, a - around), min(h, b + around)
        seen = slice(top * LATENT, bottom * LATENT)
        out[a:b] = run(y_hat[top:bottom], pixels[seen], weight[seen])[a - top : b - top]
        if tick:
            tick(b / h)
    return out


def _strips(config: Config, h: int, w: int) -> Iterator[tuple[int, int]]:
    rows = max(Z_STRIDE, STRIP_LATENTS // LARGER[config.flow] // w // Z_STRIDE * Z_STRIDE)
    for a in range(0, h, rows):
        yield a, min(a + rows, h)


def pad(pixels: np.ndarray) -> np.ndarray:
    """`pixels` (H, W, 3), with the last row and column repeated until both sides are multiples of 16."""
    h, w, _ = pixels.shape
    return np.pad(pixels, ((0, -h % LATENT), (0, -w % LATENT), (0, 0)), "edge") if h % LATENT or w % LATENT else pixels
