"""Entropy coding of integers with stored tables, in streams of CompressAI's rANS coder with a few additional rules.

A *table* is a cumulative distribution over the consecutive integers low..high and one last entry, the *escape*, which
announces a value outside that range. Each symbol is coded under the table that its index names. Frequencies are
integers whose sum is 2^16, so that encoder and decoder agree on every machine.

A stream, as `compressai.ans` 1.2 writes it, consists of the 32-bit little-endian words of a 64-bit rANS coder. The
first two words are the encoder's last state, a value in [2^31, 2^63); the others follow in the order in which decoding
takes them. An escape is followed by groups of 4 bits: the number of groups of r, then r itself, least significant group
first, where r = 2 (value - high - 1) above the range and r = 2 (low - value) - 1 below it. The format adds three rules:

- A stream without symbols has no bytes. 1 to 3 symbols are filled up to 4 with zeros under table 0.
- Values lie within +-`MAX_SYMBOL`.
- A stream holds at most `escape_budget(N)` escapes. N is the number of symbols that the stream could hold, including
  those that both sides skip by rule: it is known before anything is decoded. The encoder clamps every later value
  outside its table's range to that range (`Encoder.clamp`), before anything else is computed from the value.

`rans_coders` decides which coder does the work, CompressAI's or this project's. The rules are enforced here, so that
every coder accepts and refuses the same streams. CompressAI's coder checks nothing: `Tables`, `Encoder` and `Decoder`
check its arguments before each call, and `Decoder` puts enough zeros behind the stream that it cannot read beyond them.
With every coder, the bits behind a damaged stream count as zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcmcodec import rans_coders
from hpcmcodec.errors import IntegrityError
from hpcmcodec.rans_tables import MAX_SYMBOL, Tables

__all__ = ["MAX_SYMBOL", "Decoder", "Encoder", "Tables", "bits", "escape_budget"]

_MIN_SYMBOLS = 4
_WORD_BYTES = 4
_MIN_STATE, _STATE_LIMIT = 1 << 31, 1 << 63
_GROUP_BITS = 4
# A value and both ends of a table's range lie within +-2^20, so r < 2^22: six groups, and one for their number.
_MAX_GROUPS = 6

# Symbols per call of the coder. Escapes are counted only after a decoding call, so each symbol of a call needs padding
# behind the stream; in encoding the number bounds the lists that are made. Much smaller pieces would be slow, since
# each call converts the tables in use.
_DECODE_PIECE = 4096
_ENCODE_PIECE = 65536

# Words that decoding can take from the zeros behind a stream in the worst case. A symbol takes one. An escape takes 41:
# at most 16 groups of value 15 come out of the state's 63 bits before zeros end the run, and they announce 240 groups
# more, which are 30 words. A word of the stream brings 18: its 8 groups of value 15 announce 120 groups, 15 words.
_WORDS_PER_ESCAPE = 41
_WORDS_PER_WORD = 18


def escape_budget(n_symbols: int) -> int:
    """How many escapes a stream may hold that could hold `n_symbols` symbols, skipped ones included."""
    return 64 + n_symbols // 64


class Encoder:
    """Writes one stream. Call `clamp` and then `put` for each part of the scale, at the end `finish` for the bytes.

    Args:
        tables: the tables that the indexes refer to.
        n_symbols: all symbols that the stream could hold, skipped ones included (N of the module's docstring).

    Raises:
        UnsupportedError: the coder that HPCM_CODER names is not installed.
        ValueError: `n_symbols` is negative.
    """

    def __init__(self, tables: Tables, n_symbols: int) -> None:
        self._tables = tables
        self._writer = rans_coders.choose().coder.writer(tables)
        self._n_symbols = _checked_count(n_symbols)
        self._n_put = 0
        self._finished = False
        self._clamp_room = escape_budget(n_symbols)
        self._put_room = escape_budget(n_symbols)

    def clamp(self, symbols: NDArray[np.int32], indexes: NDArray[np.integer]) -> NDArray[np.int32]:
        """Limit symbols to what the stream can hold. All calls share one budget of escapes.

        Args:
            symbols: (N,) int32, in coding order.
            indexes: (N,) integers, each symbol's table.

        Returns:
            (N,) int32: the symbols limited to +-`MAX_SYMBOL`. Of those that lie outside their table's range, the first
            keep their value, as many as the budget has left; the others are clamped to the range.

        Raises:
            TypeError, ValueError: dtypes, lengths or indexes do not fit.
        """
        indexes = _checked_indexes(indexes, self._tables)
        _check_symbols(symbols, indexes)
        limited = np.clip(symbols, np.int32(-MAX_SYMBOL), np.int32(MAX_SYMBOL))
        escapes = np.flatnonzero(_is_escape(limited, indexes, self._tables))
        beyond = escapes[self._clamp_room :]
        self._clamp_room -= len(escapes) - len(beyond)
        tables = indexes[beyond]
        limited[beyond] = np.clip(limited[beyond], self._tables.low[tables], self._tables.high[tables])
        return limited

    def put(self, symbols: NDArray[np.int32], indexes: NDArray[np.integer]) -> None:
        """Code symbols that `clamp` has returned, all or some of them. Arguments as for `clamp`; N may be 0.

        Raises:
            TypeError, ValueError: dtypes, lengths or indexes do not fit; a symbol is beyond +-`MAX_SYMBOL`; there are
                more symbols or escapes than the stream may hold; the stream is finished.
        """
        indexes = _checked_indexes(indexes, self._tables)
        _check_symbols(symbols, indexes)
        if not len(symbols):
            return
        _check_range(symbols)
        self._check_open()
        self._n_put += len(symbols)
        if self._n_put > self._n_symbols:
            raise ValueError(f"{self._n_put} symbols for a stream of at most {self._n_symbols}")
        self._put_room -= int(_is_escape(symbols, indexes, self._tables).sum())
        if self._put_room < 0:
            raise ValueError("more escapes than the stream may hold: clamp the symbols first")
        for start in range(0, len(symbols), _ENCODE_PIECE):
            piece = slice(start, start + _ENCODE_PIECE)
            self._writer.put(symbols[piece], indexes[piece])

    def finish(self) -> bytes:
        """The bytes of the stream, b"" where nothing was coded. A second call raises `ValueError`."""
        self._check_open()
        self._finished = True
        if self._n_put == 0:
            return b""
        n_fill = max(0, _MIN_SYMBOLS - self._n_put)
        if n_fill:
            self._writer.put(np.zeros(n_fill, np.int32), np.zeros(n_fill, np.intp))
        return self._writer.finish()

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("the stream is finished")


class Decoder:
    """Reads one stream: each call of `get` gives the next symbols.

    Args:
        data: the stream. The caller checks its CRC to find damage early; nothing here relies on that.
        tables: the tables that the indexes refer to.
        n_symbols: as for `Encoder`.

    Raises:
        IntegrityError: no encoder writes a stream of this length, or with this first state.
        UnsupportedError: the coder that HPCM_CODER names is not installed.
        ValueError: `n_symbols` is negative.
    """

    def __init__(self, data: bytes, tables: Tables, n_symbols: int) -> None:
        self._tables = tables
        coder = rans_coders.choose().coder
        self._n_left = _checked_count(n_symbols)
        self._budget = escape_budget(n_symbols)
        self._n_escapes = 0
        self._refusal = "" if data else "the stream is empty, but symbols are due"
        if data:
            _check_stream(data, n_symbols)
            self._reader = coder.reader(data, tables, _padding_bytes(n_symbols, len(data) // _WORD_BYTES))

    def get(self, indexes: NDArray[np.integer]) -> NDArray[np.int32]:
        """Decode the next symbols.

        Args:
            indexes: (N,) integers, each symbol's table, in coding order; N may be 0.

        Returns:
            (N,) int32.

        Raises:
            IntegrityError: no encoder writes such a stream: it is empty, has too many escapes, or holds a value beyond
                +-`MAX_SYMBOL`. All later calls raise it too.
            TypeError, ValueError: `indexes` does not fit, or more symbols are asked for than the stream may hold.
        """
        indexes = _checked_indexes(indexes, self._tables)
        if len(indexes) > self._n_left:
            raise ValueError(f"{len(indexes)} symbols wanted, the stream has at most {self._n_left} more")
        symbols = np.empty(len(indexes), np.int32)
        for start in range(0, len(indexes), _DECODE_PIECE):
            piece = slice(start, start + _DECODE_PIECE)
            symbols[piece] = self._get_piece(indexes[piece])
        self._n_left -= len(indexes)
        return symbols

    def _get_piece(self, indexes: NDArray[np.intp]) -> NDArray[np.int32]:
        # After a refusal the coder may stand anywhere behind the stream, so it is not called again.
        if self._refusal:
            raise IntegrityError(self._refusal)
        symbols = self._reader.get(indexes)
        escaped = symbols[_is_escape(symbols, indexes, self._tables)]
        self._n_escapes += len(escaped)
        if self._n_escapes > self._budget:
            self._refusal = f"the stream is damaged: more than {self._budget} values outside their tables"
        elif len(escaped) and not -MAX_SYMBOL <= int(escaped.min()) <= int(escaped.max()) <= MAX_SYMBOL:
            self._refusal = f"the stream is damaged: a value beyond +-{MAX_SYMBOL}"
        if self._refusal:
            raise IntegrityError(self._refusal)
        return symbols


def bits(tables: Tables, symbols: NDArray[np.int32], indexes: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N,) float64, the bits that each symbol costs: log2(2^16 / frequency), and 4 for each group of an escape.

    A stream of at least 4 symbols is larger than the sum of these by the coder's state, 4 to 8 bytes, and by the
    coder's rounding, at most 4.5e-5 bits per symbol.

    Args:
        tables: the tables that the indexes refer to.
        symbols: (N,) int32 within +-`MAX_SYMBOL`.
        indexes: (N,) integers, each symbol's table.

    Raises:
        TypeError, ValueError: dtypes, lengths or values do not fit.
    """
    indexes = _checked_indexes(indexes, tables)
    _check_symbols(symbols, indexes)
    if not len(symbols):
        return np.zeros(0)
    _check_range(symbols)
    low, high = tables.low[indexes], tables.high[indexes]
    escaped = _is_escape(symbols, indexes, tables)
    entry = np.where(escaped, high + 1, symbols) - low
    frequency = tables.cdf[indexes, entry + 1] - tables.cdf[indexes, entry]
    above, below = 2 * (symbols - high - 1), 2 * (low - symbols) - 1
    rest = np.where(symbols > high, above, below)[escaped]
    n_groups = (rest[:, None] >> (_GROUP_BITS * np.arange(_MAX_GROUPS, dtype=np.int32)) != 0).sum(axis=1)
    cost: NDArray[np.float64] = 16.0 - np.log2(frequency)
    cost[escaped] += _GROUP_BITS * (1 + n_groups)
    return cost


def _checked_count(n_symbols: int) -> int:
    if n_symbols < 0:
        raise ValueError(f"{n_symbols} symbols")
    return n_symbols


def _checked_indexes(indexes: NDArray[np.integer], tables: Tables) -> NDArray[np.intp]:
    if not np.issubdtype(indexes.dtype, np.integer):
        raise TypeError(f"indexes are {indexes.dtype}, not integers")
    if indexes.ndim != 1:
        raise ValueError(f"indexes have the shape {indexes.shape}, not (N,)")
    if len(indexes) and not 0 <= int(indexes.min()) <= int(indexes.max()) < len(tables):
        raise ValueError(f"indexes from {indexes.min()} to {indexes.max()} for {len(tables)} tables")
    return indexes.astype(np.intp, copy=False)


def _check_symbols(symbols: NDArray[np.int32], indexes: NDArray[np.intp]) -> None:
    if symbols.dtype != np.int32:
        raise TypeError(f"symbols are {symbols.dtype}, not int32")
    if symbols.shape != indexes.shape:
        raise ValueError(f"symbols have the shape {symbols.shape}, indexes {indexes.shape}")


def _check_range(symbols: NDArray[np.int32]) -> None:
    if not -MAX_SYMBOL <= int(symbols.min()) <= int(symbols.max()) <= MAX_SYMBOL:
        raise ValueError(f"symbols from {symbols.min()} to {symbols.max()}, not within +-{MAX_SYMBOL}")


def _is_escape(symbols: NDArray[np.int32], indexes: NDArray[np.intp], tables: Tables) -> NDArray[np.bool_]:
    """(N,) bool: whether each symbol lies outside its table's range."""
    outside: NDArray[np.bool_] = (symbols < tables.low[indexes]) | (symbols > tables.high[indexes])
    return outside


def _check_stream(data: bytes, n_symbols: int) -> None:
    """Refuse lengths and states that no encoder writes. `_padding_bytes` relies on both checks."""
    n_coded = max(n_symbols, _MIN_SYMBOLS) if n_symbols else 0
    n_escapes = min(n_symbols, escape_budget(n_symbols))
    # A table's entry takes at most 16 bits. Escapes add their groups, the coder's rounding adds less than 2^-14 bits
    # per symbol, and the state takes 64 bits.
    max_bits = 16 * n_coded + _GROUP_BITS * (1 + _MAX_GROUPS) * n_escapes + (n_coded >> 14) + 1 + 64
    max_bytes = max_bits // 32 * _WORD_BYTES if n_coded else 0
    if len(data) % _WORD_BYTES or not 2 * _WORD_BYTES <= len(data) <= max_bytes:
        raise IntegrityError(
            f"the stream is damaged: {len(data)} bytes, where {n_symbols} symbols take a multiple of {_WORD_BYTES} "
            f"and at most {max_bytes}"
        )
    if not _MIN_STATE <= int.from_bytes(data[: 2 * _WORD_BYTES], "little") < _STATE_LIMIT:
        raise IntegrityError("the stream is damaged: its first 8 bytes are not a state of the coder")


def _padding_bytes(n_symbols: int, n_words: int) -> int:
    """How many zero bytes behind a stream decoding cannot read beyond, whatever the stream holds."""
    # Every symbol of the coder's last call can be an escape beyond the budget.
    n_escapes = min(n_symbols, escape_budget(n_symbols) + _DECODE_PIECE)
    return _WORD_BYTES * (n_symbols + _WORDS_PER_ESCAPE * n_escapes + _WORDS_PER_WORD * n_words)
