"""The decoder between the container and the engines: streams to latents, latents to pixels, and their checks.

Errors from inside name the tile, the coding step, and what decoded them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from hpcmcodec import container, timing
from hpcmcodec.container import LATENT
from hpcmcodec.engines.strips import Progress
from hpcmcodec.errors import CancelledError, InputError, IntegrityError
from hpcmcodec.exact.schedule import SCALES, STEPS, STRIDE, grid
from hpcmcodec.model.coder import LatentMismatchError
from hpcmcodec.model.synthesis import THUMBNAIL, halo
from hpcmcodec.native import compiled

if TYPE_CHECKING:
    from hpcmcodec.engines.base import Engine

Ticks: TypeAlias = tuple[Progress | None, Progress | None]  # for the transforms, and for coding
Region: TypeAlias = tuple[int, int, int, int]  # x and y of its corner at the top left, width and height, in pixels


class Window(NamedTuple):
    """A part of the plane y, in positions."""

    row: int
    column: int
    rows: int
    columns: int


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
    window: Window | None = None,
) -> np.ndarray:
    """y_hat (h, w, M) int32 in sixteenths, from the streams up to `scale`, on the grid of the scale `finest`.

    `spent` holds a plane (h, w) for each scale, to which the bits of the scale's symbols are added. `window` is the
    part of that grid that is wanted, (rows, columns, M): tiles outside are not decoded. None is all of it.
    """
    header = reader.header
    wanted = container.STREAM_ORDER[: container.STREAM_ORDER.index(scale or SCALES[-1]) + 1]
    stride = STRIDE[finest]
    window = window or Window(0, 0, *grid(finest, header.latent_height, header.latent_width))
    y_hat = np.empty((window.rows, window.columns, runner.config.latent), np.int32)
    tiles = [(i, tile) for i, tile in enumerate(header.tiles) if _meets(tile, stride, window)]
    for n, (i, (row, column, rows, columns)) in enumerate(tiles):
        place = slice(row, row + rows), slice(column, column + columns)
        r, c = row // stride - window.row, column // stride - window.column  # where the tile begins in the window
        high, wide = grid(finest, rows, columns)
        with runner.lock, timing.phase("entropy path"), _naming(i, runner):
            decoded = runner.coder.decode(
                {s: reader.stream(s, i) for s in wanted},
                reader.verifier(i),
                header.quality,
                rows,
                columns,
                part(progress, n / len(tiles), 1 / len(tiles)),
                None if spent is None else _adder({s: plane[place] for s, plane in spent.items()}),
                finest,
                full=header.full,
            )
        inside = decoded[max(0, -r) : window.rows - r, max(0, -c) : window.columns - c]
        y_hat[max(0, r) : r + high, max(0, c) : c + wide] = inside
    return y_hat


def _meets(tile: tuple[int, int, int, int], stride: int, window: Window) -> bool:
    """Whether a tile of y has positions in `window`, which counts in steps of `stride`."""
    row, column, rows, columns = (-(-n // stride) for n in tile)
    below, behind = window.row + window.rows, window.column + window.columns
    return window.row < row + rows and row < below and window.column < column + columns and column < behind


def pixels_of(
    reader: container.Reader,
    runner: Engine,
    ticks: Ticks,
    scale: str | None = None,
    depth: int = 8,
    region: Region | None = None,
) -> np.ndarray:
    """What a file shows, as a decoder finds it: pixels (H, W, 3) of `depth` bits, contiguous.

    region: decode this part of the picture alone, with the tiles and the latents that its pixels depend on.

    Raises what `latents_of` raises, and ValueError where the region is not inside the picture.
    """
    header = reader.header
    region = region or (0, 0, header.width, header.height)
    check_region(region, header.width, header.height)
    left, top, width, height = region
    window = _around(region, header, halo(runner.config))
    y_hat = latents_of(reader, runner, scale, ticks[1], window=window)
    with timing.phase("transform"):
        pixels = runner.synthesise(y_hat, header.quality, ticks[0], depth)
    top, left = top - LATENT * window.row, left - LATENT * window.column
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def check_region(region: Region, width: int, height: int) -> None:
    """Raises ValueError where a region is empty or not inside a picture of `width` x `height` pixels."""
    x, y, across, down = region
    if min(x, y) < 0 or min(across, down) < 1 or x + across > width or y + down > height:
        raise ValueError(
            f"region {','.join(map(str, region))} (x, y, width, height) is not inside the picture of {width}x{height} "
            "pixels, or is empty"
        )


def _around(region: Region, header: container.Header, reach: int) -> Window:
    """The positions of y in which a region lies, and `reach` more on each side, as far as there are any."""
    x, y, width, height = region
    row, column = max(0, y // LATENT - reach), max(0, x // LATENT - reach)
    bottom = min(header.latent_height, -(-(y + height) // LATENT) + reach)
    right = min(header.latent_width, -(-(x + width) // LATENT) + reach)
    return Window(row, column, bottom - row, right - column)


def thumbnail_of(reader: container.Reader, runner: Engine, scale: str | None, progress: Progress | None) -> np.ndarray:
    """Pixels (ceil(H / 8), ceil(W / 8), 3) uint8, from the streams up to `scale`."""
    header, finest = reader.header, "s2" if scale in ("s1", "s2") else "s3"
    y_hat = latents_of(reader, runner, scale, progress, finest=finest)
    with timing.phase("transform"):
        pixels = runner.thumbnail(y_hat, header.quality, finest)
    height, width = (-(-n * THUMBNAIL // LATENT) for n in (header.height, header.width))
    return np.ascontiguousarray(pixels[:height, :width])


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
    """A callback for a part of a work, which begins at `start` and takes `share` of it.

    It raises `CancelledError` where `progress` returns False.
    """
    if progress is None:
        return None

    def tick(done: float) -> None:
        if progress(start + share * done) is False:
            raise CancelledError("cancelled: the callback progress has returned False")

    return tick
