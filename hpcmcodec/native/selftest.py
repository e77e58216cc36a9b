"""Every operation of the exact arithmetic on random codes: what tests, `hpcm doctor` and the benchmark compare.

`layers` makes the tensors of one layer of each kind, `cases` the calls over them. Both sides of a comparison get the
same calls; results are integers, so they are compared without a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hpcmcodec.exact.constants import CODE_MAX
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.operations import Act, ExactOps
from hpcmcodec.exact.schedule import STEPS
from hpcmcodec.model.entropy import Layer, quantise

__all__ = ["GRIDS", "cases", "differences", "layers"]

GRIDS = {"x": 7, "y": 7, "exp": 8, "sigmoid": 8, "out": 7, "fine": 11, "squared": 5}
Case = Callable[[Any], Any]
STEP = STEPS[-1]  # whose groups "place" tells apart


def layers(width: int, outputs: int, second: int, taps: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of a linear (`width` inputs), one of two inputs (`width`, `second`), a head, a depthwise and others."""
    rng = np.random.RandomState(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return np.asarray(rng.standard_normal((rows, columns)) / np.sqrt(columns), np.float32)

    def vector(n: int, low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, n).astype(np.float32)

    kinds = {
        "linear": Layer("linear", (width,), outputs),
        "joint": Layer("linear", (width, second), outputs),
        "head": Layer("head", (width, second), 2 * outputs),
        "depthwise": Layer("depthwise", (taps * taps,), width),
        "norm": Layer("norm", (), width),
        "scale": Layer("scale", (), width),
        "place": Layer("place", (len(STEP.groups),), width),
        "wkv": Layer("wkv", (), width),
    }
    derived: dict[str, np.ndarray] = {
        "norm.gamma": vector(width, 0.5, 2),
        "norm.beta": vector(width, -1, 1),
        "scale.scale": vector(width, -2, 2),
        "place.table": matrix(len(STEP.groups), width) * 40,
        "wkv.decay": vector(width, -1, 20),  # beyond the clamp at both ends
        "wkv.boost": vector(width, -20, 20),
    }
    for name, layer in kinds.items():
        if layer.kind in ("linear", "head"):
            derived[f"{name}.weight"] = matrix(layer.out, sum(layer.widths)) * (30 if layer.kind == "head" else 1)
            derived[f"{name}.bias"] = vector(layer.out, -2, 2)
        elif layer.kind == "depthwise":
            derived[f"{name}.weight"] = matrix(width, taps * taps)
            derived[f"{name}.bias"] = vector(width, -2, 2)
    return quantise(kinds, derived, GRIDS)


def codes(shape: tuple[int, ...], seed: int, *, extreme: bool = False) -> np.ndarray:
    """Random codes, float32: most of them small, a few at the limits; `extreme`: at the limits alone."""
    rng = np.random.RandomState(seed)
    x = np.rint(rng.standard_normal(shape) * 400).clip(-CODE_MAX, CODE_MAX).astype(np.float32)
    return np.where(rng.random_sample(shape) < (1 if extreme else 0.02), np.copysign(np.float32(CODE_MAX), x), x)


def cases(
    batch: int,
    height: int,
    width: int,
    channels: int,
    outputs: int,
    second: int,
    seed: int = 0,
    *,
    extreme: bool = False,
    dtype: Any = np.float32,
) -> dict[str, Case]:
    """Calls by name, each a function of the operations. Channels as for `layers`; dtype: of the codes handed in."""

    def act(n: int, grid: str, salt: int, positions: tuple[int, int] = (height, width)) -> Act:
        return Act(codes((batch, *positions, n), seed + salt, extreme=extreme).astype(dtype), grid)

    x, y, r, k = act(channels, "x", 1), act(channels, "x", 2), act(channels, "sigmoid", 3), act(channels, "exp", 4)
    other, pooled = act(second, "y", 5), act(second, "y", 6, (1, 1))
    row = act(channels, "x", 7, (1, 1))
    y_hat = np.random.RandomState(seed + 8).randint(-(2**17), 2**17, (batch, height, width, channels), np.int32)

    def on(ops: Any, a: Act) -> Act:
        return Act(ops.xp.array(a.x), a.grid)

    return {
        "linear": lambda o: o.linear(on(o, x), "linear", outputs, "out"),
        "linear, two inputs": lambda o: o.linear([on(o, x), on(o, other)], "joint", outputs, "out"),
        "linear, one input pooled": lambda o: o.linear([on(o, x), on(o, pooled)], "joint", outputs, "out"),
        "head": lambda o: o.head([on(o, x), on(o, other)], "head", outputs),
        "depthwise": lambda o: o.depthwise(on(o, x), "depthwise", "out"),
        "norm": lambda o: o.norm(on(o, x), "norm", "out"),
        "channel scale": lambda o: o.channel_scale(on(o, x), "scale"),
        "place": lambda o: o.place(on(o, x), STEP, "place"),
        "Bi-WKV4": lambda o: o.wkv(on(o, k), on(o, y), "wkv", "fine"),
        "leaky ReLU": lambda o: o.lrelu(on(o, x)),
        "ReLU squared": lambda o: o.relu_squared(on(o, x), "squared"),
        "gate": lambda o: o.gate(on(o, r), on(o, x)),
        "blend": lambda o: o.blend(on(o, r), on(o, row), on(o, x)),
        "add": lambda o: o.add(on(o, x), on(o, y)),
        "pool": lambda o: o.pool(on(o, x), "fine"),
        "latent code": lambda o: o.latent_code(o.xp.array(y_hat)),
    }


def integers(xp: Any, result: Any) -> list[np.ndarray]:
    """What a case gave, as int64 arrays: the sign of zero is not part of the promise."""
    parts = [result.x] if isinstance(result, Act) else list(result) if isinstance(result, tuple) else [result]
    return [np.asarray(xp.numpy(p)).astype(np.int64) for p in parts]


def differences(make: Callable[[Mapping[str, np.ndarray]], ExactOps]) -> list[str]:
    """Names of the operations whose results differ from the reference's; `make` builds the operations from tensors."""
    wrong = []
    for channels, outputs, second, taps in ((24, 40, 7, 3), (144, 70, 300, 5)):
        tensors = layers(channels, outputs, second, taps)
        reference, ops = ExactOps(NUMPY, tensors, GRIDS), make(tensors)
        for name, case in cases(1, 11, 13, channels, outputs, second).items():
            expected, got = integers(NUMPY, case(reference)), integers(ops.xp, case(ops))
            if not all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True)):
                wrong.append(name)
    return sorted(set(wrong))
