"""Which latents each of the eleven coding steps codes: HPCM's progressive schedule as strided slices.

y (B, h, w, M) has eight groups of M / 8 channels. A coarse scale holds y decimated to a lattice, each group at a phase
of its own, so that it holds a part of the information of every region instead of all channels of a few positions:

    scale  lattice                  coding steps groups  TILE  share of all symbols in each coding step
    s1     ceil(h/4) x ceil(w/4)    2            2       2x2   1/32
    s2     ceil(h/2) x ceil(w/2)    3            4       2x2   1/16
    s3     h x w                    6            8       4x4   1/8

A part gives every group a set of offsets in a pattern of TILE x TILE lattice points, which repeats over the lattice.
Each lattice point belongs to exactly one group, so the symbols *fold* into a dense array
(B, rows, columns, M / groups). Lattice points outside y do not exist: they are zero in every context and never coded.
(Li et al., HPCM, ICCV 2025, section 3.2.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

SCALES = ("s1", "s2", "s3")
STRIDE = {"s1": 4, "s2": 2, "s3": 1}  # distance between neighbouring lattice points, in positions of y
GROUPS = {"s1": 2, "s2": 4, "s3": 8}
TILE = {"s1": 2, "s2": 2, "s3": 4}

Offset = tuple[int, int]  # (row, column)

_PATTERNS = (
    ((0, 0), (2, 2)),
    ((0, 2), (2, 0)),
    ((1, 1), (3, 3)),
    ((1, 3), (3, 1)),
    ((0, 1), (2, 3)),
    ((0, 3), (2, 1)),
    ((1, 0), (3, 2)),
    ((1, 2), (3, 0)),
)
_S3 = (
    (0, 2, 4, 6, 1, 3, 5, 7),
    (1, 3, 5, 7, 0, 2, 4, 6),
    (2, 4, 6, 0, 3, 5, 7, 1),
    (3, 5, 7, 1, 2, 4, 6, 0),
    (4, 6, 0, 2, 5, 7, 1, 3),
    (5, 7, 1, 3, 4, 6, 0, 2),
    (6, 0, 2, 4, 7, 1, 3, 5),
    (7, 1, 3, 5, 6, 0, 2, 4),
)
_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
_S2 = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))
_EVEN, _ODD = ((0, 0), (1, 1)), ((0, 1), (1, 0))

# PARTS[scale][part][group]: offsets in the repeating pattern. The coarser scale has coded the parts before
# CODED_FROM[scale] already.
PARTS: dict[str, tuple[tuple[tuple[Offset, ...], ...], ...]] = {
    "s1": ((_EVEN, _ODD), (_ODD, _EVEN)),
    "s2": tuple(tuple((_PHASES[m],) for m in part) for part in _S2),
    "s3": tuple(tuple(_PATTERNS[p] for p in part) for part in _S3),
}
CODED_FROM = {"s1": 0, "s2": 1, "s3": 2}

_S2_IN_Y = ((0, 0), (1, 1), (0, 1), (1, 0)) * 2  # phases of the groups 0..7, offsets of the lattice of s2 in y
_S1_IN_S2 = tuple(_PHASES[m] for m in _S2[0] for _ in range(2))
_S1_IN_Y = tuple((2 * a + c, 2 * b + d) for (a, b), (c, d) in zip(_S1_IN_S2, _S2_IN_Y, strict=True))
PHASE_IN_Y: dict[str, tuple[Offset, ...]] = {"s1": _S1_IN_Y, "s2": _S2_IN_Y, "s3": ((0, 0),) * 8}
_PHASE_IN_FINER = {"s1": _S1_IN_S2, "s2": _S2_IN_Y}


@dataclass(frozen=True)
class Step:
    """One coding step: its number 0..10, its scale and part, and for each group the offsets in the pattern it codes."""

    index: int
    scale: str
    part: int
    groups: tuple[tuple[Offset, ...], ...]

    @property
    def last_of_scale(self) -> bool:
        return self.part == len(PARTS[self.scale]) - 1


STEPS = tuple(
    Step(i, scale, part, PARTS[scale][part])
    for i, (scale, part) in enumerate(
        (scale, part) for scale in SCALES for part in range(CODED_FROM[scale], len(PARTS[scale]))
    )
)


def grid(scale: str, h: int, w: int) -> tuple[int, int]:
    """Rows and columns of a scale's lattice, for y of h x w positions."""
    s = STRIDE[scale]
    return -(-h // s), -(-w // s)


def decimate(y: Any, scale: str, out: Any) -> Any:
    """Writes y (B, h, w, M), decimated to the scale's lattice, into `out` (B, rows, columns, M).

    `out` must hold zeros before the call; they stay where no lattice point exists.
    """
    s, m = STRIDE[scale], y.shape[-1] // 8
    for g, (r, c) in enumerate(PHASE_IN_Y[scale]):
        v = y[:, r::s, c::s, g * m : (g + 1) * m]
        out[:, : v.shape[1], : v.shape[2], g * m : (g + 1) * m] = v
    return out


def refine(x: Any, scale: str, out: Any) -> Any:
    """Writes the latents x (B, rows, columns, M) of `scale` to their places on the next finer lattice, `out`."""
    m = x.shape[-1] // 8
    for g, (r, c) in enumerate(_PHASE_IN_FINER[scale]):
        target = out[:, r::2, c::2, g * m : (g + 1) * m]
        target[:] = x[:, : target.shape[1], : target.shape[2], g * m : (g + 1) * m]
    return out


def positions(step: Step) -> Iterator[tuple[int, tuple[slice, slice, slice]]]:
    """(group, slices of (B, rows, columns)): the lattice points where a coding step codes the group."""
    t = TILE[step.scale]
    for g, offsets in enumerate(step.groups):
        for r, c in offsets:
            yield g, (slice(None), slice(r, None, t), slice(c, None, t))


def fold(x: Any, step: Step, out: Any) -> Any:
    """Writes, at each lattice point of x (B, rows, columns, M), the channels of the one group that the step codes there
    into `out` (B, rows, columns, M / groups).
    """
    n = x.shape[-1] // GROUPS[step.scale]
    for g, at in positions(step):
        out[at] = x[(*at, slice(g * n, (g + 1) * n))]
    return out


def unfold(folded: Any, step: Step, out: Any) -> Any:
    """The inverse of `fold`: writes the coding step's values into `out` (B, rows, columns, M) and leaves the rest."""
    n = folded.shape[-1]
    for g, at in positions(step):
        out[(*at, slice(g * n, (g + 1) * n))] = folded[at]
    return out


@lru_cache(maxsize=128)
def valid(step: Step, h: int, w: int, latent: int) -> np.ndarray | None:
    """Which folded latents exist in y of h x w: bool (1, rows, columns, M / groups), or None where all of them do."""
    rows, columns = grid(step.scale, h, w)
    # Either all channels of one of the eight groups exist or none does, so one channel stands for each group.
    exists = decimate(np.ones((1, h, w, 8), bool), step.scale, np.zeros((1, rows, columns, 8), bool))
    folded = fold(exists, step, np.zeros((1, rows, columns, 8 // GROUPS[step.scale]), bool))
    return None if folded.all() else folded.repeat(latent // 8, -1)
