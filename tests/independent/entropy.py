"""Decode the symbols of a stream: rANS with a 63-bit state and words of 32 bits."""

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from errors import InvalidFileError

from weights import Model

LOW_STATE = 1 << 31
HIGH_STATE = 1 << 63
VALUE_LIMIT = 1 << 20
MOST_GROUPS = 6
FEWEST_SYMBOLS = 4
LARGEST_OMITTED = 65404


@dataclass(frozen=True)
class Table:
    """Cumulative frequencies of consecutive values from `offset` on, and of the escape behind them."""

    cumulative: list[int]
    offset: int

    @property
    def high(self) -> int:
        """Return the last value that the table holds."""
        return self.offset + len(self.cumulative) - 3

    @property
    def omits(self) -> bool:
        """Say whether latents under this table have no symbol in a file that is not full."""
        zero = -self.offset
        if not 0 <= zero < len(self.cumulative) - 2:
            return False
        return self.cumulative[zero + 1] - self.cumulative[zero] > LARGEST_OMITTED


def read_tables(model: Model, name: str) -> list[Table]:
    """Read the tables `z` or `y` of a model."""
    rows = model[f"tables.{name}.cdf"].integer_rows()
    sizes = model[f"tables.{name}.sizes"].integers()
    offsets = model[f"tables.{name}.offsets"].integers()
    return [Table(row[:size], offset) for row, size, offset in zip(rows, sizes, offsets, strict=True)]


class StreamDecoder:
    """Take symbols from one stream, whose first table is that of the symbols which fill up short streams."""

    def __init__(self, data: bytes, first_table: Table) -> None:
        """Read the state at the beginning of a stream that is not empty."""
        self._words: Iterator[int] = iter(struct.unpack(f"<{len(data) // 4}I", data))
        self._first_table = first_table
        self._symbols = 0
        self._state = 0
        if data:
            self._state = self._word()
            self._state |= self._word() << 32
            if not LOW_STATE <= self._state < HIGH_STATE:
                raise InvalidFileError("the first state of a stream is out of its range")

    def _word(self) -> int:
        """Return the next word."""
        word = next(self._words, None)
        if word is None:
            raise InvalidFileError("a stream is too short")
        return word

    def _refill(self) -> None:
        """Take another word into a state that has become small."""
        if self._state < LOW_STATE:
            self._state = self._state << 32 | self._word()

    def _group(self) -> int:
        """Take four bits out of the state."""
        group = self._state & 15
        self._state >>= 4
        self._refill()
        return group

    def _escaped(self, table: Table) -> int:
        """Decode a value that is outside of its table."""
        groups = self._group()
        if groups > MOST_GROUPS:
            raise InvalidFileError("an escaped value has too many groups")
        number = last = 0
        for index in range(groups):
            last = self._group()
            number |= last << 4 * index
        if groups and last == 0:
            raise InvalidFileError("an escaped value has a group too many")
        if number % 2 == 0:
            return table.high + 1 + number // 2
        return table.offset - (number + 1) // 2

    def symbol(self, table: Table) -> int:
        """Decode the next symbol under a table."""
        self._symbols += 1
        place = self._state & 65535
        entry = bisect_right(table.cumulative, place) - 1
        start, end = table.cumulative[entry], table.cumulative[entry + 1]
        self._state = (end - start) * (self._state >> 16) + place - start
        self._refill()
        value = table.offset + entry
        if value > table.high:
            value = self._escaped(table)
        if abs(value) > VALUE_LIMIT:
            raise InvalidFileError("a symbol is out of its range")
        return value

    def finish(self) -> None:
        """Verify that the stream ends here and is written in its one form."""
        if 0 < self._symbols < FEWEST_SYMBOLS:
            for _ in range(FEWEST_SYMBOLS - self._symbols):
                if self.symbol(self._first_table) != 0:
                    raise InvalidFileError("a short stream is not filled up with zeros")
        if self._state != (LOW_STATE if self._symbols else 0) or next(self._words, None) is not None:
            raise InvalidFileError("a stream goes on behind its last symbol")
