"""The coders behind `rans`: CompressAI's, and this project's own for the same streams, in C++ and in plain Python.

`HPCM_CODER` chooses:

    auto         (default) CompressAI's coder for both directions where it can be loaded, elsewhere this project's
    compressai   CompressAI's coder; UnsupportedError where it cannot be loaded
    native       this project's coder: in C++ where HPCM_OPS finds compiled kernels (`native.loader`), else in Python

All coders write the same bytes, read the same symbols, and refuse the same bytes: those that end before their symbols
do, or hold an escape that no encoder writes. CompressAI's coder checks nothing and does not say where it stands, so
this project's reads each part of a stream before it does. `rans` describes the format, and checks the stream's end.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from bisect import bisect_right
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcmcodec import threads
from hpcmcodec.errors import IntegrityError, UnsupportedError
from hpcmcodec.native import loader
from hpcmcodec.native.library import HostMemory, Kernels
from hpcmcodec.rans_tables import Tables

__all__ = ["CHOICES", "Choice", "Coder", "CompressAI", "Native", "Reader", "Writer", "choice", "choose"]

CHOICES = ("auto", "compressai", "native")

_LEAST_STATE = 1 << 31
_TOTAL_BITS = 16
_GROUP_BITS, _LAST_GROUP, _MAX_GROUPS = 4, 15, 6
_WORD_BYTES, _STATE_BYTES = 4, 8
# The most words that a symbol can take: one for its entry, one for the number of its escape's groups, and one for each
# group.
_MOST_WORDS = 2 + _MAX_GROUPS
# Symbols per call of CompressAI's coder, which takes lists.
_PIECE = 65536
_ENDED = "the stream is damaged: it ends before its symbols do"
_WRONG_ESCAPE = "the stream is damaged: a value outside its table is written in a form that no encoder writes"

_INSTALL = "pip install --no-deps compressai==1.2.8"
_extension: ModuleType | None = None


class Writer(Protocol):
    """Writes one stream."""

    def put(self, symbols: NDArray[np.int32], indexes: NDArray[np.intp]) -> None:
        """Code symbols (N,), each under the table that its index (N,) names. The caller has checked both arrays."""

    def finish(self) -> bytes:
        """The bytes of the stream. Is called once."""


class Reader(Protocol):
    """Reads one stream, and says where it stands.

    Attributes:
        position: the number of words taken so far.
        state: the 64-bit state of the coder. Once a whole stream has been read, it is 2^31.
    """

    @property
    def position(self) -> int: ...

    @property
    def state(self) -> int: ...

    def get(self, indexes: NDArray[np.intp]) -> NDArray[np.int32]:
        """The next symbols (N,), whose tables `indexes` (N,) name. The caller has checked them.

        Raises IntegrityError where no encoder writes such a stream; the reader is of no use then.
        """


class Coder(Protocol):
    """Makes writers and readers of streams. `hpcm doctor` and `hpcm info` print its `name`."""

    name: str

    def writer(self, tables: Tables) -> Writer:
        """A writer of one stream over these tables."""

    def reader(self, data: bytes, tables: Tables) -> Reader:
        """A reader of `data`, a stream of at least two whole words whose first two are a state of the coder."""


class Choice(NamedTuple):
    """A coder, and the reason why it was chosen."""

    coder: Coder
    reason: str


def choice() -> str:
    """The value of HPCM_CODER. Raises UnsupportedError for an unknown one."""
    value = os.environ.get("HPCM_CODER") or "auto"
    if value not in CHOICES:
        raise UnsupportedError(f"HPCM_CODER is {value!r}; it can be {', '.join(CHOICES)}")
    return value


def choose() -> Choice:
    """The coder that HPCM_CODER and HPCM_OPS ask for. It is made once for each pair of their values.

    Raises UnsupportedError where the coder or kernels that they name are not here, or for an unknown value.
    """
    return _choose(choice(), loader.choice())


@lru_cache(maxsize=16)
def _choose(wanted: str, ops: str) -> Choice:
    # Kernels for a GPU do not code streams, so the compiled ones for a CPU are looked for beside them.
    kernels = loader.find(beside_cuda=True).kernels
    why_not = "HPCM_CODER=native"
    if wanted != "native":
        try:
            return Choice(CompressAI(kernels), f"HPCM_CODER={wanted}: CompressAI's is installed")
        except UnsupportedError as error:
            if wanted == "compressai":
                raise
            why_not = str(error)
    return Choice(Native(kernels), why_not if kernels else f"{why_not}; no compiled kernels (HPCM_OPS={ops})")


# --- CompressAI's ----------------------------------------------------------------------------------------------------


class CompressAI:
    """CompressAI's extension. It checks nothing: wrong arguments and streams of fewer than 4 symbols make it corrupt
    memory, damaged streams make it read beyond their end. The checks of `rans` before each call keep it within bounds,
    and in reading so does this project's coder, in C++ where `kernels` are given: what it refuses is not read again.

    Raises UnsupportedError where the extension cannot be loaded.
    """

    name = "compressai"

    def __init__(self, kernels: Kernels | None = None) -> None:
        self._extension: Any = load_extension()
        self._native = Native(kernels)

    def writer(self, tables: Tables) -> Writer:
        return _CompressAIWriter(self._extension.BufferedRansEncoder(), tables)

    def reader(self, data: bytes, tables: Tables) -> Reader:
        coder = self._extension.RansDecoder()
        coder.set_stream(data)
        return _CompressAIReader(coder, tables, self._native.reader(data, tables))


class _CompressAIWriter:
    def __init__(self, coder: Any, tables: Tables) -> None:
        self._coder, self._tables = coder, tables

    def put(self, symbols: NDArray[np.int32], indexes: NDArray[np.intp]) -> None:
        for start in range(0, len(symbols), _PIECE):
            piece = slice(start, start + _PIECE)
            self._coder.encode_with_indexes(symbols[piece].tolist(), *_as_lists(self._tables, indexes[piece]))

    def finish(self) -> bytes:
        return bytes(self._coder.flush())


class _CompressAIReader:
    def __init__(self, coder: Any, tables: Tables, ahead: Reader) -> None:
        self._coder, self._tables, self._ahead = coder, tables, ahead

    @property
    def state(self) -> int:
        return self._ahead.state

    @property
    def position(self) -> int:
        return self._ahead.position

    def get(self, indexes: NDArray[np.intp]) -> NDArray[np.int32]:
        # The two read the same words, so this ensures that those that the extension takes are there.
        expected = self._ahead.get(indexes)
        symbols = np.empty(len(indexes), np.int32)
        for start in range(0, len(indexes), _PIECE):
            piece = slice(start, start + _PIECE)
            symbols[piece] = self._coder.decode_stream(*_as_lists(self._tables, indexes[piece]))
        if not np.array_equal(symbols, expected):
            raise IntegrityError("CompressAI's entropy coder reads other symbols than hpcmcodec's: see hpcm doctor")
        return symbols


def _as_lists(tables: Tables, indexes: NDArray[np.intp]) -> tuple[list[int], list[list[int]], list[int], list[int]]:
    """The extension's arguments for symbols with these indexes: indexes, CDFs, sizes and offsets as lists.

    Each call of the extension converts every number of every table that it is given. For all tables that takes longer
    than coding some thousand symbols. A piece of a stream uses few tables, so only these are given, renumbered.
    """
    used = np.flatnonzero(np.bincount(indexes, minlength=len(tables)))
    renumbered = np.zeros(len(tables), np.intp)
    renumbered[used] = np.arange(len(used))
    return (
        renumbered[indexes].tolist(),
        [tables.rows[table] for table in used],
        tables.sizes[used].tolist(),
        tables.offsets[used].tolist(),
    )


def load_extension() -> ModuleType:
    """CompressAI's module `ans`, loaded from its file: importing the package would import torch and torchvision.

    Raises UnsupportedError where the module cannot be loaded.
    """
    global _extension
    with threads.loading:
        if _extension is None:
            # It keeps its own name, so that a later import of the package finds the same types and does not fail.
            _extension = sys.modules.get("compressai.ans") or _load_from_file("compressai.ans")
        return _extension


def _load_from_file(name: str) -> ModuleType:
    package, _, stem = name.partition(".")
    try:
        package_spec = importlib.util.find_spec(package)
    except ValueError:  # sys.modules has a module of that name without a spec
        package_spec = None
    folders = (package_spec and package_spec.submodule_search_locations) or []
    files = [Path(folder, stem + suffix) for folder in folders for suffix in EXTENSION_SUFFIXES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        found = f"no {stem} for this Python in {folders[0]}" if folders else "it is not installed"
        raise UnsupportedError(f"CompressAI's entropy coder is missing ({found}): {_INSTALL}")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UnsupportedError(f"CompressAI's entropy coder cannot be loaded from {file}: {_INSTALL}")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UnsupportedError(f"CompressAI's entropy coder cannot be loaded ({error}): {_INSTALL}") from error
    # CPython enters extension modules into sys.modules by itself. If it stayed there, a later import of the package
    # would find the module imported already, and not make it an attribute of the package.
    sys.modules.pop(name, None)
    return module


# --- this project's --------------------------------------------------------------------------------------------------


class Native:
    """This project's coder: in C++ (kernels/rans.h) where `kernels` are given, else in plain Python.

    Decoding undoes encoding step by step and loses nothing of the state. So a stream that has been read to its last
    word, into the state that the encoder began with, is the one that encoding its symbols gives: escapes of another
    form than the encoder's are refused when they are read.
    """

    def __init__(self, kernels: Kernels | None) -> None:
        self._kernels = kernels
        self.name = "native C++" if kernels else "native Python"

    def writer(self, tables: Tables) -> Writer:
        return _KernelWriter(tables, self._kernels) if self._kernels else _PlainWriter(tables)

    def reader(self, data: bytes, tables: Tables) -> Reader:
        return _KernelReader(data, tables, self._kernels) if self._kernels else _PlainReader(data, tables)


class _NativeWriter:
    """Keeps all symbols until the end, because they are coded from the last to the first."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []

    def put(self, symbols: NDArray[np.int32], indexes: NDArray[np.intp]) -> None:
        self._parts.append((np.array(symbols, np.int32), np.array(indexes, np.int32)))

    def finish(self) -> bytes:
        state, written = _LEAST_STATE, []
        while self._parts:
            words, state = self._code(*self._parts.pop(), state)
            written.append(words)
        return b"".join([state.to_bytes(_STATE_BYTES, "little"), *reversed(written)])

    def _code(self, symbols: NDArray[np.int32], indexes: NDArray[np.int32], state: int) -> tuple[bytes, int]:
        """The words that go in front of those of all later symbols, and the state in which decoding begins these ones.

        `state` is the state that decoding has reached behind them.
        """
        raise NotImplementedError


class _KernelWriter(_NativeWriter):
    def __init__(self, tables: Tables, kernels: Kernels) -> None:
        super().__init__(tables)
        self._kernels = kernels

    def _code(self, symbols: NDArray[np.int32], indexes: NDArray[np.int32], state: int) -> tuple[bytes, int]:
        words = np.empty((_MOST_WORDS * len(symbols), _WORD_BYTES), np.uint8)
        before, room = ctypes.c_uint64(state), ctypes.c_int64(len(words))
        left = self._kernels.rans_encode(
            *(len(symbols), HostMemory.at(symbols), HostMemory.at(indexes), *_addresses(self._tables)),
            *(ctypes.byref(before), HostMemory.at(words), ctypes.byref(room)),
        )
        if left:
            raise ValueError(f"symbol {symbols[left - 1]} cannot be coded under table {indexes[left - 1]}")
        return words[room.value :].tobytes(), before.value


class _KernelReader:
    def __init__(self, data: bytes, tables: Tables, kernels: Kernels) -> None:
        self._stream, self._tables, self._kernels = np.frombuffer(data, np.uint8), tables, kernels
        self._state = ctypes.c_uint64(int.from_bytes(data[:_STATE_BYTES], "little"))
        self._position = ctypes.c_int64(_STATE_BYTES // _WORD_BYTES)

    @property
    def state(self) -> int:
        return self._state.value

    @property
    def position(self) -> int:
        return self._position.value

    def get(self, indexes: NDArray[np.intp]) -> NDArray[np.int32]:
        numbers, symbols = np.ascontiguousarray(indexes, np.int32), np.empty(len(indexes), np.int32)
        decoded = self._kernels.rans_decode(
            *(len(numbers), HostMemory.at(numbers), *_addresses(self._tables)),
            *(HostMemory.at(self._stream), len(self._stream) // _WORD_BYTES),
            *(ctypes.byref(self._state), ctypes.byref(self._position), HostMemory.at(symbols)),
        )
        if decoded != len(numbers):
            raise IntegrityError(_ENDED if 4 * self.position > len(self._stream) else _WRONG_ESCAPE)
        return symbols


def _addresses(tables: Tables) -> tuple[int, int, int, int, int]:
    """The fields of `struct Tables` of rans.h: rows, columns and the addresses of cdf, sizes and offsets."""
    at = HostMemory.at
    return *tables.cdf.shape, at(tables.cdf), at(tables.sizes), at(tables.offsets)


class _PlainWriter(_NativeWriter):
    def _code(self, symbols: NDArray[np.int32], indexes: NDArray[np.int32], state: int) -> tuple[bytes, int]:
        tables = self._tables
        escape, values = tables.sizes[indexes] - 2, symbols.astype(np.int64) - tables.offsets[indexes]
        inside = (values >= 0) & (values < escape)
        entries = np.where(inside, values, escape)
        starts = tables.cdf[indexes, entries]
        frequencies = tables.cdf[indexes, entries + 1] - starts
        rests = np.where(inside, -1, np.where(values < 0, -2 * values - 1, 2 * (values - escape)))
        if len(rests) and int(rests.max()) >= 1 << _GROUP_BITS * _MAX_GROUPS:
            raise ValueError(f"symbol {symbols[rests.argmax()]} cannot be coded under table {indexes[rests.argmax()]}")
        words = []
        for start, frequency, rest in zip(
            starts[::-1].tolist(), frequencies[::-1].tolist(), rests[::-1].tolist(), strict=True
        ):
            if rest >= 0:
                groups = range(0, rest.bit_length(), _GROUP_BITS)
                for group in (*[rest >> shift & _LAST_GROUP for shift in reversed(groups)], len(groups)):
                    if state >> (63 - _GROUP_BITS):
                        words.append(state & 0xFFFFFFFF)
                        state >>= 32
                    state = state << _GROUP_BITS | group
            if state >= frequency << (63 - _TOTAL_BITS):
                words.append(state & 0xFFFFFFFF)
                state >>= 32
            quotient, remainder = divmod(state, frequency)
            state = (quotient << _TOTAL_BITS) + remainder + start
        return np.array(words[::-1], "<u4").tobytes(), state


class _PlainReader:
    def __init__(self, data: bytes, tables: Tables) -> None:
        self._tables = tables
        self._words: list[int] = np.frombuffer(data, "<u4").tolist()
        self.state = int.from_bytes(data[:_STATE_BYTES], "little")
        self.position = _STATE_BYTES // _WORD_BYTES

    def get(self, indexes: NDArray[np.intp]) -> NDArray[np.int32]:
        rows, values, state = self._tables.rows, [], self.state
        for table in indexes.tolist():
            row = rows[table]
            place = state & 0xFFFF
            entry = bisect_right(row, place) - 1
            start = row[entry]
            state = (row[entry + 1] - start) * (state >> _TOTAL_BITS) + place - start
            if state < _LEAST_STATE:
                state = state << 32 | self._word()
            if entry == len(row) - 2:
                self.state = state
                entry = self._escaped(entry)
                state = self.state
            values.append(entry)
        self.state = state
        return np.array(values, np.int32) + self._tables.offsets[indexes]

    def _escaped(self, escape: int) -> int:
        """The value that an escape's groups stand for, less the table's first value. `escape` is the escape's entry."""
        n_groups, rest, group = self._group(), 0, 1
        if n_groups > _MAX_GROUPS:
            raise IntegrityError(_WRONG_ESCAPE)
        for number in range(n_groups):
            group = self._group()
            rest |= group << _GROUP_BITS * number
        if not group:
            raise IntegrityError(_WRONG_ESCAPE)
        return -(rest >> 1) - 1 if rest & 1 else (rest >> 1) + escape

    def _group(self) -> int:
        group = self.state & _LAST_GROUP
        self.state >>= _GROUP_BITS
        if self.state < _LEAST_STATE:
            self.state = self.state << 32 | self._word()
        return group

    def _word(self) -> int:
        if self.position == len(self._words):
            raise IntegrityError(_ENDED)
        self.position += 1
        return self._words[self.position - 1]
