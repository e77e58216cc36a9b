"""Golden corpora: small files of a model, and what they decode to for ever.

    python -m tools golden                             # of the shipped model, in tests/data/MODEL
    python -m tools golden tiny-0 path/to/folder

`drawn.ENTRIES` has the pictures and how they are encoded. The files are kept, as encoders improve; beside them
`golden.json` says for each the SHA-256 of all that it decodes to, which picture it holds, and what has made it. A
corpus only grows: in a folder that has one, the files that are there are compared with what is said of them, and
entries that are not there are added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np

from hpcmcodec import codec, container, weights
from hpcmcodec.container import LATENT, TILE_SIDE
from hpcmcodec.engines import base
from hpcmcodec.engines.base import Engine
from hpcmcodec.errors import InputError, OutputError
from hpcmcodec.evaluation.store import write_whole
from hpcmcodec.image import Picture, load
from hpcmcodec.quality import Quality
from tools import drawn, facts
from tools.hashes import PREVIEWS, hashes, public_hashes, sha256

INDEX = "golden.json"
SUFFIX = ".hpcm"
MOST_BYTES = 1_000_000  # of a corpus, its index included


@click.command("golden")
@click.argument("model", default=weights.DEFAULT_MODEL)
@click.argument("folder", metavar="[OUT]", required=False, type=click.Path(path_type=Path))
def command(model: str, folder: Path | None) -> None:
    """Make the golden corpus of MODEL in the folder OUT, or add to it what it has not.

    MODEL is the shipped model unless one is named, OUT is tests/data/MODEL.
    """
    folder = folder or facts.ROOT / "tests" / "data" / model
    added = make(model, folder, command=f"python -m tools golden {model} path/to/{folder.name}")
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    click.echo(f"{folder}: {len(added)} files added, {len(read(folder)['files'])} in all, {n_bytes} bytes")


def make(model: str, folder: Path, names: Iterable[str] | None = None, command: str = "") -> list[str]:
    """Make a corpus, or add the entries that it has not; returns their names.

    Args:
        model: as `codec.encode` takes it.
        folder: is made where there is none.
        names: of entries; None: all.
        command: what `golden.json` says to have made them.

    Raises:
        InputError: the folder holds other files or another model's corpus, or a file is not what is said of it.
        OutputError: the corpus would take more than `MOST_BYTES`, or cannot be written.
    """
    model_id = weights.load(model, transforms=False).model_id.hex()
    corpus: dict[str, Any] = {"model": model, "model_id": model_id, "made": [], "files": {}}
    if (folder / INDEX).exists():
        corpus = read(folder)
        if corpus["model_id"] != model_id:
            raise InputError(f"{folder} is the corpus of {corpus['model']} ({corpus['model_id']}), not of {model_id}")
        if wrong := faults(folder):
            raise InputError(f"{folder}: nothing is added, as {'; '.join(wrong)}")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} has files, but no {INDEX}: a corpus begins in an empty folder")
    wanted = drawn.ENTRIES if names is None else names
    made = {name: _made(model, name) for name in wanted if name not in corpus["files"]}
    if not made:
        return []
    said = {name: entry for name, (_, entry) in made.items()}
    head = facts.about(command, model=model) | {"files": list(made)}
    corpus |= {"made": [*corpus["made"], head], "files": corpus["files"] | said}
    index = facts.pretty(corpus)
    there = sum(path.stat().st_size for path in folder.glob(f"*{SUFFIX}"))
    n_bytes = there + len(index.encode()) + sum(len(data) for data, _ in made.values())
    if n_bytes > MOST_BYTES:
        raise OutputError(f"{folder}: the corpus would have {n_bytes} bytes, the most is {MOST_BYTES}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in made.items():
        write_whole(folder / f"{name}{SUFFIX}", data)
    write_whole(folder / INDEX, index)
    return list(made)


def read(folder: Path) -> dict[str, Any]:
    """What a corpus says of itself. Raises InputError where there is none."""
    return facts.read(folder / INDEX)


def faults(folder: Path, names: Iterable[str] | None = None, engine: Engine | None = None) -> list[str]:
    """What is not as `golden.json` says, a line for each; [] for a corpus that holds.

    Args:
        folder: of the corpus.
        names: the files that are decoded; None: all.
        engine: decodes them, and what `public_hashes` says is left out; None: that of `codec.decode`, and nothing is.
    """
    corpus = read(folder)
    said, there = corpus["files"], {path.name for path in folder.iterdir()}
    wanted = {INDEX, *(f"{name}{SUFFIX}" for name in said)}
    found = [f"{name} is missing" for name in sorted(wanted - there)]
    found += [f"{name} is extra" for name in sorted(there - wanted)]
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if n_bytes > MOST_BYTES:
        found.append(f"the corpus has {n_bytes} bytes, the most is {MOST_BYTES}")
    model_id = weights.load(corpus["model"], transforms=False).model_id.hex()
    if model_id != corpus["model_id"]:
        return [*found, f"model {corpus['model']} has the id {model_id}, the corpus is of {corpus['model_id']}"]
    for name in said if names is None else names:
        if f"{name}{SUFFIX}" in there:
            found += _faults_of((folder / f"{name}{SUFFIX}").read_bytes(), name, said[name]["hashes"], engine)
    return found


def input_hash(name: str, model: str) -> str:
    """SHA-256 of what an entry draws, as it is coded: pixels and alpha, or y (in sixteenths) and z."""
    entry = drawn.ENTRIES[name]
    if isinstance(entry, drawn.Latents):
        y, z = _latents(entry, model)
        return sha256(np.concatenate([np.rint(y * 16).ravel(), z.ravel()]))
    picture = load(entry.draw(), max_pixels=None)
    alpha = np.zeros(0) if picture.alpha is None else picture.alpha
    return sha256(np.concatenate([picture.pixels.ravel(), alpha.ravel()]))


def _faults_of(data: bytes, name: str, said: dict[str, str], engine: Engine | None) -> list[str]:
    if hashlib.sha256(data).hexdigest() != said["sha256"]:
        return [f"{name}: the file is another one"]  # what it decodes to says nothing then
    decoded = [hashes(data, engine or _engine(data))]
    if engine is None:
        decoded.append(public_hashes(data, previews=not PREVIEWS.keys().isdisjoint(said)))
    wrong = {key for found in decoded for key in found if found[key] != said.get(key)}
    if engine is None:
        wrong |= said.keys() - {key for found in decoded for key in found}
    return [f"{name}: {key} differs" for key in sorted(wrong)]


def _engine(data: bytes) -> Engine:
    return base.find(weights.find(container.parse_header(data).model_id), "cpu", "light")


def _made(model: str, name: str) -> tuple[bytes, dict[str, Any]]:
    """A file, and what `golden.json` says of it."""
    entry = drawn.ENTRIES[name]
    if isinstance(entry, drawn.Latents):
        data, picture = _of_latents(entry, model)
        options: dict[str, Any] = {"quality": entry.hundredths / 100, "full": entry.full}
    else:
        picture = load(entry.draw(), max_pixels=None)
        options = {"quality": entry.quality, **entry.options}
        data = codec.encode(picture, model=model, **options)
    height, width, _ = picture.pixels.shape
    said = {
        "options": options,
        "input": input_hash(name, model),
        "picture": {
            "width": width,
            "height": height,
            "depth": picture.depth,
            "grey": picture.grey,
            "alpha": picture.alpha is not None,
            "cicp": None if picture.cicp is None else list(picture.cicp),
            "metadata": sorted(picture.metadata),
        },
        "hashes": hashes(data, _engine(data)) | public_hashes(data, previews=name in drawn.PREVIEWED),
    }
    return data, said


def _latents(entry: drawn.Latents, model: str) -> tuple[np.ndarray, np.ndarray]:
    """y (rows, columns, M), most of them small and some far beyond all tables, and z likewise; both float32."""
    config = weights.load(model, transforms=False).config
    of_y = entry.rows, entry.columns, config.latent
    of_16_bits = drawn.noise("y", *of_y, dtype="i2").astype(np.int64)
    y = of_16_bits >> drawn.noise("size of y", *of_y) % 16
    y.reshape(-1)[::97] = 256 * of_16_bits.reshape(-1)[::97]
    of_z = -(-entry.rows // 4), -(-entry.columns // 4), config.hyper
    z = drawn.noise("z", *of_z, dtype="i1").astype(np.int64) >> 4
    z.reshape(-1)[::29] *= 65536
    return (y / 16).astype(np.float32), z.astype(np.float32)


def _of_latents(entry: drawn.Latents, model: str) -> tuple[bytes, Picture]:
    """A file of latents, and a picture of its size."""
    engine = base.find(model, "cpu", "light")
    coded, _ = engine.coder.encode(*_latents(entry, model), quality := Quality(entry.hundredths), full=entry.full)
    streams = {scale: [container.Stream(c.data, c.latents_crc)] for scale, c in coded.items()}
    width, height = LATENT * entry.columns - 3, LATENT * entry.rows - 15
    data = container.pack(
        model_id=engine.model_id,
        width=width,
        height=height,
        quality=quality,
        streams=streams,
        tile_side=TILE_SIDE,
        full=entry.full,
    )
    return data, Picture(np.zeros((height, width, 3), np.uint8))
