"""Finds the quality whose file has a size, or whose picture a PSNR, in few encodes.

Both rise with quality. Between two qualities that have been tried the next is interpolated; before that it is guessed
from the curve of a usual photograph, moved and stretched so that it goes through what is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hpcmcodec.errors import UnsupportedError

SIZE_SLACK = 0.02
"""A file for a target size is at most this share smaller, where its quality is not 100."""
PSNR_SLACK = 0.05
"""A picture for a target PSNR has at most this many dB more."""
TRIES = 6

# About Kodak's means: bits per pixel and PSNR in dB.
_QUALITIES = (0, 10, 30, 50, 70, 90, 100)
_LOG_SIZES = tuple(math.log(bpp) for bpp in (0.075, 0.108, 0.222, 0.437, 0.775, 1.238, 1.520))
_PSNRS = (26.6, 27.6, 30.0, 32.8, 35.7, 38.5, 39.8)


class _Tried(NamedTuple):
    quality: float
    value: float
    data: bytes


def for_size(encode: Callable[[float], bytes], n_bytes: int) -> bytes:
    """The largest file that was found of at most `n_bytes`; encode: quality -> file.

    Raises UnsupportedError where quality 0 takes more.
    """
    if not n_bytes >= 1:
        raise ValueError(f"a target size is at least one byte, not {n_bytes}")
    window = math.log(n_bytes) + math.log(1 - SIZE_SLACK), math.log(n_bytes)
    tried = _search(lambda quality: _sized(quality, encode(quality)), window, _LOG_SIZES)
    fitting = [t for t in tried if len(t.data) <= n_bytes]
    if not fitting:
        least = min(len(t.data) for t in tried)
        raise UnsupportedError(f"the target of {n_bytes} bytes cannot be met: quality 0 takes {least}")
    return max(fitting, key=lambda t: (len(t.data), t.quality)).data


def for_psnr(encode: Callable[[float], bytes], psnr_of: Callable[[bytes], float], psnr_db: float) -> bytes:
    """The smallest file that was found with at least `psnr_db`; encode: quality -> file.

    Raises UnsupportedError where quality 100 has less.
    """
    if not psnr_db > 0:
        raise ValueError(f"a target PSNR is a positive number of dB, not {psnr_db}")

    def measure(quality: float) -> _Tried:
        data = encode(quality)
        return _Tried(quality, psnr_of(data), data)

    tried = _search(measure, (psnr_db, psnr_db + PSNR_SLACK), _PSNRS)
    good = [t for t in tried if t.value >= psnr_db]
    if not good:
        most = max(t.value for t in tried)
        raise UnsupportedError(f"the target of {psnr_db:g} dB cannot be met: quality 100 has {most:.2f}")
    return min(good, key=lambda t: t.value).data


def _sized(quality: float, data: bytes) -> _Tried:
    return _Tried(quality, math.log(len(data)), data)


def _search(measure: Callable[[float], _Tried], window: tuple[float, float], usual: tuple[float, ...]) -> list[_Tried]:
    """What was tried until a value lies in the window, or nothing better can be found.

    usual: the values of a usual photograph at `_QUALITIES`.
    """
    aim = (window[0] + window[1]) / 2
    tried = [measure(50.0)]
    while len(tried) < TRIES and not window[0] <= tried[-1].value <= window[1]:
        below = max((t for t in tried if t.value < window[0]), default=None, key=lambda t: t.quality)
        above = min((t for t in tried if t.value > window[1]), default=None, key=lambda t: t.quality)
        if below and above:
            share = (aim - below.value) / (above.value - below.value)
            quality = below.quality + min(0.95, max(0.05, share)) * (above.quality - below.quality)
            quality = round(quality, 2)
            if not below.quality < quality < above.quality:
                break
        else:
            quality = round(_guess(tried, aim, usual), 2)
            # The end of the scale is tried before it is given up.
            if len(tried) == TRIES - 1 or any(t.quality == quality for t in tried):
                quality = 0.0 if above else 100.0
            if any(t.quality == quality for t in tried):
                break
        tried.append(measure(quality))
    return tried


def _guess(tried: list[_Tried], aim: float, usual: tuple[float, ...]) -> float:
    """The quality at which the usual curve has `aim`, moved and stretched to go through the last two tries."""
    last = tried[-1]
    at = float(np.interp(last.quality, _QUALITIES, usual))
    stretch = 1.0
    if len(tried) > 1:
        apart = at - float(np.interp(tried[-2].quality, _QUALITIES, usual))
        stretch = min(8.0, max(0.05, (last.value - tried[-2].value) / apart)) if apart else 1.0
    return float(np.interp(at + (aim - last.value) / stretch, usual, _QUALITIES))
