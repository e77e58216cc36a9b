"""The evaluation: PSNR, BD-rate, the codecs compared with, and the programs that report on real files."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hpcmcodec.container import parse_header
from hpcmcodec.evaluation import demo, sample_photo
from hpcmcodec.evaluation.codecs import CODECS, Coded, jpeg, jpeg_near
from hpcmcodec.evaluation.metrics import Curve, bd_rate, psnr_db

ANCHOR = Curve([0.25, 0.4, 0.75, 1.3, 2.4], [28.1, 30.2, 33.0, 35.9, 39.8])
OTHER = Curve([0.1, 0.2, 0.45, 0.9, 1.8], [27.0, 29.9, 33.4, 36.6, 40.6])


@pytest.fixture(scope="module")
def pixels(photos: dict[str, Path]) -> np.ndarray:
    """The middle of a photograph, (96, 128, 3)."""
    with Image.open(photos["coffee"]) as image:
        return np.asarray(image)[150:246, 230:358].copy()


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    size = draw(st.integers(2, 8))
    steps = st.lists(st.floats(0.05, 3), min_size=size, max_size=size)
    return Curve(np.exp(np.cumsum(draw(steps)) - 4).tolist(), (25 + np.cumsum(draw(steps))).tolist())


def test_psnr_follows_its_formula() -> None:
    a = np.full((3, 5, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0, 0] = 109
    assert psnr_db(a, b) == pytest.approx(10 * math.log10(255**2 * 45 / 81), abs=1e-12)
    assert psnr_db(np.zeros_like(a), np.full_like(a, 255)) == 0
    assert psnr_db(a, a) == math.inf


@pytest.mark.parametrize(
    "other", [np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 5, 3), np.uint8)]
)
def test_psnr_refuses_other_shapes_and_types(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        psnr_db(np.zeros((4, 4, 3), np.uint8), other)


@given(curves(), st.floats(0.2, 5))
def test_bd_rate_of_a_scaled_rate_is_the_scale(curve: Curve, factor: float) -> None:
    scaled = Curve([bpp * factor for bpp in curve.bpp], curve.score)
    percent, low, high = bd_rate(curve, scaled)
    assert percent == pytest.approx(100 * (factor - 1), abs=1e-8)
    assert (low, high) == (curve.score[0], curve.score[-1])


def test_ten_percent_more_rate_is_a_bd_rate_of_ten_percent() -> None:
    assert bd_rate(ANCHOR, Curve([1.1 * bpp for bpp in ANCHOR.bpp], ANCHOR.score)).percent == pytest.approx(10)


@given(curves(), curves())
def test_bd_rate_exchanged_is_the_reciprocal(a: Curve, b: Curve) -> None:
    if max(a.score[0], b.score[0]) < min(a.score[-1], b.score[-1]):
        product = (1 + bd_rate(a, b, 0).percent / 100) * (1 + bd_rate(b, a, 0).percent / 100)
        assert product == pytest.approx(1, rel=1e-9)


@given(curves(), st.randoms(use_true_random=False))
def test_bd_rate_does_not_depend_on_the_order_of_the_points(curve: Curve, random) -> None:
    order = list(range(len(curve.bpp)))
    random.shuffle(order)
    shuffled = Curve([curve.bpp[i] for i in order], [curve.score[i] for i in order])
    assert bd_rate(curve, shuffled).percent == pytest.approx(0, abs=1e-9)


def test_bd_rate_agrees_with_an_independent_implementation() -> None:
    # The package bjontegaard 1.3.0, method "pchip", on scipy 1.17's interpolator.
    percent, low, high = bd_rate(ANCHOR, OTHER)
    assert percent == pytest.approx(-42.4169778624463, abs=1e-9)
    assert (low, high) == (28.1, 39.8)


def test_bd_rate_is_taken_over_the_shared_range_only() -> None:
    # Log rate is linear in PSNR on both, so that any part of a curve lies on the same line.
    line = [28.0, 30.0, 32.0, 34.0, 36.0]
    whole = Curve([math.exp(0.2 * psnr) for psnr in line], line)
    part = Curve([1.5 * math.exp(0.2 * psnr) for psnr in (31.0, 33.0, 39.0)], (31.0, 33.0, 39.0))
    assert bd_rate(whole, part) == (pytest.approx(50), 31.0, 36.0)


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        (Curve([0.2, 0.4], [50.0, 52.0]), "share no range"),
        (Curve([0.2, 0.4], [39.8, 41.0]), "share no range"),
        (Curve([0.2, 0.4], [38.9, 41.0]), "share 43% of the narrower range"),
        (Curve([0.2, 0.4, 0.8], [30.0, 29.0, 33.0]), "must rise"),
        (Curve([0.2, 0.4, 0.8], [30.0, 30.0, 33.0]), "must rise"),
        (Curve([0.2, 0.2, 0.8], [30.0, 31.0, 33.0]), "must rise"),
        (Curve([0.0, 0.4], [30.0, 33.0]), "positive"),
        (Curve([0.2, 0.4], [30.0, math.inf]), "finite"),
        (Curve([0.2, math.nan], [30.0, 33.0]), "finite"),
        (Curve([0.2], [30.0]), "two points"),
        (Curve([0.2, 0.4], [30.0, 33.0, 35.0]), "two points"),
    ],
)
def test_bd_rate_refuses_curves_that_cannot_be_compared(curve: Curve, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        bd_rate(ANCHOR, curve)
    with pytest.raises(ValueError, match=reason):
        bd_rate(curve, ANCHOR)


@pytest.mark.parametrize("key", sorted(set(CODECS) - {"hpcm"}))
def test_a_codec_rises_in_rate_and_psnr_over_its_qualities(key: str, pixels: np.ndarray) -> None:
    codec = CODECS[key]
    if codec.missing():
        pytest.skip(f"not installed: {codec.missing()[0]}")
    coded = [codec.code(pixels, quality) for quality in codec.qualities]
    curve = Curve([len(each.data) for each in coded], [psnr_db(pixels, each.pixels) for each in coded])
    assert bd_rate(curve, curve).percent == 0


@pytest.mark.parametrize("n_bytes", [1, 1500, 4000, 8000, 10**6])
def test_no_jpeg_is_nearer_in_size_than_the_one_found(n_bytes: int, pixels: np.ndarray) -> None:
    found = jpeg_near(pixels, n_bytes)
    sizes = {s: [len(jpeg(pixels, quality, s).data) for quality in range(1, 101)] for s in ("4:4:4", "4:2:0")}
    least = {s: min(abs(size - n_bytes) for size in each) for s, each in sizes.items()}
    assert abs(len(found.data) - n_bytes) in least.values()


def test_a_sample_photo_that_does_not_exist_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(FileNotFoundError, match="pip install --no-deps scikit-image"):
        sample_photo("no-such-photograph")


def test_demo_writes_files_that_decode_and_a_sheet(photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "readme.png"
    arguments = [str(photos["coffee"]), "--output-folder", str(tmp_path / "demo"), "--readme-picture", str(picture)]
    assert demo.main(arguments) == 0
    sizes = []
    for quality in demo.QUALITIES:
        data = (tmp_path / "demo" / f"coffee-q{quality}.hpcm").read_bytes()
        header = parse_header(data)
        assert (header.width, header.height, header.quality.percent) == (600, 400, quality)
        sizes.append(len(data))
    printed = capsys.readouterr().out
    assert sizes == sorted(sizes)
    assert all(f"{size:,}" in printed for size in sizes)
    with Image.open(tmp_path / "demo" / "coffee-side-by-side.png") as sheet:
        assert sheet.width >= 4 * demo.COLUMN
    assert picture.stat().st_size < demo.README_LIMIT


def test_demo_reports_an_unreadable_image_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    assert demo.main([str(broken), "--output-folder", str(tmp_path / "demo")]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 2000), (2000, 40)])
def test_the_sheet_has_room_for_any_shape(size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[::2] = 200
    coded = Coded(b"x" * 1000, np.full_like(pixels, 100))
    results = [demo.Result(quality, coded, 0.1, 0.1, coded) for quality in demo.QUALITIES]
    sheet = demo.comparison_sheet(pixels, results)
    assert sheet.width >= 4 * demo.COLUMN
    assert (np.asarray(sheet) == 100).all(axis=2).sum() >= 6 * min(width, demo.COLUMN) * min(height, demo.COLUMN)
