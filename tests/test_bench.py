"""`make bench`: what is counted and how it is put together; times themselves are not asserted."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hpcmcodec import weights
from hpcmcodec.evaluation import compressai_models, process
from tests import tiny
from tools import bench
from tools.__main__ import main


def test_the_picture_of_each_size_is_made_of_photographs(photos: dict[str, Path]) -> None:
    with Image.open(photos["coffee"]) as image:
        coffee = np.asarray(image)
    for width, height in bench.SIZES.values():
        assert width % compressai_models.STRIDE == height % compressai_models.STRIDE == 0
        made = bench.bench_photo(width, height)
        assert (made.shape, made.dtype) == ((height, width, 3), np.uint8)
        assert (made[:288, :448] == coffee[56:344, 76:524]).all()
        assert made[-64:].std() > 20


def test_multiplications_are_those_of_the_design() -> None:
    w = weights.load()
    found = bench.macs_per_pixel(w)
    # g_a 14.5 and h_a 1.0, or g_s 21.5, and h_s and the context the same both ways, in thousands a pixel.
    assert found["encode"] - found["decode"] == pytest.approx((14.5 + 1.0 - 21.5) * 1000, rel=0.05)
    assert 8_000 < found["decode"] - 21_500 < 16_000


def test_multiplications_of_a_transform_follow_from_its_shapes() -> None:
    w = tiny.load()
    found = bench.macs_per_pixel(w)
    c8, c16, m = 16, 24, w.config.latent
    block = lambda c: 9 * c + 4 * c * c  # noqa: E731
    synthesis = (m * c16 + block(c16) + c16 * 4 * c8) / 256 + (block(c8) + c8 * 192) / 64
    analysis = (192 * c8 + block(c8)) / 64 + (4 * c8 * c16 + block(c16) + c16 * m) / 256
    a, n = w.config.hyper_analysis_width, w.config.hyper
    hyper = (m * a + block(a)) / 256 + (4 * a * n + block(n)) / 1024 + 4 * n * n / 4096
    assert found["encode"] - found["decode"] == pytest.approx(analysis + hyper - synthesis)


def test_tables_have_every_codec_ratio_phase_and_roofline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(direction: str, codec: str, source: Path, target: Path, *, quality: float = 0, threads: int = 1) -> dict:
        target.write_bytes(b"x" * 1234)
        seconds = 2.0 if codec == "hpcm" else 0.5
        phases = dict.fromkeys(process.PHASES, 0.0) | {"start-up": 1.0, "coding": seconds}
        return {**phases, "total": 1.0 + seconds, "peak_bytes": 5e8}

    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(bench, "gemm_rate", lambda threads: 1e11)
    monkeypatch.setattr(bench, "dot_rate", lambda threads: 5e10)
    output = tmp_path / "bench.json"
    arguments = ["--sizes", "0.4,2", "--codecs", "hpcm,webp", "--rounds", "2", "-o", str(output)]
    done = CliRunner().invoke(main, ["bench", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    text = done.stdout
    assert "| 0.4 | hpcm | 1,234 | 3.00 |  | 2.00 |  | 0.20 | 500 |" in text
    assert "| 2 | WebP | 1,234 | 1.50 | 0.50 | 0.50 | 0.25 | 3.98 | 500 |" in text
    assert "| decode, 2 MP | 1.00 | 0.00 | 0.00 | 0.00 | 0.00 | 0.00 | 2.00 |" in text
    macs = bench.macs_per_pixel(weights.load())
    share = 2 * macs["decode"] * 768 * 512 / 2.0 / 1e11
    assert f"(2.00 s * 100 G/s) = {share:.0%} of the matrix product's rate" in text
    alone = macs["decode"] * 768 * 512 / 5e10
    assert f"{alone:.2f} s alone at 50 G multiplications/s; decode takes {2 / alone:.2f} times as long" in text
    assert json.loads(output.read_text())["results"]["2"]["webp"]["encode"]["n_bytes"] == 1234


def test_a_codec_beyond_its_largest_size_is_left_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(direction: str, codec: str, source: Path, target: Path, **options: object) -> dict:
        target.write_bytes(b"x")
        return dict.fromkeys([*process.PHASES, "total", "peak_bytes"], 1.0)

    monkeypatch.setattr(process, "run", run)
    found = bench.measure(["0.4", "2"], ["webp", "cheng2020-anchor"], 1, 1)
    assert {size: list(codecs) for size, codecs in found.items()} == {
        "0.4": ["webp", "cheng2020-anchor"],
        "2": ["webp"],
    }


@pytest.mark.parametrize("arguments", [["--sizes", "1"], ["--codecs", "gif"], ["--rounds", "0"], ["--threads", "0"]])
def test_bad_arguments_are_usage_errors(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, ["bench", *arguments]).exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(compressai_models.MODELS))
def test_compressais_models_code_and_decode(name: str, tmp_path: Path) -> None:
    if compressai_models.missing():
        pytest.skip(f"not installed: {', '.join(compressai_models.missing())}")
    photo, coded, decoded = tmp_path / "photo.png", tmp_path / "coded", tmp_path / "decoded.png"
    Image.fromarray(bench.bench_photo(128, 64)).save(photo)
    encoding = process.run("encode", name, photo, coded)
    decoding = process.run("decode", name, coded, decoded)
    assert min(encoding["coding"], decoding["coding"]) > 0
    with Image.open(decoded) as image:
        assert image.size == (128, 64)
