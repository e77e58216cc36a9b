"""Configuration of the model family: one frozen dataclass, its presets, its canonical JSON.

Fields that decoding depends on enter the model id; the analysis side's do not, so that a better encoder can write files
that existing decoders read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from hpcmcodec.errors import UnsupportedError

LAMBDA_MIN, LAMBDA_MAX = 0.0005, 0.13
Q = TypeVar("Q")  # a float or a tensor


def lmbda(q: Q) -> Q:
    """The Lagrange multiplier of quality q in [0, 1]: loss = bpp + lmbda * 255^2 * MSE."""
    power: Any = (LAMBDA_MAX / LAMBDA_MIN) ** q  # type: ignore[operator]
    out: Q = LAMBDA_MIN * power
    return out


@dataclass(frozen=True)
class Config:
    """Widths are channels; tuples over scales are in the order s1, s2, s3."""

    name: str = "lite"
    latent: int = 320  # M, channels of y, eight groups of M / 8
    hyper: int = 128  # channels of z
    features: int = 256  # channels that h_s gives at 1/16
    width: int = 128  # D, width of the context network
    cells: tuple[str, str, str] = ("rwkv", "rwkv", "rwkv")
    cell_rates: tuple[int, int, int] = (2, 2, 2)  # ChannelMix expansion
    fusion: str = "rwkv"
    fusion_rate: int = 2
    prior: str = "dwconv"
    prior_blocks: tuple[tuple[int, int], tuple[int, int]] = (
        (1, 1),
        (1, 1),
    )  # before and after the step's scale: s1 and s2, s3
    heads: tuple[int, int, int] = (0, 128, 128)  # hidden channels of each group's head; 0: none
    memory: str = "light"
    memory_references: int = 4
    memory_compression: int = 4
    memory_temperature: float = 0.1
    synthesis_widths: tuple[int, int] = (192, 320)  # at 1/8 and 1/16
    synthesis_blocks: tuple[int, int] = (7, 2)
    qualities: int = 8  # anchors between which gains and the quality bias are interpolated
    analysis_widths: tuple[int, int] = (192, 320)
    analysis_blocks: tuple[int, int] = (4, 2)
    hyper_analysis_width: int = 192

    def __post_init__(self) -> None:
        if self.latent % 8 or self.width % self.memory_compression:
            raise ValueError("latent must be a multiple of 8, width of memory_compression")
        built = {"cells": {"rwkv"}, "fusion": {"rwkv", "linear"}, "prior": {"dwconv"}, "memory": {"none", "light"}}
        for field, known in built.items():
            value = getattr(self, field)
            for v in value if isinstance(value, tuple) else (value,):
                if v not in known:
                    raise UnsupportedError(
                        f"{field} = {v!r} is not built in this version; known: {', '.join(sorted(known))}"
                    )

    def decoding_json(self) -> str:
        """Canonical JSON of the fields that decoding depends on."""
        only_encoding = {"name", "analysis_widths", "analysis_blocks", "hyper_analysis_width"}
        d = {k: v for k, v in asdict(self).items() if k not in only_encoding}
        return json.dumps(d, sort_keys=True, separators=(",", ":"))

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Raises UnsupportedError for unknown fields: a file from another version is refused, not half understood."""
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
