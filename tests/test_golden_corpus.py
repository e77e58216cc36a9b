"""Golden corpora: what the files of a frozen model decode to, for ever.

`tests/data/MODEL/` is made once, by `python -m tools golden MODEL`, and only grows (RELEASING.md). What is tested of it
is tested of a small corpus of the tiny model, too, which is made here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hpcmcodec import codec, container, rans, weights
from hpcmcodec.cli import cli
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.errors import InputError, OutputError
from hpcmcodec.image import load
from hpcmcodec.native.compiled import KernelOps
from tests import tiny
from tests.test_independent import hashes_of
from tools import drawn, golden
from tools.__main__ import main as tools

FROZEN = [path.parent for path in sorted(tiny.DATA.glob(f"*/{golden.INDEX}"))]
HERE = (
    *("quality-49.99", "size-1x1", "size-17x33", "content-text", "grey", "grey-alpha", "alpha-opaque-16-bits"),
    *("alpha-16-bits", "colour-9-16", "metadata-all", "tiles-across", "full", "latents-full", "latents-not-full"),
    *("effort-1", "turned"),
)
FEW = ("size-7x5", "metadata-all", "latents-full")


@pytest.fixture(autouse=True)
def packaged() -> Iterator[None]:
    with tiny.installed():
        yield


@pytest.fixture(scope="module")
def made_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / tiny.NAME
    with tiny.installed():
        golden.make(tiny.NAME, folder, HERE)
    return folder


@pytest.fixture(params=[tiny.NAME, *FROZEN], ids=lambda folder: Path(folder).name)
def corpus(request: pytest.FixtureRequest, made_here: Path) -> Path:
    """The one that is made here, and each that is frozen."""
    return made_here if request.param == tiny.NAME else Path(request.param)


@pytest.fixture
def copy(made_here: Path, tmp_path: Path) -> Path:
    """A corpus to be damaged, of the files that decode soonest."""
    shutil.copytree(made_here, tmp_path / "copy")
    index = golden.read(tmp_path / "copy")
    for name in index["files"].keys() - {"size-1x1", "grey"}:
        (tmp_path / "copy" / f"{name}.hpcm").unlink()
        del index["files"][name]
    (tmp_path / "copy" / golden.INDEX).write_text(json.dumps(index))
    return tmp_path / "copy"


# --- what holds for ever ----------------------------------------------------------------------------------------------


def test_each_packaged_model_has_a_corpus() -> None:
    assert weights.packaged().keys() - {tiny.NAME} == {folder.name for folder in FROZEN}, (
        "python -m tools golden MODEL makes the corpus of a model (RELEASING.md)"
    )


def test_every_file_decodes_to_what_is_said_of_it(corpus: Path) -> None:
    assert golden.faults(corpus) == []


@pytest.mark.parametrize("corpus", FROZEN, indirect=True, ids=lambda folder: folder.name)
def test_a_frozen_corpus_has_what_pictures_of_another_model_may_not_lead_to(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.stem: path.read_bytes() for path in corpus.glob("*.hpcm")}
    headers = {name: container.parse_header(data) for name, data in files.items()}
    full = {"full", "full-grey", "tiles-full", "latents-full"}
    assert full <= {name for name, header in headers.items() if header.full}
    assert len({name for name, header in headers.items() if not header.full}) > len(headers) / 2
    assert {header.tile_side for header in headers.values() if header.n_tiles > 1} == {64, 128, 256}
    counts: list[int] = []
    finish = rans.Decoder.finish

    def counted(self: rans.Decoder) -> None:
        counts.append(self._n_got)
        finish(self)

    monkeypatch.setattr(rans.Decoder, "finish", counted)
    for name in (name for name in files if name.startswith("few-")):
        codec.decode_latents(files[name])
    assert set(counts) & {1, 2, 3}


def some_small_files(corpus: Path) -> list[str]:
    pictures = {name: facts["picture"] for name, facts in golden.read(corpus)["files"].items()}
    small = [name for name, picture in pictures.items() if picture["width"] * picture["height"] <= 1000]
    assert len(small) > 5
    return small[::5]


def test_some_files_decode_to_it_with_numpy_alone(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCM_OPS", "reference")
    engine = LightEngine(weights.load(golden.read(corpus)["model"], transforms=False))
    assert not isinstance(engine.synthesis, KernelOps)
    assert not isinstance(engine.coder.ops, KernelOps)
    assert golden.faults(corpus, some_small_files(corpus), engine) == []


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_some_files_decode_to_it_with_torch(corpus: Path, device: str) -> None:
    pytest.importorskip("torch")
    from hpcmcodec.engines.torch import TorchEngine

    engine = TorchEngine(weights.load(golden.read(corpus)["model"]), device)
    assert golden.faults(corpus, some_small_files(corpus), engine) == []


def test_it_takes_less_than_a_megabyte(corpus: Path) -> None:
    assert sum(path.stat().st_size for path in corpus.iterdir()) < 1_000_000


def test_what_was_coded_can_be_drawn_again(corpus: Path) -> None:
    said = golden.read(corpus)
    for name, facts in said["files"].items():
        assert golden.input_hash(name, said["model"]) == facts["input"], name


def test_info_says_what_golden_json_says_of_each_picture(corpus: Path) -> None:
    said = golden.read(corpus)["files"]
    done = CliRunner().invoke(cli, ["info", "--json", *(str(corpus / f"{name}.hpcm") for name in said)])
    assert done.exit_code == 0, done.output
    for (name, facts), line in zip(said.items(), done.stdout.splitlines(), strict=True):
        info, picture, options = json.loads(line), facts["picture"], facts["options"]
        assert info["model_id"] == golden.read(corpus)["model_id"][:8]
        assert {key: info[key] for key in ("width", "height", "depth", "grey")} == {
            key: picture[key] for key in ("width", "height", "depth", "grey")
        }, name
        assert info["quality"] == options["quality"], name
        assert info["tile_side"] == options.get("tile", 256), name
        assert (info["picture_crc"] is not None) == options.get("verify", False), name
        assert info["metadata"].keys() - {"ALPH"} == set(picture["metadata"]), name
        assert ("ALPH" in info["metadata"]) == picture["alpha"], name
        if picture["cicp"]:
            assert info["color"] == "CICP {}/{}".format(*picture["cicp"]), name
        else:
            assert info["color"].partition(" ")[0] == ("ICC" if "ICC" in picture["metadata"] else "sRGB"), name
        assert info["complete"]


# --- what would break that is found -----------------------------------------------------------------------------------


def test_a_changed_byte_is_found(copy: Path) -> None:
    data = bytearray((copy / "grey.hpcm").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "grey.hpcm").write_bytes(data)
    assert golden.faults(copy) == ["grey: the file is another one"]


def test_a_change_of_any_hash_is_found(copy: Path) -> None:
    index = golden.read(copy)
    said = index["files"]["size-1x1"]["hashes"]
    assert said.keys() >= {"z", "y_hat", "pixels", "pixels of 16 bits", "shown", "thumbnail", "thumbnail of s1 and s2"}
    assert said.keys() >= {"preview of s1", "preview of s1 and s2"}
    for key, value in list(said.items()):
        if key != "sha256":
            said[key] = value[:-1] + ("0" if value[-1] != "0" else "1")
    (copy / golden.INDEX).write_text(json.dumps(index))
    assert golden.faults(copy) == [f"size-1x1: {key} differs" for key in sorted(said) if key != "sha256"]


def test_a_hash_of_what_a_file_has_not_is_found(copy: Path) -> None:
    index = golden.read(copy)
    index["files"]["grey"]["hashes"]["alpha"] = "0" * 64
    (copy / golden.INDEX).write_text(json.dumps(index))
    assert golden.faults(copy, ["grey"]) == ["grey: alpha differs"]


def test_a_file_too_few_and_one_too_many_are_found(copy: Path) -> None:
    (copy / "grey.hpcm").rename(copy / "other.hpcm")
    assert golden.faults(copy, []) == ["grey.hpcm is missing", "other.hpcm is extra"]


def test_a_corpus_that_is_too_large_is_found(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "MOST_BYTES", 1000)
    assert [fault for fault in golden.faults(copy, []) if "the most is 1000" in fault]
    with pytest.raises(OutputError, match="the most is 1000"):
        golden.make(tiny.NAME, copy.parent / "new", ["size-1x1", "grey"])
    assert not (copy.parent / "new").exists()


def test_another_model_of_the_same_name_is_found(copy: Path) -> None:
    index = golden.read(copy)
    index["model_id"] = "0123456789abcdef"
    (copy / golden.INDEX).write_text(json.dumps(index))
    (fault,) = golden.faults(copy)
    assert "the corpus is of 0123456789abcdef" in fault
    with pytest.raises(InputError, match=r"is the corpus of tiny-0 \(0123456789abcdef\)"):
        golden.make(tiny.NAME, copy)


# --- how it is made ---------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_command_makes_the_same_bytes_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "ENTRIES", {name: drawn.ENTRIES[name] for name in FEW})
    for time in ("first", "second"):
        done = CliRunner().invoke(tools, ["golden", tiny.NAME, str(tmp_path / time / "out")], catch_exceptions=False)
        assert done.exit_code == 0
        assert "3 files added, 3 in all" in done.stdout
    first = contents(tmp_path / "first" / "out")
    assert first == contents(tmp_path / "second" / "out")
    index = json.loads(first[golden.INDEX])
    assert index["made"][0]["command"] == "python -m tools golden tiny-0 path/to/out"
    assert index["made"][0]["files"] == list(FEW)
    assert index["made"][0]["versions"]["hpcmcodec"]
    assert index["model_id"] == tiny.load().model_id.hex()


def test_a_corpus_only_grows(copy: Path) -> None:
    before, index = contents(copy), golden.read(copy)
    assert golden.make(tiny.NAME, copy, ["size-1x1", "size-7x5", "grey"]) == ["size-7x5"]
    after, grown = contents(copy), golden.read(copy)
    assert after.keys() - before.keys() == {"size-7x5.hpcm"}
    assert all(after[name] == data for name, data in before.items() if name != golden.INDEX)
    assert [grown["files"].pop("size-7x5")["picture"]["width"], grown["made"].pop()["files"]] == [7, ["size-7x5"]]
    assert grown == index
    assert golden.make(tiny.NAME, copy, ["size-1x1", "size-7x5", "grey"]) == []
    assert contents(copy) == after


def test_nothing_is_added_to_what_is_damaged_or_is_no_corpus(copy: Path) -> None:
    (copy / "grey.hpcm").unlink()
    before = contents(copy)
    with pytest.raises(InputError, match=r"nothing is added, as grey.hpcm is missing"):
        golden.make(tiny.NAME, copy, ["size-7x5"])
    assert contents(copy) == before
    (copy / golden.INDEX).unlink()
    with pytest.raises(InputError, match=r"but no golden.json"):
        golden.make(tiny.NAME, copy, ["size-7x5"])


def test_files_hold_the_pictures_that_were_drawn(made_here: Path) -> None:
    for name in ("grey-alpha", "alpha-opaque-16-bits", "alpha-16-bits", "metadata-all", "turned"):
        entry: Any = drawn.ENTRIES[name]
        given, found = load(entry.draw(), max_pixels=None), codec.decode_picture(made_here / f"{name}.hpcm")
        assert found.pixels.shape == given.pixels.shape
        assert (found.grey, found.cicp, found.metadata) == (given.grey, given.cicp, given.metadata)
        assert (found.alpha is None) == (given.alpha is None)
        if given.alpha is not None and given.depth in (8, 16):
            np.testing.assert_array_equal(found.alpha, given.alpha)
    assert load(drawn.ENTRIES["turned"].draw(), max_pixels=None).pixels.shape == (40, 24, 3)  # type: ignore[union-attr]


def test_the_entries_cover_what_a_file_can_be(made_here: Path) -> None:
    pictures = {n: (e, load(e.draw(), max_pixels=None)) for n, e in drawn.ENTRIES.items() if isinstance(e, drawn.Entry)}
    assert len(drawn.ENTRIES) >= 40
    assert {0, 10, 30, 50, 70, 90, 100} <= {entry.quality for entry, _ in pictures.values()}
    assert any(entry.quality % 1 for entry, _ in pictures.values())
    sizes = {picture.pixels.shape[1::-1] for _, picture in pictures.values()}
    assert {(1, 1), (1, 37), (37, 1), (7, 5), (16, 16), (17, 33), (131, 77), (256, 256)} <= sizes
    tiles = {
        (w > 1024, h > 1024)
        for e, p in pictures.values()
        if e.options.get("tile") == 64
        for h, w in [p.pixels.shape[:2]]
    }
    assert tiles == {(True, False), (False, True), (True, True)}
    assert {picture.depth for _, picture in pictures.values()} >= {8, 10, 16}
    assert {picture.cicp.transfer for _, picture in pictures.values() if picture.cicp} >= {1, 4, 5, 8, 13, 14, 16, 18}
    assert {name for _, picture in pictures.values() for name in picture.metadata} == container.CHUNKS.keys() - {"ALPH"}
    assert set(drawn.PREVIEWED) <= drawn.ENTRIES.keys()
    headers = {name: container.parse_header((made_here / f"{name}.hpcm").read_bytes()) for name in HERE}
    assert headers["full"].full
    assert (headers["latents-full"].full, headers["latents-not-full"].full) == (True, False)
    assert [name for name, header in headers.items() if header.n_tiles > 1] == ["tiles-across"]


def test_latents_reach_far_beyond_all_tables(made_here: Path) -> None:
    w = tiny.load()
    values = {scale: w.tensors[f"tables.{scale}.offsets"] + w.tensors[f"tables.{scale}.sizes"] for scale in "zy"}
    y, z = golden._latents(drawn.ENTRIES["latents-full"], tiny.NAME)  # type: ignore[arg-type]
    assert np.abs(z).max() > 1000 * values["z"].max()
    assert np.abs(y).max() > 1000 * values["y"].max()


@pytest.mark.slow
def test_the_whole_set_of_the_tiny_model_is_small_and_holds(tmp_path: Path) -> None:
    assert golden.make(tiny.NAME, tmp_path / "all") == list(drawn.ENTRIES)
    assert golden.faults(tmp_path / "all") == []


# --- what the documents say of it -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["size-1x1", "grey", "alpha-16-bits", "colour-9-16", "metadata-all", "tiles-across", "full", "latents-not-full"],
)
def test_a_decoder_made_from_the_documents_gives_the_same(name: str, made_here: Path) -> None:
    assert_documented(name, made_here, previews=name in ("size-1x1", "latents-not-full"))


@pytest.mark.parametrize(
    ("corpus", "name"),
    [
        pytest.param(folder, name, marks=() if name in ("size-1x1", "few-1x1") else pytest.mark.slow, id=name)
        for folder in FROZEN
        for name, facts in golden.read(folder)["files"].items()
        if facts["picture"]["width"] * facts["picture"]["height"] <= 131 * 77  # two seconds for three positions of y
    ],
    indirect=["corpus"],
)
def test_a_decoder_made_from_the_documents_decodes_frozen_files(corpus: Path, name: str) -> None:
    assert_documented(name, corpus, previews=name == "size-1x1")


def assert_documented(name: str, corpus: Path, *, previews: bool) -> None:
    index = golden.read(corpus)
    facts = index["files"][name]
    said = {key: value for key, value in facts["hashes"].items() if key not in ("sha256", "alpha")}
    if not previews:
        said = {key: value for key, value in said.items() if not key.startswith("preview")}
    if facts["picture"]["alpha"]:
        del said["shown"]  # has the samples of a PNG, which is another format's matter
    path = weights.packaged()[index["model"]]
    found = hashes_of(corpus / f"{name}.hpcm", *(["previews"] if previews else []), model=path)
    assert {key: found.get(key) for key in said} == said, name
