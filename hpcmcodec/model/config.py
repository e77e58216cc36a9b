"""Configuration of the model family: one frozen dataclass, its presets, its canonical JSON.

The model id covers the fields that decoding depends on. It leaves out those of the analysis side, so that a better
encoder can write files that existing decoders read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.exact.constants import PRECISION, WIDE_PRECISION

LAMBDA_MIN, LAMBDA_MAX = 0.0005, 0.13
Q = TypeVar("Q")  # a float or a tensor


def lmbda(q: Q) -> Q:
    """The lambda of quality q in [0, 1]: training minimises bits per pixel + lmbda(q) * 255^2 * MSE."""
    power: Any = (LAMBDA_MAX / LAMBDA_MIN) ** q  # type: ignore[operator]
    out: Q = LAMBDA_MIN * power
    return out


DISTORTIONS = ("mse", "ms-ssim", "mixed", "visual")
"""What a model can be trained for: `model.distortion`."""

MIN_SIDE = 176
"""Smallest picture, in pixels, for MS-SSIM: a window of 11 pixels fits into it after four halvings."""

KINDS = {
    "flow": ("hpcm", "lite"),
    "cells": ("attention", "none", "rwkv"),
    "fusion": ("linear", "rwkv"),
    "prior": ("dwconv", "rwkv"),
    "hyper_s2": ("published", "right"),
    "memory": ("full", "light", "linear", "none"),
    "metric": DISTORTIONS,
    "residual": ("difference", "lerp", "pre"),
}
"""The values of a config's fields that name a kind of network, or of training."""

_ONLY_ENCODING = {
    *("name", "analysis_widths", "analysis_blocks", "hyper_analysis_width"),
    *("fixed_lambda", "metric", "metric_share", "metric_weight"),
}
# Fields that the model id holds only where they differ from the default, so that the ids of older models stay.
_OPTIONAL = {
    *("flow", "window", "attention_heads", "prior_rate", "fusion_blocks", "shift", "residual"),
    *("transform_widths", "deep_blocks", "memory_topk", "memory_value_size", "memory_handover"),
    *("hyper_s2", "precision"),
}
_OF_LITE = {"features", "width", "heads", "synthesis_widths", "synthesis_blocks"}  # fields that mean nothing in `hpcm`


@dataclass(frozen=True)
class Config:
    """The sizes of a model. Widths count channels; a tuple of three holds one value per scale, s1, s2, s3.

    flow: "lite" has a carry of `width` features, shuffles pixels and codes at every quality; "hpcm" is that of the
    paper: its carry is means and scales of all latents (2 M), its transforms have partial convolutions, its residuals a
    generalised Gaussian distribution, and it is trained for one lambda.
    """

    name: str = "lite"
    flow: str = "lite"
    latent: int = 320  # M: channels of y, in eight groups of M / 8
    hyper: int = 128  # N: channels of z
    features: int = 256  # channels that h_s gives at each position of y (1/16 of the image's resolution)
    width: int = 128  # D: channels of the carry and the context
    cells: tuple[str, str, str] = ("rwkv", "rwkv", "rwkv")
    cell_rates: tuple[int, int, int] = (2, 2, 2)  # how many times wider ChannelMix is inside
    window: tuple[int, int, int] = (4, 8, 8)  # rows and columns that attention sees at once
    attention_heads: int = 32
    shift: int = 3  # rows and columns of OmniShift's kernel, 3 or 5
    residual: str = "pre"  # how an RWKV block adds its branches: model.rwkv
    fusion: str = "rwkv"
    fusion_rate: int = 2
    fusion_blocks: int = 1
    prior: str = "dwconv"
    prior_rate: int = 4  # of an RWKV prior's ChannelMix
    prior_blocks: tuple[tuple[int, int], tuple[int, int]] = (
        (1, 1),
        (1, 1),
    )  # blocks before and after the factors of the coding step: of s1 and s2, then of s3
    heads: tuple[int, int, int] = (0, 128, 128)  # hidden channels of each group's head; 0: no hidden layer
    memory: str = "light"
    memory_references: int | tuple[int, int, int] = 4  # that a bank holds; where each scale has a bank, of each
    memory_topk: int | tuple[int, int, int] = 2  # of them that are recalled at once, in `full` and `linear`
    memory_compression: int = 4
    memory_temperature: float = 0.1
    memory_value_size: int = 8  # rows and columns of a value in `full`
    memory_handover: bool = False  # whether a scale's bank in `full` begins with the coarser one's references
    synthesis_widths: tuple[int, int] = (192, 320)  # at 1/8 and 1/16 of the image's resolution
    synthesis_blocks: tuple[int, int] = (7, 2)
    qualities: int = 8  # stored qualities, between which gains and the quality bias are interpolated; 0: one lambda
    fixed_lambda: float = 0.013  # the lambda of a model without qualities
    metric: str = "mse"  # the distortion that it was trained for, and that effort follows: model.distortion
    metric_share: float = 0.5
    metric_weight: float = 1.0
    hyper_s2: str = "right"  # where s2's own positions take h_s's parameters from: model.family.flow
    precision: int = 14  # bits of the entropy path's codes; 16 where training never limited activations
    transform_widths: tuple[int, int, int] = (96, 192, 384)  # of hpcm's g_a and g_s, at 1/2, 1/4 and 1/8
    deep_blocks: int = 4  # of hpcm's g_a and g_s at 1/8
    analysis_widths: tuple[int, int] = (192, 320)
    analysis_blocks: tuple[int, int] = (4, 2)
    hyper_analysis_width: int = 192

    def __post_init__(self) -> None:
        for field, known in KINDS.items():
            value = getattr(self, field)
            for v in value if isinstance(value, tuple) else (value,):
                if v not in known:
                    raise UnsupportedError(f"{field} = {v!r} is not built in this version; known: {', '.join(known)}")
        if self.latent % 8 or self.carry_width % self.memory_compression:
            raise ValueError("latent must be a multiple of 8, the carry's width of memory_compression")
        if self.carry_width % self.attention_heads and "attention" in self.cells:
            raise ValueError(f"{self.attention_heads} heads do not divide a carry of {self.carry_width} channels")
        if "none" in self.cells and self.flow == "lite":
            raise UnsupportedError("the context of flow 'lite' cannot be its carry: it needs cells")
        references = self.memory_references
        if max((references,) if isinstance(references, int) else references) > 8:
            raise ValueError(f"a memory bank holds at most eight references, not {references}")
        if self.memory == "light" and (self.memory_topk != 2 or not isinstance(references, int)):
            raise UnsupportedError("memory 'light' recalls two of one number of references: it has one bank")
        if self.precision not in (PRECISION, WIDE_PRECISION):
            raise UnsupportedError(f"codes have {PRECISION} or {WIDE_PRECISION} bits, not {self.precision}")
        if self.shift not in (3, 5):
            raise ValueError(f"OmniShift's kernel has 3 or 5 rows, not {self.shift}")
        if (self.flow == "hpcm") != (self.qualities == 0):
            raise UnsupportedError(
                f"flow {self.flow!r} with {self.qualities} qualities is not built: hpcm has one lambda, lite has more"
            )

    @property
    def carry_width(self) -> int:
        """Channels of the carry and of the context."""
        return 2 * self.latent if self.flow == "hpcm" else self.width

    def decoding_json(self) -> str:
        """Canonical JSON of the fields that decoding depends on."""
        left_out = set(_ONLY_ENCODING)
        left_out |= {f.name for f in fields(self) if f.name in _OPTIONAL and getattr(self, f.name) == f.default}
        if self.flow == "hpcm":
            left_out |= _OF_LITE
        if self.memory == "none":
            left_out |= {f.name for f in fields(self) if f.name.startswith("memory")}
        d = {k: v for k, v in asdict(self).items() if k not in left_out}
        return json.dumps(d, sort_keys=True, separators=(",", ":"))

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The inverse of `to_json`. Raises UnsupportedError for fields that this version does not know."""
        d = json.loads(text)
        unknown = set(d) - {f.name for f in fields(cls)}
        if unknown:
            raise UnsupportedError(f"weights use config fields unknown to this version: {', '.join(sorted(unknown))}")

        def freeze(v: Any) -> Any:
            return tuple(freeze(i) for i in v) if isinstance(v, list) else v

        return cls(**{k: freeze(v) for k, v in d.items()})


LITE = Config()
TINY = Config(
    name="tiny",
    latent=16,
    hyper=8,
    features=16,
    width=16,
    heads=(0, 16, 16),
    synthesis_widths=(16, 24),
    synthesis_blocks=(1, 1),
    analysis_widths=(16, 24),
    analysis_blocks=(1, 1),
    hyper_analysis_width=16,
)


def _paper(size: str, member: str, **kinds: Any) -> Config:
    """A member with the paper's flow: at its own size, `base`, or at that of `small`, with which twins are trained."""
    sizes: dict[str, Any] = {"latent": 320, "hyper": 256}
    if size == "small":
        sizes = {"latent": 96, "hyper": 80, "attention_heads": 12, "transform_widths": (32, 64, 128)}
    first: dict[str, Any] = {"cells": ("attention",) * 3, "fusion": "linear", "prior_blocks": ((2, 1), (3, 2))}
    first |= {"cell_rates": (2, 3, 4), "fusion_rate": 4, "shift": 5, "memory": "none"}
    name = "large" if (size, member) == ("base", "large") else f"{size}-{member}"
    return Config(name=name, flow="hpcm", qualities=0, **sizes | first | kinds)


_FULL: dict[str, Any] = {"memory": "full", "memory_references": (2, 3, 4), "memory_topk": (1, 2, 2)}
_BANKS: dict[str, dict[str, Any]] = {
    "light": {"memory": "light"},
    "full": _FULL,
    "handover": _FULL | {"memory_handover": True},
    "linear": {"memory": "linear", "memory_references": 8},
}
_RWKV: dict[str, Any] = {"cells": ("rwkv",) * 3}
_MEMBERS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "phi": {"cells": ("none",) * 3},
    "large": {"prior_blocks": ((2, 2), (4, 3)), "deep_blocks": 8},
    "phase1": {"cells": ("attention", "attention", "rwkv")},
    "phase2": _RWKV,
    "phase3": _RWKV | {"fusion": "rwkv"},
    "phase4": _RWKV | {"fusion": "rwkv", "prior": "rwkv"},
    **_BANKS,
}
"""What distinguishes the paper's members from its baseline, HPCM-Base."""

MEMBERS = {c.name: c for c in (_paper(size, name, **k) for size in ("base", "small") for name, k in _MEMBERS.items())}
LITES = {
    f"lite-{bank}": replace(LITE, name=f"lite-{bank}", **kinds)
    for bank, kinds in ({"none": {"memory": "none"}} | _BANKS).items()
    if bank != LITE.memory
}
"""`lite` with other memories than its own, which is light."""

PRESETS = {c.name: c for c in (LITE, TINY)} | LITES | MEMBERS
