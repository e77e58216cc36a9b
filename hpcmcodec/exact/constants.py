"""Constants of the exact arithmetic: limits of codes and sums, and grids whose meaning is fixed."""

ARITHMETIC = 3  # part of the model id; raised with every change of what these operations compute
CODE_MAX = 2047  # activations are 12-bit signed codes
SUM_BOUND = 1 << 24  # integers up to here are exact in float32
CHUNK = 256  # inputs a chunk has at most: beyond, the bound leaves the weights too few bits
MEAN_MAX = 1 << 16  # means: codes on the 1/16 grid
MEAN_SHIFT = 4  # y_hat and means count sixteenths of the quantisation step
Y_GRID = 3  # the context sees y_hat in eighths
LEVELS = 64  # scale levels, one table each
BLOCK = 64  # tokens in a block of the two-level Bi-WKV recurrence
EXPONENT_MAX = 16.0  # clamp of Bi-WKV's decay and boost
SLOPE = 0.1  # LeakyReLU's negative slope
WEIGHT_ONE = 1 << 15  # memory weights are integers of this sum
SIMILARITY_ONE = 1 << 12  # cosine similarity is compared in steps of 1/4096
