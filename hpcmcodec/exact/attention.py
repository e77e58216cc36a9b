"""Window attention on integer codes: in each window of positions, every position reads all others by softmax(q k).

Windows of w x w positions stand side by side from (0, 0) in raster order; the plane's border cuts them, so planes of
any size work without padding. The channels are in heads of d consecutive ones. For each window and head, in float64,

    S = q k^T;   D = max(S) - S along the keys;   n = min(rint(1024 D 2^(-e_q - e_k) / sqrt(d)), 16383)
    weight = rint(32768 exp(-n / 1024)), 0 for n = 16383;   out = rint((weight v) / (sum of weights) 2^(e_out - e_v))

where e are the exponents of the grids. Keys outside the plane have weight 0. Sums are of integers and stay exact: with
codes of 16 bits |S| is below d * 2^30, and weight * v summed over a window of 8 x 8 below 2^36. Neither they nor the
maximum depend on an order, so that every machine finds the same codes. The largest key has weight 32768, so the sum of
weights is never 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmcodec.exact.elementary import exact_exp

OUTSIDE = -(2.0**50)  # added to the S of keys outside the plane: their n is the last then, and S an integer below 2^53
STEPS = 1024  # of n, to a factor of e
LAST = 16383  # the n whose weight is 0


def weight_table() -> np.ndarray:
    """The weight of each n, float64 (16384,)."""
    n = np.arange(LAST + 1, dtype=np.float64)
    table = np.rint(np.full(n.shape, 32768.0) * exact_exp(-n / np.full(n.shape, float(STEPS))))
    table[LAST] = 0
    return np.asarray(table)


def factor_of(width: int, heads: int, exponents: int) -> float:
    """What D is multiplied by, from the sum of the exponents of q and k; width: channels of all heads."""
    return float(np.float64(STEPS * 2.0**-exponents) / np.sqrt(np.float64(width // heads)))


def attend_exact(xp: Any, q: Any, k: Any, v: Any, window: int, heads: int, factor: float, table: Any) -> Any:
    """Codes q, k, v (B, H, W, C) -> float64 (B, H, W, C) in v's units, not rounded.

    table: `weight_table`; factor: `factor_of`. Rows of windows are computed one after another, to bound memory.
    """
    rows = []
    for at in range(0, q.shape[1], window):
        here = slice(at, at + window)
        rows.append(_row_of_windows(xp, q[:, here], k[:, here], v[:, here], window, heads, factor, table))
    return rows[0] if len(rows) == 1 else xp.concat(rows, 1)


def _row_of_windows(xp: Any, q: Any, k: Any, v: Any, window: int, heads: int, factor: float, table: Any) -> Any:
    b, rows, columns, c = q.shape
    across = -(-columns // window)

    def split(x: Any) -> Any:
        """(B, rows, columns, C) -> (B * windows * heads, window^2, d), with zeros outside the plane."""
        whole = xp.zeros((b, window, across * window, c), xp.f8)
        whole[:, :rows, :columns] = xp.cast(x, xp.f8)
        parts = xp.permute(whole.reshape(b, window, across, window, heads, c // heads), (0, 2, 4, 1, 3, 5))
        return parts.reshape(b * across * heads, window * window, c // heads)

    queries, keys, values = split(q), split(k), split(v)
    scores = xp.matmul(queries, xp.permute(keys, (0, 2, 1)))
    scores += xp.array(_outside(b, rows, columns, window, heads))
    d = xp.max(scores) - scores
    d *= xp.full(factor, xp.f8)
    weights = xp.take(table, xp.cast(xp.clamp_(xp.rint_(d), 0, LAST), xp.i8))
    out = xp.matmul(weights, values) / xp.sum(weights, -1)
    out = xp.permute(out.reshape(b, across, heads, window, window, c // heads), (0, 3, 1, 4, 2, 5))
    return out.reshape(b, window, across * window, c)[:, :rows, :columns]


def _outside(b: int, rows: int, columns: int, window: int, heads: int) -> np.ndarray:
    """`OUTSIDE` for each key outside the plane, else 0: (B * windows * heads, 1, window^2)."""
    across = -(-columns // window)
    add = np.full((window, across * window), OUTSIDE)
    add[:rows, :columns] = 0
    parts = add.reshape(window, across, window).transpose(1, 0, 2).reshape(1, across, 1, 1, window * window)
    return np.tile(parts, (b, 1, heads, 1, 1)).reshape(-1, 1, window * window)
