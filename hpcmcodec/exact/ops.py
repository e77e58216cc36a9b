"""The table of operations that the entropy path's flow is written over.

`Ops` says what each is; every implementation covers all: the reference (`reference.ExactOps`), the compiled kernels
(`native.compiled.KernelOps`), floats and fake quantisation (`model.float_ops`), the declaration that finds the layers
(`model.entropy`). The self-test has a case for each. tests/test_operations.py holds them to this table.

An activation is an `Act`; what its values are (codes, floats) is the implementation's affair. Layers come as objects of
`exact.layers`. An operation that names no other grid leaves its result on the one of the layer's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

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
    Scale,
    Wkv,
)
from hpcmcodec.exact.schedule import Step

Array = Any  # numpy.ndarray or torch.Tensor
Qualities = Any  # one a sample; exact operations: a sequence of Quality; float ones: q in [0, 1], a tensor (B,)


class Act(NamedTuple):
    """An activation: `x` (B, H, W, C) and the name of the grid that its codes stand on."""

    x: Array
    grid: str


class Rearranging(Protocol):
    """What the flow itself asks of arrays."""

    def permute(self, x: Array, axes: Sequence[int]) -> Array: ...


class Ops(Protocol):
    """Shapes are (B, H, W, C) where nothing else is said."""

    @property
    def xp(self) -> Rearranging: ...

    # -- layers --

    def linear(self, inputs: Act | Sequence[Act], layer: Linear, grid: str | None = None) -> Act:
        """1x1 convolution of the concatenation of `inputs`, some of which may be (B, 1, 1, C)."""

    def head(self, inputs: Sequence[Act], layer: Head) -> tuple[Array, Array]:
        """Means and scale levels, each (..., layer.channels); exact: int32, in sixteenths, and 0..63."""

    def depthwise(self, a: Act, layer: Depthwise, grid: str | None = None) -> Act:
        """Depthwise k x k convolution, zero padding."""

    def norm(self, a: Act, layer: Norm, grid: str | None = None) -> Act:
        """LayerNorm over the channels."""

    def channel_scale(self, a: Act, layer: Scale) -> Act:
        """a times the layer's factor for each channel, on a's grid."""

    def place(self, a: Act, step: Step, layer: Place) -> Act:
        """a plus the vector of the group that the step codes at each position, on a's grid."""

    def wkv(self, k: Act, v: Act, layer: Wkv, grid: str | None = None) -> Act:
        """Bi-WKV4 over the H * W tokens in raster order (`exact.biwkv` has the formula)."""

    def hyper_latent(self, z: Array, layer: QualityBias, quality: Qualities) -> Act:
        """z symbols plus the quality's bias, on the layer's grid."""

    # -- without parameters --

    def lrelu(self, a: Act) -> Act:
        """max(x, 0.1 x), on a's grid."""

    def relu_squared(self, a: Act, grid: str) -> Act:
        """max(x, 0)^2."""

    def gate(self, r: Act, a: Act) -> Act:
        """sigmoid(r) * a, on a's grid."""

    def blend(self, r: Act, a: Act, b: Act) -> Act:
        """sigmoid(r) * a + (1 - sigmoid(r)) * b; a (B, 1, 1, C) and b on one grid."""

    def add(self, a: Act, b: Act) -> Act:
        """a + b, on their one grid."""

    def pool(self, a: Act, grid: str) -> Act:
        """Average over the positions, (B, 1, 1, C)."""

    def recall(self, query: Act, keys: Sequence[Act], values: Sequence[Act], temperature: float) -> Act:
        """Mean of the two values whose keys are most similar to the query, weighted by softmax(cosine / temperature).

        query, keys (B, 1, 1, K); values (B, 1, 1, C), on one grid. Ties go to the older reference.
        """

    def latent_code(self, y_hat: Array) -> Array:
        """What the context sees of y_hat."""

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

    # -- values moved as they are --

    def empty_latent(self, shape: Sequence[int]) -> tuple[Array, Act]:
        """y_hat before anything is coded, and what the context sees of it."""

    def folded(self, a: Act, step: Step) -> Act:
        """The step's channels of a (B, H, W, M), one group a position: (B, H, W, M / groups)."""

    def gather(self, xs: Sequence[Array], step: Step) -> list[tuple[int, list[Array]]]:
        """For each group of a step with positions on this grid: (group, rows (B, 1, n, D) of each x (B, H, W, D))."""

    def scatter(self, rows: Sequence[tuple[int, Array]], step: Step, shape: Sequence[int]) -> Array:
        """The inverse of `gather`: rows of every group into an array of `shape` (B, H, W, C)."""

    def unfold(self, folded: Array, step: Step, target: Array) -> Array:
        """`target` (B, H, W, M) with the step's folded values in their places; it may be written to."""

    def segment(self, f: Callable[..., Act], *arguments: Any) -> Act:
        """f(*arguments): a part of the walk that training may run twice rather than keep what is inside."""


OPERATIONS = tuple(name for name, value in vars(Ops).items() if callable(value) and not name.startswith("_"))
MOVING = frozenset({"empty_latent", "folded", "gather", "scatter", "unfold", "segment"})
"""Those that do no arithmetic."""
COMPUTING = tuple(name for name in OPERATIONS if name not in MOVING)
