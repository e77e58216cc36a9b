"""`python -m tools`: the project's own measurements, and the page of results, which is what its files give."""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import hpcmcodec
from hpcmcodec import weights
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.errors import InputError
from hpcmcodec.evaluation.codecs import CODECS
from hpcmcodec.evaluation.evaluate import find_photos
from hpcmcodec.evaluation.metrics import psnr_db
from hpcmcodec.evaluation.results import compare
from hpcmcodec.evaluation.store import Record, Store
from tests import tiny
from tools import collect, deadzone, facts, family, many, monotone, previews, results, robustness, speed, twins
from tools.__main__ import main
from tools.monotone import Point

ROOT = Path(__file__).parent.parent
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


# --- previews and whole commands --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels(photos: dict[str, Path]) -> np.ndarray:
    """The middle of a photograph, (96, 128, 3)."""
    with Image.open(photos["coffee"]) as image:
        return np.asarray(image)[150:246, 230:358].copy()


@pytest.fixture
def folder(pixels: np.ndarray, tmp_path: Path) -> Path:
    """Two small images, and a file that is none."""
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(pixels[::-1].copy()).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_previews_are_measured_on_each_image(folder: Path) -> None:
    done = run("previews", folder, "--qualities", "20,80")
    code, lines = done.exit_code, done.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| 20", "| 80"]
    assert ("rises from scale to scale on each of 2 images" in lines[-1]) == (code == 0)


def test_a_preview_that_is_no_better_than_a_coarser_one_is_named() -> None:
    results = {"good.png": [(20.0, 25.0, 30.0)], "flat.png": [(25.0, 25.0, 31.0)]}
    text = previews.markdown(results, [40])
    assert "| 40 | 22.50 | 25.00 | 30.50 |" in text
    assert text.endswith("PSNR does not rise from scale to scale: flat.png at 40.")
    del results["flat.png"]
    assert previews.markdown(results, [40]).endswith("on each of 1 images at each quality.")


@pytest.mark.parametrize("qualities", ["10,x", "10,101", "nan"])
def test_bad_qualities_are_usage_errors(qualities: str, folder: Path) -> None:
    done = run("previews", folder, "--qualities", qualities)
    assert done.exit_code == 2
    assert "'--qualities'" in done.stderr


def test_a_folder_without_images_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run("previews", tmp_path)
    assert done.exit_code == 3
    assert "no images" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_speed_table_has_medians_and_ratios_to_import_torch() -> None:
    times = {speed.UNIT: [2.0, 9.0, 1.0], "hpcm encode": [0.5, 1.5, 0.7]}
    lines = speed.markdown(times).splitlines()
    assert lines[2:] == ["| `import torch` | 2.00 | 1.00 |", "| `hpcm encode` | 0.70 | 0.35 |"]
    assert speed.markdown({"hpcm info": [0.1]}).splitlines()[2:] == ["| `hpcm info` | 0.10 | torch is not installed |"]


def test_the_speed_of_whole_commands_is_measured_and_written(folder: Path) -> None:
    output = folder / "times.json"
    done = run("speed", folder / "a.png", "--rounds", "1", "-o", output)
    assert done.exit_code == 0
    seconds = json.loads(output.read_text())["seconds"]
    assert {"hpcm encode", "hpcm decode", "hpcm info"} <= set(seconds)
    assert all(len(each) == 1 and each[0] > 0 for each in seconds.values())
    assert f"a.png, median of 1 runs on {facts.cpu_name()}" in done.stdout


def test_a_failing_command_is_reported_with_its_own_words(folder: Path) -> None:
    done = run("speed", folder / "notes.txt", "--rounds", "1")
    assert done.exit_code == 1
    assert "hpcmcodec" in done.stderr


# --- monotonicity -----------------------------------------------------------------------------------------------------


def test_monotone_names_falls_beyond_its_slack_and_no_others() -> None:
    rising = [Point(q, 0.1 + 0.01 * q, 25 + 0.1 * q) for q in range(101)]
    assert monotone.broken(rising) == []
    assert monotone.broken(rising[::5]) == []
    little = [
        p._replace(bpp=rising[6].bpp * 0.9985, psnr=rising[6].psnr - 0.019) if p.quality == 7 else p for p in rising
    ]
    assert monotone.broken(little) == []
    assert [
        text.split(":")[0] for text in monotone.broken([*rising[:7], *rising[9:11], *rising[8:9], *rising[11:]])
    ] == [
        "q 10 to 8",
        "q 10 to 8",
    ]
    flat = [p._replace(psnr=rising[5].psnr) if p.quality == 10 else p for p in rising[::5]]
    assert monotone.broken(flat) == ["q 5 to 10: 25.5000 to 25.5000 dB"]


def test_monotone_codes_real_files_and_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(tiny.picture(64, 48)).save(tmp_path / "a.png")
    monkeypatch.setattr(monotone, "COARSE", 50)
    with tiny.installed():
        done = run("monotone", "--model", tiny.NAME, tmp_path)
        found = monotone.measure(tmp_path / "a.png", range(0, 101, 50), tiny.NAME)
    assert [p.quality for p in found] == [0, 50, 100]
    assert done.exit_code == (1 if monotone.broken(found) else 0)
    assert f"1 images, {len(monotone.broken(found))} breaks" in done.stdout


# --- quantisation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(photos: dict[str, Path]) -> np.ndarray:
    """A part of a photograph that is large enough for MS-SSIM, (176, 192, 3)."""
    with Image.open(photos["coffee"]) as image:
        return np.asarray(image)[100:276, 200:392].copy()


def test_deadzone_compares_with_what_encoders_write(large: np.ndarray) -> None:
    bench = deadzone.Bench(LightEngine(weights.load()), [deadzone.AS_SHIPPED])
    psnr, _ = bench.curves(large, [30, 70], deadzone.AS_SHIPPED)
    for quality, bpp, score in zip((30, 70), *psnr, strict=True):
        data = hpcmcodec.encode(large, quality)
        assert 0 <= bpp * large.shape[0] * large.shape[1] / 8 - len(data) <= 8  # the bytes around streams are a bound
        assert score == pytest.approx(psnr_db(large, np.asarray(hpcmcodec.decode(data))))


def test_deadzone_prints_what_each_way_costs(large: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(large).save(tmp_path / "large.png")
    done = run("deadzone", tmp_path, "--qualities", "20,60", "--weights", "0.03")
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| a bit weighs 0.03", "| centres", "| plain"]
    assert float(rows[2][1].partition("%")[0]) > 0


# --- result files and the page that is made from them -----------------------------------------------------------------


@pytest.fixture
def evaluation(folder: Path) -> Path:
    """A folder as `hpcm eval` leaves it: two codecs at three qualities on both images, and an older measurement."""
    made = folder / "evaluation"
    made.mkdir()
    store = Store(made / "measurements.jsonl")
    for number, photo in enumerate(find_photos([folder / "a.png", folder / "b.png"], None)):
        for codec, versions, bytes_a_quality in (("hpcm", ("1", "2"), 40), ("jpeg", ("7",), 60)):
            for version in versions:
                for quality in (10.0, 50.0, 90.0):
                    size = int(quality * (bytes_a_quality + 20 * number) / int(version))
                    scores = {"psnr": 25 + quality / 10 + number, "ms-ssim": 0.9 + quality / 1000}
                    kept = photo.sha256, photo.width, photo.height, codec, "settings", version, quality, size
                    store.add([Record(*kept, scores, {"psnr": "1", "ms-ssim": "1"}, 0.5, 0.25)])
    return made


def test_a_result_file_gives_the_bd_rates_of_the_measurements_it_was_made_from(
    folder: Path, evaluation: Path, tmp_path: Path
) -> None:
    path = tmp_path / "kodak.json"
    store = Store(evaluation / "measurements.jsonl")
    latest = [record for record in store if record.version != "1"]
    (evaluation / "measurements.jsonl").unlink()
    Store(evaluation / "measurements.jsonl").add(latest)
    done = run("collect", evaluation, folder / "a.png", folder / "b.png", "-o", path, "--commit", "abc", "--note", "N.")
    assert done.exit_code == 0
    content = json.loads(path.read_text())
    assert (content["commit"], content["note"]) == ("abc", "N.")
    assert "--qualities hpcm=10,50,90" in content["command"]
    assert weights.load(weights.DEFAULT_MODEL).model_id.hex() in content["model"]
    series = collect.series_of(facts.read(path))
    for key in ("hpcm", "jpeg"):
        mine = [record for record in latest if record.codec == key]
        means = [np.mean([r.bpp for r in mine if r.quality == q]) for q in (10, 50, 90)]
        assert series[key].bpp == pytest.approx(means)
    found = compare(series["jpeg"], series["hpcm"], "psnr")
    # Sizes are 40 q / 2 and 60 q / 2 of hpcm's version 2, 60 q / 7 and 80 q / 7 of JPEG.
    assert [rate.percent for rate in found.images.values()] == pytest.approx([133.3, 162.5], abs=2)


def test_a_codec_measured_in_two_versions_or_with_gaps_is_refused(folder: Path, evaluation: Path) -> None:
    store = Store(evaluation / "measurements.jsonl")
    photos = find_photos([folder / "a.png", folder / "b.png"], None)
    newest = [record for record in store if record.version != "1"]
    gap = ("jpeg", 90, photos[1].sha256)
    with pytest.raises(InputError, match="jpeg at quality 90 was not measured on b"):
        collect.collected([r for r in newest if (r.codec, r.quality, r.sha256) != gap], photos)
    older = [r for r in store if r.version == "1" and r.sha256 == photos[0].sha256]
    with pytest.raises(InputError, match="hpcm was measured in several versions"):
        collect.collected([*newest, *older], photos)
    with pytest.raises(InputError, match="no measurements of these 2 images"):
        collect.collected([], photos)


def test_published_tables_leave_their_bd_rates_alone(
    folder: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "measured.json", tmp_path / "published.json"
    photos = find_photos([folder / "a.png", folder / "b.png"], None)
    content = collect.collected([r for r in Store(evaluation / "measurements.jsonl") if r.version != "1"], photos)
    facts.write(path, facts.about("a command") | content)
    bpp = collect.series_of(content)["hpcm"].bpp
    table = {"name": "Theirs", "description": "their source", "results": {"bpp": list(bpp)}}
    table["results"]["psnr-rgb"] = [26.5, 30.5, 34.5]  # type: ignore[index]
    (tmp_path / "theirs.json").write_text(json.dumps(table))
    refused = run("published", path, tmp_path / "theirs.json", "-o", out)
    assert (refused.exit_code, out.exists()) == (3, False)
    assert "measured on 2 images, while published tables are averages over 24" in refused.stderr
    monkeypatch.setattr(collect, "KODAK_IMAGES", 2)
    assert run("published", path, tmp_path / "theirs.json", "-o", out).exit_code == 0
    (rate,) = json.loads(out.read_text())["rates"]
    assert rate == {
        "against": "Theirs",
        "metric": "psnr",
        "codec": "hpcm",
        "percent": pytest.approx(0, abs=0.01),
        "low": 26.5,
        "high": 34.5,
        "source": "their source",
    }
    assert "26.5, 30.5" not in out.read_text()


def test_members_of_the_family_stand_beside_what_they_were_made_from() -> None:
    seconds = {"values": [[2.0, 4.0, 3.0], [3.0, 6.0, 4.5]], "difference": {"mean": 0.5, "low": 0.25, "high": 0.75}}
    pair = {
        "members": [{"name": "base-phase2"}, {"name": "base-phase3"}],
        "time": {"seconds of encoding, 9x9": seconds, "seconds of decoding, 9x9": seconds},
        "memory": {"forward": [1.0, 1.0], "encoding": [1000.0, 1500.0], "decoding": [400.0, 300.0]},
    }
    cells = family.markdown([pair])[-1].strip("| ").split(" | ")
    taken = ["4.50 and 3.00", "+50.0% [+25.0%, +75.0%]"]
    assert cells == [
        "base-phase3 against base-phase2",
        *taken,
        *taken,
        "1,500 and 1,000: +50.0%",
        "300 and 400: -25.0%",
    ]


def trained(preset: str, seed: int, sizes: list[list[int]], seconds: float, curve: list[list[float]]) -> dict[str, Any]:
    """A run as `tools twins` measures it, of two images."""
    psnr = [[30.0, 32.0] for _ in sizes]
    return {
        "name": f"{preset}-{seed}",
        "member": preset,
        "model": {},
        "seed": seed,
        "steps": 100,
        "crops": ["64:1"],
        "model_id": "0",
        "parameters": 1000,
        "seconds_a_step": seconds,
        "bytes": sizes,
        "psnr": psnr,
        "validated": curve,
    }


CURVE = [[0, 2.0], [50, 1.5], [100, 1.0]]


def test_twins_are_compared_image_by_image_and_by_the_spread_of_the_baseline() -> None:
    baseline = [trained("a", seed, [[size, 2 * size]], 0.1, CURVE) for seed, size in enumerate((990, 1010, 1000))]
    others = [trained("b", 0, [[900, 1800]], 0.2, CURVE), trained("c", 0, [[990, 1980]], 0.1, CURVE)]
    content = {"runs": [*baseline, *others], "pixels": [8000, 8000], "qualities": []}
    head, _, first, smaller, same, _, words = twins.markdown(content)
    assert head.count("|") == first.count("|")
    assert "| 1,000 | 0, 1, 2 | 1.5000 | 31.000 |" in first
    # Both images agree in a tenth; three seeds that differ by 1% leave 4.3 * sqrt(4 / 3) % to chance.
    assert "-10.0% [-14.4%, -5.4%]: smaller" in smaller
    assert "-1.0% [-5.8%, +4.0%]: no difference shown" in same
    # While the baseline does 100 steps, b does 50.
    assert "| 200 | +50.0% |" in smaller
    assert "differ by 1.00% in bytes" in words


def test_without_a_second_seed_the_page_says_what_the_intervals_leave_out() -> None:
    baseline = trained("a", 0, [[1000, 1000], [2000, 2000]], 0.1, CURVE)
    other = trained("a", 0, [[1100, 1210], [2200, 2420]], 0.1, CURVE) | {"model": {"memory": "full"}}
    *_, row, _, words = twins.markdown({"runs": [baseline, other], "pixels": [8000, 8000], "qualities": [10, 50]})
    assert "a with memory full" in row
    assert "[+10.0%, +21.0%]: larger" in row
    assert words.startswith("One seed")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics": {"psnr": "1"}, "images": 3, "codecs": {"hpcm": {}}}'])
def test_a_damaged_result_file_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "kodak.json"
    path.write_text(content)
    done = run("published", path, path, "-o", tmp_path / "out.json")
    assert done.exit_code == 3
    assert len(done.stderr.splitlines()) == 1


def test_the_page_of_results_is_what_the_committed_files_give() -> None:
    assert results.page(facts.RESULTS) == (ROOT / "docs" / results.PAGE).read_text(encoding="utf-8")


def test_the_plots_are_what_the_committed_files_give() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    pinned = re.search(r'^matplotlib==([\d.]+); python_version >= "3.11"$', CONSTRAINTS, re.MULTILINE)
    if pinned is None or matplotlib.__version__ != pinned[1]:
        pytest.skip(f"matplotlib {matplotlib.__version__} may draw other paths than the version that drew the plots")
    for name, svg in results.plots(facts.RESULTS).items():
        assert svg == (ROOT / "docs" / name).read_bytes(), name


def test_every_result_file_is_small_and_says_where_its_figures_come_from() -> None:
    paths = sorted(facts.RESULTS.glob("*.json"))
    assert facts.RESULTS / "kodak.json" in paths
    for path in paths:
        assert path.stat().st_size < 200_000
        content = facts.read(path)
        assert {"command", "machine", "versions", "commit", "model"} <= set(content), path
        assert content["commit"] != "unknown", path


# --- pictures that are no photographs ---------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0.01, 20), st.floats(5, 60) | st.just(math.inf))))
def test_a_frontier_rises_and_nothing_beats_it(points: list[tuple[float, float]]) -> None:
    curve = robustness.frontier(points)
    kept = list(zip(*curve, strict=True))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(kept))
    assert set(kept) <= set(points)
    for bpp, score in points:
        assert score == math.inf or any(b <= bpp and s >= score for b, s in kept)


def test_held_out_images_are_rgb_and_the_same_for_a_seed() -> None:
    pytest.importorskip("matplotlib")
    first, again = dict(robustness.held_out(20)), dict(robustness.held_out(20))
    assert {name.split("-")[0] for name in first} == {
        *("text", "panel", "checkerboard", "stripes", "dither", "halftone", "shaded")
    }
    for name, image in first.items():
        assert (image.shape, image.dtype) == ((robustness.HEIGHT, robustness.WIDTH, 3), np.uint8)
        assert np.array_equal(image, again[name])
    assert len({image.tobytes() for image in first.values()}) == len(first)
    assert not np.array_equal(next(image for _, image in robustness.held_out(21)), next(iter(first.values())))
    coloured = np.ptp(first["text-serif-subpixel"].astype(int), axis=2).max()
    assert coloured > 100
    assert np.ptp(first["text-serif"].astype(int), axis=2).max() == 0


@pytest.mark.skipif(bool(CODECS["avif"].missing()), reason="this Pillow does not write AVIF")
def test_robustness_names_falls_of_psnr_and_what_a_flat_picture_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = np.mgrid[:64, :64]
    Image.fromarray((100 + 100 * ((rows + columns) % 2)).astype(np.uint8)).save(tmp_path / "board.png")
    flat = 20 * math.log10(255 / 50)
    curve = {q: flat + q / 100 for q in robustness.QUALITIES}

    def judged(changes: dict[int, float]) -> tuple[int, list[str]]:
        points = [Point(q, 0.1 + q / 50, psnr) for q, psnr in (curve | changes).items()]
        monkeypatch.setattr(robustness, "measure", lambda path, qualities, model: points)
        done = run("robustness", tmp_path)
        return done.exit_code, [line.strip() for line in done.stdout.splitlines() if "fault" in line]

    assert judged({}) == (0, ["0 faults"])
    assert judged({60: curve[50] - 0.04}) == (0, ["0 faults"])
    assert judged({60: curve[50] - 0.06}) == (
        1,
        [f"fault: q 50 to 60: {curve[50]:.2f} to {curve[50] - 0.06:.2f} dB", "1 faults"],
    )
    code, said = judged({q: flat - 1 + q / 1000 for q in curve})
    assert (code, said[0]) == (1, f"fault: q 90: {flat - 0.91:.2f} dB, flat {flat:.2f}")


@pytest.mark.skipif(bool(CODECS["avif"].missing()), reason="this Pillow does not write AVIF")
def test_robustness_measures_real_files_against_avif_at_equal_psnr(pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    verdict = robustness.judge(tmp_path / "photograph.png", weights.DEFAULT_MODEL)
    assert [row.point.quality for row in verdict.rows] == list(range(0, 101, 10))
    assert verdict.flat == psnr_db(pixels, np.full_like(pixels, np.rint(pixels.mean((0, 1)))))
    assert verdict.faults == []
    assert verdict.bd_rate < 0  # as on photographs in general
    within = [row.ratio for row in verdict.rows if not math.isnan(row.ratio)]
    assert len(within) >= 5
    assert min(within) < 1 + verdict.bd_rate / 100 < max(within)
    assert [line for line in robustness.lines("photograph", verdict) if "photograph" in line] == [
        f"photograph: flat {verdict.flat:.2f} dB; BD-rate against AVIF: {verdict.bd_rate:+.1f}%"
    ]


# --- many files -------------------------------------------------------------------------------------------------------


@given(st.integers(4, 500))
def test_pictures_of_many_sizes_are_many_small_and_few_large_ones(count: int) -> None:
    areas = [width * height / 1e6 for width, height in many.sizes(count)]
    assert areas[0] == pytest.approx(many.SMALLEST, rel=0.01)
    assert areas[-1] == pytest.approx(many.LARGEST, rel=0.01)
    assert sorted(areas) == pytest.approx(areas, rel=0.01)
    assert sum(area < 0.5 for area in areas) >= sum(area > 0.5 for area in areas)


def test_pictures_of_any_size_are_cut_from_photographs_or_fill_up(folder: Path, tmp_path: Path) -> None:
    wanted = [(100, 30), (300, 200)]
    paths = many.make([folder / "a.png", folder / "b.png"], wanted, tmp_path / "made")
    for path, size in zip(paths, wanted, strict=True):
        with Image.open(path) as image:
            assert image.size == size
            assert np.asarray(image).std(axis=(0, 1)).min() > 5


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_and_processor_time_are_those_of_a_command_and_all_below_it() -> None:
    def child(inner: str) -> str:
        return f"import subprocess, sys, time; {inner}; time.sleep(0.5); sum(range(10**6))"

    grand = child("x = bytearray(b'1') * 60_000_000")
    command = [sys.executable, "-c", child(f"subprocess.run([sys.executable, '-c', {grand!r}])")]
    ran = many.run(command)
    assert 60e6 < ran.peak_bytes < 150e6
    assert ran.elapsed > 1
    assert 0 < ran.processor < ran.elapsed
    with pytest.raises(subprocess.CalledProcessError):
        many.run([sys.executable, "-c", "raise SystemExit(1)"])


@pytest.mark.slow
def test_workers_are_measured_beside_one_process_and_a_process_each(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "LARGEST", 0.2)
    done = run("many", folder, "--count", 4, "--small", 2, "-o", tmp_path / "many.json")
    assert done.exit_code == 0
    assert len([line for line in done.stdout.splitlines() if " s | " in line]) == 6
    figures = json.loads((tmp_path / "many.json").read_text())
    assert 0 < figures["own_seconds"] < figures["runs"]["one process"]["elapsed"]
