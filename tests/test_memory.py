"""The memory banks `full` and `linear`, what they share with `light`, and the operations that they stand on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from hpcmcodec import codec, weights  # noqa: E402
from hpcmcodec.engines import light  # noqa: E402
from hpcmcodec.exact.constants import FIXED_GRIDS  # noqa: E402
from hpcmcodec.exact.elementary import elu_plus_one, gelu  # noqa: E402
from hpcmcodec.exact.namespaces import NUMPY, TorchNamespace  # noqa: E402
from hpcmcodec.exact.ops import Act  # noqa: E402
from hpcmcodec.exact.reference import ExactOps  # noqa: E402
from hpcmcodec.exact.resampling import bilinear_matrix, mean_matrix  # noqa: E402
from hpcmcodec.model.banks import FullBank, LinearBank, picked  # noqa: E402
from hpcmcodec.model.config import MEMBERS, TINY, Config  # noqa: E402
from hpcmcodec.model.context import walk  # noqa: E402
from hpcmcodec.model.declaration import Declaration, declare  # noqa: E402
from hpcmcodec.model.family.model import model_of  # noqa: E402
from hpcmcodec.model.float_ops import FloatOps  # noqa: E402
from hpcmcodec.model.hpcm import bits  # noqa: E402
from hpcmcodec.quality import Quality  # noqa: E402
from hpcmcodec.training.grow import grow  # noqa: E402
from tests import members  # noqa: E402
from tests.test_family import mini  # noqa: E402
from tests.tiny import picture  # noqa: E402

BANKS: dict[str, dict[str, Any]] = {
    "full": {"memory": "full", "memory_references": (2, 3, 4), "memory_topk": (1, 2, 2)},
    "linear": {"memory": "linear", "memory_references": 8},
}
BANKS["handover"] = BANKS["full"] | {"memory_handover": True}
GRIDS = FIXED_GRIDS | {"x": 9, "y": 9, "p": 9, "s": 7, "out": 9}


def exact(xp: Any = NUMPY) -> ExactOps:
    return ExactOps(xp, {}, GRIDS)


def act(seed: int, *shape: int, grid: str = "x", low: int = -8191) -> Act:
    return Act(np.random.RandomState(seed).randint(low, 8192, shape).astype(np.float32), grid)


# --- operations -------------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 20), n=st.integers(1, 40))
@settings(deadline=None)
def test_bins_and_bilinear_rows_are_those_of_torch(size: int, n: int) -> None:
    x = torch.randn(1, 1, n, 1, dtype=torch.float64)
    bins = mean_matrix(size, n)
    pooled = torch.nn.functional.adaptive_avg_pool2d(x, (size, 1))[0, 0, :, 0]
    assert np.allclose((bins / bins.sum(1, keepdims=True)) @ x[0, 0, :, 0].numpy(), pooled.numpy())
    rows = bilinear_matrix(size, n)
    assert (rows.sum(1) == 256).all()
    up = torch.nn.functional.interpolate(x, (size, 1), mode="bilinear", align_corners=False)[0, 0, :, 0]
    step = float(x.diff(dim=2).abs().max()) / 256 if n > 1 else 0.0
    assert np.abs(rows @ x[0, 0, :, 0].numpy() / 256 - up.numpy()).max() <= step + 1e-9


def test_curves_are_what_their_names_say() -> None:
    x = np.linspace(-900, 900, 7201)
    assert np.allclose(gelu(x), torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh").numpy(), atol=1e-9)
    assert np.allclose(elu_plus_one(x), torch.nn.functional.elu(torch.from_numpy(x)).numpy() + 1, atol=1e-12)
    codes = Act(np.arange(-8191, 8192, dtype=np.float32).reshape(1, 1, -1, 1), "x")
    assert exact().curve(codes, "elu+1", "p").x.min() == 1  # what is divided by is never 0


@pytest.mark.parametrize("how", ["mean", "bilinear"])
@pytest.mark.parametrize(("h", "w"), [(3, 2), (8, 8), (17, 9)])
def test_planes_change_their_size_as_floats_do(how: str, h: int, w: int) -> None:
    a = act(0, 2, h, w, 5)
    found = exact().resize(a, 8, 6, how).x
    floats = FloatOps({"any": torch.zeros(1)}, GRIDS)
    assert np.abs(found - floats.resize(Act(torch.from_numpy(a.x), "x"), 8, 6, how).x.numpy()).max() <= 0.502


def test_a_linear_reference_is_read_as_attention_without_softmax() -> None:
    """Against the sums written out in Python's integers, in numpy and in torch."""
    k, v, q = act(1, 1, 3, 4, 6, grid="p", low=1), act(2, 1, 3, 4, 6), act(3, 1, 2, 2, 6, grid="p", low=1)
    heads, d = 2, 3
    ks, vs, qs = (t.x.reshape(-1, heads, d).astype(int) for t in (k, v, q))
    for xp in (NUMPY, TorchNamespace()):
        ops = exact(xp)
        kk, vv, qq = (Act(xp.array(t.x), t.grid) for t in (k, v, q))
        table, norm = ops.outer(kk, vv, heads, "s"), ops.pool(kk, "p")
        read = xp.numpy(ops.lookup(qq, table, norm, heads, "out").x).reshape(-1, heads, d)
        tables, norms = xp.numpy(table.x).reshape(heads, d, d), xp.numpy(norm.x).reshape(heads, d)
        for n in range(heads):
            mean = np.einsum("tk,tv->kv", ks[:, n], vs[:, n]) / len(ks) * 2.0 ** (7 - 18)
            assert np.array_equal(tables[n], np.clip(np.rint(mean), -8191, 8191))
            for t in range(4):
                below = sum(int(a) * int(b) for a, b in zip(qs[t, n], norms[n], strict=True))
                for c in range(d):
                    above = sum(int(a) * int(b) for a, b in zip(qs[t, n], tables[n, :, c], strict=True))
                    assert read[t, n, c] == np.clip(np.rint(above / below * 2.0 ** (9 - 7 + 9)), -8191, 8191)


def test_the_most_similar_keys_come_first_and_the_older_of_two_that_are_equal() -> None:
    keys = [act(n, 1, 1, 1, 8) for n in range(4)]
    order, weights = exact().choose(keys[2], keys, 2, 0.1)
    assert order[0, 0] == 2
    assert weights[0, 0] == 32768
    assert weights[0, 1] < weights[0, 0]
    again, _ = exact().choose(keys[2], [keys[2], keys[1], keys[2]], 3, 0.1)
    assert list(again[0][:2]) == [0, 2]
    sharp, flat = (exact().choose(keys[2], keys, 4, t)[1] for t in (0.05, 0.2))
    assert (sharp[0, 1:] <= flat[0, 1:]).all()
    assert sharp[0, 1:].sum() < flat[0, 1:].sum()


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    query, keys, values = (
        act(0, 2, 1, 1, 8),
        [act(n, 2, 1, 1, 8) for n in (1, 2, 3)],
        [act(n, 2, 3, 3, 4) for n in (4, 5, 6)],
    )

    def recalled(sample: slice) -> np.ndarray:
        order, weights = exact().choose(Act(query.x[sample], "x"), [Act(k.x[sample], "x") for k in keys], 2, 0.1)
        return exact().mix(picked(exact(), [Act(v.x[sample], "x") for v in values], order), weights).x

    both = recalled(slice(None))
    assert np.array_equal(both, np.concatenate([recalled(slice(0, 1)), recalled(slice(1, 2))]))


# --- banks ------------------------------------------------------------------------------------------------------------


def banks(ops: Any, references: int) -> list[Any]:
    return [
        FullBank(ops, "m", references, 2, 4, 0.1, 8),
        LinearBank(ops, "l", references, 2, 0.1),
    ]


def test_a_bank_forgets_the_oldest_reference_and_on_reset_all() -> None:
    for bank in banks(Declaration(), 4):
        for n in range(1, 10):
            bank.add(Act(np.full((1, 4, 4, 16), n, np.float32), "carry"))
            assert len(bank.keys) == len(bank.values) == min(n, 4)
        bank.reset()
        assert not bank.keys
        assert not bank.values


@pytest.mark.parametrize("references", [1, 4])
def test_keys_and_values_of_the_linear_bank_leave_together(references: int) -> None:
    """A value is read by the query that equals its own key: the newest references return, whatever came before."""

    class Numbered(Declaration):
        def outer(self, k: Act, v: Act, heads: int, grid: str) -> Act:
            return Act(v.x[:, :1, :1, :1], grid)  # in the place of the matrix, the number that was stored

        def pool(self, a: Act, grid: str) -> Act:
            return Act(a.x[:, :1, :1], grid)

        def linear(self, inputs: Any, layer: Any, grid: str | None = None) -> Act:
            return Act(inputs.x, grid or layer.name)

        depthwise = linear  # type: ignore[assignment]

    bank = LinearBank(Numbered(), "l", references, 2, 0.1)
    for n in range(1, 10):
        bank.add(Act(np.full((1, 4, 4, 16), n, np.float32), "carry"))
        kept = list(range(max(1, n + 1 - references), n + 1))
        assert [int(v.x[0, 0, 0, 0]) for v in bank.values] == kept
        assert [int(k.x[0, 0, 0, 0]) for k in bank.keys] == kept


def counted(config: Config) -> dict[str, list[int]]:
    """How many references each fusion finds, by the bank's layer."""
    seen: dict[str, list[int]] = {}

    class Counting(Declaration):
        def choose(self, query: Act, keys: Any, count: int, temperature: float) -> Any:
            seen.setdefault(query.grid, []).append(len(keys))
            return super().choose(query, keys, count, temperature)

    size = config.hyper
    walk(
        Counting(),
        config,
        np.zeros((1, 2, 2, size), np.int32),
        [Quality(0)],
        8,
        8,
        lambda s, means, levels, mask: means,
    )
    return seen


@pytest.mark.parametrize("base", [TINY, mini("phase1")], ids=lambda c: c.name)
def test_fusions_find_the_references_that_the_schedule_leaves_them(base: Config) -> None:
    full = counted(replace(base, **BANKS["full"]))
    assert full == {"s1.memory.query": [1], "s2.memory.query": [2, 3], "s3.memory.query": [2, 3, 4, 4]}
    handed = counted(replace(base, **BANKS["handover"]))
    assert handed == {"s1.memory.query": [1], "s2.memory.query": [3, 3], "s3.memory.query": [4, 4, 4, 4]}
    linear = counted(replace(base, **BANKS["linear"]))
    assert list(linear.values()) == [[1, 4, 5, 8, 8, 8, 8]]


def test_more_references_than_the_order_of_keys_can_tell_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="eight references, not 9"):
        replace(TINY, memory="linear", memory_references=9)


# --- members ----------------------------------------------------------------------------------------------------------


OF_BOTH_FLOWS = [("tiny", "linear"), ("phase1", "handover")]
OF_BOTH_FLOWS += [pytest.param(*pair, marks=pytest.mark.slow) for pair in (("tiny", "full"), ("phase3", "linear"))]


@pytest.mark.parametrize(("base", "memory"), OF_BOTH_FLOWS)
def test_every_parameter_of_a_bank_has_a_gradient(base: str, memory: str) -> None:
    config = replace(TINY if base == "tiny" else mini(base), **BANKS[memory])
    if memory == "handover":  # all are recalled, so that none has no gradient
        config = replace(config, memory_topk=(2, 3, 4))
    model = members.member(config).train()
    bits(model(torch.rand(1, 3, 128, 64), torch.zeros(1))["likelihoods"]).sum().backward()
    for key, value in model.named_parameters():
        if "memory" in key:
            assert value.grad is not None, key
            assert torch.isfinite(value.grad).all(), key
            # s1 has one reference: what chooses among them does not matter.
            only = key.startswith(("raw.s1/memory/query", "raw.s1/memory/key"))
            assert only or (value.grad != 0).any(), key


@pytest.mark.parametrize(("base", "memory"), [("phase1", "full"), ("phi", "handover"), ("phase3", "linear")])
def test_integers_estimate_as_floats_do(base: str, memory: str) -> None:
    model = members.member(mini(base, **BANKS[memory]))
    x, q = torch.rand(1, 3, 64, 64), torch.zeros(1)
    with torch.no_grad():
        assumed, found = (float(bits(model(x, q, fake=fake)["likelihoods"])) for fake in (False, True))
    assert found == pytest.approx(assumed, rel=0.05)


@pytest.mark.parametrize("base", ["tiny", "phase1"])
def test_memory_none_leaves_no_trace(base: str) -> None:
    config = TINY if base == "tiny" else mini(base)
    none = replace(config, memory="none")
    other = replace(none, memory_references=(1, 2, 3), memory_topk=1, memory_value_size=4, memory_temperature=0.5)
    assert none.decoding_json() == other.decoding_json()
    assert "memory" not in none.decoding_json()
    assert not any("memory" in name for name in (*declare(none)[0], *declare(none)[1]))
    assert set(model_of(none).state_dict()) == set(model_of(other).state_dict())


@pytest.mark.parametrize("memory", BANKS)
def test_a_member_grown_by_a_memory_begins_where_its_parent_was(memory: str) -> None:
    parent = members.member(mini("phase1"))
    child = model_of(mini("phase1", **BANKS[memory])).eval()
    grown = grow(child, parent.state_dict())
    assert all("memory" in name for name in grown.fresh)
    assert not grown.left_over
    torch.manual_seed(2)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before, after = (float(bits(m(x, torch.zeros(1))["likelihoods"])) for m in (parent, child))
    assert after == pytest.approx(before, rel=1e-6 if memory == "linear" else 0.01)


EVERY = [(name, memory) for name in MEMBERS if name.startswith("small-") for memory in BANKS]


@pytest.mark.parametrize(
    "config",
    [mini("phase1", **BANKS["linear"]), mini("phi", **BANKS["handover"])]
    + [
        pytest.param(replace(MEMBERS[n], name=f"{n}-{m}", **BANKS[m]), marks=pytest.mark.slow)
        for n, m in EVERY
        if MEMBERS[n].memory == "none"
    ],
    ids=lambda c: f"{c.name}-{c.memory}",
)
def test_members_with_a_bank_code_and_kernels_and_reference_decode_them_alike(config: Config) -> None:
    with members.installed(config) as w:
        reference = light.LightEngine(w)
        reference.coder.ops = ExactOps(NUMPY, w.under("entropy"), w.grids)
        for size in ((1, 1), (7, 5), (131, 77)):
            data = codec.encode(picture(*size), model=config.name)
            y_hat = codec.decode_latents(data)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(codec.base, "find", lambda *_, **__: reference)
                assert np.array_equal(codec.decode_latents(data), y_hat)
    assert weights.load_file(members.path_of(config)).config == config
