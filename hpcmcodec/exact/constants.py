"""Constants of the exact arithmetic: limits of codes and sums, and grids whose meaning is fixed."""

ARITHMETIC = 3  # part of the model id; raised whenever what the operations compute changes
CODE_MAX = 2047  # activations are 12-bit signed codes
SUM_BOUND = 1 << 24  # integers up to here are exact in float32
CHUNK = 256  # most inputs of one chunk: with more, the bound would leave too few bits for the weights
MEAN_MAX = 1 << 16  # largest magnitude of a mean, in sixteenths
MEAN_SHIFT = 4  # y_hat and means count sixteenths (2^-4) of a quantisation step
Y_GRID = 3  # the context sees y_hat in eighths (2^-3) of a quantisation step
LEVELS = 64  # levels, each with a table of its own
BLOCK = 64  # tokens in a block of the two-level Bi-WKV recurrence
EXPONENT_MAX = 16.0  # clamp of Bi-WKV's decay and boost
SLOPE = 0.1  # LeakyReLU's negative slope
WEIGHT_ONE = 1 << 15  # the two weights of a recall from the memory bank are integers that add up to this
SIMILARITY_ONE = 1 << 12  # cosine similarities are compared as integers that count 1/4096
