"""Bi-WKV4 as an operator of torch, `hpcm::biwkv4`, with its gradients, computed by the compiled kernels.

Importing this module registers the operators with `torch.library`; `biwkv4` below is what models call. The kernels
compute in float64 whatever the tensors hold, sum in a fixed order and use no atomics, so results do not depend on the
number of threads. They are built without torch's headers: pointers go through ctypes, so one library serves every
version of torch.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hpcmcodec.errors import UnsupportedError
from hpcmcodec.exact.constants import EXPONENT_MAX
from hpcmcodec.native import abi, cuda, loader
from hpcmcodec.native.library import Kernels

__all__ = ["biwkv4", "in_torch", "kernels_for"]

_REALS = {torch.float32: abi.FLOAT32, torch.bfloat16: abi.BFLOAT16, torch.float64: abi.FLOAT64}
_LIBRARY = torch.library.Library("hpcm", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("biwkv4(Tensor k, Tensor v, Tensor decay, Tensor boost) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "biwkv4_gradients(Tensor g, Tensor k, Tensor v, Tensor decay, Tensor boost) -> (Tensor, Tensor, Tensor, Tensor)"
)


def biwkv4(k: Tensor, v: Tensor, decay: Tensor, boost: Tensor) -> Tensor:
    """Bi-WKV4 (formula: exact/biwkv.py), differentiable, by kernels where there are any, else by `in_torch`.

    k, v (B, T, C), floating; decay, boost (C,). Returns (B, T, C), float64 for float64 inputs, else float32. decay and
    boost have gradients only within their clamps, 0..16 and +-16. Keys should stay within +-80, for `in_torch`.
    """
    real = k.dtype if k.dtype == v.dtype and k.dtype in _REALS else torch.float32
    if kernels_for(k.device) is None:
        wide = torch.float32 if real == torch.bfloat16 else real
        out: Tensor = in_torch(k.to(wide), v.to(wide), decay, boost)
    else:
        out = torch.ops.hpcm.biwkv4(k.to(real), v.to(real), decay, boost)
    return out


def in_torch(k: Tensor, v: Tensor, decay: Tensor, boost: Tensor) -> Tensor:
    """Bi-WKV4 in torch's own operators, differentiable: k, v (B, T, C), decay and boost (C,) to (B, T, C).

    Since w T = decay <= 16, rescaling each term by exp(+-i w) keeps cumulative sums within float32, and no kernel or
    running maximum is needed: sum_{i<t} exp(-(t-1-i) w + k_i) = exp(-(t-1) w) * sum_{i<t} exp(k_i + i w).
    """
    tokens = k.shape[1]
    w = decay.clamp(0, EXPONENT_MAX) / tokens
    u = boost.clamp(-EXPONENT_MAX, EXPONENT_MAX) / tokens
    ramp = torch.arange(tokens, device=k.device, dtype=k.dtype)[:, None] * w  # (T, C): i w
    e = k.exp()
    pair = torch.cat([e * v, e], -1)
    grow, shrink = ramp.exp().repeat(1, 2), (-ramp).exp().repeat(1, 2)
    step = w.exp().repeat(2)
    left_terms = pair * grow
    left = (left_terms.cumsum(1) - left_terms) * (shrink * step)
    right_terms = pair * shrink
    right = (right_terms.flip(1).cumsum(1).flip(1) - right_terms) * (grow * step)
    total = left + right + pair * u.exp().repeat(2)
    numerator, denominator = total.chunk(2, -1)
    out: Tensor = numerator / denominator
    return out


def kernels_for(device: torch.device) -> Kernels | None:
    """The kernels for tensors of this device, by HPCM_OPS; None where there are none.

    They are looked for once per process, so that a training run computes alike from its first training step to its
    last. Raises UnsupportedError where HPCM_OPS forces kernels that are not there.
    """
    if device.type not in ("cpu", "cuda"):
        return None
    return _found(loader.choice(), device.type, device.index or 0)


@cache
def _found(choice: str, kind: str, index: int) -> Kernels | None:
    if kind == "cpu":
        return None if choice == "cuda" else loader.find().kernels
    if choice not in ("auto", "cuda"):
        return None
    found = cuda.find(index, wait=True)
    if found.kernels is None:
        why = f"no CUDA kernels: {'; '.join(found.reasons)}"
        if choice == "cuda":
            raise UnsupportedError(f"HPCM_OPS=cuda, but there are {why}")
        warnings.warn(f"{why}; Bi-WKV4 runs in torch's own operators", RuntimeWarning, stacklevel=2)
    return found.kernels


def _check(k: Tensor, v: Tensor, decay: Tensor, boost: Tensor) -> None:
    if k.dim() != 3 or k.shape != v.shape or k.shape[1] < 1 or {decay.shape, boost.shape} != {k.shape[2:]}:
        raise ValueError(
            f"biwkv4 takes k, v (B, T, C) and decay, boost (C,), T >= 1; these are {tuple(k.shape)}, {tuple(v.shape)}, "
            f"{tuple(decay.shape)}, {tuple(boost.shape)}"
        )
    if k.dtype != v.dtype or k.dtype not in _REALS:
        raise TypeError(f"biwkv4 takes float32, bfloat16 or float64, k and v alike; these are {k.dtype} and {v.dtype}")


def _result(k: Tensor) -> Tensor:
    return torch.empty_like(
        k, dtype=torch.float64 if k.dtype == torch.float64 else torch.float32, memory_format=torch.contiguous_format
    )


def _use(device: torch.device) -> Kernels:
    kernels = kernels_for(device)
    if kernels is None:
        raise UnsupportedError(f"hpcm::biwkv4 has no kernels on {device} with HPCM_OPS={loader.choice()}")
    kernels.set_threads(torch.get_num_threads())
    return kernels


def _ready(*tensors: Tensor) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


def _call(k: Tensor, v: Tensor, decay: Tensor, boost: Tensor, **others: Tensor) -> abi.Biwkv4:
    batch, tokens, channels = k.shape
    tensors = {"k": k, "v": v, "decay": decay, "boost": boost, **others}
    at = {name: t.data_ptr() for name, t in tensors.items()}
    return abi.Biwkv4(batch=batch, tokens=tokens, real=_REALS[k.dtype], channels=channels, **at)


def _called(failed: int) -> None:
    if failed:
        raise MemoryError("biwkv4: no memory for the sums of a sequence")


def _forward(k: Tensor, v: Tensor, decay: Tensor, boost: Tensor) -> Tensor:
    _check(k, v, decay, boost)
    kernels = _use(k.device)
    k, v, d, u = _ready(k, v, decay.double(), boost.double())
    y = _result(k)
    _called(kernels.float_biwkv4(_call(k, v, d, u, y=y)))
    return y


def _gradients(g: Tensor, k: Tensor, v: Tensor, decay: Tensor, boost: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(k, v, decay, boost)
    kernels = _use(k.device)
    g, k, v, d, u = _ready(g, k, v, decay.double(), boost.double())
    gk, gv, gd, gu = (torch.empty_like(t) for t in (k, v, d, u))
    sums = d.new_empty((k.shape[0], 2, k.shape[2]))
    call = _call(k, v, d, u, g=g, gk=gk, gv=gv, sums=sums)
    _called(kernels.float_biwkv4_gradients(call, gd.data_ptr(), gu.data_ptr()))
    return gk, gv, gd.to(decay.dtype), gu.to(boost.dtype)


def _forward_shapes(k: Tensor, v: Tensor, decay: Tensor, boost: Tensor) -> Tensor:
    return _result(k)


def _gradient_shapes(
    g: Tensor, k: Tensor, v: Tensor, decay: Tensor, boost: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_k, of_v = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (k, v))
    return of_k, of_v, torch.empty_like(decay), torch.empty_like(boost)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.hpcm.biwkv4_gradients(g, *ctx.saved_tensors)
    return gradients


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("biwkv4", _forward, _device)  # type: ignore[no-untyped-call]
    _LIBRARY.impl("biwkv4_gradients", _gradients, _device)  # type: ignore[no-untyped-call]
torch.library.register_fake("hpcm::biwkv4", _forward_shapes, lib=_LIBRARY)
torch.library.register_fake("hpcm::biwkv4_gradients", _gradient_shapes, lib=_LIBRARY)
torch.library.register_autograd("hpcm::biwkv4", _backward, setup_context=_save, lib=_LIBRARY)
