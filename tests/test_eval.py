"""`hpcm eval`: measurements that agree with ones made by hand, a store that survives interruption, tables and plots."""

import csv
import hashlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from hpcmcodec.cli import cli
from hpcmcodec.errors import HpcmError, InputError
from hpcmcodec.evaluation import metrics, process, results, run
from hpcmcodec.evaluation.codecs import CODECS, near
from hpcmcodec.evaluation.evaluate import find_photos
from hpcmcodec.evaluation.metrics import Curve, bd_rate, psnr_db
from hpcmcodec.evaluation.results import Series, compare, read_series
from hpcmcodec.evaluation.store import Record, Store

TIMES = {"encoding_time", "decoding_time", "megapixels_per_second", "peak_bytes"}


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of published rate-distortion tables that HPCM_RD names."""
    folder = os.environ.get("HPCM_RD")
    if not folder:
        pytest.skip("HPCM_RD does not name a folder of published tables")
    return Path(folder)


@pytest.fixture(scope="session")
def folder(photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pieces of photographs, 192x176, and a file that is no image."""
    made = tmp_path_factory.mktemp("photographs")
    for name in ("coffee", "chelsea"):
        with Image.open(photos[name]) as image:
            image.convert("RGB").crop((100, 60, 292, 236)).save(made / f"{name}.png")
    (made / "notes.txt").write_text("not an image")
    return made


def evaluate(*arguments: object) -> Result:
    """``hpcm eval``, by PSNR alone where no metrics are named, which is quick."""
    metrics = [] if "--metrics" in arguments else ["--metrics", "psnr"]
    return CliRunner().invoke(cli, ["eval", *metrics, *map(str, arguments)])


def without_times(value: object) -> object:
    """A JSON value without what differs between two runs of the same work."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def series(name: str, *points: tuple[float, float], **images: Curve) -> Series:
    bpp, scores = zip(*points, strict=True)
    own = {digest: {"psnr": curve} for digest, curve in images.items()}
    return Series(name, "", bpp, {"psnr": scores}, images=own)


# ---------------------------------------------------------------------------------------------------- published figures


@pytest.mark.parametrize(
    ("file", "percent"),
    [
        ("kodak_hpcm-base_mse.json", -16.02),
        ("kodak_lalic-repo_lalic.json", -15.26),
        ("kodak_compressai_compressai-mbt2018-mean_mse_cuda.json", 21.28),
    ],
)
def test_bd_rates_from_published_tables_are_the_published_ones(published: Path, file: str, percent: float) -> None:
    anchor, test = read_series(published / "kodak_compressai_vtm.json"), read_series(published / file)
    found = compare(anchor, test, "psnr").averaged
    assert not isinstance(found, str)
    assert found.percent == pytest.approx(percent, abs=0.05)


def test_every_published_table_can_be_read(published: Path) -> None:
    for path in sorted(published.glob("*.json")):
        read = read_series(path)
        assert len(read.bpp) >= 5
        assert read.scores


# --------------------------------------------------------------------------------------------------------- measurements


def by_hand(path: Path, image_format: str, **options: object) -> tuple[int, float]:
    """Bytes and PSNR, by Pillow and numpy alone."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    file = io.BytesIO()
    rgb.save(file, image_format, **options)
    with Image.open(file) as decoded:
        difference = np.asarray(rgb, float) - np.asarray(decoded.convert("RGB"), float)
    return len(file.getvalue()), 10 * math.log10(255**2 / np.mean(difference**2))


def test_jpeg_and_webp_on_kodak_agree_with_a_computation_by_hand(kodak: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    images = [kodak[4], kodak[-1]]
    arguments = ["--codecs", "jpeg,webp", "--qualities", "jpeg=30,80", "--qualities", "webp=30,80"]
    assert evaluate(*images, *arguments, "-j", 1, "-o", tmp_path).exit_code == 0
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = {(row["image"], row["codec"], row["quality"]): row for row in csv.DictReader(file)}
    assert len(rows) == 8
    averages = json.loads((tmp_path / "results.json").read_text())["codecs"]
    for quality in (30, 80):
        for codec, options in (
            ("jpeg", {"subsampling": "4:4:4", "optimize": True}),
            ("webp", {"method": 6}),
        ):
            expected = [by_hand(image, codec, quality=quality, **options) for image in images]
            for image, (n_bytes, psnr) in zip(images, expected, strict=True):
                row = rows[image.name, codec, str(quality)]
                assert int(row["bytes"]) == n_bytes
                assert float(row["bpp"]) == pytest.approx(8 * n_bytes / (768 * 512), abs=1e-6)
                assert float(row["psnr-rgb"]) == pytest.approx(psnr, abs=1e-6)
            means = averages[codec]["results"]
            i = means["quality"].index(quality)
            assert means["bpp"][i] == pytest.approx(sum(n for n, _ in expected) * 4 / (768 * 512))
            assert means["psnr-rgb"][i] == pytest.approx(sum(psnr for _, psnr in expected) / 2)


def test_every_measured_file_is_the_codecs_own(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert evaluate(folder, "--codecs", "hpcm,jpeg", "--qualities", "40", "-j", 1, "-o", tmp_path).exit_code == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert [image["name"] for image in content["images"]] == ["chelsea.png", "coffee.png"]
    for file in content["files"]:
        with Image.open(folder / file["image"]) as image:
            pixels = np.asarray(image)
        coded = CODECS[file["codec"]].code(pixels, file["quality"])
        assert file["bytes"] == len(coded.data)
        assert file["psnr-rgb"] == pytest.approx(psnr_db(pixels, coded.pixels), abs=0.01)
    assert {(file["codec"], file["quality"]) for file in content["files"]} == {
        ("hpcm", 40),
        *(("jpeg", quality) for quality in CODECS["jpeg"].qualities),
    }
    assert content["name"] == content["codecs"]["hpcm"]["name"] == "hpcm"


def test_a_picture_that_comes_back_unchanged_has_no_number_in_json(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    Image.new("RGB", (64, 64), (128, 128, 128)).save(tmp_path / "grey.png")
    done = evaluate(tmp_path / "grey.png", "--codecs", "jpeg,jpeg2000", "-j", 1, "-o", tmp_path)
    assert done.exit_code == 0, done.stderr

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert None in content["codecs"]["jpeg"]["results"]["psnr-rgb"]
    assert "none: rates must be positive and all values finite" in done.stdout


@pytest.mark.parametrize("n_bytes", [1, 900, 4000, 10**6])
def test_near_finds_the_file_nearest_in_size(n_bytes: int, folder: Path) -> None:
    with Image.open(folder / "coffee.png") as image:
        pixels = np.asarray(image)
    webp = CODECS["webp"]
    quality, coded = near(webp, pixels, n_bytes)
    sizes = [len(webp.encode(pixels, q, 1)) for q in range(101)]
    assert len(coded.data) == sizes[int(quality)]
    # Sizes do not rise strictly with the quality, hence the margin.
    assert abs(len(coded.data) - n_bytes) <= 1.1 * min(abs(size - n_bytes) for size in sizes) + 20


@pytest.mark.parametrize("name", ["ms-ssim", "ssimulacra2", "butteraugli"])
def test_an_optional_metric_falls_with_the_quality(name: str, folder: Path) -> None:
    metric = metrics.METRICS[name]
    if metric.missing:
        pytest.skip(metric.missing)
    with Image.open(folder / "coffee.png") as image:
        pixels = np.asarray(image)
    good, bad = (CODECS["jpeg"].code(pixels, quality).pixels for quality in (95, 10))
    values = [metric.shown(metric.compute(pixels, other)) for other in (pixels, good, bad)]
    assert values[0] > values[1] > values[2]
    assert values[0] == {"ms-ssim": math.inf, "ssimulacra2": pytest.approx(100), "butteraugli": 0}[name]


def test_a_program_that_fails_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "butteraugli_main"
    program.write_text("#!/bin/sh\necho cannot read >&2\necho this >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    pixels = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(HpcmError, match=r"^butteraugli_main: cannot read this$"):
        metrics.butteraugli(pixels, pixels)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "libjxl-devtools" in metrics.METRICS["butteraugli"].missing


def test_rates_are_compared_between_the_scores_that_are_asked_for() -> None:
    # Beyond a score of 50 the second codec needs twice the rate, up to there as much as the first.
    anchor = Curve((1.0, 2.0, 4.0, 8.0), (10.0, 30.0, 50.0, 70.0))
    test = Curve((1.0, 2.0, 4.0, 16.0), (10.0, 30.0, 50.0, 70.0))
    below = bd_rate(anchor, test, between=(10, 30))
    assert (below.low, below.high) == (10, 30)
    assert abs(below.percent) < 1e-9
    assert bd_rate(anchor, test, between=(50, 70)).percent > bd_rate(anchor, test).percent > 1
    assert bd_rate(anchor, test, between=(0, 100)) == bd_rate(anchor, test)
    with pytest.raises(ValueError, match="share no range"):
        bd_rate(anchor, test, between=(80, 90))


def test_what_is_measured_by_default_leaves_out_what_small_images_cannot_have(folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / "coffee.png") as image:
        image.crop((0, 0, 96, 96)).save(tmp_path / "small.png")
    lines: list[str] = []
    run.run(
        [tmp_path / "small.png"],
        tmp_path / "out",
        codecs=["jpeg"],
        metrics=None,
        qualities={"jpeg": (50,)},
        anchors=(),
        jobs=1,
        log=True,
        max_pixels=None,
        say=lines.append,
    )
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = {name for name in ("psnr", "ssimulacra2") if not metrics.METRICS[name].missing}
    assert set(found["metric_versions"]) == expected
    assert any("metric ms-ssim is left out" in line for line in lines)


def test_ms_ssim_is_refused_where_it_is_not_defined(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="161 pixels a side, found 200x160"):
        metrics.ms_ssim(np.zeros((160, 200, 3), np.uint8), np.zeros((160, 200, 3), np.uint8))


def test_ms_ssim_in_db_follows_its_formula() -> None:
    assert metrics.to_db(0.99) == pytest.approx(20)
    assert metrics.to_db(0.0) == 0
    assert metrics.to_db(1.0) == math.inf


def test_what_is_not_installed_is_left_out_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {"pillow_jxl", "pillow_heif", "pytorch_msssim"}
    find = metrics.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in hidden else find(name))
    lines: list[str] = []
    found = run.usable(["jpeg", "jxl", "heic"], ["psnr", "ms-ssim"], lines.append)
    assert found == (["jpeg"], ["psnr"])
    assert lines == [
        "codec jxl is left out: pip install pillow-jxl-plugin",
        "codec heic is left out: pip install pillow-heif",
        "metric ms-ssim is left out: pip install pytorch-msssim",
    ]


def test_a_copy_of_an_image_counts_once(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "again.png"
    copy.write_bytes((folder / "coffee.png").read_bytes())
    photos = find_photos([folder, copy], None)
    assert [(photo.name, photo.width, photo.height) for photo in photos] == [
        ("chelsea.png", 192, 176),
        ("coffee.png", 192, 176),
    ]


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_phases_of_a_process_add_up_to_its_time(kind: str, folder: Path, tmp_path: Path) -> None:
    coded = tmp_path / "coded.hpcm"
    found = process.run("encode", "hpcm", folder / "coffee.png", coded, quality=50)
    if kind == "decode":
        found = process.run("decode", "hpcm", coded, tmp_path / "decoded.png")
    phases = [found[name] for name in process.PHASES]
    assert all(found[name] > 0 for name in ("start-up", "load", "I/O", "transform", "entropy path", "rANS"))
    assert sum(phases) <= found["total"]  # the end of the process is in none of them
    assert found["peak_bytes"] > 30_000_000  # Python and numpy


def test_a_phase_inside_another_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 15.0, 19.0, 24.0, 30.0])
    monkeypatch.setattr(process.time, "monotonic", lambda: next(clock))
    phases = process.Phases(started=9.0)
    with phases.phase("coding"), phases.phase("rANS"):
        pass
    phases.end()
    named = {name: seconds for name, seconds in phases.seconds.items() if seconds}
    assert named == {"start-up": 1, "other": 2 + 6, "coding": 3 + 5, "rANS": 4}


# ----------------------------------------------------------------------------------------------- interruption, resuming

RECORD = Record("ab", 8, 8, "jpeg", "4:4:4", "1", 50.0, 100, {"psnr": 30.5}, {"psnr": "1"}, 0.1, 0.2)


def test_a_store_gives_back_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    Store(path).add([RECORD, replace(RECORD, quality=60.0, n_bytes=120)])
    again = Store(path)
    assert len(again) == 2
    assert again.get(RECORD.key, {"psnr": "1"}) == RECORD


@pytest.mark.parametrize("change", [{"sha256": "cd"}, {"codec": "webp"}, {"settings": "4:2:0"}, {"version": "2"}])
def test_a_record_of_another_file_codec_settings_or_version_does_not_count(tmp_path: Path, change: dict) -> None:
    store = Store(tmp_path / "store.jsonl")
    store.add([replace(RECORD, **change)])
    assert store.get(RECORD.key, {"psnr": "1"}) is None


@pytest.mark.parametrize("versions", [{"psnr": "2"}, {"psnr": "1", "ms-ssim": "1"}])
def test_a_record_without_a_metric_or_by_another_version_of_it_does_not_count(tmp_path: Path, versions: dict) -> None:
    store = Store(tmp_path / "store.jsonl")
    store.add([RECORD])
    assert store.get(RECORD.key, versions) is None


@pytest.mark.parametrize("cut", [1, 40])
def test_a_cut_last_line_is_dropped_and_the_rest_kept(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "store.jsonl"
    Store(path).add([RECORD, replace(RECORD, quality=60.0)])
    path.write_bytes(path.read_bytes()[:-cut])
    store = Store(path)
    assert len(store) == 1
    store.add([replace(RECORD, quality=70.0)])
    assert len(Store(path)) == 2


@pytest.mark.parametrize("line", [b"garbage\n", b"[1]\n", b'{"sha256": "ab"}\n', b"\n", b"\xff\xfe\n"])
def test_a_line_that_is_no_record_is_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "store.jsonl"
    path.write_bytes(line)
    store = Store(path)
    assert len(store) == 0
    store.add([RECORD])
    assert len(Store(path)) == 1


def is_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupted_evaluation_goes_on_and_gives_the_same(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    codecs = ["jpeg", "jpeg2000", "webp"]
    arguments = [str(folder), "--codecs", ",".join(codecs), "-j", "2"]
    assert evaluate(*arguments, "-o", tmp_path / "whole").exit_code == 0

    store = tmp_path / "cut" / "measurements.jsonl"
    command = [sys.executable, "-m", "hpcmcodec", "eval", *arguments, "-o", str(store.parent)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    while child.poll() is None and not (store.exists() and store.stat().st_size):
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, stderr = child.communicate()
    assert child.returncode == 130, stderr
    assert stderr.decode() == "hpcm: error: interrupted\n"
    while is_running(child.pid):  # no worker goes on
        time.sleep(0.01)

    kept = store.read_bytes()
    assert kept.endswith(b"\n")
    n_kept = len(kept.splitlines())
    total = 2 * sum(len(CODECS[codec].qualities) for codec in codecs)
    assert 0 < n_kept < total
    assert evaluate(*arguments, "-o", store.parent).exit_code == 0
    assert store.read_bytes().startswith(kept)
    assert len(store.read_bytes().splitlines()) == total
    contents = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "cut")]
    assert without_times(contents[0]) == without_times(contents[1])
    for name in ("rd-psnr.png", "rd-psnr-dark.svg"):
        assert (tmp_path / "whole" / name).read_bytes() == (store.parent / name).read_bytes()


def test_a_second_run_measures_only_what_is_missing(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = [folder, "--codecs", "jpeg", "-j", 1, "-o", tmp_path]
    assert evaluate(*arguments, "--qualities", "jpeg=20,60").exit_code == 0
    first = {name: (tmp_path / name).read_bytes() for name in ("results.json", "measurements.jsonl", "memory.json")}
    assert evaluate(*arguments, "--qualities", "jpeg=20,60").exit_code == 0
    assert first == {name: (tmp_path / name).read_bytes() for name in first}
    assert evaluate(*arguments, "--qualities", "jpeg=20,60,80").exit_code == 0
    grown = (tmp_path / "measurements.jsonl").read_bytes()
    assert grown.startswith(first["measurements.jsonl"])
    assert len(grown.splitlines()) == 6


# ----------------------------------------------------------------------------------------------------- tables, BD-rates


def test_a_table_states_range_and_refusal() -> None:
    anchor = series("Anchor", (0.2, 30.0), (0.4, 33.0), (0.8, 36.0))
    half = series("Half", (0.1, 30.0), (0.2, 33.0), (0.4, 36.0))
    far = series("Far", (0.1, 35.5), (0.2, 38.0), (0.4, 40.0))
    timed = {"qualities": (10, 20, 30), "encode_mps": 1.0, "decode_mps": 2.0}
    text = results.to_markdown(
        {"a": replace(half, **timed), "b": replace(far, **timed)},
        {"anchor": anchor},
        ["psnr"],
        3,
        1,
    )
    assert "| BD-rate, PSNR, averaged curves | against Anchor |" in text
    assert "| Half | -50.00% (30.0 to 36.0 dB) |" in text
    assert "| Far | none: the curves share 11% of the narrower range, too little to compare: " in text


def test_bd_rates_come_image_by_image_and_of_the_averaged_curves() -> None:
    jpeg = Curve([0.2, 0.4, 0.8], [30.0, 33.0, 36.0])
    anchor = series("JPEG", *zip(*jpeg, strict=True), same=jpeg, better=jpeg, odd=jpeg)
    test = series(
        "hpcm",
        *zip([0.1, 0.2, 0.4], jpeg.score, strict=True),
        same=Curve([0.1, 0.2, 0.4], jpeg.score),
        better=Curve([0.05, 0.1, 0.2], jpeg.score),
        odd=Curve([0.1, 0.2, 0.4], [30.0, 29.0, 33.0]),
    )
    found = compare(anchor, test, "psnr")
    assert found.averaged == (pytest.approx(-50), 30.0, 36.0)
    assert found.images["same"].percent == pytest.approx(-50)
    assert found.images["better"].percent == pytest.approx(-75)
    assert "must rise" in found.refused["odd"]


def test_a_result_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = Series("x", "y", (0.1, 0.2), {"psnr": (30.0, 31.0), "ms-ssim": (0.9, 0.95)}, (10, 20), ((1, 2), (3, 4)))
    path = tmp_path / "x.json"
    path.write_text(json.dumps(made.as_json()))
    read = read_series(path)
    assert (read.name, read.bpp, read.scores) == (made.name, made.bpp, made.scores)
    assert read.curve("ms-ssim").score == [pytest.approx(10), pytest.approx(13.0103)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"name": "x"}',
        '{"name": "x", "results": {"bpp": [1]}}',
        '{"name": "x", "results": {"bpp": [1, 2], "psnr-rgb": [30]}}',
        '{"name": "x", "results": {"bpp": ["a"], "psnr-rgb": [30]}}',
        '{"results": {"bpp": [1], "psnr-rgb": [30]}}',
    ],
)
def test_a_file_of_another_schema_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.json: "):
        read_series(path)


def test_a_result_file_is_an_anchor_beside_a_codec(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = tmp_path / "other.json"
    bpp = [0.1, 0.4, 1.6, 6.4]
    other.write_text(json.dumps({"name": "Theirs", "results": {"bpp": bpp, "psnr-rgb": [22, 28, 34, 40]}}))
    arguments = [folder, "--codecs", "webp,jpeg", "--anchor", other, "--anchor", "jpeg", "-j", 1, "-o", tmp_path]
    done = evaluate(*arguments)
    assert done.exit_code == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["name"] == "WebP"
    assert content["anchors"]["Theirs"]["results"]["bpp"] == bpp
    rate = content["bd_rate"]["psnr"]["Theirs"]["webp"]["averaged_curves"]
    measured = content["codecs"]["webp"]["results"]
    assert (
        rate["percent"] == bd_rate(Curve(bpp, [22, 28, 34, 40]), Curve(measured["bpp"], measured["psnr-rgb"])).percent
    )
    assert "| against Theirs | against JPEG |" in done.stdout
    assert f"{rate['percent']:+.2f}% ({rate['low']:.1f} to {rate['high']:.1f} dB)" in done.stdout
    assert done.stdout == (tmp_path / "results.md").read_text()
    assert "4:4:4, baseline, optimised Huffman tables" in done.stdout
    assert "Theirs" not in {row["codec"] for row in csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--codecs", "jpeg,gif"], 2, "'gif' is not one of hpcm, hpcm-slow, jpeg"),
        (["--metrics", "vmaf"], 2, "'vmaf' is not one of psnr"),
        (["--qualities", "10,x"], 2, "numbers separated by commas"),
        (["--qualities", "10,101"], 2, "qualities of hpcm are 0 to 100"),
        (["--qualities", "nan"], 2, "qualities of hpcm are 0 to 100"),
        (["--qualities", "gif=10"], 2, "'gif' is not one of"),
        (["-j", "0"], 2, "0 is not in the range"),
        (["--anchor", "missing.json"], 3, "missing.json: No such file"),
        (["--codecs", "jpeg", "--anchor", "webp"], 2, "'webp' is not among --codecs"),
    ],
)
def test_mistakes_are_one_line_with_their_exit_code(
    arguments: list[str], code: int, words: str, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    done = evaluate(folder, "-o", tmp_path, *arguments)
    assert done.exit_code == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unreadable_image_is_named(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = evaluate(folder / "notes.txt", "-o", tmp_path)
    assert done.exit_code == 3
    assert "notes.txt" in done.stderr


# ---------------------------------------------------------------------------------------------------------------- plots


def three() -> list[Series]:
    own = Curve([0.1, 0.9], [30.0, 38.0])
    return [
        series("hpcm", (0.1, 30.0), (0.9, 38.0), one=own),
        series("JPEG", (0.2, 27.0), (3.0, 41.0), one=own),
        series("Theirs", (0.1, 31.0), (0.8, 39.0)),
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("log", [True, False])
def test_a_plot_clips_nothing_and_is_the_same_each_time(theme: str, log: bool) -> None:
    pytest.importorskip("matplotlib")
    from hpcmcodec.evaluation.plots import THEMES, rd_plot

    png, again = (
        rd_plot(three(), "psnr", title="Averages", theme=theme, log=log, image_format="png") for _ in range(2)
    )
    assert hashlib.sha256(png).digest() == hashlib.sha256(again).digest()
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB"))
    paper = [int(THEMES[theme]["paper"][i : i + 2], 16) for i in (1, 3, 5)]
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((edge == paper).all() for edge in edges)
    assert (pixels != paper).any(axis=2).sum() > 5000


def test_a_plot_as_svg_is_xml_with_each_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from hpcmcodec.evaluation.plots import rd_plot

    svg = rd_plot(three(), "psnr", title="Averages", image_format="svg")
    assert svg == rd_plot(three(), "psnr", title="Averages", image_format="svg")
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert all(colour in svg.decode().lower() for colour in ("#d55e00", "#0072b2", "#009e73"))


def test_a_codec_has_one_colour_in_a_plot_with_all_its_settings() -> None:
    pytest.importorskip("matplotlib")
    from hpcmcodec.evaluation.plots import rd_plot

    names = ("hpcm", "hpcm (effort 9)", "JPEG", "AVIF", "AVIF (speed 4)")
    drawn = [series(name, (0.1, 30.0), (0.9, 38.0), one=Curve([0.1, 0.9], [30.0, 38.0])) for name in names]
    legend = rd_plot(drawn, "psnr", title="Averages", image_format="svg").decode().split('id="legend_1"')[1]
    hpcm, slow, jpeg, avif, avif_slow = re.findall(r"fill: none; stroke: (#\w{6}); stroke-width: [12]\.", legend)
    assert (hpcm, avif) == (slow, avif_slow)
    assert len({hpcm, jpeg, avif}) == 3
