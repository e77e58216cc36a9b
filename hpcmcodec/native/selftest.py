"""Runs every exact operation on random codes, for the tests, `hpcm doctor` and the benchmark to compare.

`layers` makes the tensors of one layer of each kind. `cases` makes a call of each operation over them, by the
operation's name. Both sides of a comparison run the same calls; results are integers, so no tolerance is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hpcmcodec.exact.constants import CHANNEL_GRID, CODE_MAX, FIXED_GRIDS, PIXEL_GRID, WIDE_GRID, limit_of
from hpcmcodec.exact.layers import (
    Depthwise,
    Dequantise,
    Gain,
    Head,
    Layer,
    Linear,
    Norm,
    Place,
    QualityBias,
    Read,
    Scale,
    Wkv,
    quantise,
)
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.ops import Act
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.exact.schedule import STEPS
from hpcmcodec.quality import Quality

__all__ = ["GRIDS", "cases", "differences", "layers"]

GRIDS = FIXED_GRIDS | {"x": 9, "y": 9, "out": 9, "fine": 13, "squared": 7, "z": 8, "block.dw": 9, "block.up": 9}
Case = Callable[[Any], Any]
HIDDEN = 18  # channels of the hidden layers of "heads"
STEP = STEPS[-1]  # the coding step that "place" and the operations that move values run with
QUALITIES = [Quality(0), Quality(3333), Quality(10000)]  # the ends of the table, and between two of its rows


def layers(width: int, outputs: int, second: int, taps: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """The stored tensors of one layer of each kind, by name.

    width: channels of the first input; second: those of the second, where there is one; taps: k of the depthwise layer.
    """
    rng = np.random.RandomState(seed)
    made: list[Layer] = [
        Linear("linear", outputs).over(width),
        Linear("joint", outputs).over(width, second),
        Head("head", outputs).over(width, second),
        Depthwise("depthwise", taps).over(width),
        Norm("norm").over(width),
        Scale("scale").over(width),
        Place("place", len(STEP.groups)).over(width),
        Wkv("wkv").over(width),
        QualityBias("bias", "z", 3).over(width),
        Dequantise("latent", 3).over(width),
        Read("read").over(width),
        Gain("gain", 3, outputs if outputs % 2 else outputs // 2),
        *_composed_layers(width, second),
    ]
    derived = {f"{layer.name}.{k}": v for layer in made for k, v in layer.example(rng).items()}
    return quantise(made, derived, GRIDS)


def _composed_layers(width: int, second: int) -> list[Layer]:
    """The layers of operations that are several others in a row: block, around and heads. The last heads are without
    hidden layers.
    """
    inside, groups = 2 * width, len(STEP.groups)
    heads = [
        (Linear(f"heads.{g}.hidden", HIDDEN).over(width, second), Head(f"heads.{g}", 3).over(width, second, HIDDEN))
        for g in range(groups)
    ]
    return [
        Depthwise("block.dw").over(width),
        Linear("block.up", inside).over(width),
        Linear("block.down", width).over(inside),
        Depthwise("around").over(groups * width),
        *(layer for pair in heads for layer in pair),
        *(Head(f"plain.{g}", 3).over(width, second) for g in range(groups)),
    ]


def codes(shape: tuple[int, ...], seed: int, limit: int = CODE_MAX, *, extreme: bool = False) -> np.ndarray:
    """Random codes, float32: most are small and a few at the limits; with `extreme`, all are at the limits."""
    rng = np.random.RandomState(seed)
    x = np.rint(rng.standard_normal(shape) * limit / 5).clip(-limit, limit).astype(np.float32)
    return np.where(rng.random_sample(shape) < (1 if extreme else 0.02), np.copysign(np.float32(limit), x), x)


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
    """Calls by the operations' names, each a function of the operations. dtype: that of the codes passed in."""

    def act(n: int, grid: str, salt: int, positions: tuple[int, int] = (height, width)) -> Act:
        made = codes((batch, *positions, n), seed + salt, limit_of(grid), extreme=extreme)
        return Act(made.astype(dtype), grid)

    x, y, r, k = act(channels, "x", 1), act(channels, "x", 2), act(channels, "sigmoid", 3), act(channels, "exp", 4)
    other, pooled = act(second, "y", 5), act(second, "y", 6, (1, 1))
    row = act(channels, "x", 7, (1, 1))
    query, keys, values = ([Act(v.astype(dtype), "x") for v in vs] for vs in memory(channels, seed + 30, extreme))
    rng = np.random.RandomState(seed + 20)
    y_hat = rng.randint(-(2**17), 2**17, (batch, height, width, channels), np.int32)
    z = rng.randint(-40, 41, (len(QUALITIES), height, width, channels), np.int32)  # beyond the clamp, too
    z[0, 0, 0, 0], z[1, 0, 0, 0] = -(2**31), 2**31 - 1
    qualities = [QUALITIES[(i + 1) % len(QUALITIES)] for i in range(batch)]
    groups = len(STEP.groups)
    unfolded = act(groups * channels, "y", 12)

    def moved(ops: Any) -> tuple[Any, ...]:
        """The rows of every group, and the array made by putting them back."""
        gathered = [(g, a) for g, (a,) in ops.gather([ops.xp.array(y_hat)], STEP)]
        return (*(a for _, a in gathered), ops.scatter(gathered, STEP, y_hat.shape))

    linear, joint, head = Linear("linear", outputs), Linear("joint", outputs), Head("head", outputs)
    bias = QualityBias("bias", "z", 3)
    return {
        "linear": lambda o: o.linear(on(o, x), linear, "out"),
        "linear, two inputs": lambda o: o.linear([on(o, x), on(o, other)], joint, "out"),
        "linear, one input pooled": lambda o: o.linear([on(o, x), on(o, pooled)], joint, "out"),
        "head": lambda o: o.head([on(o, x), on(o, other)], head),
        "depthwise": lambda o: o.depthwise(on(o, x), Depthwise("depthwise"), "out"),
        "norm": lambda o: o.norm(on(o, x), Norm("norm"), "out"),
        "channel_scale": lambda o: o.channel_scale(on(o, x), Scale("scale")),
        "place": lambda o: o.place(on(o, x), STEP, Place("place", groups)),
        "wkv": lambda o: o.wkv(on(o, k), on(o, y), Wkv("wkv"), "fine"),
        "hyper_latent": lambda o: o.hyper_latent(o.xp.array(z), bias, QUALITIES),
        "lrelu": lambda o: o.lrelu(on(o, x)),
        "relu_squared": lambda o: o.relu_squared(on(o, x), "squared"),
        "gate": lambda o: o.gate(on(o, r), on(o, x)),
        "blend": lambda o: o.blend(on(o, r), on(o, row), on(o, x)),
        "add": lambda o: o.add(on(o, x), on(o, y)),
        "add, one row": lambda o: o.add(on(o, x), on(o, row)),
        "pool": lambda o: o.pool(on(o, x), "fine"),
        "recall": lambda o: tuple(
            o.recall(on(o, query[0]), [on(o, a) for a in keys[:n]], [on(o, a) for a in values[:n]], 0.1)
            for n in (1, 2, len(keys))
        ),
        "latent_code": lambda o: o.latent_code(o.xp.array(y_hat)),
        "empty_latent": lambda o: o.empty_latent((batch, 2, 3, channels)),
        "folded": lambda o: o.folded(on(o, unfolded), STEP),
        "unfold": lambda o: o.unfold(on(o, x).x, STEP, o.xp.array(unfolded.x.copy())),
        "gather": moved,
        "scatter": moved,
        "segment": lambda o: o.segment(o.add, on(o, x), on(o, y)),
        **_synthesis_cases(x, y_hat, qualities, outputs, seed),
        **_composed_cases(x, other, unfolded, seed),
        **_member_cases(x, y),
    }


def _member_cases(x: Act, y: Act) -> dict[str, Case]:
    """Those of the paper's members and of the larger memory banks. x, y: codes of one shape."""
    heads = 1 if x.x.shape[-1] % 2 else 2
    positive, norm = Act(abs(x.x) + 1, "x"), Act(abs(y.x[:, :1, :1]) + 1, "x")
    r = Act(x.x.clip(-2047, 2047), "sigmoid")
    query, keys = Act(x.x[:, :1, :1], "x"), [Act(y.x[:, -1:, :1], "x"), Act(-y.x[:, :1, :1], "x"), norm, norm]
    weights = np.repeat([[32768.0, 4321.0]], len(x.x), 0)
    return {
        "lrelu, of another slope": lambda o: o.lrelu(on(o, x), 0.01),
        "attend": lambda o: o.attend(on(o, x), on(o, y), on(o, x), 4, heads, "fine"),
        "moments": lambda o: o.moments(on(o, x), on(o, y)),
        "blend, of planes": lambda o: o.blend(on(o, r), on(o, x), on(o, y)),
        "curve": lambda o: o.curve(on(o, x), "gelu", "fine"),
        "curve, of elu+1": lambda o: o.curve(on(o, x), "elu+1", "x"),
        "resize": lambda o: o.resize(on(o, x), 5, 3, "mean"),
        "resize, bilinear": lambda o: o.resize(on(o, x), 7, 9, "bilinear"),
        "outer": lambda o: o.outer(on(o, x), on(o, y), heads, "x"),
        "lookup": lambda o: o.lookup(
            on(o, positive), o.outer(on(o, x), on(o, y), heads, "x"), on(o, norm), heads, "fine"
        ),
        "choose": lambda o: o.choose(on(o, query), [on(o, k) for k in keys], 3, 0.1),
        "mix": lambda o: o.mix([on(o, x), on(o, y)], o.xp.array(weights)),
    }


def _synthesis_cases(x: Act, y_hat: np.ndarray, qualities: list[Quality], outputs: int, seed: int) -> dict[str, Case]:
    """Those of the synthesis. x: codes; y_hat: int32 of the same shape."""
    rng = np.random.RandomState(seed + 21)
    linear, gain = Linear("linear", outputs), Gain("gain", 3, outputs if outputs % 2 else outputs // 2)
    wide = rng.randint(-(2**20), 2**20, y_hat.shape, np.int32)
    most = np.array([2**31 - 1, -(2**31), 2**25, -(2**25), 2**21 + 1, 0, -1], np.int32)
    ends = most[np.arange(wide.size) % len(most)].reshape(wide.shape)
    branch = Act(codes(y_hat.shape, seed + 13, extreme=True).astype(x.x.dtype), CHANNEL_GRID)
    base = rng.randint(-(2**22), 2**22, (*y_hat.shape[:3], outputs), np.int32)

    def onto(ops: Any, grid: str) -> Act:
        return Act(ops.xp.array(base.copy()), grid)

    return {
        "dequantise": lambda o: o.dequantise(o.xp.array(y_hat), Dequantise("latent", 3), qualities),
        "dequantise, of extremes": lambda o: o.dequantise(o.xp.array(ends), Dequantise("latent", 3), qualities),
        "read": lambda o: o.read(Act(o.xp.array(wide), WIDE_GRID), Read("read")),
        "read, of extremes": lambda o: o.read(Act(o.xp.array(ends), WIDE_GRID), Read("read")),
        "wide": lambda o: o.wide(on(o, x), linear, WIDE_GRID),
        "wide, onto another": lambda o: o.wide(on(o, x), linear, WIDE_GRID, onto(o, WIDE_GRID)),
        "wide, of extremes": lambda o: o.wide(on(o, branch), linear, PIXEL_GRID, onto(o, PIXEL_GRID)),
        "amplify": lambda o: o.amplify(on(o, x), linear, gain, qualities),
        "pixels": lambda o: o.pixels(Act(o.xp.array(wide), PIXEL_GRID), 8),
        "pixels, of 16 bits": lambda o: o.pixels(Act(o.xp.array(ends), PIXEL_GRID), 16),
    }


def _composed_cases(x: Act, other: Act, unfolded: Act, seed: int) -> dict[str, Case]:
    """Blocks of codes x and of wide values of the same shape: alone, and with rows above, of which some are wanted.
    Convolutions around the positions of each group, of `unfolded`; heads over x and `other`.
    """
    rng = np.random.RandomState(seed + 22)
    width, height = x.x.shape[-1], x.x.shape[1]
    layers = Depthwise("block.dw"), Linear("block.up", 2 * width), Linear("block.down", width)
    two_rows = (x.x.shape[0], 2, *x.x.shape[2:])
    above = Act(codes(two_rows, seed + 23).astype(x.x.dtype), x.grid)
    wide = Act(rng.randint(-(2**25), 2**25, x.x.shape, np.int32), WIDE_GRID)
    wide_above = Act(rng.randint(-(2**18), 2**18, two_rows, np.int32), WIDE_GRID)

    def parts(ops: Any, read: Read | None, a: Act, b: Act) -> tuple[Act, ...]:
        """The first rows, those behind them, and the last ones."""
        ranges = ((0, height + 1), (1, height + 1), (1, height + 2))
        return tuple(ops.block(on(ops, a), *layers, read, on(ops, b), rows) for rows in ranges)

    heads, plain = ([Head(f"{name}.{g}", 3) for g in range(len(STEP.groups))] for name in ("heads", "plain"))
    hidden = [Linear(f"heads.{g}.hidden", HIDDEN) for g in range(len(STEP.groups))]
    return {
        "around": lambda o: o.around(on(o, unfolded), Depthwise("around"), STEP, "y"),
        "heads": lambda o: o.heads([on(o, x), on(o, other)], STEP, heads, hidden, "fine"),
        "heads, without hidden layers": lambda o: o.heads([on(o, x), on(o, other)], STEP, plain),
        "block": lambda o: o.block(on(o, x), *layers),
        "block, with rows above": lambda o: parts(o, None, x, above),
        "block, wide": lambda o: o.block(on(o, wide), *layers, Read("read")),
        "block, wide with rows above": lambda o: parts(o, Read("read"), wide, wide_above),
    }


def on(ops: Any, a: Act) -> Act:
    """The same codes as the operations' own arrays."""
    return Act(ops.xp.array(a.x), a.grid)


def memory(channels: int, seed: int, extreme: bool) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """One query, four keys and four values, each (6, 1, 1, channels); each sample tests another case of `recall`.

    The similarities of the samples, in order: random; as far apart as possible; all equal, so that the two oldest
    count; the second and the last equal and highest; zero, because all keys are zero; zero, because the query is.
    """
    query, *others = (codes((6, 1, 1, channels), seed + i, extreme=extreme) for i in range(9))
    keys, values = others[:4], others[4:]
    for i, key in enumerate(keys):
        key[1], key[2] = (-1) ** i * query[1], keys[0][2]
        key[3], key[4] = (1 if i in (1, 3) else -1) * query[3], 0
    query[5] = 0
    return [query], keys, values


def integers(xp: Any, result: Any) -> list[np.ndarray]:
    """The results of a case as int64 arrays, in which the sign of a zero, which may differ, is lost."""
    parts = [result] if isinstance(result, Act) or not isinstance(result, tuple) else list(result)
    return [np.asarray(xp.numpy(p.x if isinstance(p, Act) else p)).astype(np.int64) for p in parts]


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
