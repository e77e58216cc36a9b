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
- A stream has one form: it is valid only if encoding its symbols again gives the same bytes. So an escape has the
  fewest groups that hold r, at most 6, and the last symbol leaves the state that the encoder began with, 2^31, and no
  word.

`rans_coders` decides which coder does the work, CompressAI's or this project's; every coder accepts and refuses the
same streams. `Tables`, `Encoder` and `Decoder` check the arguments before each call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcmcodec import rans_coders
from hpcmcodec.errors import IntegrityError
from hpcmcodec.rans_tables import MAX_SYMBOL, Tables

__all__ = ["MAX_SYMBOL", "Decoder", "Encoder", "Tables", "bits"]

_MIN_SYMBOLS = 4
_WORD_BYTES = 4
_MIN_STATE, _STATE_LIMIT = 1 << 31, 1 << 63
_GROUP_BITS = 4
# A value and both ends of a table's range lie within +-2^20, so r < 2^23: six groups, and one for their number.
_MAX_GROUPS = 6


class Encoder:
    """Writes one stream. Call `put` for each part of the scale, at the end `finish` for the bytes.

    Args:
        tables: the tables that the indexes refer to.

    Raises:
        UnsupportedError: the coder that HPCM_CODER names is not installed.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._writer = rans_coders.choose().coder.writer(tables)
        self._n_put = 0
        self._finished = False

    def put(self, symbols: NDArray[np.int32], indexes: NDArray[np.integer]) -> None:
        """Code symbols.

        Args:
            symbols: (N,) int32 within +-`MAX_SYMBOL`, in coding order; N may be 0.
            indexes: (N,) integers, each symbol's table.

        Raises:
            TypeError, ValueError: dtypes, lengths or indexes do not fit; a symbol is beyond +-`MAX_SYMBOL`; the stream
                is finished.
        """
        indexes = _checked_indexes(indexes, self._tables)
        _check_symbols(symbols, indexes)
        if not len(symbols):
            return
        _check_range(symbols)
        self._check_open()
        self._n_put += len(symbols)
        self._writer.put(symbols, indexes)

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
    """Reads one stream: each call of `get` gives the next symbols, and `finish` checks that they were all.

    Args:
        data: the stream, of any bytes.
        tables: the tables that the indexes refer to.

    Raises:
        IntegrityError: no encoder writes a stream of this length, or with this first state.
        UnsupportedError: the coder that HPCM_CODER names is not installed.
    """

    def __init__(self, data: bytes, tables: Tables) -> None:
        self._tables = tables
        self._n_words, self._n_got = len(data) // _WORD_BYTES, 0
        self._refusal = "" if data else "the stream is empty, but symbols are due"
        coder = rans_coders.choose().coder
        if data:
            _check_stream(data)
            self._reader = coder.reader(data, tables)

    def get(self, indexes: NDArray[np.integer]) -> NDArray[np.int32]:
        """Decode the next symbols.

        Args:
            indexes: (N,) integers, each symbol's table, in coding order; N may be 0.

        Returns:
            (N,) int32.

        Raises:
            IntegrityError: no encoder writes such a stream: it ends too early, has an escape in another form than
                encoders write, or holds a value beyond +-`MAX_SYMBOL`. All later calls raise it too.
            TypeError, ValueError: `indexes` does not fit.
        """
        indexes = _checked_indexes(indexes, self._tables)
        if not len(indexes):
            return np.empty(0, np.int32)
        if self._refusal:
            raise IntegrityError(self._refusal)
        try:
            symbols = self._reader.get(indexes)
        except IntegrityError as error:
            self._refusal = str(error)
            raise
        if not -MAX_SYMBOL <= int(symbols.min()) <= int(symbols.max()) <= MAX_SYMBOL:
            self._refuse(f"a value beyond +-{MAX_SYMBOL}")
        self._n_got += len(indexes)
        return symbols

    def finish(self) -> None:
        """Check that the symbols so far are all that the stream holds, and that they are written as encoders do.

        Raises:
            IntegrityError: they are not.
        """
        if not self._n_words and not self._n_got:
            return
        if not self._n_got:
            self._refuse("it has bytes, but no symbols")
        if self._n_got < _MIN_SYMBOLS and self.get(np.zeros(_MIN_SYMBOLS - self._n_got, np.intp)).any():
            self._refuse("it is not filled up with zeros")
        if self._refusal or (self._reader.position, self._reader.state) != (self._n_words, _MIN_STATE):
            self._refuse("it does not end with its last symbol")

    def _refuse(self, reason: str) -> None:
        self._refusal = self._refusal or f"the stream is damaged: {reason}"
        raise IntegrityError(self._refusal)


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


def _check_stream(data: bytes) -> None:
    """Refuse lengths and states that no encoder writes; what `rans_coders` reads is a stream of the coder."""
    if len(data) % _WORD_BYTES or len(data) < 2 * _WORD_BYTES:
        raise IntegrityError(
            f"the stream is damaged: {len(data)} bytes, which is not a multiple of {_WORD_BYTES}, or less than 8"
        )
    if not _MIN_STATE <= int.from_bytes(data[: 2 * _WORD_BYTES], "little") < _STATE_LIMIT:
        raise IntegrityError("the stream is damaged: its first 8 bytes are not a state of the coder")
