"""From a training run to the weights that ship: integers on fitted grids, fitted tables, float16 transforms,
onnxruntime graphs (`fitting.py`, `graphs.py`).

The files get their final names only after they have been read back and compared with the trained model.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcmcodec import checksums, weights
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import MEAN_SHIFT
from hpcmcodec.model import fold
from hpcmcodec.model.distortion import Distortion
from hpcmcodec.model.entropy import grids_at
from hpcmcodec.model.float_ops import FakeOps
from hpcmcodec.model.hpcm import HPCM
from hpcmcodec.pretrained import from_weights
from hpcmcodec.quality import Quality
from hpcmcodec.training import graphs, report, stages
from hpcmcodec.training.data import Crops, pictures
from hpcmcodec.training.fitting import fit_grids, fit_tables, model_inputs, synthesis_integers

# How far rounding to float16 and integers may move results from the trained model's: relative rms error of y, relative
# difference in bits, mean difference of pixel values (in 1/255). And the relative rms error of the gradient, against
# that of the shipped synthesis: the trained one's errors of pixels are others, by a thirtieth at quality 100.
LATENT_ERROR, RATE_ERROR, PIXEL_ERROR, GRADIENT_ERROR = 0.02, 0.1, 0.5, 0.01
EXACT_ERROR = 0.003  # relative bits that exact arithmetic may cost, mean over the qualities,
EXACT_LOSS = 0.01  # and dB
CHECKED = 4  # number of photographs that the files are checked on
TRANSFORMS = ("g_a.", "h_a.")
SPARED = 4  # bits of the transforms' float16 that are not kept


def export(
    model: HPCM,
    name: str,
    out: Path,
    photographs: Iterable[tuple[np.ndarray, Quality]],
    held_out: Path | None = None,
    say: Callable[[str], None] = print,
    more: Iterable[tuple[np.ndarray, Quality]] = (),
) -> bytes:
    """Write `out/name.safetensors`, its two graphs and their digests; returns the model id. For members of one lambda
    see `packing.export`.

    `model` is changed: it gets the fitted grids and the rounded transforms.
    photographs: pairs of pixels (16 h, 16 w, 3) uint8 and a quality, to which grids and tables are fitted and on which
    the files are checked. held_out: a folder of PNGs; `say` is told what exact arithmetic costs on them. more:
    photographs to whose z its tables are fitted, too.

    Raises IntegrityError where it costs more than EXACT_ERROR or EXACT_LOSS, or the written files compute something
    else than the model; nothing is replaced then.
    """
    trained, photographs = copy.deepcopy(model).eval(), list(photographs)
    model.grids = fit_grids(trained, photographs)
    integers, synthesis = model.integers(), synthesis_integers(trained, photographs)
    if held_out is not None:
        check_price(name, trained, model, synthesis, held_out, say)
    prior = {key: value.numpy() for key, value in model.state_dict().items() if key.startswith("z_prior.")}
    transforms = _encoder_of(model) | prior
    tensors = {f"entropy.{k}": v for k, v in integers.items()} | synthesis | transforms
    # Everything below sees the transforms as they ship.
    shipped_as = transforms | fold.training(model.config, synthesis)
    model.load_state_dict({k: torch.from_numpy(v).float() for k, v in shipped_as.items()}, strict=False)
    tables = fit_tables(model, integers, photographs, more)
    tensors |= {f"tables.{k}": v for k, v in tables.items()}
    return publish(name, out, model, tensors, trained, photographs)


def export_encoder(
    model: HPCM, base: weights.Weights, out: Path, photographs: Iterable[tuple[np.ndarray, Quality]]
) -> bytes:
    """Write `out/NAME.safetensors` of the model `base`, with the encoder of `model`: g_a, h_a and the gains.

    All that decoding uses is that of `base`, and so is the model id, which is returned: files of either decode alike.
    `model` gets the grids of `base`. photographs: as for `export`, to check the files on.

    Raises IntegrityError where `model` has another decoder's sizes, and what `publish` raises.
    """
    if model.config.decoding_json() != base.config.decoding_json():
        raise IntegrityError(f"{base.name} was not written: the encoder was trained beside a decoder of other sizes")
    trained = copy.deepcopy(model).eval()
    model.grids = dict(base.grids)
    kept = {key: value for key, value in base.tensors.items() if not key.startswith(stages.ENCODER)}
    return publish(base.name, out, model, kept | _encoder_of(model), trained, list(photographs))


def _encoder_of(model: HPCM) -> dict[str, np.ndarray]:
    """g_a and h_a as they ship, in coarse half precision, and their factors and the gains as they are."""
    return {
        key: coarse(value) if key.startswith(TRANSFORMS) and not key.endswith("log_scale") else value.numpy()
        for key, value in model.state_dict().items()
        if key.startswith(stages.ENCODER)
    }


def coarse(values: Tensor) -> np.ndarray:
    """Values in float16 whose last SPARED bits are zero, rounded to the nearest, halves to even.

    The bits are worth 0.01 dB at quality 90 and less below (docs/NOTEBOOK.md), and a wheel is a twentieth smaller
    without them.
    """
    bits = values.half().numpy().view(np.uint16).astype(np.uint32)  # in 32 bits nothing wraps around
    halves = 2 ** (SPARED - 1) - 1 + (bits >> SPARED & 1)
    return (bits + halves >> SPARED << SPARED).astype(np.uint16).view(np.float16)


def publish(
    name: str,
    out: Path,
    model: HPCM,
    tensors: Mapping[str, np.ndarray],
    trained: HPCM,
    photographs: Sequence[tuple[np.ndarray, Quality]],
) -> bytes:
    """Write `out/name.safetensors`, the graphs that the model has, and their digests; returns the model id.

    Nothing is replaced before the files have been compared with the trained model: see `check`. Raises IntegrityError
    where that fails, or where `out` holds a packaged model of this name that decodes otherwise.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as folder:
        path = Path(folder) / f"{name}.safetensors"
        model_id = save(path, model, tensors)
        if (out / path.name).resolve() in {each.resolve() for each in weights.packaged().values()}:
            _keep_frozen(out / path.name, model_id)
        shipped = from_weights(weights.load_file(path)).eval()
        for graph in graphs.graphs(shipped):
            graphs.write(graph, path, path.with_name(f"{name}.{graph.name}.onnx"))
        check(trained, weights.load_file(path), photographs[:: -(-len(photographs) // CHECKED) or 1])
        written = sorted(Path(folder).iterdir())
        for file in written:
            file.replace(out / file.name)
        # The list is written last: until then an older list refuses files that a killed run has replaced in part.
        checksums.write(out, [file.name for file in written])
    return model_id


def _keep_frozen(packaged: Path, model_id: bytes) -> None:
    """Raise IntegrityError where a packaged model is there that decodes otherwise: people have its files."""
    if packaged.exists() and weights.read_metadata(packaged)["model_id"] != model_id.hex():
        raise IntegrityError(
            f"{packaged} was not written: it is packaged, and its files would not decode with these weights; choose "
            "another --name"
        )


def save(path: Path, model: HPCM, tensors: Mapping[str, np.ndarray]) -> bytes:
    """Write the weights file of a model, which gets the file's name; returns the model id."""
    from safetensors.numpy import save_file

    model_id = weights.compute_model_id(model.config, model.grids, tensors)
    metadata = {
        "format": weights.FORMAT,
        "name": path.stem,
        "config": model.config.to_json(),
        "grids": weights.canonical_json(model.grids),
        "model_id": model_id.hex(),
    }
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata=metadata)
    path.chmod(0o644)  # safetensors makes files for their owner alone
    return model_id


def check_price(
    name: str,
    trained: HPCM,
    model: HPCM,
    synthesis: Mapping[str, np.ndarray],
    held_out: Path,
    say: Callable[[str], None],
) -> None:
    """Say what exact arithmetic and the synthesis in integers cost; IntegrityError where that is too much."""
    qualities = report.QUALITIES if model.config.qualities else (0.0,)
    ours = report.mean_bpp(model, held_out, qualities, fake=True)
    theirs = report.mean_bpp(trained, held_out, qualities, fake=False)
    lines, mean = report.compare(qualities, ours, theirs)
    say("\n".join(["exact arithmetic against float:", *lines]))
    if not mean <= 1 + EXACT_ERROR:
        raise IntegrityError(
            f"{name} was not written: exact arithmetic costs {100 * (mean - 1):.2f}% of the bits on {held_out}, "
            f"at most {100 * EXACT_ERROR:.1f}% is allowed; train longer under fake quantisation"
        )
    lines, mean = report.synthesis_loss(trained, synthesis, held_out, qualities)
    say("\n".join(["synthesis in integers against float:", *lines]))
    if not mean <= EXACT_LOSS:
        raise IntegrityError(
            f"{name} was not written: its synthesis loses {mean:.4f} dB in integers on {held_out}, at most "
            f"{EXACT_LOSS} dB is allowed; fit exponents to more photographs (--crops)"
        )


@torch.no_grad()
def check(trained: HPCM, w: weights.Weights, photographs: Sequence[tuple[np.ndarray, Quality]]) -> None:
    """Compare weights and their graphs with the trained model, on photographs as in `export`.

    Raises IntegrityError where latents, bits or pixels of all photographs together differ from the trained model's, or
    gradients from those of the shipped synthesis, by more than rounding explains.
    """
    engine, shipped = LightEngine(w), from_weights(w).eval()
    derived, integers = shipped.derived(), w.under("entropy")
    sums = np.zeros(4)  # squares of y and of its errors; bits of y in the trained model and with the integers
    differences: list[float] = []
    gradients = np.array([1.0, 0.0])  # squares of the gradients and of their errors; models of one lambda have none
    for pixels, quality in photographs:
        x, q = model_inputs(pixels, quality)
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
        if w.config.qualities:
            gradient = _error_gradient(shipped, coded, x, q)
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
                f"{w.name} was not written: {what} are {error:.3g} off the model's; rounding explains {limit:g}"
            )


@torch.enable_grad()
def _error_gradient(model: HPCM, y_hat: Tensor, x: Tensor, q: Tensor) -> np.ndarray:
    """`HPCM.error_gradient` of one image at weight 1, by autograd."""
    y_hat.requires_grad_()
    x_hat = model.synthesise(y_hat, q)
    clamped = x_hat + (x_hat.clamp(0, 1) - x_hat).detach()
    lambdas = torch.full((1,), 1.5 / 255**2 * x.shape[2] * x.shape[3])  # of all pixels' errors, half the sum of squares
    (gradient,) = torch.autograd.grad(Distortion.of(model.config).followed(clamped, x, lambdas).sum(), y_hat)
    return gradient[0].numpy()


def crops_at_all_qualities(cache: Path, n: int, side: int = 384) -> Iterator[tuple[np.ndarray, Quality]]:
    """n random crops (side, side, 3) uint8, their qualities spread evenly over the range."""
    crops, rng = Crops(cache), np.random.default_rng(1)
    for i in range(n):
        yield crops.batch(rng, 1, side)[0].permute(1, 2, 0).numpy(), Quality.of_unit(i / max(1, n - 1))


def pictures_at_all_qualities(folder: Path) -> Iterator[tuple[np.ndarray, Quality]]:
    """The PNGs of a folder, cut to multiples of 16, their qualities spread evenly over the range."""
    found = list(pictures(folder))
    for i, pixels in enumerate(found):
        yield pixels, Quality.of_unit(i / max(1, len(found) - 1))
