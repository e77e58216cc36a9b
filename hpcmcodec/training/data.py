"""Photographs for training, decoded once into one memory-mapped file, and random crops from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif"}
SMALLEST_SIDE = 256


def build_cache(out: Path, folders: Sequence[Path]) -> int:
    """Decode every image of the folders into out/pixels.bin (uint8, back to back) and out/index.npy; returns their
    number.
    """
    out.mkdir(parents=True, exist_ok=True)
    index, offset = [], 0
    with (out / "pixels.tmp").open("wb") as f:
        for path in sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            if min(pixels.shape[:2]) >= SMALLEST_SIDE:
                f.write(pixels.tobytes())
                index.append((offset, *pixels.shape[:2]))
                offset += pixels.size
    np.save(out / "index.npy", np.array(index, np.int64))
    (out / "pixels.tmp").replace(out / "pixels.bin")
    return len(index)


class Crops:
    """Random square crops, flipped and transposed at random; images are drawn with weight area^0.75."""

    def __init__(self, cache: Path, size: int, seed: int) -> None:
        index = np.load(cache / "index.npy")
        self.index = index[(index[:, 1] >= size) & (index[:, 2] >= size)]
        self.data = np.memmap(cache / "pixels.bin", np.uint8, "r")
        weight = (self.index[:, 1] * self.index[:, 2]).astype(float) ** 0.75
        self.weight, self.size, self.rng = weight / weight.sum(), size, np.random.default_rng(seed)

    def batch(self, n: int) -> Tensor:
        """(n, 3, size, size) float32 in [0, 1], channels last in memory."""
        s = self.size
        out = np.empty((n, s, s, 3), np.uint8)
        for i, k in enumerate(self.rng.choice(len(self.index), n, p=self.weight)):
            offset, h, w = (int(v) for v in self.index[k])
            top, left = int(self.rng.integers(0, h - s + 1)), int(self.rng.integers(0, w - s + 1))
            crop = self.data[offset : offset + h * w * 3].reshape(h, w, 3)[top : top + s, left : left + s]
            if self.rng.random() < 0.5:
                crop = crop[:, ::-1]
            out[i] = crop.transpose(1, 0, 2) if self.rng.random() < 0.5 else crop
        return torch.from_numpy(out).permute(0, 3, 1, 2).float().div_(255)


def validation_images(folder: Path, side: int = 512) -> list[Tensor]:
    """Every PNG of the folder, cut to at most side x side: (1, 3, H, W) in [0, 1], multiples of 16."""
    images = []
    for path in sorted(folder.glob("*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"))[:side, :side]
        h, w = (n // 16 * 16 for n in pixels.shape[:2])
        images.append(torch.from_numpy(pixels[:h, :w].copy()).permute(2, 0, 1)[None].float() / 255)
    return images
