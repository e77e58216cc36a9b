"""The packaged weights: where they are, whether they are whole, what their headers say, and their tensors.

One safetensors file holds a model: integers of the entropy path (`entropy.*`) and of the synthesis (`g_s.*`,
`ungain.*`, `thumbnail.*`), tables (`tables.*`), the encoder's transforms in float16 (`g_a.*`, `h_a.*`), its gains and
the prior of z (`z_prior.*`, which estimates and training use, coding does not) in float32. Its metadata: "format",
"name", "config" and "grids" (JSON) and "model_id" (hex). Two onnxruntime graphs beside it, for encoding, take their
weights from the same file.

A list beside them has the SHA-256 of all four (`checksums`), and all are checked when a model is loaded. Weights that
no list names, such as a tool's, have to have the model id that they say; that covers what decoding uses.

Model id: the first 8 bytes of SHA-256 over ARITHMETIC (decimal), the config's decoding JSON, the grids' JSON, then for
each tensor that decoding uses, in order of name: name, dtype, shape (decimal, comma-separated) and bytes, each of these
fields followed by a zero byte.

Importing this module imports the standard library alone: `hpcm info` needs no more.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcmcodec import checksums
from hpcmcodec.errors import InstallationError, IntegrityError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    from hpcmcodec.model.config import Config

FORMAT = "hpcm-weights-1"
DEFAULT_MODEL = "lite-0"
_SYNTHESIS = ("g_s.", "thumbnail.", "ungain.")
_DECODING = ("entropy.", "tables.", *_SYNTHESIS)
_TRANSFORMS = ("g_a.", "h_a.")
_MAX_HEADER = 1 << 20


class Weights(NamedTuple):
    """A model's tensors (numpy) and what its header says. sums: SHA-256 by file name, {} where no list has them."""

    name: str
    path: Path
    model_id: bytes
    config: Config
    grids: dict[str, int]
    tensors: dict[str, np.ndarray]
    sums: dict[str, str]

    def graph(self, name: str) -> Path:
        """An onnxruntime graph beside the weights. Raises InstallationError where it, or the weights that it will read,
        are no longer what was loaded: a process may outlive the installation that it was started from.
        """
        path = self.path.with_name(f"{self.path.stem}.{name}.onnx")
        if self.sums and path.name not in self.sums:
            raise InstallationError(f"{path} is not on the list {checksums.LIST}; {checksums.MEND}")
        for file in (path, self.path):
            if file.name in self.sums:
                checksums.verify(file, self.sums[file.name])
        return path

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors whose names start with `prefix` and a dot, without it."""
        return {k[len(prefix) + 1 :]: v for k, v in self.tensors.items() if k.startswith(f"{prefix}.")}

    def synthesis(self) -> dict[str, np.ndarray]:
        """The tensors of the synthesis, under the names of its layers."""
        return {k: v for k, v in self.tensors.items() if k.startswith(_SYNTHESIS)}


def folder() -> Path:
    """Where the weights are: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "data" / "weights"
    return installed if installed.is_dir() else package.parent / "weights"


def packaged() -> dict[str, Path]:
    """Model name -> safetensors file, as the list says. Raises InstallationError where there is none, or damaged."""
    here = folder()
    listed = checksums.read(here)
    if listed is None:
        raise InstallationError(f"{here / checksums.LIST} is missing; {checksums.MEND}")
    return {Path(name).stem: here / name for name in listed if name.endswith(".safetensors")}


def verify(path: Path) -> dict[str, str]:
    """SHA-256 of a weights file and its graphs by file name, as they are; {} where no list beside it has the file.

    Raises InstallationError where one of them, or the list, is damaged or missing.
    """
    listed = checksums.read(path.parent) or {}
    sums = {name: digest for name, digest in listed.items() if name.startswith(f"{path.stem}.")}
    if path.name not in sums:
        return {}
    for name, digest in sums.items():
        checksums.verify(path.with_name(name), digest)
    return sums


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weights file, from its header alone. Raises IntegrityError where it is none."""
    with path.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8).ljust(8, b"\0"))
        if not 2 <= size <= _MAX_HEADER:
            raise IntegrityError(f"{path}: not a weights file (its header takes {size} bytes)")
        text = f.read(size)
    try:
        metadata = {name: str(value) for name, value in json.loads(text)["__metadata__"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path}: not a weights file (its header cannot be read: {error})") from error
    if metadata.get("format") != FORMAT:
        raise IntegrityError(f"{path}: weights of format {metadata.get('format')!r}, this version reads {FORMAT!r}")
    for name in ("name", "config", "grids", "model_id"):
        if name not in metadata:
            raise IntegrityError(f"{path}: not a weights file (its header has no {name!r})")
    return metadata


def model_name(model_id: bytes) -> str | None:
    """The name of the packaged model with this id, None where none has it.

    Reads headers alone, unless none has it: then damage could be why. Raises InstallationError where that is so.
    """
    for name, path in packaged().items():
        with contextlib.suppress(IntegrityError, OSError):
            if read_metadata(path)["model_id"] == model_id.hex():
                return name
    for path in packaged().values():
        verify(path)
    return None


def find(model_id: bytes) -> str:
    """The name of the packaged model that a file was written by. Raises UnsupportedError where it is not here."""
    name = model_name(model_id)
    if name is None:
        here = ", ".join(f"{n} ({read_metadata(p)['model_id']})" for n, p in packaged().items()) or "none"
        raise UnsupportedError(
            f"the file was written by model {model_id.hex()}, which is not in this version (it has: {here})"
        )
    return name


@lru_cache(maxsize=2)
def load(name: str = DEFAULT_MODEL, *, transforms: bool = True) -> Weights:
    """Read a packaged model. Raises UnsupportedError for an unknown name, InstallationError where it is damaged."""
    path = packaged().get(name)
    if path is None:
        for other in packaged().values():  # a list of other files is why, where these are not here
            verify(other)
        raise UnsupportedError(f"no model {name!r} in this version; it has: {', '.join(packaged()) or 'none'}")
    return load_file(path, transforms=transforms)


def load_file(path: Path, *, transforms: bool = True) -> Weights:
    """Read a weights file, without `transforms` all but their float16 tensors: those onnxruntime reads by itself.

    Raises IntegrityError where it is not one, or its tensors do not have its model id; InstallationError, one of these,
    where a list says that it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    from hpcmcodec.model.config import Config

    sums = verify(path)
    metadata = read_metadata(path)
    try:
        model_id, config = bytes.fromhex(metadata["model_id"]), Config.from_json(metadata["config"])
        grids = json.loads(metadata["grids"])
        with safe_open(path, framework="numpy") as f:
            keys = f.keys()
            tensors = {k: f.get_tensor(k) for k in keys if transforms or not sums or not _in_graphs(k)}
        found = model_id if sums else compute_model_id(config, grids, tensors)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(f"{path}: damaged weights ({error})") from error
    if found != model_id:
        raise IntegrityError(f"{path}: damaged weights (their id is {found.hex()}, they say {model_id.hex()})")
    if not transforms:
        tensors = {k: v for k, v in tensors.items() if not _in_graphs(k)}
    return Weights(metadata["name"], path, model_id, config, grids, tensors, sums)


def _in_graphs(name: str) -> bool:
    return name.startswith(_TRANSFORMS) and not name.endswith(".log_scale")


def compute_model_id(config: Config, grids: Mapping[str, int], tensors: Mapping[str, np.ndarray]) -> bytes:
    """The 8 bytes that files name their model by (module docstring)."""
    import hashlib

    import numpy as np

    from hpcmcodec.exact.constants import ARITHMETIC

    digest = hashlib.sha256()

    def feed(part: bytes) -> None:
        digest.update(part)
        digest.update(b"\0")

    feed(str(ARITHMETIC).encode())
    feed(config.decoding_json().encode())
    feed(canonical_json(dict(grids)).encode())
    for name in sorted(k for k in tensors if k.startswith(_DECODING)):
        t = tensors[name]
        feed(name.encode())
        feed(t.dtype.newbyteorder("<").str.encode())
        feed(",".join(map(str, t.shape)).encode())
        feed(np.ascontiguousarray(t, t.dtype.newbyteorder("<")).tobytes())
    return digest.digest()[:8]


def canonical_json(value: Any) -> str:
    """One form for one value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
