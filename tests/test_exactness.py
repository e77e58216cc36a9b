"""A file decodes to the same integers and pixels under other thread counts, instruction sets and engines.

Every program here first asserts that its environment took effect: with variables that change nothing it would show
nothing. The files are of the tiny model and of the packaged one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from hpcmcodec import codec, container, weights
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import limit_of
from hpcmcodec.exact.namespaces import NUMPY
from hpcmcodec.exact.ops import Act
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.quality import Quality
from tools.hashes import sha256

TESTS = Path(__file__).parent
# What each program starts with: whether numpy computes as the test says, and the CRC of a float product, which BLAS
# kernels round differently.
PROLOGUE = """
import json, os, sys, zlib
import numpy as np
if np.__version__.startswith("1."):
    from numpy.core._multiarray_umath import __cpu_dispatch__ as dispatch, __cpu_features__ as features
else:
    from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatch, __cpu_features__ as features
import tiny
from hpcmcodec import codec, container, weights
from hpcmcodec.engines import base
from hpcmcodec.exact.namespaces import NumpyNamespace
from tools.hashes import sha256

oldest = "OPENBLAS_CORETYPE" in os.environ
if oldest:
    assert not [name for name in dispatch if features[name]], "numpy still uses what it should not"
rng = np.random.RandomState(0)
a, b = rng.standard_normal((200, 300)).astype(np.float32), rng.standard_normal((300, 200)).astype(np.float32)
said = {"product": zlib.crc32((a @ b).tobytes()), "features": sorted(n for n in dispatch if features[n])}
said["threads"] = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None

def decode(data, engine):
    with tiny.installed():
        y_hat = codec.decode_latents(data, engine=engine)
        return {"y_hat": sha256(y_hat), "shape": y_hat.shape, "pixels": pixels(data, y_hat, engine)}

def pixels(data, y_hat, engine):
    header = container.parse_header(data)
    runner = base.find(weights.find(header.model_id), "cpu", engine)
    return sha256(runner.synthesise(y_hat, header.quality))
"""
# The torch half does not lean on the numpy path: its entry points raise.
TORCH_ALONE = """
import torch
if oldest:
    assert "DEFAULT" in torch.backends.cpu.get_cpu_capability(), torch.backends.cpu.get_cpu_capability()
assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
said["torch"] = torch.__version__

def forbidden(*args, **kwargs):
    raise AssertionError("the numpy path was used")

for name in ("matmul", "sum", "rint_", "clamp_", "take", "concat", "maximum", "argsort", "take_along", "cast"):
    setattr(NumpyNamespace, name, forbidden)
from hpcmcodec.engines.light import LightEngine
LightEngine.__init__ = forbidden
"""
DECODE = """
for path in sys.argv[2:]:
    with open(path, "rb") as f:
        said[os.path.basename(path)] = decode(f.read(), sys.argv[1])
print(json.dumps(said))
"""
ENCODE = """
with tiny.installed():
    for name, model in json.loads(sys.argv[3]).items():
        data = codec.encode(tiny.picture(147, 94, 7), 62.5, engine=sys.argv[1], model=model)
        with open(os.path.join(sys.argv[2], name), "wb") as f:
            f.write(data)
print(json.dumps(said))
"""
DISPATCHED = """
import numpy as np
if np.__version__.startswith("1."):
    from numpy.core._multiarray_umath import __cpu_dispatch__ as dispatch
else:
    from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatch
print(" ".join(dispatch))
"""
ENGINES = pytest.mark.parametrize(("writer", "reader"), [("light", "light"), ("light", "torch"), ("torch", "light")])
MODELS = {"tiny.hpcm": tiny.NAME, "packaged.hpcm": weights.DEFAULT_MODEL}


def python(script: str, *args: str, interpreter: str = sys.executable, **environment: str) -> str:
    """Run a program with these variables set, and no others that choose threads or instruction sets."""
    chosen = ("OPENBLAS_", "OMP_", "NPY_", "ATEN_", "MKL_", "DNNL_", "ONEDNN_")
    base = {k: v for k, v in os.environ.items() if not k.startswith(chosen)}
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [interpreter, "-W", "error", "-c", script, *args],
        env=base | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@lru_cache(maxsize=1)
def oldest_with_one_thread() -> dict[str, str]:
    """Variables for one thread and the oldest instruction sets of OpenBLAS, numpy, torch, MKL and oneDNN."""
    return {
        "OPENBLAS_CORETYPE": "Prescott",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "NPY_DISABLE_CPU_FEATURES": python(DISPATCHED).strip(),
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "DNNL_MAX_CPU_ISA": "SSE41",
    }


EVERYTHING_WITH_TWO_THREADS = {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}


def environment(kind: str) -> dict[str, str]:
    return dict(oldest_with_one_thread() if kind == "oldest" else EVERYTHING_WITH_TWO_THREADS)


def program(engine: str, body: str) -> str:
    return PROLOGUE + (TORCH_ALONE if engine == "torch" else "") + body


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """By (engine, environment): what a program said that encoded a picture with both models, and its folder."""
    out = {}
    for engine in ("light", "torch"):
        for kind in ("oldest", "everything"):
            folder = tmp_path_factory.mktemp(f"{engine}-{kind}")
            names = {f"{engine}-{kind}-{name}": model for name, model in MODELS.items()}
            body = program(engine, ENCODE)
            said = json.loads(python(body, engine, str(folder), json.dumps(names), **environment(kind)))
            out[engine, kind] = said | {"folder": folder}
    return out


@pytest.fixture(scope="module")
def read(written: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """By (engine, environment): what a program said that decoded the golden files and the other environment's."""
    out = {}
    for engine in ("light", "torch"):
        for kind in ("oldest", "everything"):
            files = [str(path) for path in sorted(tiny.DATA.glob("*.hpcm"))]
            for (writer, how), said in written.items():
                if how != kind and (writer, engine) != ("torch", "torch"):
                    files += [str(said["folder"] / f"{writer}-{how}-{name}") for name in MODELS]
            out[engine, kind] = json.loads(python(program(engine, DECODE), engine, *files, **environment(kind)))
    return out


def test_the_variables_take_effect(written: dict[tuple[str, str], dict[str, Any]]) -> None:
    for engine in ("light", "torch"):
        oldest, everything = written[engine, "oldest"], written[engine, "everything"]
        assert oldest["features"] == []
        if everything["features"]:  # a machine without any of them has nothing to switch off
            assert oldest["product"] != everything["product"]
        if oldest["threads"] is not None and engine == "light" and (os.cpu_count() or 1) > 1:
            assert everything["threads"] > oldest["threads"]


@ENGINES
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("writes", "reads"), [("oldest", "everything"), ("everything", "oldest")])
def test_file_decodes_to_the_same_integers_elsewhere(
    writer: str,
    reader: str,
    name: str,
    writes: str,
    reads: str,
    written: dict[tuple[str, str], dict[str, Any]],
    read: dict[tuple[str, str], dict[str, Any]],
) -> None:
    file = f"{writer}-{writes}-{name}"
    with tiny.installed():
        data = (written[writer, writes]["folder"] / file).read_bytes()
        here, header = codec.decode_latents(data), container.parse_header(data)
        shown = LightEngine(weights.load(MODELS[name], transforms=False)).synthesise(here, header.quality)
    # The program only gets this far where every stream's integers have the CRC that the encoder stored.
    expected = {"y_hat": sha256(here), "shape": list(here.shape), "pixels": sha256(shown)}
    assert read[reader, reads][file] == expected


def test_every_engine_and_environment_decodes_the_golden_files(read: dict[tuple[str, str], dict[str, Any]]) -> None:
    golden = json.loads((tiny.DATA / "golden.json").read_text(encoding="utf-8"))
    for said in read.values():
        for what in ("y_hat", "pixels"):
            assert {n: said[f"{n}.hpcm"][what] for n in golden} == {n: v[what] for n, v in golden.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["oldest", "everything"])
def test_oldest_versions_allowed_decode_to_the_same_integers(
    kind: str, written: dict[tuple[str, str], dict[str, Any]]
) -> None:
    interpreter = os.environ.get("HPCM_OLDEST")
    if not interpreter:
        pytest.skip("HPCM_OLDEST does not name the Python of an environment with the oldest versions allowed")
    golden = json.loads((tiny.DATA / "golden.json").read_text(encoding="utf-8"))
    files = [str(tiny.DATA / f"{name}.hpcm") for name in golden]
    files += [str(written["light", "everything"]["folder"] / f"light-everything-{name}") for name in MODELS]
    variables = environment(kind)
    if kind == "oldest":  # its numpy has names of its own
        variables["NPY_DISABLE_CPU_FEATURES"] = python(DISPATCHED, interpreter=interpreter).strip()
    said = json.loads(python(program("light", DECODE), "light", *files, interpreter=interpreter, **variables))
    for what in ("y_hat", "pixels"):
        assert {n: said[f"{n}.hpcm"][what] for n in golden} == {n: v[what] for n, v in golden.items()}
    assert all(f"light-everything-{name}" in said for name in MODELS)


# --- the proof that these tests can fail ------------------------------------------------------------------------------
# The same check, but with an entropy path in ordinary float32: products of real-valued weights and of activations that
# are not rounded to codes, so that the order of a sum shows. Another order plays the second machine, then a real one.


class FloatOps(ExactOps):
    """Exact operations without what makes them exact. `order` permutes the inputs of every product."""

    def __init__(self, *args: Any, order: int) -> None:
        super().__init__(*args)
        self.order = order

    def _code_(self, x: Any, grid: str) -> Any:
        return self.xp.clamp_(x, -limit_of(grid), limit_of(grid))  # no rounding

    def _linear(self, inputs: Any, layer: str, e_out: int) -> Any:
        x = np.concatenate(
            [a.x / np.float32(2.0 ** self.grids[a.grid]) * np.ones_like(first(inputs).x[..., :1]) for a in inputs], -1
        )
        step = np.repeat(self.tensors[f"{layer}.step"], self.tensors[f"{layer}.widths"], 0).T
        w = self.tensors[f"{layer}.weight"].astype(np.float32) * step
        order = np.random.RandomState(self.order).permutation(w.shape[1])
        out = x[..., order].reshape(-1, w.shape[1]) @ w[:, order].T + self.tensors.get(f"{layer}.bias", 0)
        return out.reshape(*x.shape[:-1], -1) * np.float32(2.0**e_out)

    def _index(self, codes: Any) -> Any:
        return super()._index(np.rint(codes))


def first(inputs: Any) -> Act:
    """The input with the most positions: pooled ones are spread over it."""
    found: Act = max(inputs, key=lambda a: a.x.size // a.x.shape[-1])
    return found


def code_and_decode(encoder: LatentCoder, decoder: LatentCoder, pictures: int) -> None:
    """IntegrityError where decoding misses what was encoded."""
    for seed in range(pictures):
        y, z = tiny.latents(24, 24, seed)
        coded, _ = encoder.encode(y, z, Quality(5000))
        crcs = {s: c.latents_crc for s, c in coded.items()}
        decoder.decode({s: c.data for s, c in coded.items()}, lambda s, crc: crc == crcs[s], Quality(5000), 24, 24)  # noqa: B023


def coder(ops: ExactOps) -> LatentCoder:
    return LatentCoder(tiny.load().config, ops, tiny.load().under("tables"))


def float_coder(order: int) -> LatentCoder:
    return coder(FloatOps(NUMPY, tiny.load().under("entropy"), tiny.load().grids, order=order))


def test_proof_that_these_tests_can_fail_float_sums_in_another_order_are_caught() -> None:
    code_and_decode(float_coder(1), float_coder(1), 2)  # it is a codec that works, on one machine
    with pytest.raises(IntegrityError):
        code_and_decode(float_coder(1), float_coder(2), 8)


def test_proof_that_these_tests_can_fail_exact_sums_in_another_order_are_not_caught() -> None:
    class Reordered(ExactOps):
        def _matrices(self, layer: str) -> Any:
            return [w[::-1] for w in super()._matrices(layer)]

        def _linear(self, inputs: Any, layer: str, e_out: int) -> Any:
            return super()._linear([Act(a.x[..., ::-1], a.grid) for a in inputs], layer, e_out)

    code_and_decode(
        coder(tiny.exact_ops()), coder(Reordered(NUMPY, tiny.load().under("entropy"), tiny.load().grids)), 3
    )


FLOAT_ELSEWHERE = """
import test_exactness
y, z = tiny.latents(24, 24, 1)
coded, y_hat = test_exactness.float_coder(0).encode(y, z, test_exactness.Quality(5000))
said["float"] = [c.latents_crc for c in coded.values()]
coded, y_hat = test_exactness.coder(tiny.exact_ops()).encode(y, z, test_exactness.Quality(5000))
said["exact"] = [c.latents_crc for c in coded.values()]
print(json.dumps(said))
"""


def test_proof_that_these_tests_can_fail_float_latents_differ_between_these_environments() -> None:
    oldest, everything = (
        json.loads(python(PROLOGUE + FLOAT_ELSEWHERE, **environment(kind))) for kind in ("oldest", "everything")
    )
    assert oldest["exact"] == everything["exact"]
    if oldest["product"] == everything["product"]:
        pytest.skip("this machine has one way to compute float products")
    assert oldest["float"] != everything["float"]
