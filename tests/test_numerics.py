"""Exact arithmetic: sums to the bit, everything else within its rounding, and the same bits in numpy and torch."""

from __future__ import annotations

import contextlib
import decimal
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils._python_dispatch import TorchDispatchMode

from hpcmcodec import weights
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.engines.torch import TorchEngine
from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import (
    CODE_MAX,
    EXP_GRID,
    FIXED_GRIDS,
    GATE_GRID,
    LEVELS,
    MEAN_MAX,
    SUM_BOUND,
    TABLE_MAX,
    WEIGHT_ONE,
)
from hpcmcodec.exact.elementary import exact_exp, exp_table, memory_weight_table, rsqrt, sigmoid_table
from hpcmcodec.exact.layers import Depthwise, Head, Linear, Norm, Place, QualityBias, Scale, Wkv
from hpcmcodec.exact.namespaces import NUMPY, NumpyNamespace, TorchNamespace, probe
from hpcmcodec.exact.ops import COMPUTING, Act
from hpcmcodec.exact.quantisation import quantise_rows
from hpcmcodec.exact.reference import ExactOps, interpolate
from hpcmcodec.exact.schedule import STEPS, positions
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.model.declaration import declare
from hpcmcodec.model.memory import MemoryBank
from hpcmcodec.native import selftest
from hpcmcodec.quality import Quality
from tools.hashes import sha256

TORCH = TorchNamespace()
NAMESPACES = pytest.mark.parametrize("xp", [NUMPY, TORCH], ids=["numpy", "torch"])
CODES = st.integers(-CODE_MAX, CODE_MAX)
TABLE_CODES = st.integers(-TABLE_MAX, TABLE_MAX)
HALF = 0.5 + 2.0**-8
"""Rounding to a code, and what float32's own roundings (a few times 2^-24 of 8191) can add to it."""


def codes(seed: int, *shape: int, largest: int = CODE_MAX) -> np.ndarray:
    return np.random.RandomState(seed).randint(-largest, largest + 1, shape).astype(np.float32)


def run_op(xp: Any, op: Callable[[Callable[[np.ndarray, str], Act]], Any]) -> np.ndarray:
    """The array that `op` gives; it makes its activations by the function that it gets."""
    with torch.no_grad():
        out = op(lambda x, grid: Act(xp.array(x.copy()), grid))
    return np.array(xp.numpy(out.x if isinstance(out, Act) else out))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in dtype, shape and value; the sign of zero is not part of the promise."""
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def digest(*pieces: np.ndarray) -> str:
    h = hashlib.sha256()
    for piece in pieces:
        h.update(np.ascontiguousarray(piece).tobytes())
    return h.hexdigest()


# --- elementary functions ---------------------------------------------------------------------------------------------


def relative_error(found: float, exact: decimal.Decimal) -> float:
    return float(abs(decimal.Decimal(found) / exact - 1))


@given(st.floats(-700, 700))
def test_exp_is_within_3e_16_of_the_true_value(x: float) -> None:
    with decimal.localcontext(prec=50):
        assert relative_error(float(exact_exp(np.array([x]))[0]), decimal.Decimal(x).exp()) < 3e-16


@given(st.floats(-300, 300).map(lambda e: 2.0**e))
@NAMESPACES
def test_reciprocal_root_is_within_4e_16_of_the_true_value(xp: Any, x: float) -> None:
    r = Fraction(float(xp.numpy(rsqrt(xp, xp.array(np.array([x]))))[0]))
    assert abs(r * r * Fraction(x) - 1) < 2 * 4e-16


def test_tables_are_the_functions_that_they_stand_for() -> None:
    x = np.arange(-TABLE_MAX, TABLE_MAX + 1) / 256
    np.testing.assert_allclose(exp_table(8), np.exp(x), rtol=1e-15)
    np.testing.assert_allclose(sigmoid_table(8), 1 / (1 + np.exp(-x)), rtol=2.0**-23)
    d = np.arange(8193) / 4096
    np.testing.assert_allclose(memory_weight_table(0.1), WEIGHT_ONE / (1 + np.exp(-d / 0.1)), rtol=0, atol=0.5 + 1e-9)


@given(arrays(np.int32, (3, 4), elements=CODES), st.integers(0, 10000))
def test_quality_table_is_interpolated_to_the_nearest_integer(table: np.ndarray, quality: int) -> None:
    for column, found in zip(table.T.tolist(), interpolate(table, Quality(quality)), strict=True):
        position = Fraction(quality * 2, 10000)
        i = min(int(position), 1)
        exact = column[i] + (column[i + 1] - column[i]) * (position - i)
        assert abs(found - exact) <= Fraction(1, 2)


# Prints digests of the tables, of Bi-WKV's constants, of a product larger than a BLAS kernel's blocks, and of all that
# the tiny model decodes from a file. Runs under other instruction sets and thread counts below.
DIGESTS = """
import hashlib, os, sys
import numpy as np
import tiny
from hpcmcodec import codec
from hpcmcodec.exact.elementary import exact_exp, exp_table, memory_weight_table, rsqrt, sigmoid_table
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.biwkv import decay_powers, own_factor
from tools.hashes import sha256

rng = np.random.RandomState(5)
x = np.arange(-700_000, 700_001) / np.full(1, 1000.0)
c = np.arange(-64, 65, dtype=np.float32) / np.full(1, 4, np.float32)
a = rng.randint(-8191, 8192, (1500, 256)).astype(np.float64)
w = rng.randint(-1024, 1025, (256, 384)).astype(np.float64)
pieces = [exact_exp(x), rsqrt(NUMPY, exact_exp(x)), exp_table(8), sigmoid_table(8), memory_weight_table(0.1)]
pieces += [t for n in (1, 63, 1536) for t in (decay_powers(c, n), own_factor(c, n))]
print("tables", hashlib.sha256(b"".join(p.tobytes() for p in pieces)).hexdigest())
print("product", hashlib.sha256(np.matmul(a, w).tobytes()).hexdigest())
with tiny.installed():
    y_hat = codec.decode_latents((tiny.DATA / "tiny-131x77.hpcm").read_bytes(), engine="light")
print("latents", sha256(y_hat))
print("threads", len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0)
"""
DISPATCHED = """
from numpy.version import version
if version.startswith("1."):
    from numpy.core._multiarray_umath import __cpu_dispatch__
else:
    from numpy._core._multiarray_umath import __cpu_dispatch__
print(" ".join(__cpu_dispatch__))
"""


def python(script: str, **environment: str) -> str:
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    base = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_", "NPY_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=base | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def digests(**environment: str) -> dict[str, str]:
    return dict(line.split() for line in python(DIGESTS, **environment).splitlines())


def test_tables_and_products_have_the_same_bits_under_every_instruction_set_and_thread_count() -> None:
    features = python(DISPATCHED).strip()
    here = digests(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    oldest = digests(
        OPENBLAS_NUM_THREADS="1", OPENBLAS_CORETYPE="Prescott", NPY_DISABLE_CPU_FEATURES=features, OMP_NUM_THREADS="1"
    )
    threaded = digests(OPENBLAS_NUM_THREADS="3", OMP_NUM_THREADS="3")
    if int(here["threads"]) and (os.cpu_count() or 1) > 1:
        assert int(threaded.pop("threads")) > int(here["threads"])
    for found in (oldest, threaded):
        assert {k: found[k] for k in ("tables", "product", "latents")} == {
            k: here[k] for k in ("tables", "product", "latents")
        }


# --- sums -------------------------------------------------------------------------------------------------------------


ROWS = st.one_of(st.integers(1, 16), st.integers(1, 4096)).flatmap(
    lambda n: st.tuples(
        arrays(np.float32, (3, n), elements=st.floats(-1, 1, width=32), fill=st.sampled_from([0.0, 1.0, -1.0])),
        st.sampled_from([0.0, 2.0**-140, 1e-30, 1.0, 1e30]),
    )
)


@given(ROWS)
def test_quantised_rows_keep_the_bound_and_are_within_half_a_step(rows: tuple[np.ndarray, float]) -> None:
    w = (rows[0].astype(np.float64) * rows[1]).astype(np.float32).astype(np.float64)
    integers, step = quantise_rows(w)
    assert integers.dtype == np.int16
    assert step.dtype == np.float32
    total = np.abs(integers.astype(np.int64)).sum(1) * CODE_MAX
    assert total.max() < SUM_BOUND
    assert (step > 0).all()
    assert (np.abs(integers * step[:, None].astype(np.float64) - w) <= 0.5 * step[:, None].astype(np.float64)).all()
    # Nothing is given away: a step a hundredth smaller would break the bound, or int16, before rounding is counted.
    n = w.shape[1]
    used = (np.abs(w).sum(1) / (step * 0.99)) * CODE_MAX + n / 2 * CODE_MAX
    peak = np.abs(w).max(1) / (step * 0.99)
    normal = step > 1e-37
    assert ((used >= SUM_BOUND) | (peak > 32767) | (w == 0).all(1))[normal].all()


@given(arrays(np.float32, (3, 5), elements=st.floats(-1, 1, width=32)))
def test_a_row_of_zeros_stays_zero_beside_others(w: np.ndarray) -> None:
    w[1] = 0
    integers, step = quantise_rows(w)
    assert not integers[1].any()
    assert step[1] > 0


def linear_tensors(seed: int, widths: Sequence[int], out: int) -> dict[str, np.ndarray]:
    """A linear layer "l" whose weights use the bound up; its step makes outputs fill the range of codes."""
    rng = np.random.RandomState(seed)
    pieces = [quantise_rows(rng.standard_t(3, (out, n))) for n in widths]
    return {
        "l.weight": np.concatenate([i for i, _ in pieces], 1),
        "l.step": np.stack([s for _, s in pieces]) * np.float32(0.05),
        "l.bias": rng.standard_normal(out).astype(np.float32),
        "l.widths": np.array(widths, np.int32),
    }


def int64_sums(inputs: Sequence[np.ndarray], weight: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """The sum of each input by int64 arithmetic."""
    parts = np.split(weight.astype(np.int64), np.cumsum(widths)[:-1], 1)
    return [x.astype(np.int64) @ w.T for x, w in zip(inputs, parts, strict=True)]


@NAMESPACES
@pytest.mark.parametrize("widths", [(1,), (9,), (128,), (4096,), (16, 16), (300, 5, 320)], ids=str)
@pytest.mark.parametrize("extreme", [False, True], ids=["random codes", "largest codes"])
def test_linear_is_int64_arithmetic_to_the_bit(xp: Any, widths: Sequence[int], extreme: bool) -> None:
    tensors = linear_tensors(1, widths, 24)
    grids = {"out": 6} | {f"in{i}": 5 + i for i in range(len(widths))}
    ops = ExactOps(xp, tensors, grids)
    inputs = [codes(i, 1, 9, 11, n) for i, n in enumerate(widths)]
    if extreme:  # every product of the first output has one sign: its sum comes as close to 2^31 as any can
        signs = np.split(np.where(tensors["l.weight"][0] < 0, -CODE_MAX, CODE_MAX), np.cumsum(widths)[:-1])
        for x, s in zip(inputs, signs, strict=True):
            x[0, 0, 0] = s
    got = run_op(xp, lambda act: ops.linear([act(x, f"in{i}") for i, x in enumerate(inputs)], Linear("l", 24), "out"))
    expected = np.zeros((1, 9, 11, 24), np.float32)
    for i, sums in enumerate(int64_sums(inputs, tensors["l.weight"], widths)):
        scale = tensors["l.step"][i] * np.float32(2.0 ** (grids["out"] - grids[f"in{i}"]))
        expected = expected + sums.astype(np.float32) * scale
        if extreme and widths[i] > 100:  # a few weights of int16 may stay far below
            assert np.abs(sums).max() > 0.95 * SUM_BOUND
    expected = expected + tensors["l.bias"] * np.float32(2.0 ** grids["out"])
    expected = np.clip(np.rint(expected), -CODE_MAX, CODE_MAX).astype(np.float32)
    assert len(np.unique(expected)) > 100
    assert same_bits(got, expected)


@NAMESPACES
def test_head_gives_wide_means_and_levels_in_range_as_int32(xp: Any) -> None:
    tensors = linear_tensors(2, (64,), 16)
    tensors["l.step"] = tensors["l.step"] * np.float32(200)
    x = codes(3, 1, 5, 7, 64)
    ops = ExactOps(xp, tensors, {"in": 4})
    means, levels = ops.head([Act(xp.array(x), "in")], Head("l", 8))
    acc = int64_sums([x], tensors["l.weight"], (64,))[0].astype(np.float32)
    out = np.rint(acc * tensors["l.step"][0] + tensors["l.bias"] * np.float32(16))
    assert same_bits(xp.numpy(means), np.clip(out[..., :8], -MEAN_MAX, MEAN_MAX).astype(np.int32))
    assert same_bits(xp.numpy(levels), np.clip(out[..., 8:], 0, LEVELS - 1).astype(np.int32))
    assert np.abs(out[..., :8]).max() > MEAN_MAX  # the clamp has something to do


@NAMESPACES
@pytest.mark.parametrize("step", [STEPS[1], STEPS[3], STEPS[10]], ids=lambda s: f"{s.scale}, part {s.part}")
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (8, 4)], ids=str)
def test_place_adds_the_vector_of_the_group_that_a_position_carries(xp: Any, step: Any, size: tuple[int, int]) -> None:
    table = np.random.RandomState(7).standard_normal((len(step.groups), 12)).astype(np.float32) * 60
    x = codes(8, 2, *size, 12)
    layer = Place("l", len(step.groups))
    got = ExactOps(xp, {"l.table": table}, {"in": 4}).place(Act(xp.array(x), "in"), step, layer)
    group = np.full(size, -1)
    for g, at in positions(step):
        group[at[1:]] = g
    assert (group >= 0).all()
    expected = x.astype(np.int64) + np.clip(np.rint(table * 16), -CODE_MAX, CODE_MAX).astype(np.int64)[group]
    assert got.grid == "in"
    assert same_bits(xp.numpy(got.x), np.clip(expected, -CODE_MAX, CODE_MAX).astype(np.float32))


@NAMESPACES
@pytest.mark.parametrize("step", STEPS, ids=lambda s: f"{s.scale}, part {s.part}")
def test_heads_get_each_groups_rows_of_all_their_inputs_in_one_order(xp: Any, step: Any) -> None:
    n = len(step.groups)
    y = np.arange(2 * 5 * 6 * 8 * n, dtype=np.float32).reshape(2, 5, 6, 8 * n)
    x = np.arange(2 * 5 * 6, dtype=np.float32).reshape(2, 5, 6, 1)
    ops = ExactOps(xp, {}, {"y": 3})
    folded = ops.folded(Act(xp.array(y), "y"), step)
    rows = ops.gather([xp.array(x), folded.x], step)
    for g, (position, values) in rows:
        at = xp.numpy(position)[..., 0].astype(int)
        assert np.array_equal(xp.numpy(values), y.reshape(60, 8 * n)[at][..., g * 8 : (g + 1) * 8])
    assert sorted(int(i) for _, (p, _) in rows for i in xp.numpy(p).ravel()) == list(range(60))


@NAMESPACES
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 5)], ids=str)
def test_depthwise_is_int64_arithmetic_to_the_bit(xp: Any, size: tuple[int, int]) -> None:
    h, w = size
    weight, step = quantise_rows(np.random.RandomState(4).standard_t(3, (12, 9)))
    tensors = {"d.weight": weight, "d.step": step[None] * np.float32(0.02), "d.bias": codes(5, 12) / np.float32(4096)}
    x = codes(6, 1, h, w, 12)
    ops = ExactOps(xp, tensors, {"in": 3, "out": 5})
    got = run_op(xp, lambda act: ops.depthwise(act(x, "in"), Depthwise("d"), "out"))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.int64)
    acc = np.zeros((1, h, w, 12), np.int64)
    for i in range(9):
        acc += padded[:, i // 3 : i // 3 + h, i % 3 : i % 3 + w] * weight[:, i].astype(np.int64)
    out = acc.astype(np.float32) * (tensors["d.step"][0] * np.float32(4)) + tensors["d.bias"] * np.float32(32)
    assert same_bits(got, np.clip(np.rint(out), -CODE_MAX, CODE_MAX))


# --- the bound --------------------------------------------------------------------------------------------------------


def all_models() -> dict[str, weights.Weights]:
    return {name: weights.load_file(path) for name, path in weights.packaged().items()} | {tiny.NAME: tiny.load()}


@pytest.mark.parametrize("name", [*weights.packaged(), tiny.NAME])
def test_no_partial_sum_of_any_stored_layer_reaches_2_31(name: str) -> None:
    w = all_models()[name]
    layers, grids = declare(w.config)
    assert sorted(w.grids) == sorted({*grids, *FIXED_GRIDS})
    entropy = w.under("entropy")
    with_weights = [n for n, layer in layers.items() if isinstance(layer, (Linear, Head, Depthwise))]
    assert {n.removesuffix(".weight") for n in entropy if n.endswith(".weight")} == set(with_weights)
    for layer in with_weights:
        stored = entropy[f"{layer}.weight"]
        assert stored.dtype == np.int16
        assert stored.shape == (layers[layer].out, sum(layers[layer].inputs))
        # The largest sum of magnitudes over an input bounds every partial sum, in any order.
        widths = layers[layer].inputs
        for part in np.split(np.abs(stored.astype(np.int64)), np.cumsum(widths)[:-1], 1):
            assert part.sum(1).max() * CODE_MAX < SUM_BOUND, layer
        assert entropy[f"{layer}.step"].shape == (len(widths), layers[layer].out)


def tampered(name: str, value: np.ndarray) -> weights.Weights:
    w = tiny.load()
    assert f"entropy.{name}" in w.tensors
    return w._replace(tensors=w.tensors | {f"entropy.{name}": value})


def broken_weights() -> Iterator[tuple[str, weights.Weights]]:
    w = tiny.load().under("entropy")
    for layer in ("s3.cell.in", "s3.cell.block.spatial.shift"):
        beyond = w[f"{layer}.weight"].copy()
        beyond[3] = 32767  # int16 alone would let it pass
        yield f"bound of {layer}", tampered(f"{layer}.weight", beyond)
    yield "too few inputs", tampered("s3.cell.in.weight", w["s3.cell.in.weight"][:, :-1])
    yield "too many steps", tampered("s3.cell.in.step", np.concatenate([w["s3.cell.in.step"]] * 2))
    yield "weights that are not int16", tampered("s3.cell.in.weight", w["s3.cell.in.weight"].astype(np.float32) * 99)


BROKEN = dict(broken_weights())


@pytest.mark.parametrize("what", BROKEN)
def test_tampered_weights_are_refused_at_load(what: str) -> None:
    with pytest.raises(IntegrityError, match=r"s3\.cell"):
        LightEngine(BROKEN[what])


@pytest.mark.parametrize("what", [what for what in BROKEN if what.startswith("bound")])
def test_tampered_weights_are_refused_by_the_torch_engine_too(what: str) -> None:
    with pytest.raises(IntegrityError, match=r"s3\.cell"):
        TorchEngine(BROKEN[what], "cpu")


# --- operations against plain formulas --------------------------------------------------------------------------------


def plain(
    tensors: Mapping[str, np.ndarray], grids: Mapping[str, int], xp: Any = NUMPY
) -> tuple[ExactOps, Callable[[np.ndarray, str], Act]]:
    return ExactOps(xp, tensors, grids), lambda x, grid: Act(xp.array(x.copy()), grid)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


@given(arrays(np.float32, (1, 2, 3, 16), elements=CODES))
def test_norm_is_layer_norm_with_an_epsilon_of_one_squared_code(x: np.ndarray) -> None:
    gamma, beta = (np.random.RandomState(7).standard_normal((2, 16)) + 1).astype(np.float32)
    ops, act = plain({"n.gamma": gamma, "n.beta": beta}, {"in": 5, "out": 7})
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    expected = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1) * gamma + beta) * 2.0**7
    got = ops.norm(act(x, "in"), Norm("n"), "out").x
    assert np.abs(got - np.clip(expected, -CODE_MAX, CODE_MAX)).max() <= HALF


def test_norm_is_exact_where_squares_pass_2_24_and_their_sum_2_31() -> None:
    x = np.full((1, 1, 1, 128), CODE_MAX, np.float32)
    x[..., ::2] = -CODE_MAX
    x[..., 0] = CODE_MAX
    ops, act = plain({"n.gamma": np.ones(128, np.float32), "n.beta": np.zeros(128, np.float32)}, {"in": 0, "out": 10})
    wide = x.astype(np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1) * 1024
    assert np.abs(ops.norm(act(x, "in"), Norm("n"), "out").x - expected).max() <= HALF


@given(arrays(np.float32, (1, 2, 2, 5), elements=TABLE_CODES), arrays(np.float32, (1, 2, 2, 5), elements=CODES))
def test_gate_and_blend_are_sigmoids_of_the_code(r: np.ndarray, a: np.ndarray) -> None:
    ops, act = plain({}, {"sigmoid": 8, "x": 4})
    s = sigmoid(r / 256)
    assert np.abs(ops.gate(act(r, "sigmoid"), act(a, "x")).x - s * a).max() <= HALF
    b = a[:, :1, :1, ::-1]
    assert np.abs(ops.blend(act(r, "sigmoid"), act(b, "x"), act(a, "x")).x - (s * b + (1 - s) * a)).max() <= HALF


@NAMESPACES
@pytest.mark.parametrize("grid", [GATE_GRID, EXP_GRID])
def test_what_indexes_a_table_is_clamped_to_it(xp: Any, grid: str) -> None:
    tensors = linear_tensors(3, (64,), 16)
    ops, act = plain(tensors, {"in": 4, grid: 4, "out": 4}, xp)
    codes_of = {g: xp.numpy(ops.linear(act(codes(4, 1, 5, 7, 64), "in"), Linear("l", 16), g).x) for g in (grid, "out")}
    assert np.abs(codes_of["out"]).max() > TABLE_MAX  # the clamp has something to do
    assert same_bits(codes_of[grid], np.clip(codes_of["out"], -TABLE_MAX, TABLE_MAX))


def test_tables_refuse_grids_whose_codes_go_beyond_them() -> None:
    ops, act = plain({"w.decay": np.ones(5, np.float32), "w.boost": np.ones(5, np.float32)}, {"x": 4, "w": 4})
    x = act(codes(1, 1, 2, 2, 5), "x")
    for call in (lambda: ops.gate(x, x), lambda: ops.blend(x, x, x), lambda: ops.wkv(x, x, Wkv("w"))):
        with pytest.raises(ValueError, match="beyond the"):
            call()


@given(arrays(np.float32, (1, 1, 2, 9), elements=CODES), st.integers(-12, 0))
def test_relu_squared_lrelu_and_scale_act_on_the_code(x: np.ndarray, e: int) -> None:
    scale = np.linspace(-3, 3, 9, dtype=np.float32)
    ops, act = plain({"c.scale": scale}, {"in": 4, "out": 8 + e})
    squared = np.maximum(x.astype(np.float64), 0) ** 2 * 2.0**e
    assert np.abs(ops.relu_squared(act(x, "in"), "out").x - np.minimum(squared, CODE_MAX)).max() <= HALF
    assert np.abs(ops.lrelu(act(x, "in")).x - np.where(x > 0, x, 0.1 * x.astype(np.float64))).max() <= HALF
    scaled = np.clip(x * scale.astype(np.float64), -CODE_MAX, CODE_MAX)
    assert np.abs(ops.channel_scale(act(x, "in"), Scale("c")).x - scaled).max() <= HALF


@given(arrays(np.float32, (2, 1, 3, 4), elements=CODES), arrays(np.float32, (2, 1, 3, 4), elements=CODES))
def test_add_is_clamped_and_refuses_other_grids(a: np.ndarray, b: np.ndarray) -> None:
    ops, act = plain({}, {"a": 3, "b": 4, "sigmoid": 8})
    np.testing.assert_array_equal(ops.add(act(a, "a"), act(b, "a")).x, np.clip(a + b, -CODE_MAX, CODE_MAX))
    with pytest.raises(ValueError, match="grids"):
        ops.add(act(a, "a"), act(b, "b"))
    with pytest.raises(ValueError, match="grids"):
        ops.blend(act(a % 8, "sigmoid"), act(a, "a"), act(b, "b"))


@NAMESPACES
def test_pool_is_the_mean_also_where_the_sum_passes_2_24(xp: Any) -> None:
    x = np.full((1, 128, 128, 3), CODE_MAX - 1, np.float32)  # 2^14 positions: a sum of 2^27
    x[0, :, ::2, 0] = CODE_MAX
    x[0, 0, 0, 1] = 1
    x[..., 2] = codes(8, 1, 128, 128)
    ops, act = plain({}, {"in": 4, "out": 4}, xp)
    got = xp.numpy(ops.pool(act(x, "in"), "out").x)
    assert got.shape == (1, 1, 1, 3)
    assert np.abs(got - x.mean((1, 2), keepdims=True, dtype=np.float64)).max() <= 0.5
    assert float(abs(xp.numpy(ops.pool(act(x[:, :5, :7] // 1024, "in"), "out").x)).max()) <= 8


@given(st.integers(0, 10**6), st.integers(2, 4))
def test_recall_is_softmax_over_the_two_most_similar(seed: int, references: int) -> None:
    ops, act = plain({}, {"k": 3, "v": 4})
    q, keys, values = codes(seed, 1, 1, 1, 4), codes(seed + 1, references, 4), codes(seed + 2, references, 6)
    got = ops.recall(
        act(q, "k"), [act(k[None, None, None], "k") for k in keys], [act(v[None, None, None], "v") for v in values], 0.1
    )
    wide = keys.astype(np.float64)
    norms = np.sqrt((wide**2).sum(1) + 1) * np.sqrt((q.astype(np.float64) ** 2).sum() + 1)
    sims = np.rint(wide @ q[0, 0, 0].astype(np.float64) / norms * 4096) / 4096  # similarities count in steps of 1/4096
    first, second = np.argsort(-sims, kind="stable")[:2]
    w = 1 / (1 + np.exp(-(sims[first] - sims[second]) / 0.1))
    expected = w * values[first].astype(np.float64) + (1 - w) * values[second]
    # The weights are integers of 2^15: half of that step times a difference of at most 16382 adds to the rounding.
    assert np.abs(got.x[0, 0, 0] - expected).max() <= 0.5 + 0.5 / WEIGHT_ONE * 2 * CODE_MAX + 1e-9


@NAMESPACES
def test_ties_of_similarity_go_to_the_older_references(xp: Any) -> None:
    ops, act = plain({}, {"k": 3, "v": 4}, xp)
    values = [np.full((1, 1, 1, 1), v, np.float32) for v in (1000, 500, -700, 20)]
    same = [act(np.full((1, 1, 1, 4), 7), "k") for _ in values]
    recalled = ops.recall(same[0], same, [act(v, "v") for v in values], 0.1)
    assert recalled.x.item() == 750  # (1000 + 500) / 2
    better = [act(np.array([[[[7, 7, 7, 1]]]], np.float32), "k"), *same[1:]]
    assert ops.recall(same[0], better, [act(v, "v") for v in values], 0.1).x.item() == -100  # (500 - 700) / 2


def test_one_reference_is_recalled_as_it_is() -> None:
    ops, act = plain({}, {"k": 3, "v": 4})
    value = codes(9, 1, 1, 1, 6)
    got = ops.recall(act(codes(1, 1, 1, 1, 4), "k"), [act(codes(2, 1, 1, 1, 4), "k")], [act(value, "v")], 0.1)
    np.testing.assert_array_equal(got.x, value)


@NAMESPACES
def test_memory_forgets_the_oldest_beyond_four(xp: Any) -> None:
    config = tiny.load().config
    memory = MemoryBank(
        tiny.exact_ops(xp), "memory", config.memory_references, config.memory_compression, config.memory_temperature
    )
    carries = [codes(i, 1, 3, 5, config.width, largest=400) for i in range(6)]
    for x in carries:
        memory.add(Act(xp.array(x), "s3.carry"))
    kept = MemoryBank(
        memory.ops, "memory", config.memory_references, config.memory_compression, config.memory_temperature
    )
    for x in carries[2:]:
        kept.add(Act(xp.array(x), "s3.carry"))
    assert len(memory.keys) == len(memory.values) == 4
    current = Act(xp.array(carries[0]), "s3.carry")
    a, b = (xp.numpy(m.retrieve_and_fuse(current).x) for m in (memory, kept))
    assert same_bits(a, b)


@given(arrays(np.int32, (1, 2, 2, 3), elements=st.integers(-(2**20) * 16 - 2**16, 2**20 * 16 + 2**16)))
def test_context_sees_y_hat_as_it_is_but_clamped(y_hat: np.ndarray) -> None:
    ops, _ = plain({}, {"y": 4})
    before = y_hat.copy()
    got = ops.latent_code(y_hat)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.clip(y_hat, -CODE_MAX, CODE_MAX))
    np.testing.assert_array_equal(y_hat, before)


@given(arrays(np.int32, (1, 1, 2, 8), elements=st.integers(-(2**20), 2**20)), st.integers(0, 10000))
def test_hyper_latent_is_z_on_its_grid_plus_the_bias_of_the_quality(z: np.ndarray, quality: int) -> None:
    ops = tiny.exact_ops()
    bias = np.array(interpolate(ops.tensors["h_s.quality.table"], Quality(quality)))
    scaled = np.clip(z.astype(np.int64) << tiny.load().grids["h_s.z"], -CODE_MAX, CODE_MAX)
    got = ops.hyper_latent(z, QualityBias("h_s.quality", "h_s.z", 8), [Quality(quality)])
    np.testing.assert_array_equal(got.x, np.clip(scaled + bias, -CODE_MAX, CODE_MAX))


# --- numpy and torch --------------------------------------------------------------------------------------------------

BLOCK = "s3.cell.block"
CALLS: dict[str, Callable[[ExactOps, Callable[[np.ndarray, str], Act], np.ndarray, np.ndarray], Any]] = {
    "linear": lambda o, act, a, b: o.linear(act(a, "s3.context"), Linear("s3.prior.0.up", 32)),
    "linear of two": lambda o, act, a, b: o.linear(
        [act(a, "s3.context"), act(b, "s3.carry")], Linear("s3.cell.in", 16)
    ),
    "head": lambda o, act, a, b: o.xp.concat(list(o.head([act(a, "s3.context")], Head("s1.first.1", 8))), 3),
    "depthwise": lambda o, act, a, b: o.depthwise(act(a, "s3.context"), Depthwise("s3.prior.0.dw")),
    "norm": lambda o, act, a, b: o.norm(act(a, "s3.cell.in"), Norm(f"{BLOCK}.norm1")),
    "lrelu": lambda o, act, a, b: o.lrelu(act(a, "s3.context")),
    "relu squared": lambda o, act, a, b: o.relu_squared(act(a, f"{BLOCK}.channel.k"), f"{BLOCK}.channel.k2"),
    "gate": lambda o, act, a, b: o.gate(act(a // 4, "sigmoid"), act(b, "s3.carry")),
    "blend": lambda o, act, a, b: o.blend(act(a // 4, "sigmoid"), act(b[:, :1, :1], "s3.carry"), act(b, "s3.carry")),
    "add": lambda o, act, a, b: o.add(act(a, "s3.carry"), act(b, "s3.carry")),
    "channel scale": lambda o, act, a, b: o.channel_scale(act(a, "s3.context"), Scale("step7.scale")),
    "place": lambda o, act, a, b: o.place(act(a, "s3.context"), STEPS[7], Place("step7.place", 8)),
    "wkv": lambda o, act, a, b: o.wkv(act(a // 4, "exp"), act(b, f"{BLOCK}.spatial.v"), Wkv(f"{BLOCK}.spatial.wkv")),
    "pool": lambda o, act, a, b: o.pool(act(a, "s3.carry"), "memory.pool"),
    "recall": lambda o, act, a, b: o.recall(
        act(a[:, :1, :1], "memory.query"),
        [act(x, "memory.key") for x in (b[:, :1, :1], a[:, -1:, -1:], b[:, -1:, :1])],
        [act(x, "s3.carry") for x in (a[:, :1, :1], b[:, :1, :1], a[:, -1:, -1:])],
        0.1,
    ),
    "hyper latent": lambda o, act, a, b: o.hyper_latent(
        o.xp.cast(act(a[..., :8], "").x, o.xp.i4), QualityBias("h_s.quality", "h_s.z", 8), [Quality(3333)]
    ),
    "latent code": lambda o, act, a, b: o.latent_code(o.xp.cast(act(a, "").x, o.xp.i4)),
}
IMAGES = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda s: arrays(np.float32, (2, 1, *s, 16), elements=CODES)
)


def test_every_operation_is_compared() -> None:
    named = {name.replace(" ", "_").removesuffix("_of_two") for name in CALLS}
    # The self-test's cases, below, have the others; what moves values is in the whole walk.
    assert named <= set(COMPUTING) <= named | {name.partition(",")[0] for name in selftest.cases(1, 4, 4, 4, 3, 2)}


def test_the_self_tests_cases_give_the_same_bits_in_torch() -> None:
    assert selftest.differences(lambda tensors: ExactOps(TORCH, tensors, selftest.GRIDS)) == []


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=30)
@given(images=IMAGES)
def test_operation_gives_the_same_bits_in_numpy_and_torch(name: str, images: np.ndarray) -> None:
    a = run_op(NUMPY, lambda act: CALLS[name](tiny.exact_ops(NUMPY), act, *images))
    b = run_op(TORCH, lambda act: CALLS[name](tiny.exact_ops(TORCH), act, *images))
    assert same_bits(a, b)
    assert a.dtype in (np.float32, np.int32)
    assert np.array_equal(a, np.rint(a))


def test_elementary_functions_have_the_same_bits_in_torch() -> None:
    x = exact_exp(np.linspace(-600, 600, 10_001))
    assert same_bits(rsqrt(NUMPY, x), TORCH.numpy(rsqrt(TORCH, TORCH.array(x))))


# --- the probe --------------------------------------------------------------------------------------------------------


@NAMESPACES
def test_probe_passes_here(xp: Any) -> None:
    probe(xp)


@pytest.mark.parametrize(
    "damage",
    [
        lambda a, b: np.matmul(a, b) * (1 + 2.0**-30),
        lambda a, b: np.matmul(a, b) + 1,
        lambda a, b: np.matmul(*(t.astype(np.float32) for t in (a, b))),
        lambda a, b: torch.matmul(torch.from_numpy(a).bfloat16(), torch.from_numpy(b).bfloat16()).double().numpy(),
        lambda a, b: np.matmul(*(t.astype(np.float16).astype(np.float64) for t in (a, b))),
    ],
    ids=["30 bits", "off by one", "float32", "bfloat16", "float16 (10 bits)"],
)
def test_probe_raises_where_products_are_not_exact(damage: Any) -> None:
    class Damaged(NumpyNamespace):
        def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.asarray(damage(a, b), np.float64)

    with pytest.raises(IntegrityError, match="not exact on this machine"):
        probe(Damaged())


# --- the trace --------------------------------------------------------------------------------------------------------
# The whole exact walk runs over arrays that record every operator that touches them. What may occur is listed: IEEE
# add, subtract, multiply, divide; exact integer operators and comparisons; integer sums in float64; rounding; moves.

NUMPY_ELEMENTWISE = {"add", "subtract", "multiply", "divide", "negative", "absolute", "maximum", "minimum", "clip"}
NUMPY_EXACT = {"rint", "equal", "greater", "right_shift", "left_shift", "matmul"}
NUMPY_MOVEMENT = {"concatenate", "stack", "take", "take_along_axis", "ones_like", "zeros_like", "argsort"}
WIDE = (np.float64, np.int64)


class Traced(np.ndarray):
    """An array that appends to `log`: operator, dtypes of its operands, dtype of its result, what is wrong with it."""

    log: list[tuple[str, tuple[str, ...], str, str]]

    @classmethod
    def of(cls, x: np.ndarray) -> Traced:
        return np.asarray(x).view(cls)

    @classmethod
    def note(cls, name: str, operands: Sequence[Any], result: Any, wrong: str = "") -> None:
        kinds = tuple(str(getattr(o, "dtype", type(o).__name__)) for o in operands)
        cls.log.append((name, kinds, str(getattr(result, "dtype", "")), wrong))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        bare = [np.asarray(i) if isinstance(i, Traced) else i for i in inputs]
        out = kwargs.pop("out", None)
        options = dict(kwargs)
        if out is not None:
            kwargs["out"] = tuple(np.asarray(o) if isinstance(o, Traced) else o for o in out)
        result = getattr(ufunc, method)(*bare, **kwargs)
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        self.note(name, inputs, result, numpy_fault(name, bare, result, options))
        if out is not None:
            return out[0]
        return Traced.of(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in (np.sum, np.clip):
            return super().__array_function__(func, types, args, kwargs)  # arrives as a ufunc
        operands = [a for a in flatten((args, kwargs)) if isinstance(a, np.ndarray)]
        wrong = "" if func.__name__ in NUMPY_MOVEMENT else "not on the list"
        if func is np.argsort and (distinct := np.sort(np.asarray(args[0]), -1)).shape[-1] > 1:
            wrong = "" if (np.diff(distinct, axis=-1) > 0).all() else "keys that tie"
        elif func in (np.concatenate, np.stack) and len({o.dtype for o in operands}) > 1:
            wrong = "mixed dtypes"
        bare_args, bare_kwargs = unwrap(args), {k: unwrap(v) for k, v in kwargs.items()}
        result = func(*bare_args, **bare_kwargs)
        self.note(func.__name__, operands, result, wrong)
        return Traced.of(result)

    def __setitem__(self, key: Any, value: Any) -> None:
        wrong = "" if getattr(value, "dtype", self.dtype) == self.dtype else "assignment changes the dtype"
        self.note("setitem", (self, value), self, wrong)
        super().__setitem__(key, value)

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        values, wrong = np.asarray(self), ""
        if np.dtype(dtype).kind == "i" and self.dtype.kind == "f":
            limit = np.iinfo(dtype)
            wrong = "" if (np.abs(values) <= limit.max).all() else "conversion out of range"
        result = super().astype(dtype, *args, **kwargs)
        self.note("astype", (self,), result, wrong)
        return result


def unwrap(value: Any) -> Any:
    if isinstance(value, Traced):
        return np.asarray(value)
    return type(value)(unwrap(v) for v in value) if isinstance(value, (list, tuple)) else value


def flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for v in value:
            yield from flatten(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from flatten(v)
    else:
        yield value


def numpy_fault(name: str, inputs: Sequence[Any], result: Any, options: Mapping[str, Any]) -> str:
    """What an operator breaks of the rules, "" where nothing.

    A scalar operand is allowed where it is exact by construction: a power of two of the array's own dtype, by which
    weights are scaled from grid to grid, once, when they are prepared.
    """
    if name == "add.reduce":
        integers = np.array_equal(inputs[0], np.rint(inputs[0])) and np.abs(inputs[0]).sum(dtype=np.float64) < 2**53
        return "" if result.dtype in WIDE and integers else "a sum of something else than integers in float64"
    if name == "matmul":
        exact = np.abs(inputs[0]).astype(np.float64) @ np.abs(inputs[1]).astype(np.float64)
        return "" if inputs[0].dtype == inputs[1].dtype == np.float64 and exact.max() < SUM_BOUND else "inexact product"
    if name not in NUMPY_ELEMENTWISE | NUMPY_EXACT:
        return "not on the list"
    if name == "divide" and np.result_type(*inputs).kind != "f":
        return "true division of integers"
    for i in inputs:
        if not isinstance(i, np.ndarray):
            if not isinstance(i, np.generic):
                return "a Python scalar"
            if name != "multiply" or np.frexp(i)[0] != 0.5:
                return "a scalar that is not a power of two"
    return "" if len({i.dtype for i in inputs}) == 1 else "mixed dtypes"


class TracingNamespace(NumpyNamespace):
    """Every array that the exact operations get is a Traced one."""

    def array(self, x: np.ndarray) -> np.ndarray:
        return Traced.of(super().array(x))

    def full(self, value: float, dtype: Any) -> np.ndarray:
        return Traced.of(super().full(value, dtype))

    def zeros(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        return Traced.of(super().zeros(shape, dtype))

    def numpy(self, x: np.ndarray) -> np.ndarray:
        assert isinstance(x, Traced)  # no operation has lost the trace
        return np.asarray(x)


def coder_over(xp: Any, entropy: Mapping[str, np.ndarray]) -> LatentCoder:
    w = tiny.load()
    return LatentCoder(w.config, ExactOps(xp, entropy, w.grids), w.under("tables"))


EXTREME = (tiny.DATA / f"{tiny.EXTREME}.hpcm").read_bytes()


def decode_streams(coder: LatentCoder) -> np.ndarray:
    """y_hat of the golden file that needs all that the coder can do, verified."""
    header, streams, verify = tiny.parts_of(EXTREME)
    return np.asarray(
        coder.decode(streams, verify, header.quality, header.latent_height, header.latent_width), dtype=np.int32
    )


def trace_numpy() -> list[tuple[str, tuple[str, ...], str, str]]:
    Traced.log = []
    entropy = {k: Traced.of(v) for k, v in tiny.load().under("entropy").items()}
    ops = ExactOps(TracingNamespace(), {}, tiny.load().grids)
    ops.tensors = entropy  # after the check of the bound, which is not part of the walk
    coder = LatentCoder(tiny.load().config, ops, tiny.load().under("tables"))
    y_hat = decode_streams(coder)
    assert sha256(y_hat) == sha256(decode_streams(coder_over(NUMPY, tiny.load().under("entropy"))))
    return Traced.log


def test_exact_path_uses_the_listed_operators_alone_in_numpy() -> None:
    log = trace_numpy()
    assert [entry for entry in log if entry[3]] == []
    seen = {name for name, _, _, _ in log}
    assert {"matmul", "multiply", "add", "divide", "rint", "add.reduce", "take", "argsort", "right_shift"} <= seen


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (lambda x: x * 0.1, "a Python scalar"),
        (lambda x: x * np.float64(2), "mixed dtypes"),
        (lambda x: x * np.float32(0.1), "a scalar that is not a power of two"),
        (lambda x: x + x.astype(np.float64), "mixed dtypes"),
        (lambda x: np.exp(x), "not on the list"),
        (lambda x: np.sqrt(x), "not on the list"),
        (lambda x: np.tanh(x), "not on the list"),
        (lambda x: x.mean(), "a sum of something else"),
        (lambda x: np.einsum("i,i", x, x), "not on the list"),
        (lambda x: x.sum(), "a sum of something else"),
        (lambda x: x.astype(np.int32) / x.astype(np.int32), "true division of integers"),
        (lambda x: np.argsort(x * x), "keys that tie"),
        (lambda x: (x * x.dtype.type(2) ** 30 * x.dtype.type(2) ** 30).astype(np.int32), "conversion out of range"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_trace_notices_what_is_not_on_the_list(step: Any, fault: str) -> None:
    Traced.log = []
    step(Traced.of(np.array([2.5, 1, 2.5], np.float32)))
    assert [wrong for _, _, _, wrong in Traced.log if wrong.startswith(fault)]


TORCH_ELEMENTWISE = {"add", "sub", "mul", "div", "maximum"}
TORCH_EXACT = {"round", "clamp", "eq", "gt", "__rshift__", "mm", "sum", "sort", "where"}
TORCH_MOVEMENT = {
    "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "argsort", "as_strided", "cat", "clone", "copy", "detach",
    "empty", "expand", "fill", "full", "gather", "index", "lift_fresh", "new_empty_strided", "permute", "select",
    "slice", "squeeze", "stack", "t", "transpose", "unsqueeze", "view", "zero", "zeros",
}  # fmt: skip


class TorchTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Appends to `log` every operator that reaches torch's kernels: (name, operands' dtypes, what is wrong with it)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log: list[tuple[str, tuple[str, ...], str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = re.sub(r"(?<=[a-z])_$", "", func._schema.name.removeprefix("aten::"))
        tensors = [a for a in flatten((args, kwargs or {})) if isinstance(a, torch.Tensor)]
        fault = torch_fault(name, args, kwargs or {}, result)
        self.log.append((name, tuple(str(t.dtype) for t in tensors), fault))
        return result


def torch_fault(name: str, args: Any, kwargs: Mapping[str, Any], result: Any) -> str:
    """What an operator breaks of the rules, "" where nothing.

    Numbers are allowed as limits of a clamp, which compares with them, and as places, shapes and values to fill with.
    """
    tensors = [a for a in flatten((args, kwargs)) if isinstance(a, torch.Tensor)]
    if name in ("copy", "fill") and len(tensors) == 2 and tensors[0].dtype != tensors[1].dtype:
        return "assignment changes the dtype"
    if name == "cat" and len({t.dtype for t in tensors}) > 1:
        return "mixed dtypes"
    if name in TORCH_MOVEMENT or name == "clamp":
        return ""
    if name not in TORCH_ELEMENTWISE | TORCH_EXACT:
        return "not on the list"
    if kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
        return "a fused factor"
    if name == "mm":
        exact = tensors[0].abs().double().numpy() @ tensors[1].abs().double().numpy()
        return "" if {t.dtype for t in tensors} == {torch.float64} and exact.max() < SUM_BOUND else "inexact product"
    if name == "sum":
        x = tensors[0].double()
        integers = bool((x == x.round()).all()) and float(x.abs().sum()) < 2**53
        return "" if result.dtype == torch.float64 and integers else "a sum of something else than integers in float64"
    if name == "sort":
        keys = result[0]
        return "" if keys.shape[-1] < 2 or bool((keys.diff(dim=-1) > 0).all()) else "keys that tie"
    if name == "div" and not tensors[0].is_floating_point():
        return "true division of integers"
    if name in TORCH_ELEMENTWISE and len(tensors) < 2:
        return "a Python scalar"
    return "" if len({t.dtype for t in tensors}) == 1 else "mixed dtypes"


def test_exact_path_uses_the_listed_operators_alone_in_torch() -> None:
    coder = coder_over(TORCH, tiny.load().under("entropy"))
    with TORCH.exact_mode(), TorchTrace() as trace:
        y_hat = decode_streams(coder)
    assert [entry for entry in trace.log if entry[2]] == []
    assert {"mm", "mul", "add", "div", "round", "sum", "index", "sort", "__rshift__"} <= {
        name for name, _, _ in trace.log
    }
    assert sha256(y_hat) == sha256(decode_streams(coder_over(NUMPY, tiny.load().under("entropy"))))


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (lambda x: x * 0.1, "a Python scalar|mixed dtypes"),
        (lambda x: 1 / x, "not on the list|a Python scalar"),
        (lambda x: x.double() + x, "mixed dtypes"),
        (lambda x: torch.add(x, x, alpha=2), "a fused factor"),
        (lambda x: torch.addcmul(x, x, x), "not on the list"),
        (lambda x: torch.lerp(x, x, x), "not on the list"),
        (lambda x: x.exp(), "not on the list"),
        (lambda x: x.sqrt(), "not on the list"),
        (lambda x: x.rsqrt(), "not on the list"),
        (lambda x: x.sigmoid(), "not on the list"),
        (lambda x: x.mean(), "not on the list"),
        (lambda x: x.sum(), "a sum of something else"),
        (lambda x: x.int() / x.int(), "true division of integers"),
        (lambda x: x.topk(2), "not on the list"),
        (lambda x: x.argsort(stable=True), "keys that tie"),
    ],
)
def test_torch_trace_notices_what_is_not_on_the_list(step: Any, fault: str) -> None:
    with TorchTrace() as trace:
        step(torch.tensor([2.5, 1, 2.5]))
    assert [wrong for _, _, wrong in trace.log if wrong and re.match(fault, wrong)]


def test_exact_mode_puts_torch_settings_back_also_after_an_error() -> None:
    with torch.autocast("cpu"), torch.enable_grad():
        with contextlib.suppress(KeyError), TORCH.exact_mode():
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
            raise KeyError
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_grad_enabled()


def test_exact_products_stand_in_an_enclosing_autocast() -> None:
    x = codes(1, 1, 6, 6, 16)
    expected = tiny.exact_ops().linear(Act(x, "s3.context"), Linear("s3.prior.0.up", 32)).x
    ops = tiny.exact_ops(TORCH)
    with torch.autocast("cpu"), TORCH.exact_mode():
        found = ops.linear(Act(TORCH.array(x), "s3.context"), Linear("s3.prior.0.up", 32)).x
    assert same_bits(np.asarray(found), expected)
