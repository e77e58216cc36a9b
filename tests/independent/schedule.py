"""Where and in which order the latents of a tile are coded."""

from dataclasses import dataclass

from operations import Grid, Plane

GROUPS = 8
SIDES = {"s1": 4, "s2": 2, "s3": 1}
CODED_GROUPS = {"s1": 2, "s2": 4, "s3": 8}
OFFSETS = {
    "s1": ((0, 0), (1, 1), (0, 3), (1, 2), (2, 0), (3, 1), (2, 3), (3, 2)),
    "s2": ((0, 0), (1, 1), (0, 1), (1, 0), (0, 0), (1, 1), (0, 1), (1, 0)),
    "s3": ((0, 0),) * GROUPS,
}
CODE_LIMIT = 8191
SEEN_GRID = Grid(4, CODE_LIMIT)


@dataclass(frozen=True)
class Step:
    """A coding step, and the group that it codes at each place of a pattern which repeats over the lattice."""

    index: int
    scale: str
    pattern: tuple[str, ...]

    def group_at(self, row: int, column: int) -> int:
        """Return the group that is coded at a point of the lattice."""
        line = self.pattern[row % len(self.pattern)]
        return int(line[column % len(line)])


STEPS = tuple(
    Step(index, scale, tuple(pattern.split("/")))
    for index, (scale, pattern) in enumerate(
        (
            ("s1", "01/10"),
            ("s1", "10/01"),
            ("s2", "32/10"),
            ("s2", "23/01"),
            ("s2", "10/32"),
            ("s3", "3175/2064/7531/6420"),
            ("s3", "7531/6420/3175/2064"),
            ("s3", "2064/1357/6420/5713"),
            ("s3", "6420/5713/2064/1357"),
            ("s3", "1357/0246/5713/4602"),
            ("s3", "5713/4602/1357/0246"),
        )
    )
)


class Latents:
    """The plane y_hat of one tile while it is decoded."""

    def __init__(self, rows: int, columns: int, channels: int) -> None:
        """Begin with zeros."""
        self.rows, self.columns, self.channels = rows, columns, channels
        self.cells = [[0] * channels for _ in range(rows * columns)]

    def lattice(self, scale: str) -> tuple[int, int]:
        """Return the rows and columns of the lattice of a scale."""
        return -(-self.rows // SIDES[scale]), -(-self.columns // SIDES[scale])

    def position(self, scale: str, row: int, column: int, channel: int) -> int | None:
        """Return the index of the position that a channel of a lattice point comes from, where it exists."""
        down, right = OFFSETS[scale][channel * GROUPS // self.channels]
        row, column = SIDES[scale] * row + down, SIDES[scale] * column + right
        return row * self.columns + column if row < self.rows and column < self.columns else None

    def seen(self, scale: str) -> Plane:
        """Return what is decoded so far, on the lattice of a scale, as codes."""
        rows, columns = self.lattice(scale)
        return Plane(
            rows,
            columns,
            SEEN_GRID,
            [
                [self._code(scale, row, column, channel) for channel in range(self.channels)]
                for row in range(rows)
                for column in range(columns)
            ],
        )

    def _code(self, scale: str, row: int, column: int, channel: int) -> int:
        """Return a latent of a lattice point as a code; it is zero where it does not exist."""
        position = self.position(scale, row, column, channel)
        if position is None:
            return 0
        return max(-CODE_LIMIT, min(CODE_LIMIT, self.cells[position][channel]))
