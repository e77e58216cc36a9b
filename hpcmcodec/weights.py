"""Finds, checks and reads weights: those of the package, and those of the folders that `search` names.

One safetensors file holds a model: integers of the entropy path (`entropy.*`) and of the synthesis (`g_s.*`,
`ungain.*`, `thumbnail.*`), tables (`tables.*`), the encoder's transforms in float16 (`g_a.*`, `h_a.*`), and in float32
its gains and the prior of z (`z_prior.*`, which estimates and training use, but coding does not). Its metadata are
"format", "name", "config" and "grids" (JSON), and "model_id" (hexadecimal). Two onnxruntime graphs beside it, for
encoding, take their weights from the same file.

A list beside these four files has the SHA-256 of each (`checksums`), and all four are checked when a model is loaded.
For weights outside of the package, and for those that no list names, the model id of the tensors is computed and has
to be the one that the header says: this covers all that decoding uses. As anybody can compute an id, these tensors are
then held to what the config declares (`model.validation`).

The model id is the first 8 bytes of the SHA-256 over these fields, each followed by a zero byte: ARITHMETIC (decimal),
the config's decoding JSON and the grids' JSON; then for each tensor that decoding uses, in the order of names, its
name, dtype, shape (decimal, comma-separated) and bytes.

Importing this module imports the standard library alone, because `hpcm info` needs no more.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcmcodec import checksums, search
from hpcmcodec.errors import InstallationError, IntegrityError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    from hpcmcodec.model.config import Config

FORMAT = "hpcm-weights-1"
DEFAULT_MODEL = "lite-1"
_SYNTHESIS = ("g_s.", "thumbnail.", "ungain.")
_DECODING = ("entropy.", "tables.", *_SYNTHESIS)
_TRANSFORMS = ("g_a.", "h_a.")
_MAX_HEADER = 1 << 20
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, IntegrityError)


class Weights(NamedTuple):
    """A model's tensors, and what the header of its file says.

    Attributes:
        name: the model's name.
        path: the safetensors file.
        model_id: 8 bytes, as the module's docstring defines them.
        config: the model's widths and kinds.
        grids: the exponent of each grid, by name.
        tensors: numpy arrays by name.
        sums: SHA-256 in hexadecimal by file name; {} where no list has the files.
    """

    name: str
    path: Path
    model_id: bytes
    config: Config
    grids: dict[str, int]
    tensors: dict[str, np.ndarray]
    sums: dict[str, str]

    def graph(self, name: str) -> Path:
        """The path of an onnxruntime graph beside the weights, which are checked once more: a process may outlive the
        installation that it was started from.

        Raises InstallationError where the graph or the weights differ from the files that were loaded.
        """
        path = self.path.with_name(f"{self.path.stem}.{name}.onnx")
        outside = not self.sums or self.path.parent != folder()
        if outside and not path.exists():
            raise UnsupportedError(f"{self.path.name} came without graphs: encode with the torch engine")
        if self.sums and path.name not in self.sums:
            raise InstallationError(f"{path} is not on the list {checksums.LIST}; {checksums.MEND}")
        for file in (path, self.path):
            if file.name in self.sums:
                checksums.verify(file, self.sums[file.name])
        return path

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors whose names start with `prefix` and a dot, by the rest of their names."""
        return {k[len(prefix) + 1 :]: v for k, v in self.tensors.items() if k.startswith(f"{prefix}.")}

    def synthesis(self) -> dict[str, np.ndarray]:
        """The tensors of the synthesis, under the names of its layers."""
        return {k: v for k, v in self.tensors.items() if k.startswith(_SYNTHESIS)}


def folder() -> Path:
    """The folder of the weights: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).parent
    installed = package / "data" / "weights"
    return installed if installed.is_dir() else package.parent / "weights"


def packaged() -> dict[str, Path]:
    """The safetensors file of each listed model, by name. Raises InstallationError where the list is bad or missing."""
    here = folder()
    listed = checksums.read(here)
    if listed is None:
        raise InstallationError(f"{here / checksums.LIST} is missing; {checksums.MEND}")
    return {Path(name).stem: here / name for name in listed if name.endswith(search.SUFFIX)}


def located(model: str) -> Path:
    """The file of a model: of a packaged one by its name, of one outside by its name or its path.

    Raises UnsupportedError where there is none, InstallationError where the package is damaged.
    """
    shipped = packaged()
    if model in shipped:
        return shipped[model]
    path = Path(model) if search.is_path(model) else search.named(model)
    if path is not None and search.is_file(path):
        return path
    if path is not None:
        raise UnsupportedError(f"no model {model}: there is no such file")
    for other in shipped.values():  # files that the list names may be missing
        verify(other)
    raise UnsupportedError(f"no model {model!r} here; there are: {_those_here()}; looked in {search.looked()}")


def facts(model: str) -> tuple[int, ...]:
    """What changes when a model's file is replaced; () for packaged models, whose files are checked otherwise."""
    if model in packaged():
        return ()
    found = located(model).stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def report() -> Iterator[tuple[str, str]]:
    """The lines of `hpcm doctor` about models, as (name, fact)."""
    for name, path in packaged().items():
        yield "Model", f"{name} ({_id_of(path)}), in the package"
    for path in search.files():
        yield "Model", f"{path.stem} ({_id_of(path)}), {path}"
    yield "Looked in", search.looked()


def _those_here() -> str:
    """The names of all models, with their ids."""
    return ", ".join(f"{path.stem} ({_id_of(path)})" for _, path in _candidates()) or "none"


def _id_of(path: Path) -> str:
    """The id that a file's header says."""
    try:
        return read_metadata(path)["model_id"]
    except IntegrityError:
        return "no weights file"


def without_graphs(model: str) -> bool:
    """Whether a model came without graphs, so that torch has to encode."""
    path = located(model)
    graph = path.with_name(f"{path.stem}.analysis.onnx")
    return graph.name not in (checksums.read(path.parent) or {}) and not graph.exists()


def verify(path: Path) -> dict[str, str]:
    """Check a weights file and its graphs; SHA-256 by file name, or {} where no list beside it has the file.

    Raises InstallationError where one of the files is damaged or missing, or the list is damaged.
    """
    listed = checksums.read(path.parent) or {}
    sums = {name: digest for name, digest in listed.items() if name.startswith(f"{path.stem}.")}
    if path.name not in sums:
        return {}
    for name, digest in sums.items():
        checksums.verify(path.with_name(name), digest)
    return sums


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weights file; only its header is read. Raises IntegrityError where it is no weights file."""
    try:
        with path.open("rb") as f:
            (size,) = struct.unpack("<Q", f.read(8).ljust(8, b"\0"))
            text = f.read(size) if 2 <= size <= _MAX_HEADER else b""
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror or error}") from error
    if not text:
        raise IntegrityError(f"{path}: not a weights file (its header takes {size} bytes)")
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
    """The name of the model whose id begins with these bytes, None where there is none here.

    Files hold the first 4 bytes of an id. Raises InstallationError where the package is damaged and none has the id.
    """
    model = _with_id(model_id)
    return Path(model).stem if model and search.is_path(model) else model


def find(model_id: bytes) -> str:
    """The model whose id begins with these bytes, as `load` takes it: a packaged one's name, or a path.

    Raises what `model_name` raises, and UnsupportedError where there is none.
    """
    model = _with_id(model_id)
    if model is None:
        raise UnsupportedError(
            f"the file was written by model {model_id.hex()}, which is not here; there are: {_those_here()}; looked in "
            f"{search.looked()}"
        )
    return model


def _with_id(model_id: bytes) -> str | None:
    """As `find`; only headers are read while a model has the id.

    Where none has, damage of the package could be the reason, so all its files are checked.
    """
    for model, path in _candidates():
        with contextlib.suppress(IntegrityError):
            if read_metadata(path)["model_id"].startswith(model_id.hex()):
                return model
    for path in packaged().values():
        verify(path)
    return None


def _candidates() -> Iterator[tuple[str, Path]]:
    """Models as `load` takes them, and their files. Folders are looked into only once the package's have been tried."""
    yield from packaged().items()
    for path in search.files():
        yield str(path), path


@lru_cache(maxsize=2)
def load(model: str = DEFAULT_MODEL, *, transforms: bool = True, of: tuple[int, ...] = ()) -> Weights:
    """Read a model. of: `facts` of its file, so that one that was replaced is read anew.

    Raises what `located` and `load_file` raise.
    """
    return load_file(located(model), transforms=transforms)


def load_file(path: Path, *, transforms: bool = True) -> Weights:
    """Read a weights file.

    Args:
        path: the safetensors file.
        transforms: whether to read the transforms' float16 tensors too. onnxruntime reads them by itself.

    Raises:
        IntegrityError: the file is no weights file, or its tensors do not have its model id or are not what its config
            declares.
        UnsupportedError: the config has what this version does not know.
        InstallationError (an IntegrityError): the file or its graphs are not as the list beside them says.
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
        shipped = sums and path.parent == folder()
        found = model_id if shipped else compute_model_id(config, grids, tensors)
        if found != model_id:
            raise ValueError(f"their id is {found.hex()}, they say {model_id.hex()}")
        if not shipped:
            from hpcmcodec.model.validation import validate

            validate(config, grids, tensors)
    except (SafetensorError, *_DAMAGE) as error:
        raise IntegrityError(f"{path}: damaged weights ({error})") from error
    if not transforms:
        tensors = {k: v for k, v in tensors.items() if not _in_graphs(k)}
    return Weights(metadata["name"], path, model_id, config, grids, tensors, sums)


def _in_graphs(name: str) -> bool:
    return name.startswith(_TRANSFORMS) and not name.endswith(".log_scale")


def compute_model_id(config: Config, grids: Mapping[str, int], tensors: Mapping[str, np.ndarray]) -> bytes:
    """The 8 bytes by which files name their model, as the module's docstring defines them."""
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
    """JSON in which a value has exactly one form: keys are sorted, and there are no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
