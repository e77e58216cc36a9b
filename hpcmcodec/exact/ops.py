"""The table of operations that the entropy path's flow is written over.

`Ops` says what each operation does. Every implementation has all of them: the reference (`reference.ExactOps`), the
compiled kernels (`native.compiled.KernelOps`), floats and fake quantisation (`model.float_ops`), and the declaration
that finds the layers (`model.declaration`). The self-test has a case for each operation, and tests/test_operations.py
holds every implementation to this table.

An activation is an `Act`; whether its values are codes or floats depends on the implementation. Layers are given as
objects of `exact.layers`. Where the argument `grid` is left out, the result is on the grid with the layer's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from hpcmcodec.exact.constants import CHANNEL_GRID, SLOPE
from hpcmcodec.exact.layers import (
    Depthwise,
    Dequantise,
    Gain,
    Head,
    Linear,
    Norm,
    Place,
    QualityBias,
    Read,
    Residual,
    Scale,
    Wkv,
)
from hpcmcodec.exact.schedule import Step

Array = Any  # numpy.ndarray or torch.Tensor
Qualities = Any  # one per sample. Exact operations: a sequence of B `Quality`; float ones: a tensor (B,) in [0, 1]


class Act(NamedTuple):
    """An activation: `x` (B, H, W, C) and the name of the grid that its codes stand on."""

    x: Array
    grid: str


class Rearranging(Protocol):
    """The array functions that the flow calls itself."""

    def permute(self, x: Array, axes: Sequence[int]) -> Array:
        """x with its axes in another order."""

    def zeros_like(self, x: Array, shape: Sequence[int]) -> Array:
        """Zeros of `shape`, of x's dtype."""

    def concat(self, xs: Sequence[Array], axis: int) -> Array:
        """Arrays side by side along an axis."""


class Ops(Protocol):
    """All operations. Arrays have the shape (B, H, W, C) where nothing else is said."""

    @property
    def xp(self) -> Rearranging: ...

    # -- layers --

    def linear(self, inputs: Act | Sequence[Act], layer: Linear, grid: str | None = None) -> Act:
        """1x1 convolution of the inputs, concatenated along the channels; an input may be (B, 1, 1, C)."""

    def head(self, inputs: Sequence[Act], layer: Head) -> tuple[Array, Array]:
        """Means and levels, each (..., layer.channels). Exact ones are int32: means in sixteenths, levels 0..63."""

    def depthwise(self, a: Act, layer: Depthwise, grid: str | None = None) -> Act:
        """Depthwise k x k convolution, zero padding."""

    def norm(self, a: Act, layer: Norm, grid: str | None = None) -> Act:
        """LayerNorm over the channels."""

    def channel_scale(self, a: Act, layer: Scale | Residual) -> Act:
        """a times the layer's factors, one per channel; the result is on a's grid."""

    def place(self, a: Act, step: Step, layer: Place) -> Act:
        """a plus, at each position, the vector of the group that the coding step codes there; on a's grid."""

    def wkv(self, k: Act, v: Act, layer: Wkv, grid: str | None = None) -> Act:
        """Bi-WKV4 over the H * W tokens in raster order (`exact.biwkv` has the formula)."""

    def hyper_latent(self, z: Array, layer: QualityBias, quality: Qualities) -> Act:
        """The symbols z (B, h, w, N) plus the bias that belongs to each sample's quality, on the grid `layer.grid`."""

    # -- without parameters --

    def lrelu(self, a: Act, slope: float = SLOPE) -> Act:
        """max(a, slope * a), on a's grid."""

    def relu_squared(self, a: Act, grid: str) -> Act:
        """max(a, 0)^2, on `grid`."""

    def gate(self, r: Act, a: Act) -> Act:
        """sigmoid(r) * a, on a's grid."""

    def blend(self, r: Act, a: Act, b: Act) -> Act:
        """sigmoid(r) * a + (1 - sigmoid(r)) * b, a may be (B, 1, 1, C); a, b and the result are on one grid."""

    def add(self, a: Act, b: Act) -> Act:
        """a + b; a, b and the result are on one grid."""

    def attend(self, q: Act, k: Act, v: Act, window: int, heads: int, grid: str) -> Act:
        """Attention inside windows of `window` x `window` positions (`exact.attention`); all (B, H, W, C)."""

    def curve(self, a: Act, name: str, grid: str) -> Act:
        """A function of each value, by its name in `elementary.CURVES`; on `grid`."""

    def resize(self, a: Act, rows: int, columns: int, how: str) -> Act:
        """a (B, H, W, C) as (B, rows, columns, C), on a's grid; how: "mean" over bins, or "bilinear"."""

    def outer(self, k: Act, v: Act, heads: int, grid: str) -> Act:
        """In each head of d channels the mean over all positions of k v^T: (B, 1, 1, C d), ordered (head, k, v)."""

    def lookup(self, q: Act, table: Act, norm: Act, heads: int, grid: str) -> Act:
        """In each head q `table` / q . norm, (B, H, W, C).

        q (B, H, W, C) and norm (B, 1, 1, C) are positive and on one grid; table is as `outer` gives it.
        """

    def choose(self, query: Act, keys: Sequence[Act], count: int, temperature: float) -> tuple[Array, Array]:
        """Which `count` keys are most similar to the query by their cosines, at most all of them, and their weights.

        query, keys (B, 1, 1, K); returns (B, count) indexes, and weights in proportion to exp(cosine / temperature). Of
        equally similar keys, the older comes first. At most eight keys.
        """

    def mix(self, parts: Sequence[Act], weights: Array) -> Act:
        """The mean of the parts, all (B, H, W, C) on one grid, by weights (B, number of parts)."""

    def moments(self, scales: Act, means: Act) -> tuple[Array, Array]:
        """Means and levels of latents with generalised Gaussian distributions, each (B, H, W, C).

        scales are the distributions' own, in quantisation steps, which exact operations round up to those of levels
        (`elementary.scale_levels`). Exact ones are int32: means in sixteenths, levels 0..59. Float ones are the means
        and the scales.
        """

    def pool(self, a: Act, grid: str) -> Act:
        """The average over all positions, (B, 1, 1, C)."""

    def recall(self, query: Act, keys: Sequence[Act], values: Sequence[Act], temperature: float) -> Act:
        """Mean of the two values whose keys are most similar to the query, weighted by softmax(cosine / temperature).

        query, keys (B, 1, 1, K); values (B, 1, 1, C), on one grid. Of equally similar keys, the older wins.
        """

    def latent_code(self, y_hat: Array) -> Array:
        """The form in which the context sees y_hat; exact: int32 become codes, which count sixteenths too."""

    # -- synthesis: codes with an exponent for each channel (CHANNEL_GRID), and wide values, int32 --

    def dequantise(self, y_hat: Array, layer: Dequantise, quality: Qualities) -> Act:
        """Codes of y_hat (exact: int32, sixteenths) times the quality's factors, on each channel's own grid."""

    def read(self, a: Act, layer: Read) -> Act:
        """Codes of a wide a, on each channel's own grid."""

    def wide(self, a: Act, layer: Linear, grid: str, onto: Act | None = None) -> Act:
        """1x1 convolution to wide values on `grid`, limited to +-WIDE_MAX, added to `onto`, which it may overwrite."""

    def amplify(self, a: Act, layer: Linear, gain: Gain, quality: Qualities) -> Act:
        """`wide` onto nothing, on WIDE_GRID, each output times the quality's factor: those of gain, over and over."""

    def pixels(self, a: Act, depth: int) -> Array:
        """Wide values around 0 on PIXEL_GRID as integers 0 .. 2^depth - 1."""

    # -- several operations in a row: `Composed` defines them by those above --

    def block(
        self,
        x: Act,
        around: Depthwise,
        up: Linear,
        down: Linear,
        read: Read | None = None,
        above: Act | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Act:
        """x plus its branch: depthwise 3x3 convolution, 1x1, LeakyReLU, 1x1.

        x is codes, and so is the sum; where there is `read`, both are wide, and the branch reads codes.
        above: the rows of the plane above x, of which the convolution sees the last; rows: the first of those that are
        wanted and the one behind the last, counted from the first row of `above`. Without them, all rows of x are.
        """

    def around(self, a: Act, layer: Depthwise, step: Step, grid: str | None = None) -> Act:
        """Depthwise 3x3 convolution of a (B, H, W, M), folded: (B, H, W, M / groups)."""

    def heads(
        self,
        inputs: Sequence[Act],
        step: Step,
        heads: Sequence[Head],
        hidden: Sequence[Linear] = (),
        grid: str | None = None,
    ) -> tuple[Array, Array]:
        """Means and levels of a coding step, folded: at each position, the head of the group that is coded there.

        heads: one for each group. A head with a hidden layer sees LeakyReLU(hidden(inputs)), on `grid`, beside the
        inputs.
        """

    # -- values moved as they are --

    def empty_latent(self, shape: Sequence[int]) -> tuple[Array, Act]:
        """Zeros of `shape` (B, H, W, M): y_hat before anything is coded, and the form in which the context sees it."""

    def folded(self, a: Act, step: Step) -> Act:
        """At each position of a (B, H, W, M), the channels of the group coded there: (B, H, W, M / groups)."""

    def gather(self, xs: Sequence[Array], step: Step) -> list[tuple[int, list[Array]]]:
        """[(group, [rows (B, 1, n, D) of each x (B, H, W, D)])]: the n positions where `step` codes the group.

        Groups without any position are left out.
        """

    def scatter(self, rows: Sequence[tuple[int, Array]], step: Step, shape: Sequence[int]) -> Array:
        """The inverse of `gather`: writes the rows of every group into an array of `shape` (B, H, W, C)."""

    def unfold(self, folded: Array, step: Step, target: Array) -> Array:
        """`target` (B, H, W, M) with the coding step's folded values put in; `target` itself may be overwritten."""

    def segment(self, f: Callable[..., Act], *arguments: Any) -> Act:
        """f(*arguments). Training may run f again in the backward pass instead of keeping its intermediate results."""


class Composed:
    """The operations that are several others in a row, for all implementations. Kernels can do them in one pass."""

    def block(
        self: Ops,
        x: Act,
        around: Depthwise,
        up: Linear,
        down: Linear,
        read: Read | None = None,
        above: Act | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Act:
        if above is not None:
            x = Act(self.xp.concat([above.x, x.x], 1), x.grid)
        inside = CHANNEL_GRID if read else None
        codes = self.read(x, read) if read else x
        hidden = self.lrelu(self.linear(self.depthwise(codes, around, inside), up, inside))
        out = self.wide(hidden, down, x.grid, onto=x) if read else self.add(x, self.linear(hidden, down, x.grid))
        return out if rows is None else Act(out.x[:, rows[0] : rows[1]], out.grid)

    def around(self: Ops, a: Act, layer: Depthwise, step: Step, grid: str | None = None) -> Act:
        return self.folded(self.depthwise(a, layer, grid), step)

    def heads(
        self: Ops,
        inputs: Sequence[Act],
        step: Step,
        heads: Sequence[Head],
        hidden: Sequence[Linear] = (),
        grid: str | None = None,
    ) -> tuple[Array, Array]:
        results = []
        for g, rows in self.gather([a.x for a in inputs], step):
            parts = [Act(x, a.grid) for x, a in zip(rows, inputs, strict=True)]
            if hidden:
                parts.append(self.lrelu(self.linear(parts, hidden[g], grid)))
            results.append((g, self.head(parts, heads[g])))
        shape = (*inputs[0].x.shape[:3], heads[0].channels)
        means, levels = (self.scatter([(g, r[i]) for g, r in results], step, shape) for i in range(2))
        return means, levels


OPERATIONS = tuple(name for name, value in vars(Ops).items() if callable(value) and not name.startswith("_"))
MOVING = frozenset({"empty_latent", "folded", "gather", "scatter", "unfold", "segment"})
"""The operations that move values and do no arithmetic."""
COMPOSED = frozenset(name for name in vars(Composed) if not name.startswith("_"))
COMPUTING = tuple(name for name in OPERATIONS if name not in MOVING | COMPOSED)
"""Those that do, and are defined by no others."""
