"""States of training on disk: checkpoints, packed states and their pieces; and starting from another state.

A state is facts (JSON: preset, stage, step, grids, ...) and tensors by name: `ema/...`, and in a checkpoint `model/...`
and `optimiser/...` too. A checkpoint is a safetensors file whose metadata hold the facts and a SHA-256 over facts and
tensors. It is written under a temporary name, synchronised and renamed. A packed state is the same file made smaller
without loss:

    8 bytes     "HPCMPACK"
    1 byte      plane count n: bytes of the widest tensors' items
    8 bytes     length of the head, little-endian
    head        zlib; safetensors' own: length, JSON header
    body        n planes, each its 8-byte length and zlib: byte 0, n, 2 n, ... of the data, then byte 1, n + 1, ...

The high bytes of half-precision numbers hold sign and exponent and are far from evenly distributed; the low bytes are
noise. Byte strings hardly repeat, so that zlib's Huffman codes alone do as well as lzma (they make the high bytes 29%
smaller) and are forty times as fast. A file larger than PIECE bytes can be cut at multiples of PIECE into FILE.00,
FILE.01, ...; when the pieces are joined and read, the SHA-256 inside is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hpcmcodec.errors import InputError, IntegrityError, UnsupportedError
from hpcmcodec.exact.constants import FIXED_GRIDS
from hpcmcodec.model.config import PRESETS, Config
from hpcmcodec.model.family.model import Member
from hpcmcodec.model.hpcm import HPCM, Estimator, WithoutContext
from hpcmcodec.training.hyperprior import Hyperprior
from hpcmcodec.training.stand_in import StandIn

MAGIC = b"HPCMPACK"
PIECE = 16 * 2**20 - 1
CHECKPOINT = re.compile(r"step-(\d{8})\.safetensors")


@dataclass(frozen=True)
class State:
    """A state of training. facts: values that JSON can hold. tensors: on the CPU, by name."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix` and a slash, by what follows: `under("ema")`."""
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.tensors.items() if k.startswith(f"{prefix}/")}


# --- bytes ------------------------------------------------------------------------------------------------------------


def to_bytes(state: State) -> bytes:
    """The state as the bytes of a safetensors file."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.tensors.items()}
    about = {"facts": state.facts, "sha256": _digest(state.facts, tensors)}
    # All metadata go into one entry: safetensors writes several in an order that changes from run to run.
    return save_tensors(tensors, {"state": json.dumps(about, sort_keys=True)})


def from_bytes(data: bytes) -> State:
    """The inverse of `to_bytes`. Raises IntegrityError where the data are damaged."""
    try:
        (size,) = struct.unpack_from("<Q", data)
        about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["state"])
        tensors = load_tensors(data)
        if _digest(about["facts"], tensors) != about["sha256"]:
            raise IntegrityError("its SHA-256 differs from the one inside")
        return State(about["facts"], tensors)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
        raise IntegrityError(f"not a whole state: {error}") from error


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    h = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name]
        h.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def pack(state: State) -> bytes:
    """The packed form of a state, as described above."""
    data = to_bytes(state)
    (size,) = struct.unpack_from("<Q", data)
    planes = max((t.element_size() for t in state.tensors.values()), default=1)
    head, body = zlib.compress(data[: 8 + size], 9), data[8 + size :]
    out = [MAGIC, struct.pack("<BQ", planes, len(head)), head]
    for i in range(planes):
        coder = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
        plane = coder.compress(body[i::planes]) + coder.flush()
        out += [struct.pack("<Q", len(plane)), plane]
    return b"".join(out)


def unpack(data: bytes) -> State:
    """The inverse of `pack`. Raises IntegrityError where the data are damaged."""
    try:
        planes, size = struct.unpack_from("<BQ", data, len(MAGIC))
        at = len(MAGIC) + 9
        head = zlib.decompress(data[at : at + size])
        at += size
        parts = []
        for _ in range(planes):
            (size,) = struct.unpack_from("<Q", data, at)
            parts.append(zlib.decompress(data[at + 8 : at + 8 + size]))
            at += 8 + size
        body = bytearray(sum(map(len, parts)))
        for i, part in enumerate(parts):
            body[i::planes] = part
    except (struct.error, zlib.error, ValueError, OverflowError) as error:
        raise IntegrityError(f"not a whole packed state: {error}") from error
    return from_bytes(head + bytes(body))


def slim(state: State, *, full: bool = False) -> State:
    """The part of a state to keep: its EMA, in half precision where all values fit, or with `full` all of it."""
    if full:
        return state
    tensors = {}
    for name, t in state.tensors.items():
        if name.startswith("ema/"):
            half = t.half() if t.is_floating_point() else t
            tensors[name] = half if bool(torch.isfinite(half).all()) else t
    keep = ("preset", "config", "stage", "step", "grids", "arithmetic", "spent")
    return State({k: v for k, v in state.facts.items() if k in keep}, tensors)


# --- files ------------------------------------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, whatever ends the process or the machine."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path, say: Callable[[str], None] = print) -> State:
    """The state in a file, or the newest undamaged checkpoint in a run's folder.

    The file is a checkpoint, a packed state, or one that torch.save wrote with `preset` and `ema`. Where there is no
    file of the name, its pieces are joined.

    Raises InputError where there is no state, IntegrityError where it is damaged.
    """
    if path.is_dir():
        found = newest(path, say)
        if found is None:
            raise InputError(f"{path} has no checkpoint")
        return found
    data = path.read_bytes() if path.is_file() else join(path)
    try:
        if data.startswith(MAGIC):
            return unpack(data)
        if data.startswith(b"PK"):
            return _from_torch(path)
        return from_bytes(data)
    except IntegrityError as error:
        raise IntegrityError(f"{path}: {error}") from error


def _from_torch(path: Path) -> State:
    s = torch.load(path, map_location="cpu", weights_only=True)
    if not {"preset", "ema"} <= set(s):
        raise InputError(f"{path}: not a state of a training run, which has `preset` and `ema`")
    facts = {k: s[k] for k in ("preset", "stage", "step", "grids", "spent") if k in s}
    return State(facts, {f"ema/{k}": v for k, v in s["ema"].items()})


def cut(data: bytes, path: Path) -> list[Path]:
    """Write data to `path`, or where they exceed PIECE bytes in pieces beside it; returns the paths written."""
    if len(data) <= PIECE:
        write(path, data)
        return [path]
    out = []
    for i in range(0, len(data), PIECE):
        out.append(path.with_name(f"{path.name}.{i // PIECE:02d}"))
        write(out[-1], data[i : i + PIECE])
    return out


def join(path: Path) -> bytes:
    """The bytes whose pieces lie beside `path`. Raises InputError where there are none or one is missing."""
    pieces = sorted(p for p in path.parent.glob(f"{path.name}.*") if re.fullmatch(r"\.\d\d", p.suffix))
    if not pieces:
        raise InputError(f"{path} is not there, nor are its pieces {path.name}.00, ...")
    if [int(p.suffix[1:]) for p in pieces] != list(range(len(pieces))):
        raise InputError(f"{path}: a piece is missing: found {', '.join(p.name for p in pieces)}")
    return b"".join(p.read_bytes() for p in pieces)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    found = [(int(m[1]), p) for p in folder.glob("step-*.safetensors") if (m := CHECKPOINT.fullmatch(p.name))]
    return [p for _, p in sorted(found, reverse=True)]


def save_checkpoint(folder: Path, state: State, keep: int) -> None:
    """Write the checkpoint of a step and remove all but the `keep` newest."""
    write(folder / f"step-{state.facts['step']:08d}.safetensors", to_bytes(state))
    for old in checkpoints(folder)[keep:]:
        old.unlink()


def newest(folder: Path, say: Callable[[str], None] = print) -> State | None:
    """The newest undamaged checkpoint of a run, None where the run has no checkpoints.

    `say` is told which damaged ones are passed over. Raises IntegrityError where all are damaged: whether to start anew
    is then for the user to decide.
    """
    paths = checkpoints(folder)
    for path in paths:
        try:
            return from_bytes(path.read_bytes())
        except IntegrityError as error:
            say(f"{path.name} is damaged ({error}); going back to the one before")
    if paths:
        raise IntegrityError(f"{folder}: every checkpoint is damaged; remove them to start anew")
    return None


# --- models -----------------------------------------------------------------------------------------------------------


def grids_of(facts: Mapping[str, Any]) -> dict[str, int]:
    """Exponents of the grids that a state was trained on.

    States that name no arithmetic are of arithmetic 3: its codes had two bits less, so their activations are clamped
    where they were on grids two bits finer.
    """
    grids = dict(facts.get("grids", {}))
    if "arithmetic" in facts:
        return grids
    return {g: FIXED_GRIDS.get(g, e + 2) for g, e in grids.items()}


def load_model(path: Path) -> Estimator:
    """The EMA of a state in eval mode: an HPCM or a `Member`, the yardstick's `WithoutContext`, stage A's `StandIn` or
    `Hyperprior`.

    Raises UnsupportedError where the tensors do not fit the model, and as `read`.
    """
    state = read(path)
    ema = state.under("ema")
    kind: type[Estimator] = HPCM
    if any(k.startswith("stand_in.") for k in ema):
        kind = StandIn
    elif any(k.startswith("head.") for k in ema):
        kind = WithoutContext
    facts = state.facts
    config = Config.from_json(facts["config"]) if "config" in facts else PRESETS[facts["preset"]]
    if config.flow == "hpcm":
        kind = Member if any(k.startswith("raw.step") for k in ema) else Hyperprior
    model = kind(config, grids_of(facts))
    try:
        model.load_state_dict({k: v.float() for k, v in ema.items()})
    except RuntimeError as error:
        raise UnsupportedError(f"{path} is of another version of the model; train on with --init-from") from error
    return model.eval()


@dataclass(frozen=True)
class Match:
    """How a state fits a model: the names of tensors that were taken over, of those of the model that keep their first
    values, and of those of the state that are not used.
    """

    matched: list[str]
    first_values: list[str]
    unused: list[str]

    def lines(self) -> list[str]:
        """A line for people on each of the three: how many tensors, and how their names begin."""
        return [
            f"{text}: {len(names)} tensors{_beginnings(names)}"
            for text, names in (
                ("taken over", self.matched),
                ("left at their first values", self.first_values),
                ("of the file, not used", self.unused),
            )
        ]


def start_from(model: Estimator, state: State) -> Match:
    """Give a model those tensors of a state's EMA that have a name and shape of its own, and its grids by name."""
    own, theirs = model.state_dict(), state.under("ema")
    fits = {k: v.float() for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(own | fits)
    take_grids(model, state)
    return Match(sorted(fits), sorted(set(own) - set(fits)), sorted(set(theirs) - set(fits)))


def take_grids(model: Estimator, state: State) -> None:
    """Give a model those grids of a state that have a name of its own."""
    grids = grids_of(state.facts)
    model.grids = {k: grids.get(k, v) for k, v in model.grids.items()}


def _beginnings(names: list[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        parts = re.split(r"[./]", name.removeprefix("raw."))
        key = parts[0] if parts[0] in ("g_a", "g_s", "h_a", "h_s") else ".".join(parts[:2])
        counts[key] = counts.get(key, 0) + 1
    shown = [f"{k} {n}" for k, n in list(counts.items())[:12]]
    return f" ({', '.join(shown)}{', ...' if len(counts) > 12 else ''})" if shown else ""
