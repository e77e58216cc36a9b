"""Codes of 16 bits: the reference's sums stay exact at the extremes, in numpy as in torch, and no kernel meets them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from hpcmcodec.errors import IntegrityError, UnsupportedError
from hpcmcodec.exact import quantisation
from hpcmcodec.exact.attention import attend_exact, factor_of, weight_table
from hpcmcodec.exact.constants import (
    FIXED_GRIDS,
    TABLE_MAX,
    WIDE_MAX,
    WIDE_PRECISION,
    WIDE_SUM_BOUND,
    code_max,
    limit_of,
    sum_bound,
)
from hpcmcodec.exact.layers import Depthwise, Linear, QualityBias, quantise
from hpcmcodec.exact.namespaces import NUMPY, TorchNamespace
from hpcmcodec.exact.ops import Act
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.model.config import MEMBERS, Config
from hpcmcodec.native import loader, selftest
from hpcmcodec.native.compiled import KernelOps

MOST = 32767
GRIDS = FIXED_GRIDS | {"x": 9, "out": -20}


def test_limits_follow_from_the_bits() -> None:
    assert (code_max(14), code_max(WIDE_PRECISION)) == (8191, MOST)
    assert (sum_bound(14), sum_bound(WIDE_PRECISION)) == (2**31, 2**53)
    assert [limit_of(g, WIDE_PRECISION) for g in ("x", "y", "sigmoid", "exp", "wide", "pixel")] == [
        *(MOST, MOST, TABLE_MAX, TABLE_MAX, WIDE_MAX, WIDE_MAX)
    ]


def test_every_matrix_of_a_member_of_full_size_keeps_its_sums_in_range() -> None:
    """The bound holds whatever the integers are: as many of the largest as a layer has inputs stay far below 2^53."""
    from hpcmcodec.model.declaration import declare

    widest = max(
        n for name in MEMBERS for layer in declare(MEMBERS[name])[0].values() for n in getattr(layer, "inputs", ())
    )
    assert widest * MOST * MOST < 2**42
    assert 2**22 * MOST * MOST < WIDE_SUM_BOUND
    largest = np.full((1, 1 << 22), -MOST - 1, np.int16)
    quantisation.check_bound("layer", largest, WIDE_PRECISION)
    with pytest.raises(IntegrityError, match=r">= 2\^53"):
        quantisation.check_bound("layer", np.repeat(largest, 3, 1), WIDE_PRECISION)
    with pytest.raises(IntegrityError, match=r">= 2\^31"):
        quantisation.check_bound("layer", np.full((1, 9), MOST, np.int16))


def test_weights_that_meet_codes_of_16_bits_take_all_of_int16() -> None:
    w = np.random.RandomState(0).standard_normal((5, 700)).astype(np.float32)
    integers, unit = quantisation.quantise_rows(w, WIDE_PRECISION)
    assert (np.abs(integers.astype(np.int32)).max(1) == MOST).all()
    assert np.abs(integers * unit[:, None] - w).max() <= unit.max() / 2 * 1.001
    narrow, _ = quantisation.quantise_rows(w)
    assert np.abs(narrow.astype(np.int32)).max() < MOST / 10


def stored(layer: Any, weight: np.ndarray) -> dict[str, np.ndarray]:
    """A layer whose integers are `weight`, units 1 and biases 0."""
    made = layer.quantise({"weight": weight.astype(np.float32), "bias": np.zeros(len(weight))}, GRIDS, WIDE_PRECISION)
    made |= {"weight": weight.astype(np.int16), "step": np.ones_like(made["step"])}
    return {f"{layer.name}.{k}": v for k, v in made.items()}


def namespaces() -> list[Any]:
    pytest.importorskip("torch")
    return [NUMPY, TorchNamespace()]


@pytest.mark.parametrize("signs", ["alike", "mixed"])
def test_sums_of_the_largest_codes_and_weights_are_those_of_plain_integers(signs: str) -> None:
    n, rng = 3840, np.random.RandomState(1)
    x = np.full((1, 2, 2, n), MOST) if signs == "alike" else rng.choice([-MOST, MOST, MOST - 1], (1, 2, 2, n))
    w = np.full((3, n), MOST) if signs == "alike" else rng.choice([-MOST, MOST, 1 - MOST], (3, n))
    exact = [
        [sum(int(a) * int(b) for a, b in zip(x[0, r, c], row, strict=True)) for row in w] for r, c in np.ndindex(2, 2)
    ]
    assert signs == "mixed" or exact[0][0] > 2**41
    layer = Linear("l", 3).over(n)
    for xp in namespaces():
        ops = ExactOps(xp, stored(layer, w), GRIDS, WIDE_PRECISION)
        sums = xp.numpy(ops._sums(xp.array(x.astype(np.float32)), ops._matrices("l")[0])).reshape(4, 3)
        assert np.array_equal(sums, np.array(exact, np.float64).astype(np.float32))
    around, taps = Depthwise("d", 5).over(2), np.full((2, 25), -MOST)
    for xp in namespaces():
        plane = xp.array(np.full((1, 5, 5, 2), MOST, np.float32))
        out = ExactOps(xp, stored(around, taps), GRIDS | {"out": -14}, WIDE_PRECISION).depthwise(
            Act(plane, "x"), around, "out"
        )
        assert xp.numpy(out.x)[0, 2, 2, 0] == -np.rint(np.float32(25 * MOST * MOST) * 2.0**-23)


def test_attention_at_the_extremes_is_that_of_plain_integers() -> None:
    rng = np.random.RandomState(2)
    q, k, v = (rng.choice([-MOST, MOST, 12345], (1, 8, 8, 20)).astype(np.float32) for _ in range(3))
    factor, table = factor_of(20, 1, 26), weight_table()
    whole = [t.astype(np.int64).reshape(64, 20) for t in (q, k, v)]
    scores = whole[0] @ whole[1].T
    assert np.abs(scores).max() > 2**33
    steps = np.minimum(np.rint((scores.max(1, keepdims=True) - scores) * factor), len(table) - 1).astype(np.int64)
    weights = table[steps].astype(np.int64)
    expected = (weights @ whole[2]) / weights.sum(1, keepdims=True)
    for xp in namespaces():
        found = xp.numpy(attend_exact(xp, *map(xp.array, (q, k, v)), 8, 1, factor, xp.array(table)))
        assert np.array_equal(found.reshape(64, 20), expected)


@pytest.mark.parametrize("extreme", [False, True])
def test_every_operation_gives_the_same_bits_in_numpy_and_in_torch(
    extreme: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_namespace = namespaces()[1]
    monkeypatch.setattr(selftest, "limit_of", partial(limit_of, precision=WIDE_PRECISION))
    monkeypatch.setattr(selftest, "quantise", partial(quantise, precision=WIDE_PRECISION))
    tensors = selftest.layers(24, 9, 5)
    one, other = (ExactOps(xp, tensors, selftest.GRIDS, WIDE_PRECISION) for xp in (NUMPY, torch_namespace))
    largest = 0.0
    for name, case in selftest.cases(2, 7, 5, 24, 9, 5, extreme=extreme).items():
        results = selftest.integers(NUMPY, case(one)), selftest.integers(torch_namespace, case(other))
        for expected, got in zip(*results, strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=name)
            if name in ("linear", "depthwise", "add"):
                largest = max(largest, float(np.abs(expected).max()))
    assert largest == MOST or not extreme


def test_means_of_z_and_the_context_s_view_of_latents_take_16_bits() -> None:
    bias = QualityBias("b", "x", 1).over(2)
    far = {"table": np.array([[100.0, -100.0]], np.float32)}
    assert bias.quantise(far, {"x": 8}, WIDE_PRECISION)["table"].tolist() == [[25600, -25600]]
    assert bias.quantise(far, {"x": 8})["table"].tolist() == [[8191, -8191]]
    y_hat = np.array([[[[-40000, 20000]]]], np.int32)
    assert ExactOps(NUMPY, {}, GRIDS, WIDE_PRECISION).latent_code(y_hat).tolist() == [[[[-MOST, 20000]]]]


def test_kernels_are_not_handed_wide_codes() -> None:
    assert type(loader.exact_ops({}, GRIDS, WIDE_PRECISION)) is ExactOps
    assert loader.exact_ops({}, GRIDS, WIDE_PRECISION).precision == WIDE_PRECISION
    kernels = loader.find().kernels
    if kernels is not None:
        assert type(loader.exact_ops({}, GRIDS)) is KernelOps
        with pytest.raises(TypeError):
            KernelOps(kernels, {}, GRIDS, NUMPY, WIDE_PRECISION)  # type: ignore[call-arg]


def test_a_config_has_codes_of_14_or_16_bits_and_its_id_says_so_only_for_16() -> None:
    first = MEMBERS["small-baseline"]
    assert '"precision"' not in first.decoding_json()
    wide = Config.from_json(first.to_json().replace('"precision":14', '"precision":16'))
    assert '"precision":16' in wide.decoding_json()
    with pytest.raises(UnsupportedError, match="14 or 16 bits, not 12"):
        Config(precision=12)
