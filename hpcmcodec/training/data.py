"""Photographs for training, decoded once into one memory-mapped file, and random crops from it.

Crops depend on the generator that is handed in and on nothing else. A run gives each training step a generator of its
own, made from the seed and the number of the training step, so that no position has to be saved and the crops of any
training step can be drawn again.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from hpcmcodec.errors import InputError
from hpcmcodec.training import synthetic

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif"}
SMALLEST_SIDE = 256


def build_cache(out: Path, sources: Sequence[Path], say: Callable[[str], None] = print) -> int:
    """Decode every image of the folders and tar files into a cache; returns how many images it holds.

    out/pixels.bin holds the pixels (H, W, 3) uint8 of all images back to back, out/index.npy a row (offset in bytes,
    H, W) int64 for each. Images that cannot be read are named and left out; those with a side below SMALLEST_SIDE are
    left out silently.

    Raises InputError where no image is left, or a source is neither a folder nor a tar file.
    """
    out.mkdir(parents=True, exist_ok=True)
    index, offset = [], 0
    with (out / "pixels.tmp").open("wb") as f:
        for name, data in (pair for source in sources for pair in _images(source)):
            try:
                with Image.open(io.BytesIO(data)) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                say(f"left out: {name}: {error}")
                continue
            if min(pixels.shape[:2]) >= SMALLEST_SIDE:
                f.write(pixels.tobytes())
                index.append((offset, *pixels.shape[:2]))
                offset += pixels.size
    if not index:
        raise InputError(f"no images of {SMALLEST_SIDE} pixels a side or more in {', '.join(map(str, sources))}")
    np.save(out / "index.npy", np.array(index, np.int64))
    (out / "pixels.tmp").replace(out / "pixels.bin")
    return len(index)


def _images(source: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the image files of a folder or tar file, sorted by name."""
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES):
            yield str(path), path.read_bytes()
        return
    try:
        with tarfile.open(source) as tar:
            members = [m for m in tar.getmembers() if m.isfile() and PurePosixPath(m.name).suffix.lower() in SUFFIXES]
            for member in sorted(members, key=lambda m: m.name):
                file = tar.extractfile(member)
                if file is not None:
                    yield f"{source}: {member.name}", file.read()
    except tarfile.TarError as error:
        raise InputError(f"{source} is neither a folder nor a tar file: {error}") from error


class Crops:
    """Random square crops, flipped, transposed and, with `rescale`, scaled down at random.

    Images are drawn with weight area^0.75: large ones have more to show, but their crops look alike. rescale: lowest
    and highest factor; a crop is then cut with sides 1 / factor times as long, as far as its image reaches, and
    resized.

    Raises InputError where there is no cache, or no image is as large as a crop.
    """

    def __init__(self, cache: Path, rescale: Sequence[float] = ()) -> None:
        if not (cache / "pixels.bin").is_file():
            raise InputError(f"{cache} is no cache of photographs: make one with `cache`")
        self.index = np.load(cache / "index.npy")
        self.data = np.memmap(cache / "pixels.bin", np.uint8, "r")
        self.rescale = tuple(rescale)
        self.of_size = lru_cache(maxsize=None)(self._of_size)

    def _of_size(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the index whose images have sides of at least `size` pixels, and the probability of each."""
        index = self.index[(self.index[:, 1] >= size) & (self.index[:, 2] >= size)]
        if not len(index):
            raise InputError(f"no photograph is {size} pixels a side")
        weight = (index[:, 1] * index[:, 2]).astype(float) ** 0.75
        return index, weight / weight.sum()

    def batch(self, rng: np.random.Generator, n: int, size: int, share: float = 0.0) -> Tensor:
        """n crops (n, 3, size, size) uint8, channels last in memory.

        With probability `share` a crop is synthetic and takes the place of a photograph. The photographs that remain
        do not depend on `share`.
        """
        index, weight = self.of_size(size)
        out = np.empty((n, size, size, 3), np.uint8)
        for i, k in enumerate(rng.choice(len(index), n, p=weight)):
            offset, h, w = (int(v) for v in index[k])
            side = size
            if self.rescale:
                side = max(size, min(h, w, round(size / rng.uniform(self.rescale[0], self.rescale[1]))))
            top, left = int(rng.integers(0, h - side + 1)), int(rng.integers(0, w - side + 1))
            crop = self.data[offset : offset + h * w * 3].reshape(h, w, 3)[top : top + side, left : left + side]
            if side != size:
                crop = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.LANCZOS))
            if rng.random() < 0.5:
                crop = crop[:, ::-1]
            out[i] = crop.transpose(1, 0, 2) if rng.random() < 0.5 else crop
        if share:
            for i, (chance, seed) in enumerate(zip(rng.random(n), rng.integers(2**63, size=n), strict=True)):
                if chance < share:
                    out[i] = synthetic.make(np.random.default_rng(seed), out[i])
        return torch.from_numpy(out).permute(0, 3, 1, 2)


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels uint8 of any shape -> float32 in [0, 1]."""
    return pixels.float().div_(255)


def patches(x: Tensor) -> Tensor:
    """Images (B, C, 16 h, 16 w) -> their patches (B h w, C, 16, 16)."""
    return rearrange(x, "b c (h r) (w s) -> (b h w) c r s", r=16, s=16)


def pictures(folder: Path, side: int = 1 << 16) -> Iterator[np.ndarray]:
    """Every PNG of the folder as (H, W, 3) uint8, cut to at most side x side and to multiples of 16."""
    for path in sorted(folder.glob("*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"))[:side, :side]
        h, w = (n // 16 * 16 for n in pixels.shape[:2])
        yield pixels[:h, :w].copy()


def validation_images(folder: Path, side: int = 512) -> list[Tensor]:
    """`pictures` as (1, 3, H, W) float32 in [0, 1]."""
    return [to_unit(torch.from_numpy(pixels).permute(2, 0, 1)[None]) for pixels in pictures(folder, side)]
