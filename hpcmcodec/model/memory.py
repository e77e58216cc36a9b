"""Multi-reference memory bank `light`: what earlier steps' carries looked like, recalled by similarity.

Each stored reference is a pair of vectors made from the pooled carry: a key (compressed) and a value. A query picks the
two most similar of at most `references` keys (cosine; ties go to the older), their values are averaged with
softmax(similarity / temperature), and a gate blends the result into the current carry:
out = gate * recalled + (1 - gate) * current. The state belongs to one walk over the steps, never to the module.
"""

from __future__ import annotations

from hpcmcodec.exact.constants import GATE_GRID
from hpcmcodec.exact.layers import Linear
from hpcmcodec.exact.ops import Act, Ops


class MemoryBank:
    """One image's (or batch's) references; first in, first out beyond `references`."""

    def __init__(self, ops: Ops, layer: str, references: int, compression: int, temperature: float) -> None:
        self.ops, self.layer = ops, layer
        self.references, self.compression, self.temperature = references, compression, temperature
        self.keys: list[Act] = []
        self.values: list[Act] = []

    def add(self, carry: Act) -> None:
        """Store the carry (B, H, W, D) as one reference."""
        width = carry.x.shape[-1]
        pooled = self.ops.pool(carry, f"{self.layer}.pool")
        self.keys.append(self.ops.linear(pooled, Linear(f"{self.layer}.key", width // self.compression)))
        self.values.append(self.ops.linear(pooled, Linear(f"{self.layer}.value", width), carry.grid))
        del self.keys[: -self.references], self.values[: -self.references]

    def retrieve_and_fuse(self, carry: Act) -> Act:
        """The carry blended with what the memory recalls for it; (B, H, W, D) on the carry's grid."""
        width = carry.x.shape[-1]
        pooled = self.ops.pool(carry, f"{self.layer}.pool")
        query = self.ops.linear(pooled, Linear(f"{self.layer}.query", width // self.compression))
        recalled = self.ops.recall(query, self.keys, self.values, self.temperature)
        gate = self.ops.linear([carry, recalled], Linear(f"{self.layer}.gate", width), GATE_GRID)
        return self.ops.blend(gate, recalled, carry)
