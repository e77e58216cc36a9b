"""Whether a picture is a photograph: what is drawn, written or dithered is coded badly by this codec's transforms.

Three measures, over samples of the picture. Text and drawings have few colours, and neighbours that are exactly equal;
dithers have more energy at the finest scale than one octave below, where photographs have a third and white noise as
much, and halftones in black and white have more of it than the sharpest photograph. The limits stand well apart from
what photographs have: of 40 (Kodak's and held-out ones) none has more than 0.21 of its neighbours equal, a ratio of
more than 0.32, or details of more than 43 levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from hpcmcodec.image.picture import Picture

_SIDE = 256
_MIN_SIDE = 32
_EQUAL, _FEW, _FEW_GREYS, _MANY = 0.45, 64, 32, 1024
_DITHERED = 1.5
_HALFTONE = (90 / 255) ** 2
_HARD = (40 / 255) ** 2


def not_a_photograph(picture: Picture) -> str:
    """What makes the picture none that this codec is for, in words; empty for photographs, and for very small ones."""
    height, width, _ = picture.pixels.shape
    if min(height, width) < _MIN_SIDE:
        return ""
    rows, columns = ({max(0, (side - _SIDE) * i // 3) for i in (0, 2)} for side in (height, width))
    samples = [picture.pixels[r : r + _SIDE, c : c + _SIDE] for r in rows for c in columns]
    peak = (1 << picture.depth) - 1
    packed = [_packed(part) for part in samples]
    grey = picture.grey or all(bool((part == part[..., :1]).all()) for part in samples)
    equal = float(np.mean([np.mean(part[:, 1:] == part[:, :-1]) for part in packed]))
    colours = len(np.unique(np.concatenate([part[::2, ::3].ravel() for part in packed])))
    few = _FEW_GREYS if grey else _FEW
    if 1 < colours <= few:
        return f"it has {colours} colours"
    if equal > _EQUAL and few < colours < _MANY and not grey:
        return "it has few colours and flat areas, as text and drawings have"
    fine, coarse = np.sum([_energies(part.mean(axis=2, dtype=np.float32) / peak) for part in samples], axis=0)
    fine, coarse = fine / len(samples), coarse / len(samples)
    if equal > _EQUAL and fine > _HARD:
        return "it has flat areas with hard edges, as text has"
    if (fine > _DITHERED * coarse and fine > (4 / 255) ** 2) or fine > _HALFTONE:
        return "it is dithered, or has a pattern of a few pixels"
    return ""


def _packed(part: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """(H, W) numbers that are equal where colours are."""
    red, green, blue = (part[..., i].astype(np.uint64) for i in range(3))
    return np.asarray(red << np.uint64(32) | green << np.uint64(16) | blue, np.uint64)


def _energies(light: npt.NDArray[Any]) -> tuple[float, float]:
    """The mean squares of Haar's details at the finest scale and one octave below."""
    fine, light = _details(light)
    coarse, _ = _details(light)
    return fine, coarse


def _details(light: npt.NDArray[Any]) -> tuple[float, npt.NDArray[Any]]:
    height, width = (side // 2 * 2 for side in light.shape)
    a, b, c, d = (light[i:height:2, j:width:2] for i in (0, 1) for j in (0, 1))
    details = (a - b - c + d, a - b + c - d, a + b - c - d)
    return float(sum(np.square(part).mean() for part in details)) / 4, (a + b + c + d) / 2
