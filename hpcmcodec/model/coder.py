"""Latents to streams and back: the walk joined to the entropy coder, for one tile.

A symbol is the residual y - mean, rounded to the nearest integer or to the next one towards zero (`thresholds`). Coding
steps follow each other; within one, the folded array is coded channel by channel in raster order, and only where a
latent exists. A symbol whose table gives zero a probability above `entropy.SKIP_PROBABILITY` is not coded: encoder and
decoder both take it as zero, unless the file is *full*, because the picture is one that the model knows little about.
y_hat is 16 * symbol + mean in sixteenths, moved towards the mean to where the mass of the
symbol's bin lies (`entropy.centroids`, a table by level and magnitude). It is int32, and the symbol limit of `rans`
keeps it far from overflow. Every scale's stream comes with the
CRC-32 of the integers it decodes to, little-endian int32: z's values, channel by channel in raster order, or y_hat
where the scale codes it, in the order of coding. `hyper` says in which order z is coded.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from hpcmcodec import rans_coders, timing
from hpcmcodec.errors import IntegrityError
from hpcmcodec.exact.constants import MEAN_SHIFT
from hpcmcodec.exact.reference import ExactOps
from hpcmcodec.exact.schedule import GROUPS, SCALES, STEPS, Step, decimate, fold, grid
from hpcmcodec.model.config import Config
from hpcmcodec.model.context import walk
from hpcmcodec.model.cost import step_cost, z_cost
from hpcmcodec.model.entropy import Z_BANDS, grids_at, skipped_levels
from hpcmcodec.model.hyper import Contexts
from hpcmcodec.quality import Quality
from hpcmcodec.rans import MAX_SYMBOL, Decoder, Encoder, Tables, bits

# What a bit weighs against a squared error, in squared quantisation steps: docs/NOTEBOOK.md has what 0.03 to 0.13 gave.
RATE_WEIGHT = 0.08

Ints = Any  # numpy.ndarray of int32
Tick = Callable[[float], object]
Verify = Callable[[str, int], bool]
"""verify(scale, crc): whether the CRC-32 of the decoded integers of z, s1, s2 or s3 is right; called in this order."""
Cut = Callable[[float, float], None]
"""cut(error, bits): what not coding symbols of one coding step added to the squared error, in squared quantisation
steps, and what coding them would have cost."""
Spent = Callable[[str, np.ndarray], None]
"""spent(scale, bits): the bits that z, or one coding step of `scale`, cost at each position of y: float64 (h, w)."""


class LatentMismatchError(IntegrityError):
    """The decoded integers of a scale differ from the encoder's, by their CRC.

    step: the coding step after which this was found; None for z, which is decoded before all coding steps. The message
    does not name the tile and the engine: the caller knows them and adds them.
    """

    def __init__(self, scale: str, step: Step | None) -> None:
        super().__init__(f"decoded latents of {scale} differ from the encoder's (CRC mismatch)")
        self.scale, self.step = scale, step


class Coded(NamedTuple):
    """One stream of a tile: its bytes, and the CRC of the integers it decodes to."""

    data: bytes
    latents_crc: int


class LatentCoder:
    """Codes tiles with one model: exact operations, the tables of z (`hyper.Contexts`) and of y (one per level).

    Raises UnsupportedError, before anything is computed, where the coder that HPCM_CODER names is not there.
    """

    def __init__(self, config: Config, ops: ExactOps, tables: Mapping[str, np.ndarray]) -> None:
        rans_coders.choose()
        self.config, self.ops = config, ops
        self.z_tables = Tables(tables["z.cdf"], tables["z.sizes"], tables["z.offsets"])
        self.contexts = Contexts(tables.get("z.thresholds", np.zeros((Z_BANDS * config.hyper, 0), np.int32)))
        self.y_tables = Tables(tables["y.cdf"], tables["y.sizes"], tables["y.offsets"])
        self.centroids = tables["y.centroids"]
        self.skipped = skipped_levels(self.y_tables.cdf, self.y_tables.sizes, self.y_tables.offsets)
        zeros = np.zeros(len(self.skipped), np.int32)
        self._zero_bits = bits(self.y_tables, zeros, np.arange(len(zeros)))
        self.plain = config.flow == "hpcm"  # symbols are rounded to the nearest, and all are coded
        if self.plain:
            self.skipped[:] = False
        self._thresholds: dict[float, np.ndarray] = {}  # by the weight of a bit; only encoders need them

    def encode(
        self,
        y: np.ndarray,
        z: np.ndarray,
        quality: Quality,
        tick: Tick | None = None,
        rate_weight: float = RATE_WEIGHT,
        *,
        full: bool = False,
        cut: Cut | None = None,
    ) -> tuple[dict[str, Coded], Ints]:
        """y (h, w, M) and z (ceil(h/4), ceil(w/4), N), float32; rate_weight: see `thresholds`.

        full: whether all symbols are coded. `cut` is called with what not coding some of them does.

        Returns the stream of each scale, and y_hat (h, w, M) int32 in sixteenths.
        """
        h, w, _ = y.shape
        out: dict[str, Coded] = {}
        z_hat = _round(z)
        with timing.phase("rANS"):
            out["z"] = Coded(self._encode_z(z_hat, quality), _crc(z_hat.transpose(2, 0, 1)))

        encoders = {s: Encoder(self.y_tables) for s in SCALES}
        crcs, planes = dict.fromkeys(SCALES, 0), dict[str, np.ndarray]()

        def residuals(step: Step, means: Ints, levels: Ints, exists: Any) -> Ints:
            if step.scale not in planes:
                planes[step.scale] = decimate(
                    y[None], step.scale, np.zeros((1, *grid(step.scale, h, w), y.shape[2]), np.float32)
                )
            plane = planes[step.scale]
            folded = fold(plane, step, np.zeros((*plane.shape[:3], plane.shape[3] // GROUPS[step.scale]), np.float32))
            wanted = _flat(folded)[exists] - means.astype(np.float32) * np.float32(2.0**-MEAN_SHIFT)
            symbols = self.quantise(wanted, levels, rate_weight)
            self.observe(symbols, levels)
            coded = self._coded(levels, full)
            if cut:
                self._tell(cut, wanted[~coded], symbols[~coded], levels[~coded])
            symbols[~coded] = 0
            with timing.phase("rANS"):
                encoders[step.scale].put(symbols[coded], levels[coded])
            return symbols

        y_hat = self._walk(z_hat, quality, h, w, residuals, crcs, tick)
        with timing.phase("rANS"):
            out |= {s: Coded(encoders[s].finish(), crcs[s]) for s in SCALES}
        return out, y_hat

    def _encode_z(self, z_hat: Ints, quality: Quality) -> bytes:
        """The stream of z_hat (rows, columns, N)."""
        rows, columns, n = z_hat.shape
        indexes = self.contexts.tables(z_hat, np.arange(rows * columns), quality)
        encoder, waves = Encoder(self.z_tables), self.contexts.waves(rows, columns)
        encoder.put(*(np.concatenate([v[at].T.ravel() for at in waves]) for v in (z_hat.reshape(-1, n), indexes)))
        return encoder.finish()

    def decode_z(self, stream: bytes, quality: Quality, rows: int, columns: int) -> Ints:
        """z_hat (rows, columns, N) int32. Raises IntegrityError where the stream is damaged."""
        n = self.config.hyper
        z_hat = np.zeros((rows, columns, n), np.int32)
        with _reading("z"):
            decoder = Decoder(stream, self.z_tables)
            for at in self.contexts.waves(rows, columns):
                symbols = decoder.get(self.contexts.tables(z_hat, at, quality).T.ravel())
                z_hat.reshape(-1, n)[at] = symbols.reshape(n, -1).T
            decoder.finish()
        return z_hat

    def quantise(self, residuals: np.ndarray, levels: Ints, rate_weight: float = RATE_WEIGHT) -> Ints:
        """The symbols of residuals (n,) float32: the nearest integers, or the next towards zero by `thresholds`."""
        if self.plain:
            return _round(residuals)
        if rate_weight not in self._thresholds:
            self._thresholds[rate_weight] = thresholds(self.y_tables, self.centroids, rate_weight)
        least, symbols = self._thresholds[rate_weight], _round(residuals)
        at = np.flatnonzero(symbols)
        n = np.minimum(np.abs(symbols[at]), least.shape[1] - 1)
        at = at[np.abs(residuals[at]) < least[levels[at], n]]
        symbols[at] -= np.sign(symbols[at])
        return symbols

    def _coded(self, levels: Ints, full: bool) -> np.ndarray:
        """(n,) bool: which symbols are coded."""
        return np.ones(len(levels), bool) if full else ~self.skipped[levels]

    def _tell(self, cut: Cut, wanted: np.ndarray, symbols: Ints, levels: Ints) -> None:
        """Call `cut` for residuals (n,) that are not coded, and the symbols that they would have had."""
        at = np.flatnonzero(symbols)
        r, s = wanted[at].astype(np.float64), symbols[at]
        zeros = np.bincount(np.delete(levels, at), minlength=len(self._zero_bits))
        cost = zeros @ self._zero_bits + bits(self.y_tables, s, levels[at]).sum()
        cut(float((r**2 - (r - s) ** 2).sum()), float(cost))

    def observe(self, symbols: Ints, levels: Ints) -> None:
        """Called with the symbols of each coding step before they are limited; a subclass in export counts them."""

    def decode(
        self,
        streams: Mapping[str, bytes],
        verify: Verify | None,
        quality: Quality,
        h: int,
        w: int,
        tick: Tick | None = None,
        spent: Spent | None = None,
        finest: str = SCALES[-1],
        *,
        full: bool = False,
    ) -> Ints:
        """y_hat (h, w, M) int32 in sixteenths, from the streams of z and of those scales that are given.

        Scales without a stream get zero residuals. finest: the scale to end with, on whose grid y_hat is then. verify:
        None where there is nothing to verify the integers by. `spent` is called with the bits that z and each coding
        step cost. full: as for `encode`. Raises IntegrityError where a stream is damaged, and LatentMismatchError where
        `verify` returns False.
        """
        rows, columns = -(-h // 4), -(-w // 4)
        z_hat = self.decode_z(streams["z"], quality, rows, columns)
        if verify and not verify("z", _crc(z_hat.transpose(2, 0, 1))):
            raise LatentMismatchError("z", None)
        if spent:
            indexes = self.contexts.tables(z_hat, np.arange(rows * columns), quality)
            spent("z", z_cost(self.z_tables, z_hat, indexes.reshape(z_hat.shape), h, w))
        decoders = {}
        for s in filter(streams.__contains__, SCALES):
            with _reading(s):
                decoders[s] = Decoder(streams[s], self.y_tables)
        found = dict.fromkeys(SCALES, 0)

        def residuals(step: Step, means: Ints, levels: Ints, exists: Any) -> Ints:
            symbols = np.zeros(len(levels), np.int32)
            if step.scale in decoders:
                coded = self._coded(levels, full)
                with _reading(step.scale):
                    symbols[coded] = decoders[step.scale].get(levels[coded])
                if spent:
                    size = math.prod(grid(step.scale, h, w)) * self.config.latent // GROUPS[step.scale]
                    at = np.arange(size)[exists][coded]
                    cost = symbols[coded], levels[coded], at, h, w, self.config.latent
                    spent(step.scale, step_cost(self.y_tables, step, *cost))
            return symbols

        def check(step: Step) -> None:
            if not step.last_of_scale or step.scale not in decoders:
                return
            with _reading(step.scale):
                decoders[step.scale].finish()
            if verify and not verify(step.scale, found[step.scale]):
                raise LatentMismatchError(step.scale, step)

        return self._walk(z_hat, quality, h, w, residuals, found, tick, check, finest)

    def _walk(
        self,
        z_hat: Ints,
        quality: Quality,
        h: int,
        w: int,
        residuals: Callable[[Step, Ints, Ints, Any], Ints],
        crcs: dict[str, int],
        tick: Tick | None,
        check: Callable[[Step], None] | None = None,
        finest: str = SCALES[-1],
    ) -> Ints:
        """Run the walk; `residuals` gives the symbols of each coding step: flat, of the latents that exist."""
        xp = self.ops.xp

        def code(step: Step, means: Any, levels: Any, mask: np.ndarray | None) -> Any:
            shape = tuple(means.shape)
            exists = slice(None) if mask is None else np.flatnonzero(_flat(mask))
            m, s = _flat(xp.numpy(means))[exists], _flat(xp.numpy(levels))[exists]
            symbols = residuals(step, m, s, exists)
            y_hat = (symbols << np.int32(MEAN_SHIFT)) + m
            y_hat -= np.sign(symbols) * self.centroids[s, np.minimum(np.abs(symbols), 2)]
            crcs[step.scale] = _crc(y_hat, crcs[step.scale])
            flat = np.zeros(means.shape[1] * means.shape[2] * means.shape[3], np.int32)
            flat[exists] = y_hat
            if check:
                check(step)
            if tick:
                tick((step.index + 1) / len(STEPS))
            return xp.array(flat.reshape(shape[3], shape[1], shape[2]).transpose(1, 2, 0)[None])

        ops = self.ops.on(grids_at(self.ops.grids, quality))
        with xp.exact_mode():
            return xp.numpy(walk(ops, self.config, xp.array(z_hat[None]), [quality], h, w, code, finest))[0]


def thresholds(tables: Tables, centroids: np.ndarray, rate_weight: float = RATE_WEIGHT, reach: int = 16) -> np.ndarray:
    """float32 (levels, reach): the least magnitude of a residual that becomes symbol n rather than n - 1, for n >= 1.

    Of n and n - 1 the encoder takes the one with the smaller squared error + rate_weight * bits. The error is that of
    the reconstructed value. The bits are those of the positive symbol: its negative's frequency in the table differs by
    one at most. Column 0 is zero, so a zero stays zero. The last column also serves all larger symbols: they lie above
    it and stay as they are.
    """
    n = np.arange(reach + 1)
    place = n - centroids[:, np.minimum(n, 2)] * 2.0**-MEAN_SHIFT  # the reconstructed value's distance from the mean
    levels = np.repeat(np.arange(len(tables.sizes)), reach + 1)
    cost = bits(tables, np.tile(n, len(tables.sizes)).astype(np.int32), levels).reshape(-1, reach + 1)
    below, above = place[:, :-1], place[:, 1:]
    out = np.zeros((len(tables.sizes), reach), np.float32)
    out[:, 1:] = ((below + above) / 2 + rate_weight * np.diff(cost) / (2 * (above - below)))[:, :-1]
    return out


@contextmanager
def _reading(scale: str) -> Iterator[None]:
    """A context in which errors of the entropy coder say which scale's stream is damaged."""
    try:
        with timing.phase("rANS"):
            yield
    except IntegrityError as error:
        raise IntegrityError(f"stream {scale}: {error}") from error


def _flat(folded: np.ndarray) -> np.ndarray:
    """(1, rows, columns, C) -> flat, channel by channel in raster order."""
    return folded[0].transpose(2, 0, 1).ravel()


def _round(x: np.ndarray) -> Ints:
    """x rounded to the nearest integer, int32; x is limited first, to what a stream can hold."""
    return np.rint(np.clip(x, -MAX_SYMBOL, MAX_SYMBOL)).astype(np.int32)


def _crc(values: Ints, start: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(values, "<i4").data, start)
