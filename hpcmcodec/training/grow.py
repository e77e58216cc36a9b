"""A member's first values from those of a smaller one: phase n from phase n - 1, any memory from none.

What has the same name and shape is taken over. An attention cell becomes an RWKV cell that looks at its own position,
in = [skip | v], out = identity, and whose block adds nothing; so do all new RWKV blocks, whose gains begin at 0: what
the grown member computes first is what its parent did, but for the cells' attention and the priors that it leaves out.
Gates of a memory bank begin almost closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcmcodec.errors import InputError
from hpcmcodec.exact.schedule import SCALES
from hpcmcodec.model.hpcm import Estimator

CLOSED = -5.0  # the first bias of a memory bank's gate: at -4 the bits of an untrained parent move by 1.5%
LEAST = 0.5  # of the parent's numbers that the model has to have a place for


@dataclass(frozen=True)
class Grown:
    """Names of tensors: taken over as they are, made of others of the parent, at their first values, and the parent's
    that were not used. elements: how many numbers were taken over as they are.
    """

    matched: list[str]
    renamed: list[str]
    fresh: list[str]
    left_over: list[str]
    elements: int

    def lines(self) -> list[str]:
        """A line for people on each."""
        return [
            f"matched: {len(self.matched)} tensors, {self.elements:,} numbers",
            f"renamed: {len(self.renamed)} tensors",
            f"fresh: {len(self.fresh)} tensors",
            f"left over: {len(self.left_over)} tensors",
        ]


def grow(model: Estimator, parent: Mapping[str, Tensor]) -> Grown:
    """Give a model the values of another member's state.

    parent: tensors by the names of its module. Raises InputError where less than half of its numbers fit.
    """
    own = model.state_dict()
    matched = {k: v.to(own[k].dtype) for k, v in parent.items() if k in own and own[k].shape == v.shape}
    elements = sum(v.numel() for v in matched.values())
    total = sum(v.numel() for v in parent.values())
    if elements < LEAST * total or not elements:
        raise InputError(
            f"only {elements:,} of the state's {total:,} numbers have a name and a shape of the model's "
            f"({next(iter(parent), 'it is empty')}, ...): it is no smaller member's; grow from one, or train anew"
        )
    renamed, used = _cells(own, matched, parent)
    fresh = sorted(set(own) - set(matched) - set(renamed))
    model.load_state_dict(own | matched | renamed | {k: _first(k, own[k]) for k in fresh})
    left_over = sorted(set(parent) - set(matched) - used)
    return Grown(sorted(matched), sorted(renamed), fresh, left_over, elements)


def _cells(
    own: Mapping[str, Tensor], matched: Mapping[str, Tensor], parent: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], set[str]]:
    """What RWKV cells begin with where the parent has attention, and which of the parent's tensors that took."""
    made: dict[str, Tensor] = {}
    used: set[str] = set()
    for scale in SCALES:
        cell, taken = f"raw.{scale}/cell", [f"raw.{scale}/cell/{layer}" for layer in ("skip", "v")]
        if f"{cell}/in/weight" in own and f"{cell}/in/weight" not in matched and f"{taken[0]}/weight" in parent:
            weights, biases = ([parent[f"{t}/{kind}"] for t in taken] for kind in ("weight", "bias"))
            made[f"{cell}/in/weight"], made[f"{cell}/in/bias"] = torch.cat(weights, 1), biases[0] + biases[1]
            made[f"{cell}/out/weight"] = torch.eye(len(biases[0]), device=biases[0].device)
            made[f"{cell}/out/bias"] = torch.zeros_like(biases[0])
            used |= {f"{t}/{kind}" for t in taken for kind in ("weight", "bias")}
    return made, used


def _first(name: str, value: Tensor) -> Tensor:
    """The value that a new tensor begins with."""
    if ("/block" in name and name.endswith("/gain")) or name.endswith("/gate/weight"):
        return torch.zeros_like(value)
    if name.endswith("/gate/bias"):
        return torch.full_like(value, CLOSED)
    return value
