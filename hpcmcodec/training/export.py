"""From a training run to the weights that ship: integers on fitted grids, fitted tables, float16 transforms,
onnxruntime graphs.

The grids are fitted anew (`fit_grids`), because activations go on moving while the grids of a run stay as they are.
The tables are fitted to what coding really produces. The exact path runs over photographs at many qualities; the
magnitudes of y's symbols are counted for each level, the symbols of z for each channel and band of qualities. Both
counts are blended with what training assumed, which decides where counts are few.

A graph holds no weights: Cast nodes read them as float16 from the safetensors file, at their offsets. The files get
their final names only after they have been read back and compared with the trained model.
"""

from __future__ import annotations

import copy
import json
import math
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcmcodec import checksums, weights
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import LEVELS, MEAN_SHIFT
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.model.config import Config
from hpcmcodec.model.entropy import (
    Z_BANDS,
    factorised_tables,
    grids_at,
    logistic_magnitudes,
    pack_tables,
    symmetric_table,
    z_tables_of,
)
from hpcmcodec.model.float_ops import FakeOps
from hpcmcodec.model.hpcm import FIXED_GRIDS, HPCM, Z_EDGES, Z_REACH
from hpcmcodec.pretrained import from_weights
from hpcmcodec.quality import Quality
from hpcmcodec.training import stages
from hpcmcodec.training.data import Crops, to_unit

OPSET = 18
Z_PRIOR_COUNTS = 100.0  # in each channel of a band, the trained prior weighs as many counted symbols of z
PRIOR_COUNTS = 2000.0  # in each level, the logistic weighs as many counted symbols of y
TAIL = 2.0**-15  # a table ends where less probability than this is left, which goes to the escape
# How far rounding to float16 and integers may move results from the trained model's: relative rms error of y, relative
# difference in bits, mean difference of pixel values (in 1/255), relative rms error of the gradient.
LATENT_ERROR, RATE_ERROR, PIXEL_ERROR, GRADIENT_ERROR = 0.02, 0.1, 0.5, 0.01
CHECKED = 4  # number of photographs that the files are checked on
TRANSFORMS = ("g_a.", "g_s.", "h_a.")


class _AnalysisGraph(nn.Module):
    def __init__(self, model: HPCM) -> None:
        super().__init__()
        self.g_a, self.h_a = model.g_a, model.h_a

    def forward(self, pixels: Tensor, scale8: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.permute(2, 0, 1)[None].float() * (1 / 255)
        y = self.g_a(x, scale8) * gain
        z = self.h_a(y)
        return y[0].permute(1, 2, 0), z[0].permute(1, 2, 0)


class _SynthesisGraph(nn.Module):
    def __init__(self, model: HPCM) -> None:
        super().__init__()
        self.g_s = model.g_s

    def forward(self, y_hat: Tensor, scale8: Tensor, ungain: Tensor) -> Tensor:
        x_hat = self.g_s(y_hat.permute(2, 0, 1)[None].float() * ungain, scale8)
        return (x_hat[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8)


class _GradientGraph(nn.Module):
    def __init__(self, model: HPCM) -> None:
        super().__init__()
        self.g_s = model.g_s

    def forward(self, y_hat: Tensor, pixels: Tensor, weight: Tensor, scale8: Tensor, ungain: Tensor) -> Tensor:
        y, x, w = (t.permute(2, 0, 1)[None] for t in (y_hat, pixels, weight))
        g = self.g_s.error_gradient(y.float() * ungain, scale8, x.float() * (1 / 255), w)
        return (g * ungain * 2**MEAN_SHIFT)[0].permute(1, 2, 0)


def export(
    model: HPCM,
    name: str,
    out: Path,
    photographs: Iterable[tuple[np.ndarray, Quality]],
) -> bytes:
    """Write `out/name.safetensors`, its three graphs and their digests; returns the model id.

    `model` is changed: it gets the fitted grids and the rounded transforms.
    photographs: pairs of pixels (16 h, 16 w, 3) uint8 and a quality, to which grids and tables are fitted and on which
    the files are checked.

    Raises IntegrityError where the written files compute something else than the model; nothing is replaced then.
    """
    trained, photographs = copy.deepcopy(model).eval(), list(photographs)
    model.grids = fit_grids(trained, photographs)
    integers = model.integers()
    tensors: dict[str, np.ndarray] = {f"entropy.{k}": v for k, v in integers.items()}
    for key, value in model.state_dict().items():
        if key.startswith(TRANSFORMS) and not key.endswith("log_scale"):
            tensors[key] = value.half().numpy()
        elif key.endswith("log_scale") or key.startswith("z_prior."):
            tensors[key] = value.numpy()
    # Everything below sees the transforms as they ship, rounded to float16.
    model.load_state_dict(
        {k: torch.from_numpy(v).float() for k, v in tensors.items() if not k.startswith("entropy.")}, strict=False
    )
    tables = fit_tables(model, integers, photographs)
    tensors |= {f"tables.{k}": v for k, v in tables.items()}
    model_id = weights.compute_model_id(model.config, model.grids, tensors)
    metadata = {
        "format": weights.FORMAT,
        "name": name,
        "config": model.config.to_json(),
        "grids": weights.canonical_json(model.grids),
        "model_id": model_id.hex(),
    }
    out.mkdir(parents=True, exist_ok=True)
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as folder:
        path = Path(folder) / f"{name}.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata=metadata)
        path.chmod(0o644)  # safetensors makes files for their owner alone
        shipped = from_weights(weights.load_file(path)).eval()
        for graph, module, example, axes in _graphs(shipped):
            write_graph(module, example, axes, path, path.with_name(f"{name}.{graph}.onnx"), graph)
        check(trained, weights.load_file(path), photographs[:: -(-len(photographs) // CHECKED) or 1])
        written = sorted(Path(folder).iterdir())
        for file in written:
            file.replace(out / file.name)
        # The list is written last: until then an older list refuses files that a killed run has replaced in part.
        checksums.write(out, [file.name for file in written])
    return model_id


@torch.no_grad()
def check(trained: HPCM, w: weights.Weights, photographs: Sequence[tuple[np.ndarray, Quality]]) -> None:
    """Compare weights and their graphs with the trained model, on photographs as in `export`.

    Raises IntegrityError where latents, bits, pixels or gradients of all photographs together differ from the trained
    model's by more than rounding explains.
    """
    engine, shipped = LightEngine(w), from_weights(w).eval()
    derived, integers = shipped.derived(), w.under("entropy")
    sums = np.zeros(4)  # squares of y and of its errors; bits of y in the trained model and with the integers
    differences: list[float] = []
    gradients = np.zeros(2)  # squares of the gradients and of their errors
    for pixels, quality in photographs:
        x, q = _model_inputs(pixels, quality)
        y, z = trained.analyse(x, q)
        found, _ = engine.analyse(pixels, quality, None)
        y_hat, assumed = trained.estimate(y, z, q)
        ops = FakeOps(derived, grids_at(w.grids, quality), integers)
        _, exact = shipped.estimate(y, z, q, ops=ops)
        squares = (np.square(v).sum() for v in (y.numpy(), found - y[0].numpy()))
        sums += [*squares, *(-float(torch.log2(v["y"]).sum()) for v in (assumed, exact))]
        codes = (y_hat * 2**MEAN_SHIFT).round().int()
        coded = codes.float() * 2.0**-MEAN_SHIFT
        x_hat = trained.synthesise(coded, q)[0].permute(1, 2, 0)
        wanted = (x_hat * 255).round().clamp(0, 255).numpy()
        differences.append(float(np.abs(engine.synthesise(codes[0].numpy(), quality, None) - wanted).mean()))
        gradient = _error_gradient(trained, coded, x, q)
        weight = np.ones((*pixels.shape[:2], 1), np.float32)
        error = engine.gradient(codes[0].numpy(), pixels, weight, quality, None) - gradient
        gradients += [np.square(v).sum() for v in (gradient, error)]
    if not photographs:
        return
    for what, error, limit in (
        ("latents", (sums[1] / sums[0]) ** 0.5, LATENT_ERROR),
        ("bits", abs(sums[3] / sums[2] - 1), RATE_ERROR),
        ("pixels", max(differences), PIXEL_ERROR),
        ("gradients", (gradients[1] / gradients[0]) ** 0.5, GRADIENT_ERROR),
    ):
        if not error <= limit:
            raise IntegrityError(
                f"{w.name} was not written: {what} are {error:.3g} off the trained model's; rounding explains {limit:g}"
            )


@torch.enable_grad()
def _error_gradient(model: HPCM, y_hat: Tensor, x: Tensor, q: Tensor) -> np.ndarray:
    """`HPCM.error_gradient` of one image at weight 1, by autograd."""
    y_hat.requires_grad_()
    x_hat = model.synthesise(y_hat, q)
    error = x_hat + (x_hat.clamp(0, 1) - x_hat).detach() - x
    (gradient,) = torch.autograd.grad(error.square().sum() / 2, y_hat)
    return gradient[0].numpy()


def _model_inputs(pixels: np.ndarray, quality: Quality) -> tuple[Tensor, Tensor]:
    """Pixels (H, W, 3) uint8 and a quality -> x (1, 3, H, W) in [0, 1] and q (1,) in [0, 1]."""
    return to_unit(torch.from_numpy(pixels).permute(2, 0, 1)[None]), torch.tensor([quality.unit])


def crops_at_all_qualities(cache: Path, n: int, side: int = 384) -> Iterator[tuple[np.ndarray, Quality]]:
    """n random crops (side, side, 3) uint8, their qualities spread evenly over the range."""
    crops, rng = Crops(cache), np.random.default_rng(1)
    for i in range(n):
        yield crops.batch(rng, 1, side)[0].permute(1, 2, 0).numpy(), Quality.of_unit(i / max(1, n - 1))


def fit_grids(model: HPCM, photographs: Iterable[tuple[np.ndarray, Quality]]) -> dict[str, int]:
    """Exponents of the grids for coding, by name. photographs: as in `export`.

    Each grid is as fine as possible while, in every photograph, 99.9% of its values stay within 0.7 of the clamp. No
    grid is coarser than in training, since the network may depend on its clamp.
    """
    least: dict[str, float] = {}
    for pixels, quality in photographs:
        finer = grids_at(model.grids, quality)
        for grid, peak in stages.peaks(model, *_model_inputs(pixels, quality), False, 0.999).items():
            e = stages.room(peak, 0.7) - (finer[grid] - model.grids[grid])
            least[grid] = min(least.get(grid, e), e)
    return {g: e if g in FIXED_GRIDS else max(e, math.floor(least.get(g, e))) for g, e in model.grids.items()}


def fit_tables(
    model: HPCM, integers: Mapping[str, np.ndarray], photographs: Iterable[tuple[np.ndarray, Quality]]
) -> dict[str, np.ndarray]:
    """Tables of z and y by name (`z.cdf`, `y.cdf`, ...), counted by coding the photographs on the exact path."""
    first, cdf = model.tables(), model.z_cdf()
    below, symbols = np.zeros((Z_BANDS * len(cdf), len(Z_EDGES))), np.zeros((Z_BANDS * len(cdf), 1))
    coder = _Counting(model.config, ExactOps(NUMPY, integers, model.grids), first)
    for pixels, quality in photographs:
        with torch.no_grad():
            y, z = model.analyse(*_model_inputs(pixels, quality))
        coder.encode(y[0].numpy(), z[0].numpy(), quality)
        z_hat, at = np.rint(z[0].numpy()).reshape(-1, len(cdf)), z_tables_of(quality, len(cdf))
        below[at] += (z_hat[:, :, None] < Z_EDGES).sum(0)
        symbols[at] += len(z_hat)
    blended = (Z_PRIOR_COUNTS * np.tile(cdf, (Z_BANDS, 1)) + below) / (Z_PRIOR_COUNTS + symbols)
    rows = []
    for level in range(LEVELS):
        assumed = logistic_magnitudes(level)
        counts = np.append(coder.counts[level, : len(assumed) - 1], coder.counts[level, len(assumed) - 1 :].sum())
        p = counts + PRIOR_COUNTS * assumed / assumed.sum()
        p /= p.sum()
        beyond = p[::-1].cumsum()[::-1]  # probability of |v| >= r
        reach = int(np.flatnonzero(beyond > TAIL)[-1])
        reach = max(1, min(reach, len(p) - 2))
        rows.append(symmetric_table(np.append(p[: reach + 1], beyond[reach + 1])))
    return (
        first
        | {f"z.{k}": v for k, v in factorised_tables(blended, -Z_REACH).items()}
        | {f"y.{k}": v for k, v in pack_tables(rows).items()}
    )


class _Counting(LatentCoder):
    """A latent coder that counts the magnitudes of symbols by level. It skips no level, so that every symbol counts."""

    def __init__(self, config: Config, ops: ExactOps, tables: Mapping[str, np.ndarray]) -> None:
        super().__init__(config, ops, tables)
        self.skipped = np.zeros(LEVELS, bool)
        self.counts = np.zeros((LEVELS, 1024), np.float64)

    def observe(self, symbols: np.ndarray, levels: np.ndarray) -> None:
        magnitude = np.minimum(np.abs(symbols), self.counts.shape[1] - 1)
        self.counts += np.bincount(levels * self.counts.shape[1] + magnitude, minlength=self.counts.size).reshape(
            self.counts.shape
        )


def _graphs(model: HPCM) -> list[tuple[str, nn.Module, tuple[Tensor, ...], dict[str, Any]]]:
    c = model.config
    analysis = (
        torch.zeros(128, 192, 3, dtype=torch.uint8),
        torch.ones(1, c.analysis_widths[0], 1, 1),
        torch.ones(1, c.latent, 1, 1),
    )
    synthesis = (
        torch.zeros(8, 12, c.latent, dtype=torch.int32),
        torch.ones(1, c.synthesis_widths[0], 1, 1),
        torch.ones(1, c.latent, 1, 1),
    )
    return [
        (
            "analysis",
            _AnalysisGraph(model),
            analysis,
            {
                "inputs": ["pixels", "scale8", "gain"],
                "outputs": ["y", "z"],
                "dynamic": {"pixels": {0: "H", 1: "W"}, "y": {0: "h", 1: "w"}, "z": {0: "hz", 1: "wz"}},
            },
        ),
        (
            "synthesis",
            _SynthesisGraph(model),
            synthesis,
            {
                "inputs": ["y_hat", "scale8", "ungain"],
                "outputs": ["pixels"],
                "dynamic": {"y_hat": {0: "h", 1: "w"}, "pixels": {0: "H", 1: "W"}},
            },
        ),
        (
            "gradient",
            _GradientGraph(model),
            (synthesis[0], analysis[0], torch.ones(128, 192, 1), *synthesis[1:]),
            {
                "inputs": ["y_hat", "pixels", "weight", "scale8", "ungain"],
                "outputs": ["gradient"],
                "dynamic": {
                    "y_hat": {0: "h", 1: "w"},
                    "pixels": {0: "H", 1: "W"},
                    "weight": {0: "H", 1: "W"},
                    "gradient": {0: "h", 1: "w"},
                },
            },
        ),
    ]


def write_graph(
    module: nn.Module, example: tuple[Tensor, ...], axes: Mapping[str, Any], store: Path, out: Path, name: str
) -> None:
    """Export a module to the graph `out`, which reads its parameters as float16 from the file `store` beside it.

    axes: the names of inputs and outputs, and the axes of variable length. name: of the graph.
    Raises ValueError where a tensor of the store has another type or shape than the module's.
    """
    import onnx

    torch.onnx.export(
        module,
        example,
        str(out),
        input_names=axes["inputs"],
        output_names=axes["outputs"],
        dynamic_axes=axes["dynamic"],
        opset_version=OPSET,
        do_constant_folding=False,  # a folded transpose would be a copy of the weights inside the graph
        dynamo=False,
    )
    graph = onnx.load(str(out))
    places = tensor_places(store)
    casts, kept = [], []
    for tensor in graph.graph.initializer:
        if tensor.name not in places:
            kept.append(tensor)
            continue
        dtype, shape, offset, length = places[tensor.name]
        if dtype != "F16" or list(tensor.dims) != shape:
            raise ValueError(f"{tensor.name}: {dtype} {shape} in {store.name}, {list(tensor.dims)} in the graph")
        half = onnx.TensorProto(
            name=f"{tensor.name}.f16",
            data_type=onnx.TensorProto.FLOAT16,
            dims=shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", store.name), ("offset", str(offset)), ("length", str(length))):
            half.external_data.add(key=key, value=value)
        kept.append(half)
        casts.append(onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.initializer[:], graph.graph.node[:]
    graph.graph.initializer.extend(kept)
    graph.graph.node.extend(nodes)
    graph.graph.name = name
    out.write_bytes(graph.SerializeToString())


def tensor_places(path: Path) -> dict[str, tuple[str, list[int], int, int]]:
    """name -> (dtype, shape, offset and length in bytes) of every tensor of a safetensors file."""
    with path.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
    return {
        k: (v["dtype"], v["shape"], 8 + size + v["data_offsets"][0], v["data_offsets"][1] - v["data_offsets"][0])
        for k, v in header.items()
        if k != "__metadata__"
    }
