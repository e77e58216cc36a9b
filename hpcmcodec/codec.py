"""The codec's public API: `encode` turns an image into the bytes of a file, `decode` turns them into an image.

    encode:  pixels -> g_a, gain -> y -> h_a -> z; for each tile: z, then y in eleven coding steps (`model/coder.py`);
             all tiles -> container
             with effort, several rounds: y_hat -> gradient of the error through g_s -> another y, coded anew
    decode:  container -> for each tile: z, then eleven coding steps -> y_hat; ungain, g_s -> pixels

Two engines do this (`engines/`). `light` runs on a CPU: its entropy path and its synthesis run in numpy, with compiled
kernels where `native.loader` finds them, the encoder's transforms are onnxruntime graphs, and it never imports torch.
`torch` runs the same functions over torch tensors, on CUDA, or on a CPU when asked for. Both decode a file to the same
pixels, in integers (`exact`); the encoder's transforms are ordinary floating point, so files may differ.

The plane y is cut into tiles that are coded independently; the transforms run over the whole plane, in strips.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from hpcmcodec import container, refine, timing, weights
from hpcmcodec.container import DEFAULT_MAX_PIXELS, LATENT
from hpcmcodec.engines import base
from hpcmcodec.engines.strips import Z_STRIDE, Progress, pad
from hpcmcodec.errors import InputError, IntegrityError, UnsupportedError
from hpcmcodec.exact.schedule import SCALES, STEPS, STRIDE, grid
from hpcmcodec.image import load, to_image
from hpcmcodec.model.coder import RATE_WEIGHT, LatentMismatchError
from hpcmcodec.model.synthesis import THUMBNAIL
from hpcmcodec.native import compiled
from hpcmcodec.quality import Quality

if TYPE_CHECKING:
    from hpcmcodec.engines.base import Engine
    from hpcmcodec.image import DecodedImage, ImageSource


@contextmanager
def _within_memory() -> Iterator[None]:
    """Raises `UnsupportedError` where memory runs out, whether numpy, onnxruntime or the system reports it."""
    try:
        yield
    except Exception as error:
        if not _for_want_of_memory(error):
            raise
        raise UnsupportedError("not enough memory for an image of this size") from error


def _for_want_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # onnxruntime has no class of exception for this: it is known by the words of its allocator, or of C++.
    theirs = type(error).__module__.startswith("onnxruntime")
    return isinstance(error, MemoryError) or (theirs and bool(re.search("bad_alloc|allocate memory", str(error))))


@_within_memory()
def encode(
    image: ImageSource,
    quality: float = 50.0,
    *,
    effort: int = 0,
    device: str = "cpu",
    engine: str = "auto",
    model: str = weights.DEFAULT_MODEL,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> bytes:
    """Encode an image to the bytes of an `.hpcm` file.

    Args:
        image: a path, the bytes of an image file, a PIL image, or an array (H, W, 3) of uint8 RGB.
        quality: 0 (smallest file) to 100 (best picture), in steps of 0.01.
        effort: 0 to 9; latents are refined in `refine.ROUNDS[effort]` rounds, 16 at most. Each round takes about as
            long as encoding and decoding together.
        device: "cpu" or "cuda".
        engine: "light", "torch", or "auto" (light on a CPU).
        model: the name of a packaged model.
        max_pixels: larger images are refused; None lifts the limit.
        progress: is called with the fraction of the work that is done, from 0 to 1.

    Raises:
        ValueError: quality, effort, device or engine out of range.
        InputError: the image cannot be read.
        UnsupportedError: the kind of image, its size, the model or the device is not supported here, or there is not
            enough memory.
    """
    q = Quality.of(quality)
    if effort not in range(len(refine.ROUNDS)):
        raise ValueError(f"effort is 0 to {len(refine.ROUNDS) - 1}, not {effort}")
    picture = load(image, max_pixels=max_pixels)
    runner = base.find(model, device, engine)
    height, width, _ = picture.pixels.shape
    pixels = pad(picture.pixels)
    rounds, rate_weight = refine.ROUNDS[effort], refine.RATE_WEIGHT if effort else RATE_WEIGHT
    # Each round counts for as much as the first coding, round 0: half for the transforms and half for coding.
    ticks = [_halves(_part(progress, n / (rounds + 1), 1 / (rounds + 1))) for n in range(rounds + 1)]

    with timing.phase("transform"):
        y, z = runner.analyse(pixels, q, ticks[0][0])

    def code(y: np.ndarray, n: int) -> tuple[dict[str, list[container.Stream]], np.ndarray]:
        return _code(runner, y, z, q, rate_weight, ticks[n][1])

    streams, y_hat = code(y, 0)
    if rounds:
        weight = refine.error_weight(height, width, q)

        def gradient(y_hat: np.ndarray, n: int) -> np.ndarray:
            with timing.phase("transform"):
                return runner.gradient(y_hat, pixels, weight, q, ticks[n][0])

        streams = refine.refined(y, (streams, y_hat), rounds, gradient, code)
    return container.pack(
        model_id=runner.model_id,
        width=width,
        height=height,
        quality=q,
        streams=streams,
        metadata=picture.metadata,
    )


def _code(
    runner: Engine, y: np.ndarray, z: np.ndarray, quality: Quality, rate_weight: float, progress: Progress | None
) -> tuple[dict[str, list[container.Stream]], np.ndarray]:
    """Code y (h, w, M) and z (ceil(h/4), ceil(w/4), N), both float32, in tiles.

    Returns:
        For each scale the streams of all tiles, and y_hat (h, w, M) int32 in sixteenths.
    """
    tiles = container.tiles(y.shape[0], y.shape[1])
    streams: dict[str, list[container.Stream]] = {s: [] for s in container.STREAM_ORDER}
    y_hat = np.empty(y.shape, np.int32)
    for i, (row, column, rows, columns) in enumerate(tiles):
        place = slice(row, row + rows), slice(column, column + columns)
        tile_z = z[
            row // Z_STRIDE : -(-(row + rows) // Z_STRIDE), column // Z_STRIDE : -(-(column + columns) // Z_STRIDE)
        ]
        tick = _part(progress, i / len(tiles), 1 / len(tiles))
        with runner.lock, timing.phase("entropy path"):
            coded, y_hat[place] = runner.coder.encode(y[place], tile_z, quality, tick, rate_weight)
        for s, c in coded.items():
            streams[s].append(container.Stream(c.data, c.latents_crc))
    return streams, y_hat


@_within_memory()
def decode(
    data: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO,
    *,
    device: str = "cpu",
    engine: str = "auto",
    scale: str | None = None,
    thumbnail: bool = False,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> DecodedImage:
    """Decode an `.hpcm` file to a PIL image (RGB, with the metadata that the file carries in `info`).

    The image's ``save`` writes this metadata too.

    Args:
        data: a path, the bytes, or a binary file object.
        device, engine: as for `encode`.
        scale: "s1", "s2" or "s3": decode a preview from the streams up to that scale alone. The file may be cut behind
            these streams.
        thumbnail: an eighth of the size, in both directions. With scale "s1" or "s2" it takes a fraction of the time.
        max_pixels, progress: as for `encode`.

    Raises:
        InputError: the data cannot be read, are no `.hpcm` file, or are truncated or malformed.
        UnsupportedError: the version, model or device is not supported here, the image has too many pixels, or there is
            not enough memory.
        IntegrityError: the file is damaged, or the decoded latents are not those that were encoded.
        ValueError: scale, device or engine out of range.
    """
    if scale is not None and scale not in SCALES:
        raise ValueError(f"scale is one of {', '.join(SCALES)}, not {scale!r}")
    if thumbnail:
        finest = "s2" if scale in ("s1", "s2") else "s3"
        y_hat, header, metadata, runner = _decode_latents(
            _read(data, max_pixels), device, engine, scale, max_pixels, progress, finest=finest
        )
        with timing.phase("transform"):
            pixels = runner.thumbnail(y_hat, header.quality, finest)
        height, width = (-(-n * THUMBNAIL // LATENT) for n in (header.height, header.width))
        return to_image(np.ascontiguousarray(pixels[:height, :width]), metadata)
    coding, transforming = _halves(progress)
    y_hat, header, metadata, runner = _decode_latents(
        _read(data, max_pixels), device, engine, scale, max_pixels, coding
    )
    with timing.phase("transform"):
        pixels = runner.synthesise(y_hat, header.quality, transforming)
    return to_image(np.ascontiguousarray(pixels[: header.height, : header.width]), metadata)


@_within_memory()
def decode_latents(
    data: bytes, *, device: str = "cpu", engine: str = "auto", max_pixels: int | None = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """y_hat (h, w, M) int32, in sixteenths of a quantisation step. These integers are the same on every machine.

    Raises what `decode` raises.
    """
    return _decode_latents(data, device, engine, None, max_pixels, None)[0]


@_within_memory()
def bits_map(
    data: bytes, *, device: str = "cpu", engine: str = "auto", max_pixels: int | None = DEFAULT_MAX_PIXELS
) -> dict[str, np.ndarray]:
    """Where a file's bits went: for each scale (z, s1, s2, s3) the bits spent at each position of y, (h, w) float64.

    Raises what `decode` raises.
    """
    header = container.parse_header(data, max_pixels=max_pixels)
    spent = {s: np.zeros((header.latent_height, header.latent_width)) for s in container.STREAM_ORDER}
    _decode_latents(data, device, engine, None, max_pixels, None, spent)
    return spent


def _decode_latents(
    data: bytes,
    device: str,
    engine: str,
    scale: str | None,
    max_pixels: int | None,
    progress: Progress | None,
    spent: dict[str, np.ndarray] | None = None,
    finest: str = SCALES[-1],
) -> tuple[np.ndarray, container.Header, dict[str, bytes], Engine]:
    """y_hat (h, w, M) int32 in sixteenths, the header, the metadata, and the engine that decoded.

    `spent` holds a plane (h, w) for each scale, to which the bits of the scale's symbols are added.
    """
    reader = container.Reader(data, max_pixels=max_pixels)
    wanted = (
        container.STREAM_ORDER if scale is None else container.STREAM_ORDER[: container.STREAM_ORDER.index(scale) + 1]
    )
    if scale is None:
        reader.verify_complete()
    else:
        there = reader.scales()
        if len(there) < len(wanted):
            raise InputError(f"truncated: the file ends before the end of scale {wanted[len(there)]}")
    header = reader.header
    runner = base.find(weights.find(header.model_id), device, engine)
    stride = STRIDE[finest]
    y_hat = np.empty((*grid(finest, header.latent_height, header.latent_width), runner.config.latent), np.int32)
    tiles = header.tiles
    for i, (row, column, rows, columns) in enumerate(tiles):
        streams = {s: reader.stream(s, i) for s in wanted}
        crcs = {s: header.stream_info(s, i).latents_crc for s in wanted}
        place = slice(row, row + rows), slice(column, column + columns)
        r, c = row // stride, column // stride
        high, wide = grid(finest, rows, columns)
        with runner.lock, timing.phase("entropy path"), _naming(i, runner):
            y_hat[r : r + high, c : c + wide] = runner.coder.decode(
                streams,
                crcs,
                header.quality,
                rows,
                columns,
                _part(progress, i / len(tiles), 1 / len(tiles)),
                None if spent is None else _adder({s: plane[place] for s, plane in spent.items()}),
                finest,
            )
    return y_hat, header, reader.metadata(partial=scale is not None), runner


@contextmanager
def _naming(tile: int, runner: Engine) -> Iterator[None]:
    """Names the tile in errors from inside; where latents differ, also says what decoded them and what to try."""
    try:
        yield
    except LatentMismatchError as error:
        ops = runner.coder.ops
        where = f"tile {tile}" + (f", coding step {error.step.index + 1} of {len(STEPS)}" if error.step else "")
        kernels = f"{ops.kernels.variant} kernels" if isinstance(ops, compiled.KernelOps) else "no kernels"
        what = "try HPCM_OPS=reference, and report" if isinstance(ops, compiled.KernelOps) else "please report"
        raise IntegrityError(
            f"decoded latents of {error.scale} ({where}) differ from the encoder's (CRC mismatch); decoded by the "
            f"{runner.name} engine with {kernels}: {what} what hpcm doctor says"
        ) from error
    except IntegrityError as error:
        raise IntegrityError(f"tile {tile}, {error}") from error


def _adder(planes: dict[str, np.ndarray]) -> Callable[[str, np.ndarray], None]:
    def add(scale: str, bits: np.ndarray) -> None:
        planes[scale] += bits

    return add


def _halves(progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    return _part(progress, 0, 0.5), _part(progress, 0.5, 0.5)


def _part(progress: Progress | None, start: float, share: float) -> Progress | None:
    return None if progress is None else lambda done: progress(start + share * done)


def _read(data: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO, max_pixels: int | None) -> bytes:
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    if isinstance(data, (str, os.PathLike)):
        try:
            with Path(data).open("rb") as file:
                return container.read(file, max_pixels=max_pixels)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise
            raise InputError(f"{os.fspath(data)}: {error.strerror or error}") from error
    if hasattr(data, "read"):
        return container.read(data, max_pixels=max_pixels)
    raise TypeError(f"a file must be a path, bytes or a binary file, not {type(data).__name__}")
