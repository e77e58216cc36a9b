"""The tools of the family: what a check finds broken, comparisons with intervals, a photograph through a member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from hpcmcodec.cli import cli  # noqa: E402
from hpcmcodec.errors import InputError  # noqa: E402
from hpcmcodec.evaluation.codecs import CODECS  # noqa: E402
from hpcmcodec.evaluation.evaluate import find_photos  # noqa: E402
from hpcmcodec.evaluation.family import checks, coding, comparing, family, photograph  # noqa: E402
from hpcmcodec.exact.ops import Act  # noqa: E402
from hpcmcodec.model import banks  # noqa: E402
from hpcmcodec.model.config import MEMBERS, Config  # noqa: E402
from hpcmcodec.model.family import gaussian  # noqa: E402
from hpcmcodec.model.float_ops import FloatOps  # noqa: E402
from tests import members  # noqa: E402
from tests.test_family import mini  # noqa: E402
from tests.tiny import picture  # noqa: E402

Group = Callable[[Config], Any]


def broken(group: Group, config: Config) -> set[str]:
    """The claims of a group that do not hold."""
    return {claim for claim, holds in group(config) if not holds}


# --- check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["phase1", *(pytest.param(n, marks=pytest.mark.slow) for n in ("full", "linear", "light", "phase4"))]
)
def test_a_member_keeps_all_claims(name: str) -> None:
    found = list(checks.run(mini(name)))
    assert {f.group for f in found} == {"forward", "memory", "training", "compression", "variations"}
    assert [f for f in found if not f.holds] == []


def test_forward_finds_swapped_halves_of_h_s(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FloatOps.moments
    monkeypatch.setattr(FloatOps, "moments", lambda self, scales, means: real(self, means, scales))
    assert "scales are the first half of h_s" in broken(checks.forward, mini("phi"))


def test_forward_finds_a_shifted_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FloatOps.fold
    monkeypatch.setattr(FloatOps, "fold", lambda self, x, step: real(self, x.roll(1, 2), step))
    assert "each latent is coded once and decoded where it was" in broken(checks.forward, mini("phi"))


def test_memory_finds_values_that_stay_when_their_keys_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    real = banks.FullBank.add

    def add(self: banks.FullBank, carry: Act) -> None:
        kept = list(self.values)
        real(self, carry)
        self.values = [*kept, self.values[-1]]

    monkeypatch.setattr(banks.FullBank, "add", add)
    assert "keys and values leave together" in broken(checks.memory, mini("full"))


def test_training_finds_a_detached_key(monkeypatch: pytest.MonkeyPatch) -> None:
    real = banks.LinearBank.add

    def detached(self: banks.LinearBank, carry: Act) -> None:
        real(self, carry)
        for kept in (self.keys, self.values):
            if isinstance(kept[-1].x, torch.Tensor):
                kept[-1] = Act(kept[-1].x.detach(), kept[-1].grid)

    monkeypatch.setattr(banks.LinearBank, "add", detached)
    (claim,) = broken(checks.training, mini("linear"))
    assert "raw.memory/key" in claim


def test_compression_finds_tables_of_another_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gaussian.tables_of
    monkeypatch.setattr(gaussian, "tables_of", lambda scales: real(6 * scales))
    assert broken(checks.compression, mini("phi")) == {"a file has the bits that are estimated"}


def test_variations_find_a_temperature_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FloatOps.choose
    monkeypatch.setattr(FloatOps, "choose", lambda self, query, keys, n, temperature: real(self, query, keys, n, 0.1))
    monkeypatch.setattr(checks, "_variations", lambda config: iter([{"memory_temperature": 0.2}]))
    assert "memory_temperature = 0.2 makes a difference" in broken(checks.variations, mini("full"))


def test_the_command_ends_with_1_where_a_claim_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "config_of", lambda name: mini(name.removeprefix("small-")))

    def found(config: Config) -> Any:
        yield checks.Found("forward", "holds", holds=True)
        yield checks.Found("forward", "breaks", holds=False, said="why")

    monkeypatch.setattr(checks, "run", found)
    shown = CliRunner().invoke(family, ["check", "small-phi"])
    assert shown.exit_code == 1
    assert "BROKEN  breaks: why" in shown.output
    assert shown.output.endswith("1 claims do not hold\n")


def test_a_claim_that_raises_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*args: Any) -> Any:
        raise RuntimeError("no such file")

    monkeypatch.setattr(checks, "member_of", raises)
    found = list(checks.run(mini("phi")))
    assert [(f.holds, f.said) for f in found] == [(False, "RuntimeError: no such file")] * 5


# --- compare ----------------------------------------------------------------------------------------------------------


def test_a_difference_is_the_mean_of_ratios_with_an_interval() -> None:
    rng = np.random.RandomState(0)
    a = rng.uniform(1, 2, 50)
    found = comparing.difference(a, a * 0.9 * np.exp(rng.normal(0, 0.01, 50)))
    assert found.low < -0.1 < found.high < -0.09
    assert found.line().endswith("a difference")
    either_way = np.tile([0.9, 1 / 0.9], 25)
    assert comparing.difference(a, a * either_way).line().endswith("]")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hpcmcodec.training import packing

    path = tmp_path_factory.mktemp("weights") / "mini-phi.safetensors"
    shown = [picture(64, 64, seed) for seed in range(2)]
    packing.pack(coding.untrained(mini("phi"), shown), path, shown)
    return path


def test_a_member_compared_with_itself_shows_no_difference(
    weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "TIMED", (64, 96))
    for seed in range(3):
        Image.fromarray(picture(64, 80, seed)).save(tmp_path / f"{seed}.png")
    for metric in ("counts", "rate", "files"):
        result: dict[str, Any] = {}
        list(comparing.run((str(weights_file), str(weights_file)), [metric], tmp_path, result))
        if metric == "counts":
            assert result["counts"]["parameters"][0] == result["counts"]["parameters"][1] > 0
            continue
        gap = next(v["difference"] for v in result[metric].values() if isinstance(v, dict))
        assert gap == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert [m["model_id"] for m in result["members"]] == [coding.Coder(weights_file).weights.model_id.hex()] * 2
    list(comparing.run((str(weights_file), str(weights_file)), ["time"], tmp_path, result, rounds=3))
    gap = result["time"]["seconds of decoding, 96x64"]["difference"]
    assert gap["low"] <= gap["mean"] <= gap["high"]


def test_peak_memory_is_beyond_what_a_process_had_before(weights_file: Path) -> None:
    assert comparing.peak_of(weights_file, "encoding") >= 0
    assert comparing.peak_of(weights_file, "decoding") >= 0


def test_what_is_no_member_is_refused(tmp_path: Path) -> None:
    for name in ("nothing", "n" * 300, "n" * 300 + ".safetensors"):
        with pytest.raises(InputError, match="is no member"), coding.weights_of(name, []):
            pass
        with pytest.raises(InputError, match="is no member"):
            comparing._config_of(name)
    with pytest.raises(InputError, match="is no member of the family"):
        coding.config_of("nothing")


# --- quickstart -------------------------------------------------------------------------------------------------------


def test_quickstart_codes_a_photograph_and_two_decoders_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEMBERS, "small-phase3", mini("phase3"))
    Image.fromarray(picture(90, 70)).save(tmp_path / "mine.png")
    lines = list(photograph.run("small-phase3", tmp_path / "mine.png"))
    assert lines[0] == "mine.png: 90 x 70 pixels"
    crcs = [line.split("pixels ")[1].split(",")[0] for line in lines if "CRC-32" in line]
    assert len(crcs) == 2
    assert crcs[0] == crcs[1]
    psnr = float(lines[3].split("PSNR ")[1].split(" ")[0])
    assert psnr > 18  # sixteen principal axes keep that much


# --- eval -------------------------------------------------------------------------------------------------------------


def test_a_member_of_one_lambda_is_a_codec_with_one_quality() -> None:
    config = mini("baseline")
    key = f"hpcm:{config.name}"
    with members.installed(config) as w:
        assert key in CODECS
        made = CODECS[key]
        assert made.qualities == (0.0,)
        assert w.model_id.hex() in made.version()
        coded = made.code(picture(40, 24), 0)
        assert coded.pixels.shape == (24, 40, 3)
    assert key not in list(CODECS)  # the list is of those that are always here


def test_eval_names_the_models_that_are_here(tmp_path: Path) -> None:
    Image.fromarray(picture(32, 16)).save(tmp_path / "1.png")
    shown = CliRunner().invoke(cli, ["eval", str(tmp_path), "--codecs", "hpcm:nothing", "-o", str(tmp_path / "out")])
    assert shown.exit_code == 4
    assert "nothing" in shown.stderr
    assert CODECS["hpcm:lite-1"].qualities == CODECS["hpcm"].qualities


def test_data_sets_are_folders_that_variables_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(32, 16)).save(tmp_path / "1.png")
    monkeypatch.setenv("HPCM_CLIC", str(tmp_path))
    monkeypatch.delenv("HPCM_TECNICK", raising=False)
    monkeypatch.chdir(tmp_path)
    assert [p.name for p in find_photos([Path("clic")], None)] == ["1.png"]
    with pytest.raises(InputError, match="HPCM_TECNICK names, which is not set"):
        find_photos([Path("tecnick")], None)
