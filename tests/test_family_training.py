"""Training of the paper's members: recipes, groups of learning rates, stages, growth, and runs that resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402
from PIL import Image  # noqa: E402

from hpcmcodec import checksums, weights  # noqa: E402
from hpcmcodec.engines.light import LightEngine  # noqa: E402
from hpcmcodec.engines.torch import MixedEngine  # noqa: E402
from hpcmcodec.errors import InputError, IntegrityError  # noqa: E402
from hpcmcodec.evaluation.family.coding import Coder, weights_of  # noqa: E402
from hpcmcodec.model.config import MEMBERS  # noqa: E402
from hpcmcodec.model.family.model import MEANS, Member, model_of  # noqa: E402
from hpcmcodec.quality import Quality  # noqa: E402
from hpcmcodec.training import config, loop, packing, records, stages, states  # noqa: E402
from hpcmcodec.training.config import Rates, Recipe  # noqa: E402
from hpcmcodec.training.data import build_cache, patches  # noqa: E402
from hpcmcodec.training.hyperprior import Hyperprior, pass_on, start_from_principal_axes  # noqa: E402
from hpcmcodec.training.optim import factor_of, optimisers, part_of, rate_factor  # noqa: E402
from hpcmcodec.training.speed import table  # noqa: E402
from tests import members  # noqa: E402
from tests.test_family import SMALL, _planar, mini, quick  # noqa: E402
from tests.tiny import picture  # noqa: E402
from tools.__main__ import main as tools  # noqa: E402

FIELDS = ("latent", "hyper", "attention_heads", "transform_widths", "deep_blocks")
MINI = json.dumps({k: getattr(mini("baseline"), k) for k in FIELDS})
Q = torch.zeros(1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(3):
        Image.fromarray(picture(288, 272, seed)).save(folder / f"{seed}.png")
    build_cache(folder / "cache", [folder])
    return folder / "cache"


@pytest.fixture
def recipe(cache: Path) -> Recipe:
    """Four steps of stage B of a twin in a size that takes no time."""
    return config.load("small-b").override(
        {"cache": str(cache), "crops": "64:2", "steps": 4, "model": MINI, "fake": 0.0, "precision": "float32"}
        | {"log_every": 1, "save_every": 3, "calibrate_at": "2", "warm": 2, "preset": "small-phase1"}
    )


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in records.read_log(folder / "log.jsonl") if "loss" in r]


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small-a", "small-b", "base-a", "base-b", "base-c"])
def test_recipes_warm_up_as_linear_lr_of_a_tenth_over_a_thousand_steps(name: str) -> None:
    rates = config.load(name).rates
    assert (rates.optimiser, rates.adam, rates.clip) == ("adam", 1e-4, 1.0)
    found = [rate_factor(rates, n, n, 0.0) for n in (0, 500, 1000, 5000)]
    assert found == pytest.approx([0.1, 0.55, 1.0, 1.0])


def test_schedules_end_where_their_names_say() -> None:
    def of(schedule: str, progress: float) -> float:
        return rate_factor(Rates(schedule=schedule, warm=1), 9999, 9999, progress)

    assert [of("cosine", p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0], abs=1e-9)
    assert [of("steps", p) for p in (0, 0.9, 0.92, 0.96, 0.99, 1)] == [1, 1, 0.3, 0.1, 0.01, 0.01]
    assert of("root", 0.5) == pytest.approx((500 / 10_000) ** 0.5)


def expected_rate(name: str) -> float:
    """The rate that the phases' documents give a parameter, by its name."""
    if name.endswith(("/decay", "/boost")):
        return 1e-5
    first, _, rest = name.removeprefix("raw.").partition("/")
    if first.startswith("step") or (first in ("s1", "s2", "s3", "s12") and not rest.startswith("memory")):
        return 5e-5
    assert name.startswith(("g_a.", "g_s.", "h_a.", "z_prior.", "raw.h_s/", "raw.memory/")) or rest.startswith("memory")
    return 1e-4


@pytest.mark.parametrize("name", MEMBERS)
def test_every_parameter_of_every_member_is_in_the_group_of_its_kind(name: str) -> None:
    with torch.device("meta"):
        model = model_of(MEMBERS[name])
    rates = config.load("base-c").rates
    (adam,) = optimisers(model, rates, (), torch.float32)
    found = {p: g["base"] for g in adam.param_groups for p in g["params"]}
    for key, p in model.named_parameters():
        assert found.pop(p) == pytest.approx(expected_rate(key)), key
    assert not found
    kinds = {expected_rate(key) for key, _ in model.named_parameters()}
    assert kinds == ({1e-4, 5e-5, 1e-5} if "phase" in name else {1e-4, 5e-5})


def test_lite_has_the_groups_that_it_had() -> None:
    rates = config.load("lite-b").rates
    for name in ("raw.s3/cell/in/weight", "raw.s3/cell/block/spatial/wkv/decay", "raw.s12/prior/0/up/weight"):
        assert factor_of(name, rates) == 1
    assert rates.optimiser == "muon"


# --- first values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_a_member_s_rate_begins_where_that_of_its_hyperprior_ended(name: str) -> None:
    """Random first values begin at many times the rate, and hundreds of steps do not make up for it."""
    torch.manual_seed(0)
    config = mini(name.removeprefix("small-"))
    bare, whole, x = Hyperprior(config).eval(), model_of(config).eval(), _planar(picture(128, 128))
    start_from_principal_axes(bare, patches(x))
    pass_on(whole)
    whole.load_state_dict(bare.state_dict(), strict=False)
    alone, (found, _) = stages.rate(bare, x, Q, False, fake=False)[0], stages.rate(whole, x, Q, False, fake=False)
    assert found.item() == pytest.approx(alone.item(), rel=0.1)
    found.backward()
    # What a zero is in front of has to wait for it, and so does the query of a bank that has one reference.
    trained = [(k, p) for k, p in whole.named_parameters() if part_of(k) == "context" and not k.endswith("/w5")]
    assert [k for k, p in trained if "memory" not in k and not (p.grad != 0).any()] == []


@pytest.mark.parametrize("stage", ["a", "b", "c"])
def test_the_first_step_of_each_stage_has_a_gradient_for_all_that_it_trains(stage: str) -> None:
    torch.manual_seed(0)
    model = stages.build(Recipe().override({"preset": "small-phase3", "model": MINI, "stage": stage})).train()
    x = _planar(picture(64, 128))
    if stage == "a":
        start_from_principal_axes(model, patches(x))
    stages.loss_of(model, x, Q, False, joint=stage != "b", fake=False)[0].backward()
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    wanted = {"hyperprior", "context"} if stage == "b" else {"transforms", "hyperprior", "context"}
    assert {part_of(k) for k in trained} == wanted - ({"context"} if stage == "a" else set())
    for key, p in trained.items():
        assert p.grad is not None, key
        assert torch.isfinite(p.grad).all(), key
        # What a zero is in front of has to wait for it: blocks of stage A, and the 5x5 kernels of all stages.
        waits = key.endswith("/w5") or (stage == "a" and key.startswith("g_") and (".up." in key or ".conv." in key))
        assert waits or (p.grad != 0).any(), key


def test_z_begins_away_from_zero_and_h_s_with_scales_of_one() -> None:
    model = model_of(mini("baseline"))
    assert model.raw[MEANS].std() > 0.3
    assert (model.raw["h_s/5/down/bias"][:16] == 1).all()


def test_principal_axes_are_their_own_inverse_and_scale_latents_for_the_lambda() -> None:
    x = torch.rand(1, 3, 6, 8).repeat_interleave(16, 2).repeat_interleave(16, 3)  # three numbers for each latent
    found = []
    for lmbda in (0.013, 0.052):
        model = Hyperprior(mini("baseline", fixed_lambda=lmbda)).eval()
        start_from_principal_axes(model, patches(x))
        with torch.no_grad():
            y, _ = model.analyse(x, Q)
            assert (model.synthesise(y, Q) - x).abs().max() < 1e-4
            found.append(y.abs().mean())
    assert found[1] / found[0] == pytest.approx(2, rel=1e-2)


def test_a_limit_of_likelihood_lets_the_scale_learn() -> None:
    from hpcmcodec.model.family import gaussian

    scale = torch.tensor([1.0], requires_grad=True)
    (-torch.log2(gaussian.likelihood(torch.tensor([9.0]), scale))).sum().backward()
    assert scale.grad is not None
    assert scale.grad < 0


# --- stages and runs --------------------------------------------------------------------------------------------------


def test_stage_b_starts_from_a_and_leaves_the_transforms_alone(recipe: Recipe, tmp_path: Path) -> None:
    first = recipe.override({"stage": "a", "preset": "small-baseline", "steps": 2})
    loop.train(first, tmp_path / "a")
    assert isinstance(states.load_model(tmp_path / "a"), Hyperprior)
    a = states.read(tmp_path / "a").under("ema")
    loop.train(recipe.override({"init_from": str(tmp_path / "a")}), tmp_path / "b")
    b = states.read(tmp_path / "b").under("ema")
    moved = {part_of(k) for k, v in a.items() if not torch.equal(v, b[k])}
    assert moved == {"hyperprior"}
    assert isinstance(states.load_model(tmp_path / "b"), Member)
    assert [n for n, _ in losses(tmp_path / "b")] == [1, 2, 3, 4]


def test_a_resumed_run_goes_as_an_uninterrupted_one(recipe: Recipe, tmp_path: Path) -> None:
    loop.train(recipe, tmp_path / "whole")
    for steps in range(1, 5):  # each time in a trainer of its own, with what the folder has
        trainer = loop.Trainer(recipe, tmp_path / "parts")
        trainer.advance()
        trainer.save()
        trainer.close()
        assert trainer.step == steps
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = states.read(tmp_path / "whole"), states.read(tmp_path / "parts")
    assert any(k.endswith("@exp_avg_sq") for k in whole.tensors)
    torch.testing.assert_close(parts.tensors, whole.tensors, rtol=1e-5, atol=1e-7)


def test_phase_4_grows_from_phase_3_and_trains_its_priors_alone_at_first(recipe: Recipe, tmp_path: Path) -> None:
    loop.train(recipe.override({"preset": "small-phase3", "stage": "c", "steps": 1}), tmp_path / "3")
    grown = {"preset": "small-phase4", "stage": "c", "init_from": str(tmp_path / "3"), "grow": True, "alone": 2}
    trainer = loop.Trainer(recipe.override(grown | {"first_step": 0}), tmp_path / "4")
    before: dict[str, Any] = {k: v.clone() for k, v in trainer.model.named_parameters()}
    for step in (1, 2, 3):
        trainer.advance()
        moved = {k for k, v in trainer.model.named_parameters() if not torch.equal(v, before[k])}
        priors = {k for k in before if k.startswith(("raw.s12/blocks", "raw.s3/blocks"))}
        assert moved <= priors if step < 3 else not moved <= priors
        assert moved & priors
        before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    trainer.close()
    assert sorted(trainer.fresh) == sorted(priors)
    notes = records.read_log(tmp_path / "4" / "log.jsonl")[0]["notes"]
    assert [n.split(":")[0] for n in notes] == ["matched", "renamed", "fresh", "left over"]


def test_alone_with_nothing_fresh_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    loop.train(recipe.override({"steps": 1}), tmp_path / "a")
    with pytest.raises(InputError, match="nothing to train alone"):
        loop.Trainer(recipe.override({"init_from": str(tmp_path / "a"), "alone": 3}), tmp_path / "b")


@pytest.mark.parametrize("name", quick(SMALL))
def test_every_twin_takes_a_step_of_stage_b(name: str, recipe: Recipe, tmp_path: Path) -> None:
    changed = recipe.override({"preset": name, "steps": 1, "recompute": True})
    loop.train(changed, tmp_path)
    ((_, loss),) = losses(tmp_path)
    assert 0 < loss < 40


def test_the_speed_of_a_member_s_stages_is_measured() -> None:
    small = config.load("small-b").override({"model": MINI, "crops": "64:1"})
    lines = list(table(small, 1))
    assert len([line for line in lines if line.startswith(("| a", "| b", "| c"))]) == 6


@pytest.mark.slow
def test_two_hundred_steps_of_phase_3_end_at_the_recorded_loss(cache: Path, tmp_path: Path) -> None:
    recipe = config.load("small-b").override(
        {"cache": str(cache), "preset": "small-phase3", "stage": "c", "crops": "64:4", "steps": 200, "warm": 20}
        | {"precision": "float32", "fake": 0.0, "seed": 1, "calibrate_at": "50,100", "log_every": 10}
    )
    loop.train(recipe, tmp_path)
    found = [loss for _, loss in losses(tmp_path)]
    assert found[0] == pytest.approx(6.62, rel=0.03)
    assert np.mean(found[-5:]) == pytest.approx(6.31, rel=0.03)


def test_files_of_two_runs_are_measured_as_the_runs_left_them(recipe: Recipe, tmp_path: Path) -> None:
    for seed in range(2):
        Image.fromarray(picture(64, 48, seed)).save(tmp_path / f"{seed}.png")
    changes = {"validation": str(tmp_path), "validate_every": 2}
    for seed in range(2):
        loop.train(recipe.override(changes | {"seed": seed}), tmp_path / f"run-{seed}")
    runs = [str(tmp_path / f"run-{seed}") for seed in range(2)]
    done = CliRunner().invoke(tools, ["twins", *runs, "--images", str(tmp_path), "-o", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert [(run["seed"], run["steps"], len(run["validated"])) for run in found["runs"]] == [(0, 4, 3), (1, 4, 3)]
    for run in found["runs"]:
        with weights_of(str(tmp_path / run["name"]), [picture(64, 48)]) as (path, _):
            coder = Coder(path)
            files = [coder.encode(picture(64, 48, seed)) for seed in range(2)]
        assert run["bytes"] == [[pytest.approx(len(data), rel=0.02) for data in files]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_files_of_a_run_that_has_qualities_are_measured_at_those_that_are_asked_for(
    cache: Path, tmp_path: Path
) -> None:
    Image.fromarray(picture(64, 48)).save(tmp_path / "a.png")
    recipe = config.load("tiny").override({"cache": str(cache), "crops": "64:2", "steps": 2, "stage": "c"})
    loop.train(recipe.override({"precision": "float32", "log_every": 1}), tmp_path / "run")
    arguments = ["twins", str(tmp_path / "run"), "--images", str(tmp_path), "-o", str(tmp_path / "out.json")]
    assert CliRunner().invoke(tools, arguments).exit_code == 2
    done = CliRunner().invoke(tools, [*arguments, "--qualities", "20,80"])
    assert done.exit_code == 0, done.output
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    ((small,), (large,)) = run["bytes"]
    assert 40 < small < large
    assert len(run["psnr"]) == 2


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_an_exported_member_encodes_without_torch_what_the_torch_engine_encodes(tmp_path: Path) -> None:
    config = mini("phase1")
    model = members.member(config)
    x = _planar(picture(64, 64))
    model.grids = stages.calibrate(model, x, Q, False)
    packing.export(model, config.name, tmp_path, [picture(96, 64, seed) for seed in range(2)])
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{config.name}.safetensors",
        f"{config.name}.analysis.onnx",
        checksums.LIST,
    }
    w = weights.load_file(tmp_path / f"{config.name}.safetensors")
    without, with_torch = LightEngine(w), MixedEngine(w)
    for size in ((64, 64), (48, 80)):
        y, z = without.analyse(picture(*size), Quality(0), None)
        y_torch, z_torch = with_torch.analyse(picture(*size), Quality(0), None)
        assert np.abs(y - y_torch).max() < 1e-3 * np.abs(y_torch).max()
        assert np.abs(z - z_torch).max() < 1e-3 * np.abs(z_torch).max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_an_export_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = members.member(mini("phi"))
    real = packing.synthesis_integers

    def broken(*args: Any) -> Any:
        return {k: v + 40 if k.endswith("g_s.9.bias") else v for k, v in real(*args).items()}

    monkeypatch.setattr(packing, "synthesis_integers", broken)
    with pytest.raises(IntegrityError, match="was not written"):
        packing.export(model, "broken", tmp_path, [picture(96, 64, seed) for seed in range(2)])
    assert not list(tmp_path.iterdir())
