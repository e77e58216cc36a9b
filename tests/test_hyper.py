"""z under contexts: each value's table depends on the values to its left and above, which are always coded before."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmcodec import container, weights
from hpcmcodec.container import LATENT
from hpcmcodec.engines.light import LightEngine
from hpcmcodec.errors import IntegrityError
from hpcmcodec.model.coder import LatentCoder
from hpcmcodec.model.entropy import Z_BANDS
from hpcmcodec.model.hyper import Contexts, neighbours
from hpcmcodec.model.validation import validate
from hpcmcodec.quality import Quality
from hpcmcodec.training.fitting import Z_CONTEXTS, hyper_tables
from tools.hashes import sha256

SIDES = st.integers(1, 9)
QUALITIES = st.builds(Quality, st.integers(0, 10000))
CONTEXTS = 4
INDEPENDENT = Path(__file__).parent / "independent" / "decode.py"


def with_contexts() -> dict[str, np.ndarray]:
    """The tiny model's tables with thresholds, and in each context the tables of other channels."""
    tables, n = tiny.load().under("tables"), tiny.load().config.hyper
    order = np.arange(Z_BANDS * n).reshape(Z_BANDS, n)
    order = np.stack([np.roll(order, k, 1) for k in range(CONTEXTS)], -1).ravel()
    thresholds = np.sort(np.random.RandomState(1).randint(-4, 5, (Z_BANDS * n, CONTEXTS - 1)), 1)
    moved = {k: v[order] for k, v in tables.items() if k.startswith("z.")}
    return tables | moved | {"z.thresholds": thresholds.astype(np.int32)}


@lru_cache(maxsize=1)
def coder() -> LatentCoder:
    return LatentCoder(tiny.load().config, LightEngine(tiny.load()).coder.ops, with_contexts())


def plane(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(-6, 7, (rows, columns, tiny.load().config.hyper)).astype(np.int32)


def coded(z: np.ndarray, quality: Quality) -> bytes:
    y = np.zeros((4 * z.shape[0], 4 * z.shape[1], tiny.load().config.latent), np.float32)
    return coder().encode(y, z.astype(np.float32), quality)[0]["z"].data


@settings(max_examples=20)
@given(SIDES, SIDES, st.integers(0, 1000), QUALITIES)
def test_z_comes_back(rows: int, columns: int, seed: int, quality: Quality) -> None:
    z = plane(rows, columns, seed)
    assert np.array_equal(coder().decode_z(coded(z, quality), quality, rows, columns), z)


def test_each_context_codes_some_values() -> None:
    z, contexts = plane(9, 9, 0), coder().contexts
    tables = contexts.tables(z, np.arange(81), Quality(5000))
    assert set((tables % CONTEXTS).ravel()) == set(range(CONTEXTS))


@given(SIDES, SIDES, st.integers(0, 1000))
def test_neighbours_are_the_left_and_the_upper_value_and_at_an_edge_one_of_them_twice(
    rows: int, columns: int, seed: int
) -> None:
    z = plane(rows, columns, seed)
    found = neighbours(z, np.arange(rows * columns)).reshape(z.shape)
    for r, c in np.ndindex(rows, columns):
        known = ([z[r, c - 1]] if c else []) + ([z[r - 1, c]] if r else [])
        wanted = 2 * known[0] if len(known) == 1 else sum(known)
        assert np.array_equal(found[r, c], wanted + np.zeros_like(z[r, c]))


@given(SIDES, SIDES)
def test_waves_hold_each_position_once_and_its_neighbours_before(rows: int, columns: int) -> None:
    seen: set[int] = set()
    for wave in coder().contexts.waves(rows, columns):
        for at in wave:
            assert at % columns == 0 or at - 1 in seen
            assert at < columns or at - columns in seen
        assert not seen.intersection(wave.tolist())
        seen.update(wave.tolist())
    assert seen == set(range(rows * columns))


def test_without_thresholds_all_positions_are_one_wave() -> None:
    contexts = Contexts(np.zeros((Z_BANDS * 2, 0), np.int32))
    assert [wave.tolist() for wave in contexts.waves(2, 3)] == [[0, 1, 2, 3, 4, 5]]


def test_a_cut_stream_is_refused_wherever_it_ends() -> None:
    data = coded(plane(4, 5, 3), Quality(5000))
    for end in range(0, len(data), 4):
        with pytest.raises(IntegrityError, match="stream z"):
            coder().decode_z(data[:end], Quality(5000), 4, 5)


def test_fitted_contexts_code_smooth_planes_in_fewer_bits_than_one_context() -> None:
    rng, edges = np.random.default_rng(0), np.arange(-40, 42) - 0.5
    planes = []
    for _ in range(40):
        walk = rng.normal(size=(8, 8, 2)).cumsum(0).cumsum(1)
        planes.append((Quality(5000), np.clip(np.rint(walk), -40, 40).astype(np.int32)))
    cdf = np.tile(1 / (1 + np.exp(-edges / 4)), (2, 1))
    fitted = hyper_tables(cdf, planes)
    assert fitted["z.thresholds"].shape == (Z_BANDS * 2, Z_CONTEXTS - 1)
    spent = {}
    for name, thresholds in (("contexts", fitted["z.thresholds"]), ("one", fitted["z.thresholds"][:, :0])):
        contexts = Contexts(thresholds)
        rows = [contexts.tables(z, np.arange(64), q).ravel() for q, z in planes]
        pairs = np.stack([np.concatenate(rows), np.concatenate([z.ravel() for _, z in planes])])
        _, joint = np.unique(pairs, axis=1, return_counts=True)
        _, of_row = np.unique(pairs[0], return_counts=True)
        spent[name] = float((of_row * np.log2(of_row)).sum() - (joint * np.log2(joint)).sum())
    assert spent["contexts"] < 0.9 * spent["one"]


def test_a_decoder_made_from_the_documents_decodes_z_under_contexts(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    w = tiny.load()
    tensors = {k: v for k, v in w.tensors.items() if not k.startswith("tables.")}
    tensors |= {f"tables.{k}": np.ascontiguousarray(v) for k, v in with_contexts().items()}
    model_id = weights.compute_model_id(w.config, w.grids, tensors)
    about = weights.read_metadata(w.path) | {"model_id": model_id.hex()}
    save_file(tensors, tmp_path / "model.safetensors", about)
    y, z = tiny.latents(9, 14)
    found, y_hat = coder().encode(y, z, Quality(3000))
    streams = {s: [container.Stream(c.data, c.latents_crc)] for s, c in found.items()}
    size = {"width": 14 * LATENT, "height": 9 * LATENT}
    data = container.pack(model_id=model_id, quality=Quality(3000), streams=streams, metadata={}, **size)
    (tmp_path / "file.hpcm").write_bytes(data)
    files = [str(tmp_path / "model.safetensors"), str(tmp_path / "file.hpcm")]
    done = subprocess.run([sys.executable, "-S", str(INDEPENDENT), *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    hashes = dict(re.findall(r"^(.+): CRC [0-9A-F]{8}, SHA-256 ([0-9a-f]{64})$", done.stdout, re.MULTILINE))
    assert hashes["z"] == sha256(np.rint(z).astype(np.int32))
    assert hashes["y_hat"] == sha256(y_hat)


def tensors_with(thresholds: np.ndarray) -> dict[str, np.ndarray]:
    tensors = {k: v for k, v in tiny.load().tensors.items() if not k.startswith("tables.")}
    return tensors | {f"tables.{k}": v for k, v in with_contexts().items()} | {"tables.z.thresholds": thresholds}


def test_weights_with_contexts_are_weights() -> None:
    w = tiny.load()
    validate(w.config, w.grids, tensors_with(with_contexts()["z.thresholds"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:, ::-1] - np.arange(t.shape[1], dtype=t.dtype), "fall"),
        (lambda t: t.astype(np.int64), "int64"),
        (lambda t: t[:, 0], "thresholds is"),
        (lambda t: t[:, :0], "thresholds is"),
        (lambda t: t[1:], "expected int32"),
        (lambda t: np.repeat(t[:, :1], 300, 1), "thresholds is"),
        (lambda t: t[:, :1], "tables, expected"),
    ],
)
def test_thresholds_that_say_nothing_are_no_weights(change: Any, words: str) -> None:
    w = tiny.load()
    with pytest.raises(ValueError, match=words):
        validate(w.config, w.grids, tensors_with(change(with_contexts()["z.thresholds"])))
