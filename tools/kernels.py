"""Times of each exact operation: the numpy reference, the compiled kernel, and the best that the machine allows.

    python -m tools kernels [--rounds 7] [-o kernels.json]

Operations run at lite's width on the lattices of a Kodak image (32 x 48 positions) and of 12 megapixels (192 x 256), on
one thread. Times are CPU time, the smallest of the rounds, so that other work on the machine counts little. The bound
is the larger of two times:

    bytes: inputs and outputs are read and written once, as int16 (outputs of `head` and wide values as int32), at the
           rate at which numpy copies an array larger than the caches on this machine
    products: the multiplications, at the rate of numpy's matrix products on this machine, in float32 or for Bi-WKV4 in
           float64

The integer dot products of the kernels can be quicker than the float32 products of this bound.

Where torch is installed, Bi-WKV4 for training follows, forward and backward, at the sizes that eight crops of 192
pixels give and at Kodak's: `hpcm::biwkv4` against torch's own operators, both through autograd. Its bytes are those of
float32, its products float64.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from hpcmcodec import threads
from hpcmcodec.errors import UnsupportedError
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.native import loader, selftest
from hpcmcodec.native.compiled import KernelOps
from tools import facts

GRIDS = {"Kodak": (32, 48), "12 MP": (192, 256)}
TRAINING_GRIDS = {"8 x 12 x 12": (8, 144), "8 x 6 x 6": (8, 36), "8 x 3 x 3": (8, 9), "Kodak": (1, 1536)}
WIDTH, OUTPUTS, SECOND = 128, 256, 320  # channels of the carry, of the widest layer, of y


class Row(NamedTuple):
    """One operation at one size; times in seconds of one thread. `bound_is` is "bytes" or "products"."""

    operation: str
    grid: str
    reference: float
    kernel: float
    bound: float
    bound_is: str


class _Work(NamedTuple):
    """The work of an operation at each position: bytes read and written, and multiplications in `dtype`."""

    bytes: int
    products: int
    dtype: type[np.floating] = np.float32


# The multiplications of Bi-WKV4 for each token and channel: 1 for e v; in both directions 2 for states that go on and 2
# for states that come in from the neighbouring blocks; 2 for the token's own terms; 1 for the factor of the grid; and
# 1 + 4 for computing the states again at the ends of the blocks.
_WKV_PRODUCTS = 1 + 2 * (2 + 2) + 2 + 1 + (1 + 4)


# For training, forward takes 24 multiplications: e, e v, two states that go on and two own terms. Backward takes 45:
# these again, and the sums over the gradients with their products. Forward reads or writes 3 arrays (k, v and y),
# backward 5 (k, v, g and the gradients by k and v).
_TRAINING = _Work(4 * (3 + 5) * WIDTH, (24 + 45) * WIDTH, np.float64)

WORK = {
    "linear": _Work(2 * (WIDTH + OUTPUTS), WIDTH * OUTPUTS),
    "linear, two inputs": _Work(2 * (WIDTH + SECOND + OUTPUTS), (WIDTH + SECOND) * OUTPUTS),
    "linear, one input pooled": _Work(2 * (WIDTH + OUTPUTS), WIDTH * OUTPUTS),
    "head": _Work(2 * (WIDTH + SECOND) + 4 * 2 * OUTPUTS, (WIDTH + SECOND) * 2 * OUTPUTS),
    "depthwise": _Work(4 * WIDTH, 9 * WIDTH),
    "norm": _Work(4 * WIDTH, 0),
    "channel_scale": _Work(4 * WIDTH, 0),
    "place": _Work(4 * WIDTH, 0),
    "wkv": _Work(6 * WIDTH, _WKV_PRODUCTS * WIDTH, np.float64),
    "lrelu": _Work(4 * WIDTH, 0),
    "relu_squared": _Work(4 * WIDTH, 0),
    "gate": _Work(6 * WIDTH, 0),
    "blend": _Work(6 * WIDTH, 0),
    "add": _Work(6 * WIDTH, 0),
    "pool": _Work(2 * WIDTH, 0),
    "latent_code": _Work(6 * WIDTH, 0),
    "block": _Work(4 * WIDTH, (9 + 4 * WIDTH) * WIDTH),
    "block, wide": _Work(8 * WIDTH, (9 + 4 * WIDTH) * WIDTH),
    "around": _Work(2 * (len(selftest.STEP.groups) + 1) * WIDTH, 9 * WIDTH),
}


@click.command("kernels")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1), help="Repetitions of each.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="JSON", help="Also write the times.")
def command(rounds: int, output: Path | None) -> None:
    """Each operation of the exact path: the numpy reference, the compiled kernel, and the machine's bound."""
    status = loader.find(background=False)
    if status.kernels is None:
        raise UnsupportedError(status.note() or "HPCM_OPS=reference leaves nothing to compare")
    kernels = status.kernels
    kernels.set_threads(1)
    tensors = selftest.layers(WIDTH, OUTPUTS, SECOND)
    try:
        rates = Rates(rounds)
        rows = measure(KernelOps(kernels, tensors, selftest.GRIDS), rates, rounds)
        if importlib.util.find_spec("torch"):
            rows += measure_training(rates, rounds)
    finally:
        kernels.set_threads(threads.count())
    about = facts.about(f"python -m tools kernels --rounds {rounds}")
    click.echo(f"Microseconds of one thread on {about['machine']}, {kernels.variant}, numpy {np.__version__}\n")
    click.echo(markdown(rows))
    if output:
        facts.write(output, about | {"instructions": kernels.variant, "rows": [row._asdict() for row in rows]})


class Rates:
    """What this machine can do in a second: bytes copied, and multiplications of each type."""

    def __init__(self, rounds: int) -> None:
        self.copying = copied_bytes_per_second(rounds)
        self.multiplying = {dtype: products_per_second(dtype, rounds) for dtype in (np.float32, np.float64)}

    def bound(self, work: _Work, positions: int) -> tuple[float, str]:
        """The bound of an operation in seconds, and whether "bytes" or "products" set it."""
        by_bytes = positions * work.bytes / self.copying
        by_products = positions * work.products / self.multiplying[work.dtype]
        return max(by_bytes, by_products), "products" if by_products > by_bytes else "bytes"


def measure(ops: KernelOps, rates: Rates, rounds: int) -> list[Row]:
    """Times of every operation at both sizes, of the kernels and of the reference with the same tensors."""
    reference = ExactOps(NUMPY, ops.tensors, ops.grids)
    rows = []
    for grid, (height, width) in GRIDS.items():
        sizes = (1, height, width, WIDTH, OUTPUTS, SECOND)
        ours, theirs = selftest.cases(*sizes, dtype=np.int16), selftest.cases(*sizes)
        for name, work in WORK.items():
            times = best(partial(theirs[name], reference), rounds), best(partial(ours[name], ops), rounds)
            rows.append(Row(name, grid, *times, *rates.bound(work, height * width)))
    return rows


def measure_training(rates: Rates, rounds: int) -> list[Row]:
    """Times of Bi-WKV4, forward and backward on float32 tensors: torch's own operators, and `hpcm::biwkv4`."""
    import torch

    from hpcmcodec.native import torch_ops

    before, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for grid, (batch, tokens) in TRAINING_GRIDS.items():
            k, v, g = torch.randn((3, batch, tokens, WIDTH), generator=torch.Generator().manual_seed(0))
            inputs = [
                t.requires_grad_() for t in (k, v, torch.linspace(0.5, 15.5, WIDTH), torch.linspace(-2, 2, WIDTH))
            ]

            def step(function: Callable[..., torch.Tensor], inputs: list[torch.Tensor], g: torch.Tensor) -> None:
                torch.autograd.grad(function(*inputs), inputs, g)

            theirs, ours = (best(partial(step, f, inputs, g), rounds) for f in (torch_ops.in_torch, torch_ops.biwkv4))
            rows.append(Row("Bi-WKV4, training", grid, theirs, ours, *rates.bound(_TRAINING, batch * tokens)))
    finally:
        torch.set_num_threads(before)
    return rows


def best(call: Callable[[], object], rounds: int) -> float:
    """The smallest CPU time of a call over the rounds, in seconds.

    A first call is not counted. A round repeats the call until it has taken a millisecond.
    """
    call()
    repeat = 1
    while True:
        start = time.process_time()
        for _ in range(repeat):
            call()
        if time.process_time() - start > 1e-3:
            break
        repeat *= 2
    times = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(repeat):
            call()
        times.append((time.process_time() - start) / repeat)
    return min(times)


def copied_bytes_per_second(rounds: int) -> float:
    """Bytes read plus bytes written in a second while 128 MiB are copied."""
    source = np.ones(1 << 27, np.uint8)
    target = np.empty_like(source)
    return 2 * len(source) / best(partial(np.copyto, target, source), rounds)


def products_per_second(dtype: type[np.floating], rounds: int) -> float:
    """Multiplications a second in a matrix product (1536, WIDTH) x (WIDTH, OUTPUTS) of numpy."""
    a, b = np.ones((1536, WIDTH), dtype), np.ones((WIDTH, OUTPUTS), dtype)
    out = np.empty((1536, OUTPUTS), dtype)
    return out.size * WIDTH / best(partial(np.matmul, a, b, out=out), rounds)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with times in microseconds."""
    lines = [
        "| operation | grid | reference | kernel | times quicker | bound | of the bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.operation} | {r.grid} | {1e6 * r.reference:.0f} | {1e6 * r.kernel:.0f} | "
            f"{r.reference / r.kernel:.1f} | {1e6 * r.bound:.0f} ({r.bound_is}) | {r.kernel / r.bound:.2f} |"
        )
    return "\n".join(lines)
