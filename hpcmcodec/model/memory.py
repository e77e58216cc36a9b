"""The memory bank `light`: it recalls, by similarity, what the carries of earlier coding steps looked like.

A reference is a pair of vectors made from a pooled carry: a short key and a value. A query picks the two most similar
of at most `references` keys by their cosines (of equal ones, the older). Their values are averaged with the weights
softmax(similarity / temperature), and a gate blends the result into the current carry:
out = gate * recalled + (1 - gate) * current. A memory bank lasts for one walk and is no part of the torch module.
"""

from __future__ import annotations

from hpcmcodec.exact.constants import GATE_GRID
from hpcmcodec.exact.layers import Linear
from hpcmcodec.exact.ops import Act, Ops


class MemoryBank:
    """The references of one walk over a batch. Beyond `references` of them, the oldest is dropped."""

    def __init__(self, ops: Ops, layer: str, references: int, compression: int, temperature: float) -> None:
        self.ops, self.layer = ops, layer
        self.references, self.compression, self.temperature = references, compression, temperature
        self.reset()

    def reset(self) -> None:
        """Forget all references."""
        self.keys: list[Act] = []
        self.values: list[Act] = []

    def add(self, carry: Act) -> None:
        """Store the carry (B, H, W, D) as one reference."""
        width = carry.x.shape[-1]
        pooled = self.ops.pool(carry, f"{self.layer}.pool")
        self.keys.append(self.ops.linear(pooled, Linear(f"{self.layer}.key", width // self.compression)))
        self.values.append(self.ops.linear(pooled, Linear(f"{self.layer}.value", width), carry.grid))
        del self.keys[: -self.references], self.values[: -self.references]

    def query(self, carry: Act) -> Act:
        """What the keys are compared with, (B, 1, 1, K)."""
        width = carry.x.shape[-1]
        pooled = self.ops.pool(carry, f"{self.layer}.pool")
        return self.ops.linear(pooled, Linear(f"{self.layer}.query", width // self.compression))

    def retrieve_and_fuse(self, carry: Act, context: Act | None = None) -> Act:
        """The carry blended with what the memory recalls for it; (B, H, W, D) on the carry's grid."""
        width = carry.x.shape[-1]
        recalled = self.ops.recall(self.query(carry), self.keys, self.values, self.temperature)
        gate = self.ops.linear([carry, recalled], Linear(f"{self.layer}.gate", width), GATE_GRID)
        return self.ops.blend(gate, recalled, carry)
