"""The entropy coder: what a stream is, what it costs, and that nothing that it is given makes it misbehave.

Every test runs with each coder that is there: CompressAI's, this project's in C++ and in plain Python.
"""

from __future__ import annotations

import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcmcodec import rans
from hpcmcodec.errors import IntegrityError
from hpcmcodec.rans import MAX_SYMBOL, Decoder, Encoder, Tables, bits
from hpcmcodec.rans_coders import Coder
from tests import coders

pytestmark = pytest.mark.usefixtures("coder")

Ints = NDArray[np.int32]


def ints(values: Sequence[int]) -> Ints:
    return np.array(values, np.int32)


def tables_of(*frequencies_and_offset: tuple[Sequence[int], int]) -> Tables:
    """Tables from their frequencies (the escape's last) and offsets; rows end in values that are ignored."""
    width = 1 + max(len(frequencies) for frequencies, _ in frequencies_and_offset)
    cdf = np.full((len(frequencies_and_offset), width), -1, np.int32)
    for row, (frequencies, _) in zip(cdf, frequencies_and_offset, strict=True):
        row[: len(frequencies) + 1] = np.cumsum([0, *frequencies])
    sizes = [len(frequencies) + 1 for frequencies, _ in frequencies_and_offset]
    return Tables(cdf, ints(sizes), ints([offset for _, offset in frequencies_and_offset]))


def peaked(radius: int) -> tuple[list[int], int]:
    """A symmetric table of -radius..radius with the frequencies of a Laplace distribution, and a rare escape."""
    weights = np.exp(-np.abs(np.arange(-radius, radius + 1)) / (radius / 4))
    frequencies = np.maximum(1, np.floor(weights / weights.sum() * 60_000)).astype(int).tolist()
    frequencies[radius] += 65_536 - 2 - sum(frequencies)
    return [*frequencies, 2], -radius


# 0: -8..8. 1: -100..100. 2: 5..7, never near zero. 3: the smallest table. 4: nearly all escape. 5: every entry as dear
# as an entry can be, but for one.
TABLES = tables_of(
    peaked(8),
    peaked(100),
    ([20_000, 20_000, 20_000, 5_536], 5),
    ([65_535, 1], 0),
    ([1, 65_535], -3),
    ([1, 65_533, 1, 1], -1),
)


def encode(symbols: Ints, indexes: Ints, cuts: Sequence[int] = ()) -> bytes:
    """The stream of symbols that are coded in parts, which end at `cuts`."""
    encoder = Encoder(TABLES)
    for part, part_indexes in zip(np.split(symbols, cuts), np.split(indexes, cuts), strict=True):
        encoder.put(part, part_indexes)
    return encoder.finish()


def decode(data: bytes, indexes: Ints, cuts: Sequence[int] = ()) -> Ints:
    decoder = Decoder(data, TABLES)
    symbols = np.concatenate([decoder.get(part) for part in np.split(indexes, cuts)])
    decoder.finish()
    return symbols


def drawn(n_symbols: int, seed: int) -> tuple[Ints, Ints]:
    """Symbols drawn from the tables' own frequencies (escapes a little outside), and their indexes."""
    rng = np.random.default_rng(seed)
    indexes = rng.choice([0, 1, 2, 3, 5], n_symbols).astype(np.int32)
    symbols = np.empty(n_symbols, np.int32)
    for table in range(len(TABLES)):
        here = indexes == table
        places = rng.integers(0, 65_536, here.sum())
        symbols[here] = np.searchsorted(TABLES.cdf[table, : TABLES.sizes[table]], places, "right") - 1
        symbols[here] += TABLES.offsets[table]
    return symbols, indexes


def entries(value: int, table: int, n_zero_groups: int = 0, tables: Tables = TABLES) -> list[tuple[int, int, int]]:
    """Start, frequency and bits of all that a symbol puts into a stream, with leading zero groups in its escape."""
    low, high = int(tables.low[table]), int(tables.high[table])
    entry = value - low if low <= value <= high else high + 1 - low
    start, end = tables.cdf[table, entry : entry + 2].tolist()
    found = [(start, end - start, 16)]
    if not low <= value <= high:
        rest = 2 * (value - high - 1) if value > high else 2 * (low - value) - 1
        groups = [rest >> 4 * place & 15 for place in range(-(-rest.bit_length() // 4) + n_zero_groups)]
        found += [(group, 1, 4) for group in (*[15] * (len(groups) // 15), len(groups) % 15, *groups)]
    return found


def without_rules(coded: Sequence[tuple[int, int, int]], state: int = 2**31) -> bytes:
    """The stream of entries (start, frequency, bits), whichever they are; encoding begins with `state`."""
    words: list[int] = []
    for start, frequency, n_bits in reversed(coded):
        if state >= frequency << (63 - n_bits):
            words.insert(0, state & 0xFFFFFFFF)
            state >>= 32
        state = (state // frequency << n_bits) + state % frequency + start
    return state.to_bytes(8, "little") + b"".join(word.to_bytes(4, "little") for word in words)


def run_python(*arguments: str) -> str:
    """What a fresh interpreter writes; the package is found there as it is here."""
    environment = os.environ | {"PYTHONPATH": str(Path(rans.__file__).parents[1])}
    command = [sys.executable, "-W", "error", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, f"exit status {result.returncode}: {result.stderr[-2000:]}"
    return result.stdout.strip()


class PlainDecoder:
    """A decoder written from the module's docstring, in Python integers; for streams that are whole."""

    def __init__(self, data: bytes) -> None:
        self._words = [int.from_bytes(data[place : place + 4], "little") for place in range(0, len(data), 4)]
        self.state = self._words[0] | self._words[1] << 32
        self.words_read = 2

    def get(self, table: int) -> int:
        cdf = TABLES.cdf[table, : TABLES.sizes[table]].tolist()
        low, high = int(TABLES.low[table]), int(TABLES.high[table])
        place = self.state & 0xFFFF
        entry = next(entry for entry in range(len(cdf)) if cdf[entry + 1] > place)
        self._advance((cdf[entry + 1] - cdf[entry]) * (self.state >> 16) + place - cdf[entry])
        if entry < len(cdf) - 2:
            return low + entry
        rest = sum(self._group() << 4 * place for place in range(self._group()))
        return low - (rest + 1) // 2 if rest % 2 else high + 1 + rest // 2

    def _group(self) -> int:
        group = self.state & 15
        self._advance(self.state >> 4)
        return group

    def _advance(self, state: int) -> None:
        if state < 2**31:
            state = state << 32 | self._words[self.words_read]
            self.words_read += 1
        self.state = state


# Streams


def test_a_stream_has_the_bytes_that_it_always_had() -> None:
    symbols, indexes = ints([0, -8, 8, 60, 6, 0, 0, 9, -300, 1, 1048576]), ints([0, 0, 0, 1, 2, 3, 3, 0, 1, 5, 4])
    data = encode(symbols, indexes)
    assert data.hex(" ", 4) == "297a362d 93eab402 988d4457 f318feff 470a000a"


def test_a_stream_is_what_the_docstring_describes() -> None:
    symbols, indexes = drawn(3000, seed=1)
    symbols[::50] = np.random.default_rng(2).integers(-MAX_SYMBOL, MAX_SYMBOL + 1, 60)
    data = encode(symbols, indexes)
    plain = PlainDecoder(data)
    assert [plain.get(table) for table in indexes.tolist()] == symbols.tolist()
    assert (plain.words_read, plain.state) == (len(data) // 4, 2**31)


def test_docs_decodings_example_is_a_stream() -> None:
    text = (Path(__file__).parent.parent / "docs" / "DECODING.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^    ((?:[0-9a-f]{2} ?){8,})$", text, re.MULTILINE)
    tables = Tables(np.array([[0, 49152, 65535, 65536]]), np.array([4]), np.array([0]))
    encoder = Encoder(tables)
    encoder.put(ints([0, 1, 0, 20, -1, 0]), ints([0] * 6))
    assert encoder.finish() == bytes.fromhex(found)


symbol = st.one_of(
    st.integers(-10, 10), st.integers(-300, 300), st.integers(-MAX_SYMBOL, MAX_SYMBOL), st.just(MAX_SYMBOL)
)
pairs = st.lists(st.tuples(symbol, st.integers(0, len(TABLES) - 1)), max_size=300)


@given(pairs, st.lists(st.integers(0, 300), max_size=4), st.lists(st.integers(0, 300), max_size=4))
def test_what_was_coded_is_decoded(
    given_pairs: list[tuple[int, int]], put_cuts: list[int], get_cuts: list[int]
) -> None:
    symbols, indexes = ints([pair[0] for pair in given_pairs]), ints([pair[1] for pair in given_pairs])
    data = encode(symbols, indexes, sorted(put_cuts))
    assert decode(data, indexes, sorted(get_cuts)).tolist() == symbols.tolist()


def test_a_long_stream_of_many_pieces_is_decoded() -> None:
    symbols, indexes = drawn(150_000, seed=3)
    data = encode(symbols, indexes, cuts=[70_000, 70_001])
    np.testing.assert_array_equal(decode(data, indexes, cuts=[5, 9_000]), symbols)


def test_where_a_stream_is_put_in_parts_makes_no_difference() -> None:
    symbols, indexes = drawn(1000, seed=4)
    assert encode(symbols, indexes, cuts=[1, 400, 400]) == encode(symbols, indexes)


def test_no_symbols_take_no_bytes() -> None:
    empty = ints([])
    encoder = Encoder(TABLES)
    encoder.put(empty, empty)
    assert encoder.finish() == b""
    assert Encoder(TABLES).finish() == b""
    symbols = decode(b"", empty)
    assert symbols.dtype == np.int32
    assert symbols.shape == (0,)


@pytest.mark.parametrize("n_symbols", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("value", "table"), [(7, 0), (-MAX_SYMBOL, 1), (6, 2), (1, 5)])
def test_short_streams_are_filled_up_to_four_symbols_with_zeros_under_table_0(
    n_symbols: int, value: int, table: int
) -> None:
    data = encode(ints([value] * n_symbols), ints([table] * n_symbols))
    assert data == without_rules(entries(value, table) * n_symbols + entries(0, 0) * max(0, 4 - n_symbols))
    assert decode(data, ints([table] * n_symbols)).tolist() == [value] * n_symbols


def test_a_stream_may_consist_of_escapes_alone() -> None:
    symbols = ints([MAX_SYMBOL, -MAX_SYMBOL] * 2500)
    np.testing.assert_array_equal(decode(encode(symbols, ints([5] * 5000)), ints([5] * 5000)), symbols)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_indexes_of_any_integer_type_are_taken(dtype: type) -> None:
    symbols, indexes = drawn(100, seed=5)
    data = encode(symbols, indexes.astype(dtype))
    np.testing.assert_array_equal(decode(data, indexes.astype(dtype)), symbols)


# Cost


@pytest.mark.parametrize("n_symbols", [4, 100, 10_000, 200_000])
@pytest.mark.parametrize("share_of_escapes", [0, 0.01])
def test_a_stream_takes_what_the_tables_say_and_its_state(n_symbols: int, share_of_escapes: float) -> None:
    symbols, indexes = drawn(n_symbols, seed=n_symbols)
    rng = np.random.default_rng(6)
    escapes = rng.random(n_symbols) < share_of_escapes
    symbols[escapes] = (2.0 ** rng.uniform(5, 20, escapes.sum())).astype(np.int32)
    data = encode(symbols, indexes)
    assert 32 - 1 < 8 * len(data) - bits(TABLES, symbols, indexes).sum() <= 64 + 4.5e-5 * n_symbols


@given(symbol, st.integers(0, len(TABLES) - 1))
def test_the_cost_of_a_symbol_is_that_of_its_entry_and_its_groups(value: int, table: int) -> None:
    low, high = int(TABLES.low[table]), int(TABLES.high[table])
    frequencies = np.diff(TABLES.cdf[table, : TABLES.sizes[table]])
    if low <= value <= high:
        expected = 16 - np.log2(frequencies[value - low])
    else:
        rest = 2 * (value - high - 1) if value > high else 2 * (low - value) - 1
        expected = 16 - np.log2(frequencies[-1]) + 4 * (1 + -(-rest.bit_length() // 4))
    assert bits(TABLES, ints([value]), ints([table])).sum() == pytest.approx(expected, abs=1e-9)


def test_no_symbols_cost_nothing() -> None:
    assert bits(TABLES, ints([]), ints([])).sum() == 0


# One form


def refusal(data: bytes, indexes: Sequence[int]) -> str:
    """Why decoding refuses the stream."""
    with pytest.raises(IntegrityError) as caught:
        decode(data, ints(indexes))
    return str(caught.value)


@given(pairs.filter(bool), st.integers(0, 299), st.integers(1, 40))
def test_an_escape_with_leading_zero_groups_is_refused(
    given_pairs: list[tuple[int, int]], place: int, n_zero_groups: int
) -> None:
    place %= len(given_pairs)
    table = given_pairs[place][1]
    given_pairs[place] = (int(TABLES.high[table]) + 1 + abs(given_pairs[place][0]) % 1000, table)
    coded = [entries(*pair, n_zero_groups * (i == place)) for i, pair in enumerate(given_pairs)]
    fill = entries(0, 0) * max(0, 4 - len(coded))
    data = without_rules([e for symbol_entries in coded for e in symbol_entries] + fill)
    assert "no encoder writes" in refusal(data, [pair[1] for pair in given_pairs])


@given(st.lists(st.integers(-300, 300), min_size=1, max_size=40), st.integers(2**31 + 1, 2**63 - 1))
def test_a_stream_whose_encoder_began_in_another_state_is_refused(values: list[int], state: int) -> None:
    coded = [e for value in values for e in entries(value, 1)] + entries(0, 0) * max(0, 4 - len(values))
    assert decode(without_rules(coded), ints([1] * len(values))).tolist() == values
    assert "does not end" in refusal(without_rules(coded, state), [1] * len(values))


@pytest.mark.parametrize("data", [without_rules([]), without_rules(entries(0, 0) * 4)], ids=["state", "zeros"])
def test_bytes_without_symbols_are_refused(data: bytes) -> None:
    assert "bytes, but no symbols" in refusal(data, [])


@pytest.mark.parametrize("n_symbols", [1, 3, 4, 5, 100])
def test_words_that_decoding_does_not_take_are_refused(n_symbols: int) -> None:
    symbols, indexes = drawn(max(n_symbols, 4), seed=9)
    symbols, indexes = symbols[:n_symbols], indexes[:n_symbols]
    assert "does not end" in refusal(encode(symbols, indexes) + bytes(4), indexes.tolist())


@pytest.mark.parametrize("n_symbols", [1, 2, 3])
@pytest.mark.parametrize("fill", [1, -8, 9])
def test_short_streams_that_are_filled_up_with_something_else_are_refused(n_symbols: int, fill: int) -> None:
    for place in range(4 - n_symbols):
        values = [0] * 4
        values[n_symbols + place] = fill
        data = without_rules([e for value in values for e in entries(value, 0)])
        assert "filled up with zeros" in refusal(data, [0] * n_symbols)


def test_no_bytes_stand_for_many_symbols_that_cost_little() -> None:
    # Beyond its end every such stream once went on with zeros.
    data = without_rules(entries(0, 3) * 4)
    assert "it ends before its symbols do" in refusal(data, [3] * 3_000_000)


def test_of_changed_streams_only_those_that_encoding_gives_are_read(coder: Coder) -> None:
    n_read = 0
    n_streams = 600 if coder.name == "native Python" else 3000
    for data, indexes in hostile_streams(random.Random(12), n_streams, max_symbols=200):
        try:
            symbols = decode(data, indexes)
        except IntegrityError:
            continue
        n_read += 1
        assert encode(symbols, indexes) == data
    assert n_read > n_streams / 60


@pytest.mark.parametrize("value", [MAX_SYMBOL + 1, -MAX_SYMBOL - 1, 2**22, -(2**22)])
def test_a_value_beyond_the_limit_is_refused(value: int) -> None:
    data = without_rules(entries(0, 0) * 2 + entries(value, 0) + entries(0, 0))
    assert "a value beyond" in refusal(data, [0] * 4)


@pytest.mark.parametrize("value", [2**23 + 9, 2**26, 2**40])
def test_an_escape_of_more_than_six_groups_is_refused(value: int) -> None:
    data = without_rules(entries(0, 0) * 2 + entries(value, 0) + entries(0, 0))
    assert "no encoder writes" in refusal(data, [0] * 4)


def test_a_refused_stream_stays_refused() -> None:
    decoder = Decoder(without_rules(entries(0, 0) * 2 + entries(2**22, 0) + entries(0, 0) * 20), TABLES)
    for _ in range(2):
        with pytest.raises(IntegrityError, match="a value beyond"):
            decoder.get(ints([0] * 4))
    with pytest.raises(IntegrityError, match="a value beyond"):
        decoder.finish()


# Mistakes of the caller


def test_symbols_of_an_empty_stream_are_an_integrity_error() -> None:
    with pytest.raises(IntegrityError, match="empty"):
        Decoder(b"", TABLES).get(ints([0]))


@pytest.mark.parametrize(
    ("indexes", "error"),
    [
        (ints([-1]), ValueError),
        (ints([len(TABLES)]), ValueError),
        (np.array([2**63 + 1], np.uint64), ValueError),
        (np.zeros((1, 1), np.int32), ValueError),
        (np.array(0), ValueError),
        (np.array([0.0]), TypeError),
        (np.array([True]), TypeError),
    ],
)
def test_indexes_that_name_no_table_are_refused(indexes: Any, error: type[Exception]) -> None:
    symbols = np.zeros(indexes.shape, np.int32)
    data = encode(ints([0]), ints([0]))
    calls = (
        lambda: Encoder(TABLES).put(symbols, indexes),
        lambda: Decoder(data, TABLES).get(indexes),
        lambda: bits(TABLES, symbols, indexes),
    )
    for call in calls:
        with pytest.raises(error, match="indexes"):
            call()


@pytest.mark.parametrize(
    ("symbols", "error"),
    [
        (ints([0, 0]), ValueError),
        (ints([]), ValueError),
        (np.zeros((1, 1), np.int32), ValueError),
        (np.array([0], np.int64), TypeError),
        (np.array([0.0], np.float32), TypeError),
    ],
)
def test_symbols_that_do_not_fit_their_indexes_are_refused(symbols: Any, error: type[Exception]) -> None:
    calls = (
        lambda: Encoder(TABLES).put(symbols, ints([0])),
        lambda: bits(TABLES, symbols, ints([0])),
    )
    for call in calls:
        with pytest.raises(error, match="symbols"):
            call()


@pytest.mark.parametrize("value", [MAX_SYMBOL + 1, -MAX_SYMBOL - 1, 2**31 - 1, -(2**31)])
def test_values_beyond_the_limit_are_not_coded(value: int) -> None:
    with pytest.raises(ValueError, match="not within"):
        Encoder(TABLES).put(ints([value]), ints([0]))


def test_a_finished_stream_takes_nothing_more() -> None:
    encoder = Encoder(TABLES)
    encoder.put(ints([1]), ints([0]))
    encoder.finish()
    with pytest.raises(ValueError, match="finished"):
        encoder.finish()
    with pytest.raises(ValueError, match="finished"):
        encoder.put(ints([1]), ints([0]))


@pytest.mark.parametrize(
    ("cdf", "sizes", "offsets"),
    [
        (np.zeros((0, 4), int), [], []),
        ([[0, 9, 65536]], [3, 3], [0]),
        ([[0, 9, 65536]], [3], [0, 0]),
        ([[0, 65536]], [2], [0]),
        ([[0, 9, 65536]], [4], [0]),
        ([[0, 9, 65536]], [-1], [0]),
        ([[0, 9, 65536]], [2], [0]),
        ([[1, 9, 65536]], [3], [0]),
        ([[0, 9, 65535]], [3], [0]),
        ([[0, 9, 65537]], [3], [0]),
        ([[0, 9, 9, 65536]], [4], [0]),
        ([[0, 9, 8, 65536]], [4], [0]),
        ([[0, 65536, 65536]], [3], [0]),
        ([[0, -5, 65536]], [3], [0]),
        ([[0, 2**31 + 9, 65536]], [3], [0]),
        ([[0, 9, 65536]], [3], [1]),
        ([[0, 9, 65536]], [3], [-1]),
        ([[0, 9, 65536]] * 2, [3, 3], [0, MAX_SYMBOL + 1]),
        ([[0, 9, 65536]] * 2, [3, 3], [0, -MAX_SYMBOL - 1]),
        ([[0, 9, 65536]] * 2, [3, 3], [0, 2**40]),
        ([0, 9, 65536], [3], [0]),
        ([[0, 9, 65536]], [[3]], [0]),
        ([[0.0, 9.0, 65536.0]], [3], [0]),
        ([[0, 9, 65536]], [3.0], [0]),
    ],
)
def test_tables_that_would_break_the_coder_are_refused(cdf: Any, sizes: Any, offsets: Any) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        Tables(np.asarray(cdf), np.asarray(sizes), np.asarray(offsets))


def test_tables_tell_their_ranges_and_cannot_be_changed() -> None:
    assert TABLES.low.tolist() == [-8, -100, 5, 0, -3, -1]
    assert TABLES.high.tolist() == [8, 100, 7, 0, -3, 1]
    for array in (TABLES.cdf, TABLES.sizes, TABLES.offsets, TABLES.low, TABLES.high):
        assert array.dtype == np.int32
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert len(TABLES) == 6


# Hostile streams


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 9, 10, 11])
def test_lengths_that_no_stream_has_are_refused(length: int) -> None:
    data = encode(*drawn(1000, seed=7))
    with pytest.raises(IntegrityError, match=f"{length} bytes"):
        Decoder(data[:length], TABLES)


@pytest.mark.parametrize("state", [0, 2**31 - 1, 2**63, 2**64 - 1])
def test_states_that_no_coder_ends_in_are_refused(state: int) -> None:
    with pytest.raises(IntegrityError, match="state"):
        Decoder(state.to_bytes(8, "little") + bytes(8), TABLES)


def hostile_streams(
    rng: random.Random, n_streams: int, max_symbols: int, first: int = 0
) -> Iterator[tuple[bytes, Ints]]:
    """Streams that pass the checks of `Decoder.__init__` or nearly so, and the indexes to ask for.

    first: the kind of the first stream.
    """
    for number in range(first, first + n_streams):
        n_symbols = rng.randint(1, max_symbols) if rng.random() < 0.5 else rng.randint(1, 60)
        symbols, indexes = drawn(n_symbols, seed=rng.randrange(2**32))
        table = rng.randrange(len(TABLES))
        if rng.random() < 0.6:
            indexes[rng.randrange(n_symbols) :] = table
        n_words = rng.randint(2, 2 + n_symbols // 2)
        kind = number % 6
        if kind == 0:
            words = bytearray(rng.randbytes(4 * n_words))
        elif kind == 1:
            # Long runs of groups of value 15: the longest reads behind a stream's end.
            words = bytearray(b"\xff" * (4 * n_words))
            words[rng.randrange(len(words))] = rng.randrange(256)
        elif kind == 2:
            words = bytearray(4 * n_words)
            words[rng.randrange(len(words))] = rng.randrange(256)
        else:
            words = bytearray(encode(symbols, indexes))
            for _ in range(rng.choice([0, 0, 0, 1, 2, 8])):
                words[rng.randrange(len(words))] ^= 1 << rng.randrange(8)
            if kind == 4:
                del words[4 * rng.randint(2, len(words) // 4) :]
            elif kind == 5:
                place = 4 * rng.randrange(len(words) // 4)
                words[place : place + 4] = rng.choice([b"\xff", b"\0", b"\x88", b"\xf7"]) * 4 * rng.randint(0, 3)
        if rng.random() < 0.9:
            words[7:8] = bytes([max(words[7], 1) & 0x7F]) if len(words) > 7 else b""
        yield bytes(words), indexes


def attack(seed: int, n_streams: int) -> None:
    """Decode hostile streams in a process of limited memory; print how they ended."""
    warm = encode(*drawn(100_000, seed=0))
    decode(warm, drawn(100_000, seed=0)[1])
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = in_use + 200 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    ends = {"values": 0, "refused": 0}
    for data, indexes in hostile_streams(random.Random(seed), n_streams, max_symbols=6000):
        try:
            symbols = decode(data, indexes)
        except IntegrityError:
            ends["refused"] += 1
        else:
            assert symbols.dtype == np.int32
            assert symbols.shape == indexes.shape
            assert -MAX_SYMBOL <= symbols.min() <= symbols.max() <= MAX_SYMBOL
            ends["values"] += 1
    sys.stdout.write(f"{ends['values']} {ends['refused']}\n")


def test_hostile_streams_end_in_values_or_an_integrity_error_within_bounded_memory(
    coder: Coder, request: pytest.FixtureRequest
) -> None:
    # In a process of its own: a crash of compiled code is then a failed test, not the end of the test run.
    library = str(request.getfixturevalue("kernel_library")) if coder.name == "native C++" else ""
    n_streams = {"compressai": 6000, "native C++": 2000}.get(coder.name, 600)
    n_values, n_refused = map(int, run_python(__file__, coder.name, library, "5", str(n_streams)).split())
    assert n_values + n_refused == n_streams
    assert min(n_values, n_refused) > n_streams / 60


def test_readers_stand_where_the_docstring_says(coder: Coder) -> None:
    n_compared = 0
    for data, indexes in hostile_streams(random.Random(8), 600, max_symbols=800):
        try:
            decoder = Decoder(data, TABLES)
        except IntegrityError:
            continue
        plain = PlainDecoder(data)
        for start in range(0, len(indexes), 16):
            part = indexes[start : start + 16]
            try:
                symbols = decoder.get(part)
            except IntegrityError:
                break
            assert symbols.tolist() == [plain.get(table) for table in part.tolist()]
            assert (decoder._reader.position, decoder._reader.state) == (plain.words_read, plain.state)
            assert plain.words_read <= len(data) // 4
            n_compared += 1
    assert n_compared > 1000


if __name__ == "__main__":
    with coders.used(coders.named(sys.argv[1], sys.argv[2])):
        attack(seed=int(sys.argv[3]), n_streams=int(sys.argv[4]))
