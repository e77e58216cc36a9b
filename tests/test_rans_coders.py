"""The coders of the same streams: they agree to the byte, and the choice between them is made as documented."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmcodec import cli, codec, rans_check, rans_coders
from hpcmcodec.engines import base, light
from hpcmcodec.errors import IntegrityError, UnsupportedError
from hpcmcodec.native import loader
from hpcmcodec.rans import MAX_SYMBOL, Decoder, Encoder, Tables
from hpcmcodec.rans_coders import Coder, CompressAI, Native
from tests import coders, test_rans, tiny
from tools.hashes import sha256

ROOT = Path(__file__).parent.parent
INSTALL = "pip install --no-deps compressai==1.2.8"


def compressai_or_skip() -> None:
    try:
        CompressAI()
    except UnsupportedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def natives(all_coders: dict[str, Coder]) -> list[Native]:
    return [coder for coder in all_coders.values() if isinstance(coder, Native)]


# --- the same bytes, the same symbols --------------------------------------------------------------------------------


def random_tables(seed: int, sizes: list[int], reach: int) -> Tables:
    """Tables of these sizes with random frequencies, from values in +-`reach`; the first one codes 0."""
    rng = np.random.default_rng(seed)
    cdf = np.zeros((len(sizes), max(sizes) + 1), np.int64)
    for row, size in zip(cdf, sizes, strict=True):
        row[1 : size - 1] = np.sort(rng.choice(np.arange(1, 1 << 16), size - 2, replace=False))
        row[size - 1] = 1 << 16
    high = np.array(sizes) - 3
    offsets = np.maximum(-MAX_SYMBOL, np.minimum(rng.integers(-reach, reach + 1, len(sizes)), MAX_SYMBOL - high))
    offsets[0] = -rng.integers(0, high[0] + 1)
    return Tables(cdf, np.array(sizes), offsets)


some_tables = st.builds(
    random_tables,
    st.integers(0, 2**32 - 1),
    # 65,537 is the largest size that there is: each entry has the frequency 1.
    st.lists(st.sampled_from([3, 3, 4, 5, 20, 300, 1589, 65_537]), min_size=1, max_size=6),
    st.sampled_from([0, 5, 1000, MAX_SYMBOL]),
)
a_distance = st.one_of(
    st.integers(-3, 3),
    st.integers(-2000, 2000),
    st.integers(-MAX_SYMBOL, MAX_SYMBOL),
    st.sampled_from([(1 << 23) - 1, -(1 << 23)]),
)
# CompressAI's writes fewer than 4 beyond the end of its buffer.
some_symbols = st.lists(st.tuples(st.integers(0, 5), a_distance, st.booleans()), min_size=4, max_size=200)


def placed(tables: Tables, drawn: list[tuple[int, int, bool]]) -> tuple[Any, Any]:
    """Symbols, at these distances from either end of their tables' ranges, and indexes."""
    indexes = np.array([table % len(tables) for table, _, _ in drawn], np.intp)
    ends = [int((tables.low if low else tables.high)[i]) for i, (_, _, low) in zip(indexes, drawn, strict=True)]
    return np.array([e + d for e, (_, d, _) in zip(ends, drawn, strict=True)], np.int32), indexes


def read(coder: Coder, data: bytes, tables: Tables, indexes: Any, cut: int) -> list[int] | str:
    """The symbols and where the reader then stands, or the message of what refuses the stream."""
    reader = coder.reader(data, tables)
    try:
        symbols = [*reader.get(indexes[:cut]).tolist(), *reader.get(indexes[cut:]).tolist()]
    except IntegrityError as error:
        return str(error)
    return [*symbols, reader.position, reader.state]


@given(some_tables, some_symbols, st.integers(0, 200))
def test_all_coders_write_the_same_bytes_and_read_the_same_symbols(
    all_coders: dict[str, Coder], tables: Tables, drawn: list[tuple[int, int, bool]], cut: int
) -> None:
    symbols, indexes = placed(tables, drawn)
    streams = {}
    for name, coder in all_coders.items():
        writer = coder.writer(tables)
        for part in (slice(0, cut), slice(cut, None)):
            writer.put(symbols[part], indexes[part])
        streams[name] = writer.finish()
    data = streams["native Python"]
    assert streams == dict.fromkeys(all_coders, data)
    for coder in all_coders.values():
        assert read(coder, data, tables, indexes, cut) == [*symbols.tolist(), len(data) // 4, 1 << 31]


a_word = st.one_of(st.binary(min_size=4, max_size=4), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x88" * 4]))
some_bytes = st.builds(
    lambda state, words: state.to_bytes(8, "little") + b"".join(words),
    st.one_of(st.integers(2**31, 2**63 - 1), st.sampled_from([2**31, 2**63 - 1])),
    st.lists(a_word, max_size=60),
)


@given(some_tables, some_bytes, st.lists(st.integers(0, 5), max_size=200), st.integers(0, 200))
@settings(max_examples=200)
def test_all_coders_read_the_same_symbols_from_any_bytes(
    all_coders: dict[str, Coder], tables: Tables, data: bytes, numbers: list[int], cut: int
) -> None:
    indexes = np.array([number % len(tables) for number in numbers], np.intp)
    found = {name: read(coder, data, tables, indexes, cut) for name, coder in all_coders.items()}
    assert found == dict.fromkeys(all_coders, found["native Python"])


def ending(data: bytes, indexes: Any) -> list[int] | str:
    """The symbols, or the message of what refuses the stream."""
    try:
        return test_rans.decode(data, indexes).tolist()
    except IntegrityError as error:
        return str(error)


def test_a_stream_is_accepted_or_refused_alike_whatever_the_coder(all_coders: dict[str, Coder]) -> None:
    n_refused = 0
    for data, indexes in test_rans.hostile_streams(random.Random(11), 600, max_symbols=2000):
        found = {}
        for name, coder in all_coders.items():
            with coders.used(coder):
                found[name] = ending(data, indexes)
        assert found == dict.fromkeys(all_coders, found["native Python"])
        n_refused += isinstance(found["native Python"], str)
    assert 100 < n_refused < 592


# --- whole files -----------------------------------------------------------------------------------------------------


def streams_of(data: bytes, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, Tables, list[tuple[Any, Any]]]]:
    """What decoding a file reads: each stream, its tables, and the parts in which its symbols are asked for."""
    found: dict[int, tuple[bytes, Tables, list[tuple[Any, Any]]]] = {}
    make, get = Decoder.__init__, Decoder.get

    def made(self: Decoder, stream: bytes, tables: Tables) -> None:
        make(self, stream, tables)
        self.number = len(found)  # type: ignore[attr-defined]
        found[self.number] = (stream, tables, [])  # type: ignore[attr-defined]

    def got(self: Decoder, indexes: Any) -> Any:
        symbols = get(self, indexes)
        found[self.number][2].append((symbols, indexes))  # type: ignore[attr-defined]
        return symbols

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__init__", made)
        patch.setattr(Decoder, "get", got)
        codec.decode_latents(data)
    return list(found.values())


def written_again(tables: Tables, parts: list[tuple[Any, Any]]) -> bytes:
    encoder = Encoder(tables)
    for symbols, indexes in parts:
        encoder.put(symbols, indexes)
    return encoder.finish()


@pytest.mark.parametrize("used", coders.NAMES)
@pytest.mark.parametrize("name", sorted(json.loads((tiny.DATA / "golden.json").read_text())))
def test_golden_files_are_read_and_written_again_to_the_byte(
    used: str, name: str, all_coders: dict[str, Coder], monkeypatch: pytest.MonkeyPatch
) -> None:
    if used not in all_coders:
        pytest.skip(coders.missing(used))
    golden = json.loads((tiny.DATA / "golden.json").read_text())[name]
    data = (tiny.DATA / f"{name}.hpcm").read_bytes()
    with tiny.installed(), coders.used(all_coders[used]):
        assert sha256(codec.decode_latents(data)) == golden["y_hat"]
        streams = streams_of(data, monkeypatch)
        assert len(streams) == 4
        for stream, tables, parts in streams:
            assert written_again(tables, parts) == stream


def mutated(rng: random.Random, stream: bytes, tables: Tables, parts: list[tuple[Any, Any]]) -> bytes:
    """The stream with damage, or its symbols written in a form that no encoder writes."""
    kind = rng.randrange(9)
    words = bytearray(stream or bytes(8))
    place = 4 * rng.randrange(len(words) // 4)
    if kind == 0:
        words[rng.randrange(len(words))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        words[place : place + 4] = rng.choice([bytes(4), b"\xff" * 4, rng.randbytes(4)])
    elif kind == 2:
        words += rng.choice([bytes(4), b"\xff" * 4, rng.randbytes(4)]) * rng.randint(1, 3)
    elif kind == 3:
        del words[-4 * rng.randint(1, 2) :]
    elif kind == 4:
        state = int.from_bytes(words[:8], "little") + rng.choice([-65536, -1, 1, 65536])
        words[:8] = (state % 2**64).to_bytes(8, "little")
    elif kind == 5:
        words[-1 - rng.randrange(min(8, len(words)))] ^= 1 << rng.randrange(8)
    else:
        pairs = [(int(v), int(i)) for symbols, indexes in parts for v, i in zip(symbols, indexes, strict=True)]
        outside = [n for n, (v, i) in enumerate(pairs) if not tables.low[i] <= v <= tables.high[i]]
        longer = rng.choice(outside) if outside and kind == 6 else -1
        coded = [test_rans.entries(v, i, rng.randint(1, 40) * (n == longer), tables) for n, (v, i) in enumerate(pairs)]
        for _ in range(4 - len(pairs)):
            coded.append(test_rans.entries(rng.randint(0, 1) * (kind == 7), 0, 0, tables))
        state = 2**31 + rng.randint(1, 2**31) * (kind == 8)
        return test_rans.without_rules([e for symbol_entries in coded for e in symbol_entries], state)
    return bytes(words)


def check_mutations(coder: Coder, n_mutations: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of changed files whose checksums are right, those that decode to the same latents have the same streams."""
    rng, n_decoded = random.Random(seed), 0
    with coders.used(coder):
        engine = light.LightEngine(tiny.load())
        for name, share in (("tiny-7x5", 20), ("tiny-40x52", 17), ("tiny-131x77", 2), (tiny.EXTREME, 1)):
            data = (tiny.DATA / f"{name}.hpcm").read_bytes()
            header, streams, _ = tiny.parts_of(data)
            size = header.quality, header.latent_height, header.latent_width
            with tiny.installed():
                parts = dict(zip(streams, streams_of(data, monkeypatch), strict=True))
            crcs: dict[str, int] = {}
            engine.coder.decode(streams, tiny.recorder(crcs), *size)
            for _ in range(n_mutations * share // 40):
                scale = rng.choice(list(streams))
                changed = streams | {scale: mutated(rng, *parts[scale])}
                try:
                    engine.coder.decode(changed, lambda s, crc, same=crcs: crc == same[s], *size)  # type: ignore[misc]
                except IntegrityError:
                    continue
                assert changed == streams
                n_decoded += 1
    return n_decoded


def test_changed_files_with_right_checksums_have_other_latents_or_are_refused(
    all_coders: dict[str, Coder], monkeypatch: pytest.MonkeyPatch
) -> None:
    for coder in all_coders.values():
        assert check_mutations(coder, 60, 3, monkeypatch) > 2  # rewritten as they were


@pytest.mark.slow
def test_of_many_changed_files_none_has_the_same_latents(in_cpp: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    """HPCM_FUZZ: how many files, 20,000 without it."""
    n_files = int(os.environ.get("HPCM_FUZZ", "20000"))
    n_decoded = check_mutations(in_cpp, n_files, 4, monkeypatch)
    sys.stdout.write(f"{n_files} files, {n_decoded} of them as they were, the others refused\n")


def test_a_photograph_is_coded_to_the_same_file_whatever_the_coder(
    all_coders: dict[str, Coder], photos: dict[str, Path]
) -> None:
    check_file(all_coders, photos["chelsea"])


def test_a_kodak_image_is_coded_to_the_same_file_whatever_the_coder(
    all_coders: dict[str, Coder], kodak: list[Path]
) -> None:
    check_file(all_coders, kodak[4])


def check_file(all_coders: dict[str, Coder], path: Path) -> None:
    files, latents = [], []
    for coder in all_coders.values():
        with coders.used(coder):
            files.append(codec.encode(path, 70))
            latents.append(codec.decode_latents(files[0]))
    assert files == files[:1] * len(files)
    for y_hat in latents:
        np.testing.assert_array_equal(y_hat, latents[0])


# --- what the coder in C++ refuses -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_cpp(all_coders: dict[str, Coder]) -> Coder:
    if "native C++" not in all_coders:
        pytest.skip("no C++ compiler")
    return all_coders["native C++"]


@pytest.mark.parametrize("index", [-1, 6, 2**31 - 1, -(2**31)])
def test_the_coder_in_cpp_refuses_indexes_that_name_no_table(in_cpp: Coder, index: int) -> None:
    tables, indexes = test_rans.TABLES, np.array([0, 0, index, 0])
    writer = in_cpp.writer(tables)
    writer.put(np.zeros(4, np.int32), indexes)
    with pytest.raises(ValueError, match=f"table {index}"):
        writer.finish()
    with pytest.raises(IntegrityError):
        in_cpp.reader(bytes(7) + b"\1", tables).get(indexes)


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [5, 4, 3, 2], [-1, -1, -1, -1], [0, 2**31 - 1, -(2**31), 9]])
def test_the_coder_in_cpp_refuses_rows_that_are_no_table(in_cpp: Coder, row: list[int]) -> None:
    cdf, zero = np.array([row], np.int32), np.zeros(1, np.int32)
    for size in (3, 4):
        tables: Any = SimpleNamespace(cdf=cdf, sizes=np.array([size], np.int32), offsets=zero)
        with pytest.raises(IntegrityError):
            in_cpp.reader(bytes(6) + b"\1\1", tables).get(np.zeros(1, np.intp))
    for size in (-(2**31), -1, 0, 1, 2, 5, 2**31 - 1):
        tables = SimpleNamespace(cdf=cdf, sizes=np.array([size], np.int32), offsets=zero)
        writer = in_cpp.writer(tables)
        writer.put(zero, np.zeros(1, np.intp))
        with pytest.raises(ValueError, match="table 0"):
            writer.finish()


@pytest.mark.parametrize("symbol", [2**23 + 9, -(2**23) - 9, 2**31 - 1, -(2**31)])
def test_values_that_take_more_than_six_groups_are_not_written(natives: list[Native], symbol: int) -> None:
    for coder in natives:
        writer = coder.writer(test_rans.TABLES)
        writer.put(np.array([0, symbol], np.int32), np.zeros(2, np.intp))
        with pytest.raises(ValueError, match=f"symbol {symbol} cannot be coded"):
            writer.finish()


def among_noise(coder: Coder, data: bytes, n: int, noise: np.random.RandomState) -> tuple[bool, bool]:
    """Read a stream and write symbols under tables and indexes that `rans` refuses; whether each went to its end."""
    numbers = np.sort(noise.randint(0, 65_537, (3, 9)))
    numbers[:, 0] = 0
    if noise.randint(2):
        numbers[noise.randint(3), noise.randint(9)] = noise.choice([-1, 0, 2**31 - 1, -(2**31)])
    sizes = np.where(
        noise.random_sample(3) < 0.7, noise.randint(3, 10, 3), noise.choice([-(2**31), 0, 2, 10, 2**31 - 1], 3)
    )
    numbers[np.arange(3), np.clip(sizes, 1, 9) - 1] = noise.choice([65_536, 65_536, 65_535, 65_537])
    offsets = noise.choice([0, -4, -9, 2**31 - 1, -(2**31)], 3, p=[0.3, 0.3, 0.3, 0.05, 0.05])
    tables: Any = SimpleNamespace(
        **{name: np.array(a, np.int32) for name, a in (("cdf", numbers), ("sizes", sizes), ("offsets", offsets))}
    )
    indexes = noise.choice([0, 1, 2, 3, -1], n, p=[0.4, 0.3, 0.298, 0.001, 0.001])
    symbols = noise.randint(-(2**31), 2**31, n, np.int64) >> noise.randint(3, 32)

    def write() -> None:
        writer = coder.writer(tables)
        writer.put(symbols, indexes)
        writer.finish()

    ends = []
    for call in (lambda: coder.reader(data, tables).get(indexes), write):
        try:
            call()
        except (ValueError, IntegrityError):
            ends.append(False)
        else:
            ends.append(True)
    return ends[0], ends[1]


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Choices are made anew, with neither variable set."""
    monkeypatch.delenv("HPCM_CODER", raising=False)
    monkeypatch.delenv("HPCM_OPS", raising=False)
    rans_coders._choose.cache_clear()
    yield monkeypatch
    rans_coders._choose.cache_clear()


def without_compressai(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(importlib.util, "find_spec", lambda name: None)
    patch.setattr(rans_coders, "_extension", None)
    patch.delitem(sys.modules, "compressai.ans", raising=False)


def test_compressais_coder_is_used_wherever_it_is_installed(fresh: pytest.MonkeyPatch) -> None:
    compressai_or_skip()
    for value in ("auto", "", "compressai"):
        fresh.setenv("HPCM_CODER", value)
        assert rans_coders.choose().coder.name == "compressai"


def test_this_projects_coder_is_used_where_compressais_is_not_installed(fresh: pytest.MonkeyPatch) -> None:
    without_compressai(fresh)
    fresh.setenv("HPCM_OPS", "reference")
    coder, reason = rans_coders.choose()
    assert coder.name == "native Python"
    assert "it is not installed" in reason
    assert INSTALL in reason
    symbols = np.arange(9, dtype=np.int32)
    tables = Tables(np.array([[0, 60_000, 65_536]]), np.array([3]), np.array([0]))
    encoder = Encoder(tables)
    encoder.put(symbols, np.zeros(9, np.intp))
    assert Decoder(encoder.finish(), tables).get(np.zeros(9, np.intp)).tolist() == symbols.tolist()


def test_this_projects_coder_is_in_cpp_where_there_are_kernels_and_in_python_elsewhere(
    fresh: pytest.MonkeyPatch, kernel_library: Path
) -> None:
    fresh.setenv("HPCM_CODER", "native")
    kernels = coders.named("native C++", str(kernel_library))._kernels  # type: ignore[attr-defined]
    fresh.setattr(loader, "find", lambda **_: loader.Status(kernels, "prebuilt", kernel_library, (), False))
    for ops in ("auto", "cpp", "cuda"):
        fresh.setenv("HPCM_OPS", ops)
        assert rans_coders.choose().coder.name == "native C++"
    fresh.undo()
    fresh.setenv("HPCM_CODER", "native")
    fresh.setenv("HPCM_OPS", "reference")
    coder, reason = rans_coders.choose()
    assert coder.name == "native Python"
    assert "HPCM_OPS=reference" in reason


def test_kernels_for_a_gpu_code_no_streams_those_for_the_processor_do(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("HPCM_OPS", "cuda")
    with pytest.raises(UnsupportedError, match="device cuda"):
        loader.find(background=False)
    beside = loader.find(background=False, beside_cuda=True)
    fresh.setenv("HPCM_OPS", "auto")
    assert beside == loader.find(background=False)


def run_hpcm(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.mark.parametrize("command", ["encode", "decode", "info", "doctor"])
def test_an_unknown_choice_is_one_line_and_exit_code_4(
    command: str, fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, photos: dict[str, Path]
) -> None:
    base.forget()
    fresh.setenv("HPCM_CODER", "rans")
    output = tmp_path / "out"
    file = tmp_path / "file.hpcm"
    file.write_bytes((tiny.DATA / "tiny-7x5.hpcm").read_bytes())
    arguments = {
        "encode": (photos["chelsea"], "-o", output),
        "decode": (file, "-o", output),
        "info": (file, "--coder"),
        "doctor": (),
    }[command]
    with tiny.installed():
        code, _, err = run_hpcm(capsys, command, *arguments)
    assert code == 4
    assert err.count("\n") == 1
    assert "HPCM_CODER is 'rans'; it can be auto, compressai, native" in err
    assert not output.exists()


def test_a_missing_coder_is_refused_before_anything_is_computed(
    fresh: pytest.MonkeyPatch, photos: dict[str, Path]
) -> None:
    base.forget()
    without_compressai(fresh)
    fresh.setenv("HPCM_CODER", "compressai")
    fresh.setattr(light.LightEngine, "analyse", lambda *_: pytest.fail("it was transformed"))
    with pytest.raises(UnsupportedError, match=re.escape(INSTALL)):
        codec.encode(photos["chelsea"])


def test_doctor_says_which_coder_is_used_and_why(fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fresh.setenv("HPCM_OPS", "reference")
    fresh.setenv("HPCM_CODER", "native")
    code, out, _ = run_hpcm(capsys, "doctor")
    assert code == 0
    assert " * Coder      : native Python\n * Because    : HPCM_CODER=native; no compiled kernels" in out
    assert " * Coder test : same bytes, same symbols: native Python" in out
    without_compressai(fresh)
    rans_coders._choose.cache_clear()
    fresh.delenv("HPCM_CODER")
    code, out, _ = run_hpcm(capsys, "doctor")
    assert code == 0
    assert " * HPCM_CODER : not set: auto\n * Coder      : native Python\n" in out
    assert INSTALL in out


def test_doctor_finds_a_coder_that_does_something_else(
    fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compressai_or_skip()
    fresh.setenv("HPCM_OPS", "reference")
    get = rans_coders._CompressAIReader.get
    fresh.setattr(rans_coders._CompressAIReader, "get", lambda self, indexes: get(self, indexes) + np.int32(1))
    code, _, err = run_hpcm(capsys, "doctor")
    assert code == 5
    assert "coders differ from the one in plain Python: compressai" in err


@pytest.mark.parametrize("wrong", ["write", "read"])
def test_the_comparison_finds_a_coder_that_writes_or_reads_something_else(
    wrong: str, natives: list[Native], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rans_check.differences(natives) == []
    for other in natives:
        spoilt = SimpleNamespace(name="spoilt", writer=other.writer, reader=other.reader)
        if wrong == "write":
            spoilt.writer = lambda tables: SimpleNamespace(put=lambda *_: None, finish=lambda: bytes(12))
        else:
            spoilt.reader = lambda *_: SimpleNamespace(
                get=lambda indexes: np.zeros(len(indexes), np.int32), position=0, state=0
            )
        assert rans_check.differences([natives[0], spoilt]) == ["spoilt"]


def test_info_names_the_coder_on_request_alone(fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fresh.setenv("HPCM_CODER", "native")
    fresh.setenv("HPCM_OPS", "reference")
    file = tiny.DATA / "tiny-7x5.hpcm"
    assert run_hpcm(capsys, "info", file, "--coder")[1].endswith("\n * Coder      : native Python\n")
    assert json.loads(run_hpcm(capsys, "info", file, "--coder", "--json")[1])["coder"] == "native Python"
    assert "Coder" not in run_hpcm(capsys, "info", file)[1]
    assert "coder" not in json.loads(run_hpcm(capsys, "info", file, "--json")[1])


# --- loading CompressAI's --------------------------------------------------------------------------------------------


CODE = """
import numpy as np
from hpcmcodec.rans import Decoder, Encoder, Tables
tables = Tables(np.array([[0, 60000, 65536]]), np.array([3]), np.array([0]))
zeros = np.zeros(9, np.int32)
encoder = Encoder(tables)
encoder.put(zeros, zeros)
assert not Decoder(encoder.finish(), tables).get(zeros).any()
"""
# The package without the imports of its __init__, as a process that has imported it would have it.
COMPRESSAI = """
import importlib, importlib.util, sys, types
package = types.ModuleType("compressai")
package.__spec__ = importlib.util.find_spec("compressai")
package.__path__ = package.__spec__.submodule_search_locations
sys.modules["compressai"] = package
ans = importlib.import_module("compressai.ans")
assert package.ans is ans
assert ans.RansEncoder().encode_with_indexes([0] * 4, [0] * 4, [[0, 60000, 65536]], [3], [0])
"""


def test_coding_imports_neither_compressai_nor_torch() -> None:
    loaded = test_rans.run_python("-c", CODE + "import sys; print(*{name.partition('.')[0] for name in sys.modules})")
    assert "numpy" in loaded.split()
    assert not {"compressai", "torch", "torchvision"} & set(loaded.split())


def test_a_coder_that_the_program_has_imported_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = ModuleType("compressai.ans")
    monkeypatch.setitem(sys.modules, "compressai.ans", imported)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(rans_coders, "_extension", None)
    assert rans_coders.load_extension() is imported


@pytest.mark.parametrize("script", [CODE + COMPRESSAI, COMPRESSAI + CODE], ids=["before", "after"])
def test_coding_does_not_disturb_a_program_that_imports_compressai_itself(script: str) -> None:
    compressai_or_skip()
    assert test_rans.run_python("-c", script + "print('done')") == "done"


@pytest.mark.parametrize("state", ["not installed", "no extension", "not loadable", "module without a spec"])
def test_a_missing_coder_is_reported_with_the_command_that_installs_it(
    state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def find_spec(name: str) -> object:
        assert name == "compressai"
        if state == "module without a spec":
            raise ValueError("compressai.__spec__ is None")
        return None if state == "not installed" else SimpleNamespace(submodule_search_locations=[str(tmp_path)])

    if state == "not loadable":
        (tmp_path / f"ans{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"not a library")
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(rans_coders, "_extension", None)
    monkeypatch.delitem(sys.modules, "compressai.ans", raising=False)
    with pytest.raises(UnsupportedError, match=re.escape(INSTALL)) as caught:
        CompressAI()
    assert "\n" not in str(caught.value)
