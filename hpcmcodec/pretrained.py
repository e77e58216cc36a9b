"""Packaged models as torch modules: for estimates, as a start for training, and for the torch engine."""

from __future__ import annotations

import torch

from hpcmcodec import weights
from hpcmcodec.errors import IntegrityError
from hpcmcodec.model import fold, parameters
from hpcmcodec.model.family import fold as family_fold
from hpcmcodec.model.family.model import model_of
from hpcmcodec.model.hpcm import HPCM


def load_model(name: str = weights.DEFAULT_MODEL) -> HPCM:
    """A model as a torch module, in eval mode, by its name or its path. Raises what `weights.load` raises."""
    return from_weights(weights.load(name)).eval()


def from_weights(w: weights.Weights) -> HPCM:
    """The torch module of a weights file.

    The tensors of the entropy path that it derives are integer * unit (`<layer>.step`); it codes with the integers.
    Raises IntegrityError where tensors of the encoder's transforms are missing, or not as large as the config says.
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
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise IntegrityError(f"{w.path}: damaged weights ({' '.join(str(error).split())})") from error
    if lacking := [k for k in missing if k.startswith(("g_a.", "h_a."))]:
        raise IntegrityError(f"{w.path}: damaged weights ({lacking[0]} is missing, and the encoder needs it)")
    model.stored = {"entropy": entropy, "tables": w.under("tables")}
    return model
