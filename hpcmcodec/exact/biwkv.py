"""Bi-WKV4: bidirectional linear attention with per-channel exponential decay over a sequence of T tokens.

    y_t = (sum_{i != t} exp(-(|t - i| - 1) w + k_i) v_i + exp(u + k_t) v_t) / (the same without v),
    w = decay / T >= 0, u = boost / T                                  (Vision-RWKV, arXiv 2403.02308, eq. 4-5)

Two linear recurrences, left to right and right to left, give every sum in O(T). The exact form below fixes their order
so that numpy, torch and compiled kernels agree to the bit: blocks of B = min(64, T) tokens counted from token 0, the
last one filled up with zero weights; inside a block the state before token j is s_j, s_(j+1) = s_j * W + e_j v_j from
s_0 = 0 (mirrored for the other direction); across blocks c = c * W^B + s_B; left = s_j + c * W^j, right likewise with j
counted from the block's end; y = ((left + right) + own) / (the same for the denominator). W = exp(-w); W^j by repeated
multiplication. decay and boost are clamped to +-16, so no power becomes subnormal and every sum stays far below 2^1000.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcmcodec.exact.constants import BLOCK, EXPONENT_MAX
from hpcmcodec.exact.elementary import exact_exp


def decay_powers(decay: np.ndarray, tokens: int) -> np.ndarray:
    """W^0 .. W^B for each channel, float64 (B + 1, C), W = exp(-decay / T); decay float32 (C,), clamped to 0..16."""
    d = np.clip(decay.astype(np.float64), np.zeros(1), np.full(1, EXPONENT_MAX))
    w = exact_exp(-(d / np.full(1, float(tokens))))
    powers = [np.ones_like(w)]
    for _ in range(min(BLOCK, tokens)):
        powers.append(powers[-1] * w)
    return np.stack(powers)


def own_factor(boost: np.ndarray, tokens: int) -> np.ndarray:
    """exp(u), float64 (C,), u = boost / T; boost float32 (C,), clamped to +-16."""
    b = np.clip(boost.astype(np.float64), np.full(1, -EXPONENT_MAX), np.full(1, EXPONENT_MAX))
    return exact_exp(b / np.full(1, float(tokens)))


def biwkv4_exact(xp: Any, weights: Any, v: Any, powers: Any, own: Any) -> Any:
    """The exact form. weights = exp(k) and v: float64 (B, T, C); powers (L + 1, C), own (C,); returns float64 (B, T,
    C).
    """
    batch, tokens, channels = v.shape
    length = powers.shape[0] - 1
    blocks = -(-tokens // length)
    # Numerator and denominator side by side, token-in-block first: each line of the recurrence is one contiguous slab.
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
    """Sums of everything before (in `order`) each token: inside its block, then what the blocks before carry in."""
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
