"""Read a model: a safetensors file with integer and float32 tensors and the description in its metadata."""

import hashlib
import json
import math
import sys
from array import array
from dataclasses import dataclass
from typing import Any, TypeVar

from errors import InvalidFileError

ARITHMETIC_VERSION = "4"
FORMAT = "hpcm-weights-1"
IGNORED_CONFIG = {
    *("name", "analysis_widths", "analysis_blocks", "hyper_analysis_width"),
    *("fixed_lambda", "metric", "metric_share", "metric_weight"),
}
IGNORED_VALUES = {
    "flow": "lite",
    "window": [4, 8, 8],
    "attention_heads": 32,
    "prior_rate": 4,
    "fusion_blocks": 1,
    "shift": 3,
    "residual": "pre",
    "transform_widths": [96, 192, 384],
    "deep_blocks": 4,
    "memory_topk": 2,
    "memory_value_size": 8,
    "memory_handover": False,
    "hyper_s2": "right",
    "precision": 14,
}
DESCRIBED = ("flow", "fusion_blocks", "shift", "residual", "memory_topk", "precision")
IDENTIFIED_PARTS = ("entropy.", "tables.", "g_s.", "thumbnail.", "ungain.")
TYPES = {"I16": ("h", "<i2"), "I32": ("i", "<i4"), "F32": ("f", "<f4")}
SIZES = {"I16": 2, "I32": 4, "F32": 4, "F16": 2}

T = TypeVar("T")


@dataclass(frozen=True)
class Tensor:
    """A tensor as it stands in the file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def _values(self) -> "array[Any]":
        """Unpack the little-endian bytes."""
        values = array(TYPES[self.dtype][0], self.data)
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def integers(self) -> list[int]:
        """Return the values of an integer tensor, flattened in C order."""
        if self.dtype not in ("I16", "I32"):
            raise InvalidFileError("a tensor of integers has another type")
        return list(self._values())

    def floats(self) -> list[float]:
        """Return the values of a float32 tensor, flattened in C order."""
        if self.dtype != "F32":
            raise InvalidFileError("a tensor of float32 has another type")
        return list(self._values())

    def integer_rows(self) -> list[list[int]]:
        """Return the rows of a matrix of integers."""
        return cut_rows(self.integers(), self.shape)

    def float_rows(self) -> list[list[float]]:
        """Return the rows of a matrix of float32."""
        return cut_rows(self.floats(), self.shape)


def cut_rows(values: list[T], shape: tuple[int, ...]) -> list[list[T]]:
    """Cut a flat list into the rows of a matrix."""
    rows, columns = shape
    return [values[row * columns : (row + 1) * columns] for row in range(rows)]


class Model:
    """The configuration, grids and tensors of a model."""

    def __init__(self, data: bytes) -> None:
        """Read the bytes of a safetensors file and verify the model id in it."""
        if len(data) < 8:
            raise InvalidFileError("the model has no header")
        start = 8 + int.from_bytes(data[:8], "little")
        if start > len(data):
            raise InvalidFileError("the header of the model is cut off")
        header: dict[str, Any] = json.loads(data[8:start])
        metadata: dict[str, str] = header.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise InvalidFileError("the weights have another format")
        self.config: dict[str, Any] = json.loads(metadata["config"])
        described = all(self.config.get(key, IGNORED_VALUES[key]) == IGNORED_VALUES[key] for key in DESCRIBED)
        described = described and self.config["prior"] == "dwconv" and set(self.config["cells"]) == {"rwkv"}
        if not described or self.config["memory"] not in ("light", "none"):
            raise InvalidFileError("the weights are of a model that the documents do not describe")
        self.grids: dict[str, int] = json.loads(metadata["grids"])
        self.tensors = {name: _tensor(entry, data, start) for name, entry in header.items()}
        self.id = bytes.fromhex(metadata["model_id"])
        if self.id != self._computed_id():
            raise InvalidFileError("the model id is not that of the weights")

    def _computed_id(self) -> bytes:
        """Hash all that decoding depends on."""
        config = {
            key: value
            for key, value in self.config.items()
            if key not in IGNORED_CONFIG and (key not in IGNORED_VALUES or value != IGNORED_VALUES[key])
        }
        if config["memory"] == "none":
            config = {key: value for key, value in config.items() if not key.startswith("memory")}
        fields = [ARITHMETIC_VERSION.encode(), _json(config), _json(self.grids)]
        for name in sorted(self.tensors):
            if name.startswith(IDENTIFIED_PARTS):
                tensor = self.tensors[name]
                shape = ",".join(str(size) for size in tensor.shape)
                fields += [name.encode(), TYPES[tensor.dtype][1].encode(), shape.encode(), tensor.data]
        return hashlib.sha256(b"".join(field + b"\0" for field in fields)).digest()[:8]

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor by its name."""
        if name not in self.tensors:
            raise InvalidFileError(f"the model has no tensor {name}")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        """Say whether there is a tensor with this name."""
        return name in self.tensors


def _json(value: Any) -> bytes:
    """Write JSON with sorted keys and without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _tensor(entry: dict[str, Any], data: bytes, start: int) -> Tensor:
    """Take the bytes of a tensor out of the file, and check their number."""
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    if not start <= begin <= end <= len(data) or end - begin != math.prod(shape) * SIZES[entry["dtype"]]:
        raise InvalidFileError("a tensor has not the size of its shape")
    return Tensor(entry["dtype"], shape, data[begin:end])
