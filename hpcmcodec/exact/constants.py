"""Constants of the exact arithmetic: limits of codes and sums, and grids whose meaning is fixed."""

ARITHMETIC = 4  # part of the model id; raised whenever what the operations compute changes
PRECISION = 14  # bits of activations, which are signed codes
WIDE_PRECISION = 16  # of networks whose activations were never limited in training
CODE_MAX = 8191
GATE_GRID = "sigmoid"  # of the inputs of sigmoids: codes count 1/256 and reach +-8
EXP_GRID = "exp"  # of the inputs of exp: the same
TABLE_MAX = 2047  # the codes on these two have 12 bits: they index tables of 4095 entries
SUM_BOUND = 1 << 31  # integer sums stay below: int32 holds them
WIDE_SUM_BOUND = 1 << 53  # with codes of 16 bits: float64 holds them
MEAN_MAX = 1 << 16  # largest magnitude of a mean, in sixteenths
MEAN_SHIFT = 4  # y_hat and means count sixteenths (2^-4) of a quantisation step
Y_GRID = MEAN_SHIFT  # and so does what the context sees of y_hat
CHANNEL_GRID = "channel"  # codes whose exponent is each channel's own: the weights that they meet hold it
WIDE_GRID = "wide"  # the synthesis' residual stream, int32: 2^14 a unit of the pixels' range
PIXEL_GRID = "pixel"  # and what pixels are made of, fine enough for 16 bits: 2^18 a unit
WIDE_MAX = 1 << 21  # what one layer adds to a wide value: a thousand of them stay within int32
FIXED_GRIDS = {GATE_GRID: 8, EXP_GRID: 8, "y": Y_GRID, CHANNEL_GRID: 0, WIDE_GRID: 14, PIXEL_GRID: 18}
"""Exponents of the grids whose meaning is the same in every model."""
LEVELS = 64  # levels, each with a table of its own
SCALES_MIN, SCALES_MAX, SCALE_LEVELS = 0.12, 64.0, 60  # generalised Gaussians: scales of the first and last level
SCALE_SHIFT = 10  # scales are read in 1024ths of a quantisation step
BLOCK = 64  # tokens in a block of the two-level Bi-WKV recurrence
EXPONENT_MAX = 16.0  # clamp of Bi-WKV's decay and boost
SLOPE = 0.1  # LeakyReLU's negative slope
WEIGHT_ONE = 1 << 15  # the two weights of a recall from the memory bank are integers that add up to this
SIMILARITY_ONE = 1 << 12  # cosine similarities are compared as integers that count 1/4096


def code_max(precision: int) -> int:
    """The largest magnitude of a code of so many bits."""
    return (1 << (precision - 1)) - 1


def sum_bound(precision: int) -> int:
    """What integer sums stay below, by the bits of the codes in them."""
    return SUM_BOUND if precision == PRECISION else WIDE_SUM_BOUND


def limit_of(grid: str, precision: int = PRECISION) -> int:
    """The largest magnitude of a code on a grid, by the grid's name."""
    if grid in (WIDE_GRID, PIXEL_GRID):
        return WIDE_MAX
    return TABLE_MAX if grid in (GATE_GRID, EXP_GRID) else code_max(precision)
