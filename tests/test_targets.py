"""Targets: a size that is never exceeded, a PSNR that is reached, in few encodes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import hpcmcodec
from hpcmcodec import container, targets
from hpcmcodec.errors import UnsupportedError


@pytest.fixture(scope="module")
def photo(photos: dict[str, Path]) -> np.ndarray:
    with Image.open(photos["coffee"]) as image:
        return np.asarray(image.convert("RGB"))[100:228, 200:392]


@given(
    least=st.integers(60, 100_000),
    growth=st.floats(1.2, 200),
    bend=st.floats(0.5, 2),
    share=st.floats(-0.2, 1.3),
)
def test_size_is_met_in_few_encodes_whatever_the_curve(least: int, growth: float, bend: float, share: float) -> None:
    tried = []

    def size(quality: float) -> int:
        return int(least * growth ** ((quality / 100) ** bend))

    def encode(quality: float) -> bytes:
        assert 0 <= quality <= 100
        assert quality == round(quality, 2)
        tried.append(quality)
        return bytes(size(quality))

    wanted = max(1, int(least * growth**share))
    if size(0) > wanted:
        with pytest.raises(UnsupportedError, match=f"{wanted} bytes cannot be met: quality 0 takes {size(0)}"):
            targets.for_size(encode, wanted)
    else:
        data = targets.for_size(encode, wanted)
        assert len(data) <= wanted
        smooth = size(100) > wanted and 0.7 <= bend <= 1.4 and least > 5000
        assert not smooth or not 3 < growth < 30 or len(data) >= 0.98 * wanted - 1
        assert size(100) > wanted or len(data) >= min(size(100), 0.98 * wanted - 1)
    assert len(tried) == len(set(tried)) <= targets.TRIES


@given(low=st.floats(15, 35), gain=st.floats(2, 25), share=st.floats(-0.3, 1.2))
def test_psnr_is_reached_in_few_encodes(low: float, gain: float, share: float) -> None:
    tried = []

    def encode(quality: float) -> bytes:
        tried.append(quality)
        return f"{quality}".encode()

    def psnr(data: bytes) -> float:
        return low + gain * (float(data) / 100) ** 1.1

    wanted = low + gain * share
    if psnr(b"100") < wanted:
        with pytest.raises(UnsupportedError, match="quality 100 has"):
            targets.for_psnr(encode, psnr, wanted)
    else:
        found = psnr(targets.for_psnr(encode, psnr, wanted))
        assert found >= wanted
        assert found <= max(wanted, low) + targets.PSNR_SLACK
    assert len(tried) == len(set(tried)) <= targets.TRIES


@pytest.mark.parametrize("target", [0, -5, math.nan])
def test_targets_that_make_no_sense_are_mistakes_in_the_call(photo: np.ndarray, target: float) -> None:
    for name in ("target_size", "target_psnr"):
        with pytest.raises(ValueError, match="target"):
            hpcmcodec.encode(photo, **{name: target})
    for bpp in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="target_bpp"):
            hpcmcodec.encode(photo, target_bpp=bpp)
    with pytest.raises(ValueError, match="exclude"):
        hpcmcodec.encode(photo, target_size=9000, target_bpp=2.0)


def test_files_of_photographs_meet_their_targets(photo: np.ndarray) -> None:
    data = hpcmcodec.encode(photo, target_size=2500)
    assert 0.98 * 2500 <= len(data) <= 2500
    exif = Image.Exif()
    exif[0x010F] = "x" * 500
    image = Image.fromarray(photo)
    image.info["exif"] = exif.tobytes()
    with_metadata = hpcmcodec.encode(image, target_size=2500)
    assert 0.98 * 2500 <= len(with_metadata) <= 2500
    bpp = 8 * len(hpcmcodec.encode(photo, target_bpp=0.5)) / photo[..., 0].size
    assert 0.49 <= bpp <= 0.5
    decoded = np.asarray(hpcmcodec.decode(hpcmcodec.encode(photo, target_psnr=32))).astype(float)
    assert 32 <= 10 * np.log10(255**2 / np.mean((decoded - photo) ** 2)) <= 32.05
    assert container.parse_header(hpcmcodec.encode(photo, target_size=10**6)).quality.percent == 100


def test_targets_far_beyond_all_files_are_met_or_refused_like_others(photo: np.ndarray) -> None:
    small = photo[:16, :16]
    for options in ({"target_size": 10**400}, {"target_bpp": 1e308}):
        assert container.parse_header(hpcmcodec.encode(small, **options)).quality.percent == 100
    with pytest.raises(UnsupportedError, match="cannot be met"):
        hpcmcodec.encode(small, target_bpp=1e-300)
