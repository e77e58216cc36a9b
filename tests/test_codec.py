"""`encode` and `decode`: every size comes back, damage is refused, and what a process has set stays as it was."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpcmcodec import codec, container, refine, weights
from hpcmcodec.engines import base, light
from hpcmcodec.errors import HpcmError, InputError, IntegrityError, UnsupportedError
from hpcmcodec.exact.schedule import SCALES
from hpcmcodec.model.coder import Coded, LatentCoder
from hpcmcodec.model.config import lmbda
from hpcmcodec.native import build
from hpcmcodec.ort import onnxruntime
from hpcmcodec.quality import Quality
from tools.hashes import sha256, z_of

GOLDEN = json.loads((tiny.DATA / "golden.json").read_text(encoding="utf-8"))
ODD_SIZES = [(1, 1), (7, 5), (127, 129), (768, 512), (2000, 3), (3, 2000), (4097, 300)]


@pytest.fixture(autouse=True, scope="module")
def _tiny_model_is_packaged() -> Iterator[None]:
    with tiny.installed():
        yield


@pytest.fixture
def fresh_engines() -> Iterator[None]:
    """No engine made before is used, and none made here later."""
    base.forget()
    yield
    base.forget()


def golden_bytes(name: str) -> bytes:
    return (tiny.DATA / f"{name}.hpcm").read_bytes()


SMALL = golden_bytes("tiny-131x77")


@lru_cache(maxsize=16)
def encoded(width: int, height: int, quality: float = 50.0, engine: str = "auto") -> bytes:
    return tiny.encode(width, height, quality, engine=engine)


def size_of(data: bytes, **options: Any) -> tuple[int, int]:
    return codec.decode(data, **options).size


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


# --- files that exist decode for ever ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["light", "torch"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_file_decodes_to_the_stated_integers(name: str, engine: str) -> None:
    data = golden_bytes(name)
    assert hashlib.sha256(data).hexdigest() == GOLDEN[name]["sha256"]
    assert sha256(codec.decode_latents(data, engine=engine)) == GOLDEN[name]["y_hat"]
    assert sha256(z_of(data, light.LightEngine(tiny.load()).coder)) == GOLDEN[name]["z"]


@pytest.mark.parametrize("name", GOLDEN)
def test_latents_of_a_golden_file_encode_to_its_streams_byte_by_byte(name: str) -> None:
    data = golden_bytes(name)
    coder = light.LightEngine(tiny.load()).coder
    header, reader = container.parse_header(data), container.Reader(data)
    y_hat, z = codec.decode_latents(data), z_of(data, coder)
    # Every residual of y_hat is nearest to the symbol of the file; an encoder that weighs bits need not take it again.
    coder.quantise = lambda residuals, levels, rate_weight: np.rint(residuals).astype(np.int32)
    coded, again = coder.encode((y_hat / 16).astype(np.float32), z.astype(np.float32), header.quality)
    np.testing.assert_array_equal(again, y_hat)
    verify = reader.verifier(0)
    for s in container.STREAM_ORDER:
        assert coded[s].data == reader.stream(s, 0)
        assert verify(s, coded[s].latents_crc)


@pytest.mark.parametrize("name", tiny.PICTURES)
def test_golden_pictures_look_alike_in_both_engines(name: str) -> None:
    light, other = (np.asarray(codec.decode(golden_bytes(name), engine=e)).astype(int) for e in ("light", "torch"))
    assert light.shape == (*tiny.PICTURES[name][1::-1], 3)
    assert np.abs(light - other).max() <= 1


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), ODD_SIZES)
def test_odd_sizes_come_back_exactly_and_to_the_encoders_latents(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = watch(monkeypatch)
    data = tiny.encode(width, height)
    header = container.parse_header(data)
    assert (header.width, header.height) == (width, height)
    assert size_of(data) == (width, height)
    y_hat = codec.decode_latents(data)
    for (row, column, rows, columns), (_, tile) in zip(header.tiles, written[-header.n_tiles :], strict=True):
        np.testing.assert_array_equal(y_hat[row : row + rows, column : column + columns], tile)


def test_an_image_beyond_4096_has_two_tiles() -> None:
    assert len(container.parse_header(encoded(4097, 300)).tiles) == 2


@pytest.mark.parametrize(("width", "height"), [(1, 1), (127, 129), (4097, 300)])
def test_torch_engine_decodes_odd_sizes_to_the_same_latents(width: int, height: int) -> None:
    data = encoded(width, height)
    np.testing.assert_array_equal(codec.decode_latents(data, engine="torch"), codec.decode_latents(data))
    assert size_of(data, engine="torch") == (width, height)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 5), (127, 129)])
def test_packaged_model_codes_odd_sizes(width: int, height: int) -> None:
    data = codec.encode(tiny.picture(width, height))
    assert size_of(data) == (width, height)
    assert weights.model_name(container.parse_header(data).model_id) == weights.DEFAULT_MODEL


@settings(max_examples=20)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 10000))
def test_any_size_and_quality_comes_back(width: int, height: int, hundredths: int) -> None:
    data = tiny.encode(width, height, hundredths / 100)
    assert container.parse_header(data).quality == Quality(hundredths)
    assert size_of(data) == (width, height)


# --- file sizes -------------------------------------------------------------------------------------------------------


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Coded], np.ndarray]]:
    """Collects what the latent coder makes of each tile."""
    seen = []
    encode = LatentCoder.encode

    def watched(self: LatentCoder, *args: Any, **options: Any) -> Any:
        result = encode(self, *args, **options)
        seen.append(result)
        return result

    monkeypatch.setattr(LatentCoder, "encode", watched)
    return seen


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_file_size_is_what_the_tables_estimate(name: str, photos: dict[str, Path]) -> None:
    with Image.open(photos[name]) as image:
        pixels = np.asarray(image.convert("RGB"))
    for quality in (50, 90):
        assert_size_is_estimated(codec.encode(pixels, quality))


def assert_size_is_estimated(data: bytes) -> None:
    """Within 1% and 76 bytes: 44 of the container, and 8 for the state of each stream."""
    assert container.parse_header(data).chunks == ()
    estimate = sum(plane.sum() for plane in codec.bits_map(data).values()) / 8
    assert estimate > 0
    assert abs(len(data) - estimate) <= 0.01 * estimate + 76


def test_overhead_of_a_small_picture_is_at_most_44_bytes_beside_its_streams() -> None:
    header = container.parse_header(SMALL)
    assert len(SMALL) - sum(header.bytes_of(s) for s in container.STREAM_ORDER) <= 44


# --- damage -----------------------------------------------------------------------------------------------------------


def test_truncation_at_every_byte_is_refused() -> None:
    for n in range(len(SMALL)):
        with pytest.raises((InputError, IntegrityError)):
            codec.decode(SMALL[:n])


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("name", ["tiny-131x77", "tiny-extreme"])
def test_flipping_bits_of_any_byte_is_refused(name: str, mask: int) -> None:
    data = golden_bytes(name)
    for n in range(len(data)):
        damaged = bytearray(data)
        damaged[n] ^= mask
        with pytest.raises(HpcmError):
            codec.decode(bytes(damaged))


def test_bytes_behind_the_end_are_refused() -> None:
    with pytest.raises(InputError):
        codec.decode(SMALL + b"\0")


def repacked(change: Callable[[str, bytes, int], tuple[bytes, int]]) -> bytes:
    """SMALL with other streams and latent CRCs, all other checksums being right."""
    header = container.parse_header(SMALL)
    return container.pack(
        model_id=header.model_id,
        width=header.width,
        height=header.height,
        quality=header.quality,
        streams={
            scale: [container.Stream(*change(scale, stream.data, stream.latents_crc))]
            for scale, (stream,) in streams_of_small().items()
        },
    )


@lru_cache(maxsize=1)
def streams_of_small() -> dict[str, list[container.Stream]]:
    return tiny.streams_of(SMALL)


def test_repacking_changes_nothing_by_itself() -> None:
    assert repacked(lambda scale, stream, crc: (stream, crc)) == SMALL


@pytest.mark.usefixtures("fresh_engines")
@pytest.mark.parametrize(
    ("scale", "where"), [("z", ""), ("s1", ", coding step 2"), ("s2", ", coding step 5"), ("s3", ", coding step 11")]
)
@pytest.mark.parametrize("engine", ["light", "torch"])
def test_latents_that_come_out_differently_say_where_with_what_and_what_to_do(
    scale: str, where: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCM_OPS", "reference")
    wrong = repacked(lambda s, stream, crc: (stream, crc ^ (s == scale)))
    with pytest.raises(IntegrityError) as raised:
        codec.decode(wrong, engine=engine)
    last = f"{where} of 11" if where else ""
    assert str(raised.value) == (
        f"decoded latents of {scale} (tile 0{last}) differ from the encoder's (CRC mismatch); decoded by the {engine} "
        "engine with no kernels: please report what hpcm doctor says"
    )


@pytest.mark.usefixtures("fresh_engines")
def test_kernels_that_may_be_to_blame_are_named_and_the_way_around_them(
    kernel_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "prebuilt", lambda folder, source: kernel_library)
    monkeypatch.delenv("HPCM_OPS", raising=False)
    wrong = repacked(lambda s, stream, crc: (stream, crc ^ 1))
    with pytest.raises(IntegrityError, match=r"light engine with \w+ kernels: try HPCM_OPS=reference, and report what"):
        codec.decode(wrong)


@pytest.mark.parametrize("scale", container.STREAM_ORDER)
@pytest.mark.parametrize("engine", ["light", "torch"])
def test_hostile_stream_with_right_checksums_is_an_integrity_error(scale: str, engine: str) -> None:
    rng = np.random.RandomState(1)
    for hostile in (b"", b"\xff" * 400, b"\x00" * 40, rng.bytes(4), rng.bytes(64), rng.bytes(4000)):
        wrong = repacked(lambda s, stream, crc, hostile=hostile: (hostile if s == scale else stream, crc))  # type: ignore[misc]
        with pytest.raises(IntegrityError, match=rf"^tile 0, stream {scale}: |^decoded latents of {scale} \(tile 0"):
            codec.decode(wrong, engine=engine)


def test_file_of_an_unknown_model_names_it() -> None:
    other = tiny.with_model_id(SMALL, bytes(range(4)))
    with pytest.raises(UnsupportedError, match="00010203"):
        codec.decode(other)


def test_a_file_of_a_hundred_bytes_does_not_stand_for_12_megapixels() -> None:
    """Streams of nothing but a state once went on with zeros for as many symbols as a header asked for."""
    states = [(2**31).to_bytes(8, "little"), (2**63 - 1).to_bytes(8, "little"), b"\0\0\0\0\1\0\0\0"]
    for state in states:
        streams = {s: [container.Stream(state, 0)] for s in container.STREAM_ORDER}
        hostile = container.pack(
            model_id=tiny.load().model_id, width=4000, height=3000, quality=Quality(0), streams=streams
        )
        assert len(hostile) < 100
        with pytest.raises(IntegrityError, match="tile 0, stream z: the stream is damaged"):
            codec.decode(hostile)


# --- pictures of which the model knows little -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_full_file_cuts_no_latent_however_far_outside_the_tables(seed: int) -> None:
    coder = light.LightEngine(tiny.load()).coder
    y, z = tiny.latents(9, 14, seed)
    cut: list[tuple[float, float]] = []
    _, skipping = coder.encode(y, z, Quality(3000), cut=lambda *step: cut.append(step))
    coded, y_hat = coder.encode(y, z, Quality(3000), full=True)
    streams, size = {s: c.data for s, c in coded.items()}, (Quality(3000), 9, 14)
    np.testing.assert_array_equal(coder.decode(streams, None, *size, full=True), y_hat)
    # The dead zone and the centroids move a latent by a step and a half at most.
    assert np.abs(y_hat / 16 - y).max() < 1.5 < np.abs(skipping / 16 - y).max()
    error, saved = np.sum(cut, axis=0)
    more = sum(len(s) for s in streams.values()) - sum(
        len(c.data) for c in coder.encode(y, z, Quality(3000))[0].values()
    )
    assert error > 0
    assert more > 0
    assert saved > 0


def halftone(side: int = 96) -> np.ndarray:
    """(side, side, 3) uint8: dots of black on white that grow from one corner to the other."""
    rows, columns = np.mgrid[:side, :side]
    dots = np.cos(2 * np.pi * (rows + columns) / 5) + np.cos(2 * np.pi * (rows - columns) / 5)
    black = dots > 2 - 4 * (rows + columns) / (2 * side)
    return np.repeat(np.where(black, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("effort", [0, 1])
def test_a_halftone_gets_better_with_the_quality(effort: int) -> None:
    picture, found = halftone(), []
    for quality in (50, 70, 80, 90, 100):
        data = codec.encode(picture, quality, effort=effort)
        found.append(psnr_db(np.asarray(codec.decode(data)), picture))
    assert container.parse_header(data).full
    assert min(np.diff(found)) > -0.05


def test_a_photograph_is_not_full(photos: dict[str, Path]) -> None:
    for quality in (20, 90):
        assert not container.parse_header(codec.encode(photos["chelsea"], quality)).full


# --- tiles, and checks of the pixels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 128])
def test_smaller_tiles_are_coded_one_by_one(side: int) -> None:
    data = tiny.encode(2060, 1030, tile=side)
    header = container.parse_header(data)
    assert (header.tile_side, header.n_tiles) == (side, -(-129 // side) * -(-65 // side))
    assert size_of(data) == (2060, 1030)
    assert size_of(data, scale="s1") == (2060, 1030)


def test_another_tile_side_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="256, 128, 64, not 32"):
        tiny.encode(8, 8, tile=32)


def test_a_verified_file_carries_a_checksum_of_its_pixels_that_decoding_compares() -> None:
    plain, verified = tiny.encode(131, 77), tiny.encode(131, 77, verify=True)
    picture = codec.decode(verified)
    assert picture.tobytes() == codec.decode(plain).tobytes()
    assert container.parse_header(verified).picture_crc == zlib.crc32(picture.tobytes())
    assert len(verified) - len(plain) == 5
    assert size_of(verified, scale="s1") == (131, 77)
    header = container.parse_header(verified)
    wrong = container.pack(
        model_id=header.model_id,
        width=131,
        height=77,
        quality=header.quality,
        full=header.full,
        picture_crc=header.picture_crc ^ 1,
        streams=tiny.streams_of(verified),
    )
    with pytest.raises(IntegrityError, match="decoded pixels differ from those of the encoder"):
        codec.decode(wrong)


# --- previews ---------------------------------------------------------------------------------------------------------


def end_of(data: bytes, scale: str) -> int:
    header = container.parse_header(data)
    return header.stream_info(scale, header.n_tiles - 1).end


@pytest.mark.parametrize("engine", ["light", "torch"])
@pytest.mark.parametrize("name", ["tiny-131x77", "tiny-extreme"])
@pytest.mark.parametrize("scale", SCALES)
def test_preview_of_a_cut_file_is_that_of_the_whole_one(name: str, scale: str, engine: str) -> None:
    data = golden_bytes(name)
    cut = data[: end_of(data, scale)]
    whole = codec.decode(data, scale=scale, engine=engine)
    assert whole.size == codec.decode(data).size
    assert codec.decode(cut, scale=scale, engine=engine).tobytes() == whole.tobytes()


def test_preview_of_the_last_scale_is_the_picture() -> None:
    assert codec.decode(SMALL, scale="s3").tobytes() == codec.decode(SMALL).tobytes()


def test_previews_of_an_image_of_two_tiles() -> None:
    data = encoded(4097, 300)
    for scale in SCALES:
        cut = data[: end_of(data, scale)]
        assert codec.decode(cut, scale=scale).tobytes() == codec.decode(data, scale=scale).tobytes()


@pytest.mark.parametrize(("scale", "reached"), [("s1", "z"), ("s2", "s1"), ("s3", "s2")])
def test_cut_before_the_end_of_the_scale_asked_for_is_refused(scale: str, reached: str) -> None:
    for n in range(end_of(SMALL, reached), end_of(SMALL, scale)):
        with pytest.raises(InputError, match=f"before the end of scale {scale}"):
            codec.decode(SMALL[:n], scale=scale)


def test_damage_in_a_preview_is_refused() -> None:
    cut = bytearray(SMALL[: end_of(SMALL, "s2")])
    cut[-1] ^= 1
    with pytest.raises(IntegrityError):
        codec.decode(bytes(cut), scale="s2")
    assert codec.decode(bytes(cut), scale="s1").size == (131, 77)  # what is damaged is not read


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [-0.01, 100.01, float("nan"), float("inf")])
def test_quality_is_0_to_100(quality: float) -> None:
    with pytest.raises(ValueError, match="quality is 0 to 100"):
        tiny.encode(8, 8, quality)


@given(st.integers(0, 10000))
def test_quality_comes_back_from_each_of_its_units(hundredths: int) -> None:
    quality = Quality(hundredths)
    assert Quality.of(quality.percent) == Quality.of_unit(quality.unit) == quality


@pytest.mark.parametrize("hundredths", [-1, 10001])
def test_quality_has_no_hundredths_beyond_its_range(hundredths: int) -> None:
    with pytest.raises(ValueError, match=r"quality -?\d+ is not in 0..10000"):
        Quality(hundredths)


@pytest.mark.parametrize("effort", [-1, 10, 0.5])
def test_effort_is_0_to_9(effort: float) -> None:
    with pytest.raises(ValueError, match="effort is 0 to 9"):
        tiny.encode(8, 8, effort=effort)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "heavy"}, "engine is auto, light or torch"),
        ({"device": "tpu"}, "device is cpu or cuda"),
        ({"device": "cuda", "engine": "light"}, "light engine runs on the CPU alone"),
    ],
)
def test_engine_and_device_out_of_range_are_value_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.encode(8, 8, **options)
    with pytest.raises(ValueError, match=message):
        codec.decode(SMALL, **options)


def test_scale_out_of_range_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="scale is one of s1, s2, s3"):
        codec.decode(SMALL, scale="z")


def test_cuda_without_a_gpu_is_unsupported() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UnsupportedError, match="cuda"):
        tiny.encode(8, 8, device="cuda")
    with pytest.raises(UnsupportedError, match="cuda"):
        codec.decode(SMALL, device="cuda")


@pytest.mark.usefixtures("fresh_engines")
def test_torch_engine_without_torch_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hpcmcodec.engines.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnsupportedError, match="torch, which is not installed"):
        codec.decode(SMALL, engine="torch")
    assert size_of(SMALL) == (131, 77)


def test_unknown_model_name_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="no model 'huge-9'"):
        codec.encode(tiny.picture(8, 8), model="huge-9")


def test_more_pixels_than_the_limit_are_refused_on_both_sides() -> None:
    padded = 144 * 80
    for n in (padded, None):
        assert size_of(tiny.encode(131, 77, max_pixels=n), max_pixels=n) == (131, 77)
    with pytest.raises(UnsupportedError, match=r"11520 pixels, padded .*--max-pixels"):
        tiny.encode(131, 77, max_pixels=padded - 1)
    with pytest.raises(UnsupportedError, match="--max-pixels"):
        codec.decode(SMALL, max_pixels=padded - 1)
    with pytest.raises(UnsupportedError, match="pixels"):
        codec.decode_latents(SMALL, max_pixels=9)


def test_image_may_be_a_path_bytes_a_pil_image_or_an_array(tmp_path: Path) -> None:
    pixels = tiny.picture(31, 22)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    sources: list[Any] = [
        pixels,
        path,
        str(path),
        path.read_bytes(),
        Image.fromarray(pixels),
        io.BytesIO(path.read_bytes()),
    ]
    assert len({codec.encode(source, model=tiny.NAME) for source in sources}) == 1


def test_data_may_be_a_path_bytes_or_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.hpcm"
    path.write_bytes(SMALL)
    expected = codec.decode(SMALL).tobytes()
    sources: list[Any] = [path, str(path), bytearray(SMALL), memoryview(SMALL), io.BytesIO(SMALL)]
    for source in sources:
        assert codec.decode(source).tobytes() == expected
    with pytest.raises(InputError, match=r"nowhere\.hpcm"):
        codec.decode(tmp_path / "nowhere.hpcm")
    with pytest.raises(TypeError, match="not int"):
        codec.decode(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("effort", [0, 2])
@pytest.mark.parametrize("engine", ["light", "torch"])
def test_progress_rises_from_0_to_1(engine: str, effort: int) -> None:
    calls: list[float] = []
    data = tiny.encode(4097, 40, progress=calls.append, engine=engine, effort=effort)
    encoding = calls.copy()
    calls.clear()
    codec.decode(data, progress=calls.append, engine=engine)
    for seen in (encoding, calls):
        assert len(seen) >= 11  # a step of each tile at least
        assert seen == sorted(seen)
        assert 0 <= seen[0] < 0.6
        assert seen[-1] == pytest.approx(1)


# --- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_engines")
def test_model_and_sessions_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights.load.cache_clear()
    loads, sessions = Mock(wraps=weights.load_file), Mock(wraps=onnxruntime.InferenceSession)
    monkeypatch.setattr(weights, "load_file", loads)
    monkeypatch.setattr(onnxruntime, "InferenceSession", sessions)
    for _ in range(3):
        assert size_of(tiny.encode(20, 10)) == (20, 10)
    assert loads.call_count == 1
    assert sessions.call_count == 1  # analysis: decoding needs none


@pytest.mark.usefixtures("fresh_engines")
def test_threads_get_what_one_thread_gets() -> None:
    jobs = [
        (w, h, q, engine) for w, h, q in ((40, 33, 20), (65, 17, 50), (31, 90, 80)) for engine in ("light", "torch")
    ]

    def work(job: tuple[int, int, int, str]) -> tuple[bytes, bytes]:
        width, height, quality, engine = job
        data = tiny.encode(width, height, quality, engine=engine)
        return data, codec.decode(data, engine=engine).tobytes()

    with ThreadPoolExecutor(6) as pool:  # the engines are made by whichever thread comes first
        together = list(pool.map(work, jobs * 3))
    alone = [work(job) for job in jobs]
    assert together == alone * 3


def torch_settings() -> dict[str, Any]:
    return {
        "matmul": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": torch.backends.cudnn.allow_tf32,
        "precision": torch.get_float32_matmul_precision(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "flush denormal": float(torch.tensor([1e-40]) + 0) == 0,
        "random": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
    }


@pytest.fixture(params=[False, True], ids=["TF32 off", "TF32 on"])
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    """TF32 off and on beforehand, for products and for convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = request.param
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("fresh_engines", "tf32")
@pytest.mark.parametrize("engine", ["light", "torch"])
def test_torch_settings_and_random_state_are_put_back(engine: str) -> None:
    before = torch_settings()
    data = tiny.encode(24, 24, engine=engine)
    assert torch_settings() == before
    codec.decode(data, engine=engine)
    assert torch_settings() == before
    with pytest.raises(IntegrityError):
        codec.decode(repacked(lambda s, stream, crc: (stream, crc ^ 1)), engine=engine)
    assert torch_settings() == before


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("fresh_engines")
@pytest.mark.parametrize("make_engine_first", [False, True], ids=["engine made inside", "engine made before"])
@pytest.mark.parametrize(
    "surroundings",
    [lambda: torch.autocast("cpu"), torch.inference_mode, torch.no_grad, float64_by_default],
    ids=["autocast", "inference mode", "no grad", "float64 by default"],
)
def test_torch_engine_decodes_the_same_whatever_surrounds_it(surroundings: Any, make_engine_first: bool) -> None:
    data = codec.encode(tiny.picture(96, 64), 90)
    expected, picture = codec.decode_latents(data), np.asarray(codec.decode(data))
    if make_engine_first:
        codec.decode_latents(data, engine="torch")
    with surroundings():
        found = codec.decode_latents(data, engine="torch")
        pixels = np.asarray(codec.decode(data, engine="torch"))
        other = codec.encode(tiny.picture(40, 24), engine="torch")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pixels, picture)
    assert size_of(other) == (40, 24)
    np.testing.assert_array_equal(codec.decode_latents(data, engine="torch"), expected)


# --- effort -----------------------------------------------------------------------------------------------------------


def loss_of(pixels: np.ndarray, quality: float, **options: Any) -> float:
    """What training of the shipped model minimises: bits and lambda times its distortion, in bits a pixel."""
    torch = pytest.importorskip("torch")
    from hpcmcodec.model.distortion import Distortion

    data = codec.encode(pixels, quality, **options)
    x_hat, x = (
        torch.from_numpy(v.astype(np.float32) / 255).permute(2, 0, 1)[None]
        for v in (np.asarray(codec.decode(data)), pixels)
    )
    distortion = Distortion.of(weights.load().config)(x_hat, x, torch.tensor([lmbda(quality / 100)]))
    return 8 * len(data) / (pixels.shape[0] * pixels.shape[1]) + float(distortion)


@pytest.mark.parametrize(
    ("name", "top", "left", "quality", "engine"),
    [
        # torch is several times slower: one of its pictures in the quick suite, the others in the slow one.
        pytest.param(*case, engine, marks=[pytest.mark.slow] * (engine == "torch" and case[0] != "chelsea"))
        for case in (
            *(("motorcycle_left", 100, 200, quality) for quality in (20, 50, 90)),
            ("coffee", 100, 100, 50),
            ("chelsea", 60, 60, 80),
        )
        for engine in ("light", "torch")
    ],
)
def test_effort_lowers_the_loss_and_more_of_it_lowers_it_further(
    name: str, top: int, left: int, quality: float, engine: str, photos: dict[str, Path]
) -> None:
    with Image.open(photos[name]) as image:
        photo = np.asarray(image.convert("RGB"))[top : top + 207, left : left + 253]  # not a multiple of 16
    losses = [loss_of(photo, quality, effort=effort, engine=engine) for effort in (0, 1, 6)]
    assert losses[1] < 0.995 * losses[0]
    assert losses[2] < 0.997 * losses[1]


@pytest.mark.parametrize("size", [1, 4])
def test_effort_settles_where_the_distortion_is_steepest(size: int) -> None:
    squares = 255 * np.random.default_rng(0).integers(0, 2, (128 // size, 128 // size, 3), np.uint8)
    picture = squares.repeat(size, axis=0).repeat(size, axis=1)
    assert loss_of(picture, 100, effort=9) < loss_of(picture, 100)


@given(width=st.integers(1, 60), height=st.integers(1, 60), hundredths=st.integers(0, 10000))
@settings(max_examples=10)
def test_a_file_made_with_effort_comes_back(width: int, height: int, hundredths: int) -> None:
    assert size_of(tiny.encode(width, height, hundredths / 100, effort=2)) == (width, height)


def test_an_image_of_two_tiles_can_be_refined() -> None:
    assert size_of(tiny.encode(4097, 40, effort=1)) == (4097, 40)


def test_what_was_padded_has_no_say_in_the_refinement() -> None:
    weight = refine.error_weight(20, 33, Quality(5000))
    assert weight.shape == (32, 48, 1)
    assert np.all(weight[:20, :33] == np.float32(2 / 3 * 255**2 * lmbda(0.5)))
    assert weight.sum() == pytest.approx(20 * 33 * weight[0, 0, 0])


# --- photographs ------------------------------------------------------------------------------------------------------


def test_a_photograph_of_kodaks_size_comes_back(photos: dict[str, Path]) -> None:
    with Image.open(photos["motorcycle_left"]) as image:
        photo = image.convert("RGB").resize((768, 512))
    data = codec.encode(photo, 50)
    assert size_of(data) == (768, 512)
    assert len(data) < 768 * 512 * 3 / 4


@pytest.mark.slow
def test_kodak_comes_back_in_files_of_the_estimated_size_and_better_in_more_bytes(kodak: list[Path]) -> None:
    assert len(kodak) == 24
    for path in kodak:
        points = []
        for quality in (10, 50, 90):
            data = codec.encode(path, quality)
            assert_size_is_estimated(data)
            png = io.BytesIO()
            codec.decode(data).save(png, "PNG", compress_level=1)
            with Image.open(path) as original, Image.open(png) as decoded:
                assert decoded.size == original.size
                points.append((len(data), psnr_db(np.asarray(original.convert("RGB")), np.asarray(decoded))))
        sizes, psnrs = zip(*points, strict=True)
        assert sorted(set(sizes)) == list(sizes), path.name
        assert sorted(set(psnrs)) == list(psnrs), path.name


@pytest.mark.slow
def test_previews_of_kodak_get_better_from_scale_to_scale(kodak: list[Path]) -> None:
    for path in kodak:
        data = codec.encode(path, 50)
        with Image.open(path) as image:
            original = np.asarray(image.convert("RGB"))
        psnrs = [psnr_db(original, np.asarray(codec.decode(data, scale=s))) for s in SCALES]
        assert psnrs[0] < psnrs[1] < psnrs[2], path.name
