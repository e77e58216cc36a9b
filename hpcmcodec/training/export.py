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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcmcodec import checksums, weights
from hpcmcodec.container import LATENT
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import FIXED_GRIDS, LEVELS, MEAN_SHIFT
from hpcmcodec.exact.layers import Depthwise, Dequantise, Read, quantise
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.exact.schedule import decimate
from hpcmcodec.model import fold
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.model.config import Config
from hpcmcodec.model.declaration import declare_synthesis
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
from hpcmcodec.model.hpcm import HPCM, Z_EDGES, Z_REACH, Estimator
from hpcmcodec.model.synthesis import THUMBNAIL, THUMBNAIL_STRIDE
from hpcmcodec.pretrained import from_weights
from hpcmcodec.quality import Quality
from hpcmcodec.training import report, stages
from hpcmcodec.training.data import Crops, to_unit, validation_images

OPSET = 18
Z_PRIOR_COUNTS = 100.0  # in each channel of a band, the trained prior weighs as many counted symbols of z
PRIOR_COUNTS = 2000.0  # in each level, the logistic weighs as many counted symbols of y
TAIL = 2.0**-15  # a table ends where less probability than this is left, which goes to the escape
# How far rounding to float16 and integers may move results from the trained model's: relative rms error of y, relative
# difference in bits, mean difference of pixel values (in 1/255), relative rms error of the gradient.
LATENT_ERROR, RATE_ERROR, PIXEL_ERROR, GRADIENT_ERROR = 0.02, 0.1, 0.5, 0.01
EXACT_ERROR = 0.003  # relative bits that exact arithmetic may cost, mean over the qualities,
EXACT_LOSS = 0.01  # and dB
CHECKED = 4  # number of photographs that the files are checked on
TRANSFORMS = ("g_a.", "h_a.")
SPARE = 0.5  # of a code's range, that the synthesis' activations of the photographs stay within
FINEST = 8  # a channel's codes are finer than one exponent for all channels would make them, by this factor at most
RIDGE = {"s2": 1e-2, "s3": 1e-6}  # of thumbnails' least squares, against the mean square: s2 has less to go by
UNSEEN = 8.0  # magnitude assumed of activations where there are no photographs


class _AnalysisGraph(nn.Module):
    def __init__(self, model: HPCM) -> None:
        super().__init__()
        self.g_a, self.h_a = model.g_a, model.h_a

    def forward(self, pixels: Tensor, scale8: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.permute(2, 0, 1)[None].float() * (1 / 255)
        y = self.g_a(x, scale8) * gain
        z = self.h_a(y)
        return y[0].permute(1, 2, 0), z[0].permute(1, 2, 0)


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
    held_out: Path | None = None,
    say: Callable[[str], None] = print,
) -> bytes:
    """Write `out/name.safetensors`, its two graphs and their digests; returns the model id.

    `model` is changed: it gets the fitted grids and the rounded transforms.
    photographs: pairs of pixels (16 h, 16 w, 3) uint8 and a quality, to which grids and tables are fitted and on which
    the files are checked. held_out: a folder of PNGs; `say` is told what exact arithmetic costs on them.

    Raises IntegrityError where it costs more than EXACT_ERROR or EXACT_LOSS, or the written files compute something
    else than the model; nothing is replaced then.
    """
    trained, photographs = copy.deepcopy(model).eval(), list(photographs)
    model.grids = fit_grids(trained, photographs)
    if held_out is not None:
        ours = report.mean_bpp(model, held_out, report.QUALITIES, fake=True)
        theirs = report.mean_bpp(trained, held_out, report.QUALITIES, fake=False)
        lines, mean = report.compare(report.QUALITIES, ours, theirs)
        say("\n".join(["exact arithmetic against float:", *lines]))
        if not mean <= 1 + EXACT_ERROR:
            raise IntegrityError(
                f"{name} was not written: exact arithmetic costs {100 * (mean - 1):.2f}% of the bits on {held_out}, "
                f"at most {100 * EXACT_ERROR:.1f}% is allowed; train longer under fake quantisation"
            )
    integers = model.integers()
    synthesis = synthesis_integers(trained, photographs)
    if held_out is not None:
        lines, mean = report.synthesis_loss(trained, synthesis, held_out, report.QUALITIES)
        say("\n".join(["synthesis in integers against float:", *lines]))
        if not mean <= EXACT_LOSS:
            raise IntegrityError(
                f"{name} was not written: its synthesis loses {mean:.4f} dB in integers on {held_out}, at most "
                f"{EXACT_LOSS} dB is allowed; fit exponents to more photographs (--crops)"
            )
    transforms: dict[str, np.ndarray] = {}
    for key, value in model.state_dict().items():
        if key.startswith(TRANSFORMS) and not key.endswith("log_scale"):
            transforms[key] = value.half().numpy()
        elif key.startswith((*TRANSFORMS, "gain.", "z_prior.")):
            transforms[key] = value.numpy()
    tensors = {f"entropy.{k}": v for k, v in integers.items()} | synthesis | transforms
    # Everything below sees the transforms as they ship.
    shipped_as = transforms | fold.training(model.config, synthesis)
    model.load_state_dict({k: torch.from_numpy(v).float() for k, v in shipped_as.items()}, strict=False)
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


def pictures_at_all_qualities(folder: Path) -> Iterator[tuple[np.ndarray, Quality]]:
    """The PNGs of a folder, cut to multiples of 16, their qualities spread evenly over the range."""
    images = validation_images(folder, side=1 << 16)
    for i, x in enumerate(images):
        pixels = (x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        yield pixels, Quality.of_unit(i / max(1, len(images) - 1))


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


@torch.no_grad()
def synthesis_integers(model: Estimator, photographs: Iterable[tuple[np.ndarray, Quality]]) -> dict[str, np.ndarray]:
    """The stored tensors of the synthesis and its thumbnails, exponents fitted to what photographs make of it."""
    peaks, maps = _Peaks(model), _Thumbnails(model.config)
    state = {k: v.float().numpy() for k, v in model.state_dict().items()}
    layers = declare_synthesis(model.config)[0]
    with peaks:
        for pixels, quality in photographs:
            x, q = _model_inputs(pixels, quality)
            y_hat = model.analyse(x, q)[0].round()
            y = y_hat * model.ungain.factors(q)[:, :, 0, 0]
            maps.add(y_hat.numpy()[0], y.numpy()[0], model.synthesise(y_hat, q)[0].permute(1, 2, 0).numpy())
    exponents = {name: _exponents(peak) for name, peak in peaks.of.items()}
    derived = fold.derived(model.config, state, exponents) | maps.solve(exponents["ungain"])
    return quantise(layers.values(), derived, FIXED_GRIDS)


def _exponents(peak: np.ndarray) -> np.ndarray:
    """e of each channel from its largest magnitude."""
    peak = np.maximum(peak, peak.max() / FINEST)
    return np.array([math.floor(stages.room(float(p), SPARE)) for p in peak])


class _Peaks:
    """Largest magnitudes (C,) in g_s while it runs, of what layers give as codes: by the layer's name."""

    def __init__(self, model: Estimator) -> None:
        self.layers = list(fold.folded(model.config))
        self.of = {f.codes.name: np.full(f.codes.out, UNSEEN) for f in self.layers}
        self.seen: set[str] = set()
        self.modules = dict(model.named_modules())
        self.hooks: list[Any] = []

    def __enter__(self) -> None:
        for f in self.layers:
            self.hooks.append(self.modules[f.module].register_forward_hook(partial(self._see, f)))

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, f: fold.Folded, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(f.codes, Read | Dequantise):
            self._keep(f.codes.name, inputs[0])
        if f.coded:
            self._keep(f.layer.name, out)

    def _keep(self, name: str, x: Tensor) -> None:
        peak = x.float().abs().amax((0, 2, 3)).numpy()
        self.of[name] = np.maximum(peak, self.of[name]) if name in self.seen else peak
        self.seen.add(name)


class _Thumbnails:
    """Least squares from y_hat, times its factors, to the picture's mean over 8 x 8 pixels, around 0."""

    def __init__(self, config: Config) -> None:
        self.config = config
        n = config.latent + 1
        self.moments = {s: np.zeros((n, n)) for s in THUMBNAIL_STRIDE}
        self.products = {s: np.zeros((n, 3 * (THUMBNAIL * k) ** 2)) for s, k in THUMBNAIL_STRIDE.items()}

    def add(self, y_hat: np.ndarray, y: np.ndarray, picture: np.ndarray) -> None:
        """y_hat and y, the same times its factors, (h, w, M); the picture that they give (16 h, 16 w, 3)."""
        side = LATENT // THUMBNAIL
        h, w, _ = y.shape
        small = picture.reshape(h * THUMBNAIL, side, w * THUMBNAIL, side, 3).mean((1, 3), dtype=np.float64) - 0.5
        for scale, stride in THUMBNAIL_STRIDE.items():
            rows, columns = (n // stride * stride for n in (h, w))
            if not rows or not columns:
                continue
            out = np.zeros((1, rows // stride, columns // stride, self.config.latent))
            x = decimate(y[None, :rows, :columns].astype(np.float64), scale, out).reshape(-1, self.config.latent)
            x = np.concatenate([x, np.ones((len(x), 1))], 1)
            k = THUMBNAIL * stride
            target = small[: rows * THUMBNAIL, : columns * THUMBNAIL]
            target = target.reshape(rows // stride, k, columns // stride, k, 3).transpose(0, 2, 1, 3, 4)
            self.moments[scale] += x.T @ x
            self.products[scale] += x.T @ target.reshape(len(x), -1)

    def solve(self, exponents: np.ndarray) -> dict[str, np.ndarray]:
        """The layers' derived tensors, for codes of these exponents."""
        out, unit = {}, np.append(np.exp2(-exponents.astype(np.float64)), 1.0)
        for scale, moments in self.moments.items():
            ridge = np.eye(len(moments)) * (RIDGE[scale] * np.trace(moments) / len(moments) + 1e-9)
            solution = np.linalg.solve(moments + ridge, self.products[scale]) * unit[:, None]
            out[f"thumbnail.{scale}.weight"] = solution[:-1].T.astype(np.float32)
            out[f"thumbnail.{scale}.bias"] = solution[-1].astype(np.float32)
        return out


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
    gradient = (
        torch.zeros(8, 12, c.latent, dtype=torch.int32),
        analysis[0],
        torch.ones(128, 192, 1),
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
            "gradient",
            _GradientGraph(model),
            gradient,
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
    module: nn.Module, example: tuple[Tensor, ...], axes: Mapping[str, Any], store: Path, out: Path, title: str
) -> None:
    """Export a module to the graph `out`, which reads its parameters from the file `store` beside it.

    They are float16 there, or, those of the synthesis, integers.
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
    rows = {f"{f.module}.{t}": (f, t) for f in fold.folded(weights.load_file(store).config) for t in ("weight", "bias")}
    types = {"F16": onnx.TensorProto.FLOAT16, "F32": onnx.TensorProto.FLOAT, "I16": onnx.TensorProto.INT16}
    nodes: list[Any] = []
    kept: dict[str, Any] = {}

    def external(name: str, shape: Sequence[int], output: str = "") -> str:
        """A tensor of the file as float32, in a shape of as many elements."""
        dtype, _, offset, length = places[name]
        stored = onnx.TensorProto(
            name=f"{name}.stored", data_type=types[dtype], dims=shape, data_location=onnx.TensorProto.EXTERNAL
        )
        for key, value in (("location", store.name), ("offset", str(offset)), ("length", str(length))):
            stored.external_data.add(key=key, value=value)
        kept[stored.name] = stored
        return stored.name if dtype == "F32" else node("Cast", [stored.name], output, to=onnx.TensorProto.FLOAT)

    def constant(values: np.ndarray) -> str:
        name = f"constant.{len(kept)}"
        kept[name] = onnx.numpy_helper.from_array(values, name)
        return name

    def node(kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"weights.{len(nodes)}"
        nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def rows_of(folded: fold.Folded, tensor: str, name: str, dims: Sequence[int]) -> None:
        """What `fold.training` computes."""
        layer, side = folded.layer, folded.side
        columns, depthwise = sum(layer.inputs), isinstance(layer, Depthwise)
        if tensor == "bias":
            value, columns = external(f"{layer.name}.bias", (layer.out, 1)), 1
        else:
            step = external(f"{layer.name}.step", (layer.out, 1))
            value = node("Mul", [external(f"{layer.name}.weight", (layer.out, columns)), step])
            if isinstance(folded.codes, Read | Dequantise):
                scale = external(f"{folded.codes.name}.scale", (layer.out, 1) if depthwise else (1, columns))
                whole = constant(np.array(2.0 ** fold.fine_of(folded.codes), np.float32))
                value = node("Mul", [value, node("Mul", [scale, whole])])
        if side > 1:
            parts = (side, side, layer.out // side**2, columns)
            value = node("Reshape", [value, constant(np.array(parts, np.int64))])
            value = node("Transpose", [value], perm=[2, 0, 1, 3])
        node("Reshape", [value, constant(np.array(dims, np.int64))], name)

    for tensor in graph.graph.initializer:
        name, dims = tensor.name, list(tensor.dims)
        if name in rows:
            rows_of(*rows[name], name, dims)
        elif name not in places:
            kept[name] = tensor
        elif places[name][:2] != ("F16", dims):
            raise ValueError(f"{name}: {places[name][:2]} in {store.name}, {dims} in the graph")
        else:
            external(name, dims, name)
    nodes += graph.graph.node
    del graph.graph.initializer[:], graph.graph.node[:]
    graph.graph.initializer.extend(kept.values())
    graph.graph.node.extend(nodes)
    graph.graph.name = title
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
