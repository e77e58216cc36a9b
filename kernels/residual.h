// Residual blocks in one pass: a depthwise 3x3 convolution, a 1x1 convolution, LeakyReLU and a 1x1 convolution that is
// added to the block's input. The input is codes, or int32 ("wide") of which the block reads codes.
//
// A work item is a band of BAND positions side by side, over some rows. What a block holds inside, twice as wide as its
// input, never leaves the cache: of the codes three rows are kept, of all else one. cpu.h includes this file.

enum { BAND = 48 };  // a multiple of ROWS

static_assert(BAND % ROWS == 0, "the buffers of a band have room for whole groups of rows");

struct Band {
    int64_t sample, row, rows, column;
    int columns;
    int64_t stride, hidden;               // from one position to the next in the buffers: even numbers
    int16_t *codes[3], *inside, *middle;  // (BAND + 2, stride), the columns beside the band first and last; (BAND, ...)
};

// How many codes the buffers of an item hold.
static int64_t residual_scratch(const Residual& p) {
    const int64_t stride = p.channels + p.channels % 2, hidden = p.hidden + p.hidden % 2;
    return (3 * (BAND + 2) + BAND) * stride + BAND * hidden;
}

template <class T>
static inline const T* input_row(const Residual& p, int64_t sample, int64_t row) {
    const int64_t one = p.width * p.channels, own = p.height - p.above;
    return row < p.above ? (const T*)p.before + (sample * p.above + row) * one
                         : (const T*)p.x + (sample * own + row - p.above) * one;
}

static inline void read_codes(const Residual& p, const int32_t* x, int16_t* __restrict out) {
    const float limit = (float)p.limit;
    for (int c = 0; c < p.channels; ++c) out[c] = hpcm_narrow(x[c], p.read[c], limit);
}

static inline void read_codes(const Residual& p, const int16_t* x, int16_t* __restrict out) {
    memcpy(out, x, p.channels * sizeof *x);
}

// The codes of one row of the input, in the band and in the columns beside it; zeros outside of the plane.
template <class T>
static void read_row(const Residual& p, const Band& b, int64_t row, int16_t* out) {
    for (int i = -1; i <= b.columns; ++i, out += b.stride) {
        const int64_t column = b.column + i;
        if (row < 0 || row >= p.height || column < 0 || column >= p.width)
            memset(out, 0, p.channels * sizeof *out);
        else
            read_codes(p, input_row<T>(p, b.sample, row) + column * p.channels, out);
    }
}

static void convolve_band(const Residual& p, const Band& b, int64_t row) {
    Depthwise d = {};
    d.weights = p.around.weights;
    d.scale = p.around.scale;
    d.bias = p.around.bias;
    d.channels = p.channels;
    d.limit = p.around.limit;
    const int whole = p.channels / WIDE_STEP * WIDE_STEP;
    Rows rows;
    for (int i = 0; i < 3; ++i) {
        rows.at[i] = b.codes[(row + i) % 3] + b.stride;
        rows.step[i] = b.stride;
    }
    for (int c = 0; c < whole; c += WIDE_STEP) convolve_columns<3>(d, rows, c, b.columns, b.inside, b.stride);
    for (int x = 0; x < b.columns; ++x)
        for (int c = whole; c < p.channels; ++c) {
            int32_t sum = 0;
            for (int t = 0; t < 9; ++t)
                sum += rows.at[t / 3][(x + t % 3 - 1) * b.stride + c] * d.weights[(int64_t)t * p.channels + c];
            finish_row(&sum, 1, d.scale + c, d.bias + c, (float)d.limit, b.inside + x * b.stride + c);
        }
}

// Codes (rows, inputs) times packed weights; finish(row, o, n, sums) takes the sums of n outputs from o on. The codes
// have room for whole groups of ROWS.
template <class Finish>
static inline void multiply_all(int rows, const int16_t* a, int64_t inputs, const int16_t* weights, int outputs,
                                const Finish& finish) {
    int32_t sums[ROWS * TILE];
    for (int o = 0; o < outputs; o += TILE) {
        const int n = outputs - o < TILE ? outputs - o : (int)TILE;
        for (int row = 0; row < rows; row += ROWS) {
            multiply_tile(ROWS, (n + PANEL - 1) / PANEL, a + row * inputs, inputs, weights + o * inputs, sums);
            for (int r = row; r < rows && r < row + ROWS; ++r) finish(r, o, n, sums + (r - row) * TILE);
        }
    }
}

static inline void activate(const Layer& l, int o, int n, const int32_t* sums, int16_t* __restrict out) {
    const float limit = (float)l.limit, *scale = l.scale + o, *bias = l.bias + o;
    for (int i = 0; i < n; ++i) {
        const int32_t code = hpcm_round(hpcm_limit(hpcm_requantise(sums[i], scale[i], bias[i]), -limit, limit));
        const int32_t scaled = hpcm_round((float)code * 0.1f);
        out[i] = (int16_t)(code > scaled ? code : scaled);
    }
}

static inline void add_branch(const Residual& p, int o, int n, const int32_t* sums, const int32_t* x,
                              int32_t* __restrict out) {
    const float limit = (float)p.down.limit, *scale = p.down.scale + o, *bias = p.down.bias + o;
    for (int i = 0; i < n; ++i)
        out[i] = x[i] + hpcm_round(hpcm_limit(hpcm_requantise(sums[i], scale[i], bias[i]), -limit, limit));
}

static inline void add_branch(const Residual& p, int o, int n, const int32_t* sums, const int16_t* x,
                              int16_t* __restrict out) {
    const float limit = (float)p.down.limit, *scale = p.down.scale + o, *bias = p.down.bias + o;
    for (int i = 0; i < n; ++i)
        out[i] = hpcm_limit_code(
            x[i] + hpcm_round(hpcm_limit(hpcm_requantise(sums[i], scale[i], bias[i]), -limit, limit)), p.limit);
}

template <class T>
static void residual_band(const Residual& p, const Band& b) {
    for (int64_t row = b.row - 1; row <= b.row + b.rows; ++row) {
        read_row<T>(p, b, row, b.codes[(row + 1) % 3]);
        const int64_t middle = row - 1;
        if (middle < b.row) continue;
        convolve_band(p, b, middle);
        multiply_all(b.columns, b.inside, b.stride, p.up.weights, p.hidden, [&](int r, int o, int n, const int32_t* s) {
            n == TILE ? activate(p.up, o, TILE, s, b.middle + r * b.hidden + o)
                      : activate(p.up, o, n, s, b.middle + r * b.hidden + o);
        });
        const T* x = input_row<T>(p, b.sample, middle) + b.column * p.channels;
        T* out = (T*)p.out + ((b.sample * (p.last - p.first) + middle - p.first) * p.width + b.column) * p.channels;
        multiply_all(b.columns, b.middle, b.hidden, p.down.weights, p.channels,
                     [&](int r, int o, int n, const int32_t* s) {
                         const int64_t at = r * (int64_t)p.channels + o;
                         n == TILE ? add_branch(p, o, TILE, s, x + at, out + at) : add_branch(p, o, n, s, x + at, out + at);
                     });
    }
}

// The range counts bands, from left to right, then groups of `rows` rows downwards, then samples. scratch: zeros.
static void residual(int64_t first, int64_t last, const Residual& p, int64_t rows, int16_t* scratch) {
    const int64_t across = (p.width + BAND - 1) / BAND, wanted = p.last - p.first, down = (wanted + rows - 1) / rows;
    for (int64_t i = first; i < last; ++i) {
        Band b;
        b.column = i % across * BAND;
        b.columns = (int)(p.width - b.column < BAND ? p.width - b.column : (int64_t)BAND);
        b.sample = i / across / down;
        b.row = p.first + i / across % down * rows;
        b.rows = p.last - b.row < rows ? p.last - b.row : rows;
        b.stride = p.channels + p.channels % 2;
        b.hidden = p.hidden + p.hidden % 2;
        for (int k = 0; k < 3; ++k) b.codes[k] = scratch + k * (BAND + 2) * b.stride;
        b.inside = scratch + 3 * (BAND + 2) * b.stride;
        b.middle = b.inside + BAND * b.stride;
        p.read ? residual_band<int32_t>(p, b) : residual_band<int16_t>(p, b);
    }
}
