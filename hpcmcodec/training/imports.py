"""Published checkpoints of HPCM-Base, -Large and -Phi (PyTorch state dicts) as weights that code files here.

`layout` lists each tensor of a checkpoint with its shape and its place in `family.model.Member`; nothing may be missing
and nothing be left over. What was trained computes the same here: scales before means, the authors' order of adaptors
and their misplaced parameters at s2 (`family.flow.published_places`). Checkpoints without adaptive scales have ones.

The activations of these networks were never limited. So the entropy path has codes of 16 bits, unless it is asked for
fewer, and grids on which all that the pictures at hand bring about takes up half of the codes.
"""

from __future__ import annotations

import copy
import math
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcmcodec import weights
from hpcmcodec.errors import InputError, UnsupportedError
from hpcmcodec.exact.constants import FIXED_GRIDS
from hpcmcodec.exact.elementary import level_scales
from hpcmcodec.exact.ops import Act
from hpcmcodec.model.config import MEMBERS, Config
from hpcmcodec.model.family.model import MEANS, Member
from hpcmcodec.model.float_ops import FloatOps
from hpcmcodec.model.hpcm import bits
from hpcmcodec.model.synthesis import synthesise
from hpcmcodec.native import loader
from hpcmcodec.training import data, packing, stages
from hpcmcodec.training.fitting import model_inputs

UNLIMITED = -16  # the exponent of grids in floating point: values up to 2^30 are not limited
HALF = 0.5  # of a code's range, that all activations of photographs stay within,
EIGHTH = 0.125  # and those of pictures that only stand for photographs
COMPARED = 4  # pictures on which integers are compared with floats
ADAPTORS = {"s1": ((0, 1),), "s2": ((2, 2), (0, 3), (1, 4)), "s3": ((5, 5), (0, 6), (1, 7), (2, 8), (3, 9), (4, 10))}
"""By scale: (index in the authors' list, coding step). Their code counts from -1, and lists begin with their end."""
FIXED = {"entropy_estimation.beta": 1.5, "scale_lower_bound.bound": 0.12, "likelihood_lower_bound.bound": 1e-9}
IGNORED = re.compile(r"(^|\.)(scale_table|quantized_cdf_[yz]|cdf_length_[yz]|offset_[yz])$")  # made anew from the rest

State = Mapping[str, Tensor]


class Place(NamedTuple):
    """A tensor of a checkpoint: its shape, its name in the module's state, and how it gets the shape it has there."""

    shape: tuple[int, ...]
    name: str
    formed: Callable[[Tensor], Tensor]


def _same(w: Tensor) -> Tensor:
    return w


def _flat(w: Tensor) -> Tensor:
    """(O, I, 1, 1) or (C, 1, 3, 3) as a matrix."""
    return w.flatten(1)


def _vector(w: Tensor) -> Tensor:
    """(1, C, 1, 1) as (C,)."""
    return w.flatten()


def _taps(w: Tensor) -> Tensor:
    """(O, I, 3, 3) as a matrix whose columns are ordered (row, column, I)."""
    return w.permute(0, 2, 3, 1).flatten(1)


def _shuffled(w: Tensor) -> Tensor:
    """Transposed, (I, O, 2, 2), as a matrix whose rows are ordered (row, column, O)."""
    return w.permute(2, 3, 1, 0).flatten(0, 2)


class _Levels(FloatOps):
    """Floating point whose scales are rounded up to those of levels, as all coding does, the authors' too."""

    def moments(self, scales: Act, means: Act) -> tuple[Tensor, Tensor]:
        mean, scale = super().moments(scales, means)
        levels = torch.from_numpy(level_scales()).float()
        return mean, levels[torch.searchsorted(levels[:-1], scale.contiguous())]


class _Layout:
    """Collects the places of a config's checkpoint. flat: whether a layer is one of the entropy path."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}

    def conv(self, key: str, to: str, shape: tuple[int, ...], formed: Callable[[Tensor], Tensor], out: int) -> None:
        """Weight and bias of a convolution."""
        joint = "/" if to.startswith("raw.") else "."
        self.places[f"{key}.weight"] = Place(shape, f"{to}{joint}weight", formed)
        self.places[f"{key}.bias"] = Place((out,), f"{to}{joint}bias", _same)

    def linear(self, key: str, to: str, out: int, inputs: int) -> None:
        """A 1x1 convolution."""
        self.conv(key, to, (out, inputs, 1, 1), _flat if to.startswith("raw.") else _same, out)

    def pconv(self, key: str, to: str, n: int) -> None:
        """A block with a partial convolution."""
        raw = to.startswith("raw.")
        inside = f"{to}/" if raw else f"{to}."
        shape = (n // 4, n // 4, 3, 3)
        self.conv(f"{key}.branch.0.pconv", f"{inside}conv", shape, _taps if raw else _same, n // 4)
        self.linear(f"{key}.branch.1", f"{inside}up", 4 * n, n)
        self.linear(f"{key}.branch.3", f"{inside}down", n, 4 * n)

    def depthwise(self, key: str, to: str, n: int) -> None:
        """A block with a depthwise convolution."""
        self.conv(f"{key}.branch.0", f"{to}/dw", (n, 1, 3, 3), _flat, n)
        self.linear(f"{key}.branch.1", f"{to}/up", 2 * n, n)
        self.linear(f"{key}.branch.3", f"{to}/down", n, 2 * n)


def layout(config: Config, *, adaptive: bool) -> dict[str, Place]:
    """The tensors of a checkpoint of this config by their keys; adaptive: with factors for each coding step."""
    found, m, n = _Layout(), config.latent, config.hyper
    _transforms(found, config)
    for i in (1, 2, 3):
        found.pconv(f"h_s.branch.{i}", f"raw.h_s/{i}", n)
    for i, out in ((0, n), (4, 2 * m)):
        found.conv(f"h_s.branch.{i}", f"raw.h_s/{i}", (n, out, 2, 2), _shuffled, out)
    found.pconv("h_s.branch.5", "raw.h_s/5", 2 * m)
    found.places["means_hyper"] = Place((1, n, 1, 1), f"raw.{MEANS}", lambda w: w.reshape(1, -1))
    found.places["scales_hyper"] = Place((1, n, 1, 1), "z_prior.scales", _vector)
    for scale, adaptors in ADAPTORS.items():
        for index, step in adaptors:
            key = f"y_spatial_prior_adaptor_list_{scale}.{index}"
            found.linear(key, f"raw.step{step}/adaptor", 3 * m, 3 * m)
    for prior, ours, (before, after) in zip(("s1_s2", "s3"), ("s12", "s3"), config.prior_blocks, strict=True):
        key = f"y_spatial_prior_{prior}.branch_"
        for i in range(before + after):
            where = f"{key}1.{i}" if i < before else f"{key}2.{i - before}"
            found.depthwise(where, f"raw.{ours}/blocks/{i}", 3 * m)
        found.linear(f"{key}2.{after}", f"raw.{ours}/out", 2 * m, 3 * m)
    for scale, cell in zip(("s1", "s2", "s3"), config.cells, strict=True):
        for theirs, own in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "skip")) if cell == "attention" else ():
            found.linear(f"attn_{scale}.conv_{theirs}", f"raw.{scale}/cell/{own}", 2 * m, 2 * m)
    for i, scale in enumerate(("s1", "s2")):
        found.linear(f"context_net.{i}", f"raw.{scale}/fusion/out", 2 * m, 2 * m)
    for i in range(10) if adaptive else ():
        place = Place((1, 3 * m, 1, 1), f"raw.step{i + 1}/scale/scale", _vector)
        found.places[f"adaptive_params_list.{i}"] = place
    return found.places


def _transforms(found: _Layout, config: Config) -> None:
    """g_a, g_s and h_a, whose modules here are those of the authors in the same order."""
    m, n, (c2, c4, c8) = config.latent, config.hyper, config.transform_widths
    # (widths of the convolution, its side, width of the blocks behind it, how many)
    down = (((3, c2), 4, c2, 2), ((c2, c4), 2, c4, 2), ((c4, c8), 2, c8, config.deep_blocks), ((c8, m), 2, 0, 0))
    up = (((m, c8), 2, c8, config.deep_blocks), ((c8, c4), 2, c4, 2), ((c4, c2), 2, c2, 2), ((c2, 3), 4, 0, 0))
    for name, parts, transposed in (("g_a", down, False), ("g_s", up, True)):
        at = 0
        for (inputs, out), side, width, count in parts:
            shape = (inputs, out, side, side) if transposed else (out, inputs, side, side)
            found.conv(f"{name}.branch.{at}", f"{name}.{at}", shape, _same, out)
            for i in range(at + 1, at + 1 + count):
                found.pconv(f"{name}.branch.{i}", f"{name}.{i}", width)
            at += 1 + count
    for i, width in ((0, m), (2, n), (3, n), (4, n)):
        found.pconv(f"h_a.branch.{i}", f"h_a.net.{i}", width)
    for i, inputs in ((1, m), (5, n)):
        found.conv(f"h_a.branch.{i}", f"h_a.net.{i}", (n, inputs, 2, 2), _same, n)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their keys, without what wraps them. No code that a file may hold is run.

    Raises InputError where the file is no checkpoint, or has more than tensors.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: it holds more than tensors, or is no checkpoint: nothing of it was run") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:
        raise InputError(f"{path}: no checkpoint of PyTorch ({str(error).partition(chr(10))[0]:.100})") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path}: no state dict but {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{path}: {key!r:.100} is no tensor but {type(value).__name__}")
    return {key.removeprefix("module."): value for key, value in found.items()}


def recognised(state: State) -> Config:
    """The member that a checkpoint is of. Raises UnsupportedError for HPCM-1B, InputError for what is none of HPCM."""
    if any(key.startswith("g_a.g_a_down1.") for key in state):
        raise UnsupportedError("this is a checkpoint of HPCM-1B, whose transforms are not built here")
    numbers = [int(found[1]) for key in state if (found := re.match(r"g_a\.branch\.(\d{1,3})\.", key))]
    last = max(numbers, default=-1)
    if last not in (11, 15):
        first = next(iter(state))
        raise InputError(
            f"no checkpoint of HPCM: g_a.branch ends at 11 (Base, Phi) or 15 (Large), not {last} (keys: {first}, ..)"
        )
    if last == 15:
        return MEMBERS["large"]
    return MEMBERS["base-baseline" if any(key.startswith("attn_s1.") for key in state) else "base-phi"]


def converted(state: State, config: Config) -> dict[str, Tensor]:
    """The state of the member's module, float32.

    Raises InputError, which names the key, for one that is missing, is not known, is not of the right shape, or has
    values that are not finite; UnsupportedError for another distribution than the one that is built here.
    """
    adaptive = any(key.startswith("adaptive_params_list.") for key in state)
    places = layout(config, adaptive=adaptive)
    for key, value in state.items():
        wanted = next((v for k, v in FIXED.items() if key == k or key.endswith(f".{k}")), None)
        if wanted is not None:
            if value.numel() != 1 or not math.isclose(float(value), wanted, rel_tol=1e-5):
                raise UnsupportedError(f"{key} is {value.flatten()[:3].tolist()}, only {wanted:g} is built here")
        elif key not in places and not IGNORED.search(key):
            raise InputError(f"unknown key {key}: {config.name} has none of this name")
    out: dict[str, Tensor] = {}
    for key, place in places.items():
        if key not in state:
            raise InputError(f"missing key {key}, of shape {place.shape}: {config.name} has {len(places)} keys")
        value = state[key]
        if tuple(value.shape) != place.shape:
            raise InputError(f"{key} has the shape {tuple(value.shape)}, {config.name} has {place.shape}")
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise InputError(f"{key} has values that are no finite floating-point numbers")
        out[place.name] = place.formed(value.float()).contiguous()
    for step in range(1, 11):
        out.setdefault(f"raw.step{step}/scale/scale", torch.ones(3 * config.latent))
    return out


def member(state: State, config: Config) -> Member:
    """The module that a checkpoint of this config is, whose floating point limits nothing. Raises as `converted`."""
    tensors = converted(state, config)
    model = Member(replace(config, hyper_s2="published"))
    model.grids = {name: FIXED_GRIDS.get(name, UNLIMITED) for name in model.grids}
    model.load_state_dict(tensors)
    return model.eval()


def write(
    model: Member, path: Path, pictures: Sequence[np.ndarray], within: float, say: Callable[[str], None]
) -> bytes:
    """Write the weights of a module that `member` gives; returns the model id.

    pictures: pixels (16 h, 16 w, 3) uint8, whose activations take up at most `within` (0 to 1) of the codes. say: is
    told what integers cost on the first of them. The file gets its name once it has been read back.

    Raises IntegrityError where values do not fit into it: the transforms are stored in float16.
    """
    trained = copy.deepcopy(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".import-") as folder:
        made = Path(folder) / path.name
        model_id = packing.pack(model, made, pictures, fitted_grids(trained, pictures, within))
        for line in compared(trained, model, weights.load_file(made), pictures[:COMPARED]):
            say(line)
        made.replace(path)
    return model_id


@torch.no_grad()
def fitted_grids(model: Member, pictures: Sequence[np.ndarray], within: float) -> dict[str, int]:
    """The finest exponents on which no activation of the pictures takes up more than `within` of the codes."""
    out = dict(model.grids)
    largest: dict[str, float] = {}
    for pixels in pictures:
        for grid, peak in stages.peaks(model, *model_inputs(pixels, packing.ONLY), False, 1.0).items():
            largest[grid] = max(largest.get(grid, 0.0), peak)
    for grid, peak in largest.items():
        if grid not in FIXED_GRIDS:
            out[grid] = max(UNLIMITED, math.floor(stages.room(peak, within, model.config.precision)))
    return out


@torch.no_grad()
def compared(trained: Member, model: Member, w: weights.Weights, pictures: Sequence[np.ndarray]) -> list[str]:
    """What integers change against floating point on pictures, in words.

    model: the trained one on the grids of the weights.
    """
    fewer, lost, precision = [], [], model.config.precision
    exact = loader.exact_ops(w.synthesis(), w.grids)
    for pixels in pictures:
        x, q = model_inputs(pixels, packing.ONLY)
        y, z = trained.analyse(x, q)
        y_hat, theirs = trained.estimate(y, z, q, ops=_Levels(trained.derived(), trained.grids, precision=precision))
        _, ours = model.estimate(y, z, q, ops=model.ops(fake_at=q))
        fewer.append(float(bits(ours) / bits(theirs)) - 1)
        codes = (y_hat * 16).round().int().numpy()
        found = synthesise(exact, model.config, codes, [packing.ONLY])[0]
        floats = trained.synthesise(torch.from_numpy(codes).float() / 16, q)[0].permute(1, 2, 0).clamp(0, 1) * 255
        lost.append(float(np.mean(np.square(found - floats.numpy()))))
    return [
        f"entropy path in integers: {100 * np.mean(fewer):+.3f}% of the bits, mean of {len(pictures)} pictures",
        f"synthesis in integers: pixels differ by {math.sqrt(np.mean(lost)):.3f} of 255, root mean square",
    ]


def pictures_of(folder: Path | None, side: int = 512, most: int = 12) -> list[np.ndarray]:
    """The PNGs of a folder, cut to multiples of 16 and at most `side`; without a folder, pictures that are made up.

    Raises InputError where the folder has no PNG of at least 64 x 64 pixels.
    """
    if folder is None:
        return [_made_up(seed) for seed in range(COMPARED)]
    found = [pixels for pixels in islice(data.pictures(folder, side), most) if min(pixels.shape[:2]) >= 64]
    if not found:
        raise InputError(f"{folder} has no PNG of 64 x 64 pixels or more")
    return found


def _made_up(seed: int, side: int = 256) -> np.ndarray:
    """A picture (side, side, 3) uint8 whose spectrum falls as that of photographs does, over all of the range."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]) + 1 / side
    noise = np.fft.fft2(rng.standard_normal((3, side, side))) / frequency
    x = np.fft.ifft2(noise).real
    x = x[:1] + 0.3 * x
    x = (x - x.mean()) / x.std() * rng.uniform(40, 90) + 127
    return np.asarray(np.clip(np.rint(x), 0, 255), np.uint8).transpose(1, 2, 0).copy()


def run(
    checkpoint: Path, path: Path, settings: Mapping[str, Any], photographs: Path | None, say: Callable[[str], None]
) -> bytes:
    """Write the weights of a checkpoint to `path`; settings: values of config fields. Returns the model id.

    Raises what `read`, `recognised`, `converted` and `pictures_of` raise; nothing is written then.
    """
    state = read(checkpoint)
    config = recognised(state)
    pictures = pictures_of(photographs)
    model = member(state, replace(config, **settings))
    numbers = sum(v.numel() for v in model.state_dict().values())
    say(f"{checkpoint} is a checkpoint of {config.name}: {numbers:,} numbers")
    if photographs is None:
        say("no photographs were given (--calibrate): grids have room for what made-up pictures do not show")
    return write(model, path, pictures, EIGHTH if photographs is None else HALF, say)
