"""Packaged models as torch modules: for estimates, as a start for training, and for the torch engine."""

from __future__ import annotations

import torch

from hpcmcodec import weights
from hpcmcodec.model import fold, parameters
from hpcmcodec.model.family import fold as family_fold
from hpcmcodec.model.family.model import model_of
from hpcmcodec.model.hpcm import HPCM


def load_model(name: str = weights.DEFAULT_MODEL) -> HPCM:
    """A packaged model as a torch module, in eval mode. Raises UnsupportedError for an unknown name."""
    return from_weights(weights.load(name)).eval()


def from_weights(w: weights.Weights) -> HPCM:
    """The torch module of a weights file.

    The tensors of the entropy path that it derives are integer * unit (`<layer>.step`); it codes with the integers.
    """
    with torch.random.fork_rng(devices=[]):  # drawing initial values leaves the caller's generator alone
        model = model_of(w.config, w.grids).float()
    entropy = w.under("entropy")
    transforms = {k: v for k, v in w.tensors.items() if k.startswith(("g_a.", "h_a.", "gain.", "z_prior."))}
    folded = family_fold if w.config.flow == "hpcm" else fold
    transforms |= folded.training(w.config, w.synthesis())
    state = {k: torch.from_numpy(v).float() for k, v in transforms.items()}
    for layer in model.layers.values():
        state |= {f"raw.{k}": v for k, v in parameters.from_stored(layer, entropy, w.grids).items()}
    model.load_state_dict(state, strict=False)
    model.stored = {"entropy": entropy, "tables": w.under("tables")}
    return model
