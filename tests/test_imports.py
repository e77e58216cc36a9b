"""Published checkpoints: what is read and refused, and that imports compute what the authors' networks do."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from hpcmcodec import codec, weights  # noqa: E402
from hpcmcodec.engines import base  # noqa: E402
from hpcmcodec.errors import HpcmError, InputError, UnsupportedError  # noqa: E402
from hpcmcodec.exact.reference import ExactOps  # noqa: E402
from hpcmcodec.exact.schedule import STEPS, decimate, fold, grid  # noqa: E402
from hpcmcodec.model.config import MEMBERS, Config  # noqa: E402
from hpcmcodec.native.compiled import KernelOps  # noqa: E402
from hpcmcodec.training import imports  # noqa: E402
from hpcmcodec.training.__main__ import main  # noqa: E402
from tests.published import Published, Sizes  # noqa: E402
from tests.tiny import picture  # noqa: E402

FULL = {
    "base-baseline": Sizes(),
    "base-phi": Sizes(cells=False),
    "large": Sizes(deep=8, priors=((2, 2), (4, 3))),
}
MINI = Sizes(16, 8, (8, 8, 16), 2, heads=4)
BUFFERS = {
    **{name: torch.zeros(0) for name in ("scale_table", "quantized_cdf_y", "quantized_cdf_z", "cdf_length_y")},
    **{name: torch.zeros(0) for name in ("cdf_length_z", "offset_y", "offset_z")},
    "entropy_estimation.beta": torch.tensor([1.5]),
    "entropy_estimation.scale_lower_bound.bound": torch.tensor([0.12]),
    "entropy_estimation.likelihood_lower_bound.bound": torch.tensor([1e-9]),
}
"""What a checkpoint holds besides parameters."""


def config_of(sizes: Sizes) -> Config:
    """The member of this size."""
    first = MEMBERS["base-baseline" if sizes.cells else "base-phi"]
    widths: dict[str, Any] = {"latent": sizes.m, "hyper": sizes.n, "transform_widths": sizes.widths}
    widths |= {"deep_blocks": sizes.deep, "prior_blocks": sizes.priors, "attention_heads": sizes.heads}
    return replace(first, name="mini-import", precision=16, **widths)


def image(width: int, height: int) -> Tensor:
    return torch.from_numpy(picture(width, height)).permute(2, 0, 1)[None].float() / 255


def in_coding_order(plane: Tensor) -> np.ndarray:
    """What a published evaluator has of each latent (M, h, w), as our estimates order it."""
    y = plane.permute(1, 2, 0)[None].numpy()
    parts = []
    for step in STEPS:
        rows, columns = grid(step.scale, *y.shape[1:3])
        at = decimate(y, step.scale, np.zeros((1, rows, columns, y.shape[3]), y.dtype))
        folded = np.zeros((1, rows, columns, y.shape[3] // len(step.groups)), y.dtype)
        parts.append(fold(at, step, folded).ravel())
    return np.concatenate(parts)


def estimated(state: dict[str, Tensor], config: Config, x: Tensor) -> dict[str, np.ndarray]:
    """What the import of a checkpoint finds, in floating point."""
    model, q = imports.member(state, config), torch.zeros(1)
    with torch.no_grad():
        y, z = model.analyse(x, q)
        y_hat, found = model.estimate(y, z, q)
        x_hat = model.synthesise(y_hat, q)
    return {"y": found["y"][0].numpy(), "z": found["z"][0].numpy(), "x_hat": x_hat.numpy(), "y_hat": y_hat.numpy()}


def assert_same(published: Published, config: Config, x: Tensor) -> None:
    theirs, ours = published(x), estimated(published.state_dict() | BUFFERS, config, x)
    assert np.abs(theirs["x_hat"].numpy() - ours["x_hat"]).max() < 1e-5
    assert np.abs(in_coding_order(theirs["y"]) - ours["y"]).max() < 2e-6
    z = theirs["z"].permute(1, 2, 0).numpy().ravel()
    assert np.abs(z - ours["z"]).max() < 2e-6
    assert -np.log2(ours["y"]).mean() > 0.5  # symbols that cost something
    levels = np.abs(theirs["y_hat"].numpy())
    assert levels.mean() > 1


# --- the same values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("cells", [False, True])
@pytest.mark.parametrize("size", [(128, 128), (64, 192)])
def test_an_import_computes_what_its_checkpoint_does(size: tuple[int, int], cells: bool, adaptive: bool) -> None:
    sizes = MINI._replace(cells=cells, adaptive=adaptive)
    assert_same(Published(sizes), config_of(sizes), image(*size))


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("name", FULL)
def test_an_import_of_full_size_computes_what_its_checkpoint_does(name: str, adaptive: bool) -> None:
    published = Published(FULL[name]._replace(adaptive=adaptive))
    assert_same(published, imports.recognised(published.state_dict()), image(256, 256))


def keys() -> list[Any]:
    """Those of a checkpoint; all but every twelfth are slow."""
    with torch.device("meta"):
        names = list(Published(MINI._replace(adaptive=True)).state_dict())
    return [name if i % 12 == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(names)]


@pytest.mark.parametrize("key", keys())
def test_every_key_of_a_checkpoint_has_its_effect(key: str) -> None:
    sizes, x = MINI._replace(adaptive=True), image(64, 64)
    published = Published(sizes)
    state = published.state_dict()
    before = estimated(state, config_of(sizes), x)
    torch.manual_seed(1)
    with torch.no_grad():
        state[key].add_(torch.randn_like(state[key]), alpha=0.5)  # the evaluator's own parameter
    after = estimated(state, config_of(sizes), x)
    change = max(float(np.abs(before[k] - after[k]).max()) for k in before)
    if key.endswith("conv_k.bias"):  # a bias of all keys moves all scores of a query alike, which softmax cancels
        assert change < 1e-4
        assert imports.layout(config_of(sizes), adaptive=True)[key].name.endswith("cell/k/bias")
    else:
        assert change > 1e-3


def test_misplaced_parameters_and_unrotated_adaptors_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    published, x = Published(MINI), image(128, 128)
    state, expected = published.state_dict(), in_coding_order(published(x)["y"])

    def differs() -> bool:
        return bool(np.abs(estimated(state, config_of(MINI), x)["y"] - expected).max() > 1e-3)

    assert not differs()
    right = imports.Member
    with monkeypatch.context() as patch:
        patch.setattr(imports, "Member", lambda c: right(replace(c, hyper_s2="right")))
        assert differs()
    with monkeypatch.context() as patch:
        straight = {"s1": ((0, 1),), "s2": ((0, 2), (1, 3), (2, 4)), "s3": tuple((i, i + 5) for i in range(6))}
        patch.setattr(imports, "ADAPTORS", straight)
        assert differs()
    m = MINI.m
    for key in ("h_s.branch.5.branch.3.bias", "context_net.0.bias"):  # halves swapped: means before scales
        state[key] = torch.cat([state[key][m:], state[key][:m]])
    assert differs()


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("base-baseline", 280), ("base-phi", 256), ("large", 346)])
def test_checkpoints_are_recognised_by_their_keys_and_map_to_every_parameter(name: str, count: int) -> None:
    with torch.device("meta"):
        state = Published(FULL[name]).state_dict()
        ours = imports.Member(MEMBERS[name]).state_dict()
    assert len(state | BUFFERS) == count
    assert imports.recognised(state) is MEMBERS[name]
    for adaptive in (False, True):
        places = imports.layout(MEMBERS[name], adaptive=adaptive)
        assert places.keys() - state.keys() == {f"adaptive_params_list.{i}" for i in range(10 * adaptive)}
        assert all(tuple(state[key].shape) == place.shape for key, place in places.items() if key in state)
        filled = {place.name for place in places.values()} | {f"raw.step{i}/scale/scale" for i in range(1, 11)}
        assert filled == set(ours)
        assert len({place.name for place in places.values()}) == len(places)


def mini_state() -> dict[str, Tensor]:
    return dict(Published(MINI).state_dict()) | BUFFERS


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
    ids=["plain", "state_dict", "module", "both"],
)
def test_what_wraps_a_state_is_taken_off(wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    state, path = mini_state(), tmp_path / "0.013.pth.tar"
    torch.save(wrap(state), path)
    found = imports.read(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in found.items())
    assert imports.converted(found, config_of(MINI)).keys() == imports.converted(state, config_of(MINI)).keys()


KEY = "y_spatial_prior_s3.branch_1.1.branch.3.weight"


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({KEY: None}, InputError, f"missing key {KEY}"),
        ({KEY: torch.zeros(3, 3)}, InputError, rf"{KEY} has the shape \(3, 3\)"),
        ({"entropy_bottleneck.quantiles": torch.zeros(1)}, InputError, "unknown key entropy_bottleneck.quantiles"),
        ({"adaptive_params_list.10": torch.zeros(1)}, InputError, "unknown key adaptive_params_list.10"),
        ({"adaptive_params_list.0": torch.ones(1, 48, 1, 1)}, InputError, "missing key adaptive_params_list.1"),
        ({"entropy_estimation.beta": torch.tensor([2.0])}, UnsupportedError, r"entropy_estimation.beta is \[2.0\]"),
        ({"entropy_estimation.scale_lower_bound.bound": torch.tensor([0.11])}, UnsupportedError, "only 0.12"),
        ({KEY: torch.full((48, 96, 1, 1), torch.nan)}, InputError, f"{KEY} has values that are no finite"),
        ({KEY: torch.zeros((48, 96, 1, 1), dtype=torch.int32)}, InputError, f"{KEY} has values that are no finite"),
    ],
)
def test_a_checkpoint_that_is_not_the_member_s_is_refused_by_the_key(
    change: dict[str, Tensor | None], error: type[HpcmError], said: str
) -> None:
    state = {k: v for k, v in (mini_state() | change).items() if v is not None}
    with pytest.raises(error, match=said) as found:
        imports.converted(state, config_of(MINI))
    assert "\n" not in str(found.value)


def test_hpcm_1b_and_other_networks_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="HPCM-1B"):
        imports.recognised({"g_a.g_a_down1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"no checkpoint of HPCM: .* not -1 \(keys: g_a.0.weight"):
        imports.recognised({"g_a.0.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="not 12"):
        imports.recognised({"g_a.branch.12.weight": torch.zeros(1)})


class Running:
    """What runs code when it is unpickled."""

    ran: ClassVar[list[int]] = []

    def __reduce__(self) -> Any:
        return Running.ran.append, (1,)


def test_files_that_are_no_checkpoints_end_in_one_line_and_run_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pth.tar"
    torch.save(mini_state(), path)
    whole = path.read_bytes()
    torch.save({"a": Running()}, path)
    hostile = [path.read_bytes(), pickle.dumps(Running()), b"", b"PK\x03\x04", whole[:1000], whole[: len(whole) // 2]]
    for other in ([1, 2], {}, {"a": 3}, {3: torch.zeros(1)}, {"state_dict": {}}):
        torch.save(other, path)
        hostile.append(path.read_bytes())
    for data in hostile:
        path.write_bytes(data)
        with pytest.raises(InputError) as error:
            imports.read(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
    assert Running.ran == []
    with pytest.raises(InputError, match="No such file"):
        imports.read(tmp_path / "missing")


# --- files ------------------------------------------------------------------------------------------------------------


def assert_codes(path: Path, sizes: list[tuple[int, int]], wide: bool) -> None:
    """Files of these weights decode to the same latents and pixels in both engines; damaged ones are refused."""
    light, other = (base.find(str(path), "cpu", engine) for engine in ("light", "torch"))
    for runner in (light, other):
        assert type(runner.coder.ops) is ExactOps if wide else True
        assert runner.coder.ops.precision == (16 if wide else 14)
    assert isinstance(light.synthesis, KernelOps) or not isinstance(other.synthesis, KernelOps)
    for size in sizes:
        data = codec.encode(picture(*size), model=str(path))
        shown, latents = np.asarray(codec.decode(data)), codec.decode_latents(data)
        assert np.array_equal(np.asarray(codec.decode(data, engine="torch")), shown)
        assert np.array_equal(codec.decode_latents(data, engine="torch"), latents)
        assert shown.shape == (size[1], size[0], 3)
    for at in range(5, len(data), max(1, len(data) // 20)):
        broken = bytearray(data)
        broken[at] ^= 16
        with pytest.raises(HpcmError):
            codec.decode(bytes(broken))


@pytest.mark.parametrize("precision", [14, 16])
def test_files_of_an_import_decode_alike_in_both_engines(
    precision: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCM_MODELS", str(tmp_path))
    config = replace(config_of(MINI), precision=precision, name="mine")
    model, path, said = imports.member(mini_state(), config), tmp_path / "mine.safetensors", []
    model_id = imports.write(model, path, [picture(96, 64), picture(64, 64, 1)], imports.HALF, said.append)
    w = weights.load_file(path)
    assert (w.name, w.model_id, w.config.precision) == ("mine", model_id, precision)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"]
    assert len(said) == 2
    fewer, pixels = float(said[0].split("% of")[0].split()[-1]), float(said[1].split(" of 255")[0].split()[-1])
    assert abs(fewer) < 1
    assert pixels < 1
    assert_codes(path, [(1, 1), (77, 41)], wide=precision == 16)


def first_parameters(model: Any, fake_at: Tensor | None) -> Tensor:
    """What the first coding step takes for scales and means of its latents, into which nothing coded has gone."""
    seen: list[Tensor] = []
    ops = model.ops(fake_at=fake_at)
    moments = ops.moments

    def observe(scales: Any, means: Any) -> Any:
        seen.append(torch.cat([scales.x, means.x]))
        return moments(scales, means)

    ops.moments = observe
    with torch.no_grad():
        model.estimate(*model.analyse(image(64, 64), torch.zeros(1)), torch.zeros(1), ops=ops)
    return seen[0]


def test_codes_of_16_bits_are_nearer_to_floats_than_those_of_14() -> None:
    errors = {}
    for precision in (14, 16):
        model = imports.member(mini_state(), replace(config_of(MINI), precision=precision))
        floats = first_parameters(model, None)
        model.grids = imports.fitted_grids(model, [picture(64, 64)], imports.HALF)
        errors[precision] = float((first_parameters(model, torch.zeros(1)) - floats).square().mean().sqrt())
    assert errors[16] < errors[14] / 3
    assert errors[16] < 5e-4


def test_the_command_writes_weights_that_code_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint of another size than the published ones, which the command takes for HPCM-Base."""
    monkeypatch.setattr(imports, "recognised", lambda state: config_of(MINI))
    checkpoint = tmp_path / "0.013.pth.tar"
    torch.save(mini_state(), checkpoint)
    arguments = ["import", str(checkpoint), "--name", "hpcm-mini", "-o", str(tmp_path / "models"), "--lambda", "0.013"]
    done = CliRunner().invoke(main, [*arguments, "--metric", "ms-ssim"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    w = weights.load_file(tmp_path / "models" / "hpcm-mini.safetensors")
    facts = w.config.hyper_s2, w.config.precision, w.config.metric, w.config.fixed_lambda, w.name
    assert facts == ("published", 16, "ms-ssim", 0.013, "hpcm-mini")
    assert f"model id {w.model_id.hex()}; hpcm encode --model {w.path}" in done.output
    assert "no photographs were given" in done.output
    for wrong in ("--lambda 0", "--lambda nan", "--metric ssim", "--precision 12", "--name ../up"):
        assert CliRunner().invoke(main, [*arguments, *wrong.split()]).exit_code == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no PNG"):
        CliRunner().invoke(main, [*arguments, "--calibrate", str(tmp_path / "empty")], catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_files_of_a_full_size_import_decode_alike_in_both_engines(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCM_MODELS", str(tmp_path))
    checkpoint, path = tmp_path / "a.pth.tar", tmp_path / f"{name}.safetensors"
    torch.save(dict(Published(FULL[name]).state_dict()) | BUFFERS, checkpoint)
    settings = {"name": name, "fixed_lambda": 0.013, "precision": 16}
    imports.run(checkpoint, path, settings, None, print)
    assert_codes(path, [(131, 77), (256, 256)], wide=True)
