"""Parts of pictures: the pixels of the whole, from the tiles around the part alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpcmcodec import codec, container, decoding
from hpcmcodec.decoding import Window
from hpcmcodec.errors import IntegrityError
from hpcmcodec.image import Picture, scaled_to, sides_within
from hpcmcodec.image.exif import described
from hpcmcodec.model.coder import LatentCoder

SIZES = ((1, 1), (33, 17), (300, 90), (1100, 40), (40, 1060), (1045, 1031))  # the last ones: several tiles of 64
KINDS = ("RGB", "alpha", "grey", "16 bits")


@pytest.fixture(autouse=True, scope="module")
def packaged() -> Iterator[None]:
    with tiny.installed():
        yield


def picture(width: int, height: int, kind: str) -> np.ndarray:
    pixels = tiny.picture(width, height)
    if kind == "grey":
        return pixels[..., 0]
    if kind == "alpha":
        return np.dstack((pixels, np.roll(pixels[..., 1], 5, 1)))
    return pixels.astype(np.uint16) * 257 if kind == "16 bits" else pixels


@cache
def coded(size: tuple[int, int], kind: str, tile: int) -> tuple[bytes, Picture]:
    data = codec.encode(picture(*size, kind), 50, model=tiny.NAME, tile=tile)
    return data, codec.decode_picture(data)


@st.composite
def regions(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    width, height = draw(st.sampled_from(SIZES))
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    across, down = draw(st.integers(1, min(200, width - x))), draw(st.integers(1, min(200, height - y)))
    return (width, height), (x, y, across, down)


@settings(max_examples=40)
@given(regions(), st.sampled_from(KINDS), st.sampled_from([64, 128]))
def test_region_has_the_pixels_and_the_alpha_of_the_whole_picture(
    place: tuple[tuple[int, int], tuple[int, int, int, int]], kind: str, tile: int
) -> None:
    size, region = place
    data, whole = coded(size, kind if max(size) < 1000 or size == (1100, 40) else "RGB", tile)
    x, y, width, height = region
    part = codec.decode_picture(data, region=region)
    inside = slice(y, y + height), slice(x, x + width)
    assert (part.depth, part.grey, part.pixels.dtype) == (whole.depth, whole.grey, whole.pixels.dtype)
    assert part.pixels.flags.c_contiguous
    assert np.array_equal(part.pixels, whole.pixels[inside])
    assert (part.alpha is None) == (whole.alpha is None)
    if whole.alpha is not None:
        assert np.array_equal(part.alpha, whole.alpha[inside])


@pytest.mark.parametrize("scale", ["s1", "s2"])
def test_region_of_a_preview_is_a_part_of_the_preview(scale: str) -> None:
    data, _ = coded((1100, 40), "RGB", 64)
    whole = np.asarray(codec.decode(data, scale=scale))
    assert np.array_equal(np.asarray(codec.decode(data, scale=scale, region=(990, 3, 50, 30))), whole[3:33, 990:1040])


@pytest.mark.parametrize(
    ("region", "tiles"), [((0, 0, 30, 30), 1), ((1000, 0, 9, 9), 2), ((1020, 1020, 9, 9), 4), ((0, 0, 1045, 1031), 4)]
)
def test_tiles_that_a_region_does_not_depend_on_are_not_decoded(region: tuple[int, int, int, int], tiles: int) -> None:
    data, _ = coded((1045, 1031), "RGB", 64)
    decoded = []
    decode = LatentCoder.decode

    def counted(self: LatentCoder, *args: Any, **options: Any) -> np.ndarray:
        decoded.append(args)
        return decode(self, *args, **options)

    with patch.object(LatentCoder, "decode", counted):
        codec.decode(data, region=region)
    assert len(decoded) == tiles


def test_proof_that_the_property_can_fail_without_latents_around_the_region_pixels_differ() -> None:
    data, whole = coded((300, 90), "RGB", 64)
    with patch.object(decoding, "halo", lambda config: 0):
        part = codec.decode_picture(data, region=(64, 32, 32, 32))
    assert not np.array_equal(part.pixels, whole.pixels[32:64, 64:96])


@pytest.mark.parametrize("region", [(0, 0, 34, 1), (0, 17, 1, 1), (-1, 0, 2, 2), (0, 0, 0, 1), (5, 5, 1, 13)])
def test_region_that_is_not_inside_the_picture_is_refused(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="not inside the picture of 33x17"):
        codec.decode(coded((33, 17), "RGB", 64)[0], region=region)


def test_thumbnail_and_region_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        codec.decode(coded((33, 17), "RGB", 64)[0], region=(0, 0, 1, 1), thumbnail=True)


def test_checksum_of_the_pixels_is_compared_for_the_whole_picture_alone() -> None:
    with patch.object(codec, "pixels_crc", lambda pixels: 1):
        data = tiny.encode(100, 70, verify=True)
    with pytest.raises(IntegrityError, match="pixels differ"):
        codec.decode(data)
    assert codec.decode(data, region=(0, 0, 9, 9)).size == (9, 9)


def test_exif_of_a_region_states_its_sides() -> None:
    exif = Image.Exif()
    exif[0x0100], exif[0x0101], exif[0x010E] = 100, 70, "a gate"
    image = Image.fromarray(tiny.picture(100, 70))
    image.info["exif"] = exif.tobytes()
    data = codec.encode(image, 50, model=tiny.NAME)
    said = described(codec.decode_picture(data, region=(3, 4, 50, 20)).metadata["EXIF"])
    assert (said["ImageWidth"], said["ImageLength"], said["ImageDescription"]) == ("50", "20", "a gate")


def test_latents_of_a_window_are_a_part_of_all_latents() -> None:
    data, _ = coded((1045, 1031), "RGB", 64)
    from hpcmcodec.engines.light import LightEngine

    reader, engine = container.Reader(data), LightEngine(tiny.load())
    part = decoding.latents_of(reader, engine, window=Window(60, 62, 5, 3))
    assert np.array_equal(part, codec.decode_latents(data)[60:65, 62:65])


# --- smaller pictures -------------------------------------------------------------------------------------------------


def test_scaling_keeps_depth_and_alpha_and_takes_no_colour_from_transparent_pixels() -> None:
    pixels = np.zeros((40, 60, 3), np.uint16)
    pixels[:, :30] = 900
    alpha = np.zeros((40, 60), np.uint16)
    alpha[:, :30] = 1023
    exif = Image.Exif()
    exif[0x0100] = 60
    small = scaled_to(Picture(pixels, {"EXIF": exif.tobytes()[6:]}, depth=10, alpha=alpha), 6, 4)
    assert (small.depth, small.pixels.dtype, small.pixels.shape) == (10, np.uint16, (4, 6, 3))
    assert small.alpha is not None
    assert small.alpha[:, 0].min() > 1010  # the filter rings a little
    assert small.alpha[:, 5].max() < 13
    assert np.abs(small.pixels[small.alpha > 100].astype(int) - 900).max() <= 2
    assert described(small.metadata["EXIF"])["ImageWidth"] == "6"


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 3000))
def test_sides_fit_and_keep_their_proportion_and_never_grow(width: int, height: int, side: int) -> None:
    across, down = sides_within(width, height, side)
    assert 1 <= across <= min(width, side)
    assert 1 <= down <= min(height, side)
    if max(width, height) <= side:
        assert (across, down) == (width, height)
    else:
        assert max(across, down) == side
        assert abs(across * height - down * width) <= max(width, height)
