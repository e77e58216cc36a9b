"""The model: nothing in it is dead, training sees what coding does, and a model id names what decoding needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcmcodec import weights
from hpcmcodec.engines import strips
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.engines.torch import TorchEngine
from hpcmcodec.errors import IntegrityError, UnsupportedError
from hpcmcodec.exact import constants
from hpcmcodec.exact.constants import MEAN_SHIFT
from hpcmcodec.exact.layers import Linear
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.ops import Act, Composed
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.exact.schedule import GROUPS, SCALES, STEPS, Step, decimate, fold, grid
from hpcmcodec.model import context, entropy
from hpcmcodec.model.coder import RATE_WEIGHT, LatentCoder
from hpcmcodec.model.config import KINDS, LITE, TINY, Config
from hpcmcodec.model.context import walk
from hpcmcodec.model.declaration import declare
from hpcmcodec.model.distortion import Distortion
from hpcmcodec.model.float_ops import FakeOps, FloatOps
from hpcmcodec.model.hpcm import HPCM
from hpcmcodec.pretrained import from_weights, load_model
from hpcmcodec.quality import Quality
from hpcmcodec.rans import bits
from hpcmcodec.training.stages import loss_of

ENTROPY = tiny.load().under("entropy")
LAYERS, _ = declare(TINY)
QUALITIES = st.builds(Quality, st.integers(0, 10000))


@pytest.fixture(autouse=True, scope="module")
def _tiny_model_is_packaged() -> Iterator[None]:
    with tiny.installed():
        yield


@lru_cache(maxsize=1)
def shipped() -> HPCM:
    return from_weights(tiny.load()).eval()


@lru_cache(maxsize=4)
def engine(kind: str, name: str) -> Any:
    w = weights.load_file(weights.packaged()[name])
    return LightEngine(w) if kind == "light" else TorchEngine(w, "cpu")


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


# --- nothing is dead --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fake", [False, True], ids=["float", "fake quantisation"])
def test_after_one_training_step_every_parameter_has_a_gradient(fake: bool) -> None:
    torch.manual_seed(1)
    model = HPCM(TINY).train()
    x = torch.cat([to_tensor(tiny.picture(128, 128, s)) for s in range(4)])
    loss, bpp = loss_of(model, x, torch.linspace(0, 1, 4), False, joint=True, fake=fake)
    loss.backward()  # type: ignore[no-untyped-call]
    assert bpp.shape == (4,)
    # Gradients that are zero by algebra come out as rounding noise, here below 1e-9; the smallest real one is 4e-8.
    dead = [name for name, p in model.named_parameters() if p.grad is None or not float(p.grad.norm()) > 3e-9]
    assert dead == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def steps_of(ops: Any, y: np.ndarray, z: np.ndarray, quality: list[Quality]) -> dict[str, list[np.ndarray]]:
    """Run the exact walk on y (B, h, w, M) and z; every step's means, levels, and y_hat where it codes."""
    log: dict[str, list[np.ndarray]] = {"means": [], "levels": [], "y_hat": []}

    def code(step: Step, means: Any, levels: Any, mask: np.ndarray | None) -> Any:
        m, s = ops.xp.numpy(means), ops.xp.numpy(levels)
        symbols = np.rint(folded(y, step) - m.astype(np.float32) * np.float32(2.0**-MEAN_SHIFT)).astype(np.int32)
        y_hat = (symbols << np.int32(MEAN_SHIFT)) + m
        y_hat = y_hat if mask is None else np.where(mask, y_hat, 0)
        for name, value in (("means", m), ("levels", s), ("y_hat", y_hat)):
            log[name].append(value.copy())
        return ops.xp.array(y_hat)

    walk(ops, TINY, ops.xp.array(z.astype(np.int32)), quality, y.shape[1], y.shape[2], code)
    return log


def folded(y: np.ndarray, step: Step) -> np.ndarray:
    """What a step codes of y (B, h, w, M), folded."""
    b, h, w, m = y.shape
    on_grid = decimate(y, step.scale, np.zeros((b, *grid(step.scale, h, w), m), y.dtype))
    return np.asarray(fold(on_grid, step, np.zeros((*on_grid.shape[:3], m // GROUPS[step.scale]), y.dtype)))


def known_latents(h: int, w: int, seeds: tuple[int, ...] = (3,)) -> tuple[np.ndarray, np.ndarray]:
    pairs = [tiny.latents(h, w, s) for s in seeds]
    return np.stack([y for y, _ in pairs]), np.stack([z for _, z in pairs])


@lru_cache(maxsize=1)
def baseline() -> dict[str, list[np.ndarray]]:
    return steps_of(tiny.exact_ops(), *known_latents(7, 10), [Quality(4321)])


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "weight": lambda t: -t,
    "step": lambda t: t * np.float32(1.5),
    "bias": lambda t: t + np.float32(2),
    "gamma": lambda t: t * np.float32(1.5),
    "beta": lambda t: t + np.float32(1),
    "scale": lambda t: t * np.float32(1.5),
    "decay": lambda t: np.where(t > 8, np.float32(0), np.float32(16)).astype(np.float32),
    "boost": lambda t: t + np.float32(6),
    "table": lambda t: (t + 100).astype(t.dtype),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_changing_any_tensor_of_the_entropy_path_changes_latents_or_tables(layer: str) -> None:
    names = [n for n in ENTROPY if n.rpartition(".")[0] == layer and not n.endswith(".widths")]
    assert names
    for name in names:
        changed = ENTROPY | {name: CHANGES[name.rpartition(".")[2]](ENTROPY[name])}
        assert changed[name].dtype == ENTROPY[name].dtype
        found = steps_of(ExactOps(NUMPY, changed, tiny.load().grids), *known_latents(7, 10), [Quality(4321)])
        different = [
            not np.array_equal(a, b)
            for what in ("y_hat", "levels")
            for a, b in zip(found[what], baseline()[what], strict=True)
        ]
        assert any(different), name


def test_every_tensor_of_the_entropy_path_belongs_to_a_layer() -> None:
    assert {n.rpartition(".")[0] for n in ENTROPY} == set(LAYERS)


def test_quality_changes_the_parameters_of_the_latents() -> None:
    other = steps_of(tiny.exact_ops(), *known_latents(7, 10), [Quality(9000)])
    assert any(not np.array_equal(a, b) for a, b in zip(other["levels"], baseline()["levels"], strict=True))


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    y, z = known_latents(6, 9, (1, 2, 3))
    qualities = [Quality(0), Quality(5000), Quality(10000)]
    together = steps_of(tiny.exact_ops(), y, z, qualities)
    for i, quality in enumerate(qualities):
        alone = steps_of(tiny.exact_ops(), y[i : i + 1], z[i : i + 1], [quality])
        for what in alone:
            for a, b in zip(alone[what], together[what], strict=True):
                np.testing.assert_array_equal(a[0], b[i])


# --- training sees what coding does -----------------------------------------------------------------------------------


class Recorder(Composed):
    """Passes operations on and keeps the codes of every activation that they return."""

    def __init__(self, ops: Any, grids: dict[str, int]) -> None:
        self.ops, self.grids = ops, grids
        self.log: list[tuple[str, str, np.ndarray]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.ops, name)
        if not callable(method) or name.startswith("_"):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if isinstance(result, Act):
                x = result.x.detach().numpy() if isinstance(result.x, torch.Tensor) else result.x
                codes = x.astype(np.float64)
                scale = 1.0 if isinstance(self.ops, ExactOps) else 2.0 ** self.grids[result.grid]
                self.log.append((name, result.grid, codes * scale))
            return result

        return call


def fake_ops(model: HPCM) -> FakeOps:
    ops = model.ops(fake_at=torch.ones(1))
    assert isinstance(ops, FakeOps)
    return ops


def test_fake_quantisation_has_the_codes_means_levels_and_y_hat_of_the_exact_path() -> None:
    torch.manual_seed(2)
    model = tiny.make_model()
    y, z = known_latents(5, 7, (4, 5))
    exact = Recorder(ExactOps(NUMPY, model.integers(), model.grids), model.grids)
    wanted = steps_of(exact, y, z, [Quality(2500), Quality(7500)])
    fake = Recorder(fake_ops(model), model.grids)
    found: dict[str, list[np.ndarray]] = {"means": [], "levels": [], "y_hat": []}

    def code(step: Step, means: torch.Tensor, levels: torch.Tensor, mask: np.ndarray | None) -> torch.Tensor:
        y_hat = (torch.from_numpy(folded(y, step)) - means).round() + means
        y_hat = y_hat if mask is None else torch.where(torch.from_numpy(mask), y_hat, 0)
        for name, value, scale in (("means", means, 16), ("levels", levels, 1), ("y_hat", y_hat, 16)):
            found[name].append(value.detach().numpy().astype(np.float64) * scale)
        return y_hat

    walk(fake, TINY, torch.from_numpy(z), torch.tensor([0.25, 0.75]), 5, 7, code)
    assert [(name, where) for name, where, _ in fake.log] == [(name, where) for name, where, _ in exact.log]
    for (name, where, a), (_, _, b) in zip(fake.log, exact.log, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"{name} on {where}")
    for what in found:
        for a, b in zip(found[what], wanted[what], strict=True):
            np.testing.assert_array_equal(a, b)


def rounded(residuals: np.ndarray, levels: np.ndarray, rate_weight: float) -> np.ndarray:
    return np.rint(residuals).astype(np.int32)


@pytest.mark.parametrize("quality", [Quality.of(q) for q in (40, 60, 80)], ids=str)  # each on grids of its own
def test_estimate_under_fake_quantisation_has_the_latents_of_the_real_coder(quality: Quality) -> None:
    torch.manual_seed(5)
    model = HPCM(TINY).eval()  # untrained, but its levels fit: few residuals need an escape, none is clamped
    with torch.no_grad():
        q = torch.tensor([quality.unit])
        y, z = model.analyse(to_tensor(tiny.picture(112, 80)), q)
        y_hat, likelihoods = model.estimate(y, z, q, ops=model.ops(fake_at=q))
    coder = model.coder()
    coder.skipped = np.zeros_like(coder.skipped)  # the rule that some symbols are zero is the coder's own,
    coder.quantise = rounded  # and so is the choice of symbols by what they cost
    coded, wanted = coder.encode(y[0].numpy(), z[0].numpy(), quality)
    np.testing.assert_array_equal(np.rint(y_hat[0].numpy() * 16), wanted)
    # The model's own likelihoods and the integer tables made from them cost about the same.
    costs = costs_of(coder, coded, quality, *y.shape[1:3])
    for what, scales in (("z", ["z"]), ("y", list(SCALES))):
        estimated = float(-torch.log2(likelihoods[what]).sum())
        assert sum(costs[s] for s in scales) == pytest.approx(estimated, rel=0.05)


def costs_of(coder: LatentCoder, coded: Mapping[str, Any], quality: Quality, h: int, w: int) -> dict[str, float]:
    """What the tables say that each stream costs, in bits."""
    costs: dict[str, float] = {}

    def spent(scale: str, bits: np.ndarray) -> None:
        costs[scale] = costs.get(scale, 0) + float(bits.sum())

    coder.decode({s: c.data for s, c in coded.items()}, None, quality, h, w, spent=spent)
    return costs


def test_fake_quantisation_has_the_float_gradient() -> None:
    model = tiny.make_model()
    x = to_tensor(tiny.picture(64, 64))
    gradients = []
    for fake in (False, True):
        model.zero_grad()
        loss, _ = loss_of(model, x, torch.tensor([0.5]), False, joint=False, fake=fake)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad.flatten() for p in model.raw.values() if p.grad is not None]))
    assert float(torch.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.9


@given(QUALITIES, QUALITIES)
def test_grids_get_finer_as_quality_falls_where_activations_follow_the_latents(one: Quality, other: Quality) -> None:
    own = tiny.load().grids
    low, high = (entropy.grids_at(own, q) for q in sorted((one, other)))
    assert low.keys() == own.keys()
    assert all(0 <= low[g] - high[g] <= 2 for g in own)
    assert all(low[g] == own[g] for g in own if not g.endswith((".carry", ".context")) and ".prior." not in g)
    assert entropy.grids_at(own, Quality(10000)) == own


def test_float_and_exact_paths_agree_within_the_grids() -> None:
    """Operation by operation, on the exact path's codes: only weights and results are rounded."""
    model = tiny.make_model()
    y, z = known_latents(6, 6)
    pair = Paired(ExactOps(NUMPY, model.integers(), model.grids), FloatOps(model.derived(), model.grids))
    with torch.no_grad():
        steps_of(pair, y, z, [Quality(5000)])
    assert {name for name, _, _ in pair.errors} == set(Paired.METHODS)
    assert [entry for entry in pair.errors if entry[2] > 1] == []


class Paired(Composed):
    """Exact operations; the float ones run beside them on the same values.

    `errors` has (operation, grid, the largest difference as a share of what rounding explains).
    """

    METHODS = ("linear", "depthwise", "norm", "lrelu", "relu_squared", "gate", "blend", "add", "wkv", "pool")

    def __init__(self, exact: ExactOps, real: FloatOps) -> None:
        self.exact, self.real = exact, real
        self.errors: list[tuple[str, str, float]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.exact, name)
        if name not in self.METHODS:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            real = getattr(self.real, name)(*(self.value(a) for a in args), **kwargs)
            difference = np.abs(real.x.numpy() * 2.0 ** self.exact.grids[result.grid] - result.x)
            explained = 0.5 + 0.01  # the result's rounding, and float32's
            if name in ("linear", "depthwise"):
                inputs = args[0] if isinstance(args[0], list) else [args[0]]
                explained += self.of_weights(args[1].name, inputs, result, 9 if name == "depthwise" else 1)
            self.errors.append((name, result.grid, float(difference.max() / explained)))
            return result

        return call

    def of_weights(self, layer: str, inputs: list[Act], result: Act, taps: int) -> float:
        """Half a step of every weight, times the inputs that it meets."""
        total, grids = 0.0, self.exact.grids
        for step, a in zip(self.exact.tensors[f"{layer}.step"], inputs, strict=True):
            x = np.abs(a.x).max() * taps if taps > 1 else np.abs(a.x).sum(-1).max()
            total += float(step.max()) / 2 * float(x) * 2.0 ** (grids[result.grid] - grids[a.grid])
        return total

    def value(self, a: Any) -> Any:
        if isinstance(a, Act):
            return Act(torch.from_numpy(a.x * np.float32(2.0 ** -self.exact.grids[a.grid])), a.grid)
        return [self.value(i) for i in a] if isinstance(a, list) else a


# --- coding latents ---------------------------------------------------------------------------------------------------


def coder() -> LatentCoder:
    coder = engine("light", tiny.NAME).coder
    assert isinstance(coder, LatentCoder)
    return coder


def decoded(
    coded: dict[str, Any], quality: Quality, h: int, w: int, scales: tuple[str, ...] = ("z", *SCALES)
) -> np.ndarray:
    streams = {s: coded[s].data for s in scales}
    return np.asarray(coder().decode(streams, lambda s, crc: crc == coded[s].latents_crc, quality, h, w))


@settings(max_examples=25)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(0, 1000), QUALITIES)
def test_decoder_gets_the_encoders_y_hat(h: int, w: int, seed: int, quality: Quality) -> None:
    coded, y_hat = coder().encode(*tiny.latents(h, w, seed), quality)
    assert y_hat.dtype == np.int32
    np.testing.assert_array_equal(decoded(coded, quality, h, w), y_hat)


def test_skipping_symbols_is_what_leaves_errors_beyond_half_a_step() -> None:
    y, z = tiny.latents(16, 16)
    y = np.clip(y, -20, 20)  # within the tables around means near zero
    _, y_hat = coder().encode(y, z, Quality(5000))
    error = np.abs(y - y_hat / 16)
    ours = LatentCoder(TINY, coder().ops, tiny.load().under("tables"))
    ours.skipped = np.zeros_like(ours.skipped)
    _, y_hat = ours.encode(y, z, Quality(5000))
    assert (np.abs(y - y_hat / 16) <= 0.5).mean() > (error <= 0.5).mean() > 0


@pytest.mark.parametrize("last", SCALES)
def test_coarser_scales_alone_give_their_own_latents_and_zero_residuals_beyond(last: str) -> None:
    y, z = tiny.latents(9, 11)
    coded, y_hat = coder().encode(y, z, Quality(5000))
    scales = SCALES[: SCALES.index(last) + 1]
    preview = decoded(coded, Quality(5000), 9, 11, ("z", *scales))
    known = np.zeros((1, 9, 11, TINY.latent), bool)
    part = grid(last, 9, 11)
    for step in STEPS:
        if step.scale in scales:
            numbers = np.arange(1, known.size + 1).reshape(known.shape)
            known |= np.isin(numbers, folded(numbers, step))
    assert part[0] <= 9
    np.testing.assert_array_equal(preview[known[0]], y_hat[known[0]])
    if last != "s3":
        assert not np.array_equal(preview, y_hat)


@pytest.mark.parametrize("scale", ["z", *SCALES])
def test_latents_that_miss_their_crc_are_refused(scale: str) -> None:
    coded, _ = coder().encode(*tiny.latents(5, 5), Quality(5000))
    wrong = coded | {scale: coded[scale]._replace(latents_crc=coded[scale].latents_crc ^ 1)}
    with pytest.raises(IntegrityError, match=f"latents of {scale} differ"):
        decoded(wrong, Quality(5000), 5, 5)


def test_golden_latents_reach_skipped_levels_escapes_and_clamped_symbols() -> None:
    y, z = tiny.latents(9, 14)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    watched = LatentCoder(TINY, coder().ops, tiny.load().under("tables"))
    watched.observe = lambda symbols, levels: seen.append((symbols.copy(), levels.copy()))  # type: ignore[method-assign]
    watched.encode(y, z, Quality(3000))
    symbols, levels = (np.concatenate(v) for v in zip(*seen, strict=True))
    skipped = watched.skipped[levels]
    assert 0.05 < skipped.mean() < 0.8
    tables = watched.y_tables
    escapes = (symbols < tables.low[levels]) | (symbols > tables.high[levels])
    assert (escapes & ~skipped)[-9 * 14 * 12 :].sum() > 64 + 9 * 14 * 12 // 64  # more than s3's stream may hold
    assert len(np.unique(levels)) > 40


# --- as a torch module ------------------------------------------------------------------------------------------------


def test_compress_and_decompress_are_inverses_as_in_compressai() -> None:
    model, q = shipped(), torch.tensor([0.2, 0.85])
    x = torch.cat([to_tensor(tiny.picture(96, 64, s)) for s in (1, 2)])
    out = model.compress(x, q)
    assert set(out) == {"strings", "shape"}
    assert out["shape"] == (4, 6)
    assert [len(s) for s in out["strings"]] == [2] * 4
    assert all(isinstance(s, bytes) for per_scale in out["strings"] for s in per_scale)
    x_hat = model.decompress(out["strings"], out["shape"], q)["x_hat"]
    assert x_hat.shape == x.shape
    assert 0 <= float(x_hat.min()) <= float(x_hat.max()) <= 1
    with torch.no_grad():
        y, z = model.analyse(x, q)
        for i, quality in enumerate((Quality(2000), Quality(8500))):
            coded, y_hat = coder().encode(y[i].numpy(), z[i].numpy(), quality)
            assert [s[i] for s in out["strings"]] == [coded[s].data for s in ("z", *SCALES)]
            expected = model.synthesise(torch.from_numpy(y_hat)[None] / 16, q[i : i + 1]).clamp(0, 1)
            torch.testing.assert_close(x_hat[i : i + 1], expected)


def test_forward_gives_x_hat_and_likelihoods() -> None:
    x = to_tensor(tiny.picture(96, 64))
    with torch.no_grad():
        out = shipped()(x, torch.tensor([0.5]))
    assert set(out) == {"x_hat", "likelihoods"}
    assert out["x_hat"].shape == x.shape
    places = sum(np.prod(grid(step.scale, 4, 6)) * 16 // GROUPS[step.scale] for step in STEPS)  # some lie outside y
    assert {k: v.shape for k, v in out["likelihoods"].items()} == {"y": (1, places), "z": (1, 1 * 2 * 8)}
    for v in out["likelihoods"].values():
        assert 0 < float(v.min()) <= float(v.max()) <= 1


def test_untrained_model_codes_too() -> None:
    torch.manual_seed(3)
    model, q = HPCM(TINY).eval(), torch.tensor([0.5])
    x = to_tensor(tiny.picture(64, 48))
    out = model.compress(x, q)
    assert model.decompress(out["strings"], out["shape"], q)["x_hat"].shape == x.shape


def test_load_model_gives_a_packaged_model_in_eval_mode() -> None:
    model = load_model(tiny.NAME)
    assert not model.training
    assert model.config == TINY
    with pytest.raises(UnsupportedError, match="no model 'huge-9'"):
        load_model("huge-9")


def test_loaded_model_derives_what_its_integers_stand_for() -> None:
    integers, stored = shipped().integers(), ENTROPY
    assert set(integers) == set(stored)
    for name in stored:
        if name.endswith((".weight", ".step")):
            continue  # quantised anew from rounded values, the steps are a little smaller
        np.testing.assert_allclose(integers[name], stored[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for name in (n.removesuffix(".weight") for n in stored if n.endswith(".weight")):
        if stored[f"{name}.step"].shape[0] == 1:
            value, again = (t[f"{name}.weight"] * t[f"{name}.step"][0][:, None] for t in (stored, integers))
            assert np.abs(value - again).max() <= stored[f"{name}.step"].max()


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_export_writes_weights_and_graphs_that_code_as_the_model_does(tmp_path: Path) -> None:
    model_id = tiny.write_model(tmp_path)
    files = {f"{tiny.NAME}.{suffix}" for suffix in ("safetensors", "analysis.onnx", "gradient.onnx")}
    assert {p.name for p in tmp_path.iterdir()} == files | {"SHA256SUMS"}
    w = weights.load_file(tmp_path / f"{tiny.NAME}.safetensors")
    assert (w.name, w.model_id, w.config, set(w.sums)) == (tiny.NAME, model_id, TINY, files)
    dtypes = {name.split(".")[0]: t.dtype for name, t in w.tensors.items() if not name.endswith("log_scale")}
    assert dtypes["g_a"] == dtypes["h_a"] == np.float16
    rows = {t.dtype for k, t in w.tensors.items() if k.startswith("g_s.") and k.endswith(".weight")}
    assert rows == {np.dtype(np.int16)}
    light, other = LightEngine(w), TorchEngine(w, "cpu")
    y, z = light.analyse(tiny.picture(64, 48), Quality(5000), None)
    for found, wanted in zip((y, z), other.analyse(tiny.picture(64, 48), Quality(5000), None), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    coded, y_hat = light.coder.encode(y, z, Quality(5000))
    assert {s: c.data for s, c in other.coder.encode(y, z, Quality(5000))[0].items()} == {
        s: c.data for s, c in coded.items()
    }
    assert light.synthesise(y_hat, Quality(5000), None).shape == (48, 64, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter
def test_exported_weights_estimate_the_bits_of_z_as_the_trained_model_does(tmp_path: Path) -> None:
    from hpcmcodec.training.export import export

    trained, z = HPCM(TINY).eval(), torch.linspace(-4, 4, TINY.hyper * 4).view(1, 2, 2, TINY.hyper)
    wanted = trained.z_prior.likelihood(z)
    export(trained, tiny.NAME, tmp_path, [])
    loaded = from_weights(weights.load_file(tmp_path / f"{tiny.NAME}.safetensors"))
    torch.testing.assert_close(loaded.z_prior.likelihood(z), wanted)


def test_fitted_tables_code_what_they_were_fitted_to_in_fewer_bits() -> None:
    from hpcmcodec.training.fitting import fit_tables

    torch.manual_seed(6)
    model = HPCM(TINY).eval()
    photographs = [(tiny.picture(256, 256, s), Quality(q)) for s, q in ((0, 2000), (1, 8000))]
    bits: dict[str, list[float]] = {"z": [], "y": []}
    for tables in (model.tables(), fit_tables(model, model.integers(), photographs)):
        ours = LatentCoder(TINY, ExactOps(NUMPY, model.integers(), model.grids), tables)
        ours.skipped = np.zeros_like(ours.skipped)
        total = dict.fromkeys(bits, 0.0)
        for pixels, quality in photographs:
            with torch.no_grad():
                y, z = model.analyse(to_tensor(pixels), torch.tensor([quality.unit]))
            coded, _ = ours.encode(y[0].numpy(), z[0].numpy(), quality)
            costs = costs_of(ours, coded, quality, *y.shape[1:3])
            total["z"] += costs["z"]
            total["y"] += sum(costs[s] for s in SCALES)
        for what, spent in total.items():
            bits[what].append(spent)
    assert bits["y"][1] < 0.99 * bits["y"][0]
    assert bits["z"][1] < 0.9 * bits["z"][0]  # two bands of qualities that are far apart


# --- model id ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*weights.packaged(), tiny.NAME])
def test_stored_model_id_is_the_one_computed_anew(name: str) -> None:
    w = weights.load_file(weights.packaged()[name])
    assert weights.compute_model_id(w.config, w.grids, w.tensors) == w.model_id
    assert weights.model_name(w.model_id) == name


def changed_value(t: np.ndarray) -> np.ndarray:
    out = t.copy()
    out.flat[-1] += -1 if out.flat[-1] > 0 else 1  # an integer may be the largest of its type
    return out


def test_model_id_depends_on_every_tensor_that_decoding_uses_and_on_no_other() -> None:
    w = tiny.load()
    for name, t in w.tensors.items():
        same = weights.compute_model_id(w.config, w.grids, w.tensors | {name: changed_value(t)}) == w.model_id
        assert same == name.startswith(("g_a.", "h_a.", "gain.", "z_prior.")), name


def test_model_id_depends_on_names_shapes_and_dtypes_too() -> None:
    w = tiny.load()
    name = "entropy.s3.cell.in.bias"
    others = [
        {k if k != name else f"{name}2": v for k, v in w.tensors.items()},
        w.tensors | {name: w.tensors[name][None]},
        w.tensors | {name: w.tensors[name].view(np.int32)},
        {k: v for k, v in w.tensors.items() if k != name},
    ]
    ids = [weights.compute_model_id(w.config, w.grids, t) for t in others]
    assert len({*ids, w.model_id}) == 5


def test_model_id_depends_on_grids_arithmetic_and_decoding_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    w = tiny.load()

    def model_id(config: Config = w.config, grids: dict[str, int] = w.grids) -> bytes:
        return weights.compute_model_id(config, grids, w.tensors)

    assert model_id(grids=w.grids | {"s3.cell.in": 9}) != w.model_id
    assert model_id(replace(w.config, memory_temperature=0.2)) != w.model_id
    assert model_id(replace(w.config, name="other", analysis_blocks=(3, 3), hyper_analysis_width=64)) == w.model_id
    monkeypatch.setattr(constants, "ARITHMETIC", constants.ARITHMETIC + 1)
    assert model_id() != w.model_id


# --- config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LITE, TINY], ids=lambda c: c.name)
def test_config_survives_json(config: Config) -> None:
    assert Config.from_json(config.to_json()) == config


def test_config_of_another_version_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="wavelets"):
        Config.from_json('{"wavelets": 3}')
    for field, value in (("cells", ("rwkv", "window", "rwkv")), ("memory", "x"), ("prior", "x"), ("fusion", "x")):
        assert field in {f.name for f in fields(Config)}
        with pytest.raises(UnsupportedError, match=field):
            Config(**{field: value})  # type: ignore[arg-type]


def test_the_walk_takes_the_cell_that_the_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(context.CELLS) == set(KINDS["cells"])

    def other(ops: Any, config: Config, seen: Act, carry: Act, scale: str) -> Act:
        return ops.linear([seen, carry], Linear(f"{scale}.cell.other", carry.x.shape[-1]), carry.grid)

    monkeypatch.setitem(context.CELLS, "other", other)
    monkeypatch.setitem(KINDS, "cells", (*KINDS["cells"], "other"))
    layers, _ = declare(replace(TINY, cells=("rwkv", "other", "rwkv")))
    named = {scale: {name for name in layers if name.startswith(f"{scale}.cell")} for scale in SCALES}
    assert named["s2"] == {"s2.cell.other"}
    assert named["s1"].isdisjoint({"s1.cell.other"})
    assert len(named["s1"]) == len(named["s3"]) > 1


@pytest.mark.parametrize(
    "change",
    [
        {"memory": "none"},
        {"memory": "full", "memory_references": (2, 3, 4), "memory_topk": (1, 2, 2), "memory_handover": True},
        {"memory": "linear", "memory_references": 8},
        {"fusion": "linear"},
        {"fusion_blocks": 2, "shift": 5, "residual": "difference"},
        {"prior_blocks": ((2, 1), (3, 2))},
        {"prior": "rwkv"},
        {"cells": ("attention", "rwkv", "attention"), "attention_heads": 4},
    ],
    ids=str,
)
def test_other_members_of_the_family_code_too(change: dict[str, Any]) -> None:
    torch.manual_seed(4)
    model, q = HPCM(replace(TINY, **change)).eval(), torch.tensor([0.5])
    x = to_tensor(tiny.picture(80, 48))
    out = model.compress(x, q)
    assert model.decompress(out["strings"], out["shape"], q)["x_hat"].shape == x.shape


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*weights.packaged(), tiny.NAME])
def test_stored_tables_are_one_a_level_symmetric_and_one_a_channel_band_and_context_of_z(name: str) -> None:
    w = weights.load_file(weights.packaged()[name])
    t = w.under("tables")
    assert len(t["y.sizes"]) == constants.LEVELS
    contexts = 1 + t["z.thresholds"].shape[1] if "z.thresholds" in t else 1
    assert len(t["z.sizes"]) == entropy.Z_BANDS * w.config.hyper * contexts
    for cdf, size, low in zip(t["y.cdf"], t["y.sizes"], t["y.offsets"], strict=True):
        counts = np.diff(cdf[:size])
        assert low == -(len(counts) - 2) // 2
        assert np.abs(counts[:-1] - counts[-2::-1]).max() <= 1  # what is left over after rounding goes to one side
    zero = -t["z.offsets"]
    assert ((zero >= 0) & (zero < t["z.sizes"] - 2)).all()


@pytest.mark.parametrize("level", [3, 14, 26, 40, 63])
@pytest.mark.parametrize("magnitude", [1, 2])
def test_symbols_are_reconstructed_at_the_centre_of_mass_of_their_bin(level: int, magnitude: int) -> None:
    x = np.linspace(magnitude - 0.5, magnitude + 0.5, 200_001)
    e = np.exp(-x / entropy.scale_of_level(np.array(level)))
    density = e / (1 + e) ** 2
    centre = (x * density).sum() / density.sum()
    assert entropy.centroids()[level, magnitude] == round(16 * (magnitude - centre))


def test_zeros_are_reconstructed_at_the_mean_and_others_on_their_way_to_it() -> None:
    table = entropy.centroids()
    assert (table[:, 0] == 0).all()
    assert ((table >= 0) & (table <= 8)).all()
    assert (np.diff(table, axis=0) <= 0).all()  # narrow distributions lean more
    _, y_hat = coder().encode(*tiny.latents(8, 8), Quality(5000))
    other = copy(coder())
    other.centroids = np.zeros_like(other.centroids)
    assert not np.array_equal(other.encode(*tiny.latents(8, 8), Quality(5000))[1], y_hat)


@given(st.lists(st.tuples(st.floats(-40, 40), st.integers(0, constants.LEVELS - 1)), min_size=1, max_size=50))
@example([(-7.5, 19)])  # where a table gives -8 a count more than 8: both are priced as 8
def test_encoder_takes_the_nearest_symbol_or_the_one_below_by_error_and_bits(drawn: list[tuple[float, int]]) -> None:
    ours = coder()
    residuals, levels = np.array([r for r, _ in drawn], np.float32), np.array([s for _, s in drawn])
    symbols = ours.quantise(residuals, levels)
    nearest = np.rint(residuals).astype(np.int32)
    below = nearest - np.sign(nearest)
    assert ((symbols == nearest) | (symbols == below)).all()

    def price(symbols: np.ndarray) -> np.ndarray:
        n = np.abs(symbols)
        place = n - ours.centroids[levels, np.minimum(n, 2)] / 16
        return (np.abs(residuals) - place) ** 2 + RATE_WEIGHT * bits(ours.y_tables, n, levels)

    common = np.abs(nearest) < 16
    assert (price(symbols) <= np.minimum(price(nearest), price(below)) + 1e-4)[common].all()


@given(st.lists(st.tuples(st.floats(-40, 40), st.floats(0, constants.LEVELS - 1)), min_size=1, max_size=50))
def test_training_takes_the_symbols_that_an_encoder_takes(drawn: list[tuple[float, float]]) -> None:
    model = HPCM(TINY)
    ours = model.coder()  # its tables are the logistic's, as training assumes
    residuals, levels = (np.array(v, np.float32) for v in zip(*drawn, strict=True))
    with torch.no_grad():
        symbols = model.symbols(torch.from_numpy(residuals), torch.from_numpy(levels))
        found = model.reconstruct(torch.from_numpy(residuals), symbols, torch.from_numpy(levels)).numpy()
    rows = np.rint(levels).astype(np.int32)
    coded = ours.quantise(residuals, rows)
    np.testing.assert_array_equal(symbols.numpy(), coded)
    nearer = np.sign(coded) * ours.centroids[rows, np.minimum(np.abs(coded), 2)]
    np.testing.assert_allclose(found, coded - nearer / 16, atol=1e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_residuals_that_are_no_numbers_reach_the_loss(wrong: float) -> None:
    model, levels = HPCM(TINY), torch.tensor([20.0, float("nan")])
    residuals = torch.tensor([wrong, 1.0])
    found = model.reconstruct(residuals, model.symbols(residuals, levels), levels)
    assert torch.isfinite(found).tolist() == [False, True]


def test_symbols_are_skipped_where_their_table_gives_zero_more_than_998_thousandths() -> None:
    def table(zero: int) -> tuple[np.ndarray, int]:
        rest = (65536 - zero) // 3
        return np.array([0, rest, rest + zero, 65536 - rest, 65536], np.int32), -1

    limit = int(0.998 * 65536)
    t = entropy.pack_tables([table(65530), table(limit), table(limit + 1), table(30000)])
    assert entropy.skipped_levels(t["cdf"], t["sizes"], t["offsets"]).tolist() == [True, False, True, False]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300).filter(lambda p: sum(p) > 0), st.floats(0, 0.1))
def test_integer_cdf_has_the_sum_2_16_no_zero_and_is_within_a_count_of_its_share(
    pmf: list[float], escape: float
) -> None:
    cdf = entropy.integer_cdf(np.array(pmf), escape)
    counts = np.diff(cdf)
    assert (cdf[0], cdf[-1]) == (0, 65536)
    assert counts.min() >= 1
    p = np.array([*pmf, escape])
    assert np.abs(counts - 1 - p / p.sum() * (65536 - len(p))).max() <= 1 + 1e-6


# --- transforms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [tiny.NAME, weights.DEFAULT_MODEL])
@pytest.mark.parametrize("quality", [Quality(0), Quality(4321), Quality(10000)], ids=str)
def test_the_engines_give_the_same_latents_up_to_rounding_and_the_same_pixels(name: str, quality: Quality) -> None:
    pixels = tiny.picture(144, 80)
    y, z = engine("light", name).analyse(pixels, quality, None)
    y_torch, z_torch = engine("torch", name).analyse(pixels, quality, None)
    # Both compute in float32 from the same float16 weights: only the order of sums differs.
    for a, b in ((y, y_torch), (z, z_torch)):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()
    y_hat = np.rint(y * 16).astype(np.int32)
    found = engine("light", name).synthesise(y_hat, quality, None)
    wanted = engine("torch", name).synthesise(y_hat, quality, None)
    assert found.dtype == wanted.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", [tiny.NAME, weights.DEFAULT_MODEL])
@pytest.mark.parametrize("quality", [Quality(0), Quality(4321), Quality(10000)], ids=str)
def test_onnxruntime_gives_torchs_gradient(name: str, quality: Quality) -> None:
    pixels = tiny.picture(144, 80)
    y_hat = np.rint(engine("light", name).analyse(pixels, quality, None)[0] * 16).astype(np.int32)
    weight = np.random.RandomState(0).rand(80, 144, 1).astype(np.float32)
    found, wanted = (engine(k, name).gradient(y_hat, pixels, weight, quality, None) for k in ("light", "torch"))
    assert found.dtype == wanted.dtype == np.float32
    assert found.shape == wanted.shape == y_hat.shape
    # What eyes see has kinks: where a rounding lands on the other side of one, a gradient differs by more.
    bound = 1e-4 if name == tiny.NAME else 1e-2
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()
    assert np.mean(np.abs(found - wanted) <= 1e-4 * np.abs(wanted).max()) > 0.95
    assert np.linalg.norm(found - wanted) <= 5e-3 * np.linalg.norm(wanted)


VISUAL = replace(TINY, metric="visual", metric_share=1.0, metric_weight=1.4)


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0])
def test_the_gradient_of_squared_error_is_that_of_autograd(quality: float) -> None:
    torch.manual_seed(3)
    model, q = HPCM(TINY).double().eval(), torch.tensor([quality], dtype=torch.float64)
    x, weight = torch.rand(1, 3, 48, 80).double(), torch.rand(1, 1, 48, 80).double()
    ungain, scale8 = (s.factors(q).detach() for s in (model.ungain, model.g_s.s8))
    y_hat = (torch.randn(1, 3, 5, TINY.latent).double() / ungain.permute(0, 2, 3, 1)).requires_grad_()
    x_hat = model.g_s(y_hat.permute(0, 3, 1, 2) * ungain, scale8)
    clamped = x_hat + (x_hat.clamp(0, 1) - x_hat).detach()
    assert 0.02 < float((clamped != x_hat).double().mean()) < 0.98  # some values leave [0, 1], some do not
    (weight / 2 * (clamped - x).square()).sum().backward()
    assert y_hat.grad is not None
    with torch.no_grad():
        found = model.error_gradient(y_hat, x, weight, q)
    torch.testing.assert_close(found, y_hat.grad)


def test_the_gradient_of_what_eyes_see_is_that_of_autograd() -> None:
    torch.manual_seed(3)
    model, q = HPCM(VISUAL).double().eval(), torch.tensor([0.5], dtype=torch.float64)
    x = torch.rand(1, 3, 48, 80).double()
    y_hat = (4 * torch.randn(1, 3, 5, TINY.latent).double()).requires_grad_()
    x_hat = model.synthesise(y_hat, q).double()
    clamped = x_hat + (x_hat.clamp(0, 1) - x_hat).detach()
    # With half a square of an error for each sample, lambda * 255^2 * MSE of all pixels is their sum at this lambda.
    lambdas = torch.tensor([1.5 / 255**2 * 48 * 80], dtype=torch.float64)
    Distortion("visual", 1.0, 1.4)(clamped, x, lambdas).sum().backward()
    assert y_hat.grad is not None
    with torch.no_grad():
        found = model.error_gradient(y_hat, x, torch.ones(1, 1, 48, 80).double(), q)
    torch.testing.assert_close(found, y_hat.grad, rtol=1e-4, atol=1e-4 * y_hat.grad.abs().max().item())
    with torch.no_grad():
        plain = HPCM(TINY).double().eval()
        plain.load_state_dict(model.state_dict())
        other = plain.error_gradient(y_hat, x, torch.full((1, 1, 48, 80), 1.4).double(), q)
    assert torch.nn.functional.cosine_similarity(found.flatten(), other.flatten(), 0) < 0.95


@pytest.mark.parametrize("kind", ["ms-ssim", "mixed"])
def test_effort_follows_squared_error_where_no_other_gradient_is_written_out(kind: str) -> None:
    torch.manual_seed(3)
    x_hat, x = torch.rand(2, 1, 3, 32, 32)
    assert torch.equal(Distortion(kind, 0.5, 2.0).slope(x_hat, x), 2 * (x_hat - x))


@torch.no_grad()
def test_strips_leave_the_gradient_of_what_eyes_see_nearly_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    model, q = HPCM(VISUAL).eval(), torch.tensor([0.5])
    pixels = tiny.picture(48, 16 * 60)
    y_hat = np.rint(8 * model.analyse(to_tensor(pixels), q)[0][0].numpy()).astype(np.int32)
    weight = np.ones((16 * 60, 48, 1), np.float32)

    def run(y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(y_hat)[None] / 16
        return model.error_gradient(y, to_tensor(pixels), torch.from_numpy(weight).permute(2, 0, 1)[None], q)[0].numpy()

    whole = strips.gradient_strips(run, y_hat, pixels, weight, VISUAL, None)
    monkeypatch.setattr(strips, "STRIP_LATENTS", 60)  # 20 rows of three
    found = strips.gradient_strips(run, y_hat, pixels, weight, VISUAL, None)
    # The halo of so small a model is four latents; the windows reach ten, and hardly weigh anything beyond the halo.
    assert 0 < np.abs(found - whole).max() < 0.05 * np.abs(whole).max()


@torch.no_grad()
def test_transforms_under_autocast_keep_the_precision_of_high_qualities() -> None:
    model, x, q = load_model(weights.DEFAULT_MODEL), to_tensor(tiny.picture(160, 96)), torch.ones(1)
    y = model.analyse(x, q)[0]
    x_hat = model.synthesise(y.round(), q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_rough, x_hat_rough = model.analyse(x, q)[0], model.synthesise(y.round(), q)
    # In quantisation steps and levels; plain bfloat16 is wrong by 0.04 and 0.4, coding at this quality by 3.
    assert (y_rough - y).square().mean().sqrt() < 0.015
    assert 255 * (x_hat_rough - x_hat).square().mean().sqrt() < 0.15


@pytest.mark.parametrize("kind", ["light", "torch"])
@pytest.mark.parametrize("name", [tiny.NAME, weights.DEFAULT_MODEL])
def test_strips_leave_no_seam(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = tiny.picture(48, 16 * 27)
    whole = engine(kind, name).analyse(pixels, Quality(5000), None)
    y_hat = np.rint(whole[0] * 16).astype(np.int32)
    whole_pixels = engine(kind, name).synthesise(y_hat, Quality(5000), None)
    monkeypatch.setattr(strips, "STRIP_LATENTS", 12)  # four rows of three
    ticks: list[float] = []
    found = engine(kind, name).analyse(pixels, Quality(5000), ticks.append)
    assert len(ticks) == 7
    for a, b in zip(found, whole, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()  # oneDNN sums in another order for another height
    np.testing.assert_array_equal(engine(kind, name).synthesise(y_hat, Quality(5000), None), whole_pixels)
    weight = np.ones((16 * 27, 48, 1), np.float32)
    gradient = engine(kind, name).gradient(y_hat, pixels, weight, Quality(5000), None)
    monkeypatch.undo()
    whole_gradient = engine(kind, name).gradient(y_hat, pixels, weight, Quality(5000), None)
    # A value at the kink of a LeakyReLU may take the slope of its other side, which moves the rows that it reaches. A
    # halo that is too narrow moves the rows at all edges of strips, 24 of these 27 where it is 1.
    moved = (np.abs(gradient - whole_gradient) > 1e-4 * np.abs(whole_gradient).max()).any((1, 2))
    assert moved.sum() <= len(moved) // 3
