"""The operations that are several others in a row (`exact.ops.Composed`), as one pass of a kernel each.

These functions check what a kernel takes for granted, make its arguments and call it. `ops` are the `KernelOps` that
the operation belongs to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from hpcmcodec.exact.constants import CHANNEL_GRID, MEAN_SHIFT, limit_of
from hpcmcodec.exact.layers import Depthwise, Head, Linear, Read
from hpcmcodec.exact.ops import Act
from hpcmcodec.exact.schedule import TILE, Step, positions
from hpcmcodec.native import abi

Array = Any  # a numpy array
KernelOps = Any  # those of native.compiled, which imports this module


def block(
    ops: KernelOps,
    x: Act,
    around: Depthwise,
    up: Linear,
    down: Linear,
    read: Read | None,
    above: Act | None,
    rows: tuple[int, int] | None,
) -> Act:
    """`Ops.block`."""
    dtype = np.int32 if read else np.int16
    xs = [ops.memory.contiguous(a.x, dtype) for a in ([above] if above else []) + [x]]
    batch, _, w, channels = xs[0].shape
    height = sum(a.shape[1] for a in xs)
    first, last = rows or (0, height)
    shapes = [tuple(ops.tensors[f"{layer.name}.weight"].shape) for layer in (around, up, down)]
    check(shapes == [(channels, 9), (up.channels, channels), (channels, up.channels)], around.name, *xs)
    check(0 <= first <= last <= height and xs[0].shape[2:] == xs[-1].shape[2:], around.name, *xs)
    inside = CHANNEL_GRID if read else None
    grids = [CHANNEL_GRID if read else x.grid, inside or around.name, inside or up.name, x.grid]
    scale, bias = ops._tap_scale(around.name, ops.grids[grids[0]], ops.grids[grids[1]])
    taps = [ops._at(t) for t in (ops._taps(around.name), scale, bias)]
    layers = [abi.Layer(*taps, limit_of(grids[1]))]
    for i, layer in ((1, up), (2, down)):
        plan = ops._plan(layer.name, (ops.grids[grids[i]],), ops.grids[grids[i + 1]]).call
        layers.append(abi.Layer(plan.inputs[0].weights, plan.inputs[0].scale, plan.bias, limit_of(grids[i + 1])))
    factors = None
    if read:
        scale = ops._channel_factors(read.name)
        check(len(scale) == channels, read.name, *xs)
        factors = ops._at(scale)
    out = ops.memory.empty((batch, last - first, w, channels), dtype)
    call = abi.Residual(
        *(batch, height, w, height - xs[-1].shape[1], first, last, channels, up.channels, limit_of(grids[0])),
        *(ops._at(xs[0]), ops._at(xs[-1]), ops._at(out), factors, *layers),
    )
    ops.kernels.residual(call)
    return Act(out, x.grid)


def around(ops: KernelOps, a: Act, layer: Depthwise, step: Step, grid: str | None) -> Act:
    """`Ops.around`."""
    name, grid, x = layer.name, grid or layer.name, ops.memory.contiguous(a.x, np.int16)
    taps, groups = ops._taps(name), len(step.groups)
    scale, bias = ops._tap_scale(name, ops.grids[a.grid], ops.grids[grid])
    b, h, w, c = x.shape
    check(tuple(taps.shape) == (9, c) and c % groups == 0, name, x)
    pattern, out = _pattern(step), ops.memory.empty((b, h, w, c // groups), np.int16)
    ops.kernels.around(
        *(b, h, w, c, groups, len(pattern), ops._at(pattern)),
        *(ops._at(x), ops._at(taps), ops._at(scale), ops._at(bias), limit_of(grid), ops._at(out)),
    )
    return Act(out, grid)


def heads(
    ops: KernelOps, inputs: Sequence[Act], step: Step, heads: Sequence[Head], hidden: Sequence[Linear], grid: str | None
) -> tuple[Array, Array]:
    """`Ops.heads`, where a head has an even number of hidden channels."""
    xs, e_in = [ops.memory.contiguous(a.x, np.int16) for a in inputs], tuple(ops.grids[a.grid] for a in inputs)
    batch, h, w, _ = xs[0].shape
    check(all(x.shape[:3] == (batch, h, w) for x in xs), heads[0].name, *xs)
    widths, inside, grid = [x.shape[-1] for x in xs], hidden[0].channels if hidden else 0, grid or heads[0].name
    key = heads[0].name, "heads", e_in, tuple(widths), ops.grids[grid] if hidden else 0
    groups = ops._keep(key, lambda: _groups(ops, heads, hidden, widths, e_in, grid))
    order, edges = _order(step, h, w)
    for group, first, last in zip(groups, edges[:-1], edges[1:], strict=True):
        group.first, group.last = first, last
    means, levels = (ops.memory.empty((batch, h, w, heads[0].channels), np.int32) for _ in range(2))
    for i in range(batch):
        call = abi.Heads(len(xs), len(groups), inside, heads[0].channels, ops._at(order))
        call.group, call.means, call.levels = ctypes.addressof(groups), ops._at(means[i]), ops._at(levels[i])
        for k, x in enumerate(xs):
            call.inputs[k], call.columns[k] = ops._at(x[i]), x.shape[-1]
        ops.kernels.heads(call)
    return means, levels


def _groups(
    ops: KernelOps,
    heads: Sequence[Head],
    hidden: Sequence[Linear],
    widths: list[int],
    e_in: tuple[int, ...],
    grid: str,
) -> Any:
    """An array of `abi.Group`: the layers of all heads. Raises ValueError where they do not take inputs of `widths`."""
    groups = (abi.Group * len(heads))()
    for i, (group, head) in enumerate(zip(groups, heads, strict=True)):
        plans = []
        if hidden:
            plans.append(ops._plan(hidden[i].name, e_in, ops.grids[grid]))
            group.hidden = plans[0].call
            group.hidden.limit = limit_of(grid)
        plans.append(ops._plan(head.name, (*e_in, ops.grids[grid]) if hidden else e_in, MEAN_SHIFT))
        group.head = plans[-1].call
        group.head.low, group.head.high = (ops._at(t) for t in ops._head_limits(head.channels))
        outputs = [p.call.outputs for p in plans]
        wanted = [[*widths]], [head.out]
        if hidden:
            wanted = [[*widths], [*widths, hidden[i].channels]], [hidden[i].channels, head.out]
        if ([p.widths for p in plans], outputs) != wanted:
            raise ValueError(
                f"{head.name} does not take inputs of the widths {widths}, or gives {outputs[-1]} channels"
            )
    return groups


@lru_cache(maxsize=64)
def _pattern(step: Step) -> Array:
    """The group that a coding step codes at each lattice point: int32 (TILE, TILE), a pattern that repeats."""
    pattern = np.zeros((1, TILE[step.scale], TILE[step.scale]), np.int32)
    for g, at in positions(step):
        pattern[at] = g
    return pattern[0]


@lru_cache(maxsize=16)
def _order(step: Step, h: int, w: int) -> tuple[Array, list[int]]:
    """The positions (h, w) of each group together, flat, int32 (h * w,), and where each group begins, and the end."""
    flat = np.arange(h * w, dtype=np.int32).reshape(1, h, w)
    by_group: list[list[Array]] = [[] for _ in step.groups]
    for g, at in positions(step):
        by_group[g].append(flat[at].ravel())
    rows = [np.concatenate(parts) for parts in by_group]
    return np.concatenate(rows), np.cumsum([0, *map(len, rows)]).tolist()


def check(fits: bool, what: str, *arrays: Array) -> None:
    """Raises ValueError, which names the arrays' shapes, unless they fit."""
    if not fits:
        raise ValueError(f"{what} does not take the shapes {', '.join(str(tuple(a.shape)) for a in arrays)}")
