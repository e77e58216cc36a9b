"""The operations on codes: integers that stand for real numbers on grids of a fixed exponent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import mul
from typing import NamedTuple

from arithmetic import clamp, exp, exp_of_code, float32, float32s, rsqrt, sigmoid_of_code, to_code

from weights import Model

CODE_LIMIT = 8191
TABLE_LIMIT = 2047
WIDE_LIMIT = 1 << 21
MEAN_LIMIT = 1 << 16
TOP_LEVEL = 63
BLOCK = 64
TENTH = float32(0.1)


class Grid(NamedTuple):
    """The exponent of codes, and the largest of them."""

    exponent: int
    limit: int


HEAD_GRID = Grid(4, WIDE_LIMIT)


@dataclass
class Plane:
    """Codes of some channels at each position, row by row."""

    rows: int
    columns: int
    grid: Grid
    cells: list[list[int]]

    def with_cells(self, cells: list[list[int]], grid: Grid | None = None) -> "Plane":
        """Make a plane of the same size from other cells."""
        return Plane(self.rows, self.columns, grid or self.grid, cells)

    def cell(self, row: int, column: int) -> list[int]:
        """Return the channels at a position."""
        return self.cells[row * self.columns + column]

    def cropped(self, rows: int, columns: int) -> "Plane":
        """Cut off what lies to the right of, or below, the upper left part."""
        cells = [self.cell(row, column) for row in range(rows) for column in range(columns)]
        return Plane(rows, columns, self.grid, cells)

    def shuffled(self) -> "Plane":
        """Spread each position's four runs of channels over 2 x 2 positions."""
        size = len(self.cells[0]) // 4
        cells = []
        for row in range(2 * self.rows):
            for column in range(2 * self.columns):
                start = size * (row % 2 * 2 + column % 2)
                cells.append(self.cell(row // 2, column // 2)[start : start + size])
        return Plane(2 * self.rows, 2 * self.columns, self.grid, cells)

    def unshuffled(self, side: int) -> "Plane":
        """Gather squares of positions, each into the runs of channels of one position."""
        rows, columns = self.rows // side, self.columns // side
        cells = []
        for row in range(rows):
            for column in range(columns):
                square = ((side * row + down, side * column + right) for down in range(side) for right in range(side))
                cells.append([code for place in square for code in self.cell(*place)])
        return Plane(rows, columns, self.grid, cells)


def add(a: Plane, b: Plane) -> Plane:
    """Add the codes of two planes that are on one grid."""
    limit = a.grid.limit
    return a.with_cells(
        [
            [clamp(left + right, -limit, limit) for left, right in zip(first, second, strict=True)]
            for first, second in zip(a.cells, b.cells, strict=True)
        ]
    )


def leaky(x: Plane) -> Plane:
    """Keep positive codes, and a tenth of negative ones."""
    return x.with_cells(
        [
            [
                max(code, round(tenth))
                for code, tenth in zip(cell, float32s(code * TENTH for code in cell), strict=False)
            ]
            for cell in x.cells
        ]
    )


def relu_squared(x: Plane, grid: Grid) -> Plane:
    """Square positive codes and drop the others."""
    factor = math.ldexp(1.0, grid.exponent - 2 * x.grid.exponent)
    cells = []
    for cell in x.cells:
        squares = float32s(max(code, 0) ** 2 for code in cell)
        cells.append([to_code(square, grid.limit) for square in float32s(square * factor for square in squares)])
    return x.with_cells(cells, grid)


def gate(r: Plane, a: Plane) -> Plane:
    """Multiply codes by the sigmoids of others."""
    return a.with_cells(
        [
            [round(x) for x in float32s(sigmoid_of_code(code) * value for code, value in zip(*pair, strict=True))]
            for pair in zip(r.cells, a.cells, strict=True)
        ]
    )


def blend(r: Plane, a: Plane, b: Plane) -> Plane:
    """Go from b towards a, of which there is one position, as far as the sigmoids of r say."""
    target = a.cells[0]
    cells = []
    for codes, origin in zip(r.cells, b.cells, strict=True):
        ways = zip(codes, target, origin, strict=True)
        products = float32s(sigmoid_of_code(code) * (end - start) for code, end, start in ways)
        sums = float32s(product + start for product, start in zip(products, origin, strict=True))
        cells.append([round(value) for value in sums])
    return b.with_cells(cells)


def pool(x: Plane, grid: Grid) -> Plane:
    """Take the mean over all positions."""
    factor = math.ldexp(1.0, grid.exponent - x.grid.exponent)
    means = (float(sum(channel)) / len(x.cells) for channel in zip(*x.cells, strict=True))
    return Plane(1, 1, grid, [[to_code(mean * factor, grid.limit) for mean in means]])


class Layers:
    """The operations that have tensors, for one model and for layers whose names share a prefix."""

    def __init__(self, model: Model, prefix: str) -> None:
        """Prepare nothing: tensors are read when a layer is used first."""
        self.model, self.prefix = model, prefix
        self.floats = cache(self._floats)
        self.scaled = cache(self._scaled)
        self.weights = cache(self._weights)
        self.kernel = cache(self._kernel)

    def _name(self, layer: str, tensor: str) -> str:
        """Return the full name of a tensor."""
        return f"{self.prefix}{layer}.{tensor}"

    def _floats(self, layer: str, tensor: str) -> list[float]:
        """Read a tensor of one float32 for each channel."""
        return self.model[self._name(layer, tensor)].floats()

    def _kernel(self, layer: str) -> list[list[int]]:
        """Read the weights of a depthwise layer."""
        return self.model[self._name(layer, "weight")].integer_rows()

    def _weights(self, layer: str) -> list[list[list[int]]]:
        """Read the weights of a linear layer, cut into the columns of each input."""
        parts, start = [], 0
        rows = self.model[self._name(layer, "weight")].integer_rows()
        for width in self.model[self._name(layer, "widths")].integers():
            parts.append([row[start : start + width] for row in rows])
            start += width
        return parts

    def _scaled(self, layer: str, exponent: int, inputs: tuple[int, ...]) -> tuple[list[list[float]], list[float]]:
        """Return the steps of each input and the bias of a layer, for a grid of the result and those of the inputs."""
        rows = self.model[self._name(layer, "step")].float_rows()
        steps = [
            float32s(math.ldexp(step, exponent - given) for step in row)
            for row, given in zip(rows, inputs, strict=True)
        ]
        if self._name(layer, "bias") not in self.model:
            return steps, [0.0] * len(rows[0])
        return steps, float32s(math.ldexp(bias, exponent) for bias in self.floats(layer, "bias"))

    def linear_cell(
        self, cells: Sequence[list[int]], exponents: tuple[int, ...], layer: str, exponent: int
    ) -> list[float]:
        """Apply a linear layer to the inputs at one position, without rounding to codes."""
        steps, bias = self.scaled(layer, exponent, exponents)
        total: list[float] | None = None
        for cell, rows, step in zip(cells, self.weights(layer), steps, strict=True):
            sums = float32s(sum(map(mul, row, cell)) for row in rows)
            products = float32s(map(mul, sums, step))
            total = products if total is None else float32s(map(float.__add__, total, products))
        assert total is not None
        return float32s(map(float.__add__, total, bias))

    def linear(self, inputs: Sequence[Plane], layer: str, grid: Grid) -> Plane:
        """Apply a linear layer at each position; an input of one position counts for all."""
        largest = max(inputs, key=lambda plane: len(plane.cells))
        count = len(largest.cells)
        exponents = tuple(plane.grid.exponent for plane in inputs)
        spread = [plane.cells if len(plane.cells) == count else plane.cells * count for plane in inputs]
        cells = []
        for given in zip(*spread, strict=True):
            values = self.linear_cell(given, exponents, layer, grid.exponent)
            cells.append([to_code(value, grid.limit) for value in values])
        return largest.with_cells(cells, grid)

    def head_cell(
        self, cells: Sequence[list[int]], exponents: tuple[int, ...], layer: str
    ) -> tuple[list[int], list[int]]:
        """Return the means and the levels at one position."""
        values = [round(value) for value in self.linear_cell(cells, exponents, layer, HEAD_GRID.exponent)]
        half = len(values) // 2
        means = [clamp(value, -MEAN_LIMIT, MEAN_LIMIT) for value in values[:half]]
        return means, [clamp(value, 0, TOP_LEVEL) for value in values[half:]]

    def depthwise(self, x: Plane, layer: str, grid: Grid) -> Plane:
        """Filter each channel on its own, with zeros outside of the plane."""
        kernel = self.kernel(layer)
        side = math.isqrt(len(kernel[0]))
        reach = range(-(side // 2), side // 2 + 1)
        (steps,), bias = self.scaled(layer, grid.exponent, (x.grid.exponent,))
        outside = [0] * len(kernel)
        cells = []
        for row in range(x.rows):
            for column in range(x.columns):
                around = [
                    x.cell(row + down, column + right)
                    if 0 <= row + down < x.rows and 0 <= column + right < x.columns
                    else outside
                    for down in reach
                    for right in reach
                ]
                sums = float32s(sum(map(mul, *pair)) for pair in zip(zip(*around, strict=True), kernel, strict=True))
                values = float32s(map(float.__add__, float32s(map(mul, sums, steps)), bias))
                cells.append([to_code(value, grid.limit) for value in values])
        return x.with_cells(cells, grid)

    def norm(self, x: Plane, layer: str, grid: Grid) -> Plane:
        """Normalise the channels of each position to mean 0 and variance 1."""
        gamma = float32s(math.ldexp(value, grid.exponent) for value in self.floats(layer, "gamma"))
        beta = float32s(math.ldexp(value, grid.exponent) for value in self.floats(layer, "beta"))
        n = len(gamma)
        cells = []
        for cell in x.cells:
            total, squares = sum(cell), sum(code * code for code in cell)
            r = float32(rsqrt(float(squares * n - total * total + n * n)))
            values = float32s(code * n - total for code in cell)
            values = float32s(value * r for value in values)
            values = float32s(map(mul, values, gamma))
            values = float32s(map(float.__add__, values, beta))
            cells.append([to_code(value, grid.limit) for value in values])
        return x.with_cells(cells, grid)

    def scale(self, x: Plane, layer: str, grid: Grid) -> Plane:
        """Multiply each channel by its factor, without a change of the unit of the codes."""
        factors = self.floats(layer, "scale")
        return x.with_cells(
            [
                [to_code(value, grid.limit) for value in float32s(map(mul, map(float, cell), factors))]
                for cell in x.cells
            ],
            grid,
        )

    def place(self, x: Plane, layer: str, group_at: Callable[[int, int], int]) -> Plane:
        """Add to each position the codes of the group that is coded there."""
        exponent, limit = x.grid
        table = [
            [to_code(value, limit) for value in float32s(math.ldexp(value, exponent) for value in row)]
            for row in self.model[self._name(layer, "table")].float_rows()
        ]
        added = [table[group_at(row, column)] for row in range(x.rows) for column in range(x.columns)]
        return add(x, x.with_cells(added))

    def wkv(self, keys: Plane, values: Plane, layer: str, grid: Grid) -> Plane:
        """Take means of values over all positions, weighted by keys and by the distance in raster order."""
        decays, boosts = self.floats(layer, "decay"), self.floats(layer, "boost")
        count = len(keys.cells)
        factor = math.ldexp(1.0, grid.exponent - values.grid.exponent)
        channels = []
        for channel in range(len(decays)):
            decay = exp(-(min(max(decays[channel], 0.0), 16.0) / count))
            boost = exp(min(max(boosts[channel], -16.0), 16.0) / count)
            weights = [exp_of_code(cell[channel]) for cell in keys.cells]
            products = [weight * cell[channel] for weight, cell in zip(weights, values.cells, strict=True)]
            above, below = _both_sides(products, decay, boost), _both_sides(weights, decay, boost)
            channels.append([to_code(up / down * factor, grid.limit) for up, down in zip(above, below, strict=True)])
        return values.with_cells([list(cell) for cell in zip(*channels, strict=True)], grid)


def _both_sides(terms: list[float], decay: float, boost: float) -> list[float]:
    """Sum the decayed terms before and behind each token, and the token's own."""
    size = min(BLOCK, len(terms))
    padded = terms + [0.0] * (-len(terms) % size)
    left = _one_side(padded, decay, size)
    right = _one_side(padded[::-1], decay, size)[::-1]
    return [(before + behind) + term * boost for before, behind, term in zip(left, right, terms, strict=False)]


def _one_side(terms: list[float], decay: float, size: int) -> list[float]:
    """Sum the decayed terms before each token, block by block."""
    powers = [1.0]
    for _ in range(size):
        powers.append(powers[-1] * decay)
    carried, result = 0.0, []
    for start in range(0, len(terms), size):
        state = 0.0
        for offset in range(size):
            result.append(state + carried * powers[offset])
            state = state * decay + terms[start + offset]
        carried = carried * powers[size] + state
    return result


def recall(query: list[int], keys: Sequence[list[int]], values: Sequence[list[int]], temperature: float) -> list[int]:
    """Blend the values of the two keys that are most similar to a query."""
    if len(keys) == 1:
        return values[0]
    of_query = rsqrt(float(sum(code * code for code in query) + 1))
    similarities = []
    for key in keys:
        of_key = rsqrt(float(sum(code * code for code in key) + 1))
        similarities.append(round(float(sum(map(mul, query, key))) * of_query * of_key * 4096))
    first, second = sorted(range(len(keys)), key=lambda index: -similarities[index])[:2]
    difference = clamp(similarities[first] - similarities[second], 0, 8192)
    weight = round(32768 / (1 + exp(-(difference / (4096 * temperature)))))
    return [
        round((weight * a + (32768 - weight) * b) / 32768) for a, b in zip(values[first], values[second], strict=True)
    ]
