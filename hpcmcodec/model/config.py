"""Configuration of the model family: one frozen dataclass, its presets, its canonical JSON.

The model id covers the fields that decoding depends on. It leaves out those of the analysis side, so that a better
encoder can write files that existing decoders read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from hpcmcodec.errors import UnsupportedError

LAMBDA_MIN, LAMBDA_MAX = 0.0005, 0.13
Q = TypeVar("Q")  # a float or a tensor


def lmbda(q: Q) -> Q:
    """The lambda of quality q in [0, 1]: training minimises bits per pixel + lmbda(q) * 255^2 * MSE."""
    power: Any = (LAMBDA_MAX / LAMBDA_MIN) ** q  # type: ignore[operator]
    out: Q = LAMBDA_MIN * power
    return out


KINDS = {
    "cells": ("rwkv",),
    "fusion": ("linear", "rwkv"),
    "prior": ("dwconv",),
    "memory": ("light", "none"),
}
"""The values of a config's fields that name a kind of network."""


@dataclass(frozen=True)
class Config:
    """The sizes of a model. Widths count channels; a tuple of three holds one value per scale, s1, s2, s3."""

    name: str = "lite"
    latent: int = 320  # M: channels of y, in eight groups of M / 8
    hyper: int = 128  # N: channels of z
    features: int = 256  # channels that h_s gives at each position of y (1/16 of the image's resolution)
    width: int = 128  # D: channels of the carry and the context
    cells: tuple[str, str, str] = ("rwkv", "rwkv", "rwkv")
    cell_rates: tuple[int, int, int] = (2, 2, 2)  # how many times wider ChannelMix is inside
    fusion: str = "rwkv"
    fusion_rate: int = 2
    prior: str = "dwconv"
    prior_blocks: tuple[tuple[int, int], tuple[int, int]] = (
        (1, 1),
        (1, 1),
    )  # blocks before and after the factors of the coding step: of s1 and s2, then of s3
    heads: tuple[int, int, int] = (0, 128, 128)  # hidden channels of each group's head; 0: no hidden layer
    memory: str = "light"
    memory_references: int = 4
    memory_compression: int = 4
    memory_temperature: float = 0.1
    synthesis_widths: tuple[int, int] = (192, 320)  # at 1/8 and 1/16 of the image's resolution
    synthesis_blocks: tuple[int, int] = (7, 2)
    qualities: int = 8  # stored qualities, between which gains and the quality bias are interpolated
    analysis_widths: tuple[int, int] = (192, 320)
    analysis_blocks: tuple[int, int] = (4, 2)
    hyper_analysis_width: int = 192

    def __post_init__(self) -> None:
        if self.latent % 8 or self.width % self.memory_compression:
            raise ValueError("latent must be a multiple of 8, width of memory_compression")
        for field, known in KINDS.items():
            value = getattr(self, field)
            for v in value if isinstance(value, tuple) else (value,):
                if v not in known:
                    raise UnsupportedError(f"{field} = {v!r} is not built in this version; known: {', '.join(known)}")

    def decoding_json(self) -> str:
        """Canonical JSON of the fields that decoding depends on."""
        only_encoding = {"name", "analysis_widths", "analysis_blocks", "hyper_analysis_width"}
        d = {k: v for k, v in asdict(self).items() if k not in only_encoding}
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
PRESETS = {c.name: c for c in (LITE, TINY)}
