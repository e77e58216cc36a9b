"""The entropy coder: what a stream is, what it costs, and that nothing that it is given makes it misbehave.

Every test runs with each coder that is there: CompressAI's, this project's in C++ and in plain Python.
"""

from __future__ import annotations

import os
import random
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
from hpcmcodec.rans import MAX_SYMBOL, Decoder, Encoder, Tables, bits, escape_budget
from hpcmcodec.rans_coders import Coder, Native
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


def encode(symbols: Ints, indexes: Ints, n_symbols: int | None = None, cuts: Sequence[int] = ()) -> tuple[bytes, Ints]:
    """The stream, and the symbols as they were clamped; coded in parts that end at `cuts`."""
    encoder = Encoder(TABLES, len(symbols) if n_symbols is None else n_symbols)
    coded = []
    for part, part_indexes in zip(np.split(symbols, cuts), np.split(indexes, cuts), strict=True):
        coded.append(encoder.clamp(part, part_indexes))
        encoder.put(coded[-1], part_indexes)
    return encoder.finish(), np.concatenate(coded)


def decode(data: bytes, indexes: Ints, n_symbols: int | None = None, cuts: Sequence[int] = ()) -> Ints:
    decoder = Decoder(data, TABLES, len(indexes) if n_symbols is None else n_symbols)
    return np.concatenate([decoder.get(part) for part in np.split(indexes, cuts)])


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


def without_rules(symbols: Sequence[int], indexes: Sequence[int]) -> bytes:
    """A stream that keeps none of the format's rules."""
    writer = Native(None).writer(TABLES)
    writer.put(ints(symbols), np.array(indexes, np.intp))
    return writer.finish()


def run_python(*arguments: str) -> str:
    """What a fresh interpreter writes; the package is found there as it is here."""
    environment = os.environ | {"PYTHONPATH": str(Path(rans.__file__).parents[1])}
    command = [sys.executable, "-W", "error", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, f"exit status {result.returncode}: {result.stderr[-2000:]}"
    return result.stdout.strip()


class PlainDecoder:
    """A decoder written from the module's docstring, in Python integers. Behind the stream it reads zeros."""

    def __init__(self, data: bytes) -> None:
        self._words = [int.from_bytes(data[place : place + 4], "little") for place in range(0, len(data), 4)]
        self._state = self._words[0] | self._words[1] << 32
        self.words_read = 2
        self.group_overflow = False

    def get(self, table: int) -> int:
        cdf = TABLES.cdf[table, : TABLES.sizes[table]].tolist()
        low, high = int(TABLES.low[table]), int(TABLES.high[table])
        place = self._state & 0xFFFF
        entry = next(entry for entry in range(len(cdf)) if cdf[entry + 1] > place)
        self._advance((cdf[entry + 1] - cdf[entry]) * (self._state >> 16) + place - cdf[entry])
        if entry < len(cdf) - 2:
            return low + entry
        n_groups = group = self._group()
        while group == 15:
            group = self._group()
            n_groups += group
        rest = sum(self._group() << 4 * place for place in range(n_groups))
        self.group_overflow |= rest >= 2**31
        return low - (rest + 1) // 2 if rest % 2 else high + 1 + rest // 2

    def _group(self) -> int:
        group = self._state & 15
        self._advance(self._state >> 4)
        return group

    def _advance(self, state: int) -> None:
        if state < 2**31:
            word = self._words[self.words_read] if self.words_read < len(self._words) else 0
            state = state << 32 | word
            self.words_read += 1
        self._state = state


# Streams


def test_a_stream_has_the_bytes_that_it_always_had() -> None:
    symbols, indexes = ints([0, -8, 8, 60, 6, 0, 0, 9, -300, 1, 1048576]), ints([0, 0, 0, 1, 2, 3, 3, 0, 1, 5, 4])
    data, coded = encode(symbols, indexes)
    assert coded.tolist() == symbols.tolist()
    assert data.hex(" ", 4) == "297a362d 93eab402 988d4457 f318feff 470a000a"


def test_a_stream_is_what_the_docstring_describes() -> None:
    symbols, indexes = drawn(3000, seed=1)
    symbols[::50] = np.random.default_rng(2).integers(-MAX_SYMBOL, MAX_SYMBOL + 1, 60)
    data, coded = encode(symbols, indexes)
    plain = PlainDecoder(data)
    assert [plain.get(table) for table in indexes.tolist()] == coded.tolist()
    assert plain.words_read == len(data) // 4


symbol = st.one_of(st.integers(-10, 10), st.integers(-300, 300), st.integers(-(2**31), 2**31 - 1), st.just(MAX_SYMBOL))
pairs = st.lists(st.tuples(symbol, st.integers(0, len(TABLES) - 1)), max_size=300)


@given(pairs, st.lists(st.integers(0, 300), max_size=4), st.lists(st.integers(0, 300), max_size=4), st.integers(0, 999))
def test_what_was_coded_is_decoded(
    given_pairs: list[tuple[int, int]], put_cuts: list[int], get_cuts: list[int], n_skipped: int
) -> None:
    symbols, indexes = ints([pair[0] for pair in given_pairs]), ints([pair[1] for pair in given_pairs])
    n_symbols = len(symbols) + n_skipped
    data, coded = encode(symbols, indexes, n_symbols, sorted(put_cuts))
    assert decode(data, indexes, n_symbols, sorted(get_cuts)).tolist() == coded.tolist()


def test_a_long_stream_of_many_pieces_is_decoded() -> None:
    symbols, indexes = drawn(150_000, seed=3)
    data, coded = encode(symbols, indexes, cuts=[70_000, 70_001])
    np.testing.assert_array_equal(decode(data, indexes, cuts=[5, 9_000]), coded)


def test_where_a_stream_is_put_in_parts_makes_no_difference() -> None:
    symbols, indexes = drawn(1000, seed=4)
    assert encode(symbols, indexes, cuts=[1, 400, 400])[0] == encode(symbols, indexes)[0]


def test_no_symbols_take_no_bytes() -> None:
    empty = ints([])
    encoder = Encoder(TABLES, 100)
    encoder.put(encoder.clamp(empty, empty), empty)
    assert encoder.finish() == b""
    assert Encoder(TABLES, 0).finish() == b""
    symbols = Decoder(b"", TABLES, 100).get(empty)
    assert symbols.dtype == np.int32
    assert symbols.shape == (0,)


@pytest.mark.parametrize("n_symbols", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("value", "table"), [(7, 0), (-MAX_SYMBOL, 1), (6, 2), (1, 5)])
def test_short_streams_are_filled_up_to_four_symbols_with_zeros_under_table_0(
    n_symbols: int, value: int, table: int
) -> None:
    data, _ = encode(ints([value] * n_symbols), ints([table] * n_symbols))
    n_zeros = max(0, 4 - n_symbols)
    assert data == without_rules([value] * n_symbols + [0] * n_zeros, [table] * n_symbols + [0] * n_zeros)
    assert decode(data, ints([table] * n_symbols)).tolist() == [value] * n_symbols


@pytest.mark.parametrize("n_symbols", [0, 1, 3, 4, 64, 5000])
def test_the_dearest_stream_that_the_rules_allow_is_accepted(n_symbols: int) -> None:
    n_escapes = min(n_symbols, escape_budget(n_symbols))
    symbols = ints([MAX_SYMBOL] * n_escapes + [1] * (n_symbols - n_escapes))
    indexes = ints([5] * n_symbols)
    data, coded = encode(symbols, indexes)
    np.testing.assert_array_equal(coded, symbols)
    np.testing.assert_array_equal(decode(data, indexes), symbols)
    if n_symbols:
        longer = data + bytes(8)
        with pytest.raises(IntegrityError, match=f"{len(longer)} bytes"):
            Decoder(longer, TABLES, n_symbols)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_indexes_of_any_integer_type_are_taken(dtype: type) -> None:
    symbols, indexes = drawn(100, seed=5)
    data, coded = encode(symbols, indexes.astype(dtype))
    np.testing.assert_array_equal(decode(data, indexes.astype(dtype)), coded)


# Cost


@pytest.mark.parametrize("n_symbols", [4, 100, 10_000, 200_000])
@pytest.mark.parametrize("share_of_escapes", [0, 0.01])
def test_a_stream_takes_what_the_tables_say_and_its_state(n_symbols: int, share_of_escapes: float) -> None:
    symbols, indexes = drawn(n_symbols, seed=n_symbols)
    rng = np.random.default_rng(6)
    escapes = rng.random(n_symbols) < share_of_escapes
    symbols[escapes] = (2.0 ** rng.uniform(5, 20, escapes.sum())).astype(np.int32)
    data, coded = encode(symbols, indexes)
    assert 32 - 1 < 8 * len(data) - bits(TABLES, coded, indexes).sum() <= 64 + 4.5e-5 * n_symbols


@given(symbol.map(lambda value: max(-MAX_SYMBOL, min(MAX_SYMBOL, value))), st.integers(0, len(TABLES) - 1))
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


# Escapes


def test_the_escape_budget_is_64_and_one_in_64() -> None:
    assert [escape_budget(n) for n in (0, 63, 64, 6400)] == [64, 64, 65, 164]


@given(pairs, st.integers(0, 3), st.lists(st.integers(0, 300), max_size=4))
def test_clamping_lets_the_first_escapes_pass_in_coding_order(
    given_pairs: list[tuple[int, int]], repeats: int, cuts: list[int]
) -> None:
    given_pairs = given_pairs * (1 + repeats)
    symbols, indexes = ints([pair[0] for pair in given_pairs]), ints([pair[1] for pair in given_pairs])
    before = symbols.copy()
    encoder = Encoder(TABLES, len(symbols))
    parts = zip(np.split(symbols, sorted(cuts)), np.split(indexes, sorted(cuts)), strict=True)
    clamped = np.concatenate([encoder.clamp(*part) for part in parts])

    left = 64 + len(symbols) // 64
    expected = []
    for value, table in given_pairs:
        low, high = int(TABLES.low[table]), int(TABLES.high[table])
        if not low <= value <= high:
            limits = (-MAX_SYMBOL, MAX_SYMBOL) if left > 0 else (low, high)
            value = max(limits[0], min(limits[1], value))
            left -= 1
        expected.append(value)
    assert clamped.tolist() == expected
    assert clamped.dtype == np.int32
    np.testing.assert_array_equal(symbols, before)


def test_the_budget_counts_skipped_symbols_and_holds_over_all_parts() -> None:
    n_coded, n_symbols = 300, 64 * 100
    symbols, indexes = ints([1000] * n_coded), ints([0] * n_coded)
    data, coded = encode(symbols, indexes, n_symbols, cuts=[100, 150, 200, 210])
    assert coded.tolist() == [1000] * 164 + [8] * 136
    assert decode(data, indexes, n_symbols).tolist() == coded.tolist()


def test_symbols_that_were_not_clamped_are_not_put() -> None:
    encoder = Encoder(TABLES, 1000)
    encoder.put(ints([9] * escape_budget(1000)), ints([0] * escape_budget(1000)))
    with pytest.raises(ValueError, match="clamp"):
        encoder.put(ints([9]), ints([0]))
    with pytest.raises(ValueError, match="1048577"):
        Encoder(TABLES, 1).put(ints([MAX_SYMBOL + 1]), ints([0]))


def test_a_stream_with_one_escape_too_many_is_refused() -> None:
    budget = escape_budget(200)
    for n_escapes in (budget, budget + 1):
        symbols, indexes = [9] * n_escapes + [0] * (200 - n_escapes), [0] * 200
        decoder = Decoder(without_rules(symbols, indexes), TABLES, 200)
        if n_escapes == budget:
            assert decoder.get(ints(indexes)).tolist() == symbols
        else:
            with pytest.raises(IntegrityError, match=f"more than {budget} values"):
                decoder.get(ints(indexes))


@pytest.mark.parametrize("value", [MAX_SYMBOL + 1, -MAX_SYMBOL - 1, 2**26, -(2**26)])
def test_a_value_beyond_the_limit_is_refused(value: int) -> None:
    data = without_rules([0, 0, value, 0], [0] * 4)
    with pytest.raises(IntegrityError, match="a value beyond"):
        Decoder(data, TABLES, 4).get(ints([0] * 4))


def test_a_refused_stream_stays_refused() -> None:
    decoder = Decoder(without_rules([0, 0, 2**22, 0], [0] * 4), TABLES, 100)
    for _ in range(2):
        with pytest.raises(IntegrityError, match="a value beyond"):
            decoder.get(ints([0] * 4))


# Mistakes of the caller


def test_symbols_of_an_empty_stream_are_an_integrity_error() -> None:
    with pytest.raises(IntegrityError, match="empty"):
        Decoder(b"", TABLES, 4).get(ints([0]))


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
    data, _ = encode(ints([0]), ints([0]))
    calls = (
        lambda: Encoder(TABLES, 9).clamp(symbols, indexes),
        lambda: Encoder(TABLES, 9).put(symbols, indexes),
        lambda: Decoder(data, TABLES, 9).get(indexes),
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
        lambda: Encoder(TABLES, 9).clamp(symbols, ints([0])),
        lambda: Encoder(TABLES, 9).put(symbols, ints([0])),
        lambda: bits(TABLES, symbols, ints([0])),
    )
    for call in calls:
        with pytest.raises(error, match="symbols"):
            call()


def test_more_symbols_than_the_stream_may_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        Encoder(TABLES, 1).put(ints([0, 0]), ints([0, 0]))
    data, _ = encode(ints([0] * 4), ints([0] * 4))
    decoder = Decoder(data, TABLES, 4)
    decoder.get(ints([0] * 3))
    with pytest.raises(ValueError, match="at most 1 more"):
        decoder.get(ints([0] * 2))
    for coder in (lambda: Encoder(TABLES, -1), lambda: Decoder(b"", TABLES, -1)):
        with pytest.raises(ValueError, match="-1 symbols"):
            coder()


def test_a_finished_stream_takes_nothing_more() -> None:
    encoder = Encoder(TABLES, 9)
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
    data, _ = encode(*drawn(1000, seed=7))
    with pytest.raises(IntegrityError, match=f"{length} bytes"):
        Decoder(data[:length], TABLES, 1000)


def test_bytes_where_no_symbol_can_be_are_refused() -> None:
    data, _ = encode(ints([0] * 4), ints([0] * 4))
    with pytest.raises(IntegrityError, match="0 symbols"):
        Decoder(data, TABLES, 0)


@pytest.mark.parametrize("state", [0, 2**31 - 1, 2**63, 2**64 - 1])
def test_states_that_no_coder_ends_in_are_refused(state: int) -> None:
    with pytest.raises(IntegrityError, match="state"):
        Decoder(state.to_bytes(8, "little") + bytes(8), TABLES, 100)


def hostile_streams(rng: random.Random, n_streams: int, max_symbols: int) -> Iterator[tuple[bytes, Ints, int]]:
    """Streams that pass the checks of `Decoder.__init__` or nearly so, the indexes to ask for, and N."""
    for number in range(n_streams):
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
            words = bytearray(encode(symbols, indexes)[0])
            for _ in range(rng.randint(0, 8)):
                words[rng.randrange(len(words))] ^= 1 << rng.randrange(8)
            if kind == 4:
                del words[4 * rng.randint(2, len(words) // 4) :]
            elif kind == 5:
                place = 4 * rng.randrange(len(words) // 4)
                words[place : place + 4] = rng.choice([b"\xff", b"\0", b"\x88", b"\xf7"]) * 4 * rng.randint(0, 3)
        if rng.random() < 0.9:
            words[7:8] = bytes([max(words[7], 1) & 0x7F]) if len(words) > 7 else b""
        yield bytes(words), indexes, n_symbols


def attack(seed: int, n_streams: int) -> None:
    """Decode hostile streams in a process of limited memory; print how they ended."""
    warm, _ = encode(*drawn(100_000, seed=0))
    decode(warm, drawn(100_000, seed=0)[1])
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = in_use + 200 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    ends = {"values": 0, "refused": 0}
    for data, indexes, n_symbols in hostile_streams(random.Random(seed), n_streams, max_symbols=6000):
        try:
            symbols = decode(data, indexes, n_symbols)
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
    assert min(n_values, n_refused) > n_streams / 6


def test_decoding_never_reads_beyond_the_zeros_behind_a_stream(coder: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    # A read beyond CompressAI's zeros need not crash, so the plain decoder counts what the coder reads: the same words,
    # as the same values show; this project's says so. Small pieces, so that the budget ends some streams before their
    # last symbol.
    monkeypatch.setattr(rans, "_DECODE_PIECE", 16)
    n_compared = 0
    deepest = 0.0
    for data, indexes, n_symbols in hostile_streams(random.Random(8), 600, max_symbols=800):
        try:
            decoder = Decoder(data, TABLES, n_symbols)
        except IntegrityError:
            continue
        plain = PlainDecoder(data)
        n_words = len(data) // 4
        limit = n_words + rans._padding_bytes(n_symbols, n_words) // 4
        for start in range(0, n_symbols, 16):
            part = indexes[start : start + 16]
            expected = [plain.get(table) for table in part.tolist()]
            assert plain.words_read <= limit
            deepest = max(deepest, (plain.words_read - n_words) / (limit - n_words))
            try:
                symbols = decoder.get(part)
            except IntegrityError:
                break
            if coder.name != "compressai":
                assert (decoder._reader.position, decoder._reader.state) == (plain.words_read, plain._state)
            if not plain.group_overflow:
                assert symbols.tolist() == expected
                n_compared += 1
    assert n_compared > 1000
    assert deepest > 0.2


def test_a_run_of_groups_up_to_the_end_makes_the_longest_read_behind_it() -> None:
    data = b"\xff" * 7 + b"\x7f" + b"\xff" * 400
    plain = PlainDecoder(data)
    plain.get(4)
    n_words = len(data) // 4
    assert 14 * n_words < plain.words_read - n_words <= 18 * n_words


@pytest.mark.parametrize(
    ("n_symbols", "n_words", "zero_words"),
    [
        (1, 2, 1 + 41 * 1 + 18 * 2),
        (1000, 500, 1000 + 41 * 1000 + 18 * 500),
        (250_000, 30_000, 250_000 + 41 * (64 + 3906 + 4096) + 18 * 30_000),
    ],
)
def test_the_zeros_behind_a_stream_cover_its_symbols_escapes_and_runs(
    n_symbols: int, n_words: int, zero_words: int
) -> None:
    assert rans._padding_bytes(n_symbols, n_words) == 4 * zero_words


if __name__ == "__main__":
    with coders.used(coders.named(sys.argv[1], sys.argv[2])):
        attack(seed=int(sys.argv[3]), n_streams=int(sys.argv[4]))
