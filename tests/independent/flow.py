"""Decode the latents of one tile: the flow of the entropy path, and the symbols that it predicts."""

import struct
import zlib
from collections.abc import Sequence

from arithmetic import clamp
from entropy import StreamDecoder, Table, read_tables
from errors import InvalidFileError
from operations import (
    CODE_LIMIT,
    TABLE_LIMIT,
    Grid,
    Layers,
    Plane,
    add,
    blend,
    gate,
    leaky,
    pool,
    recall,
    relu_squared,
)
from schedule import CODED_GROUPS, SIDES, STEPS, Latents, Step

from weights import Model

SCALES = ("s1", "s2", "s3")
PRIORS = {"s1": "s12", "s2": "s12", "s3": "s3"}
LAST_STEP = len(STEPS) - 1
LAST_REMEMBERED = LAST_STEP - 1
COARSE_QUALITY = 5000
FINE_QUALITY = 7500
Q_ONE = 10000


def interpolation(q: int, rows: int) -> tuple[int, int]:
    """Return the lower of two stored qualities around q, and how many ten-thousandths q lies above it."""
    place = q * (rows - 1)
    lower = min(place // Q_ONE, rows - 2)
    return lower, place - Q_ONE * lower


class Check:
    """The checks of a tile, each of which runs on from the one before."""

    def __init__(self, header_crc: int) -> None:
        """Begin with the CRC-32 of the header."""
        self.value = header_crc
        self.log: list[str] = []

    def compare(self, scale: str, integers: Sequence[int], stored: int) -> None:
        """Run on over the integers of a scale, and compare with the check in the file."""
        crc = zlib.crc32(struct.pack(f"<{len(integers)}i", *integers))
        self.value = zlib.crc32(struct.pack("<I", crc), self.value)
        mask = 0xFFFFFFFF if scale == "s3" else 0xFFFF
        if self.value & mask != stored:
            raise InvalidFileError(f"the check of {scale} does not hold: L is {crc:08X}")
        self.log.append(f"{scale}: {crc:08X}")


class Memory:
    """The latest carries of s3, each as a key and a value."""

    def __init__(self, flow: "Flow") -> None:
        """Begin without references."""
        self.flow = flow
        self.keys: list[list[int]] = []
        self.values: list[list[int]] = []

    def remember(self, carry: Plane) -> None:
        """Add a carry, and drop the oldest references beyond the number that is kept."""
        layers, kept = self.flow.layers, int(self.flow.config["memory_references"])
        pooled = pool(carry, self.flow.grid("memory.pool"))
        self.keys = [*self.keys, *layers.linear([pooled], "memory.key", self.flow.grid("memory.key")).cells][-kept:]
        self.values = [*self.values, *layers.linear([pooled], "memory.value", carry.grid).cells][-kept:]

    def apply(self, carry: Plane) -> Plane:
        """Blend into a carry what it recalls, where there is more than one reference."""
        if len(self.keys) < 2:
            return carry
        layers = self.flow.layers
        pooled = pool(carry, self.flow.grid("memory.pool"))
        query = layers.linear([pooled], "memory.query", self.flow.grid("memory.query")).cells[0]
        temperature = float(self.flow.config["memory_temperature"])
        found = Plane(1, 1, carry.grid, [recall(query, self.keys, self.values, temperature)])
        return blend(layers.linear([carry, found], "memory.gate", self.flow.grid("sigmoid")), found, carry)


class Flow:
    """The networks of the entropy path at one quality."""

    def __init__(self, model: Model, q: int, full: bool) -> None:
        """Take what all tiles of a file share."""
        self.model, self.q, self.full = model, q, full
        self.config = model.config
        self.layers = Layers(model, "entropy.")
        self.z_tables = read_tables(model, "z")
        name = "tables.z.thresholds"
        self.z_thresholds = model[name].integer_rows() if name in model else []
        self.y_tables = read_tables(model, "y")
        self.omitted = [table.omits for table in self.y_tables]
        self.centroids = model["tables.y.centroids"].integer_rows()

    def grid(self, name: str) -> Grid:
        """Return the grid of a name at this quality."""
        exponent = self.model.grids[name]
        if name.endswith(".context") or ".prior." in name:
            exponent += 2 if self.q < COARSE_QUALITY else 1 if self.q < FINE_QUALITY else 0
        elif name.endswith(".carry"):
            exponent += 1 if self.q < FINE_QUALITY else 0
        return Grid(exponent, TABLE_LIMIT if name in ("sigmoid", "exp") else CODE_LIMIT)

    def residual(self, x: Plane, name: str) -> Plane:
        """Run a residual block."""
        inner = self.layers.depthwise(x, f"{name}.dw", self.grid(f"{name}.dw"))
        inner = leaky(self.layers.linear([inner], f"{name}.up", self.grid(f"{name}.up")))
        return add(x, self.layers.linear([inner], f"{name}.down", x.grid))

    def rwkv(self, x: Plane, name: str) -> Plane:
        """Run an RWKV block."""
        layers, grid = self.layers, self.grid
        part = f"{name}.spatial"
        s = layers.norm(x, f"{name}.norm1", grid(f"{name}.norm1"))
        s = layers.depthwise(s, f"{part}.shift", grid(f"{part}.shift"))
        k = layers.linear([s], f"{part}.k", grid("exp"))
        v = layers.linear([s], f"{part}.v", grid(f"{part}.v"))
        g = layers.linear([s], f"{part}.r", grid("sigmoid"))
        gated = gate(g, layers.wkv(k, v, f"{part}.wkv", grid(f"{part}.wkv")))
        x = add(x, layers.linear([gated], f"{part}.out", x.grid))
        part = f"{name}.channel"
        s = layers.norm(x, f"{name}.norm2", grid(f"{name}.norm2"))
        s = layers.depthwise(s, f"{part}.shift", grid(f"{part}.shift"))
        k = layers.linear([s], f"{part}.k", grid(f"{part}.k"))
        g = layers.linear([s], f"{part}.r", grid("sigmoid"))
        v = layers.linear([relu_squared(k, grid(f"{part}.k2"))], f"{part}.v", x.grid)
        return add(x, gate(g, v))

    def decode_z(self, rows: int, columns: int, stream: bytes) -> list[list[int]]:
        """Decode the values of z; return them channel by channel."""
        channels = int(self.config["hyper"])
        decoder = StreamDecoder(stream, self.z_tables[0])
        planes = [[0] * (rows * columns) for _ in range(channels)]
        positions = range(rows * columns)
        waves = [list(positions)]
        if self.z_thresholds:
            sums = range(rows + columns - 1)
            waves = [[at for at in positions if sum(divmod(at, columns)) == total] for total in sums]
        for wave in waves:
            for channel, plane in enumerate(planes):
                for at in wave:
                    plane[at] = decoder.symbol(self._z_table(channel, plane, at, columns))
        decoder.finish()
        return planes

    def _z_table(self, channel: int, plane: list[int], at: int, columns: int) -> Table:
        """Return the table of a value of z, whose neighbours to the left and above are decoded."""
        row = min(self.q * 5 // Q_ONE, 4) * int(self.config["hyper"]) + channel
        if not self.z_thresholds:
            return self.z_tables[row]
        known = [plane[at - 1]] if at % columns else []
        known += [plane[at - columns]] if at >= columns else []
        total = 2 * sum(known) // len(known) if known else 0
        thresholds = self.z_thresholds[row]
        context = sum(threshold <= total for threshold in thresholds)
        return self.z_tables[row * (len(thresholds) + 1) + context]

    def hyper_synthesis(self, rows: int, columns: int, z: list[list[int]]) -> Plane:
        """Make features at each position of y from z, somewhat more than the plane is large."""
        grid = self.grid("h_s.z")
        most = CODE_LIMIT // (1 << grid.exponent) + 1
        table = self.model["entropy.h_s.quality.table"].integer_rows()
        lower, f = interpolation(self.q, len(table))
        pairs = zip(table[lower], table[lower + 1], strict=True)
        quality = [(a * (Q_ONE - f) + b * f + Q_ONE // 2) // Q_ONE for a, b in pairs]
        cells = [
            [clamp(clamp(value, -most, most) << grid.exponent, -CODE_LIMIT, CODE_LIMIT) for value in cell]
            for cell in zip(*z, strict=True)
        ]
        x = Plane(rows, columns, grid, cells)
        x = self.residual(add(x, x.with_cells([quality] * len(cells))), "h_s.0")
        x = self.layers.linear([x], "h_s.1", self.grid("h_s.1")).shuffled()
        x = self.residual(x, "h_s.2")
        x = self.layers.linear([x], "h_s.3", self.grid("h_s.3")).shuffled()
        return self.residual(x, "h_s.4")


class TileDecoder:
    """The decoding of one tile, scale by scale."""

    def __init__(self, flow: Flow, rows: int, columns: int) -> None:
        """Prepare an empty tile."""
        self.flow, self.layers, self.config = flow, flow.layers, flow.config
        self.latents = Latents(rows, columns, int(flow.config["latent"]))
        self.memory = Memory(flow) if self.config["memory"] == "light" else None
        self.z: list[list[int]] = []
        self.features: dict[str, Plane] = {}
        self.evidence: dict[str, Plane] = {}

    def decode(self, streams: Sequence[bytes], checks: Sequence[int], check: Check) -> Latents:
        """Decode the streams of the tile, four or for a preview two or three, and compare the check of each."""
        rows, columns = -(-self.latents.rows // 4), -(-self.latents.columns // 4)
        self.z = self.flow.decode_z(rows, columns, streams[0])
        check.compare("z", [value for plane in self.z for value in plane], checks[0])
        self._read_features(self.flow.hyper_synthesis(rows, columns, self.z))
        carry = self.features["s1"]
        for index, scale in enumerate(SCALES):
            if index:
                carry = self._finer(carry, SCALES[index - 1], scale)
            if scale == "s3" and self.memory:
                self.memory.remember(carry)
            stream = streams[index + 1] if index + 1 < len(streams) else None
            decoder = None if stream is None else StreamDecoder(stream, self.flow.y_tables[0])
            integers: list[int] = []
            for step in STEPS:
                if step.scale == scale:
                    carry = self._step(step, carry, decoder, integers)
            if decoder:
                decoder.finish()
                check.compare(scale, integers, checks[index + 1])
        return self.latents

    def _read_features(self, result: Plane) -> None:
        """Project the result of the hyper synthesis for each scale."""
        for scale in SCALES:
            gathered = result.unshuffled(SIDES[scale]).cropped(*self.latents.lattice(scale))
            grid = self.flow.grid(f"{scale}.carry")
            self.features[scale] = self.layers.linear([gathered], f"{scale}.features", grid)
            self.evidence[scale] = gathered if scale == "s3" else self.features[scale]

    def _finer(self, carry: Plane, coarse: str, fine: str) -> Plane:
        """Bring the carry of a scale to the next finer one."""
        if self.config["fusion"] == "rwkv":
            inner = self.flow.rwkv(carry, f"{coarse}.fusion.block")
            carry = self.layers.linear([inner], f"{coarse}.fusion.out", carry.grid)
        carry = self.layers.linear([carry], f"{coarse}.finer", self.flow.grid(f"{fine}.carry"))
        return add(carry.shuffled().cropped(*self.latents.lattice(fine)), self.features[fine])

    def _context(self, step: Step, carry: Plane, seen: Plane) -> Plane:
        """Compute what a step knows at each lattice point."""
        prior, name = PRIORS[step.scale], f"step{step.index}"
        context = self.layers.linear([carry, seen], f"{name}.adaptor", self.flow.grid(f"{prior}.context"))
        context = self.layers.place(context, f"{name}.place", step.group_at)
        before, behind = self.config["prior_blocks"][0 if prior == "s12" else 1]
        for block in range(before):
            context = self.flow.residual(context, f"{prior}.prior.{block}")
        context = self.layers.scale(context, f"{name}.scale", context.grid)
        for block in range(before, before + behind):
            context = self.flow.residual(context, f"{prior}.prior.{block}")
        return context

    def _folded(self, x: Plane, step: Step) -> Plane:
        """Keep at each point the channels of the group that a step codes there."""
        size = self.latents.channels // CODED_GROUPS[step.scale]
        cells = []
        for row in range(x.rows):
            for column in range(x.columns):
                start = size * step.group_at(row, column)
                cells.append(x.cell(row, column)[start : start + size])
        return x.with_cells(cells)

    def _step(self, step: Step, carry: Plane, decoder: StreamDecoder | None, integers: list[int]) -> Plane:
        """Decode the symbols of one coding step, all zero without a decoder, and return the next carry."""
        scale = step.scale
        if step.index == 0:
            self._decode_symbols(step, [carry], f"{scale}.first", decoder, integers)
            return carry
        seen = self.latents.seen(scale)
        context = self._context(step, carry, seen)
        around = self._folded(self.layers.depthwise(seen, f"step{step.index}.around", seen.grid), step)
        self._decode_symbols(step, [context, self.evidence[scale], around], f"{scale}.head", decoder, integers)
        if step.index == LAST_STEP:
            return carry
        x = self.layers.linear([context, carry], f"{scale}.cell.in", self.flow.grid(f"{scale}.cell.in"))
        x = self.flow.rwkv(x, f"{scale}.cell.block")
        carry = self.layers.linear([x], f"{scale}.cell.out", carry.grid)
        if scale == "s3" and self.memory:
            carry = self.memory.apply(carry)
            if step.index < LAST_REMEMBERED:
                self.memory.remember(carry)
        return carry

    def _heads(self, step: Step, inputs: Sequence[Plane], name: str) -> list[tuple[list[int], list[int]]]:
        """Return means and levels at each lattice point."""
        hidden = self.flow.grid(f"{step.scale}.head.hidden") if self.config["heads"][SCALES.index(step.scale)] else None
        exponents = tuple(plane.grid.exponent for plane in inputs)
        heads = []
        for index in range(len(inputs[0].cells)):
            layer = f"{name}.{step.group_at(*divmod(index, inputs[0].columns))}"
            given, given_exponents = [plane.cells[index] for plane in inputs], exponents
            if hidden:
                points = [Plane(1, 1, plane.grid, [plane.cells[index]]) for plane in inputs]
                given.append(leaky(self.layers.linear(points, f"{layer}.hidden", hidden)).cells[0])
                given_exponents += (hidden.exponent,)
            heads.append(self.layers.head_cell(given, given_exponents, layer))
        return heads

    def _decode_symbols(
        self, step: Step, inputs: Sequence[Plane], name: str, decoder: StreamDecoder | None, integers: list[int]
    ) -> None:
        """Decode the latents of a step into the plane, and list them in the order of coding."""
        heads = self._heads(step, inputs, name)
        latents, flow = self.latents, self.flow
        size = latents.channels // CODED_GROUPS[step.scale]
        for offset in range(size):
            for index, (means, levels) in enumerate(heads):
                row, column = divmod(index, inputs[0].columns)
                channel = size * step.group_at(row, column) + offset
                position = latents.position(step.scale, row, column, channel)
                if position is None:
                    continue
                level = levels[offset]
                symbol = 0
                if decoder and (flow.full or not flow.omitted[level]):
                    symbol = decoder.symbol(flow.y_tables[level])
                value = reconstruct(symbol, means[offset], flow.centroids[level])
                latents.cells[position][channel] = value
                integers.append(value)


def reconstruct(symbol: int, mean: int, centroids: Sequence[int]) -> int:
    """Return a latent in sixteenths."""
    sign = (symbol > 0) - (symbol < 0)
    return 16 * symbol + mean - sign * centroids[min(abs(symbol), 2)]
