"""Effort: several times the encoder moves y to make up for what coding does to it, and codes it anew.

A round decodes what was coded, takes the gradient of the distortion at y_hat, and moves y_hat against it:

    target = y_hat - step * gradient        in quantisation steps, moved by at most LIMIT
    y      = the mean of y and the targets of all rounds so far
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from hpcmcodec.container import LATENT
from hpcmcodec.exact.constants import MEAN_SHIFT
from hpcmcodec.model.config import Config, lmbda
from hpcmcodec.quality import Quality

Streams = TypeVar("Streams")

ROUNDS = (0, 1, 2, 3, 4, 6, 8, 10, 13, 16)  # by effort; all rounds take equally long, and later ones gain less
# The curvature of the distortion is about 20 bits per squared quantisation step, in nearly all channels that are in use
# at a quality. So 0.05 times the gradient, in bits per quantisation step, leads to where a latent on its own is best.
# Of 0.04 to 0.08, 0.06 gave the smallest files at the same PSNR on four held-out photographs; what `visual` measures is
# steeper for small errors than on average, and wants shorter steps (docs/NOTEBOOK.md).
STEP, STEP_FOR_EYES = 0.06, 0.045
# In quantisation steps. Where the curvature is many times larger, each round would overshoot further than the one
# before; with this bound y_hat only swings to and fro, and the mean of all rounds settles.
LIMIT = 2.0


def refined(
    y: np.ndarray,
    coded: tuple[Streams, np.ndarray],
    rounds: int,
    step: float,
    gradient: Callable[[np.ndarray, int], np.ndarray],
    code: Callable[[np.ndarray, int], tuple[Streams, np.ndarray]],
) -> Streams:
    """The streams after `rounds` rounds.

    Args:
        y: (h, w, M) float32, in quantisation steps; changed in place, because the plane is large.
        coded: what `code` gave for y: the streams, and y_hat (h, w, M) int32 in sixteenths.
        rounds: the number of rounds; 0 gives the streams back.
        step: how far the gradient is followed, see `step_of`.
        gradient: takes y_hat and the number of the round, from 1; returns the gradient of the distortion at y_hat,
            (h, w, M) float32, which is then overwritten.
        code: takes y and the number of the round; returns what `coded` holds.
    """
    streams, y_hat = coded
    for n in range(1, rounds + 1):
        target = gradient(y_hat, n)
        target *= -step
        np.clip(target, -LIMIT, LIMIT, out=target)
        target += y_hat * np.float32(2.0**-MEAN_SHIFT)
        target -= y
        target /= n + 1
        y += target
        streams, y_hat = code(y, n)
    return streams


def step_of(config: Config) -> float:
    """What the gradient is multiplied by, for models of a config."""
    return STEP_FOR_EYES if config.metric == "visual" else STEP


def error_weight(height: int, width: int, quality: Quality) -> np.ndarray:
    """The weight of each pixel's squared error, (16 h, 16 w, 1) float32; 0 in the padding.

    `height` and `width` are the image's, in pixels. With these weights, sum(weight / 2 * (x_hat - x)^2) is the
    distortion of the whole image as in training for squared error, in bits: for each pixel, lambda * 255^2 times the
    mean squared error of its three colours. What a model is trained for beside it has its place in the gradient.
    """
    inside = np.full((height, width, 1), 2 / 3 * 255**2 * lmbda(quality.unit), np.float32)
    return np.pad(inside, ((0, -height % LATENT), (0, -width % LATENT), (0, 0)))
