"""Activations whose values move but do not change: pixel shuffles, parts of planes, neighbourhoods."""

from __future__ import annotations

from hpcmcodec.exact.ops import Act, Array, Ops


def shuffle(ops: Ops, a: Act, side: int = 2) -> Act:
    """(B, H, W, s * s * C) -> (B, s H, s W, C); channels are ordered (row, column, C): runs of C stay together."""
    b, h, w, n = a.x.shape
    c = n // (side * side)
    x = ops.xp.permute(a.x.reshape(b, h, w, side, side, c), (0, 1, 3, 2, 4, 5))
    return Act(x.reshape(b, side * h, side * w, c), a.grid)


def unshuffle(ops: Ops, a: Act, stride: int) -> Act:
    """(B, H, W, C) -> (B, H / s, W / s, s * s * C) for stride s; with s = 2 the inverse of `shuffle`."""
    b, h, w, c = a.x.shape
    x = a.x.reshape(b, h // stride, stride, w // stride, stride, c)
    x = ops.xp.permute(x, (0, 1, 3, 2, 4, 5))
    return Act(x.reshape(b, h // stride, w // stride, stride * stride * c), a.grid)


def crop(a: Act, rows: int, columns: int) -> Act:
    """The upper left part of a (B, H, W, C): (B, rows, columns, C)."""
    return Act(a.x[:, :rows, :columns], a.grid)


def part(a: Act, first: int, last: int | None = None) -> Act:
    """The channels from `first` on, up to `last`."""
    return Act(a.x[..., first:last], a.grid)


def neighbourhood(ops: Ops, a: Act, side: int = 3) -> Act:
    """Each position with those around it: (B, H, W, C) -> (B, H, W, s * s * C), zeros outside the plane.

    Copy (i, j), at channel (s i + j) C, reads i - s // 2 rows below and j - s // 2 columns to the right, so a dense
    s x s convolution is a linear layer over it.
    """
    c = a.x.shape[-1]
    out = ops.xp.zeros_like(a.x, (*a.x.shape[:3], side * side * c))
    for k in range(side * side):
        shifted(a.x, k // side - side // 2, k % side - side // 2, out[..., k * c : (k + 1) * c])
    return Act(out, a.grid)


def shifted(x: Array, down: int, right: int, out: Array) -> Array:
    """Adds x (B, H, W, C), read `down` rows below and `right` columns to the right of each position, to `out`."""
    rows, columns = (slice(max(0, -n), max(0, -n) + max(0, size - abs(n))) for n, size in _both(x, down, right))
    above, left = (slice(max(0, n), max(0, n) + max(0, size - abs(n))) for n, size in _both(x, down, right))
    out[:, rows, columns] += x[:, above, left]
    return out


def _both(x: Array, down: int, right: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (down, x.shape[1]), (right, x.shape[2])
