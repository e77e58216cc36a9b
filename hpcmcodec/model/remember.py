"""What a walk remembers: which bank there is at each scale, when carries are stored, and when they are fused.

    at the start of a scale      the carry is stored
    after each cell              from the scale's second coding step on, the carry is fused with what the bank recalls;
                                 then it is stored, unless nothing will read it

`light` has a bank at s3, `full` one at each scale, `linear` one for the whole walk. With `memory_handover` a scale's
bank of `full` begins with the references of the coarser one.
"""

from __future__ import annotations

from typing import Any

from hpcmcodec.exact.ops import Act, Ops
from hpcmcodec.exact.schedule import CODED_FROM, SCALES, STEPS, Step
from hpcmcodec.model.banks import FullBank, LinearBank
from hpcmcodec.model.config import Config
from hpcmcodec.model.memory import MemoryBank


class Memory:
    """The memory of one walk."""

    def __init__(self, ops: Ops, config: Config) -> None:
        self.ops, self.config = ops, config
        self.bank: Any = None  # of the scale that the walk is at

    def begin(self, scale: str, carry: Act) -> None:
        """A scale begins with this carry."""
        c, at = self.config, SCALES.index(scale)
        references, topk = (v if isinstance(v, int) else v[at] for v in (c.memory_references, c.memory_topk))
        if c.memory == "light" and scale == "s3":
            self.bank = MemoryBank(self.ops, "memory", references, c.memory_compression, c.memory_temperature)
        elif c.memory == "full":
            kept = self.bank.handed_over() if self.bank is not None and c.memory_handover else []
            sizes = references, topk, c.memory_compression, c.memory_temperature, c.memory_value_size
            self.bank = FullBank(self.ops, f"{scale}.memory", *sizes)
            for value in kept:
                self.bank.add(value)
        elif c.memory == "linear":
            self.bank = self.bank or LinearBank(self.ops, "memory", references, topk, c.memory_temperature)
            self.bank.scale = scale
        if self.bank is not None:
            self.bank.add(carry)

    def after(self, step: Step, context: Act, carry: Act) -> Act:
        """The carry after a coding step's cell, fused with what is recalled for it."""
        if self.bank is None:
            return carry
        if step.part != CODED_FROM[step.scale]:
            carry = self.bank.retrieve_and_fuse(carry, context)
        if self._read_again(step):
            self.bank.add(carry)
        return carry

    def _read_again(self, step: Step) -> bool:
        """Whether anything reads the bank behind this coding step's cell."""
        if step is STEPS[-2]:
            return False  # behind the last coding step there is no cell
        return not step.last_of_scale or self.config.memory != "full" or self.config.memory_handover
