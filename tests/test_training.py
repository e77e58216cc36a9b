"""Training: recipes, crops, stages, and states that survive whatever ends a run."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tiny
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from hpcmcodec import codec, weights
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.engines.torch import TorchEngine
from hpcmcodec.errors import InputError, IntegrityError, UnsupportedError
from hpcmcodec.exact.constants import ARITHMETIC, CODE_MAX, FIXED_GRIDS, limit_of
from hpcmcodec.model import transforms
from hpcmcodec.model.config import DISTORTIONS, TINY, Config
from hpcmcodec.model.context import hyper_synthesis
from hpcmcodec.model.distortion import Distortion, visual, visual_gradient
from hpcmcodec.model.entropy import grids_at
from hpcmcodec.model.hpcm import HPCM, Estimator, WithoutContext, bits
from hpcmcodec.pretrained import from_weights
from hpcmcodec.quality import Quality
from hpcmcodec.training import config, export, fitting, judge, loop, records, report, stages, states, synthetic
from hpcmcodec.training.__main__ import main
from hpcmcodec.training.config import Objective, Rates, Recipe, Run
from hpcmcodec.training.data import Crops, build_cache, patches, to_unit, validation_images
from hpcmcodec.training.optim import is_matrix, optimisers, part_of, rate_factor
from hpcmcodec.training.speed import table
from hpcmcodec.training.stand_in import StandIn, centre_of_mass, start_from_principal_axes

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(3):
        Image.fromarray(tiny.picture(288, 272, seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def cache(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    assert build_cache(folder, [photographs]) == 3
    return folder


@pytest.fixture
def recipe(cache: Path) -> Recipe:
    """Four steps of stage A on the tiny model, a line of the log for each."""
    return config.load("tiny").override(
        {"cache": str(cache), "crops": "64:2,48:2", "steps": 4, "fake": 0.0, "precision": "float32"}
        | {"log_every": 1, "save_every": 3, "validate_every": 1000, "calibrate_at": "2", "warm": 2, "stage": "a"}
    )


def first_values(stage: str = "c", **values: Any) -> HPCM:
    torch.manual_seed(0)
    return stages.build(Recipe(run=Run(preset="tiny", stage=stage, **values)))


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in records.read_log(folder / "log.jsonl") if "loss" in r]


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(config.CONFIGS.glob("*.toml")), ids=lambda p: p.stem)
def test_packaged_recipes_say_what_their_names_do(path: Path) -> None:
    recipe = config.load(path.stem)
    preset, _, stage = path.stem.partition("-")
    assert (recipe.run.preset.removesuffix("-baseline"), recipe.run.stage) == (preset, stage or "c")
    assert config.load(path) == recipe


def test_every_value_of_a_recipe_is_overridden_by_an_option_of_its_name() -> None:
    names = [f.name for _, f, _ in config.options()]
    assert len(set(names)) == len(names)
    shown = CliRunner().invoke(main, ["train", "--help"]).output
    assert [n for n in names if f"--{n.replace('_', '-')}" not in shown] == []
    changed = Recipe().override({"crops": "128:16,192:8", "muon": 1, "seed": "7", "calibrate_at": "1,2"})
    assert changed.crops == ((128, 16), (192, 8))
    assert (changed.rates.muon, changed.run.seed, changed.objective.calibrate_at) == (1.0, 7, (1, 2))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 3}, "unknown: stepz"),
        ({"steps": "many"}, "steps is int"),
        ({"steps": True}, "steps is int"),
        ({"polite": 1}, "polite is bool"),
        ({"crops": "100:4"}, "multiple of 16"),
        ({"crops": ""}, "names none"),
        ({"preset": "huge"}, "one of lite, tiny"),
        ({"stage": "e"}, "one of a, b, c, d"),
        ({"optimiser": "sgd"}, "one of muon, adam"),
        ({"schedule": "plateau"}, "one of root, cosine, steps"),
        ({"warm_from": 2.0}, "share of the full rates"),
        ({"grow": True}, "grow is about the state that init_from names"),
        ({"alone": 9}, "alone is about the state that init_from names"),
        ({"model": "{"}, "model"),
        ({"model": '{"wavelets": 3}'}, "wavelets"),
        ({"model": '{"memory": "x"}'}, "memory"),
        ({"decay": 1.5}, "share of the run"),
        ({"synthetic": 1.5}, "share of the crops"),
        ({"limit": -1}, "limit is a loss"),
        ({"keep": 0}, "at least 1"),
        ({"rescale": "0.5"}, "two factors"),
        ({"distortion": "ms-ssim", "crops": "128:4"}, "176"),
        ({"distortion": "mixed", "crops": "128:4"}, "176"),
        ({"distortion": "mixed", "share": 1.5}, "share is a share of the distortion"),
        ({"weight": 0.0}, "weight multiplies the distortion"),
        ({"weight": float("inf")}, "weight is float, not inf"),
        ({"muon": "nan"}, "muon is float, not 'nan'"),
        ({"stage": "a", "without_context": True}, "stage a"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Recipe().override(values)


def test_a_recipe_may_change_fields_of_its_preset() -> None:
    recipe = Recipe().override({"preset": "tiny", "stage": "c", "model": '{"memory": "none", "cell_rates": [2, 2, 3]}'})
    assert stages.build(recipe).config == replace(TINY, memory="none", cell_rates=(2, 2, 3))


def test_unknown_tables_and_keys_of_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[run]\nsteps = 3\nmuon = 1.0\n[extra]\na = 1\n")
    with pytest.raises(InputError, match=r"extra, run\.muon"):
        config.load(path)
    path.write_text("[run\n")
    with pytest.raises(InputError, match=r"mine\.toml"):
        config.load(path)
    with pytest.raises(InputError, match="lite-a"):
        config.load("nothing")


def test_recipe_survives_the_run_folder(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert config.load(tmp_path / "recipe.json") == recipe


def test_a_run_whose_recipe_names_neither_share_nor_limit_goes_on_without_them(tmp_path: Path, recipe: Recipe) -> None:
    tables = json.loads(recipe.to_json())
    del tables["data"]["synthetic"], tables["objective"]["limit"]
    (tmp_path / "recipe.json").write_text(json.dumps(tables))
    found = config.load(tmp_path / "recipe.json")
    assert (found.data.synthetic, found.objective.limit) == (0, 0)
    assert found == recipe


# --- data -------------------------------------------------------------------------------------------------------------


def test_folders_and_tar_files_give_the_same_cache(photographs: Path, cache: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photographs.tar", "w") as tar:
        for path in sorted(photographs.iterdir(), reverse=True):
            tar.add(path, path.name)
    assert build_cache(tmp_path / "cache", [tmp_path / "photographs.tar"]) == 3
    for name in ("pixels.bin", "index.npy"):
        assert (tmp_path / "cache" / name).read_bytes() == (cache / name).read_bytes()


def test_unreadable_and_small_images_are_left_out(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes((photographs / "0.png").read_bytes()[:5000])
    Image.new("RGB", (255, 300)).save(tmp_path / "small.png")
    said: list[str] = []
    with pytest.raises(InputError, match="no images of 256"):
        build_cache(tmp_path / "cache", [tmp_path], said.append)
    assert len(said) == 1
    assert "broken.png" in said[0]


@pytest.fixture(scope="module")
def map_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image whose green is the row and whose blue is the column."""
    folder = tmp_path_factory.mktemp("map")
    rows, columns = np.mgrid[:256, :256]
    Image.fromarray(np.stack([0 * rows, rows, columns], -1).astype(np.uint8)).save(folder / "map.png")
    build_cache(folder / "cache", [folder])
    return folder / "cache"


def test_crops_are_squares_of_the_image_flipped_and_transposed(map_cache: Path) -> None:
    crops, seen = Crops(map_cache), set()
    for x in crops.batch(np.random.default_rng(0), 64, 32).int():
        down, right = x[1:, 1:, 0] - x[1:, :-1, 0], x[1:, 0, 1:] - x[1:, 0, :-1]
        way = (*down[:, 0].tolist(), *right[:, 0].tolist())  # change of (row, column) a step down, then to the right
        assert (down == down[:, :1]).all()
        assert (right == right[:, :1]).all()
        seen.add(way)
    assert seen == {(1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, 1, 0)}


def test_rescaled_crops_show_more_of_the_image(map_cache: Path) -> None:
    x = Crops(map_cache, (0.5, 0.5)).batch(np.random.default_rng(0), 8, 32).float()
    span = (x.flatten(2).amax(2) - x.flatten(2).amin(2))[:, 1:]
    assert (span > 60).all()
    assert (Crops(map_cache, (0.01, 0.01)).batch(np.random.default_rng(0), 1, 32)[0, 1:].float().std() > 60).all()


def test_crops_depend_on_the_generator_alone(cache: Path) -> None:
    crops = Crops(cache, (0.7, 1.0))
    a = crops.batch(np.random.default_rng(5), 4, 64)
    crops.batch(np.random.default_rng(6), 2, 96)
    assert torch.equal(crops.batch(np.random.default_rng(5), 4, 64), a)
    with pytest.raises(InputError, match="512 pixels"):
        crops.batch(np.random.default_rng(5), 1, 512)
    with pytest.raises(InputError, match="no cache"):
        Crops(cache / "nowhere")


def test_a_share_of_crops_is_made_and_the_others_stay_the_same_photographs(cache: Path) -> None:
    crops, n = Crops(cache), 240
    photographs, mixed = (crops.batch(np.random.default_rng(5), n, 32, share) for share in (0.0, 0.25))
    assert torch.equal(crops.batch(np.random.default_rng(5), n, 32, 0.25), mixed)
    made = (mixed != photographs).flatten(1).any(1)
    assert 0.25 * n - 4 * (n * 0.25 * 0.75) ** 0.5 < made.sum() < 0.25 * n + 4 * (n * 0.25 * 0.75) ** 0.5
    all_made = crops.batch(np.random.default_rng(5), n, 32, 1.0)
    assert torch.equal(all_made[made], mixed[made])  # a crop does not depend on whether its neighbours are made
    assert (all_made != photographs).flatten(1).any(1).float().mean() > 0.99


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_a_made_crop_depends_on_its_generator_and_its_photograph_alone(kind: str) -> None:
    make, _ = synthetic.KINDS[kind]
    seen = set()
    for size in (32, 80):
        photograph = tiny.picture(size, size)
        photograph.flags.writeable = False
        for seed in range(25):
            crop = make(np.random.default_rng(seed), photograph)
            assert (crop.shape, crop.dtype) == (photograph.shape, np.uint8)
            assert np.array_equal(make(np.random.default_rng(seed), photograph), crop)
            seen.add(crop.tobytes())
    assert len(seen) > 30
    assert max(max(s) for s in seen) > 240
    assert min(min(s) for s in seen) < 15


def test_each_kind_is_made_as_often_as_its_probability_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(kind: str) -> synthetic.Kind:
        return lambda rng, photograph: (seen.append(kind), photograph)[1]

    wanted = {k: p for k, (_, p) in synthetic.KINDS.items()}
    monkeypatch.setattr(synthetic, "KINDS", {k: (noted(k), p) for k, p in wanted.items()})
    rng, photograph = np.random.default_rng(0), tiny.picture(16, 16)
    for _ in range(3000):
        synthetic.make(rng, photograph)
    assert {k: seen.count(k) / 3000 for k in wanted} == pytest.approx(wanted, abs=0.035)


def test_patterns_alternate_from_pixel_to_pixel_and_text_has_a_colour_for_each_subpixel() -> None:
    photograph = tiny.picture(48, 48)
    pattern, _ = synthetic.KINDS["pattern"]
    patterns = [pattern(np.random.default_rng(seed), photograph).astype(int) for seed in range(40)]
    boards = [
        p for p in patterns if all((np.diff(p, axis=a) != 0).any(2).all() for a in (0, 1)) and (p[2:] == p[:-2]).all()
    ]
    assert len(boards) >= 3
    label = synthetic.Label(4, 4, "ill", 14)
    lcd, grey = (synthetic._coverage(r, (24, 32), [label], synthetic.LCD_TAPS[0]) for r in ("lcd", "grey"))
    assert (np.ptp(lcd, axis=2) > 0.2).any()
    assert np.ptp(grey, axis=2).max() == 0
    assert lcd.sum() == pytest.approx(grey.sum(), rel=0.02)  # the same ink


# --- stages -----------------------------------------------------------------------------------------------------------


def test_principal_axes_that_keep_everything_lose_nothing() -> None:
    widths = {"analysis_widths": (192, 768), "synthesis_widths": (192, 768), "latent": 768}
    model = StandIn(replace(TINY, **widths))
    x = to_unit(torch.from_numpy(np.stack([tiny.picture(128, 128, s) for s in range(3)])).permute(0, 3, 1, 2))
    start_from_principal_axes(model, patches(x))
    with torch.no_grad():
        found = model.g_s(model.g_a(x, model.g_a.s8.factors(torch.zeros(3))), torch.ones(3, 192, 1, 1))
    assert (found - x).abs().max() < 1e-4


def test_principal_axes_keep_more_of_a_picture_than_random_weights_do() -> None:
    x = to_unit(torch.from_numpy(tiny.picture(256, 256)).permute(2, 0, 1)[None])
    errors = []
    for axes in (False, True):
        model = first_values("a").eval()
        if axes:
            start_from_principal_axes(model, patches(x))
        with torch.no_grad():
            errors.append((model(x, torch.ones(1))["x_hat"] - x).square().mean().item())
    assert errors[1] < 0.2 * errors[0]


def test_stand_in_sees_only_what_comes_before() -> None:
    model = first_values("a").eval()
    torch.manual_seed(1)
    y, z, q = 9 * torch.randn(1, 6, 8, TINY.latent), torch.randn(1, 2, 2, TINY.hyper), torch.tensor([0.5])
    changed = y.clone()
    changed[0, 3, 4] += 1
    with torch.no_grad():
        (before, _), (after, _) = (model.estimate(v, z, q) for v in (y, changed))
    differ = (after - before).abs().amax(-1)[0] > 1e-4
    order = torch.arange(48).reshape(6, 8)
    assert set(order[differ].tolist()) <= set(range(3 * 8 + 4, 48))
    assert differ[3, 5]
    assert differ[5, 4]


def test_stand_in_knows_nothing_of_y_but_the_symbols() -> None:
    model = first_values("a").eval()
    torch.manual_seed(1)
    symbols, z, q = torch.randn(1, 6, 8, TINY.latent).mul(3).round(), torch.randn(1, 2, 2, TINY.hyper), torch.zeros(1)
    with torch.no_grad():
        first = model.stand_in["first"](hyper_synthesis(model.ops(), TINY, z.round(), q).x.permute(0, 3, 1, 2))
        centres = symbols + first.permute(0, 2, 3, 1)[:, :6, :8]
        middle, moved = (
            model.estimate(v, z, q) for v in (centres, centres + torch.empty_like(symbols).uniform_(-0.45, 0.45))
        )
    torch.testing.assert_close(moved[0], middle[0])
    torch.testing.assert_close(moved[1], middle[1])
    assert (middle[0] - centres).abs().max() <= 0.5 + 1e-4
    assert (middle[0] - centres).abs().max() > 0.1  # towards the means of the context


@pytest.mark.parametrize("level", [0, 14, 26, 40])
def test_centre_of_mass_is_that_of_the_logistic_within_the_bin(level: int) -> None:
    v, scale = np.array([0, 0.3, -0.4, 1, -2.2, 7.6]), 2 ** ((level - 26) / 6)
    t = v[:, None] + (np.arange(4000) + 0.5) / 4000 - 0.5
    density = np.exp(-np.abs(t) / scale) / (1 + np.exp(-np.abs(t) / scale)) ** 2
    found = centre_of_mass(torch.from_numpy(v).float(), torch.full((6,), float(level)))
    np.testing.assert_allclose(found, (t * density).sum(1) / density.sum(1), atol=0.06 if level == 0 else 2e-3)


@pytest.mark.parametrize("stage", ["a", "b", "c"])
def test_a_step_trains_what_the_stage_says(stage: str, recipe: Recipe, tmp_path: Path) -> None:
    trainer = loop.Trainer(recipe.override({"stage": stage}), tmp_path)
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    trainer.advance()
    trainer.advance()
    trainer.close()
    moved = {part_of(k) for k, v in trainer.model.named_parameters() if not torch.equal(v, before[k])}
    assert moved == ({"hyperprior", "context"} if stage == "b" else {"transforms", "hyperprior", "context"})


def test_recomputed_blocks_give_the_same_gradients() -> None:
    x, q = torch.rand(2, 3, 64, 64), torch.tensor([0.2, 0.8])
    gradients, kept = [], []
    for recompute in (False, True):
        model = first_values()
        if recompute:
            stages.recompute_blocks(model)
        torch.manual_seed(2)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, n=sizes: (n.append(t.numel()), t)[1], lambda t: t):
            loss = stages.loss_of(model, x, q, False, joint=True, fake=False)[0]
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad for p in model.parameters()])
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)


def test_a_limit_leaves_small_losses_alone_and_holds_the_gradient_of_large_ones() -> None:
    cost = torch.tensor([0.5, 3.0, 30.0, 3e4], requires_grad=True)
    counted = stages.limited(cost, 3.0)
    counted.sum().backward()
    assert counted.tolist() == pytest.approx([0.5, 3.0, 3 + 3 * np.log(10), 3 + 3 * np.log(1e4)])
    assert cost.grad is not None
    assert cost.grad.tolist() == pytest.approx([1, 1, 0.1, 1e-4])
    model, x, q = first_values().eval(), torch.rand(2, 3, 64, 64), torch.tensor([0.2, 0.9])
    free, held = (stages.loss_of(model, x, q, False, joint=True, fake=False, limit=v)[0].item() for v in (0.0, 0.1))
    assert held < free


def test_a_missing_package_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    for kind in ("ms-ssim", "mixed"):
        with pytest.raises(InputError, match=r"pip install .hpcmcodec\[train\]"):
            Distortion(kind).check()
    for kind in ("mse", "visual"):
        Distortion(kind).check()


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_a_distortion_is_zero_for_equal_pictures_and_has_a_gradient_at_all_others(kind: str) -> None:
    pytest.importorskip("pytorch_msssim")
    x = to_unit(torch.from_numpy(np.stack([tiny.picture(176, 192), tiny.picture(176, 192)])).permute(0, 3, 1, 2))
    q = torch.tensor([0.2, 0.9])
    assert Distortion(kind)(x, x, q).tolist() == pytest.approx([0, 0], abs=1e-3)
    for other in (x + 0.1 * torch.randn_like(x), torch.zeros_like(x), torch.ones_like(x), x - 3, x):
        x_hat = other.clone().requires_grad_()
        found = Distortion(kind)(x_hat, x, q)
        found.sum().backward()
        assert x_hat.grad is not None
        assert x_hat.grad.isfinite().all()
    assert (Distortion(kind)(x + 0.05 * torch.randn_like(x), x, q) > 0).all()


@pytest.mark.parametrize("kind", ["ms-ssim", "visual"])
def test_what_weighs_structure_forgives_brightness_before_noise(kind: str) -> None:
    pytest.importorskip("pytorch_msssim")
    x, q = to_unit(torch.from_numpy(tiny.picture(176, 176)).permute(2, 0, 1)[None]), torch.ones(1)
    x = 0.2 + 0.6 * x
    noise = 0.05 * torch.randn_like(x).sign()
    brighter, noisy = (Distortion(kind, share=1)(v, x, q).item() for v in (x + 0.05, x + noise))
    assert brighter < 0.5 * noisy


def test_a_weight_multiplies_the_whole_distortion() -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x_hat, lambdas = (x + 0.1).clamp(0, 1), torch.tensor([0.01, 0.02])
    one, more = (Distortion("visual", 0.5, weight)(x_hat, x, lambdas) for weight in (1.0, 1.4))
    assert torch.allclose(more, 1.4 * one)
    assert more.min() > 0


def test_shares_of_a_distortion_lie_between_its_parts() -> None:
    x, q = to_unit(torch.from_numpy(tiny.picture(176, 176)).permute(2, 0, 1)[None]), torch.ones(1)
    x_hat = x + 0.05 * torch.randn_like(x)
    none, half, whole = (Distortion("visual", share)(x_hat, x, q).item() for share in (0.0, 0.5, 1.0))
    assert none == pytest.approx(Distortion("mse")(x_hat, x, q).item())
    assert half == pytest.approx((none + whole) / 2)


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (176, 192)])
def test_the_gradient_of_visual_is_that_of_autograd(size: tuple[int, int]) -> None:
    x = torch.from_numpy(tiny.picture(*size)).permute(2, 0, 1)[None].double() / 255
    x_hat = (x + 0.1 * torch.randn(x.shape, dtype=x.dtype)).clamp(0.001, 0.999).requires_grad_()
    (expected,) = torch.autograd.grad(size[0] * size[1] * visual(x_hat, x).sum(), x_hat)
    with torch.no_grad():
        found = visual_gradient(x_hat, x)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert expected.abs().max() > 0.1


def test_visual_knows_blur_and_ringing_in_light_and_in_colour() -> None:
    stripes = (torch.arange(192) // 4 % 2).float().expand(192, 192) * 0.4 + 0.3
    for channels in ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)):
        x = torch.stack([0.5 + (stripes - 0.5) * share for share in channels])[None]
        softer, harder = (0.5 + (x - 0.5) * factor for factor in (0.5, 1.5))
        assert min(visual(softer, x).item(), visual(harder, x).item()) > 10 * visual(x + 1e-3, x).item()
        assert visual(softer, x).item() > visual(0.5 + (x - 0.5) * 0.9, x).item()


# --- rates ------------------------------------------------------------------------------------------------------------


def test_rates_warm_up_hold_fall_as_one_over_the_root_and_end_at_nothing() -> None:
    rates = Rates(warm=10, hold=100, decay=0.5)
    factor = [rate_factor(rates, n, n, n / 1000) for n in range(1000)]
    assert factor[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert factor[10:100] == [1.0] * 90
    assert factor[399] == pytest.approx(0.5)
    assert factor[750] == pytest.approx(0.5 * (100 / 751) ** 0.5)
    assert rate_factor(rates, 1000, 1000, 1.0) == 0
    assert rate_factor(rates, 5000, 0, 0.0) == pytest.approx(0.1 * (100 / 5001) ** 0.5)


def test_each_part_and_what_is_fresh_have_rates_of_their_own() -> None:
    model = first_values()
    rates = Rates(muon=1.0, adamw=10.0, transforms=2.0, hyperprior=3.0, context=5.0, fresh=0.5)
    new = "raw.s3/cell/in/weight"
    base = {
        p: g["base"]
        for o in optimisers(model, rates, [new], torch.float32)
        for g in o.param_groups
        for p in g["params"]
    }
    for name, p in model.named_parameters():
        wanted = {"transforms": 2.0, "hyperprior": 3.0, "context": 5.0}[part_of(name)] * (0.5 if name == new else 1)
        assert base[p] == wanted * (1 if is_matrix(name, p) else 10), name
    matrices = {n for n, p in model.named_parameters() if is_matrix(n, p)}
    assert {"g_a.stem.weight", "h_a.net.0.weight", new, "raw.s3/features/weight"} <= matrices
    assert not any("dw" in n or "bias" in n or "scale" in n or "shift" in n for n in matrices)


# --- states -----------------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.int64])
STATES = st.builds(
    lambda shapes, step: states.State(
        {"step": step, "grids": {"y": 3}},
        {f"ema/t{i}": (100 * torch.randn(shape)).to(dtype) for i, (shape, dtype) in enumerate(shapes)},
    ),
    st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), DTYPES), max_size=4),
    st.integers(0, 10**9),
)
CODINGS: list[tuple[Callable[..., bytes], Callable[..., states.State]]] = [
    (states.to_bytes, states.from_bytes),
    (states.pack, states.unpack),
]


def same(a: states.State, b: states.State) -> bool:
    return (
        a.facts == b.facts
        and a.tensors.keys() == b.tensors.keys()
        and all(v.dtype == b.tensors[k].dtype and torch.equal(v, b.tensors[k]) for k, v in a.tensors.items())
    )


@pytest.mark.parametrize("coding", CODINGS, ids=["whole", "packed"])
@settings(max_examples=25)
@given(state=STATES)
def test_a_state_survives_its_bytes(coding: Any, state: states.State) -> None:
    encode, decode = coding
    assert same(decode(encode(state)), state)


@pytest.mark.parametrize("coding", CODINGS, ids=["whole", "packed"])
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_state_is_refused_or_the_same(coding: Any, data: st.DataObject) -> None:
    encode, decode = coding
    torch.manual_seed(0)
    state = states.State({"step": 3}, {"ema/a": torch.randn(5, 3), "ema/b": torch.ones(2)})
    whole = bytearray(encode(state))
    at = data.draw(st.integers(len(states.MAGIC), len(whole) - 1))
    if data.draw(st.booleans()):
        whole[at] ^= data.draw(st.integers(1, 255))
    else:
        del whole[at:]
    try:
        found = decode(bytes(whole))
    except IntegrityError:
        return
    assert same(found, state)  # bits that zlib and JSON do not look at


def test_slim_keeps_the_ema_in_half_precision_where_it_fits() -> None:
    state = states.State(
        {"step": 3, "stage": "b", "preset": "tiny", "fresh": ["x"]},
        {"ema/a": torch.tensor([1.0, 2.5]), "ema/b": torch.tensor([1e6]), "model/a": torch.zeros(2)},
    )
    slim = states.slim(state)
    assert {k: v.dtype for k, v in slim.tensors.items()} == {"ema/a": torch.float16, "ema/b": torch.float32}
    assert slim.facts == {"step": 3, "stage": "b", "preset": "tiny"}
    assert states.slim(state, full=True) == state


def test_half_precision_weights_pack_to_seven_eighths() -> None:
    torch.manual_seed(0)
    state = states.State({}, {"ema/w": torch.randn(300, 300).half()})
    assert len(states.pack(state)) < 0.875 * len(states.to_bytes(state))


def test_pieces_join_again_and_a_missing_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "PIECE", 1000)
    state = states.State({"step": 3}, {"ema/w": torch.randn(500)})
    data, out = states.pack(state), tmp_path / "state.ema"
    pieces = states.cut(data, out)
    assert [p.name for p in pieces] == ["state.ema.00", "state.ema.01"]
    assert all(p.stat().st_size <= 1000 for p in pieces)
    assert same(states.read(out), state)
    pieces[0].unlink()
    with pytest.raises(InputError, match="a piece is missing"):
        states.read(out)
    with pytest.raises(InputError, match="not there, nor are its pieces"):
        states.read(tmp_path / "other.ema")


@pytest.mark.parametrize("path", sorted((ROOT / "weights" / "state").glob("*.ema")), ids=lambda p: p.name)
def test_shipped_states_can_be_trained_on_from(path: Path) -> None:
    assert path.stat().st_size < 16 * 2**20
    state = states.read(path)
    match = states.start_from(stages.build(Recipe(run=Run(preset=state.facts["preset"], stage="c"))), state)
    assert len(match.matched) > 0.5 * len(state.under("ema"))


def test_only_tensors_of_the_same_name_and_shape_are_taken_over() -> None:
    model, other = first_values(), HPCM(replace(TINY, hyper=12))
    state = states.State({"grids": {"h_s.1": 9, "unknown": 4}}, {f"ema/{k}": v for k, v in other.state_dict().items()})
    state.tensors["ema/extra"] = torch.zeros(3)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    match = states.start_from(model, state)
    assert "extra" in match.unused
    assert "z_prior.mu" in match.unused
    assert "z_prior.mu" in match.first_values
    assert set(match.matched) | set(match.first_values) == set(kept)
    for name, value in model.state_dict().items():
        assert torch.equal(value, (other.state_dict() if name in match.matched else kept)[name]), name
    assert (model.grids["h_s.1"], "unknown" in model.grids) == (11, False)
    assert [line.split(":")[0] for line in match.lines()] == [
        "taken over",
        "left at their first values",
        "of the file, not used",
    ]


@pytest.mark.parametrize("kind", [HPCM, StandIn, WithoutContext])
def test_load_model_gives_the_model_that_the_state_is_of(kind: type[Estimator], tmp_path: Path) -> None:
    model = kind(TINY)
    facts = {"preset": "tiny", "config": TINY.to_json(), "grids": model.grids | {"h_s.1": 9}, "stage": "c"}
    facts |= {"arithmetic": ARITHMETIC, "step": 3}
    state = states.State(facts, {f"ema/{k}": v for k, v in model.state_dict().items()})
    states.write(tmp_path / "state", states.pack(states.slim(state)))
    found = states.load_model(tmp_path / "state")
    assert (type(found), found.grids["h_s.1"], found.training) == (kind, 9, False)
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=1e-3, atol=1e-6)
    del state.tensors["ema/g_a.stem.bias"]
    states.write(tmp_path / "state", states.to_bytes(state))
    with pytest.raises(UnsupportedError, match="another version of the model"):
        states.load_model(tmp_path / "state")


def test_states_of_arithmetic_3_get_the_grids_on_which_its_clamps_stay() -> None:
    grids = {"h_s.1": 6, "s3.carry": 5, "sigmoid": 8, "exp": 8, "y": 3}
    found = states.grids_of({"grids": grids})
    assert found == {"h_s.1": 8, "s3.carry": 7, **{g: FIXED_GRIDS[g] for g in ("sigmoid", "exp", "y")}}
    # 2047 steps of arithmetic 3 are 8191 of a quarter, to less than a step; tables end where they did.
    assert all(abs(limit_of(g) * 2.0 ** -found[g] - 2047 * 2.0**-e) < 2.0**-e for g, e in grids.items() if g != "y")
    assert states.grids_of({"grids": found, "arithmetic": ARITHMETIC}) == found


def test_h_s_is_convolutions_and_pixel_shuffles_of_torch() -> None:
    def block(c: int) -> nn.Sequential:
        layers = {
            "dw": nn.Conv2d(c, c, 3, padding=1, groups=c),
            "up": nn.Conv2d(c, 2 * c, 1),
            "down": nn.Conv2d(2 * c, c, 1),
        }
        module = nn.Sequential()
        for name, layer in layers.items():
            module.add_module(name, layer)
        return module

    def run(block: Any, x: torch.Tensor) -> torch.Tensor:
        return x + block.down(torch.nn.functional.leaky_relu(block.up(block.dw(x)), 0.1))

    torch.manual_seed(3)
    n, f = TINY.hyper, TINY.features
    theirs = nn.Sequential(
        block(n),
        nn.Sequential(nn.Conv2d(n, 4 * n, 1), nn.PixelShuffle(2)),
        block(n),
        nn.Sequential(nn.Conv2d(n, 4 * f, 1), nn.PixelShuffle(2)),
        block(f),
    )
    table = torch.randn(TINY.qualities, n)
    model = HPCM(TINY).eval()
    values = {"quality/table": table}
    for name, value in theirs.state_dict().items():
        index, layer, tensor = name.split(".")
        v = value.flatten(1) if value.ndim == 4 else value
        if index in ("1", "3"):  # before a shuffle, channels are (C, row, column) there and (row, column, C) here
            values[f"{index}/{tensor}"] = v.reshape(-1, 4, *v.shape[1:]).transpose(0, 1).reshape(v.shape)
        else:
            values[f"{index}/{layer}/{tensor}"] = v
    match = states.start_from(model, states.State({}, {f"ema/raw.h_s/{k}": v for k, v in values.items()}))
    assert match.unused == []
    z = torch.randint(-2, 3, (1, 2, 3, n)).float()
    with torch.no_grad():
        ours = hyper_synthesis(model.ops(), TINY, z, torch.zeros(1)).x
        x = z.permute(0, 3, 1, 2) + table[0][:, None, None]
        for i, layer in enumerate(theirs):
            x = layer(x) if i in (1, 3) else run(layer, x)
    torch.testing.assert_close(ours, x.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_later_stage_starts_from_an_earlier_one(recipe: Recipe, tmp_path: Path) -> None:
    loop.train(recipe.override({"stage": "a", "first_step": 50, "steps": 52}), tmp_path / "a")
    a = states.read(tmp_path / "a")
    trainer = loop.Trainer(recipe.override({"stage": "b", "init_from": str(tmp_path / "a")}), tmp_path / "b")
    trainer.close()
    assert trainer.first == 0
    assert {part_of(n) for n in trainer.fresh} == {"context"}
    own = trainer.model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in a.under("ema").items() if not k.startswith("stand_in."))
    assert {k: trainer.model.grids[k] for k in a.facts["grids"]} == a.facts["grids"]
    loop.train(
        recipe.override({"stage": "c", "init_from": str(tmp_path / "b"), "first_step": 7, "steps": 8}), tmp_path / "c"
    )
    assert [step for step, _ in losses(tmp_path / "c")] == [8]
    notes = records.read_log(tmp_path / "c" / "log.jsonl")[0]["notes"]
    assert "left at their first values: 0 tensors" in notes
    with pytest.raises(InputError, match="a run of stage c, not b"):
        loop.train(recipe.override({"stage": "b"}), tmp_path / "c")


def test_a_run_goes_on_from_a_checkpoint_that_lacks_fields_of_the_config(recipe: Recipe, tmp_path: Path) -> None:
    loop.train(recipe.override({"steps": 1}), tmp_path)
    state = states.read(tmp_path)
    lacking = {k: v for k, v in json.loads(state.facts["config"]).items() if k not in ("flow", "window")}
    states.save_checkpoint(tmp_path, states.State(state.facts | {"config": json.dumps(lacking)}, state.tensors), keep=1)
    loop.train(recipe.override({"steps": 2}), tmp_path)
    assert [step for step, _ in losses(tmp_path)] == [1, 2]
    with pytest.raises(InputError, match="a run of another model"):
        loop.train(recipe.override({"model": '{"cell_rates": [2, 2, 3]}'}), tmp_path)


def test_a_run_ends_after_its_hours(recipe: Recipe, tmp_path: Path) -> None:
    loop.train(recipe.override({"steps": 10**6, "end_hours": 1e-4}), tmp_path)
    assert 0 < states.read(tmp_path).facts["step"] < 1000
    assert states.read(tmp_path).facts["spent"] >= 0.36


def test_steps_that_are_not_finite_are_skipped_and_counted(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = loop.Trainer(recipe, tmp_path)
    trainer.advance()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    monkeypatch.setattr(loop, "to_unit", lambda x: torch.full(x.shape, torch.nan))
    trainer.advance()
    trainer.close()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    lines = records.read_log(tmp_path / "log.jsonl")
    assert [r["skipped"] for r in lines if "skipped" in r] == [0, 1]
    assert all(bool(torch.isfinite(v).all()) for v in trainer.ema.state_dict().values())


def test_sigterm_ends_the_step_saves_and_leaves(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, handler = stages.loss_of, signal.getsignal(signal.SIGTERM)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(stages, "loss_of", interrupted)
    loop.train(recipe.override({"save_every": 1000}), tmp_path)
    assert states.read(tmp_path).facts["step"] == 1
    assert signal.getsignal(signal.SIGTERM) == handler
    monkeypatch.undo()
    loop.train(recipe, tmp_path)
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4]


def test_a_finished_run_stays_as_it_is(recipe: Recipe, photographs: Path, tmp_path: Path) -> None:
    recipe = recipe.override({"validation": str(photographs), "images": 1, "steps": 2})
    loop.train(recipe, tmp_path)
    log = (tmp_path / "log.jsonl").read_text()
    loop.train(recipe, tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == log
    assert [r["step"] for r in records.read_log(tmp_path / "log.jsonl") if "validation" in r] == [0, 2]


def test_the_last_checkpoints_are_kept_and_damaged_ones_passed_over(tmp_path: Path) -> None:
    for step in range(5):
        state = states.State({"step": step}, {"ema/w": torch.full((3,), float(step))})
        states.save_checkpoint(tmp_path, state, keep=3)
    paths = states.checkpoints(tmp_path)
    assert [p.name for p in paths] == [f"step-{n:08d}.safetensors" for n in (4, 3, 2)]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    paths[0].write_bytes(paths[0].read_bytes()[:-2])
    said: list[str] = []
    found = states.newest(tmp_path, said.append)
    assert found is not None
    assert found.facts["step"] == 3
    assert len(said) == 1
    assert "step-00000004.safetensors is damaged" in said[0]
    for path in paths[1:]:
        path.write_bytes(b"")
    with pytest.raises(IntegrityError, match="every checkpoint is damaged"):
        states.newest(tmp_path, said.append)
    assert states.newest(tmp_path / "none") is None


def test_the_log_forgets_cut_lines_and_later_steps(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = records.Log(tmp_path, resumed_at=2)
    log.add({"step": 3, "loss": 1.0})
    log.close()
    assert records.read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]


class _Killed(BaseException):
    """Stands for SIGKILL in this process: nothing after it runs, only the files stay."""


@pytest.fixture(scope="module", params=["a", pytest.param("c", marks=pytest.mark.slow)], ids=lambda s: f"stage {s}")
def uninterrupted(
    cache: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Recipe, Path]:
    recipe = config.load("tiny").override(
        {"cache": str(cache), "crops": "64:2,48:2", "steps": 24, "precision": "float32", "seed": 3, "rescale": "0.8,1"}
        | {"log_every": 2, "save_every": 3, "validate_every": 1000, "calibrate_at": "5,9", "warm": 4, "fake": 0.2}
        | {"stage": request.param, "synthetic": 0.3, "limit": 3.0}
    )
    folder = tmp_path_factory.mktemp("uninterrupted")
    loop.train(recipe, folder)
    return recipe, folder


def assert_same_run(found: Path, wanted: Path) -> None:
    """The same curve, each step once, and the same state at the end, up to float noise."""
    assert [s for s, _ in losses(found)] == [s for s, _ in losses(wanted)]
    assert [v for _, v in losses(found)] == pytest.approx([v for _, v in losses(wanted)], rel=1e-4)
    a, b = states.read(found), states.read(wanted)
    assert {k: v for k, v in a.facts.items() if k != "spent"} == {k: v for k, v in b.facts.items() if k != "spent"}
    torch.testing.assert_close(a.tensors, b.tensors, rtol=1e-3, atol=1e-5)


def test_killed_eight_times_anywhere_a_run_goes_the_same_way(
    uninterrupted: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, wanted = uninterrupted
    rng, real_loss, real_sync, real_add = random.Random(1), stages.loss_of, os.fsync, records.Log.add
    left = 0

    def maybe_die() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise _Killed

    def loss_of(*args: Any, **kwargs: Any) -> Any:  # in a step
        maybe_die()
        return real_loss(*args, **kwargs)

    def fsync(file: int) -> None:  # before a checkpoint has its name
        maybe_die()
        real_sync(file)

    def add(self: records.Log, record: dict[str, Any]) -> None:  # after a line of the log
        real_add(self, record)
        maybe_die()

    monkeypatch.setattr(stages, "loss_of", loss_of)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(records.Log, "add", add)
    kills = 0
    while kills < 8:
        left = rng.randint(3, 24)
        try:
            loop.train(recipe, tmp_path)
        except _Killed:
            kills += 1
        else:
            break
    monkeypatch.undo()
    loop.train(recipe, tmp_path)
    assert kills >= 6  # a run that came to its end before is no longer killed
    assert_same_run(tmp_path, wanted)


def test_two_sigkills_and_damaged_checkpoints_change_nothing(
    uninterrupted: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, wanted = uninterrupted
    path, folder, rng = tmp_path / "recipe.json", tmp_path / "run", random.Random(2)
    path.write_text(recipe.to_json())
    command = [sys.executable, "-m", "hpcmcodec.training", "train", str(path), "--run", str(folder)]
    for killed_at in (rng.randint(4, 10), rng.randint(11, 20)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and not any(s >= killed_at for s, _ in losses(folder)):
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        newest = states.checkpoints(folder)[0]
        newest.write_bytes(newest.read_bytes()[: rng.randint(0, 10000)])
    loop.train(recipe, folder)
    assert f"{newest.name} is damaged" in capsys.readouterr().out
    assert_same_run(folder, wanted)


# --- export -----------------------------------------------------------------------------------------------------------


PICTURES = [(tiny.picture(128, 128, s), Quality(4000 * s)) for s in range(3)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_grids_that_ship_are_as_fine_as_the_activations_allow_and_never_coarser() -> None:
    model = tiny.make_model()
    model.grids = {g: e if g in FIXED_GRIDS else max(0, e - 2) for g, e in model.grids.items()}
    model.grids["s3.cell.in"] = 13  # saturated: the network may have learned with its clamp
    photographs = [(tiny.picture(128, 128, s), Quality(q)) for s, q in ((0, 500), (1, 4000), (2, 6000), (3, 10000))]
    fitted = fitting.fit_grids(model, photographs)
    assert {g: fitted[g] for g in (*FIXED_GRIDS, "s3.cell.in")} == {
        g: model.grids[g] for g in (*FIXED_GRIDS, "s3.cell.in")
    }
    assert sum(fitted[g] > e for g, e in model.grids.items()) > len(fitted) / 2

    full: dict[str, float] = {}  # of the clamp of coding, at the photograph that fills it most
    finer = copy.deepcopy(model)
    finer.grids = fitted
    error = {model: 0.0, finer: 0.0}
    for pixels, quality in photographs:
        x, q = to_unit(torch.from_numpy(pixels).permute(2, 0, 1)[None]), torch.tensor([quality.unit])
        for g, peak in stages.peaks(model, x, q, False, 0.999).items():
            full[g] = max(full.get(g, 0.0), peak * 2.0 ** grids_at(fitted, quality)[g] / CODE_MAX)
        with torch.no_grad():
            y, z = model.analyse(x, q)
            wanted = torch.log2(model.estimate(y, z, q)[1]["y"])
            for of in error:
                found = torch.log2(of.estimate(y, z, q, ops=of.ops(fake_at=q))[1]["y"])
                error[of] += (found - wanted).abs().sum().item()
    assert error[finer] < 0.8 * error[model]
    for g, e in model.grids.items():
        if fitted[g] > e:
            assert full[g] <= 0.7, g
            assert full[g] > 0.35 or fitted[g] == 13, g
        elif g not in FIXED_GRIDS and g in full:
            assert full[g] > 0.35, g


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_export_replaces_nothing_where_its_files_differ_from_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.export(first_values().eval(), "tiny-9", tmp_path, PICTURES)
    before = contents(tmp_path)
    assert len(before) == 4
    wrong = {}
    save = safetensors.numpy.save_file
    for name in ("entropy.s3.head.0.bias", "g_a.out.bias", "g_s.head.bias"):

        def damaged(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str], name: str = name) -> None:
            changed = tensors | {name: tensors[name] + tensors[name].dtype.type(20)}
            config, grids = Config.from_json(metadata["config"]), json.loads(metadata["grids"])
            found = weights.compute_model_id(config, grids, changed)  # which loading would miss otherwise
            save(changed, path, metadata=metadata | {"model_id": found.hex()})

        monkeypatch.setattr(safetensors.numpy, "save_file", damaged)
        with pytest.raises(IntegrityError, match="tiny-9 was not written") as caught:
            export.export(first_values().eval(), "tiny-9", tmp_path, PICTURES)
        wrong[name] = str(caught.value).split("written: ")[1].split()[0]
        assert contents(tmp_path) == before
    assert list(wrong.values()) == ["bits", "latents", "pixels"]
    monkeypatch.undo()
    transposed = transforms._transposed
    monkeypatch.setattr(transforms, "_transposed", lambda conv, g: 1.1 * transposed(conv, g))
    with pytest.raises(IntegrityError, match="tiny-9 was not written: gradients are"):
        export.export(first_values().eval(), "tiny-9", tmp_path, PICTURES)
    assert contents(tmp_path) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_the_gradient_of_a_model_trained_for_looks_is_exported_as_torch_computes_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = Recipe(run=Run(preset="tiny", stage="c"), objective=Objective(distortion="visual", share=0.75, weight=1.4))
    export.export(stages.build(recipe).eval(), "tiny-9", tmp_path, PICTURES)
    w = weights.load_file(tmp_path / "tiny-9.safetensors")
    assert (w.config.metric, w.config.metric_share, w.config.metric_weight) == ("visual", 0.75, 1.4)
    pixels, quality = PICTURES[1]
    y_hat = np.random.default_rng(0).integers(-64, 65, (8, 8, w.config.latent)).astype(np.int32)
    weight = np.ones((128, 128, 1), np.float32)
    found, wanted = (e.gradient(y_hat, pixels, weight, quality, None) for e in (LightEngine(w), TorchEngine(w, "cpu")))
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_export_never_replaces_a_packaged_model_by_one_that_decodes_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.export(first_values().eval(), "tiny-9", tmp_path, PICTURES)
    before = contents(tmp_path)
    monkeypatch.setattr(weights, "packaged", lambda: {"tiny-9": tmp_path / "tiny-9.safetensors"})
    model = first_values().eval()
    with torch.no_grad():
        model.ungain.log_scale.add_(0.1)
    with pytest.raises(IntegrityError, match=r"tiny-9\.safetensors was not written: it is packaged"):
        export.export(model, "tiny-9", tmp_path, PICTURES)
    assert contents(tmp_path) == before
    old_id = weights.load_file(tmp_path / "tiny-9.safetensors").model_id
    assert export.export(first_values().eval(), "tiny-9", tmp_path, PICTURES) == old_id


def test_stage_d_trains_the_encoder_alone(recipe: Recipe, tmp_path: Path) -> None:
    loop.train(recipe.override({"stage": "c", "steps": 1, "save_every": 1}), tmp_path / "c")
    with pytest.raises(InputError, match="init_from"):
        loop.train(recipe.override({"stage": "d"}), tmp_path / "nothing")
    wider = {"stage": "d", "init_from": str(tmp_path / "c"), "model": '{"width": 32}'}
    with pytest.raises(InputError, match=r"has no values for .*, which stage d does not train"):
        loop.train(recipe.override(wider), tmp_path / "nothing")
    start = {"stage": "d", "init_from": str(tmp_path / "c"), "first_step": 0, "calibrate_at": ""}
    loop.train(recipe.override(start), tmp_path / "d")
    before, after = (states.checkpoints(tmp_path / n)[0] for n in "cd")
    old, new = states.read(before).under("ema"), states.read(after).under("model")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {name.split(".")[0] for name in changed} == {"g_a", "h_a", "gain"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_an_encoder_is_exported_beside_a_decoder_whose_files_stay_what_they_are(tmp_path: Path) -> None:
    base, model = tiny.load(), from_weights(tiny.load()).eval()
    with torch.no_grad():
        model.gain.log_scale.add_(0.05)
    assert export.export_encoder(model, base, tmp_path, PICTURES) == base.model_id
    w = weights.load_file(tmp_path / "tiny-0.safetensors")
    assert w.model_id == weights.compute_model_id(w.config, w.grids, w.tensors) == base.model_id
    changed = {name for name in base.tensors if not np.array_equal(w.tensors[name], base.tensors[name])}
    assert "gain.log_scale" in changed
    assert {name.split(".")[0] for name in changed} <= {"g_a", "h_a", "gain"}
    pixels, quality = PICTURES[1]
    y, wanted = (LightEngine(each).analyse(pixels, quality, None)[0] for each in (w, base))
    assert np.abs(y - np.exp(0.05) * wanted).max() <= 0.01 * np.abs(y).max()
    wider = from_weights(base)
    wider.config = replace(base.config, width=32)
    with pytest.raises(IntegrityError, match="a decoder of other sizes"):
        export.export_encoder(wider, base, tmp_path, PICTURES)


@given(st.lists(st.floats(-60000, 60000, width=16), min_size=1))
def test_the_encoder_ships_in_the_nearest_numbers_of_seven_bits(values: list[float]) -> None:
    exact = torch.tensor(values, dtype=torch.float16)
    shipped = export.coarse(exact)
    assert shipped.dtype == np.float16
    assert not (shipped.view(np.uint16) % 2**export.SPARED).any()
    unit = 2.0 ** np.maximum(np.frexp(exact.double().numpy())[1] - 7, -24 + export.SPARED)  # of the last bit kept
    assert (np.abs(shipped.astype(np.float64) - exact.double().numpy()) <= unit / 2).all()
    assert np.array_equal(export.coarse(torch.from_numpy(shipped)), shipped)


def test_export_states_what_exact_arithmetic_costs_and_refuses_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(tiny.picture(64, 48)).save(tmp_path / "a.png")
    said: list[str] = []
    monkeypatch.setattr(report, "QUALITIES", (20.0, 80.0))
    mean_bpp = report.mean_bpp
    # Small pictures of random weights cost less or more by chance: here what they cost is added to.
    monkeypatch.setattr(
        report, "mean_bpp", lambda *a, fake: [v * (1.01 if fake else 1) for v in mean_bpp(*a, fake=fake)]
    )
    model = tiny.make_model()
    assumed = mean_bpp(model, tmp_path, report.QUALITIES, fake=False)
    with pytest.raises(IntegrityError, match=r"tiny-9 was not written: exact arithmetic costs \d\.\d\d% of the bits"):
        export.export(model, "tiny-9", tmp_path / "out", [], tmp_path, said.append)
    assert [line.split()[0] for line in said[0].splitlines()] == ["exact", "q", "q", "mean"]
    assert [line.split()[5] for line in said[0].splitlines()[1:3]] == [f"{v:.4f}:" for v in assumed]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "either --name"),
        (["--name", "a", "--encoder-of", "b"], "either --name"),
        (["--encoder-of", "b", "--crops", "9"], "--crops and --held-out are about"),
        (["--encoder-of", "b", "--held-out", "."], "--crops and --held-out are about"),
    ],
)
def test_export_refuses_options_that_contradict_each_other(options: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["export", "state", "-o", str(tmp_path), "--cache", str(tmp_path), *options])
    assert done.exit_code == 2
    assert said in done.output


# --- commands ---------------------------------------------------------------------------------------------------------


def test_commands_pack_join_and_resume(uninterrupted: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = uninterrupted

    def run(*arguments: Any) -> str:
        result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    run("pack", folder, tmp_path / "half.ema")
    run("pack", "--full", folder, tmp_path / "full.state")
    assert (tmp_path / "half.ema").stat().st_size < 0.25 * (tmp_path / "full.state").stat().st_size
    assert same(states.read(tmp_path / "full.state"), states.read(folder))
    run("join", tmp_path / "full.state", "--run", tmp_path / "resumed")
    loop.train(recipe.override({"steps": 25}), tmp_path / "resumed")
    assert [s for s, _ in losses(tmp_path / "resumed")] == []
    assert states.read(tmp_path / "resumed").facts["step"] == 25
    result = CliRunner().invoke(main, ["join", str(tmp_path / "half.ema"), "--run", str(tmp_path / "other")])
    assert (result.exit_code, "--init-from" in result.output) == (2, True)


def test_worth_compares_exact_arithmetic_with_float_on_grids_of_training_or_of_packaged_weights(tmp_path: Path) -> None:
    Image.fromarray(tiny.picture(64, 48)).save(tmp_path / "a.png")
    model = tiny.make_model()
    model.grids = {g: e if g in FIXED_GRIDS else max(0, e - 6) for g, e in model.grids.items()}
    state = states.State(
        {"preset": "tiny", "stage": "c", "step": 1, "grids": model.grids, "arithmetic": ARITHMETIC},
        {f"ema/{k}": v for k, v in model.state_dict().items()},
    )
    states.save_checkpoint(tmp_path, state, keep=1)
    coarse, assumed = (report.mean_bpp(model, tmp_path, [50.0], fake=fake)[0] for fake in (True, False))
    model.grids = tiny.load().grids
    fine = report.mean_bpp(model, tmp_path, [50.0], fake=True)[0]
    assert len({round(v, 4) for v in (coarse, assumed, fine)}) == 3
    with tiny.installed():
        for exact, options in ((coarse, ()), (fine, ("--grids", tiny.NAME))):
            command = ["worth", tmp_path, tmp_path, "--qualities", 50, *options]
            result = CliRunner().invoke(main, [str(v) for v in command], catch_exceptions=False)
            assert result.output.splitlines()[0] == (
                f"q  50.0  {exact:.4f} bpp against {assumed:.4f}: {100 * (exact / assumed - 1):+.2f}%"
            )
    with tiny.installed():
        result = CliRunner().invoke(main, ["worth", str(tmp_path), str(tmp_path), "--grids", tiny.NAME])
    for lines in (result.output.splitlines()[:12], result.output.splitlines()[12:]):  # bits, and the synthesis' dB
        assert [line.split()[1] for line in lines[:-1]] == [f"{10.0 * i}" for i in range(11)]
    command = ["worth", str(tmp_path), str(tmp_path), "--grids", tiny.NAME, "--against", str(tmp_path)]
    assert CliRunner().invoke(main, command).exit_code == 2


def test_judge_compares_states_by_what_they_decode_to(tmp_path: Path, photographs: Path) -> None:
    model = tiny.make_model()
    for name, noise in (("a", 0.0), ("b", 0.0), ("c", 0.05)):
        values = {
            k: v + noise * torch.randn_like(v) if k.startswith("g_s") else v for k, v in model.state_dict().items()
        }
        facts = {"preset": "tiny", "stage": "c", "step": 1, "grids": model.grids, "arithmetic": ARITHMETIC}
        state = states.State(facts, {f"ema/{k}": v for k, v in values.items()})
        (tmp_path / name).mkdir()
        states.save_checkpoint(tmp_path / name, state, keep=1)
    paths = [str(tmp_path / name) for name in "abc"]
    options = ["--pictures", str(photographs), "--images", "2", "--qualities", "20,80", "--metrics", "psnr"]
    said = CliRunner().invoke(main, ["judge", *paths, *options], catch_exceptions=False).output.splitlines()
    first, same, worse = said[:3], said[3:7], said[7:]
    assert (first[0], same[0], worse[0]) == tuple(paths)
    assert first[1:] == same[1:3]
    assert same[3] == "  psnr: averaged curves +0.00%, images +0.00% (+0.00 to +0.00)"
    assert all(float(b.split()[-1]) < float(a.split()[-1]) for a, b in zip(first[1:], worse[1:3], strict=True))
    curves = judge.scores(tiny.make_model(), photographs, (20.0, 80.0), ("psnr",), images=2)["psnr"]
    average = judge.averaged(curves)
    assert average.bpp == [pytest.approx(sum(c.bpp[i] for c in curves) / 2) for i in (0, 1)]
    assert first[1] == f"  q  20.0  {average.bpp[0]:.4f} bpp  psnr {average.score[0]:.2f}"
    for wrong in (f"--pictures={tmp_path / 'none'}", "--metrics=vmaf", "--qualities=50,nan", "--qualities="):
        assert CliRunner().invoke(main, ["judge", paths[0], *options, wrong]).exit_code == 2


def test_speed_has_a_row_for_each_stage_kind_of_crop_and_type() -> None:
    lines = list(table(config.load("tiny").override({"crops": "64:2"}), rounds=1))
    rows = [line.split("|")[1:-1] for line in lines if line.startswith(("| a", "| b", "| c"))]
    assert [[c.strip() for c in r[:3]] for r in rows] == [
        [stage, "64:2", kind] for stage in "abc" for kind in ("bfloat16", "float32")
    ]
    for row in rows:
        assert sum(int(cell.strip(" %")) for cell in row[5:] if cell.strip()) == pytest.approx(100, abs=4)
    assert [row[8].strip() == "" for row in rows] == [False, False, True, True, False, False]  # no g_s in stage b
    two = list(table(config.load("tiny").override({"crops": "64:1,48:2"}), 1, of="a"))
    assert [line.split("|")[2].strip() for line in two[-4:]] == ["64:1", "64:1", "48:2", "48:2"]


def test_plot_draws_joint_and_rate_only_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"step": n, "hours": n / 100, "loss": 2 / n} for n in range(1, 30)]
    lines += [{"step": n, "hours": n / 100, "mean": 3 / n, "validation": [[0.1, 1 / n, 30.0, 2.0]]} for n in (9, 29)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    with pytest.raises(InputError, match=r"not \.pdf"):
        report.plot(tmp_path, theme="light", image_format="pdf")
    with pytest.raises(InputError, match="no log"):
        report.plot(tmp_path / "none", theme="light", image_format="png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install .hpcmcodec\[train\]"):
        report.plot(tmp_path, theme="light", image_format="svg")
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    joint = report.plot(tmp_path, theme="light", image_format="svg")
    assert report.plot(tmp_path, theme="light", image_format="svg") == joint
    for record in lines[-2:]:
        record["validation"] = [row[:2] for row in record["validation"]]  # type: ignore[attr-defined]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    assert report.plot(tmp_path, theme="dark", image_format="png").startswith(b"\x89PNG")


# --- two minutes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_two_minutes_of_training_give_a_model_whose_files_are_as_large_as_estimated(
    photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, folder = tmp_path / "held", tmp_path / "photographs"
    for name, path in photos.items():
        out = (held if name == "astronaut" else folder) / path.name
        out.parent.mkdir(exist_ok=True)
        out.write_bytes(path.read_bytes())
    build_cache(tmp_path / "cache", [folder])
    common = {"cache": str(tmp_path / "cache"), "crops": "128:4", "validation": str(held), "steps": 10**6}
    means: dict[str, list[float]] = {}
    for stage, seconds, start in (("a", 20, ""), ("b", 50, "a"), ("c", 50, "b")):
        options = {"stage": stage, "end_hours": seconds / 3600, "init_from": str(tmp_path / start) if start else ""}
        loop.train(config.load("tiny").override(common | options), tmp_path / stage)
        means[stage] = [r["mean"] for r in records.read_log(tmp_path / stage / "log.jsonl") if "validation" in r]
    untrained = stages.validate(first_values().eval(), validation_images(held), False, joint=True)
    assert means["c"][-1] < 0.8 * sum(row[-1] for row in untrained) / len(untrained)
    assert means["b"][-1] < 0.8 * means["b"][0]  # bits alone, on transforms that stay as they are
    assert means["a"][-1] < means["a"][0]
    assert means["c"][-1] < means["c"][0]

    command = ["export", tmp_path / "c", "--name", "minutes-0", "-o", tmp_path / "w", "--cache", tmp_path / "cache"]
    result = CliRunner().invoke(main, [str(a) for a in [*command, "--crops", 24]], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    path = tmp_path / "w" / "minutes-0.safetensors"
    shipped = weights.packaged() | {"minutes-0": path}
    monkeypatch.setattr(weights, "packaged", lambda: shipped)
    w = weights.load_file(path)
    model = from_weights(w).eval()
    pixels = np.asarray(Image.open(held / "astronaut.png").convert("RGB"))
    pixels = np.concatenate([pixels, pixels[::-1]])  # large enough for the header not to count
    pixels = np.concatenate([pixels, pixels[:, ::-1]], 1)
    x = to_unit(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    for quality in (10, 50, 90):
        data = codec.encode(pixels, quality, model="minutes-0")
        assert 8 * len(data) == pytest.approx(sum(v.sum() for v in codec.bits_map(data).values()), rel=0.01)
        q = torch.tensor([quality / 100])
        with torch.no_grad():
            y, z = model.analyse(x, q)
            assumed = bits(model.estimate(y, z, q, ops=model.ops(fake_at=q))[1]).item()
        assert 8 * len(data) < 1.01 * assumed  # fitted tables beat the logistic that training assumes
