"""Folders and lists of files on the command line: trees, collisions, shards, manifests, resuming, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

import hpcmcodec
from hpcmcodec.batch import Record, memory, plan
from hpcmcodec.batch.manifest import Manifest
from hpcmcodec.batch.plan import Found, Rules
from hpcmcodec.batch.records import Task
from hpcmcodec.batch.supervisor import Limits
from hpcmcodec.cli import cli
from hpcmcodec.cli.board import Board
from hpcmcodec.cli.options import Settings
from hpcmcodec.errors import InputError, OutputError

ROOT = Path(__file__).parent.parent


def hpcm(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(piece: np.ndarray, tmp_path: Path) -> Path:
    """Photographs in a tree, of 32 to 96 pixels, and files that are none."""
    root = tmp_path / "photos"
    for n, name in enumerate(["a.png", "sub/b.jpg", "sub/deep/c.png", "sub/deep/d.webp"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(piece[: 64 - 8 * n, : 96 - 16 * n]).save(path)
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_text("not looked at")
    return root


CODED = {"a.hpcm", "sub/b.hpcm", "sub/deep/c.hpcm", "sub/deep/d.hpcm"}


# ----------------------------------------------------------------------------------------------------------- whole runs


def test_a_folder_is_coded_verified_and_decoded_in_its_tree(folder: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    run = hpcm("encode", folder, "-r", "-o", out, "-q", "40", "--preserve-times")
    assert run.exit_code == 0, run.stderr
    assert tree(out).keys() == CODED
    assert (out / "a.hpcm").read_bytes() == hpcmcodec.encode(folder / "a.png", 40)
    assert (out / "a.hpcm").stat().st_mtime_ns == (folder / "a.png").stat().st_mtime_ns
    lines = run.stderr.splitlines()
    assert sum(" -> " in line and "bpp" in line for line in lines) == 4
    assert lines[-1].startswith("hpcm: 4 inputs: 4 done, 0 failed; ")
    verified = hpcm("verify", out, "-r", "--decode", "-j", "1")
    assert (verified.exit_code, len(verified.stdout.splitlines())) == (0, 4)
    decoded = hpcm("decode", out, "-r", "-o", back, "--format", "ppm", "-j", "1", "--quiet")
    assert (decoded.exit_code, decoded.stderr) == (0, "")
    assert tree(back).keys() == {name.replace(".hpcm", ".ppm") for name in CODED}


def test_bad_files_among_good_ones_are_named_with_their_codes(folder: Path, piece: np.ndarray, tmp_path: Path) -> None:
    manifest, out = tmp_path / "run.jsonl", tmp_path / "out"
    good = tree(folder).keys() - {"notes.txt", ".hidden.png"}
    frames = [Image.fromarray(piece), Image.fromarray(255 - piece)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    jpeg = io.BytesIO()
    frames[0].save(jpeg, "JPEG")
    bad = {"empty.jpg": b"", "text.png": b"text" * 99, "cut.jpg": jpeg.getvalue()[:-200], "coded.png": b"\x8bHPC" * 9}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    run = hpcm("encode", folder, "-r", "-o", out, "--manifest", manifest, "-j", "1", "--quiet")
    assert run.exit_code == 7
    codes = {Path(record["input"]).relative_to(folder).as_posix(): record["exit_code"] for record in records(manifest)}
    expected = {"empty.jpg": 3, "text.png": 3, "cut.jpg": 3, "coded.png": 4, "moving.gif": 4}
    assert codes == {**dict.fromkeys(good, 0), **expected}
    assert tree(out).keys() == CODED
    lines = run.stderr.splitlines()
    assert lines[-1] == "hpcm: 9 inputs: 4 done, 5 failed"
    assert all(line.startswith(f"hpcm: error: {folder}/") for line in lines[:-1])


def test_a_second_run_does_what_is_missing_changed_or_of_other_settings(folder: Path, tmp_path: Path) -> None:
    out, manifest = tmp_path / "out", tmp_path / "run.jsonl"
    base = ["encode", folder, "-r", "-o", out, "--manifest", manifest, "-j", "1"]
    assert hpcm(*base).exit_code == 0
    before = tree(out)

    def inputs(*options: object) -> list[str]:
        n = len(records(manifest))
        run = hpcm(*base, *options)
        assert run.exit_code == 0, run.stderr
        return sorted(Path(record["input"]).name for record in records(manifest)[n:])

    assert inputs() == []
    (out / "a.hpcm").unlink()
    assert inputs() == ["a.png"]
    assert tree(out) == before
    Image.open(folder / "sub/b.jpg").rotate(90).save(folder / "sub/b.jpg")
    os.utime(folder / "a.png")
    assert inputs("--if-exists", "update", "--dry-run") == []
    assert inputs("--if-exists", "update") == ["a.png", "b.jpg"]
    assert inputs("--if-exists", "skip", "-q", "20") == []
    assert inputs("--if-exists", "update", "-q", "20") == ["a.png", "b.jpg", "c.png", "d.webp"]
    assert inputs("-q", "20") == []
    assert not (tmp_path / "run.jsonl.running").exists()


def test_checksums_tell_a_touched_file_from_a_changed_one(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "run.jsonl"
    base = ["encode", folder / "a.png", "-r", "-o", tmp_path, "--manifest", manifest, "--checksum", "--if-exists"]
    hpcm(*base, "error")
    os.utime(folder / "a.png")
    assert hpcm(*base, "update").exit_code == 0
    assert [len(record["sha256"]) for record in records(manifest)] == [64]
    Image.open(folder / "a.png").rotate(180).save(folder / "a.png")
    assert hpcm(*base, "update").exit_code == 0
    assert len(records(manifest)) == 2


def test_dry_run_prints_what_a_run_would_do_and_does_nothing(folder: Path, tmp_path: Path) -> None:
    run = hpcm("encode", folder, "-r", "-o", tmp_path / "out", "--manifest", tmp_path / "m", "--dry-run")
    assert run.exit_code == 0
    assert sorted(line.partition(" -> ")[2] for line in run.stdout.splitlines()) == sorted(
        str(tmp_path / "out" / name) for name in CODED
    )
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


def test_existing_outputs_are_errors_unless_told_otherwise(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.hpcm").write_bytes(b"mine")
    run = hpcm("encode", folder, "-r", "-o", out, "-j", "1")
    assert run.exit_code == 7
    assert "a.hpcm: exists already" in run.stderr
    assert (out / "a.hpcm").read_bytes() == b"mine"
    run = hpcm("encode", folder, "-r", "-o", out, "--if-exists", "skip")
    assert (run.exit_code, run.stderr) == (0, "hpcm: 4 inputs: 0 done, 0 failed, 4 skipped\n")
    run = hpcm("encode", folder, "-r", "-o", out, "-f", "--smaller-or-skip", "-j", "1")
    assert run.exit_code == 0
    assert (out / "a.hpcm").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["encode", "{photos}", "--retries", "2"], 3, "-r takes the files in it"),
        (["encode", "{photos}/sub", "{photos}/twin", "-r", "-o", "{out}"], 6, "would both be written there"),
        (["encode", "{photos}/empty", "-r"], 3, "no files in it end in .png"),
        (["encode", "{photos}", "-r", "-o", "{photos}/notes.txt"], 6, "is a directory, and this is none"),
        (["encode", "{photos}", "-r", "--manifest", "{photos}/notes.txt/m"], 6, "notes.txt"),
        (["encode", "--files-from", "{photos}/missing"], 3, "missing"),
        (["encode", "--files-from", "/dev/zero"], 3, "/dev/zero: the list has more than"),
        (["encode", "{photos}", "-r", "--shard", "0/3"], 2, "is not I/N"),
        (["encode", "{photos}", "-r", "--shard", "4/3"], 2, "is not I/N"),
        (["encode", "{photos}", "-r", "-j", "many"], 2, "neither a number of processes nor 'auto'"),
        (["encode", "{photos}", "-r", "--max-memory", "much"], 2, "is no size"),
        *(
            (["encode", "{photos}", "-r", "--cluster", address], 2, f"{address!r} is neither an address")
            for address in ("", "nonsense", "http://host:8786", "tcp://host", "tcp://host:port", "tcp://host:65536")
        ),
        (["encode", "{photos}", "-r", "--timeout", "nan"], 2, "'nan' is not a number"),
        (["encode", "{photos}", "-r", "--timeout", "inf"], 2, "'inf' is not a number"),
        (["encode", "{photos}", "-r", "--model", ""], 4, "no model ''"),
        (["compare", "{photos}", "--bpp", "nan"], 2, "'nan' is not a number"),
        (["compare", "{photos}", "--bpp", "inf"], 2, "'inf' is not a number"),
        (["encode", "{photos}", "-r", "-f", "--if-exists", "skip"], 2, "exclude each other"),
        (["encode", "-", "-r"], 2, "on its own"),
        (["encode", "/dev/stdin", "-j", "1"], 2, "on its own"),
        (["encode", "{photos}/a.png", "-j", "1", "-o", "-"], 2, "'-' is no output of worker processes"),
        (["decode", "{photos}/a.png", "-j", "1", "-o", "/dev/stdout"], 2, "'/dev/stdout' is no output of worker"),
        (["encode", "-r"], 2, "INPUT"),
    ],
)
def test_mistakes_are_found_before_any_work(
    args: list[str], code: int, words: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "empty").mkdir()
    (folder / "twin").mkdir()
    shutil.copy(folder / "a.png", folder / "twin" / "b.png")
    run = hpcm(*(arg.format(photos=folder, out=tmp_path / "out") for arg in args))
    assert run.exit_code == code, run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert words in run.stderr
    assert not (tmp_path / "out").exists()


def test_names_that_no_file_can_have_are_one_line_with_a_code(folder: Path, tmp_path: Path) -> None:
    long, photo = tmp_path / ("n" * 300), folder / "a.png"
    (folder / ("n" * 251 + ".png")).write_bytes(photo.read_bytes())  # .hpcm makes it too long
    for code, words, args in (
        (3, "too long", ["encode", long, "-j", "1"]),
        (6, "too long", ["encode", photo, "-o", long, "-j", "1"]),
        (6, "none of this name", ["encode", photo, photo, "-o", long]),
        (3, "too long", ["decode", long, "-j", "1"]),
        (3, "too long", ["verify", long, "-j", "1"]),
        (3, "too long", ["encode", "--files-from", long]),
        (4, "there is no such file", ["encode", photo, "--model", long, "-j", "1"]),
        (7, "too long", ["encode", folder, "-r", "-o", tmp_path / "out", "-j", "1", "--if-exists", "update"]),
        (3, "too long", ["compare", long, photo]),
        (6, "too long", ["compare", photo, photo, "-o", long]),
        (3, "too long", ["eval", long, "-o", tmp_path / "evaluation"]),
    ):
        run = hpcm(*args)
        assert run.exit_code == code, (args, run.stderr)
        assert words in run.stderr, run.stderr
        assert "error of the program" not in run.stderr
    assert hpcm("encode", folder, "-r", "-o", tmp_path / "out", "--dry-run").exit_code == 0


def test_a_list_of_files_keeps_their_relative_paths(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    listing = tmp_path / "list"
    for text in ("sub/b.jpg\na.png\n\n", f"sub/b.jpg\0{folder}/a.png\0"):
        listing.write_text(text)
        out = tmp_path / f"out{len(text)}"
        assert hpcm("encode", "--files-from", listing, "-o", out, "-j", "1", "--quiet").exit_code == 0
        assert tree(out).keys() == {"sub/b.hpcm", "a.hpcm"}


def test_one_file_that_fails_has_its_own_exit_code(folder: Path, tmp_path: Path) -> None:
    run = hpcm("encode", folder / "notes.txt", "-o", tmp_path / "x.hpcm", "--preserve-times")
    assert run.exit_code == 3
    assert not (tmp_path / "x.hpcm").exists()


# ------------------------------------------------------------------------------------------------ interrupted, resumed


def many(folder: Path, piece: np.ndarray, n: int) -> None:
    folder.mkdir()
    for i in range(n):
        Image.fromarray(np.roll(piece, i, 1)[:48, :64]).save(folder / f"{i:03}.png")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
@pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_interrupted_at_random_goes_on_where_it_was(piece: np.ndarray, tmp_path: Path, rounds: int) -> None:
    photos, manifest, rng = tmp_path / "photos", tmp_path / "run.jsonl", random.Random(rounds)
    many(photos, piece, 8 * rounds)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert hpcm("encode", photos, "-r", "-o", whole, "--quiet").exit_code == 0
    command = [sys.executable, "-m", "hpcmcodec", "encode", photos, "-r", "-o", out, "--manifest", manifest, "-j", "2"]
    for _ in range(rounds):
        already = len(manifest.read_bytes().splitlines()) if manifest.exists() else 0
        process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT)
        with process:
            n = rng.randrange(1, 6)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if manifest.exists() and len(manifest.read_bytes().splitlines()) >= already + n:
                    break
                time.sleep(0.01)
            process.send_signal(rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
            assert process.wait() in (0, 130, -signal.SIGKILL)
    last = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)
    assert last.returncode == 0, last.stderr
    assert tree(out) == tree(whole)
    done = [record["output"] for record in records(manifest)]
    assert len(done) == len(set(done)) == 8 * rounds, "nothing is recorded twice"
    assert not Path(f"{manifest}.running").exists()


# ------------------------------------------------------------------------------------------------------------ its parts


@examples(max_examples=30)
@given(st.sets(st.text(min_size=1, max_size=8), max_size=10), st.integers(1, 12))
def test_shards_are_disjoint_and_complete(names: set[str], count: int) -> None:
    shards = [{name for name in names if plan.shard(name, i + 1, count)} for i in range(count)]
    assert sum(map(len, shards)) == len(names)
    assert set().union(*shards) == names


def test_shards_of_numbered_names_are_of_similar_size() -> None:
    names = [f"{n // 100:03}/{n:06}.jpg" for n in range(4000)]
    sizes = [sum(plan.shard(name, i + 1, 4) for name in names) for i in range(4)]
    assert sum(sizes) == 4000
    assert max(sizes) - min(sizes) < 150


def record(path: str, **changes: Any) -> Record:
    return Record(path, f"{path}.hpcm", "done", size=1, mtime=2.5, bytes=3, model_id="0123", **changes)


def test_a_manifest_gives_back_what_it_took_whatever_the_names(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    names = ["plain", "a\nb", "\udcff", "ü\u2028", '"\\']
    with Manifest(path) as manifest:
        for name in names:
            manifest.add(record(name, settings={"quality": 50}))
    assert len(path.read_bytes().splitlines()) == len(names)
    assert path.read_bytes().isascii()
    with Manifest(path) as manifest:
        entries = [manifest.get(f"{name}.hpcm") for name in names]
    assert [entry and entry[:4] for entry in entries] == [("done", 1, 2.5, 3)] * len(names)


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_line_that_was_cut_is_passed_over_and_later_lines_are_whole(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Manifest(path) as manifest:
        manifest.add(record("a"))
        manifest.add(record("b"))
    path.write_bytes(path.read_bytes()[:-cut])
    with Manifest(path) as manifest:
        assert manifest.get("a.hpcm") is not None
        assert (manifest.get("b.hpcm") is None) == (cut > 1)
        manifest.add(record("c"))
    with Manifest(path) as manifest:
        assert manifest.get("c.hpcm") is not None


def test_a_record_behind_one_that_another_process_left_cut_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Manifest(path) as manifest:
        manifest.add(record("a"))
        manifest.add(record("b"))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first[:50] + second)
    with Manifest(path) as manifest:
        assert manifest.get("a.hpcm") is None
        assert manifest.get("b.hpcm") is not None


RECORD = json.dumps(Record("a", "b", "done", size=1, mtime=1.0).as_dict())


@pytest.mark.parametrize(
    "content",
    [
        '{"mine": 1}\n',
        "my notes\n",
        "no line ends here",
        "[" * 100_000,
        "\x89PNG\r\n\x1a\n\0",
        RECORD.replace('"b"', '["b"]') + "\n",
        RECORD.replace('"size": 1', '"size": "1"') + "\n",
        RECORD.replace('"model_id": ""', '"model_id": 7') + "\n",
        RECORD.replace('"settings": null', '"settings": []') + "\n",
        RECORD.replace('"done"', "{}") + "\n",
        RECORD + "\nnotes\n" + RECORD,
    ],
)
def test_a_file_that_is_no_manifest_is_refused_and_stays(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(OutputError, match=r"line [12] is no record"):
        Manifest(path)
    assert path.read_bytes() == content.encode("latin-1")
    assert [file.name for file in tmp_path.iterdir()] == ["other.json"]


def test_what_cannot_be_a_manifest_is_one_line_and_nobody_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path, "/", ".", "", "/dev/null", "/dev/zero", tmp_path / "pipe", tmp_path / ("n" * 300)):
        run = hpcm("verify", tmp_path / "a.hpcm", "--manifest", name)
        assert run.exit_code == 6, run.stderr
        assert len(run.stderr.splitlines()) == 1


def test_hostile_lines_about_what_runs_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    Path(f"{path}.running").write_text('["a"]\n{"a": 1}\n7\n' + "[" * 100_000 + '\n"b"\n"cut')
    with contextlib.suppress(KeyboardInterrupt), Manifest(path) as manifest:
        assert manifest.was_begun("b")
        manifest.begin("c")
        raise KeyboardInterrupt
    with Manifest(path) as manifest:
        assert manifest.was_begun("b")
        assert manifest.was_begun("c")


def test_output_that_a_killed_run_had_begun_may_still_appear(tmp_path: Path) -> None:
    # Its worker lives a moment longer than the run, and may write it after the next run has looked.
    source, target = str(tmp_path / "a.png"), str(tmp_path / "a.hpcm")
    Path(source).touch()
    Path(f"{tmp_path / 'run.jsonl'}.running").write_text(json.dumps(target) + "\n")
    rules = plan.Rules("error", {}, "", False)
    with Manifest(tmp_path / "run.jsonl") as manifest:
        (task,) = plan.left_to_do([(Found(source, "a.png"), target)], manifest, rules)
    assert task.overwrite


def test_two_runs_do_not_share_a_manifest_and_two_shards_do(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Manifest(path, ".1-2") as one:
        with pytest.raises(OutputError, match="another run is at work with this manifest"):
            Manifest(path, ".1-2")
        with Manifest(path, ".2-2") as other:
            one.add(record("a"))
            other.add(record("b"))
    with Manifest(path, ".1-2") as manifest:
        assert manifest.get("a.hpcm")
        assert manifest.get("b.hpcm")
    assert [file.name for file in tmp_path.iterdir()] == ["run.jsonl"]


def test_a_manifest_that_is_only_read_stays_with_what_runs(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with contextlib.suppress(KeyboardInterrupt), Manifest(path) as manifest:
        manifest.add(record("a"))
        manifest.begin("b.hpcm")
        raise KeyboardInterrupt
    path.write_bytes(path.read_bytes()[:-1])
    before = tree(tmp_path)
    with Manifest(path, writing=False) as manifest:
        assert manifest.get("a.hpcm")
        assert manifest.was_begun("b.hpcm")
    assert tree(tmp_path) == before


def test_an_output_that_was_begun_by_a_killed_run_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    source, target = tmp_path / "a.png", tmp_path / "a.hpcm"
    source.write_bytes(b"picture")
    with contextlib.suppress(KeyboardInterrupt), Manifest(path) as manifest:
        manifest.begin(str(target))
        target.write_bytes(b"written, but not recorded")
        raise KeyboardInterrupt
    rules = Rules("error", {}, "", False)
    with Manifest(path) as manifest:
        tasks = list(plan.left_to_do([(Found(str(source), "a.png"), str(target))], manifest, rules))
    assert tasks == [Task(str(source), str(target), 7, True)]
    assert not Path(f"{path}.running").exists()


def test_folders_are_searched_in_order_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a/1.PNG", "b/1.png", "c.txt"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "link.jpg").symlink_to(tmp_path / "root" / "c.txt")
    found = list(plan.found([str(tmp_path / "root")], (".png", ".jpg"), recursive=True))
    assert [file.place for file in found] == ["a/1.PNG", "b/1.png", "b/2.jpg", "link.jpg"]
    with pytest.raises(InputError, match="-r takes"):
        list(plan.found([str(tmp_path / "root")], (".png",), recursive=False))


def test_a_file_that_is_named_twice_is_worked_on_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for names in (["a.png", "a.png"], ["a.png", "./a.png"], ["a.png", str(folder / "a.png")]):
        run = hpcm("encode", *names, "-o", "out", "--dry-run")
        assert (run.exit_code, len(run.stdout.splitlines())) == (0, 1), run.stderr


def test_below_folders_there_are_regular_files_and_nothing_hidden(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / ".trash").mkdir(parents=True)
    (root / "folder").mkdir()
    for name in (".trash/old.png", ".hidden.png", "folder/a.png"):
        (root / name).touch()
    os.mkfifo(root / "pipe.png")
    (root / "album.png").symlink_to(root / "folder")
    (root / "lost.png").symlink_to(root / "nowhere")
    found = list(plan.found([str(root)], (".png",), recursive=True))
    assert [file.place for file in found] == ["folder/a.png", "lost.png"]


def test_a_pipe_is_no_file_for_workers_and_nobody_waits_for_its_other_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert memory.size_of(str(tmp_path / "pipe.png")) == (0, 0)
    run = hpcm("encode", tmp_path / "pipe.png", "-o", tmp_path / "a.hpcm", "-j", "1", "--checksum")
    assert run.exit_code == 3
    assert "pipe.png: is no regular file" in run.stderr


def test_a_file_in_a_list_may_be_named_as_standard_input_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / "a.png", "-")
    Path("list").write_text("-\n")
    run = hpcm("encode", "--files-from", "list", "-o", "out", "-j", "1")
    assert run.exit_code == 0, run.stderr
    assert tree(tmp_path / "out").keys() == {"-.hpcm"}


# --------------------------------------------------------------------------------------------------------------- memory


def test_pixels_are_read_from_headers(folder: Path, tmp_path: Path) -> None:
    coded = tmp_path / "a.hpcm"
    coded.write_bytes(hpcmcodec.encode(folder / "a.png"))
    sizes = {path: memory.size_of(str(path))[0] for path in (folder / "a.png", folder / "sub/b.jpg", coded)}
    assert list(sizes.values()) == [64 * 96, 56 * 80, 64 * 96]
    assert memory.size_of(str(folder / "notes.txt")) == (0, 10)
    assert memory.size_of(str(folder / "missing")) == (0, 0)
    larger = memory.needed("encode", str(folder / "a.png")) - memory.needed("encode", str(folder / "sub/b.jpg"))
    assert larger > 0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with 8 GB free, whose control groups are in the folder."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    groups = tmp_path / "groups"
    groups.mkdir()
    monkeypatch.setattr("hpcmcodec.threads.control_groups", lambda controller: [groups / "inner", groups])
    return groups


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8_000_000 * 1024),
        ({"memory.max": "max", "memory.current": "5"}, 8_000_000 * 1024),
        ({"memory.max": "3000", "memory.current": "1000"}, 2000),
        ({"memory.max": "3000", "memory.current": "1000", "memory.stat": "anon 1\ninactive_file 400\n"}, 2400),
        ({"memory.limit_in_bytes": "3000", "memory.usage_in_bytes": "2900"}, 100),
        ({"memory.max": "3000", "memory.current": "4000"}, 0),
    ],
)
@pytest.mark.parametrize("inside", ["", "inner"])
def test_memory_is_what_is_free_or_what_a_control_group_leaves(
    machine: Path, files: dict[str, str], expected: int, inside: str
) -> None:
    (machine / inside).mkdir(exist_ok=True)
    for name, text in files.items():
        (machine / inside / name).write_text(text)
    assert memory.available() == expected


def test_memory_of_a_system_that_does_not_say_has_no_limit(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    machine.parent.joinpath("meminfo").unlink()
    monkeypatch.delattr(os, "sysconf")
    assert memory.available() is None


# ----------------------------------------------------------------------------------------------------------- what shows


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_failures_and_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("TERM", raising=False)
    with Board(Settings(), "encode", 3, 3000, 5) as board:
        board.add(Record("a.png", "a.hpcm", "done", size=1000, bytes=250, width=1000, height=500))
        board.add(Record("b.png", "b.hpcm", "failed", 3, "b.png: no picture", size=1000))
        board.add(Record("c.png", "c.hpcm", "skipped", size=1000, bytes=2000))
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", terminal.getvalue())
    assert "error: b.png: no picture" in said
    table = dict(line.strip().split(None, 1) for line in said.splitlines()[-6:])
    assert table["encoded"] == "1"
    assert table["failed"] == "1"
    assert table["size"] == "1.0 kB -> 250 bytes, 75.0% smaller"
    assert table["time"].startswith("0.5 MP in ")
    assert {"not", "done"} <= table.keys()  # smaller, before


def test_cores_are_limited_by_the_option_for_threads(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    found: list[Limits] = []
    monkeypatch.setattr("hpcmcodec.threads.cores", lambda: 6)
    monkeypatch.setattr("hpcmcodec.batch.supervisor.run", lambda *args, **options: found.append(args[3]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    for options in ([], ["--threads", "4"], ["--threads", "4", "-j", "3"], ["--max-memory", "1.5G", "--timeout", "9"]):
        hpcm("encode", folder, "-r", *options)
    assert [limits.cores for limits in found] == [6, 4, 3, 6]
    assert (found[-1].memory, found[-1].timeout, found[-1].retries) == (int(0.8 * 1.5 * 2**30), 9.0, 1)


@pytest.mark.parametrize(
    ("said", "n_bytes"),
    [
        *(("3000000", 3_000_000), ("2k", 2048), ("1.5G", 3 << 29), ("1.5g", 3 << 29), ("1T", 1 << 40)),
        *(("6Gi", 6 << 30), ("6GiB", 6 << 30), ("1500MB", 1_500_000_000), ("1 GB", 10**9), ("512 MiB", 512 << 20)),
        *((said, None) for said in ("", "G", "0", "0G", "-1G", "1.5.5G", "1Z", "1iB", "1Gb ps", "1e99", "1GG")),
    ],
)
def test_a_size_is_written_as_for_other_tools(said: str, n_bytes: int | None, folder: Path, monkeypatch: Any) -> None:
    found: list[Limits] = []
    monkeypatch.setattr("hpcmcodec.batch.supervisor.run", lambda *args, **options: found.append(args[3]))
    done = hpcm("encode", folder, "-r", "--max-memory", said)
    assert [limits.memory for limits in found] == ([] if n_bytes is None else [int(0.8 * n_bytes)])
    assert (done.exit_code == 2) == (n_bytes is None)
