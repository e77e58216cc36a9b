"""The larger memory banks: `full`, whose values are small planes, and `linear`, whose references are matrices.

full: a reference is a key, as in `memory`, and a value: the carry through a depthwise 3x3, a 1x1 and GELU, as means
over 8 x 8 bins. What is recalled is the mean of the values, each brought to the lattice and decoded; a gate mixes a
network of carry and recalled plane into the carry.

linear: a reference is, in heads of 32 channels, the mean over all positions of phi(k) v^T and of phi(k), with phi(x) =
elu(x) + 1, whatever the size of the plane. Positions of the context read the mean of the chosen references,
phi(q) S / phi(q) . n, and a projection of that, times a vector per scale, is added to the carry. (Linear attention:
Katharopoulos et al. 2020; a global inter-context of this kind is in MLIC++, arXiv 2307.15421.)
"""

from __future__ import annotations

from hpcmcodec.exact.constants import GATE_GRID
from hpcmcodec.exact.layers import Depthwise, Linear, Norm, Scale
from hpcmcodec.exact.ops import Act, Array, Ops

HEAD = 32  # channels of a head of the linear bank


def picked(ops: Ops, values: list[Act], order: Array) -> list[Act]:
    """Each sample's own choice of values: for each column of `order` (B, n) an activation."""
    chosen = []
    for n in range(order.shape[1]):
        rows = [values[int(order[b, n])].x[b : b + 1] for b in range(order.shape[0])]
        chosen.append(Act(rows[0] if len(rows) == 1 else ops.xp.concat(rows, 0), values[0].grid))
    return chosen


class FullBank:
    """The references of one scale of one walk. Beyond `references` of them, the oldest is dropped."""

    def __init__(
        self, ops: Ops, layer: str, references: int, topk: int, compression: int, temperature: float, size: int
    ) -> None:
        self.ops, self.layer = ops, layer
        self.references, self.topk, self.compression = references, topk, compression
        self.temperature, self.size = temperature, size
        self.reset()

    def reset(self) -> None:
        """Forget all references."""
        self.keys: list[Act] = []
        self.values: list[Act] = []

    def add(self, carry: Act) -> None:
        """Store the carry (B, H, W, D) as one reference."""
        ops, layer, width = self.ops, self.layer, carry.x.shape[-1]
        pooled = ops.pool(carry, f"{layer}.pool")
        # Keys have no bias: all would share it, and what they share tells them apart no better.
        self.keys.append(ops.linear(pooled, Linear(f"{layer}.key", width // self.compression, biased=False)))
        seen = ops.depthwise(carry, Depthwise(f"{layer}.value.dw"))
        seen = ops.curve(ops.linear(seen, Linear(f"{layer}.value.out", width)), "gelu", f"{layer}.value")
        self.values.append(ops.resize(seen, self.size, self.size, "mean"))
        del self.keys[: -self.references], self.values[: -self.references]

    def query(self, carry: Act) -> Act:
        """What the keys are compared with, (B, 1, 1, K)."""
        width = carry.x.shape[-1]
        pooled = self.ops.pool(carry, f"{self.layer}.pool")
        return self.ops.linear(pooled, Linear(f"{self.layer}.query", width // self.compression))

    def retrieve_and_fuse(self, carry: Act, context: Act) -> Act:
        """The carry, fused with what the memory recalls for it; (B, H, W, D) on the carry's grid."""
        ops, layer, (_, h, w, width) = self.ops, self.layer, carry.x.shape
        order, weights = ops.choose(self.query(carry), self.keys, self.topk, self.temperature)
        planes = [self._decoded(ops.resize(v, h, w, "bilinear")) for v in picked(ops, self.values, order)]
        recalled = ops.mix(planes, weights)
        fused = ops.norm(ops.linear([carry, recalled], Linear(f"{layer}.fuse.in", width)), Norm(f"{layer}.fuse.norm"))
        fused = ops.depthwise(ops.curve(fused, "gelu", f"{layer}.fuse.inside"), Depthwise(f"{layer}.fuse.dw"))
        fused = ops.linear(fused, Linear(f"{layer}.fuse.out", width), carry.grid)
        gate = ops.linear([carry, recalled], Linear(f"{layer}.gate", width), GATE_GRID)
        return ops.blend(gate, fused, carry)

    def _decoded(self, value: Act) -> Act:
        layer = f"{self.layer}.recalled"
        inside = self.ops.linear(value, Linear(f"{layer}.in", value.x.shape[-1]))
        return self.ops.depthwise(self.ops.curve(inside, "gelu", f"{layer}.inside"), Depthwise(f"{layer}.dw"), layer)

    def handed_over(self) -> list[Act]:
        """The values in order, as the finer scale's bank stores them."""
        ops, layer = self.ops, f"{self.layer}.handover"
        found = []
        for value in self.values:
            passed = ops.linear(value, Linear(layer, value.x.shape[-1], start="same"))
            found.append(ops.curve(passed, "gelu", f"{layer}.out"))
        return found


class LinearBank:
    """The references of one walk, over all its scales. Beyond `references` of them, the oldest is dropped."""

    def __init__(self, ops: Ops, layer: str, references: int, topk: int, temperature: float) -> None:
        self.ops, self.layer = ops, layer
        self.references, self.topk, self.temperature = references, topk, temperature
        self.scale = ""  # that the walk is at
        self.reset()

    def reset(self) -> None:
        """Forget all references."""
        self.keys: list[Act] = []
        self.values: list[Act] = []

    def add(self, carry: Act) -> None:
        """Store the carry (B, H, W, D) as one reference."""
        k = self._positive("key", carry)
        v = self._projected("value", carry)
        self.values.append(self.ops.outer(k, v, _heads(carry), f"{self.layer}.matrix"))
        self.keys.append(self.ops.pool(k, k.grid))
        del self.keys[: -self.references], self.values[: -self.references]

    def query(self, context: Act) -> Act:
        """What each position asks, (B, H, W, D), positive."""
        return self._positive("query", context)

    def retrieve_and_fuse(self, carry: Act, context: Act) -> Act:
        """The carry plus what the context's positions read; (B, H, W, D) on the carry's grid."""
        ops, layer, width = self.ops, self.layer, carry.x.shape[-1]
        q = self.query(context)
        order, weights = ops.choose(ops.pool(q, q.grid), self.keys, self.topk, self.temperature)
        table, norm = (ops.mix(picked(ops, of, order), weights) for of in (self.values, self.keys))
        read = ops.lookup(q, table, norm, _heads(carry), f"{layer}.read")
        read = ops.linear(read, Linear(f"{layer}.out", width), carry.grid)
        return ops.add(carry, ops.channel_scale(read, Scale(f"{self.scale}.memory.gain", first=0.0)))

    def _positive(self, what: str, a: Act) -> Act:
        # All on one grid: keys are compared with queries, and read by them.
        return self.ops.curve(self._projected(what, a), "elu+1", f"{self.layer}.positive")

    def _projected(self, what: str, a: Act) -> Act:
        inside = self.ops.linear(a, Linear(f"{self.layer}.{what}.in", a.x.shape[-1]))
        return self.ops.depthwise(inside, Depthwise(f"{self.layer}.{what}.dw"))


def _heads(a: Act) -> int:
    return max(1, int(a.x.shape[-1]) // HEAD)
