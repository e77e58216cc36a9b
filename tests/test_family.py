"""The members with the paper's flow: sizes, schedule, attention, distribution, and real files."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from hpcmcodec import codec, weights  # noqa: E402
from hpcmcodec.engines import light  # noqa: E402
from hpcmcodec.errors import HpcmError, InputError, UnsupportedError  # noqa: E402
from hpcmcodec.evaluation.counts import count  # noqa: E402
from hpcmcodec.evaluation.family import family  # noqa: E402
from hpcmcodec.exact.attention import LAST, OUTSIDE, attend_exact, factor_of, weight_table  # noqa: E402
from hpcmcodec.exact.constants import FIXED_GRIDS, SCALE_LEVELS  # noqa: E402
from hpcmcodec.exact.elementary import level_scales, scale_levels  # noqa: E402
from hpcmcodec.exact.layers import Linear, OmniShift, Residual, Wkv  # noqa: E402
from hpcmcodec.exact.namespaces import NUMPY, TorchNamespace  # noqa: E402
from hpcmcodec.exact.ops import Act  # noqa: E402
from hpcmcodec.exact.reference import ExactOps  # noqa: E402
from hpcmcodec.exact.schedule import SCALES, decimate, grid, refine  # noqa: E402
from hpcmcodec.model import parameters, rwkv  # noqa: E402
from hpcmcodec.model.config import LITE, MEMBERS, PRESETS, TINY, Config  # noqa: E402
from hpcmcodec.model.declaration import Declaration, declare  # noqa: E402
from hpcmcodec.model.entropy import grids_at  # noqa: E402
from hpcmcodec.model.family import blocks, gaussian  # noqa: E402
from hpcmcodec.model.family.flow import HpcmFlow, published_places  # noqa: E402
from hpcmcodec.model.family.model import model_of  # noqa: E402
from hpcmcodec.model.float_ops import FloatOps  # noqa: E402
from hpcmcodec.model.hpcm import bits  # noqa: E402
from hpcmcodec.quality import Quality  # noqa: E402
from hpcmcodec.training.grow import grow  # noqa: E402
from tests import members  # noqa: E402
from tests.tiny import picture  # noqa: E402

QUICK = ("small-baseline", "small-phase1", "small-phase3")
SMALL = [name for name in MEMBERS if name.startswith("small-")]
FULL = [name for name in MEMBERS if name not in SMALL]


def quick(names: list[str]) -> list[Any]:
    """The names as parameters, all but three of them slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def mini(name: str, **changes: Any) -> Config:
    """The member of `small` in a size that takes no time."""
    sizes: dict[str, Any] = {"latent": 16, "hyper": 8, "attention_heads": 4, "transform_widths": (8, 8, 16)}
    return replace(MEMBERS[f"small-{name}"], name=f"mini-{name}", **sizes | {"deep_blocks": 2} | changes)


# --- sizes ------------------------------------------------------------------------------------------------------------

# parameters live and in the published counting, kMAC/px published and live: of HPCM's public classes
SIZES = {
    "base-baseline": (68_505_299, 68_505_299, 918.57, 911.85),
    "base-phi": (63_582_419, 63_582_419, 872.80, 872.80),
    "large": (89_718_803, 89_718_803, 1261.32, 1254.60),
    "base-phase1": (73_469_147, 73_501_147, 1032.60, 1006.88),
    "base-phase2": (80_939_243, 81_035_243, 1045.26, 1019.54),
    "base-phase3": (91_688_699, 91_848_699, 1071.42, 1045.69),
    "base-phase4": (158_543_163, 159_087_163, 2127.38, 2101.65),
    # what is multiplied once for a pooled vector counts once, and no reference is made that nothing reads
    "base-light": (69_940_499, None, None, 911.85 + 6.5),
    "base-full": (77_792_819, None, None, 911.85 + 60.8),
    "base-handover": (78_613_299, None, None, 911.85 + 65.3),
    "base-linear": (70_167_379, None, None, 911.85 + 35.4),
    "small-baseline": (6_509_363, None, None, 90.4),
    "small-phase1": (6_966_331, None, None, 98.7),
    "small-phase2": (7_659_083, None, None, 99.8),
    "small-phase3": (8_647_515, None, None, 102.2),
    "small-phase4": (14_769_307, None, None, 198.3),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_member_has_the_parameters_and_multiplications_of_its_published_class(name: str) -> None:
    found, (live, published, published_kmac, kmac) = count(MEMBERS[name]), SIZES[name]
    assert found.parameters == live
    assert found.kmac == pytest.approx(kmac, abs=0.1)
    if published is not None:
        assert found.published_parameters == published
        assert found.published_kmac == pytest.approx(published_kmac, abs=0.1)


def test_the_table_lists_the_members_of_a_size() -> None:
    shown = CliRunner().invoke(family, ["table", "--size", "small"])
    assert shown.exit_code == 0, shown.output
    assert [line.split()[0] for line in shown.output.splitlines()[1:]] == SMALL
    assert "6,509,363" in shown.output


def trained(layers: Any) -> int:
    return sum(v.numel() for layer in layers for v in parameters.first_values(layer).values())


@pytest.mark.parametrize("width", [16, 192, 640])
@pytest.mark.parametrize("rate", [2, 3, 4])
def test_blocks_have_as_many_parameters_as_their_formulas_say(width: int, rate: int) -> None:
    config, n, h = MEMBERS["base-phase3"], width, rate
    x, kind = Act(np.zeros((1, 8, 8, width), np.float32), "x"), rwkv.kind_of(config)

    def of(f: Any) -> int:
        d = Declaration()
        f(d)
        return trained(d.layers.values())

    assert of(lambda d: blocks.pconv_block(d, x, "b")) == 9 * (n // 4) ** 2 + n // 4 + 8 * n * n + 5 * n
    assert of(lambda d: blocks.depthwise_block(d, x, "b")) == 4 * n * n + 13 * n
    assert of(lambda d: blocks.attention_cell(d, config, x, x, "s3")) == 4 * n * n + 4 * n
    assert of(lambda d: rwkv.block(d, x, "b", h, kind)) == (5 + 2 * h) * n * n + 78 * n + 8
    assert of(lambda d: rwkv.context_cell(d, x, x, "b", h, kind)) == (8 + 2 * h) * n * n + 80 * n + 8
    assert of(lambda d: rwkv.fusion_net(d, x, "b", h, kind)) == (6 + 2 * h) * n * n + 79 * n + 8
    for residual in ("lerp", "difference"):
        other = kind._replace(residual=residual)
        assert of(lambda d, k=other: rwkv.block(d, x, "b", h, k)) == (5 + 2 * h) * n * n + 78 * n + 8


def test_every_member_has_a_preset_and_lite_keeps_its_own_names() -> None:
    assert {"base-baseline", "base-phi", "large", "base-phase4", "small-phase3"} <= set(MEMBERS)
    assert not any("/fusion/block1" in name or name.endswith("w5") for name in declare(LITE)[0])
    # The other memories of lite, by their formulas at its width.
    d, none = LITE.width, trained(declare(replace(LITE, memory="none"))[0].values())
    more = {name: trained(declare(config)[0].values()) - none for name, config in PRESETS.items() if "lite-" in name}
    assert more["lite-linear"] == 4 * (d * d + d) + 33 * d
    assert more["lite-handover"] - more["lite-full"] == 2 * (d * d + d)
    assert more["lite-none"] == 0
    assert trained(declare(LITE)[0].values()) - none == 3 * d * d + 2 * (d * d // 4 + d // 4) + 2 * d


# --- config -----------------------------------------------------------------------------------------------------------


def test_fields_that_a_model_does_not_use_are_not_in_its_id() -> None:
    assert replace(TINY, window=(4, 8, 8), fixed_lambda=0.5, deep_blocks=4).decoding_json() == TINY.decoding_json()
    assert "window" not in TINY.decoding_json()
    assert replace(TINY, attention_heads=8).decoding_json() != TINY.decoding_json()
    baseline = MEMBERS["small-baseline"]
    assert replace(baseline, memory_references=7, width=64).decoding_json() == baseline.decoding_json()
    assert replace(baseline, fixed_lambda=0.0483).decoding_json() == baseline.decoding_json()
    assert Config.from_json(baseline.to_json()) == baseline


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (TINY, {"qualities": 0}),
        (TINY, {"cells": ("none", "rwkv", "rwkv")}),
        (MEMBERS["small-baseline"], {"qualities": 8}),
        (MEMBERS["small-baseline"], {"flow": "other"}),
    ],
)
def test_what_is_not_built_is_refused(base: Config, change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"not built|cannot be"):
        replace(base, **change)


@pytest.mark.parametrize("change", [{"attention_heads": 7}, {"shift": 4}])
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"heads|OmniShift"):
        replace(MEMBERS["small-baseline"], **change)


def test_a_member_of_one_lambda_has_one_set_of_grids() -> None:
    for name in SMALL:
        grids = dict.fromkeys(declare(MEMBERS[name])[1], 7)
        assert grids_at(grids, Quality(0)) == grids


# --- the flow ---------------------------------------------------------------------------------------------------------


def test_carries_move_to_the_finer_scale_as_latents_do() -> None:
    """h_s's parameters, decimated and refined again, stand where they stood: no group is misplaced."""
    h, w, m = 13, 18, 16
    y = np.random.RandomState(0).standard_normal((1, h, w, m))
    at = {s: decimate(y, s, np.zeros((1, *grid(s, h, w), m))) for s in SCALES}
    for coarser, finer in (("s1", "s2"), ("s2", "s3")):
        assert np.array_equal(refine(at[coarser], coarser, at[finer].copy()), at[finer])


MISPLACED = (0, 0, 1 / 3, 1 / 3, 5 / 6, 5 / 6, 11 / 12, 11 / 12)


@pytest.mark.parametrize("kind", ["right", "published"])
def test_published_members_misplace_parameters_at_s2_as_the_authors_code_does_and_no_others(kind: str) -> None:
    """Checkpoints were trained with misplaced parameters: to put them right would break imports."""
    h, w, m = 16, 16, 16
    config = mini("phi", hyper_s2=kind)
    flow = HpcmFlow.__new__(HpcmFlow)
    ops = ExactOps(NUMPY, {}, FIXED_GRIDS)
    places = np.broadcast_to(np.arange(h * w, dtype=np.float32).reshape(1, h, w, 1), (1, h, w, 2 * m)).copy()
    flow.ops, flow.config, flow.size = ops, config, (h, w)
    flow.whole = flow.hyper = Act(places, "carried")
    found = flow.misplaced().x if kind == "published" else flow.first("s2").x
    right = flow.first("s2").x
    new = refine(np.full((1, h // 4, w // 4, m), False), "s1", np.full((1, h // 2, w // 2, m), True))
    assert new.mean() == 3 / 4
    for half in (slice(0, m), slice(m, 2 * m)):
        for g in range(8):
            at = slice(g * m // 8, (g + 1) * m // 8)
            wrong = (found[..., half][..., at] != right[..., half][..., at])[new[..., at]]
            assert wrong.mean() == pytest.approx(MISPLACED[g] if kind == "published" else 0, abs=5e-4)


def test_published_places_are_taken_on_a_plane_of_multiples_of_four_and_then_cut() -> None:
    config = mini("phi", hyper_s2="published")
    model = members.member(config)
    assert len(published_places(5, 8, 12)[0]) == len(published_places(5, 8, 12)[1]) == 8 * 12 * 3 // 16
    with torch.no_grad():
        ragged = model(torch.rand(1, 3, 16 * 7, 16 * 5), torch.zeros(1))["likelihoods"]["y"]
    assert torch.isfinite(ragged).all()
    assert replace(config, hyper_s2="right").decoding_json() == mini("phi").decoding_json() != config.decoding_json()


def test_only_coding_steps_with_a_successor_run_a_cell() -> None:
    class Counting(Declaration):
        attended = 0

        def attend(self, *arguments: Any) -> Act:
            self.attended += 1
            return super().attend(*arguments)

    from hpcmcodec.model.context import walk

    ops, config = Counting(), mini("baseline")
    walk(ops, config, np.zeros((1, 2, 2, 8), np.int32), [Quality(0)], 8, 8, lambda step, means, levels, mask: means)
    assert ops.attended == 1 + 3 + 5


@pytest.mark.parametrize(
    "name",
    ["baseline", "phase4", *(pytest.param(n, marks=pytest.mark.slow) for n in ("phi", "phase1", "phase3", "light"))],
)
def test_every_parameter_has_a_finite_gradient(name: str) -> None:
    model = members.member(mini(name)).train()
    out = model(torch.rand(1, 3, 128, 64), torch.zeros(1))
    (bits(out["likelihoods"]).sum() + out["x_hat"].square().sum()).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert torch.isfinite(value.grad).all(), key
        assert (value.grad != 0).any(), key


def test_a_batch_of_two_is_two_batches_of_one() -> None:
    model, x, q = members.member(mini("phase1")), torch.rand(2, 3, 64, 64), torch.zeros(2)
    with torch.no_grad():
        both = model(x, q)
        each = [model(x[i : i + 1], q[:1]) for i in range(2)]
    for key in ("y", "z"):
        alone = torch.cat([e["likelihoods"][key] for e in each])
        assert torch.allclose(both["likelihoods"][key], alone, atol=1e-5)


def test_blocks_computed_anew_in_the_backward_pass_give_the_same_gradients() -> None:
    found = []
    for recompute in (False, True):
        model = members.member(mini("phase1"))
        model.recompute = recompute
        torch.manual_seed(1)
        bits(model(torch.rand(1, 3, 64, 64), torch.zeros(1))["likelihoods"]).sum().backward()
        found.append({k: v.grad for k, v in model.named_parameters() if v.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(a, found[1][k], rtol=1e-4, atol=1e-5) for k, a in found[0].items())


# --- residuals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lerp", "difference"])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_a_residual_with_a_norm_is_what_its_name_says(kind: str, gain: float) -> None:
    layer, generator = Residual("r", kind).over(8), torch.Generator().manual_seed(0)
    raw = {f"r/{k}": v for k, v in {"gamma": torch.ones(8), "beta": torch.zeros(8)}.items()}
    derived = parameters.derived(layer, raw | {"r/gain": torch.full((8,), gain)})
    x, fx = (torch.randn(1, 3, 5, 8, generator=generator) for _ in range(2))
    ops = FloatOps(derived, {"x": 9, "f": 9})
    found = rwkv.residual(ops, Act(x, "x"), Act(fx, "f"), layer).x
    norm = torch.nn.functional.layer_norm
    expected = x if gain == 0 else norm(fx, (8,)) + (0 if kind == "lerp" else x - norm(x, (8,)))
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["lerp", "difference"])
def test_members_with_other_residuals_estimate_as_their_integers_do(kind: str) -> None:
    model = members.member(mini("phase3", residual=kind))
    assert any(isinstance(v, Residual) for v in model.layers.values())
    x, q = torch.rand(1, 3, 64, 64), torch.zeros(1)
    with torch.no_grad():
        assumed, exact = (float(bits(model(x, q, fake=fake)["likelihoods"])) for fake in (False, True))
    assert exact == pytest.approx(assumed, rel=0.05)


def test_a_fusion_net_of_no_blocks_is_the_1x1_alone() -> None:
    none, linear = mini("phase3", fusion_blocks=0), mini("phase2")
    assert set(declare(none)[0]) == set(declare(linear)[0])


@pytest.mark.parametrize("k", [3, 5])
def test_an_omnishift_is_the_sum_of_its_kernels(k: int) -> None:
    layer, c = OmniShift("o", k).over(6), 6
    torch.manual_seed(0)
    raw = {name: torch.randn_like(v) for name, v in parameters.first_values(layer).items()}
    assert raw["o/mix"].shape == (2 + k // 2,)
    weight = parameters.derived(layer, raw)["o.weight"].view(c, 1, k, k)
    x = torch.randn(1, c, 9, 7)
    conv = torch.nn.functional.conv2d
    expected = raw["o/mix"][0] * x + raw["o/mix"][1] * raw["o/w1"].view(1, c, 1, 1) * x
    for i, side in enumerate(range(3, k + 1, 2), 2):
        kernel = raw[f"o/w{side}"].view(c, 1, side, side)
        expected = expected + raw["o/mix"][i] * conv(x, kernel, padding=side // 2, groups=c)
    assert torch.allclose(conv(x, weight, padding=k // 2, groups=c), expected, atol=1e-5)


# --- growth -----------------------------------------------------------------------------------------------------------

# of the public classes' 29 tensors of an RWKV cell, 25 of a block, two are copies that were merged from others
GROWTH = [("baseline", "phase1", 4, 23, 4), ("phase1", "phase2", 8, 46, 8)]
GROWTH += [("phase2", "phase3", 0, 46, 0), ("phase3", "phase4", 0, 184, 48)]
CARRIED = {"phase1": 66_864_339, "phase2": 70_187_227, "phase3": 80_939_243, "phase4": 62_097_659}


@pytest.mark.parametrize(("parent", "child", "renamed", "fresh", "left_over"), GROWTH)
def test_a_phase_grows_from_the_one_before_it(
    parent: str, child: str, renamed: int, fresh: int, left_over: int
) -> None:
    with torch.device("meta"):
        old, new = (model_of(MEMBERS[f"base-{name}"]) for name in (parent, child))
    grown = grow(new, old.state_dict())
    found = len(grown.renamed), len(grown.fresh), len(grown.left_over), grown.elements
    assert found == (renamed, fresh, left_over, CARRIED[child])
    assert len(grown.lines()) == 4


def test_grown_blocks_begin_by_adding_nothing() -> None:
    """Phase 3 from phase 2 codes what phase 2 did: its fusion nets begin as their 1x1 alone."""
    old, new, x = members.member(mini("phase2")), model_of(mini("phase3")).eval(), torch.rand(1, 3, 64, 64)
    assert {name.split(".")[0] for name in grow(new, old.state_dict()).fresh} == {"raw"}
    with torch.no_grad():
        before, after = (float(bits(m(x, torch.zeros(1))["likelihoods"])) for m in (old, new))
    assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("wrong", ["module.", ""])
def test_growth_from_a_state_that_is_no_parent_s_is_refused(wrong: str) -> None:
    state = members.member(mini("phase2")).state_dict()
    state = {f"{wrong}{k}": v for k, v in state.items()} if wrong else {"other": torch.zeros(3)}
    with pytest.raises(InputError, match="no smaller member's"):
        grow(model_of(mini("phase3")), state)


# --- attention --------------------------------------------------------------------------------------------------------

HEADS, WIDTH = 2, 6


def codes(seed: int, h: int, w: int, limit: int = 8191) -> list[np.ndarray]:
    rng = np.random.RandomState(seed)
    return [rng.randint(-limit, limit + 1, (1, h, w, WIDTH)).astype(np.float32) for _ in range(3)]


def plain_attention(q: Any, k: Any, v: Any, window: int, factor: float) -> np.ndarray:
    """The same in Python's integers, one window, head and position at a time; the quotient is rounded once."""
    h, w = q.shape[1:3]
    table, d = [int(t) for t in weight_table()], WIDTH // HEADS
    out = np.zeros((1, h, w, WIDTH))
    for r in range(h):
        for c in range(w):
            top, left = r - r % window, c - c % window
            keys = [(i, j) for i in range(top, min(h, top + window)) for j in range(left, min(w, left + window))]
            for head in range(HEADS):
                at = slice(head * d, (head + 1) * d)
                scores = [
                    sum(int(a) * int(b) for a, b in zip(q[0, r, c, at], k[0, i, j, at], strict=True)) for i, j in keys
                ]
                ws = [table[min(round(Fraction((max(scores) - s) * factor)), LAST)] for s in scores]
                for n in range(at.start, at.stop):
                    total = sum(x * int(v[0, i, j, n]) for x, (i, j) in zip(ws, keys, strict=True))
                    out[0, r, c, n] = float(Fraction(total, sum(ws)))
    return out


@pytest.mark.parametrize(("h", "w", "window"), [(5, 7, 4), (16, 16, 8), (1, 1, 8), (9, 3, 4)])
@pytest.mark.parametrize("limit", [200, 8191])
def test_attention_is_that_of_plain_integers_in_numpy_and_in_torch(h: int, w: int, window: int, limit: int) -> None:
    q, k, v = codes(1, h, w, limit)
    factor = factor_of(WIDTH, HEADS, 20)
    expected = plain_attention(q, k, v, window, factor)
    for xp in (NUMPY, TorchNamespace()):
        arrays = (xp.array(a) for a in (q, k, v))
        found = xp.numpy(attend_exact(xp, *arrays, window, HEADS, factor, xp.array(weight_table())))
        assert np.array_equal(found, expected)


def test_attention_is_as_near_to_floats_as_rounding_allows() -> None:
    grids = FIXED_GRIDS | {"q": 10, "k": 10, "v": 11, "out": 11}
    q, k, v = codes(2, 16, 16, 2000)
    acts = [Act(a, g) for a, g in zip((q, k, v), "qkv", strict=True)]
    exact = ExactOps(NUMPY, {}, grids).attend(*acts, 8, HEADS, "out").x
    floats = [Act(torch.from_numpy(a.x).double() * 2.0 ** -grids[a.grid], a.grid) for a in acts]
    ops = FloatOps({"any": torch.zeros(1)}, grids)
    error = exact - (ops.attend(*floats, 8, HEADS, "out").x * 2.0**11).numpy()
    assert np.sqrt(np.mean(error**2)) < 0.31


def test_attention_does_not_leave_its_window_and_gives_positions_beyond_the_border_no_weight() -> None:
    q, k, v = codes(3, 5, 7, 50)
    table, factor = weight_table(), factor_of(WIDTH, HEADS, 12)
    found = attend_exact(NUMPY, q, k, v, 4, HEADS, factor, table)
    cut = attend_exact(NUMPY, *(a[:, 4:, 4:] for a in (q, k, v)), 4, HEADS, factor, table)
    assert np.array_equal(found[:, 4:, 4:], cut)
    same = attend_exact(NUMPY, q, k, np.full_like(v, 77), 4, HEADS, factor, table)
    assert (same == 77).all()  # a key beyond the border would be a zero in this mean
    swapped = [np.concatenate([a[..., 3:], a[..., :3]], -1) for a in (q, k, v)]
    heads = attend_exact(NUMPY, *swapped, 4, HEADS, factor, table)
    assert np.array_equal(np.concatenate([heads[..., 3:], heads[..., :3]], -1), found)


def test_the_finest_grids_leave_keys_beyond_the_border_without_weight() -> None:
    assert weight_table()[-1] == 0
    assert weight_table()[0] == 32768
    assert -OUTSIDE * factor_of(4096, 1, 40) > LAST  # and exponents do not come near 20


# --- distribution -----------------------------------------------------------------------------------------------------


def test_levels_are_the_next_larger_scale_and_the_same_in_integers() -> None:
    scales, levels = level_scales(), scale_levels()
    assert len(scales) == SCALE_LEVELS
    assert scales[0] == pytest.approx(0.12)
    assert scales[-1] == pytest.approx(64)
    assert np.allclose(scales[1:] / scales[:-1], 1.11230, atol=1e-5)
    for code in (0, 1, 122, 123, 1024, 30000, 65535, 65536):
        assert levels[code] == sum(a < code / 1024 for a in scales[:-1])


def test_likelihoods_are_the_density_s_integral_and_their_gradient_is_its_difference() -> None:
    x = torch.linspace(-300, 300, 600_001, dtype=torch.float64)
    for scale in (0.2, 1.0, 7.0):
        density = torch.exp(-((x.abs() / scale) ** 1.5))
        density /= density.sum()
        for v in (0.0, 1.0, -4.0):
            inside = density[(x > v - 0.5) & (x < v + 0.5)].sum()
            found = gaussian.likelihood(torch.tensor(v, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
            assert float(found) == pytest.approx(max(float(inside), 1e-9), rel=1e-2)
    v = torch.tensor([0.0, 0.3, -2.0, 5.0], dtype=torch.float64, requires_grad=True)
    scales = torch.tensor([0.3, 1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gaussian.likelihood, (v[1:], scales[1:]))


def test_tables_have_the_probabilities_of_the_distribution() -> None:
    tables = gaussian.level_tables()
    assert len(tables["sizes"]) == SCALE_LEVELS
    for level in (0, 20, 40, 59):
        reach = -int(tables["offsets"][level])
        assert reach == math.ceil(5.42691 * level_scales()[level])
        p = np.diff(tables["cdf"][level, : tables["sizes"][level]]) / 65536
        v = torch.arange(-reach, reach + 1, dtype=torch.float64)
        expected = gaussian.likelihood(v, torch.full_like(v, float(level_scales()[level]))).numpy()
        assert np.abs(p[:-1] - expected).max() < 2e-3
        assert -(expected * np.log2(p[:-1])).sum() < -(expected * np.log2(expected)).sum() + 0.01


# --- files ------------------------------------------------------------------------------------------------------------

PICTURES = [(1, 1), (7, 5), (131, 77), (256, 256), (300, 517)]


@pytest.mark.parametrize("name", quick([*SMALL, *FULL]))
def test_a_member_codes_pictures_of_any_size_and_all_engines_decode_them_alike(name: str) -> None:
    if name in QUICK:
        assert_codes(MEMBERS[name], PICTURES[:3], torch_too=False)
    else:
        assert_codes(MEMBERS[name], PICTURES)


PHASES = ("phi", "large", "phase1", "phase2", "phase3", "phase4")
MEMORIES = ("light", "full", "handover", "linear")


@pytest.mark.slow
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", PHASES)
def test_every_phase_codes_with_every_memory(name: str, memory: str) -> None:
    bank = {k: v for k, v in vars(MEMBERS[f"small-{memory}"]).items() if k.startswith("memory")}
    assert_codes(replace(MEMBERS[f"small-{name}"], name=f"small-{name}-{memory}", **bank), PICTURES)


def assert_codes(config: Config, sizes: list[tuple[int, int]], *, torch_too: bool = True) -> None:
    """Pictures of these sizes (width, height) decode alike with kernels, in plain numpy and in torch, and damage is
    refused.
    """
    with members.installed(config) as w:
        reference = light.LightEngine(w)
        reference.coder.ops = ExactOps(NUMPY, w.under("entropy"), w.grids)
        reference.synthesis = ExactOps(NUMPY, w.synthesis(), w.grids)
        for size in sizes:
            data = codec.encode(picture(*size), model=config.name)
            y_hat, shown = codec.decode_latents(data), np.asarray(codec.decode(data))
            assert shown.shape == (size[1], size[0], 3)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(codec.base, "find", lambda *_, **__: reference)
                assert np.array_equal(codec.decode_latents(data), y_hat)
                assert np.array_equal(np.asarray(codec.decode(data)), shown)
            if torch_too:
                assert np.array_equal(codec.decode_latents(data, engine="torch"), y_hat)
                assert np.array_equal(np.asarray(codec.decode(data, engine="torch")), shown)
        for at in range(5, len(data), max(1, len(data) // 40)):
            broken = bytearray(data)
            broken[at] ^= 16
            with pytest.raises(HpcmError):
                codec.decode(bytes(broken))


def test_the_torch_engine_codes_as_the_light_one_and_both_show_what_floats_show() -> None:
    config = mini("phase1")
    with members.installed(config):
        data = codec.encode(picture(70, 45), model=config.name, engine="torch")
        y_hat = codec.decode_latents(data)
        assert np.array_equal(codec.decode_latents(data, engine="torch"), y_hat)
        shown = np.asarray(codec.decode(data))
        assert np.array_equal(np.asarray(codec.decode(data, engine="torch")), shown)
        model = members.member(config)
        with torch.no_grad():
            x_hat = model.synthesise(torch.from_numpy(y_hat)[None].float() / 16, torch.zeros(1))
        wanted = (x_hat[0].permute(1, 2, 0).clamp(0, 1) * 255)[:45, :70].numpy()
        assert np.abs(shown - wanted).max() < 1.5
        y, _ = model.analyse(torch.nn.functional.pad(_planar(picture(70, 45)), (0, 10, 0, 3), "replicate"), q=None)
        assert np.abs(y_hat / 16 - y[0].detach().numpy()).max() < 0.6  # half a step, and what float16 does to g_a
        assert codec.decode(data, thumbnail=True).size == (9, 6)
        assert codec.decode(data, scale="s2").size == (70, 45)


def _planar(pixels: np.ndarray) -> Any:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def test_strips_leave_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcmcodec.engines import strips

    config, pixels = mini("baseline"), picture(64, 40 * 16)
    with members.installed(config):
        whole = codec.encode(pixels, model=config.name)
        shown = np.asarray(codec.decode(whole))
        monkeypatch.setattr(strips, "STRIP_LATENTS", 128)  # eight rows of four
        assert codec.encode(pixels, model=config.name) == whole
        assert np.array_equal(np.asarray(codec.decode(whole)), shown)


def test_a_model_of_one_lambda_has_neither_quality_nor_effort_and_says_so() -> None:
    config = mini("phi")
    with members.installed(config):
        for option in ({"quality": 30.0}, {"effort": 2}):
            with pytest.raises(UnsupportedError, match=f"has no {next(iter(option))}: it was trained for lambda 0.013"):
                codec.encode(picture(16, 16), model=config.name, **option)
        with pytest.raises(UnsupportedError, match="without graphs: encode with the torch engine"):
            codec.encode(picture(16, 16), model=config.name, engine="light")


def test_a_packed_model_comes_back_as_it_was() -> None:
    from hpcmcodec.pretrained import from_weights

    config = mini("phase3")
    model, again = members.member(config), from_weights(weights.load_file(members.path_of(config)))
    x, q = _planar(picture(64, 64)), torch.zeros(1)
    with torch.no_grad():
        ours, theirs = model(x, q), again.eval()(x, q)
    assert theirs["x_hat"].sub(ours["x_hat"]).abs().mean() < 0.01
    assert float(bits(theirs["likelihoods"])) == pytest.approx(float(bits(ours["likelihoods"])), rel=0.02)


@pytest.mark.parametrize("name", quick(SMALL))
def test_compressai_s_interface_codes_what_it_estimates_without_an_update(name: str) -> None:
    trained = members.member(mini(name.removeprefix("small-")))
    model = model_of(trained.config, trained.grids).eval()
    model.load_state_dict(trained.state_dict())
    x = torch.cat([_planar(picture(64, 64, seed)) for seed in range(2)])
    coded = model.compress(x)
    shown = model.decompress(**coded)["x_hat"]
    with torch.no_grad():
        out = model(x, fake=True)
    assert shown.sub(out["x_hat"].clamp(0, 1)).abs().mean() < 0.01
    for i, estimated in enumerate(bits(out["likelihoods"]).tolist()):
        # Coding rounds scales up to levels; random weights, whose scales fit nothing, are off by a tenth with either.
        assert 8 * sum(len(s[i]) for s in coded["strings"]) == pytest.approx(estimated, rel=0.15, abs=300)


def test_layers_of_the_flow_are_used_by_no_kind_that_leaves_them_out() -> None:
    layers = declare(MEMBERS["small-phase1"])[0]
    assert {n for n, v in layers.items() if isinstance(v, Wkv)} == {"s3.cell.block.spatial.wkv"}
    assert {n for n in layers if n.startswith("s1.cell")} == {f"s1.cell.{t}" for t in "qkv"} | {"s1.cell.skip"}
    assert isinstance(layers["h_s.0"], Linear)
