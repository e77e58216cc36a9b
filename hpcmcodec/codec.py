"""The codec's public API: `encode` an image to the bytes of a file, `decode` them to an image.

    encode:  pixels -> g_a, gain -> y -> h_a -> z; each tile: z, then y in eleven steps (`model/coder.py`); container
             with effort, several times: y_hat -> g_s and back again -> y that makes up for what coding does to it
    decode:  container -> for each tile z, eleven steps -> y_hat; ungain, g_s -> pixels

Two engines do this. `light` (CPU): the entropy path and the synthesis run in numpy, with compiled kernels where
`native.loader` finds them, the encoder's transforms are onnxruntime graphs; torch is never imported. `torch` (CUDA, and
on a CPU when asked for): the same functions over torch tensors. Both decode a file to the same pixels, in integers
(`exact`); the encoder's transforms are ordinary floating point, so files may differ.

The latent plane is cut into tiles that are coded independently; the transforms run over the whole plane, in strips
with a halo as wide as their receptive field, so that there are no seams and memory stays bounded.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from hpcmcodec import container, threads, weights
from hpcmcodec.container import DEFAULT_MAX_PIXELS, LATENT
from hpcmcodec.errors import InputError, UnsupportedError
from hpcmcodec.exact.constants import MEAN_SHIFT
from hpcmcodec.exact.namespaces import NUMPY, probe
from hpcmcodec.exact.schedule import SCALES, STRIDE, grid
from hpcmcodec.image import load, to_image
from hpcmcodec.model.coder import RATE_WEIGHT, LatentCoder
from hpcmcodec.model.config import Config, lmbda
from hpcmcodec.model.synthesis import THUMBNAIL, synthesise, thumbnail_of
from hpcmcodec.native import loader
from hpcmcodec.quality import Quality
from hpcmcodec.strips import Z_STRIDE, Progress, analyse_strips, gradient_strips, pad, synthesise_strips

if TYPE_CHECKING:
    from hpcmcodec.image import DecodedImage, ImageSource

ROUNDS = (0, 1, 2, 3, 4, 6, 8, 10, 13, 16)  # of refinement, by effort: each takes as long and gains less
# The curvature of the distortion is some 20 bits a squared quantisation step, in nearly all channels that are in use at
# a quality: 0.05 times the gradient leads to where a latent alone is best. Of 0.04 to 0.08 and of 0.06 to 0.1, these
# gave the smallest files at the same PSNR on four held-out photographs among those that leave sizes as they are.
REFINED_STEP, REFINED_RATE_WEIGHT = 0.06, 0.08
# Where the curvature is many times that, each round would overshoot further than the last; bounded, it only swings, and
# the mean of all rounds settles.
REFINED_LIMIT = 2.0
_TRANSFORM_SHARE = 0.5  # of the time, for the progress shown


@contextmanager
def _within_memory() -> Iterator[None]:
    """Where memory ends, whoever finds that (numpy, onnxruntime, the system), it is `UnsupportedError`."""
    try:
        yield
    except Exception as error:
        if not _for_want_of_memory(error):
            raise
        raise UnsupportedError("not enough memory for an image of this size") from error


def _for_want_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # onnxruntime has no class of its own for it: these are its allocator's words, and C++'s.
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
        quality: 0 (smallest) to 100 (best), steps of 0.01.
        effort: 0 to 9; latents are refined in `ROUNDS[effort]` rounds, 16 at most, each of which takes about as long as
            to encode and to decode.
        device: "cpu" or "cuda".
        engine: "light", "torch", or "auto" (light on a CPU).
        model: which packaged weights.
        max_pixels: larger images are refused; None lifts the limit.
        progress: called with the fraction done, in [0, 1].

    Raises:
        ValueError: quality, effort, device or engine out of range.
        InputError: the image cannot be read.
        UnsupportedError: it is of a kind that is not supported, or there is not enough memory.
    """
    q = Quality.of(quality)
    if effort not in range(len(ROUNDS)):
        raise ValueError(f"effort is 0 to {len(ROUNDS) - 1}, not {effort}")
    picture = load(image, max_pixels=max_pixels)
    runner = _engine(model, device, engine)
    height, width, _ = picture.pixels.shape
    pixels = pad(picture.pixels)
    rounds, rate_weight = ROUNDS[effort], REFINED_RATE_WEIGHT if effort else RATE_WEIGHT

    def shares(n: int) -> tuple[Progress | None, Progress | None]:
        part = _part(progress, n / (rounds + 1), 1 / (rounds + 1))
        return _part(part, 0, _TRANSFORM_SHARE), _part(part, _TRANSFORM_SHARE, 1 - _TRANSFORM_SHARE)

    transforming, coding = shares(0)
    y, z = runner.analyse(pixels, q, transforming)
    streams, y_hat = _code(runner, y, z, q, rate_weight, coding)
    for n in range(1, rounds + 1):
        transforming, coding = shares(n)
        target = runner.gradient(y_hat, pixels, _weight(height, width, q), q, transforming)
        # In place, as these planes are large: target = y_hat - REFINED_STEP * gradient, and y the mean of all so far.
        target *= -REFINED_STEP
        np.clip(target, -REFINED_LIMIT, REFINED_LIMIT, out=target)
        target += y_hat * np.float32(2.0**-MEAN_SHIFT)
        target -= y
        target /= n + 1
        y += target
        streams, y_hat = _code(runner, y, z, q, rate_weight, coding)
    return container.pack(
        model_id=runner.model_id,
        width=width,
        height=height,
        quality=q,
        streams=streams,
        metadata=picture.metadata,
    )


def _code(
    runner: _Engine, y: np.ndarray, z: np.ndarray, quality: Quality, rate_weight: float, progress: Progress | None
) -> tuple[dict[str, list[container.Stream]], np.ndarray]:
    """The streams of every tile by scale, and y_hat (h, w, M) int32 in sixteenths."""
    tiles = container.tiles(y.shape[0], y.shape[1])
    streams: dict[str, list[container.Stream]] = {s: [] for s in container.STREAM_ORDER}
    y_hat = np.empty(y.shape, np.int32)
    for i, (row, column, rows, columns) in enumerate(tiles):
        place = slice(row, row + rows), slice(column, column + columns)
        tile_z = z[
            row // Z_STRIDE : -(-(row + rows) // Z_STRIDE), column // Z_STRIDE : -(-(column + columns) // Z_STRIDE)
        ]
        tick = _part(progress, i / len(tiles), 1 / len(tiles))
        with runner.lock:
            coded, y_hat[place] = runner.coder.encode(y[place], tile_z, quality, tick, rate_weight)
        for s, c in coded.items():
            streams[s].append(container.Stream(c.data, c.latents_crc))
    return streams, y_hat


def _weight(height: int, width: int, quality: Quality) -> np.ndarray:
    """What the squared error of each pixel weighs, (16 h, 16 w, 1) float32: nothing where the image was padded.

    With it, sum(weight / 2 * (x_hat - x)^2) is training's distortion of the whole image, in bits: lambda * 255^2 times
    the mean square over three colours.
    """
    inside = np.full((height, width, 1), 2 / 3 * 255**2 * lmbda(quality.unit), np.float32)
    return np.pad(inside, ((0, -height % container.LATENT), (0, -width % container.LATENT), (0, 0)))


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

    Its ``save`` writes the metadata along.

    Args:
        data: a path, the bytes, or a binary file object.
        device, engine: as for `encode`.
        scale: "s1", "s2" or "s3" decodes a preview from the streams up to that scale alone; the file may be cut after
            them.
        thumbnail: an eighth of the size, in both directions. With scale "s1" or "s2" it takes a fraction of the time.
        max_pixels, progress: as for `encode`.

    Raises:
        InputError: not an `.hpcm` file, truncated, or malformed.
        UnsupportedError: version, model, pixel limit, device, not enough memory.
        IntegrityError: damaged, or the decoded latents are not those that were encoded.
        ValueError: scale, device or engine out of range.
    """
    if scale is not None and scale not in SCALES:
        raise ValueError(f"scale is one of {', '.join(SCALES)}, not {scale!r}")
    if thumbnail:
        finest = "s2" if scale in ("s1", "s2") else "s3"
        y_hat, header, metadata, runner = _decode_latents(
            _read(data, max_pixels), device, engine, scale, max_pixels, progress, finest=finest
        )
        pixels = runner.thumbnail(y_hat, header.quality, finest)
        height, width = (-(-n * THUMBNAIL // LATENT) for n in (header.height, header.width))
        return to_image(np.ascontiguousarray(pixels[:height, :width]), metadata)
    y_hat, header, metadata, runner = _decode_latents(
        _read(data, max_pixels), device, engine, scale, max_pixels, _part(progress, 0, 1 - _TRANSFORM_SHARE)
    )
    pixels = runner.synthesise(y_hat, header.quality, _part(progress, 1 - _TRANSFORM_SHARE, _TRANSFORM_SHARE))
    return to_image(np.ascontiguousarray(pixels[: header.height, : header.width]), metadata)


@_within_memory()
def decode_latents(
    data: bytes, *, device: str = "cpu", engine: str = "auto", max_pixels: int | None = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """y_hat (h, w, M) int32 in sixteenths of the quantisation step: the integers that are the same on every machine."""
    return _decode_latents(data, device, engine, None, max_pixels, None)[0]


@_within_memory()
def bits_map(
    data: bytes, *, device: str = "cpu", engine: str = "auto", max_pixels: int | None = DEFAULT_MAX_PIXELS
) -> dict[str, np.ndarray]:
    """Scale (z, s1, s2, s3) -> bits that its symbols took at each latent, (h, w) float64: where a file's bytes went.

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
) -> tuple[np.ndarray, container.Header, dict[str, bytes], _Engine]:
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
    runner = _engine(weights.find(header.model_id), device, engine)
    stride = STRIDE[finest]
    y_hat = np.empty((*grid(finest, header.latent_height, header.latent_width), runner.config.latent), np.int32)
    tiles = header.tiles
    for i, (row, column, rows, columns) in enumerate(tiles):
        streams = {s: reader.stream(s, i) for s in wanted}
        crcs = {s: header.stream_info(s, i).latents_crc for s in wanted}
        place = slice(row, row + rows), slice(column, column + columns)
        r, c = row // stride, column // stride
        high, wide = grid(finest, rows, columns)
        with runner.lock:
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


def _adder(planes: dict[str, np.ndarray]) -> Callable[[str, np.ndarray], None]:
    def add(scale: str, bits: np.ndarray) -> None:
        planes[scale] += bits

    return add


# --- engines ---------------------------------------------------------------------------------------------------------


class _Engine(Protocol):
    """Transforms, synthesis and latent coder of one model on one device. `lock` guards the exact ops."""

    config: Config
    model_id: bytes
    coder: LatentCoder
    lock: threading.RLock

    def analyse(self, pixels: np.ndarray, quality: Quality, tick: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        """pixels (16 h, 16 w, 3) uint8 -> y (h, w, M) and z (ceil(h/4), ceil(w/4), N), float32."""

    def synthesise(
        self, y_hat: np.ndarray, quality: Quality, tick: Progress | None = None, depth: int = 8
    ) -> np.ndarray:
        """y_hat (h, w, M) int32 in sixteenths -> pixels (16 h, 16 w, 3) of `depth` bits: uint8, or uint16 above 8."""

    def thumbnail(self, y_hat: np.ndarray, quality: Quality, scale: str) -> np.ndarray:
        """An eighth of the picture from y_hat on the grid of scale s2 or s3, uint8: `synthesis.thumbnail_of`."""

    def gradient(
        self, y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray, quality: Quality, tick: Progress | None
    ) -> np.ndarray:
        """The gradient of sum(weight / 2 * (x_hat - x)^2) at y_hat, a quantisation step, (h, w, M) float32.

        y_hat as above, pixels (16 h, 16 w, 3) uint8 are 255 x, weight (16 h, 16 w, 1) float32.
        """


class LightEngine:
    """numpy, with compiled kernels where there are any; onnxruntime for the encoder's transforms."""

    def __init__(self, w: weights.Weights) -> None:
        probe(NUMPY)
        self.config, self.model_id, self.weights = w.config, w.model_id, w
        self.coder = LatentCoder(w.config, loader.exact_ops(w.under("entropy"), w.grids), w.under("tables"))
        self.synthesis = loader.exact_ops(w.synthesis(), w.grids)
        self.lock = threading.RLock()
        self._sessions: dict[str, Any] = {}

    def _session(self, graph: str) -> Any:
        from hpcmcodec.ort import onnxruntime

        with threads.loading:
            if graph not in self._sessions:
                path = str(self.weights.graph(graph))
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 4  # what it would write to standard error is raised as well
                # Spinning threads would go on taking the cores from the numpy code that follows.
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")

                def session(n_threads: int) -> Any:
                    options.intra_op_num_threads = n_threads
                    return onnxruntime.InferenceSession(
                        path, options, providers=["CPUExecutionProvider"], enable_fallback=0
                    )

                try:
                    self._sessions[graph] = session(threads.count())
                except RuntimeError as error:
                    if "pthread_create" not in str(error):
                        raise
                    self._sessions[graph] = session(1)  # the system starts no more threads: the caller's alone
                _sessions_here.add(self._sessions[graph])
            return self._sessions[graph]

    def analyse(self, pixels: np.ndarray, quality: Quality, tick: Progress | None) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"scale8": _factors(self.weights, "g_a.s8", quality), "gain": _factors(self.weights, "gain", quality)}
        session = self._session("analysis")
        return analyse_strips(lambda x: session.run(["y", "z"], {"pixels": x, **inputs}), pixels, self.config, tick)

    def synthesise(
        self, y_hat: np.ndarray, quality: Quality, tick: Progress | None = None, depth: int = 8
    ) -> np.ndarray:
        def run(part: np.ndarray) -> Any:
            with self.lock:
                return synthesise(self.synthesis, self.config, part[None], [quality], depth)[0]

        return synthesise_strips(run, y_hat, self.config, depth, tick)

    def thumbnail(self, y_hat: np.ndarray, quality: Quality, scale: str) -> np.ndarray:
        with self.lock:
            out = thumbnail_of(self.synthesis, self.config, y_hat[None], [quality], scale)[0]
        return np.asarray(out, np.uint8)

    def gradient(
        self, y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray, quality: Quality, tick: Progress | None
    ) -> np.ndarray:
        inputs, session = self._synthesis_factors(quality), self._session("gradient")

        def run(y_hat: np.ndarray, pixels: np.ndarray, weight: np.ndarray) -> Any:
            return session.run(["gradient"], {"y_hat": y_hat, "pixels": pixels, "weight": weight, **inputs})[0]

        return gradient_strips(run, y_hat, pixels, weight, self.config, tick)

    def _synthesis_factors(self, quality: Quality) -> dict[str, np.ndarray]:
        return {
            "scale8": _factors(self.weights, "g_s.s8", quality),
            "ungain": _factors(self.weights, "ungain", quality) * np.float32(2.0**-MEAN_SHIFT),
        }


@lru_cache(maxsize=4)
def _make_engine(name: str, kind: str, device: str) -> _Engine:
    if kind == "light":
        return LightEngine(weights.load(name, transforms=False))
    try:
        from hpcmcodec.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f'device {device} needs {error.name}, which is not installed: pip install "hpcmcodec[torch]"'
        ) from error
    return TorchEngine(weights.load(name), device)


_forget_engines = _make_engine.cache_clear
_sessions_here: weakref.WeakSet[Any] = weakref.WeakSet()


def _begin_anew() -> None:
    """In a child after fork: it makes engines of its own.

    The threads of its parent's sessions are not there, and an engine's lock may be held by a thread that is not there
    either. A session that is destroyed waits for its threads, so these never are, not even as the child ends.
    """
    for session in _sessions_here:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    _forget_engines()


if hasattr(os, "register_at_fork"):  # not Windows
    os.register_at_fork(after_in_child=_begin_anew)


def _engine(model: str, device: str, engine: str) -> _Engine:
    if engine not in ("auto", "light", "torch"):
        raise ValueError(f"engine is auto, light or torch, not {engine!r}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is cpu or cuda, not {device!r}")
    kind = ("light" if device == "cpu" else "torch") if engine == "auto" else engine
    if kind == "light" and device != "cpu":
        raise ValueError("the light engine runs on the CPU alone")
    with threads.loading:
        return _make_engine(model, kind, device)


def _factors(w: weights.Weights, name: str, quality: Quality) -> np.ndarray:
    """Per-channel scales (1, C, 1, 1) at a quality: log-linear between the anchors."""
    table = w.tensors[f"{name}.log_scale"]
    position = quality.unit * (len(table) - 1)
    i = min(int(position), len(table) - 2)
    f = position - i
    return np.exp(table[i] * (1 - f) + table[i + 1] * f).astype(np.float32)[None, :, None, None]


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
