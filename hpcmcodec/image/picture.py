"""`Picture`, an image as the codec takes and gives it, and `Found`, an image as the reader of its format gives it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcmcodec.image.colour import Cicp

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from PIL import Image

    Samples = npt.NDArray[Any]  # uint8 or uint16


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as `load` returns it.

    Attributes:
        pixels: (H, W, 3) RGB, contiguous, the right way up: uint8, or uint16 from 0 to 2^depth - 1 above 8 bits.
        metadata: bytes by name: "ICC", "EXIF", "IPTC", "TEXT" (`container.text_of`) and "XMP" where present.
        notes: one line for each conversion that was made.
        depth: bits of a sample, 8 to 16.
        grey: whether the picture is one of greys; its three channels are then equal.
        alpha: (H, W), of the type and range of `pixels`; None where all pixels are opaque. It is not premultiplied.
        cicp: the colour space by its code points; None where "ICC" describes it, and without "ICC" for sRGB.
    """

    pixels: Samples
    metadata: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    depth: int = 8
    grey: bool = False
    alpha: Samples | None = None
    cicp: Cicp | None = None


@dataclass
class Found:
    """An image as the reader of its format gives it: perhaps not decoded yet, not turned, not in RGB.

    Attributes:
        image: Pillow's image of the file.
        deep: gives (H, W, C) uint16 with C of 1 to 4 (grey, grey and alpha, RGB, RGBA), from 0 to 2^depth - 1, where
            the file has more than 8 bits and they can be read here; None elsewhere.
        depth: bits of a sample in the file.
        colour: code points or an ICC profile where the file states its space other than in Pillow's "icc_profile".
        metadata: bytes by name as in `Picture`, beyond or instead of those in Pillow's `info`.
        notes: what cannot be kept.
        text: (keyword, text) pairs.
        key: the transparent colour, in levels from 0 to 2^depth - 1, where the file names one and Pillow is not told.
        dpi: horizontal and vertical resolution in dots per inch.
        by_name: whether `colour` counts, and not the profile beside it.
        turned: the Orientation (1..8) that the reader applies to the pixels by itself; 0 where it applies none.
        chosen: whether `image` stands at the only whole picture of its file.
    """

    image: Image.Image
    deep: Callable[[], npt.NDArray[np.uint16]] | None = None
    depth: int = 8
    colour: Cicp | bytes | None = None
    metadata: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    text: list[tuple[str, str]] = field(default_factory=list)
    key: tuple[int, ...] | None = None
    dpi: tuple[float, float] | None = None
    by_name: bool = False
    turned: int = 0
    chosen: bool = False


def flattened(picture: Picture, background: tuple[int, int, int]) -> Picture:
    """The picture on a background of 8-bit RGB, blended as the levels stand; a grey picture on grey stays one."""
    if picture.alpha is None:
        return picture
    peak = (1 << picture.depth) - 1
    behind = np.array([level * peak // 255 for level in background], np.uint64)
    alpha = picture.alpha.astype(np.uint64)[..., None]
    pixels = (picture.pixels * alpha + behind * (peak - alpha) + peak // 2) // peak
    grey = picture.grey and len(set(background)) == 1
    return replace(picture, pixels=pixels.astype(picture.pixels.dtype), alpha=None, grey=grey)


def plain(picture: Picture) -> Picture:
    """The picture as RGB of 8 bits without alpha, on white, as comparisons take it; its notes say so."""
    notes = list(picture.notes)
    if picture.depth > 8:
        notes.append(f"{picture.depth}-bit samples reduced to 8 bits")
    if picture.alpha is not None:
        notes.append("transparent pixels put on white")
    picture = flattened(picture, (255, 255, 255))
    pixels = scaled(picture.pixels, (1 << picture.depth) - 1, 255)
    return replace(picture, pixels=pixels, depth=8, notes=tuple(notes))


def opaque(alpha: Samples | None, peak: int, notes: list[str]) -> Samples | None:
    """`alpha`, or None with a note where it is `peak` everywhere."""
    if alpha is None or int(alpha.min()) < peak:
        return alpha
    notes.append("alpha dropped: it is opaque everywhere")
    return None


def scaled(levels: npt.NDArray[Any], peak: int, to_peak: int) -> Samples:
    """Levels from 0 to `peak` as levels from 0 to `to_peak`, rounded; uint8 where that is enough."""
    dtype = np.uint8 if to_peak <= 255 else np.uint16
    if peak == to_peak:
        return np.asarray(levels, dtype)
    if peak <= 65535:  # a table: as exact, and quicker than a division for each sample
        table = (np.arange(peak + 1, dtype=np.uint64) * to_peak + peak // 2) // peak
        return np.asarray(table.astype(dtype)[levels])
    return ((levels.astype(np.uint64) * to_peak + peak // 2) // peak).astype(dtype)
