"""The decoder between the container and the engines: streams to latents, latents to pixels, and their checks.

Errors from inside name the tile, the coding step, and what decoded them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hpcmcodec import container, timing
from hpcmcodec.engines.strips import Progress
from hpcmcodec.errors import InputError, IntegrityError
from hpcmcodec.exact.schedule import SCALES, STEPS, STRIDE, grid
from hpcmcodec.model.coder import LatentMismatchError
from hpcmcodec.native import compiled

if TYPE_CHECKING:
    from hpcmcodec.engines.base import Engine

Ticks: TypeAlias = tuple[Progress | None, Progress | None]  # for the transforms, and for coding


def check_complete(reader: container.Reader, scale: str | None) -> None:
    """Raises InputError or IntegrityError where not all is there that decoding up to `scale` (None: the file) takes."""
    if scale is None:
        reader.verify_complete()
    elif len(there := reader.scales()) <= container.STREAM_ORDER.index(scale):
        raise InputError(f"truncated: the file ends before the end of scale {container.STREAM_ORDER[len(there)]}")


def latents_of(
    reader: container.Reader,
    runner: Engine,
    scale: str | None = None,
    progress: Progress | None = None,
    *,
    spent: dict[str, np.ndarray] | None = None,
    finest: str = SCALES[-1],
) -> np.ndarray:
    """y_hat (h, w, M) int32 in sixteenths, from the streams up to `scale`, on the grid of the scale `finest`.

    `spent` holds a plane (h, w) for each scale, to which the bits of the scale's symbols are added.
    """
    header = reader.header
    wanted = container.STREAM_ORDER[: container.STREAM_ORDER.index(scale or SCALES[-1]) + 1]
    stride = STRIDE[finest]
    y_hat = np.empty((*grid(finest, header.latent_height, header.latent_width), runner.config.latent), np.int32)
    tiles = header.tiles
    for i, (row, column, rows, columns) in enumerate(tiles):
        place = slice(row, row + rows), slice(column, column + columns)
        r, c = row // stride, column // stride
        high, wide = grid(finest, rows, columns)
        with runner.lock, timing.phase("entropy path"), _naming(i, runner):
            y_hat[r : r + high, c : c + wide] = runner.coder.decode(
                {s: reader.stream(s, i) for s in wanted},
                reader.verifier(i),
                header.quality,
                rows,
                columns,
                part(progress, i / len(tiles), 1 / len(tiles)),
                None if spent is None else _adder({s: plane[place] for s, plane in spent.items()}),
                finest,
                full=header.full,
            )
    return y_hat


def pixels_of(data: bytes, runner: Engine, ticks: Ticks) -> np.ndarray:
    """What a file shows, as a decoder finds it: pixels (H, W, 3) uint8."""
    reader = container.Reader(data, max_pixels=None, max_side=None)
    header = reader.header
    y_hat = latents_of(reader, runner, progress=ticks[1])
    with timing.phase("transform"):
        return runner.synthesise(y_hat, header.quality, ticks[0])[: header.height, : header.width]


def pixels_crc(pixels: np.ndarray) -> int:
    """CRC-32 of pixels (H, W, 3) uint8, row by row."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


@contextmanager
def _naming(tile: int, runner: Engine) -> Iterator[None]:
    """Names the tile in errors from inside; where latents differ, also says what decoded them and what to try."""
    try:
        yield
    except LatentMismatchError as error:
        where = f"tile {tile}" + (f", coding step {error.step.index + 1} of {len(STEPS)}" if error.step else "")
        raise IntegrityError(
            f"decoded latents of {error.scale} ({where}) differ from the encoder's (CRC mismatch); decoded by "
            f"{what_decodes(runner)}"
        ) from error
    except IntegrityError as error:
        raise IntegrityError(f"tile {tile}, {error}") from error


def what_decodes(runner: Engine) -> str:
    """What has decoded, and what to do where that went wrong, in words."""
    ops = runner.coder.ops
    if isinstance(ops, compiled.KernelOps):
        kernels, what = f"{ops.kernels.variant} kernels", "try HPCM_OPS=reference, and report"
    else:
        kernels, what = "no kernels", "please report"
    return f"the {runner.name} engine with {kernels}: {what} what hpcm doctor says"


def _adder(planes: dict[str, np.ndarray]) -> Callable[[str, np.ndarray], None]:
    def add(scale: str, bits: np.ndarray) -> None:
        planes[scale] += bits

    return add


def halves(progress: Progress | None) -> Ticks:
    """Callbacks for the first and the second half of a work."""
    return part(progress, 0, 0.5), part(progress, 0.5, 0.5)


def part(progress: Progress | None, start: float, share: float) -> Progress | None:
    """A callback for a part of a work, which begins at `start` and takes `share` of it."""
    return None if progress is None else lambda done: progress(start + share * done)
