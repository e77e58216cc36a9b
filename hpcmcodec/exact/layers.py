"""One class for each kind of layer: its properties, its tensors, and how they become integers.

The flow makes a layer's object where it uses the layer. The widths of its inputs are added when the flow runs once to
find all layers (`model.declaration.declare`). A layer's derived tensors are float32, merged from the parameters that
training holds (`model.parameters`); `quantise` turns them into the stored tensors, which coding uses. Both kinds are
kept in flat dictionaries, under `<layer>.<tensor>`:

                                    derived             stored
    Linear, Head                    weight, bias        weight int16 (O, sum of inputs), step float32 (inputs, O),
                                                        bias float32 (O), widths int32 (inputs)
    Depthwise, OmniShift            weight, bias        weight int16 (C, k * k), step float32 (1, C), bias float32 (C)
    Norm                            gamma, beta         gamma, beta float32 (C)
    Residual                        gamma, beta, scale  gamma, beta, scale float32 (C)
    Scale                           scale               scale float32 (C)
    Wkv                             decay, boost        decay, boost float32 (C)
    Place                           table               table float32 (groups, C)
    QualityBias                     table               table int32 (anchors, N), codes on the layer's grid
    Read                            scale               scale float32 (C), powers of two
    Gain                            log_scale           log_scale float32 (anchors, C)
    Dequantise                      log_scale, scale    log_scale float32 (anchors, C), scale float32 (C)
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import numpy as np

from hpcmcodec.exact.constants import PRECISION, limit_of
from hpcmcodec.exact.quantisation import quantise_rows

L = TypeVar("L", bound="Layer")
Tensors = Mapping[str, np.ndarray]
Form = tuple[Any, tuple[int, ...]]  # a numpy dtype and a shape


class Layer(ABC):
    """A layer, known by its name. `widths`: the channels of each input; empty until the layer is declared.

    This is no dataclass, since making dataclasses of it and its nine subclasses would add 5 ms to every start.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.widths: tuple[int, ...] = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    @property
    def out(self) -> int:
        """Number of channels of the output."""
        return self.widths[0]

    def over(self: L, *widths: int) -> L:
        """A copy of the layer, declared with inputs of these widths."""
        declared = copy.copy(self)
        declared.widths = widths
        return declared

    @property
    @abstractmethod
    def derived(self) -> tuple[str, ...]:
        """Names of the derived tensors, without the layer's own name in front."""

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of the tensors that `quantise` returns, without the layer's own name in front."""
        return self.derived

    def of(self, tensors: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """The tensors `names` of this layer, out of a flat dictionary of all layers' tensors."""
        return {name: tensors[f"{self.name}.{name}"] for name in names}

    @property
    @abstractmethod
    def forms(self) -> dict[str, Form]:
        """Dtype and shape of each stored tensor of a declared layer."""

    @abstractmethod
    def quantise(self, derived: Tensors, grids: Mapping[str, int], precision: int = PRECISION) -> dict[str, np.ndarray]:
        """The stored tensors by name, made from the derived ones by name (without the layer's).

        grids: exponents. precision: bits of a code.
        """

    @abstractmethod
    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        """Random derived tensors of a declared layer, for tests; some values lie beyond the limits that clamp them."""


class _Weighted(Layer):
    """A layer with a matrix of weights and a bias. Stored weights are integers, in a unit for each row and input."""

    biased = True

    @property
    @abstractmethod
    def inputs(self) -> tuple[int, ...]:
        """How many weights of a row belong to each input."""

    @property
    def derived(self) -> tuple[str, ...]:
        return ("weight", "bias") if self.biased else ("weight",)

    @property
    def stored(self) -> tuple[str, ...]:
        return ("weight", "step", "bias") if self.biased else ("weight", "step")

    @property
    def forms(self) -> dict[str, Form]:
        of: dict[str, Form] = {"weight": (np.int16, (self.out, sum(self.inputs)))}
        of["step"] = np.float32, (len(self.inputs), self.out)
        return of | ({"bias": (np.float32, (self.out,))} if self.biased else {})

    def quantise(self, derived: Tensors, grids: Mapping[str, int], precision: int = PRECISION) -> dict[str, np.ndarray]:
        pieces = [
            quantise_rows(part, precision) for part in np.split(derived["weight"], np.cumsum(self.inputs)[:-1], 1)
        ]
        out = {"weight": np.concatenate([i for i, _ in pieces], 1), "step": np.stack([s for _, s in pieces])}
        return out | ({"bias": derived["bias"].astype(np.float32)} if self.biased else {})

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        weight = _normal(rng, self.out, sum(self.inputs))
        return {"weight": weight} | ({"bias": _uniform(rng, self.out, -2, 2)} if self.biased else {})


class _Joining(_Weighted):
    """A 1x1 convolution of several inputs side by side, whose widths are stored with the weights."""

    @property
    @abstractmethod
    def out(self) -> int:
        """Number of channels of the output, which the widths of the inputs do not tell."""

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.widths

    @property
    def stored(self) -> tuple[str, ...]:
        return (*super().stored, "widths")

    @property
    def forms(self) -> dict[str, Form]:
        return super().forms | {"widths": (np.int32, (len(self.inputs),))}

    def quantise(self, derived: Tensors, grids: Mapping[str, int], precision: int = PRECISION) -> dict[str, np.ndarray]:
        return super().quantise(derived, grids, precision) | {"widths": np.array(self.widths, np.int32)}


class Linear(_Joining):
    """A 1x1 convolution to `channels`.

    biased: it has a bias. branch: it ends a residual branch, which training scales by a gain. start: what its
    weights do when training starts, in addition to random noise: "random" adds nothing, "same" passes on the one input,
    "first" the first of several inputs, "mean" their mean; "small" is less noise. phases: of a pixel shuffle behind it,
    which share one bias.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        *,
        biased: bool = True,
        branch: bool = False,
        start: Literal["random", "same", "first", "mean", "small"] = "random",
        phases: int = 1,
    ) -> None:
        super().__init__(name)
        self.channels, self.biased, self.branch, self.start = channels, biased, branch, start
        self.phases = phases

    @property
    def out(self) -> int:
        return self.channels


class Head(_Joining):
    """A 1x1 convolution to 2 * `channels` outputs: the means of `channels` latents, then their levels."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__(name)
        self.channels = channels

    @property
    def out(self) -> int:
        return 2 * self.channels

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        made = super().example(rng)
        return made | {"weight": 30 * made["weight"]}


class Depthwise(_Weighted):
    """A k x k convolution in which each channel is computed from itself alone."""

    def __init__(self, name: str, k: int = 3) -> None:
        super().__init__(name)
        self.k = k

    @property
    def inputs(self) -> tuple[int, ...]:
        return (self.k * self.k,)


class OmniShift(Depthwise):
    """A depthwise convolution that is trained as the sum of several ones (Restore-RWKV, arXiv 2407.11087)."""


class _Plain(Layer):
    """A layer whose derived tensors are stored as they are."""

    @property
    def forms(self) -> dict[str, Form]:
        return dict.fromkeys(self.derived, (np.float32, (self.out,)))

    def quantise(self, derived: Tensors, grids: Mapping[str, int], precision: int = PRECISION) -> dict[str, np.ndarray]:
        return {k: v.astype(np.float32) for k, v in derived.items()}


class Norm(_Plain):
    """LayerNorm over the channels."""

    @property
    def derived(self) -> tuple[str, ...]:
        return ("gamma", "beta")

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        return {"gamma": _uniform(rng, self.out, 0.5, 2), "beta": _uniform(rng, self.out, -1, 1)}


class Residual(Norm):
    """A LayerNorm that holds a residual branch's gain, and the factors of what it replaces (model.rwkv)."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name)
        self.kind = kind

    @property
    def derived(self) -> tuple[str, ...]:
        return ("gamma", "beta", "scale")

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        return super().example(rng) | {"scale": _uniform(rng, self.out, -1, 1)}


class Scale(_Plain):
    """One factor per channel. first: what training starts from."""

    def __init__(self, name: str, first: float = 1.0) -> None:
        super().__init__(name)
        self.first = first

    @property
    def derived(self) -> tuple[str, ...]:
        return ("scale",)

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        return {"scale": _uniform(rng, self.out, -2, 2)}


class Wkv(_Plain):
    """Decay and boost of Bi-WKV4, one of each per channel."""

    @property
    def derived(self) -> tuple[str, ...]:
        return ("decay", "boost")

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        return {"decay": _uniform(rng, self.out, -1, 20), "boost": _uniform(rng, self.out, -20, 20)}


class Place(_Plain):
    """A vector for each group. Adding it tells the context which group a coding step codes at a lattice point."""

    def __init__(self, name: str, groups: int) -> None:
        super().__init__(name)
        self.groups = groups

    @property
    def derived(self) -> tuple[str, ...]:
        return ("table",)

    @property
    def forms(self) -> dict[str, Form]:
        return {"table": (np.float32, (self.groups, self.out))}

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        return {"table": 40 * _normal(rng, self.groups, self.out)}


class QualityBias(Layer):
    """A vector on `grid` that depends on the quality, interpolated linearly between `anchors` stored qualities."""

    def __init__(self, name: str, grid: str, anchors: int) -> None:
        super().__init__(name)
        self.grid, self.anchors = grid, anchors

    @property
    def derived(self) -> tuple[str, ...]:
        return ("table",)

    @property
    def forms(self) -> dict[str, Form]:
        return {"table": (np.int32, (self.anchors, self.out))}

    def quantise(self, derived: Tensors, grids: Mapping[str, int], precision: int = PRECISION) -> dict[str, np.ndarray]:
        table = np.rint(derived["table"].astype(np.float64) * 2.0 ** grids[self.grid])
        limit = limit_of(self.grid, precision)
        return {"table": np.clip(table, -limit, limit).astype(np.int32)}

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        return {"table": 40 * _normal(rng, self.anchors, self.out)}


class Read(_Plain):
    """How a wide value becomes a code: times a power of two for each channel."""

    @property
    def derived(self) -> tuple[str, ...]:
        return ("scale",)

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        return {"scale": _powers(rng, self.out)}


class Gain(_Plain):
    """A factor for each of `channels` that the quality chooses, log-linear between as many `anchors`."""

    def __init__(self, name: str, anchors: int, channels: int) -> None:
        super().__init__(name)
        self.anchors, self.channels = anchors, channels

    @property
    def out(self) -> int:
        return self.channels

    @property
    def derived(self) -> tuple[str, ...]:
        return ("log_scale",)

    @property
    def forms(self) -> dict[str, Form]:
        return {"log_scale": (np.float32, (self.anchors, self.out))}

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        return {"log_scale": 2 * _normal(rng, self.anchors, self.out)}


class Dequantise(_Plain):
    """How y_hat becomes a code: times the quality's factor (as `Gain`) and a power of two for each channel."""

    def __init__(self, name: str, anchors: int) -> None:
        super().__init__(name)
        self.anchors = anchors

    @property
    def derived(self) -> tuple[str, ...]:
        return ("log_scale", "scale")

    @property
    def forms(self) -> dict[str, Form]:
        return super().forms | {"log_scale": (np.float32, (self.anchors, self.out))}

    def example(self, rng: np.random.RandomState) -> dict[str, np.ndarray]:
        return {"log_scale": 2 * _normal(rng, self.anchors, self.out), "scale": _powers(rng, self.out)}


KINDS: tuple[type[Layer], ...] = (
    *(Linear, Head, Depthwise, OmniShift, Norm, Residual, Scale, Wkv, Place, QualityBias),
    *(Read, Gain, Dequantise),
)


def quantise(
    layers: Iterable[Layer], derived: Tensors, grids: Mapping[str, int], precision: int = PRECISION
) -> dict[str, np.ndarray]:
    """The stored tensors of all layers, made from the derived ones (float32); both are named `<layer>.<tensor>`."""
    return {
        f"{layer.name}.{name}": tensor
        for layer in layers
        for name, tensor in layer.quantise(layer.of(derived, layer.derived), grids, precision).items()
    }


def _normal(rng: np.random.RandomState, rows: int, columns: int) -> np.ndarray:
    return np.asarray(rng.standard_normal((rows, columns)) / np.sqrt(columns), np.float32)


def _powers(rng: np.random.RandomState, n: int) -> np.ndarray:
    return np.exp2(rng.randint(-6, 3, n)).astype(np.float32)


def _uniform(rng: np.random.RandomState, n: int, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, n).astype(np.float32)
