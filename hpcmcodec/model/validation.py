"""Whether tensors are what a config declares: the check of weights that anybody may have made.

What has passed can be coded with: no index leaves its table, no number is not finite, and nothing takes more memory
than a file of its size explains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from hpcmcodec.exact.constants import FIXED_GRIDS, LEVELS, PRECISION, SCALE_LEVELS, code_max
from hpcmcodec.exact.layers import Layer
from hpcmcodec.exact.quantisation import check_bound
from hpcmcodec.model.config import Config
from hpcmcodec.model.declaration import declare, declare_synthesis
from hpcmcodec.model.entropy import Z_BANDS
from hpcmcodec.model.hyper import MAX_CONTEXTS
from hpcmcodec.rans_tables import Tables

WIDEST = 4096  # channels
MOST = {"prior_blocks": 64, "fusion_blocks": 64, "deep_blocks": 64, "synthesis_blocks": 64, "qualities": 64}
MOST |= {"window": 16, "attention_heads": 64, "memory_value_size": 64, "cell_rates": 16, "fusion_rate": 16}
MOST |= {"prior_rate": 16, "memory_references": 8, "memory_topk": 8, "memory_compression": 64, "analysis_blocks": 64}
MOST |= {"metric_share": 1, "metric_weight": 64}
LEAST = {"latent": 8, "hyper": 4, "transform_widths": 4, "memory_temperature": 0.005}
LEAST |= {"fixed_lambda": 1e-6, "metric_share": 0, "metric_weight": 1e-6}
MAY_BE_NONE = {"qualities", "heads", "fusion_blocks", "prior_blocks", "synthesis_blocks", "analysis_blocks"}
EACH_OR_ONE = {"memory_references", "memory_topk"}  # one number, or one for each scale
EXPONENTS = range(-16, 19)
LARGEST = 2.0**40  # of a float that coding uses: products of two, and powers of two, stay far from infinity
LARGEST_LOG = 50.0
FARTHEST = 1 << 12  # a centroid's shift


def validate(config: Config, grids: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError, which names what is wrong, or IntegrityError where sums would not be exact.

    tensors: those that decoding uses, and perhaps others.
    """
    _check_sizes(config)
    layers, names = declare(config)
    of_synthesis, more = declare_synthesis(config)
    _check_grids({*names, *more}, grids)
    for prefix, found, precision in (("entropy.", layers, config.precision), ("", of_synthesis, PRECISION)):
        for layer in found.values():
            _check_layer(prefix, layer, tensors, precision)
    for name, tensor in tensors.items():
        limit = _limit_of(name, tensor, config)
        if limit and not float(np.abs(tensor).max(initial=0)) <= limit:  # false for NaN, too
            raise ValueError(f"{name} has a value that is not finite or beyond +-{limit:g}")
    _check_tables(config, tensors)


def _limit_of(name: str, tensor: np.ndarray, config: Config) -> float | None:
    """The largest magnitude of a tensor's values, None where its dtype is limit enough."""
    if tensor.dtype.kind == "f":
        return LARGEST_LOG if name.endswith("log_scale") else LARGEST
    return code_max(config.precision) if name.endswith(".table") else None


def _check_sizes(config: Config) -> None:
    for f in fields(Config):
        value, like = getattr(config, f.name), f.default
        if f.name in EACH_OR_ONE and isinstance(value, tuple):
            like = (like,) * 3
        least = 0 if f.name in MAY_BE_NONE else LEAST.get(f.name, 1)
        if not _fits(value, like, MOST.get(f.name, WIDEST), least):
            raise ValueError(f"{f.name} = {value!r:.60} in its config, where {f.default!r} is usual")


def _fits(value: Any, like: Any, most: int, least: float) -> bool:
    """Whether a field's value is of the kind of its default, and within reason."""
    if isinstance(like, tuple):
        same = isinstance(value, tuple) and len(value) == len(like)
        return same and all(_fits(v, k, most, least) for v, k in zip(value, like, strict=True))
    if isinstance(like, bool | str):
        return type(value) is type(like) and len(str(value)) < 100
    if isinstance(like, int):
        return type(value) is int and least <= value <= most
    return isinstance(value, float | int) and math.isfinite(value) and least <= value <= most


def _check_grids(declared: set[str], grids: Mapping[str, Any]) -> None:
    for name in sorted(declared):
        e = grids.get(name)
        if type(e) is not int or e not in EXPONENTS or FIXED_GRIDS.get(name, e) != e:
            wanted = FIXED_GRIDS.get(name, f"{EXPONENTS[0]} to {EXPONENTS[-1]}")
            raise ValueError(f"the exponent of grid {name} is {e!r:.20}, expected {wanted}")


def _check_layer(prefix: str, layer: Layer, tensors: Mapping[str, np.ndarray], precision: int) -> None:
    for name, (dtype, shape) in layer.forms.items():
        full = f"{prefix}{layer.name}.{name}"
        if full not in tensors:
            raise ValueError(f"{full} is missing")
        _check_form(full, tensors[full], dtype, shape)
        if name == "widths" and tuple(tensors[full].tolist()) != layer.widths:
            raise ValueError(f"{full} is {tensors[full].tolist()}, expected {list(layer.widths)}")
        if name == "weight":
            inputs = getattr(layer, "inputs", shape[1:])
            for i, part in enumerate(np.split(tensors[full], np.cumsum(inputs)[:-1], 1)):
                check_bound(f"{prefix}{layer.name}, input {i}", part, precision)


def _check_form(name: str, tensor: np.ndarray, dtype: Any, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, expected {np.dtype(dtype)} {shape}")


def _check_thresholds(rows: int, one_lambda: bool, tensors: Mapping[str, np.ndarray]) -> int:
    """The number of thresholds between the contexts of z, which weights may be without."""
    name = "tables.z.thresholds"
    if name not in tensors:
        return 0
    found = tensors[name]
    number = found.shape[1] if found.ndim == 2 else 0
    if one_lambda or not 0 < number < MAX_CONTEXTS:
        raise ValueError(
            f"{name} is {found.shape}: members of one lambda have none, others 1 to {MAX_CONTEXTS - 1} each"
        )
    _check_form(name, found, np.int32, (rows, number))
    if (np.diff(found.astype(np.int64), axis=1) < 0).any():
        raise ValueError(f"{name} has thresholds that fall")
    return number


def _check_tables(config: Config, tensors: Mapping[str, np.ndarray]) -> None:
    one_lambda = config.flow == "hpcm"
    rows = {"y": SCALE_LEVELS if one_lambda else LEVELS, "z": config.hyper * (1 if one_lambda else Z_BANDS)}
    rows["z"] *= 1 + _check_thresholds(rows["z"], one_lambda, tensors)
    for of, n in rows.items():
        parts = [f"tables.{of}.{part}" for part in ("cdf", "sizes", "offsets")]
        for name in parts:
            if name not in tensors:
                raise ValueError(f"{name} is missing")
        try:
            tables = Tables(*(tensors[name] for name in parts))
        except ValueError as error:
            raise ValueError(f"tables.{of}: {error}") from error
        if len(tables) != n:
            raise ValueError(f"tables.{of}: {len(tables)} tables, expected {n}")
        if of == "y" and ((tables.low > 0) | (tables.high < 0)).any():
            raise ValueError("tables.y: a table does not code the value 0")
    name = "tables.y.centroids"
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    _check_form(name, tensors[name], np.int32, (rows["y"], 3))
    if np.abs(tensors[name].astype(np.int64)).max(initial=0) > FARTHEST:
        raise ValueError(f"{name} has a value beyond +-{FARTHEST}")
