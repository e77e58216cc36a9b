"""Bi-WKV4: exact form, differentiable form and torch's operator against the formula written out in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.exact.biwkv import biwkv4_exact, decay_powers, own_factor
from hpcmcodec.exact.constants import BLOCK, EXPONENT_MAX
from hpcmcodec.exact.namespaces import NUMPY, TorchNamespace
from hpcmcodec.native import build, torch_ops

TORCH = TorchNamespace()
LENGTHS = (1, 2, 16, 63, 64, 65, 255, 1536)  # below, at and beyond whole blocks of 64; a Kodak image at s3
EXTREMES = {
    "ordinary": (1.0, 1.0, 1.0),
    "no decay": (1.0, 0.0, 0.0),
    "largest decay": (1.0, 1e9, 0.0),
    "smallest keys": (-8.0, 1.0, -1e9),
    "largest keys": (8.0, 1.0, 1e9),
}  # name -> factor of the keys, of the decay, of the boost


def matrix_form(k: Tensor, v: Tensor, decay: Tensor, boost: Tensor) -> Tensor:
    """y_t = sum_i W_ti v_i / sum_i W_ti, W_ti = exp(-(|t - i| - 1) w + k_i), W_tt = exp(u + k_t); w, u divided by T."""
    tokens = k.shape[1]
    t = torch.arange(tokens)
    distance = (t[:, None] - t).abs()[:, :, None] - 1.0
    w, u = decay.clamp(0, EXPONENT_MAX) / tokens, boost.clamp(-EXPONENT_MAX, EXPONENT_MAX) / tokens
    exponent = torch.where(distance < 0, u, -distance * w) + k[:, None]  # (B, T, T, C)
    weights = exponent.exp()
    return (weights * v[:, None]).sum(2) / weights.sum(2)


def inputs(tokens: int, kind: str = "ordinary", channels: int = 3, batch: int = 2) -> tuple[np.ndarray, ...]:
    """k, v (B, T, C) float64 and decay, boost (C,) float32."""
    rng = np.random.RandomState(tokens)
    of_keys, of_decay, of_boost = EXTREMES[kind]
    k = rng.uniform(-1.5, 1.5, (batch, tokens, channels)) * of_keys
    if abs(of_keys) > 1:
        k = np.full_like(k, of_keys)
        k[:, ::3] = -of_keys  # both ends of the range side by side
    v = rng.randint(-8191, 8192, k.shape).astype(np.float64)
    decay = (rng.uniform(0, 16, channels) * of_decay).astype(np.float32)
    boost = (rng.uniform(-4, 4, channels) * of_boost).astype(np.float32)
    return k, v, decay, boost


def exact(xp: object, k: np.ndarray, v: np.ndarray, decay: np.ndarray, boost: np.ndarray) -> np.ndarray:
    powers, own = decay_powers(decay, k.shape[1]), own_factor(boost, k.shape[1])
    arrays = [xp.array(a) for a in (np.exp(k), v, powers, own)]  # type: ignore[attr-defined]
    return np.asarray(xp.numpy(biwkv4_exact(xp, *arrays)))  # type: ignore[attr-defined]


def expected(k: np.ndarray, v: np.ndarray, decay: np.ndarray, boost: np.ndarray) -> np.ndarray:
    wide = [torch.from_numpy(a.astype(np.float64)) for a in (k, v, decay, boost)]
    # One channel at a time: the matrix of 1536 tokens takes 19 MB for each.
    pieces = [
        matrix_form(wide[0][..., c : c + 1], wide[1][..., c : c + 1], wide[2][c : c + 1], wide[3][c : c + 1])
        for c in range(k.shape[2])
    ]
    return torch.cat(pieces, 2).numpy()


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_exact_form_is_the_matrix_form_to_1e_12(tokens: int, kind: str) -> None:
    args = inputs(tokens, kind, channels=3 if tokens < 1000 else 2, batch=2 if tokens < 1000 else 1)
    scale = np.abs(args[1]).max()
    assert np.abs(exact(NUMPY, *args) - expected(*args)).max() < 1e-12 * scale


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_exact_form_has_the_same_bits_in_numpy_and_torch(tokens: int, kind: str) -> None:
    args = inputs(tokens, kind)
    a, b = (exact(xp, *args) for xp in (NUMPY, TORCH))
    assert a.dtype == b.dtype == np.float64
    assert a.tobytes() == b.tobytes()


def test_powers_are_products_of_one_factor_and_none_is_subnormal() -> None:
    decay = np.array([0, 1e-6, 3, 16, 1e9, -1], np.float32)  # clamped to 0..16
    for tokens in LENGTHS:
        powers = decay_powers(decay, tokens)
        assert powers.shape == (min(BLOCK, tokens) + 1, 6)
        w = np.clip(decay.astype(np.float64), 0, EXPONENT_MAX) / tokens
        j = np.arange(len(powers))[:, None]
        np.testing.assert_allclose(powers, np.exp(-w * j), rtol=1e-13)
        np.testing.assert_array_equal(powers[2:], powers[1:-1] * powers[1])
        assert powers.min() > 1e-300
    np.testing.assert_allclose(own_factor(np.array([-1e9, 0, 1e9], np.float32), 4), np.exp([-4.0, 0, 4]), rtol=1e-15)


@settings(max_examples=30)
@given(st.integers(1, 200), st.data())
def test_a_constant_sequence_is_its_own_average(tokens: int, data: st.DataObject) -> None:
    k, _, decay, boost = inputs(tokens, data.draw(st.sampled_from(sorted(EXTREMES))))
    value = data.draw(st.integers(-8191, 8191))
    y = exact(NUMPY, k, np.full_like(k, value), decay, boost)
    np.testing.assert_allclose(y, value, rtol=1e-12)


def test_each_image_of_a_batch_is_computed_alone() -> None:
    k, v, decay, boost = inputs(100)
    both = exact(NUMPY, k, v, decay, boost)
    np.testing.assert_array_equal(both[1:], exact(NUMPY, k[1:], v[1:], decay, boost))


def float_inputs(tokens: int, kind: str, dtype: torch.dtype) -> list[Tensor]:
    k, v, decay, boost = inputs(tokens, kind)
    # Values as training sees them; a decay beyond its clamp has no gradient, so one inside, near the ends.
    if kind == "largest decay":
        decay[:] = 15.99
    if kind == "no decay":
        decay[:] = 0.01
    return [torch.from_numpy(a.astype(np.float64)).to(dtype) for a in (k, v / 1024, decay, np.clip(boost, -15, 15))]


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("tokens", [t for t in LENGTHS if t < 1000])
def test_differentiable_form_is_the_matrix_form_in_values_and_gradients(tokens: int, kind: str) -> None:
    args = [a.requires_grad_() for a in float_inputs(tokens, kind, torch.float64)]
    other = [a.detach().clone().requires_grad_() for a in args]
    y, y_matrix = torch_ops.in_torch(*args), matrix_form(*other)
    # Terms are rescaled by up to exp(16): so much of float64's 16 digits goes.
    torch.testing.assert_close(y, y_matrix, rtol=1e-8, atol=1e-8)
    seed = torch.from_numpy(np.random.RandomState(1).standard_normal(y.shape))
    found, wanted = torch.autograd.grad(y, args, seed), torch.autograd.grad(y_matrix, other, seed)
    for name, a, b in zip(("k", "v", "decay", "boost"), found, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-7, err_msg=f"gradient of {name}")


def test_gradients_are_those_of_finite_differences() -> None:
    args = [a.requires_grad_() for a in float_inputs(5, "ordinary", torch.float64)]
    assert torch.autograd.gradcheck(torch_ops.in_torch, args)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_differentiable_form_in_float32_stays_close_with_ordinary_keys(tokens: int) -> None:
    args = float_inputs(tokens, "ordinary", torch.float32)
    wide = expected(*(a.numpy().astype(np.float64) for a in args))
    y = torch_ops.in_torch(*args)
    assert y.dtype == torch.float32
    # Values reach 8. Two tokens are the worst case (2e-4): one term outweighs the other by exp(8), and taking it from
    # the running sum leaves few digits of the other. Half a code of a grid of 1/256 is 2e-3.
    assert np.abs(y.numpy() - wide).max() < 5e-4


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("kind", EXTREMES)
def test_float32_values_and_gradients_are_finite_at_the_clamps(tokens: int, kind: str) -> None:
    args = [a.requires_grad_() for a in float_inputs(tokens, kind, torch.float32)]
    y = torch_ops.in_torch(*args)
    y.square().sum().backward()
    assert all(bool(torch.isfinite(t).all()) for t in (y, *(a.grad for a in args)))


# --- torch's operator ------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch, kernel_library: Path) -> Iterator[torch._ops.OpOverload]:
    """hpcm::biwkv4 over the kernels of this checkout."""
    monkeypatch.setenv("HPCM_OPS", "cpp")
    monkeypatch.setattr(build, "prebuilt", lambda folder, source: kernel_library)
    torch_ops._found.cache_clear()
    yield torch.ops.hpcm.biwkv4.default
    torch_ops._found.cache_clear()


OPERATOR_LENGTHS = (1, 2, 16, 255, 1536, 4096)
KEYS = {"ordinary": 1.5, "extreme": 80.0}


def operator_inputs(tokens: int, largest: float, channels: int = 3, batch: int = 2) -> list[Tensor]:
    """k, v, decay, boost and a gradient by y, float64 but with values that bfloat16 or float32 hold exactly."""
    rng = np.random.RandomState(tokens)
    k = rng.uniform(-largest, largest, (batch, tokens, channels))
    v, g = rng.standard_normal((2, *k.shape))
    decay, boost = np.linspace(0.5, 15.5, channels), np.linspace(-6, 6, channels)
    rounded = [torch.from_numpy(a).bfloat16().double() for a in (k, v)]
    return [*rounded, *(torch.from_numpy(a).float().double() for a in (decay, boost, g))]


def with_gradients(function: object, *args: Tensor) -> list[Tensor]:
    """y and the gradients by k, v, decay and boost."""
    *inputs, g = (a.detach().clone() for a in args)
    y = function(*(a.requires_grad_() for a in inputs))  # type: ignore[operator]
    return [y.detach(), *torch.autograd.grad(y, inputs, g)]


def matrix_gradients(k: Tensor, v: Tensor, decay: Tensor, boost: Tensor, g: Tensor) -> list[Tensor]:
    """y and its gradients, the sums over all pairs written out, a channel at a time."""
    tokens, out = k.shape[1], [torch.zeros_like(t) for t in (v, k, v, decay, boost)]
    t = torch.arange(tokens, dtype=torch.float64)
    gap = (t[:, None] - t).abs() - 1.0  # -1 for a token itself
    own, between = torch.eye(tokens, dtype=torch.bool), gap.clamp(min=0)
    for n in range(k.shape[0]):
        for c in range(k.shape[2]):
            shape = torch.where(own, boost[c] / tokens, -gap * (decay[c] / tokens)).exp()
            w = shape * k[n, :, c].exp()  # W_ti
            y = w @ v[n, :, c] / w.sum(1)
            a = w * (g[n, :, c] / w.sum(1))[:, None]  # g_t W_ti / D_t
            pull = a * (v[n, :, c] - y[:, None])
            out[0][n, :, c], out[1][n, :, c], out[2][n, :, c] = y, pull.sum(0), a.sum(0)
            out[3][c] -= (between * pull).sum() / tokens
            out[4][c] += pull.diagonal().sum() / tokens
    return out


@pytest.mark.parametrize("largest", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("tokens", OPERATOR_LENGTHS)
def test_operator_in_float64_is_the_matrix_form_in_values_and_gradients(operator, tokens: int, largest: float) -> None:
    args = operator_inputs(tokens, largest, *((3, 2) if tokens < 1000 else (1, 1)))
    found, wanted = with_gradients(operator, *args), matrix_gradients(*args)
    for name, a, b in zip(("y", "k", "v", "decay", "boost"), found, wanted, strict=True):
        # Relative to the largest of the sums' terms, which v and g bound: gradients of single tokens may cancel.
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 16, 255])
def test_operator_in_narrow_types_is_the_one_in_float64_rounded(operator, tokens: int, dtype: torch.dtype) -> None:
    args = operator_inputs(tokens, 1.5, channels=13)
    wide = with_gradients(operator, *args)
    k, v, decay, boost, g = args
    narrow = with_gradients(operator, k.to(dtype), v.to(dtype), decay.float(), boost.float(), g.float())
    assert [t.dtype for t in narrow] == [torch.float32, dtype, dtype, torch.float32, torch.float32]
    for a, b in zip(narrow, wide, strict=True):
        assert torch.equal(a, b.float().to(a.dtype))


def test_operator_passes_pytorchs_own_checks(operator) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        k, v, decay, boost, _ = operator_inputs(5, 1.5)
        args = [a.to(dtype).requires_grad_() for a in (k, v)] + [a.float().requires_grad_() for a in (decay, boost)]
        torch.library.opcheck(operator, args)
        torch.library.opcheck(torch.ops.hpcm.biwkv4_gradients.default, [a.detach() for a in (operator(*args), *args)])


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_operators_gradients_are_those_of_finite_differences(operator, tokens: int) -> None:
    assert torch.autograd.gradcheck(operator, [a.requires_grad_() for a in operator_inputs(tokens, 1.5)[:4]])


def test_operators_decay_and_boost_have_no_gradient_beyond_their_clamps(operator) -> None:
    k, v, _, _, g = operator_inputs(16, 1.5, channels=4)
    decay, boost = torch.tensor([-1.0, 0, 16, 17]).double(), torch.tensor([-17.0, -16, 16, 17]).double()
    _, _, _, by_decay, by_boost = with_gradients(operator, k, v, decay, boost, g)
    assert (by_decay != 0).tolist() == (by_boost != 0).tolist() == [False, True, True, False]
    clamped = [k, v, decay.clamp(0, 16), boost.clamp(-16, 16)]
    assert torch.equal(operator(k, v, decay, boost), operator(*clamped))


def test_operator_gives_the_same_bits_with_any_number_of_threads(operator) -> None:
    args = operator_inputs(255, 1.5, channels=77, batch=5)
    before, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(with_gradients(operator, *args))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_operator_takes_views_and_gradients_that_are_not_contiguous(operator) -> None:
    args = operator_inputs(16, 1.5, channels=10)
    whole = with_gradients(operator, *args)
    k, v, decay, boost, _ = args
    for views in ([t.mT.contiguous().mT for t in (k, v)], [torch.stack([t, t], 2)[:, :, 1] for t in (k, v)]):
        y = operator(*(t.requires_grad_() for t in views), decay, boost)
        assert torch.equal(y, whole[0])
    summed = with_gradients(operator, k, v, decay, boost, torch.ones(1).double().expand(k.shape))
    dense = with_gradients(operator, k, v, decay, boost, torch.ones_like(k))
    assert all(torch.equal(a, b) for a, b in zip(summed, dense, strict=True))


def test_operator_lets_what_is_not_finite_through(operator) -> None:
    k, v, decay, boost, _ = operator_inputs(16, 1.5)
    k[0, 3, 1] = torch.nan
    y = operator(k, v, decay, boost)
    assert y[0, :, 1].isnan().all()
    assert y.isnan().sum() == 16


def test_operator_refuses_what_it_cannot_compute(operator) -> None:
    k, v, decay, boost, _ = operator_inputs(16, 1.5)
    for args in ((k, v[:, 1:], decay, boost), (k, v, decay[1:], boost), (k[:, :0], v[:, :0], decay, boost)):
        with pytest.raises(ValueError, match="biwkv4 takes"):
            operator(*args)
    for args in ((k.half(), v.half(), decay, boost), (k.float(), v, decay, boost)):
        with pytest.raises(TypeError, match="biwkv4 takes"):
            operator(*args)


def test_operator_says_when_there_is_no_memory(operator, monkeypatch: pytest.MonkeyPatch) -> None:
    args = operator_inputs(16, 1.5)
    kernels = torch_ops.kernels_for(torch.device("cpu"))
    monkeypatch.setattr(kernels, "float_biwkv4_gradients", lambda *arguments: 1)
    with pytest.raises(MemoryError, match="biwkv4"):
        with_gradients(operator, *args)
    monkeypatch.setattr(kernels, "float_biwkv4", lambda *arguments: 1)
    with pytest.raises(MemoryError, match="biwkv4"):
        operator(*args[:4])


def test_models_call_the_operator_where_there_are_kernels_and_torchs_own_operators_elsewhere(
    operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, v, decay, boost, _ = operator_inputs(16, 1.5)
    inputs = k.bfloat16(), v.float(), decay.float(), boost.float()
    with_kernels = torch_ops.biwkv4(*inputs)
    assert torch.equal(with_kernels, operator(k.float(), v.float(), *inputs[2:]))
    monkeypatch.setenv("HPCM_OPS", "reference")
    without = torch_ops.biwkv4(*inputs)
    assert torch.equal(without, torch_ops.in_torch(k.float(), v.float(), *inputs[2:]))
    assert without.dtype == with_kernels.dtype == torch.float32
    torch.testing.assert_close(without, with_kernels, rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedError, match="HPCM_OPS=reference"):
        operator(k, v, decay, boost)
