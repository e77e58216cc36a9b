"""What the entropy model's parts are worth in bits: exact against float, with the context against without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hpcmcodec.model.config import PRESETS
from hpcmcodec.model.hpcm import HPCM, WithoutContext, bits
from hpcmcodec.training.data import validation_images


def load_state(path: Path) -> HPCM:
    """The EMA of a run (`last.pt`) or of a packed state, in eval mode; a yardstick's run gives a `WithoutContext`."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    kind = WithoutContext if any(k.startswith("head.") for k in state["ema"]) else HPCM
    model = kind(PRESETS[state["preset"]], state["grids"])
    model.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    return model.eval()


@torch.no_grad()
def mean_bpp(model: HPCM, folder: Path, qualities: Sequence[float], *, fake: bool) -> list[float]:
    """Mean estimated bpp over the PNGs of a folder (cut to multiples of 16) at each quality 0..100.

    Rounded symbols, float32, the logistic that training assumes. `fake`: under fake quantisation, which computes what
    coding computes.
    """
    images = validation_images(folder, side=1 << 16)
    ops = model.ops(fake=fake)
    out = []
    for quality in qualities:
        q = torch.tensor([quality / 100])
        rates = []
        for x in images:
            _, likelihoods = model.estimate(*model.analyse(x, q), q, ops=ops)
            rates.append(bits(likelihoods).item() / (x.shape[2] * x.shape[3]))
        out.append(sum(rates) / len(rates))
    return out
