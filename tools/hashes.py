"""What a file decodes to, as SHA-256 of integers: how golden files say what must never change."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from hpcmcodec import codec, container
from hpcmcodec.decoding import latents_of
from hpcmcodec.engines.base import Engine
from hpcmcodec.exact.schedule import decimate, grid
from hpcmcodec.image import read_alpha

PREVIEWS = {"preview of s1": "s1", "preview of s1 and s2": "s2"}  # and the last scale of each


def sha256(integers: np.ndarray) -> str:
    """Of integers as little-endian int32, in C order."""
    return hashlib.sha256(np.ascontiguousarray(integers, "<i4").tobytes()).hexdigest()


def z_of(data: bytes, coder: Any, tile: int = 0) -> np.ndarray:
    """The hyper-latent (rows, columns, N) int32 of a tile."""
    reader = container.Reader(data)
    _, _, h, w = reader.header.tiles[tile]
    z: np.ndarray = coder.decode_z(reader.stream("z", tile), reader.header.quality, -(-h // 4), -(-w // 4))
    return z


def pixel_hashes(data: bytes, engine: Engine) -> dict[str, str]:
    """What a file shows: the whole at 8 and at 16 bits, and both thumbnails; each with the plane's padding.

    Raises what `codec.decode` raises.
    """
    return _shown(container.parse_header(data), latents_of(container.Reader(data), engine), engine)


def hashes(data: bytes, engine: Engine) -> dict[str, str]:
    """Of the file, of its z (tile by tile) and y_hat, and those of `pixel_hashes`.

    Raises what `codec.decode` raises.
    """
    reader = container.Reader(data)
    reader.verify_complete()
    y_hat = latents_of(reader, engine)
    z = [z_of(data, engine.coder, tile).ravel() for tile in range(reader.header.n_tiles)]
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "z": sha256(np.concatenate(z)),
        "y_hat": sha256(y_hat),
        **_shown(reader.header, y_hat, engine),
    }


def public_hashes(data: bytes, *, previews: bool) -> dict[str, str]:
    """What the library gives: the picture as `hpcmcodec.decode` shows it, alpha as deep as it was coded, the content of
    each other chunk; and with `previews` y_hat and both previews, each from a file that is cut behind its last scale.

    Raises what `codec.decode` raises.
    """
    reader = container.Reader(data)
    header, chunks = reader.header, reader.metadata()
    found = {"shown": sha256(np.asarray(codec.decode(data)))}
    if previews:
        found["y_hat"] = sha256(codec.decode_latents(data))
    for name, scale in PREVIEWS.items() if previews else ():
        cut = data[: header.stream_info(scale, header.n_tiles - 1).end]
        found[name] = sha256(codec.decode_picture(cut, scale=scale, depth=8).pixels)
    opacity = chunks.pop("ALPH", None)
    if opacity is not None:
        depth = 8 if header.depth == 8 else 16
        found["alpha"] = sha256(read_alpha(opacity, header.width, header.height, depth))
    return found | {f"chunk {name}": hashlib.sha256(content).hexdigest() for name, content in chunks.items()}


def _shown(header: container.Header, y_hat: np.ndarray, engine: Engine) -> dict[str, str]:
    coarse = np.zeros((*grid("s2", *y_hat.shape[:2]), y_hat.shape[2]), np.int32)
    coarse = decimate(y_hat[None], "s2", coarse[None])[0]
    return {
        "pixels": sha256(engine.synthesise(y_hat, header.quality)),
        "pixels of 16 bits": sha256(engine.synthesise(y_hat, header.quality, depth=16)),
        "thumbnail": sha256(engine.thumbnail(y_hat, header.quality, "s3")),
        "thumbnail of s1 and s2": sha256(engine.thumbnail(coarse, header.quality, "s2")),
    }
