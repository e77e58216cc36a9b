"""One photograph through one member: encoded, decoded by kernels and by plain numpy, with sizes, checks and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpcmcodec.container import DEFAULT_MAX_PIXELS
from hpcmcodec.errors import IntegrityError
from hpcmcodec.evaluation import sample_photo
from hpcmcodec.evaluation.family.coding import Coder, crc_of, weights_of
from hpcmcodec.evaluation.metrics import psnr_db
from hpcmcodec.image import load, plain

CROP = 256  # pixels a side of the part that grids are fitted to


def run(member: str, image: Path | None) -> Iterator[str]:
    """Lines for people. Raises IntegrityError where the two decoders differ, and what coding raises."""
    path = image or sample_photo("coffee")
    pixels = plain(load(path, max_pixels=DEFAULT_MAX_PIXELS)).pixels
    height, width, _ = pixels.shape
    yield f"{path.name}: {width} x {height} pixels"
    crop = pixels[: min(CROP, height // 16 * 16), : min(CROP, width // 16 * 16)]
    start = time.perf_counter()
    with weights_of(member, [np.ascontiguousarray(crop)]) as (weights, said):
        coder, reference = Coder(weights), Coder(weights, reference=True)
        name = coder.weights.name
        yield f"{name} ({said}): model id {coder.weights.model_id.hex()}, made in {_since(start)}"
        data, seconds = _timed(lambda: coder.encode(pixels))
        yield f"encoded: {len(data):,} bytes, {8 * len(data) / (width * height):.3f} bits per pixel, {seconds:.1f} s"
        shown, seconds = _timed(lambda: coder.decode(data))
        yield f"decoded: PSNR {psnr_db(pixels, shown):.2f} dB, CRC-32 of the pixels {crc_of(shown)}, {seconds:.1f} s"
        again, seconds = _timed(lambda: reference.decode(data))
        yield f"decoded in plain numpy: CRC-32 of the pixels {crc_of(again)}, {seconds:.1f} s"
        if not np.array_equal(shown, again):
            raise IntegrityError(f"{name}: kernels and plain numpy decode different pixels; see what hpcm doctor says")


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"
