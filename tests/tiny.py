"""The tiny model whose integers are committed, and the files that were written with it.

`tests/data/tiny-0.*` are weights and graphs of the preset `tiny` with random values (no training: they only have to be
varied), `tests/data/*.hpcm` are files of it and `golden.json` says what they decode to. New weights of `lite` leave all
of this alone; a change of the format, of the exact arithmetic or of the schedule does not.

`python -m tests.tiny`, from the root of the repository, makes everything anew. That breaks every file that anybody has,
so it goes together with a new format version or with a new `constants.ARITHMETIC`. Random generators promise no stable
stream: what it makes is compared with nothing, only what is committed counts.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from hpcmcodec import codec, container, weights
from hpcmcodec.container import LATENT
from hpcmcodec.engines import light
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.quality import Quality
from tools.hashes import hashes

DATA = Path(__file__).parent / "data"
NAME = "tiny-0"
PICTURES = {  # name -> width, height, quality
    "tiny-131x77": (131, 77, 60.0),
    "tiny-7x5": (7, 5, 95.5),
    "tiny-40x52": (40, 52, 12.5),
}
EXTREME = "tiny-extreme"
TABLE_REACH = 20  # the tables of y are cut here: 20 kB instead of 400, and escapes are not rare


@contextmanager
def installed() -> Iterator[None]:
    """Make the tiny model one of the packaged ones."""
    shipped = weights.packaged()
    with patch.object(weights, "packaged", lambda: {**shipped, NAME: DATA / f"{NAME}.safetensors"}):
        yield


@lru_cache(maxsize=1)
def load() -> weights.Weights:
    return weights.load_file(DATA / f"{NAME}.safetensors")


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: a gradient, an edge, stripes and noise, from a generator whose stream is frozen."""
    rng = np.random.RandomState(seed)
    rows, columns = np.mgrid[:height, :width]
    base = np.stack([rows * 3 + columns, columns * 2 + 40, 255 - rows * 2], -1) % 256
    base[(rows + 2 * columns) % 96 < 40] //= 3
    noise = rng.randint(-40, 41, (height, width, 3)) * (rows // 32 % 2 == 1)[..., None]
    return np.asarray(np.clip(base + noise, 0, 255), np.uint8)


def encode(width: int, height: int, quality: float = 50.0, seed: int = 0, **options: Any) -> bytes:
    """A file of the tiny model; `installed` must be in force."""
    return codec.encode(picture(width, height, seed), quality, model=NAME, **options)


def exact_ops(xp: Any = NUMPY) -> ExactOps:
    """The exact operations over the tiny model's integers."""
    return ExactOps(xp, load().under("entropy"), load().grids)


def latents(h: int, w: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """y (h, w, M), sixteenths of a step, now and then far beyond the tables, and z, whole steps; both float32."""
    rng, config = np.random.RandomState(seed), load().config
    y = rng.standard_t(2, (h, w, config.latent)) * np.exp2(rng.randint(-3, 4, config.latent))
    z = rng.randint(-6, 7, (-(-h // 4), -(-w // 4), config.hyper))
    return (np.clip(np.rint(y * 16), -(2**16), 2**16) / 16).astype(np.float32), z.astype(np.float32)


def parts_of(data: bytes) -> tuple[container.Header, dict[str, bytes], Any]:
    """The header of a file of one tile, its streams, and what verifies their integers."""
    reader = container.Reader(data)
    return reader.header, {s: reader.stream(s, 0) for s in container.STREAM_ORDER}, reader.verifier(0)


def streams_of(data: bytes) -> dict[str, list[container.Stream]]:
    """The streams of a file of this model, with the CRC-32 of what they decode to."""
    reader, coder = container.Reader(data), light.LightEngine(load()).coder
    found: dict[str, list[container.Stream]] = {s: [] for s in container.STREAM_ORDER}
    for tile, (_, _, h, w) in enumerate(reader.header.tiles):
        streams = {s: reader.stream(s, tile) for s in container.STREAM_ORDER}
        crcs: dict[str, int] = {}
        coder.decode(streams, recorder(crcs), reader.header.quality, h, w, full=reader.header.full)
        for s, stream in streams.items():
            found[s].append(container.Stream(stream, crcs[s]))
    return found


def recorder(crcs: dict[str, int]) -> Any:
    """A `coder.Verify` that takes what comes into `crcs`."""

    def verify(scale: str, crc: int) -> bool:
        crcs[scale] = crc
        return True

    return verify


def resealed(header: bytes, rest: bytes) -> bytes:
    """A file of a header, whose check is made anew, and of what follows it up to the CRC of the file, likewise."""
    whole = header + zlib.crc32(header).to_bytes(4, "little")[:2] + rest
    return whole + zlib.crc32(whole).to_bytes(4, "little")


def with_model_id(data: bytes, model_id: bytes) -> bytes:
    """The file with another model id; its checks of integers do not hold any more."""
    header = container.parse_header(data)
    end = header.header_bytes - 2
    return resealed(data[:end].replace(header.model_id, model_id, 1), data[end + 2 : -4])


# --- the maker: torch and onnx from here on ---------------------------------------------------------------------------


def make_model() -> Any:
    """A `tiny` model of random values that are varied enough to reach every branch of the entropy path."""
    import torch

    from hpcmcodec.model.config import TINY
    from hpcmcodec.model.hpcm import HPCM
    from hpcmcodec.training.stages import calibrate

    torch.manual_seed(0)
    model = HPCM(TINY)
    with torch.no_grad():
        for name, value in model.raw.items():
            value.add_(torch.randn_like(value), alpha=0.02 if value.ndim == 2 else 0.1)
            if name.endswith("bias") and ("/head/" in name or "/first/" in name):
                half = len(value) // 2
                value[:half] += 2 * torch.randn(half)
                value[half:] += torch.linspace(-16, 12, half)  # from skipped levels to wide ones
            if name.endswith("weight") and ("/head/" in name or "/first/" in name):
                value *= 4
            if name.endswith("boost"):
                value.add_(torch.randn_like(value), alpha=3)
        for scale in (model.gain, model.ungain):
            scale.log_scale.add_(torch.randn_like(scale.log_scale), alpha=0.2)
        spread = torch.linspace(0, 2.5, TINY.latent)
        model.gain.log_scale.add_(spread)
        model.ungain.log_scale.sub_(spread)
    model.eval()
    x = torch.stack([torch.from_numpy(picture(128, 128, s)).permute(2, 0, 1).float() / 255 for s in range(4)])
    for _ in range(4):
        model.grids = calibrate(model, x, torch.linspace(0, 1, 4), False)
    return model


def short_tables(tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tables of z and y: those of z in another order of channels in each band, those of y cut to +-TABLE_REACH."""
    from hpcmcodec.model.entropy import Z_BANDS, integer_cdf, pack_tables

    rows = []
    for cdf, size, low in zip(tables["y.cdf"], tables["y.sizes"], tables["y.offsets"], strict=True):
        counts = np.diff(cdf[:size]).astype(np.float64)
        cut = max(0, -int(low) - TABLE_REACH)
        inside = counts[cut : len(counts) - 1 - cut]
        rows.append((integer_cdf(inside, 65536 - inside.sum()), int(low) + cut))
    bands = np.arange(len(tables["z.sizes"])).reshape(Z_BANDS, -1)
    order = np.concatenate([np.roll(rows_of, -i) for i, rows_of in enumerate(bands)])
    moved = {k: v[order] for k, v in tables.items() if k.startswith("z.")}
    return tables | moved | {f"y.{k}": v for k, v in pack_tables(rows).items()}


def write_model(folder: Path) -> bytes:
    """Export a model of `make_model` to `folder`; returns its id."""
    from hpcmcodec.training import export

    photographs = [(picture(96, 64, seed), Quality(2500 * seed)) for seed in range(5)]
    # Tables that are not fitted: low levels then skip symbols that are not zero, high ones have escapes.
    with patch.object(export, "fit_tables", lambda model, *_: short_tables(model.tables())):
        return export.export(make_model(), NAME, folder, photographs)


def write_golden() -> None:
    """Files of the committed model: two of pictures, one of latents that need all that the coder can do."""
    engine = light.LightEngine(load())
    files = {name: encode(w, h, quality) for name, (w, h, quality) in PICTURES.items()}
    y, z = latents(9, 14)
    coded, _ = engine.coder.encode(y, z, Quality(3000))
    streams = {s: [container.Stream(c.data, c.latents_crc)] for s, c in coded.items()}
    size = {"width": 14 * LATENT - 3, "height": 9 * LATENT - 15}
    files[EXTREME] = container.pack(
        model_id=load().model_id, quality=Quality(3000), streams=streams, metadata={"XMP": b"<x/>"}, **size
    )
    said = {}
    for name, data in files.items():
        (DATA / f"{name}.hpcm").write_bytes(data)
        said[name] = hashes(data, engine)
    (DATA / "golden.json").write_text(json.dumps(said, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    write_model(DATA)
    with installed():
        write_golden()
