"""Bi-WKV4: bidirectional linear attention with per-channel exponential decay over a sequence of T tokens.

    y_t = (sum_{i != t} exp(-(|t - i| - 1) w + k_i) v_i + exp(u + k_t) v_t) / (the same without v),
    w = decay / T >= 0, u = boost / T                                  (Vision-RWKV, arXiv 2403.02308, eq. 4-5)

Two linear recurrences, left to right and right to left, give every sum in O(T). The exact form below fixes the order
of operations so that numpy, torch and the compiled kernels agree to the bit:

    - The tokens are cut into blocks of B = min(64, T), counted from token 0; the last is filled up with zero weights.
    - With W = exp(-w) and e_j = exp(k_j), the state before token j of a block is s_j: s_0 = 0,
      s_(j+1) = s_j * W + e_j v_j.
    - What enters a block from the blocks before is c: c = 0 at the first, then c = c * W^B + s_B from block to block.
    - left = s_j + c * W^j. right is its mirror image, with j counted from the block's end.
    - y = ((left + right) + own) / (the same sums without v), where own = exp(u) e_j v_j.
    - W^j comes from repeated multiplication.

decay is clamped to 0..16 and boost to +-16, so no power becomes subnormal and every sum stays far below 2^1000.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmcodec.exact.constants import BLOCK, EXPONENT_MAX
from hpcmcodec.exact.elementary import exact_exp


def decay_powers(decay: np.ndarray, tokens: int) -> np.ndarray:
    """W^0 .. W^B per channel, float64 (B + 1, C), with W = exp(-decay / T); decay float32 (C,) is clamped to 0..16."""
    d = np.clip(decay.astype(np.float64), np.zeros(1), np.full(1, EXPONENT_MAX))
    w = exact_exp(-(d / np.full(1, float(tokens))))
    powers = [np.ones_like(w)]
    for _ in range(min(BLOCK, tokens)):
        powers.append(powers[-1] * w)
    return np.stack(powers)


def own_factor(boost: np.ndarray, tokens: int) -> np.ndarray:
    """exp(u) per channel, float64 (C,), with u = boost / T; boost float32 (C,) is clamped to +-16."""
    b = np.clip(boost.astype(np.float64), np.full(1, -EXPONENT_MAX), np.full(1, EXPONENT_MAX))
    return exact_exp(b / np.full(1, float(tokens)))


def biwkv4_exact(xp: Any, weights: Any, v: Any, powers: Any, own: Any) -> Any:
    """The exact form, float64: weights = exp(k) and v (B, T, C) to y (B, T, C).

    powers (L + 1, C) comes from `decay_powers`, L being the length of a block; own (C,) comes from `own_factor`.
    """
    batch, tokens, channels = v.shape
    length = powers.shape[0] - 1
    blocks = -(-tokens // length)
    # Numerators and denominators lie side by side, and the first axis is the token within its block, so that each
    # iteration of the recurrence works on contiguous memory.
    pair = xp.zeros((batch, blocks * length, 2 * channels), xp.f8)
    pair[:, :tokens, :channels] = weights * v
    pair[:, :tokens, channels:] = weights
    pair = pair.reshape(batch, blocks, length, 2 * channels)
    slab = xp.zeros((length, batch, blocks, 2 * channels), xp.f8)
    slab[:] = xp.permute(pair, (2, 0, 1, 3))
    power = xp.concat([powers, powers], 1)
    forward, backward = range(length), range(length - 1, -1, -1)
    left = _direction(xp, slab, power, forward, range(blocks))
    right = _direction(xp, slab, power, backward, range(blocks - 1, -1, -1))
    left += right
    left += slab * xp.concat([own, own], 0)
    out = left[..., :channels] / left[..., channels:]
    return xp.permute(out, (1, 2, 0, 3)).reshape(batch, blocks * length, channels)[:, :tokens]


def _direction(xp: Any, slab: Any, power: Any, order: range, block_order: range) -> Any:
    """For each token, the sum over all tokens before it in `order`: those in its block, then all others."""
    state = xp.zeros(slab.shape[1:], xp.f8)
    out = xp.zeros(slab.shape, xp.f8)
    for j in order:
        out[j] = state
        state = state * power[1]
        state = state + slab[j]
    carry = xp.zeros((slab.shape[1], slab.shape[3]), xp.f8)
    carries = xp.zeros(slab.shape[1:], xp.f8)
    for n in block_order:
        carries[:, n] = carry
        carry = carry * power[-1]
        carry = carry + state[:, n]
    for i, j in enumerate(order):
        out[j] += carries * power[i]
    return out
