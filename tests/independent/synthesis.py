"""Make pixels of the plane y_hat."""

import math
from collections.abc import Sequence
from operator import mul

from arithmetic import clamp, exp, float32, float32s, to_code
from flow import Q_ONE, interpolation
from operations import CODE_LIMIT, WIDE_LIMIT, Grid, Layers, Plane, leaky

from weights import Model

CHANNEL = Grid(0, CODE_LIMIT)
WIDE = Grid(14, WIDE_LIMIT)
PIXEL = Grid(18, WIDE_LIMIT)
COLOURS = 3


class Synthesis:
    """The transform from y_hat to pixels, for one model and quality."""

    def __init__(self, model: Model, q: int) -> None:
        """Take the layers of the synthesis."""
        self.model, self.q = model, q
        self.layers = Layers(model, "")

    def _factors(self, name: str) -> list[float]:
        """Return the factors of a layer at this quality, in float64."""
        table = self.model[f"{name}.log_scale"].float_rows()
        lower, f = interpolation(self.q, len(table))
        return [exp((a * (Q_ONE - f) + b * f) / Q_ONE) for a, b in zip(table[lower], table[lower + 1], strict=True)]

    def dequantise(self, y_hat: Plane) -> Plane:
        """Turn y_hat into the codes that the synthesis and the thumbnails begin with."""
        scales = self.layers.floats("ungain", "scale")
        factors = float32s(map(mul, self._factors("ungain"), scales))
        return y_hat.with_cells(
            [
                [to_code(value, CODE_LIMIT) for value in float32s(map(mul, float32s(cell), factors))]
                for cell in y_hat.cells
            ],
            CHANNEL,
        )

    def _read(self, x: Plane, layer: str) -> Plane:
        """Turn wide values into codes."""
        scales = self.layers.floats(layer, "scale")
        return x.with_cells(
            [[to_code(value, CODE_LIMIT) for value in float32s(map(mul, float32s(cell), scales))] for cell in x.cells],
            CHANNEL,
        )

    def _block(self, x: Plane, name: str) -> Plane:
        """Run a block on wide values."""
        inner = self.layers.depthwise(self._read(x, f"{name}.read"), f"{name}.dw", CHANNEL)
        inner = leaky(self.layers.linear([inner], f"{name}.up", CHANNEL))
        change = self.layers.linear([inner], f"{name}.down", WIDE)
        return x.with_cells([list(map(int.__add__, *pair)) for pair in zip(x.cells, change.cells, strict=True)])

    def _up(self, x: Plane) -> Plane:
        """Go to twice the rows and columns, with steps and bias that depend on the quality."""
        x = self._read(x, "g_s.up.read")
        factors = self._factors("g_s.s8") * 4
        steps = self.layers.floats("g_s.up", "step")
        steps = float32s(math.ldexp(factor * step, WIDE.exponent) for factor, step in zip(factors, steps, strict=True))
        bias = self.layers.floats("g_s.up", "bias")
        bias = float32s(math.ldexp(factor * value, WIDE.exponent) for factor, value in zip(factors, bias, strict=True))
        (rows,) = self.layers.weights("g_s.up")
        cells = []
        for cell in x.cells:
            sums = float32s(sum(map(mul, row, cell)) for row in rows)
            values = float32s(map(float.__add__, float32s(map(mul, sums, steps)), bias))
            cells.append([to_code(value, WIDE_LIMIT) for value in values])
        return x.with_cells(cells, WIDE).shuffled()

    def pixels(self, y_hat: Plane) -> Plane:
        """Return the picture on the grid of pixels, not yet cut to its size."""
        blocks = self.model.config["synthesis_blocks"]
        x = self.layers.linear([self.dequantise(y_hat)], "g_s.inp", WIDE)
        for block in range(blocks[1]):
            x = self._block(x, f"g_s.b16.{block}")
        x = self._up(x)
        for block in range(blocks[0]):
            x = self._block(x, f"g_s.b8.{block}")
        return spread(self.layers.linear([self._read(x, "g_s.head.read")], "g_s.head", PIXEL), 8)

    def thumbnail(self, y_hat: Plane) -> Plane:
        """Return an eighth of the picture, from all latents."""
        return spread(self.layers.linear([self.dequantise(y_hat)], "thumbnail.s3", PIXEL), 2)

    def coarse_thumbnail(self, lattice: Plane) -> Plane:
        """Return an eighth of the picture, from the latents of the lattice of s2."""
        return spread(self.layers.linear([self.dequantise(lattice)], "thumbnail.s2", PIXEL), 4)


def spread(x: Plane, side: int) -> Plane:
    """Spread the channels of each position over a square of pixels."""
    cells = []
    for row in range(side * x.rows):
        for column in range(side * x.columns):
            start = COLOURS * (row % side * side + column % side)
            cells.append(x.cell(row // side, column // side)[start : start + COLOURS])
    return Plane(side * x.rows, side * x.columns, x.grid, cells)


def samples(x: Plane, depth: int, height: int, width: int) -> list[int]:
    """Return the samples of a picture of some bits, cut to its size: R, G and B of each pixel."""
    top = (1 << depth) - 1
    factor, middle = float32(math.ldexp(top, -PIXEL.exponent)), float32(top / 2)
    return [value for cell in x.cropped(height, width).cells for value in _pixel(cell, factor, middle, top)]


def _pixel(cell: Sequence[int], factor: float, middle: float, top: int) -> list[int]:
    """Return the samples of one pixel."""
    products = float32s(value * factor for value in float32s(cell))
    return [clamp(round(value), 0, top) for value in float32s(product + middle for product in products)]
