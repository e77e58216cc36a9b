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
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np

from hpcmcodec import container, refine, targets, timing, weights
from hpcmcodec.container import DEFAULT_MAX_PIXELS, DEFAULT_MAX_SIDE, TILE_SIDE
from hpcmcodec.decoding import (
    Region,
    Ticks,
    check_complete,
    halves,
    latents_of,
    part,
    pixels_crc,
    pixels_of,
    thumbnail_of,
    what_decodes,
)
from hpcmcodec.engines import base
from hpcmcodec.engines.strips import Z_STRIDE, Progress, pad
from hpcmcodec.errors import InputError, IntegrityError, UnsupportedError
from hpcmcodec.exact.schedule import SCALES
from hpcmcodec.image import Picture, flattened, load, read_alpha, thumbnail_of_alpha, to_image, with_alpha_chunk
from hpcmcodec.image.carried import usable
from hpcmcodec.image.colour import of_header, rgb_of
from hpcmcodec.image.editing import resized
from hpcmcodec.model.coder import RATE_WEIGHT, Cut
from hpcmcodec.quality import Quality
from hpcmcodec.shortage import within_memory

if TYPE_CHECKING:
    from hpcmcodec.engines.base import Engine
    from hpcmcodec.image import DecodedImage
    from hpcmcodec.image.load import ImageSource

Streams: TypeAlias = dict[str, list[container.Stream]]  # for each scale those of all tiles
Coded: TypeAlias = tuple[Streams, np.ndarray]  # and y_hat (h, w, M) int32 in sixteenths

# Symbols that the model expects to be zero are not coded, for speed. They are where that does more harm than this share
# of a file's bits is worth: nearly never in photographs, but in halftones, where it costs several dB.
FULL_FROM = 0.005
DEFAULT_QUALITY = 50.0  # of models that have qualities


@within_memory()
def encode(
    image: ImageSource,
    quality: float | None = None,
    *,
    effort: int = 0,
    tile: int = TILE_SIDE,
    verify: bool = False,
    background: str | tuple[int, int, int] | None = None,
    target_size: int | None = None,
    target_bpp: float | None = None,
    target_psnr: float | None = None,
    device: str = "cpu",
    engine: str = "auto",
    model: str = weights.DEFAULT_MODEL,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    max_side: int | None = DEFAULT_MAX_SIDE,
    progress: Progress | None = None,
) -> bytes:
    """Encode an image to the bytes of an `.hpcm` file.

    Args:
        image: a path, the bytes of an image file, a binary file object, a PIL image, or an array in sRGB: (H, W) greys,
            (H, W, 2) greys and alpha, (H, W, 3) RGB or (H, W, 4) RGB and alpha, of uint8, of uint16 (0 to 65535) or of
            floating-point numbers from 0 to 1. Alpha is kept without loss, and is not premultiplied.
        quality: 0 (smallest file) to 100 (best picture), in steps of 0.01; None: 50, or a model's only one.
        effort: 0 to 9; latents are refined in `refine.ROUNDS[effort]` rounds, 16 at most. Each round takes about as
            long as encoding and decoding together.
        tile: 256, 128 or 64: the plane of latents is coded in squares of this side, one by one.
        verify: decode the result, and have it carry a checksum of its pixels, which each decoder then compares.
        target_size, target_bpp, target_psnr: choose the quality in place of `quality`, in up to six encodes: so that
            the file has at most that many bytes, metadata counted, or bits per pixel, and at most 2% fewer; or so that
            the picture has at least that many dB, and at most 0.05 more.
        background: 8-bit RGB, or a colour's name as in CSS, to put a picture with alpha on; None keeps alpha.
        device: "cpu" or "cuda".
        engine: "light", "torch", or "auto" (light on a CPU).
        model: the name of a model, in the package or in a folder that `search` names, or the path of a weights file.
        max_pixels: images of more pixels, padded to multiples of 16, are refused; None lifts the limit.
        max_side: images with a longer side, in pixels, are refused; None lifts the limit.
        progress: is called with the fraction done, from 0 to 1; if it returns False, `CancelledError` ends the work.

    Raises:
        ValueError: more than one target, quality, effort, tile, device or engine out of range, a background that names
            no colour, or an array of another shape, type or range.
        InputError: the image cannot be read.
        UnsupportedError: the kind of image, its size, the model or the device is not supported here, there is not
            enough memory, a target cannot be met, or the model has neither qualities nor effort.
    """
    wanted = [target_size, target_bpp, target_psnr]
    q = _checked(quality, effort, tile, wanted)
    behind = None if background is None else rgb_of(background)
    picture = load(image, max_pixels=max_pixels)
    picture = picture if behind is None else flattened(picture, behind)
    height, width, _ = picture.pixels.shape
    container.check_size(width, height, max_pixels, max_side)
    picture = with_alpha_chunk(picture)
    runner = base.find(model, device, engine, encodes=True)
    if not runner.config.qualities:
        q = _only_quality(model, runner, quality, effort, wanted)

    def attempt(quality: Quality) -> bytes:
        return _encoded(picture, quality, runner, effort, tile, verify, progress)

    if target_bpp is not None:
        target_size = max(1, int(min(target_bpp * width * height / 8, 2.0**62)))
    if target_size is not None:
        return targets.for_size(lambda percent: attempt(Quality.of(percent)), target_size)
    if target_psnr is not None:
        psnr_db = partial(_psnr_db, picture, runner)
        return targets.for_psnr(lambda percent: attempt(Quality.of(percent)), psnr_db, target_psnr)
    return attempt(q)


def _checked(quality: float | None, effort: int, tile: int, wanted: list[float | None]) -> Quality:
    if sum(target is not None for target in wanted) > 1:
        raise ValueError("target_size, target_bpp and target_psnr exclude each other")
    if wanted[1] is not None and not 0 < wanted[1] < float("inf"):
        raise ValueError(f"target_bpp is a positive number of bits per pixel, not {wanted[1]}")
    if effort not in range(len(refine.ROUNDS)):
        raise ValueError(f"effort is 0 to {len(refine.ROUNDS) - 1}, not {effort}")
    if tile not in container.TILE_SIDES:
        raise ValueError(f"tile is one of {', '.join(map(str, container.TILE_SIDES))}, not {tile}")
    return Quality.of(DEFAULT_QUALITY if quality is None else quality)


def _psnr_db(picture: Picture, runner: Engine, data: bytes) -> float:
    """PSNR of the decoded pixels of a file in dB, at the depth of the picture."""
    reader = container.Reader(data, max_pixels=None, max_side=None)
    depth = 8 if picture.depth == 8 else 16
    decoded = pixels_of(reader, runner, (None, None), depth=depth)
    error = decoded / ((1 << depth) - 1) - picture.pixels / ((1 << picture.depth) - 1)
    return float(-10 * np.log10(max(float(np.mean(np.square(error))), 1e-12)))


def _encoded(
    picture: Picture, q: Quality, runner: Engine, effort: int, tile: int, verify: bool, progress: Progress | None
) -> bytes:
    """The bytes of a file; the arguments are those of `encode`, checked and loaded, with alpha in the metadata."""
    height, width, _ = picture.pixels.shape
    # Each round counts for as much as the first coding, and as decoding: half for the transforms and half for coding.
    parts = 1 + refine.ROUNDS[effort] + verify
    ticks = [halves(part(progress, n / parts, 1 / parts)) for n in range(parts)]
    streams, full = _streams_of(runner, _levels(picture), q, effort, tile, ticks)

    def packed(picture_crc: int | None) -> bytes:
        return container.pack(
            model_id=runner.model_id,
            width=width,
            height=height,
            quality=q,
            streams=streams,
            metadata=picture.metadata,
            tile_side=tile,
            full=full,
            depth=picture.depth,
            grey=picture.grey,
            cicp=picture.cicp,
            picture_crc=picture_crc,
        )

    data = packed(None)
    if not verify:
        return data
    reader = container.Reader(data, max_pixels=None, max_side=None)
    return packed(pixels_crc(pixels_of(reader, runner, ticks[-1])))


def _streams_of(
    runner: Engine, pixels: np.ndarray, q: Quality, effort: int, tile: int, ticks: Sequence[Ticks]
) -> tuple[Streams, bool]:
    """The streams of pixels (H, W, 3), and whether they hold all symbols.

    ticks: for the first coding and for each round of effort.
    """
    height, width, _ = pixels.shape
    pixels = pad(pixels)
    rounds = refine.ROUNDS[effort]
    with timing.phase("transform"):
        y, z = runner.analyse(pixels, q, ticks[0][0])

    def code(y: np.ndarray, n: int | None, full: bool, cut: Cut | None = None) -> Coded:
        tick = None if n is None else ticks[n][1]
        return _code(runner, y, z, q, tile, tick, full=full, cut=cut)

    cut: list[tuple[float, float]] = []
    streams, y_hat = code(y, 0, False, lambda *step: cut.append(step))
    if full := _does_harm(cut, streams):
        streams, y_hat = code(y, None, full)
    if rounds:
        weight = refine.error_weight(height, width, q)

        def gradient(y_hat: np.ndarray, n: int) -> np.ndarray:
            with timing.phase("transform"):
                return runner.gradient(y_hat, pixels, weight, q, ticks[n][0])

        step = refine.step_of(runner.config)
        streams = refine.refined(y, (streams, y_hat), rounds, step, gradient, partial(code, full=full))
    return streams, full


def _does_harm(cut: list[tuple[float, float]], streams: Streams) -> bool:
    """Whether coding all symbols is better: `cut` has the error and the bits of those that are not, step by step."""
    error, saved = np.sum(cut, axis=0)
    n_bits = 8 * sum(len(stream.data) for of_scale in streams.values() for stream in of_scale)
    return bool(error > RATE_WEIGHT * (saved + FULL_FROM * n_bits))


def _levels(picture: Picture) -> np.ndarray:
    """Pixels as engines take them: 0 to 255, in uint8 or, where there are more levels, in float32."""
    if picture.depth == 8:
        return picture.pixels
    return picture.pixels.astype(np.float32) * np.float32(255 / ((1 << picture.depth) - 1))


def _only_quality(
    model: str, runner: Engine, quality: float | None, effort: int, wanted: list[float | None]
) -> Quality:
    """That of a model of one lambda. Raises UnsupportedError where options were given that it does not have."""
    for option, given in (("quality", quality), ("effort", effort or None), *(("target", target) for target in wanted)):
        if given is not None:
            fixed = f"lambda {runner.config.fixed_lambda:g} of {runner.config.metric.upper()}"
            raise UnsupportedError(f"model {model} has no {option}: it was trained for {fixed}; leave it out")
    return Quality(0)


def _code(
    runner: Engine,
    y: np.ndarray,
    z: np.ndarray,
    quality: Quality,
    tile: int,
    progress: Progress | None,
    *,
    full: bool = False,
    cut: Cut | None = None,
) -> Coded:
    """Code y (h, w, M) and z (ceil(h/4), ceil(w/4), N), both float32, in tiles."""
    tiles = container.tiles(y.shape[0], y.shape[1], tile)
    streams: Streams = {s: [] for s in container.STREAM_ORDER}
    y_hat = np.empty(y.shape, np.int32)
    for i, (row, column, rows, columns) in enumerate(tiles):
        place = slice(row, row + rows), slice(column, column + columns)
        tile_z = z[
            row // Z_STRIDE : -(-(row + rows) // Z_STRIDE), column // Z_STRIDE : -(-(column + columns) // Z_STRIDE)
        ]
        tick = part(progress, i / len(tiles), 1 / len(tiles))
        with runner.lock, timing.phase("entropy path"):
            coded, y_hat[place] = runner.coder.encode(y[place], tile_z, quality, tick, full=full, cut=cut)
        for s, c in coded.items():
            streams[s].append(container.Stream(c.data, c.latents_crc))
    return streams, y_hat


def decode(
    data: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO,
    *,
    device: str = "cpu",
    engine: str = "auto",
    scale: str | None = None,
    thumbnail: bool = False,
    region: Region | None = None,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    max_side: int | None = DEFAULT_MAX_SIDE,
    progress: Progress | None = None,
) -> DecodedImage:
    """Decode an `.hpcm` file to a PIL image of 8 bits, with the metadata that the file carries in `info`.

    Its mode is RGB or RGBA, for grey pictures L or LA. Its ``save`` writes the metadata too.

    Args:
        data: a path, the bytes, or a binary file object.
        device, engine: as for `encode`.
        scale: "s1", "s2" or "s3": decode a preview from the streams up to that scale alone. The file may be cut behind
            these streams.
        thumbnail: an eighth of the size, in both directions. With scale "s1" or "s2" it takes a fraction of the time.
        region: x and y of the corner at the top left, width and height in pixels: decode that part alone. It has the
            pixels that it has in the whole picture. Only the tiles around it are decoded, and their checksums compared;
            a checksum of the picture's pixels, where the file has one, is not.
        max_pixels, max_side, progress: as for `encode`.

    Raises:
        InputError: the data cannot be read, are no `.hpcm` file, or are truncated or malformed.
        UnsupportedError: the version, model or device is not supported here, the image has too many pixels, or there is
            not enough memory.
        IntegrityError: the file is damaged, or the decoded latents or pixels are not those of the encoder.
        ValueError: scale, device or engine out of range, a region that is not inside the picture, or one of a
            thumbnail.
    """
    limits = container.Limits(max_pixels=max_pixels, max_side=max_side)
    picture = decode_picture(
        data,
        device=device,
        engine=engine,
        scale=scale,
        thumbnail=thumbnail,
        region=region,
        depth=8,
        progress=progress,
        **limits,
    )
    for note in picture.notes:
        warnings.warn(note, stacklevel=2)
    return to_image(picture)


@within_memory()
def decode_picture(
    data: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO,
    *,
    device: str = "cpu",
    engine: str = "auto",
    scale: str | None = None,
    thumbnail: bool = False,
    region: Region | None = None,
    depth: int | None = None,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    max_side: int | None = DEFAULT_MAX_SIDE,
    progress: Progress | None = None,
) -> Picture:
    """Decode an `.hpcm` file to arrays: pixels, alpha, colour space and metadata.

    Args:
        data, device, engine, scale, thumbnail, region, max_pixels, max_side, progress: as for `decode`.
        depth: 8 or 16 bits; None is 16 where the coded picture had more than 8. Thumbnails have 8.

    Raises what `decode` raises, and ValueError for another depth.
    """
    if scale is not None and scale not in SCALES:
        raise ValueError(f"scale is one of {', '.join(SCALES)}, not {scale!r}")
    if depth not in (None, 8, 16):
        raise ValueError(f"depth is 8 or 16, not {depth}")
    if thumbnail and region is not None:
        raise ValueError("a thumbnail shows the whole picture: thumbnail and region exclude each other")
    reader = _reader(data, max_pixels, max_side)
    header = reader.header
    check_complete(reader, scale)
    metadata, notes = usable(reader.metadata(partial=scale is not None))
    if header.alpha and "ALPH" not in metadata:
        notes = (*notes, "the file is cut before its transparency: the preview is opaque")
    runner = base.find(weights.find(header.model_id), device, engine)
    depth = depth or (16 if header.depth > 8 else 8)
    opacity = metadata.pop("ALPH", None)
    alpha = None if opacity is None else read_alpha(opacity, header.width, header.height, 8 if thumbnail else depth)
    cicp = None if header.cicp is None else of_header(*header.cicp)
    if thumbnail:
        pixels = thumbnail_of(reader, runner, scale, progress)
        height, width, _ = pixels.shape
        alpha = None if alpha is None else thumbnail_of_alpha(alpha, width, height)
        return Picture(pixels, metadata, notes, grey=header.grey, alpha=alpha, cicp=cicp)
    pixels = pixels_of(reader, runner, halves(progress)[::-1], scale, depth, region)
    if alpha is not None and region is not None:
        x, y, width, height = region
        alpha = np.ascontiguousarray(alpha[y : y + height, x : x + width])
    checked = header.picture_crc is not None and depth == 8 and scale in (None, SCALES[-1]) and region is None
    if checked and pixels_crc(pixels) != header.picture_crc:
        raise IntegrityError(
            f"the decoded pixels differ from those of the encoder (CRC mismatch); decoded by {what_decodes(runner)}"
        )
    picture = Picture(pixels, metadata, notes, depth=depth, grey=header.grey, alpha=alpha, cicp=cicp)
    return picture if region is None else resized(picture)


@within_memory()
def decode_latents(
    data: bytes,
    *,
    device: str = "cpu",
    engine: str = "auto",
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    max_side: int | None = DEFAULT_MAX_SIDE,
) -> np.ndarray:
    """y_hat (h, w, M) int32, in sixteenths of a quantisation step. These integers are the same on every machine.

    Raises what `decode` raises.
    """
    reader = container.Reader(data, max_pixels=max_pixels, max_side=max_side)
    reader.verify_complete()
    return latents_of(reader, base.find(weights.find(reader.header.model_id), device, engine))


@within_memory()
def bits_map(
    data: bytes,
    *,
    device: str = "cpu",
    engine: str = "auto",
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    max_side: int | None = DEFAULT_MAX_SIDE,
) -> dict[str, np.ndarray]:
    """Where a file's bits went: for each scale (z, s1, s2, s3) the bits spent at each position of y, (h, w) float64.

    Raises what `decode` raises.
    """
    reader = container.Reader(data, max_pixels=max_pixels, max_side=max_side)
    reader.verify_complete()
    header = reader.header
    runner = base.find(weights.find(header.model_id), device, engine)
    spent = {s: np.zeros((header.latent_height, header.latent_width)) for s in container.STREAM_ORDER}
    latents_of(reader, runner, spent=spent)
    return spent


def _reader(
    data: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO,
    max_pixels: int | None,
    max_side: int | None,
) -> container.Reader:
    limits = container.Limits(max_pixels=max_pixels, max_side=max_side)
    if isinstance(data, (bytes, bytearray, memoryview)):
        return container.Reader(bytes(data), **limits)
    if isinstance(data, (str, os.PathLike)):
        try:
            with Path(data).open("rb") as file:
                return container.Reader(container.read(file, **limits), **limits)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise
            raise InputError(f"{os.fspath(data)}: {error.strerror or error}") from error
    if hasattr(data, "read"):
        return container.Reader(container.read(data, **limits), **limits)
    raise TypeError(f"a file must be a path, bytes or a binary file, not {type(data).__name__}")
