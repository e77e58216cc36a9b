"""The synthesis in integers: the same pixels everywhere, close to the float network's, whatever the latents."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from hpcmcodec import codec, weights
from hpcmcodec.container import LATENT
from hpcmcodec.engines import strips
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.exact.constants import CODE_MAX, FIXED_GRIDS, WIDE_GRID, WIDE_MAX
from hpcmcodec.exact.elementary import gains
from hpcmcodec.exact.layers import Dequantise, Linear, Read
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.ops import Act
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.exact.schedule import decimate, grid
from hpcmcodec.model import fold
from hpcmcodec.model.config import LITE, TINY
from hpcmcodec.model.synthesis import THUMBNAIL, Rows, halo, synthesise, thumbnail_of
from hpcmcodec.native import loader
from hpcmcodec.native.compiled import KernelOps
from hpcmcodec.quality import Quality
from hpcmcodec.threads import count
from tools.hashes import pixel_hashes, sha256

GOLDEN = json.loads((tiny.DATA / "golden.json").read_text(encoding="utf-8"))
STORED = tiny.load().synthesis()
LEAST, MOST = -(2**31), 2**31 - 1


def reference() -> ExactOps:
    return ExactOps(NUMPY, STORED, FIXED_GRIDS)


@pytest.fixture(autouse=True)
def packaged() -> Iterator[None]:
    with tiny.installed():
        yield


@pytest.fixture
def kernels() -> Iterator[Any]:
    found = loader.find(background=False).kernels
    if found is None:
        pytest.skip("there are no compiled kernels")
    variant = found.variant
    yield found
    found.choose(variant)
    found.set_threads(count())


def y_hat(h: int, w: int, seed: int = 0, config: Any = TINY) -> np.ndarray:
    rng = np.random.RandomState(seed)
    return (rng.standard_t(2, (h, w, config.latent)) * 40).clip(-(2**20), 2**20).astype(np.int32)


def extremes(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Latents that no encoder makes: at the ends of int32, and around those of codes."""
    ends = [LEAST, LEAST + 1, -(2**24) - 1, -CODE_MAX - 1, -1, 0, 1, CODE_MAX, 2**24 + 1, MOST - 1, MOST]
    return np.random.RandomState(seed).choice(np.array(ends, np.int32), (h, w, TINY.latent))


# --- the same pixels everywhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_show_the_same_pixels_with_numpy_alone(name: str) -> None:
    engine = LightEngine(tiny.load())
    engine.synthesis = reference()
    found = pixel_hashes((tiny.DATA / f"{name}.hpcm").read_bytes(), engine)
    assert found == {k: GOLDEN[name][k] for k in found}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_show_the_same_pixels_with_kernels_of_every_instruction_set_and_number_of_threads(
    name: str, kernels: Any
) -> None:
    engine = LightEngine(tiny.load())
    engine.synthesis = KernelOps(kernels, STORED, FIXED_GRIDS)
    for variant in kernels.variants:
        for threads in (1, 2):
            kernels.choose(variant)
            kernels.set_threads(threads)
            found = pixel_hashes((tiny.DATA / f"{name}.hpcm").read_bytes(), engine)
            assert found == {k: GOLDEN[name][k] for k in found}, (variant, threads)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_show_the_same_pixels_with_torch(name: str) -> None:
    pytest.importorskip("torch")
    from hpcmcodec.engines.torch import TorchEngine

    found = pixel_hashes((tiny.DATA / f"{name}.hpcm").read_bytes(), TorchEngine(tiny.load(), "cpu"))
    assert found == {k: GOLDEN[name][k] for k in found}


@pytest.mark.parametrize("name", GOLDEN)
def test_decode_gives_the_golden_pixels(name: str) -> None:
    data = (tiny.DATA / f"{name}.hpcm").read_bytes()
    image = np.asarray(codec.decode(data))
    y = codec.decode_latents(data)
    whole = synthesise(reference(), TINY, y[None], [Quality(codec.container.parse_header(data).quality.hundredths)])[0]
    assert sha256(whole) == GOLDEN[name]["pixels"]
    np.testing.assert_array_equal(image, whole[: image.shape[0], : image.shape[1]])


@pytest.mark.parametrize("seed", range(3))
def test_latents_that_no_encoder_makes_give_the_same_pixels_everywhere(seed: int, kernels: Any) -> None:
    y = extremes(7, 9, seed)[None]
    for quality in (Quality(0), Quality(3333), Quality(10000)):
        expected = synthesise(reference(), TINY, y, [quality], 16)
        assert expected.min() >= 0
        assert expected.max() <= 65535
        for variant in kernels.variants:
            kernels.choose(variant)
            found = synthesise(KernelOps(kernels, STORED, FIXED_GRIDS), TINY, y, [quality], 16)
            np.testing.assert_array_equal(found, expected, variant)


@pytest.mark.slow
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_kodak_shows_the_same_pixels_with_numpy_alone_with_all_kernels_and_with_torch(
    kodak: list[Path], kernels: Any, quality: int
) -> None:
    pytest.importorskip("torch")
    from hpcmcodec.engines.torch import TorchEngine

    w = weights.load(weights.DEFAULT_MODEL)
    compiled, plain, torch = LightEngine(w), LightEngine(w), TorchEngine(w, "cpu")
    compiled.synthesis = KernelOps(kernels, w.synthesis(), w.grids)
    plain.synthesis = ExactOps(NUMPY, w.synthesis(), w.grids)
    for path in kodak:
        y, q = codec.decode_latents(codec.encode(path, quality)), Quality.of(quality)
        wanted = sha256(plain.synthesise(y, q))
        assert sha256(torch.synthesise(y, q, None)) == wanted, path
        for variant in kernels.variants:
            for threads in (1, 2):
                kernels.choose(variant)
                kernels.set_threads(threads)
                assert sha256(compiled.synthesise(y, q)) == wanted, (path, variant, threads)
        kernels.choose(kernels.variants[0])


def test_decoding_imports_neither_onnxruntime_nor_torch() -> None:
    name = next(iter(GOLDEN))
    program = (
        "import sys, tiny\nfrom hpcmcodec import codec\nwith tiny.installed():\n"
        f"    codec.decode({str(tiny.DATA / f'{name}.hpcm')!r})\n"
        "print([m for m in ('onnxruntime', 'torch') if m in sys.modules])"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    code = f"import sys; sys.path[:0] = {paths!r}\n{program}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- the proof that these tests can fail ------------------------------------------------------------------------------


class WithoutRounding(ExactOps):
    """A block's inside as floats, in an order of its own: what a float synthesis would do."""

    order: np.ndarray | None = None

    def linear(self, inputs: Any, layer: Linear, grid: str | None = None) -> Act:
        w = self.tensors[f"{layer.name}.weight"].astype(np.float32) * self.tensors[f"{layer.name}.step"][0][:, None]
        order = np.random.RandomState(1).permutation(w.shape[1]) if self.order is None else self.order
        out = inputs.x[..., order].reshape(-1, w.shape[1]) @ w[:, order].T + self.tensors[f"{layer.name}.bias"]
        return Act(out.reshape(*inputs.x.shape[:-1], -1), grid or layer.name)


def test_proof_that_these_tests_can_fail_a_float_operation_changes_the_hash() -> None:
    engine = LightEngine(tiny.load())
    engine.synthesis = WithoutRounding(NUMPY, STORED, FIXED_GRIDS)
    changed = []
    for name in GOLDEN:
        found = pixel_hashes((tiny.DATA / f"{name}.hpcm").read_bytes(), engine)
        changed += [k for k in found if found[k] != GOLDEN[name][k]]
    assert "pixels of 16 bits" in changed


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [tiny.NAME, weights.DEFAULT_MODEL])
def test_wide_values_cannot_leave_int32(name: str) -> None:
    w = weights.load(name)
    added = 1 + max(w.config.synthesis_blocks)  # layers that add to one stream
    assert added * WIDE_MAX < 2**31


def test_a_layer_adds_no_more_than_its_limit_to_a_wide_value() -> None:
    layer = Linear("g_s.b8.0.down", TINY.synthesis_widths[0])
    n = STORED["g_s.b8.0.down.weight"].shape[1]
    stored = STORED | {"g_s.b8.0.down.step": STORED["g_s.b8.0.down.step"] * 1e6}
    ops = ExactOps(NUMPY, stored, FIXED_GRIDS)
    branch = Act(np.full((1, 2, 2, n), float(CODE_MAX), np.float32), "channel")
    base = np.full((1, 2, 2, layer.channels), 3 * WIDE_MAX, np.int32)
    out = ops.wide(branch, layer, WIDE_GRID, Act(base.copy(), WIDE_GRID)).x
    assert set(np.unique(out - base)) == {-WIDE_MAX, WIDE_MAX}


@given(st.lists(st.integers(LEAST, MOST), min_size=4, max_size=4), st.integers(0, 10000))
def test_a_code_is_the_nearest_one_to_y_hat_times_its_factor(values: list[int], quality: int) -> None:
    y = np.resize(np.array(values, np.int32), (1, 1, 1, TINY.latent))
    found = reference().dequantise(y, Dequantise("ungain", TINY.qualities), [Quality(quality)]).x
    factors = gains(STORED["ungain.log_scale"], Quality(quality)) * STORED["ungain.scale"]
    wanted = np.clip(y * factors, -CODE_MAX, CODE_MAX)
    assert np.abs(found - wanted).max() <= 0.5 + 1e-3  # float32 rounds the factor and the product
    assert (found == np.rint(found)).all()


@given(st.integers(-(2**25), 2**25))
def test_a_read_is_the_nearest_code(value: int) -> None:
    x = np.full((1, 1, 1, TINY.synthesis_widths[0]), value, np.int32)
    found = reference().read(Act(x, WIDE_GRID), Read("g_s.head.read")).x
    scale = STORED["g_s.head.read.scale"].astype(np.float64)
    assert set(np.frexp(scale)[0]) == {0.5}  # powers of two
    wanted = np.clip(np.rint(np.float64(np.float32(value)) * scale), -CODE_MAX, CODE_MAX)
    np.testing.assert_array_equal(found[0, 0, 0], wanted)


@pytest.mark.parametrize("quality", [0, 1, 1428, 1429, 5000, 9999, 10000])
def test_gains_are_log_linear_between_anchors(quality: int) -> None:
    table = np.random.RandomState(0).uniform(-5, 5, (8, 300)).astype(np.float32)
    position = quality * 7 / 10000
    i = min(int(position), 6)
    wanted = np.exp(table[i] * (1 - (position - i)) + table[i + 1].astype(np.float64) * (position - i))
    np.testing.assert_allclose(gains(table, Quality(quality)), wanted, rtol=1e-6)


# --- depth ------------------------------------------------------------------------------------------------------------


def test_sixteen_bits_are_the_same_picture_more_finely() -> None:
    y = y_hat(5, 4)
    engine = LightEngine(tiny.load())
    coarse, fine = (engine.synthesise(y, Quality(5000), depth=d) for d in (8, 16))
    assert (coarse.dtype, fine.dtype) == (np.uint8, np.uint16)
    inside = (fine > 0) & (fine < 65535)
    assert np.abs(fine / 257 - coarse)[inside].max() <= 0.5 + 1 / 257
    assert len(np.unique(fine)) > 4 * len(np.unique(coarse))


# --- parts of the plane -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latents", [1, 16, 40])
@pytest.mark.parametrize("size", [(1, 20), (27, 3), (3, 29), (17, 19)])
def test_parts_of_the_plane_give_what_the_whole_gives(
    size: tuple[int, int], latents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, engine = y_hat(*size), LightEngine(tiny.load())
    whole = synthesise(reference(), TINY, y[None], [Quality(7000)])[0]
    monkeypatch.setattr(strips, "SYNTHESIS_LATENTS", latents)
    monkeypatch.setattr(strips, "PART_COLUMNS", 8)
    ticks: list[float] = []
    np.testing.assert_array_equal(engine.synthesise(y, Quality(7000), ticks.append), whole)
    assert ticks == sorted(ticks)
    assert ticks[-1] == 1


@given(st.lists(st.integers(0, 4), max_size=5), st.integers(0, 2**16))
def test_a_plane_that_goes_through_the_synthesis_row_by_row_gives_what_the_whole_gives(
    cuts: list[int], seed: int
) -> None:
    y, rows, edges, found = y_hat(4, 3, seed), Rows(), [0, *sorted(cuts), 4], []
    for i, (a, b) in enumerate(pairwise(edges), 2):
        rows.last = i == len(edges)
        found.append(synthesise(reference(), TINY, y[None, a:b], [Quality(7000)], 16, rows)[0])
    whole = synthesise(reference(), TINY, y[None], [Quality(7000)], 16)[0]
    np.testing.assert_array_equal(np.concatenate(found), whole)


def test_the_halo_is_what_pixels_depend_on() -> None:
    assert halo(LITE) == 6
    y = y_hat(13, 13)
    other = y.copy()
    other[6, 6] += 4000
    a, b = (synthesise(reference(), TINY, v[None], [Quality(5000)], 16)[0] for v in (y, other))
    rows = np.flatnonzero((a != b).any((1, 2))) // LATENT
    assert rows.min() >= 6 - halo(TINY)
    assert rows.max() <= 6 + halo(TINY)


# --- what training holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [0, 4321, 10000])
def test_pixels_are_the_float_networks_up_to_rounding(quality: int) -> None:
    torch = pytest.importorskip("torch")
    from hpcmcodec.pretrained import load_model

    picture = tiny.picture(96, 64)
    y, _ = LightEngine(tiny.load()).analyse(picture, Quality(quality), None)
    y = np.rint(y * 16).astype(np.int32)
    with torch.no_grad():
        x_hat = load_model(tiny.NAME).synthesise(torch.from_numpy(y)[None] / 16, torch.tensor([quality / 10000]))
    wanted = x_hat[0].permute(1, 2, 0).numpy().clip(0, 1) * 65535
    found = LightEngine(tiny.load()).synthesise(y, Quality(quality), depth=16)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 65535 * 2e-4


def test_folding_exponents_into_weights_and_back_changes_nothing_that_is_computed() -> None:
    torch = pytest.importorskip("torch")
    from hpcmcodec.model.hpcm import HPCM

    torch.manual_seed(0)
    model, rng = HPCM(TINY), np.random.RandomState(0)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    exponents = {f.codes.name: rng.randint(3, 12, f.codes.out) for f in fold.folded(TINY)}
    derived = fold.derived(TINY, state, exponents)
    stored = dict(derived)  # as if rows were not rounded: integers with a step of one
    for f in fold.folded(TINY):
        stored[f"{f.layer.name}.step"] = np.ones((1, f.layer.out), np.float32)
    again = HPCM(TINY)
    again.load_state_dict(
        {k: torch.from_numpy(v) for k, v in (state | fold.training(TINY, stored)).items()}, strict=False
    )
    y, q = torch.randn(1, 3, 4, TINY.latent), torch.tensor([0.3])
    with torch.no_grad():
        torch.testing.assert_close(again.synthesise(y, q), model.synthesise(y, q))


# --- thumbnails -------------------------------------------------------------------------------------------------------


def box(pixels: np.ndarray) -> np.ndarray:
    side = LATENT // THUMBNAIL
    h, w, _ = pixels.shape
    return pixels.reshape(h // side, side, w // side, side, 3).mean((1, 3))


@pytest.mark.parametrize("scale", ["s2", "s3"])
def test_a_thumbnail_is_an_eighth_of_the_picture(scale: str) -> None:
    y = y_hat(5, 7)
    coarse = decimate(y[None], scale, np.zeros((1, *grid(scale, 5, 7), TINY.latent), np.int32))
    found = thumbnail_of(reference(), TINY, coarse, [Quality(5000)], scale)[0]
    stride = {"s2": 2, "s3": 1}[scale]
    assert found.shape == (2 * stride * -(-5 // stride), 2 * stride * -(-7 // stride), 3)


@pytest.mark.parametrize(("scale", "least"), [(None, 30.0), ("s2", 12.0)])
def test_a_thumbnail_of_the_packaged_model_looks_like_the_picture_scaled_down(
    scale: str | None, least: float, photos: dict[str, Path]
) -> None:
    data = codec.encode(photos["coffee"], 60)
    whole = np.asarray(codec.decode(data), np.float64)
    small = np.asarray(codec.decode(data, scale=scale, thumbnail=True), np.float64)
    assert small.shape == (50, 75, 3)
    assert -10 * np.log10(np.mean((small - box(whole)) ** 2) / 255**2) > least


def test_a_thumbnail_of_two_scales_needs_no_more_of_the_file() -> None:
    data = tiny.encode(100, 70)
    header = codec.container.parse_header(data)
    whole = codec.decode(data, scale="s2", thumbnail=True)
    assert whole.size == (13, 9)
    cut = data[: len(data) - header.stream_info("s3", 0).length]
    assert np.array_equal(np.asarray(codec.decode(cut, scale="s2", thumbnail=True)), np.asarray(whole))
