"""Weights outside of the package: where they are looked for, by what they are found, and hostile ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.numpy import save_file

pytest.importorskip("torch")

from hpcmcodec import codec, search, weights
from hpcmcodec.cli import cli
from hpcmcodec.engines import base
from hpcmcodec.errors import HpcmError, IntegrityError, UnsupportedError
from hpcmcodec.model.config import Config
from hpcmcodec.model.validation import validate
from tests import members
from tests.test_family import mini
from tests.tiny import DATA, NAME, picture

CONFIG = mini("phase1")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder of $HPCM_MODELS and that of the user's data, empty."""
    named, own = tmp_path / "named", tmp_path / "data" / "hpcmcodec" / "models"
    named.mkdir()
    own.mkdir(parents=True)
    monkeypatch.setenv(search.VARIABLE, os.pathsep.join([str(tmp_path / "missing"), "", str(named)]))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    base.forget()
    return named, own


def shut(arguments: list[Any]) -> tuple[int, str]:
    """Exit code and what the command line `hpcm ...` says."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="hpcm")
    return done.exit_code, done.output


# --- finding ----------------------------------------------------------------------------------------------------------


def test_folders_are_those_of_the_variable_then_the_user_s(folders: tuple[Path, Path]) -> None:
    missing = folders[0].parent / "missing"
    assert search.folders() == [missing, *folders]
    assert search.looked() == f"the package, {missing} (not there), {folders[0]}, {folders[1]}"


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_without_an_absolute_xdg_data_home_the_user_s_folder_is_below_home(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(search.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert search.folders() == [tmp_path / ".local" / "share" / "hpcmcodec" / "models"]


def test_a_name_is_that_of_the_first_folder_s_file_and_never_a_packaged_model_s(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        for name in ("one", weights.DEFAULT_MODEL):
            (folder / f"{name}.safetensors").write_bytes(b"")
    assert weights.located("one") == folders[0] / "one.safetensors"
    assert weights.located(weights.DEFAULT_MODEL) == weights.packaged()[weights.DEFAULT_MODEL]
    (folders[0] / "one.safetensors").unlink()
    assert weights.located("one") == folders[1] / "one.safetensors"
    assert weights.located(str(folders[1] / "lite-1.safetensors")).parent == folders[1]


def test_a_model_that_is_not_here_is_refused_with_what_is_and_where_was_looked(folders: tuple[Path, Path]) -> None:
    (folders[0] / "broken.safetensors").write_bytes(b"\0" * 20)
    for act in (lambda: weights.load("other"), lambda: weights.find(bytes(4))):
        with pytest.raises(UnsupportedError) as error:
            act()
        assert f"{weights.DEFAULT_MODEL} (" in str(error.value)
        assert "broken (no weights file)" in str(error.value)
        assert f"looked in the package, {folders[0].parent}/missing (not there), {folders[0]}" in str(error.value)
    with pytest.raises(UnsupportedError, match="no model 'aaaa"):
        weights.load("a" * 300)  # longer than a file's name can be
    with pytest.raises(UnsupportedError, match="there is no such file"):
        weights.load(str(folders[0] / "other.safetensors"))


def test_pipes_devices_and_folders_are_no_models(folders: tuple[Path, Path]) -> None:
    os.mkfifo(folders[0] / "pipe.safetensors")
    (folders[0] / "folder.safetensors").mkdir()
    assert list(search.files()) == []
    with pytest.raises(UnsupportedError, match="no model 'pipe'"):
        weights.load("pipe")
    with pytest.raises(UnsupportedError, match="no such file"):
        weights.load(str(folders[0] / "pipe.safetensors"))


# --- coding -----------------------------------------------------------------------------------------------------------


def test_a_file_of_a_member_is_decoded_by_the_id_that_it_names(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from PIL import Image

    photo, coded, shown = (tmp_path / n for n in ("a.png", "a.hpcm", "b.png"))
    Image.fromarray(picture(40, 24)).save(photo)
    path = members.path_of(CONFIG)
    code, said = shut(["encode", photo, "-o", coded, "--model", path])
    assert code == 0, said
    code, said = shut(["decode", coded, "-o", shown])
    assert (code, said.count("\n")) == (4, 1)
    assert "which is not here" in said
    assert "; looked in " in shut(["info", coded])[1]
    assert json.loads(shut(["info", coded, "--json"])[1])["model"] is None
    os.link(path, folders[1] / "mine.safetensors")
    assert shut(["decode", coded, "-o", shown])[0] == 0
    with Image.open(shown) as image:
        assert image.size == (40, 24)
    assert json.loads(shut(["info", coded, "--json"])[1])["model"] == "mine"
    assert f"mine ({weights.load_file(path).model_id.hex()}), {folders[1]}/mine.safetensors" in shut(["doctor"])[1]
    assert shut(["encode", photo, "-o", tmp_path / "c.hpcm", "--model", "mine"])[0] == 0
    assert (tmp_path / "c.hpcm").read_bytes() == coded.read_bytes()
    code, said = shut(["encode", photo, "-o", tmp_path / "d.hpcm", "--model", "mine", "-q", 30])
    assert code == 4
    assert "has no quality" in said
    assert shut(["encode", photo, "-o", tmp_path / "d.hpcm", "--model", "none"])[0] == 4
    assert not (tmp_path / "d.hpcm").exists()


def test_a_file_that_was_replaced_is_read_anew(folders: tuple[Path, Path]) -> None:
    here, other = folders[0] / "mine.safetensors", replace(CONFIG, name="mini-other", hyper=16)
    found = []
    for config in (CONFIG, other):
        made = folders[1] / "made"
        made.write_bytes(members.path_of(config).read_bytes())
        made.replace(here)
        found.append(base.find("mine", "cpu", "auto").model_id)
        assert found[-1] == weights.load_file(here).model_id
    assert found[0] != found[1]


WITHOUT_TORCH = """
import sys
from hpcmcodec import codec
data = open(sys.argv[2], "rb").read()
codec.decode(data)
assert "torch" not in sys.modules
sys.modules["torch"] = None
try:
    codec.encode(codec.decode(data), model=sys.argv[1])
except codec.UnsupportedError as error:
    print(error)
"""


def test_decoding_with_a_member_takes_no_torch_and_encoding_says_that_it_does(tmp_path: Path) -> None:
    path = members.path_of(CONFIG)
    coded = tmp_path / "a.hpcm"
    coded.write_bytes(codec.encode(picture(16, 16), model=str(path)))
    environment = os.environ | {search.VARIABLE: str(path.parent), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path), str(coded)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"encoding with model {path}, which came without graphs of its transforms, needs torch, which is not "
        'installed: pip install "hpcmcodec[torch]"\n'
    )


def test_a_file_of_the_packaged_model_is_decoded_without_a_look_at_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the folders were searched")

    data = codec.encode(picture(16, 16))
    base.forget()
    monkeypatch.setattr(search, "files", never)
    monkeypatch.setattr(search, "folders", never)
    assert codec.decode(data).size == (16, 16)


# --- hostile weights --------------------------------------------------------------------------------------------------


def remade(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> Path:
    """A copy whose tensors and metadata were changed, with an id that fits them."""
    with safe_open(source, framework="numpy") as f:
        tensors, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118  it is no dictionary
    change(tensors, metadata)
    try:
        config, grids = Config.from_json(metadata["config"]), json.loads(metadata["grids"])
        metadata["model_id"] = weights.compute_model_id(config, grids, tensors).hex()
    except Exception:  # noqa: BLE001  what cannot be read has no id
        metadata["model_id"] = "00" * 8
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, target, metadata=metadata)
    return target


def setting(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, str]], None]:
    """A change of one tensor: another one, or a function of it; None takes it away."""

    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        tensors[name] = value(tensors[name].copy()) if callable(value) else value
        if value is None:
            del tensors[name]

    return change


def configured(**fields: Any) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | fields)

    return change


def on_grid(name: str, exponent: Any) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata["grids"] = json.dumps(json.loads(metadata["grids"]) | {name: exponent})

    return change


def filled(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: np.full_like(t, value)


HOSTILE = {
    "a tensor is missing": setting("entropy.h_s.0.bias", None),
    "another shape": setting("entropy.h_s.0.bias", np.zeros(3, np.float32)),
    "another dtype": setting("entropy.h_s.0.weight", lambda t: t.astype(np.int32)),
    "a matrix that breaks the bound": setting("entropy.s3.out.weight", lambda t: np.full((32, 48), 32767, np.int16)),
    "a factor that is no number": setting("entropy.h_s.0.step", filled(np.nan)),
    "an infinite bias": setting("g_s.0.bias", filled(np.inf)),
    "inputs of other widths": setting("entropy.step1.adaptor.widths", np.array([16, 32], np.int32)),
    "a table that falls": setting("tables.y.cdf", lambda t: t[:, ::-1]),
    "too few tables": setting("tables.y.sizes", lambda t: t[:-1]),
    "a table without zero": setting("tables.y.offsets", filled(1)),
    "centroids of another shape": setting("tables.y.centroids", lambda t: t[:, :2]),
    "means of z beyond all codes": setting("entropy.h_s.mean.table", filled(2**30)),
    "latents without end": configured(latent=1 << 40),
    "a size that is a text": configured(hyper="256"),
    "a size that is a truth": configured(window=[True, 8, 8]),
    "no heads": configured(attention_heads=0),
    "a window of all": configured(window=[4, 4096, 8]),
    "blocks without end": configured(deep_blocks=1 << 30),
    "a field that is not known": configured(more=1),
    "a kind that is not known": configured(prior="other"),
    "a list of lists of lists": configured(window=[[[]]]),
    "an exponent that is a text": on_grid("carried", "7"),
    "an exponent far out": on_grid("carried", 10**6),
    "a fixed grid moved": on_grid("y", 5),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_end_in_one_line(name: str, tmp_path: Path) -> None:
    data = codec.encode(picture(16, 16), model=str(members.path_of(CONFIG)))
    path = remade(members.path_of(CONFIG), tmp_path / "hostile.safetensors", HOSTILE[name])
    with pytest.raises((IntegrityError, UnsupportedError)) as error:
        weights.load_file(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value) or "unknown" in str(error.value) or "not built" in str(error.value)
    coded = tmp_path / "a.hpcm"
    coded.write_bytes(data)
    code, said = shut(["encode", ROOT / "docs" / "example.png", "-o", tmp_path / "b.hpcm", "--model", path])
    assert code in (4, 5), said
    assert said.count("\n") == 1


def test_a_claimed_id_that_the_tensors_do_not_have_is_refused(tmp_path: Path) -> None:
    source, path = members.path_of(CONFIG), tmp_path / "mine.safetensors"
    with safe_open(source, framework="numpy") as f:
        tensors, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118  it is no dictionary
    tensors["tables.y.centroids"] = tensors["tables.y.centroids"] + np.int32(1)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(IntegrityError, match="their id is"):
        weights.load_file(path)


def test_truncated_weights_and_huge_headers_end_in_one_line(tmp_path: Path) -> None:
    whole, path = members.path_of(CONFIG).read_bytes(), tmp_path / "cut.safetensors"
    cuts = [whole[:n] for n in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1)]
    huge = [(1 << n).to_bytes(8, "little") + whole[8:] for n in (21, 40, 63)]
    deep = b"[" * 500_000
    for data in (*cuts, *huge, len(deep).to_bytes(8, "little") + deep):
        path.write_bytes(data)
        with pytest.raises(HpcmError) as error:
            weights.load_file(path)
        assert "\n" not in str(error.value)


def test_weights_without_the_encoder_s_transforms_decode_but_do_not_encode(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    remade(members.path_of(CONFIG), path, setting("g_a.0.weight", None))
    assert base.find(str(path), "cpu", "light").model_id == weights.load_file(members.path_of(CONFIG)).model_id
    with pytest.raises(IntegrityError, match=r"g_a\.0\.weight is missing"):
        codec.encode(picture(16, 16), model=str(path))
    remade(members.path_of(CONFIG), path, setting("g_a.0.weight", np.zeros((1, 1), np.float16)))
    with pytest.raises(IntegrityError, match="size mismatch") as error:
        codec.encode(picture(16, 16), model=str(path))
    assert "\n" not in str(error.value)


def test_weights_of_every_kind_are_sound() -> None:
    for path in (DATA / f"{NAME}.safetensors", *weights.packaged().values()):
        w = weights.load_file(path)
        validate(w.config, w.grids, w.tensors)
