// What a coding step computes for one group alone at each position: a depthwise convolution, and the heads.
// cpu.h includes this file.

enum { HEAD_ROWS = 48 };  // positions of a group that are done together; an even number, which aligns what follows

// A row of the result (columns, channels / groups), folded. pattern: (tile, tile), the group of each lattice point.
static void around_row(const Depthwise& d, const Folding& f, int64_t row) {
    const int n = d.channels / f.groups;
    const int64_t y = row % d.height;
    static const int16_t zeros[WIDE_STEP] = {};
    for (int phase = 0; phase < f.tile && phase < d.width; ++phase) {
        const int first = f.pattern[y % f.tile * f.tile + phase] * n;
        for (int start = 0; n >= WIDE_STEP && start < n; start += WIDE_STEP) {
            // The last channels are computed with those before them, some of these a second time.
            const int c = first + (start + WIDE_STEP <= n ? start : n - WIDE_STEP);
            Rows rows;
            for (int i = 0; i < 3; ++i) {
                const bool there = y + i - 1 >= 0 && y + i - 1 < d.height;
                rows.at[i] = there ? d.a + (row + i - 1) * d.width * d.channels + c : zeros;
                rows.step[i] = there ? d.channels : 0;
            }
            Ints weights[10];
            zip_weights<3>(d, c, weights);
            int32_t sums[WIDE_STEP];
            for (int64_t x = phase; x < d.width; x += f.tile) {
                x < 1 || x >= d.width - 1 ? convolve<3, true>(rows, x, d.width, weights, sums)
                                          : convolve<3, false>(rows, x, d.width, weights, sums);
                finish_row(sums, WIDE_STEP, d.scale + c, d.bias + c, (float)d.limit,
                           d.out + (row * d.width + x) * n + c - first);
            }
        }
        for (int64_t x = phase; n < WIDE_STEP && x < d.width; x += f.tile)
            for (int c = first; c < first + n; ++c) {
                int32_t sum;
                convolve_one(d, row, x, c, &sum);
                finish_row(&sum, 1, d.scale + c, d.bias + c, (float)d.limit,
                           d.out + (row * d.width + x) * n + c - first);
            }
    }
}

static void around(int64_t first, int64_t last, const Depthwise& d, const Folding& f) {
    for (int64_t row = first; row < last; ++row) around_row(d, f, row);
}

// The head of one group at n positions, side by side in the order of the group. scratch: heads_scratch(h) bytes.
static void head_of(const Heads& h, const Group& g, const int32_t* order, int n, char* scratch) {
    int16_t* codes = (int16_t*)scratch;
    Linear hidden = g.hidden, head = g.head;
    for (int k = 0; k < h.n_inputs; ++k) {
        const int64_t columns = h.columns[k], even = columns + columns % 2;
        for (int i = 0; i < n; ++i) {
            codes[(i + 1) * even - 1] = 0;
            memcpy(codes + i * even, h.inputs[k] + order[i] * columns, columns * sizeof *codes);
        }
        hidden.inputs[k].a = head.inputs[k].a = codes;
        codes += HEAD_ROWS * even;
    }
    if (h.hidden) {
        hidden.out = codes;
        linear(0, n, hidden);
        for (int i = 0; i < n * h.hidden; ++i) codes[i] = hpcm_lrelu(codes[i]);
        head.inputs[h.n_inputs].a = codes;
        codes += HEAD_ROWS * h.hidden;
    }
    head.out = codes;
    linear(0, n, head);
    const int32_t* out = (const int32_t*)codes;
    for (int i = 0; i < n; ++i, out += 2 * h.channels) {
        memcpy(h.means + (int64_t)order[i] * h.channels, out, h.channels * sizeof *out);
        memcpy(h.levels + (int64_t)order[i] * h.channels, out + h.channels, h.channels * sizeof *out);
    }
}

static int64_t heads_scratch(const Heads& h) {
    int64_t columns = h.hidden;
    for (int k = 0; k < h.n_inputs; ++k) columns += h.columns[k] + h.columns[k] % 2;
    return HEAD_ROWS * (columns * sizeof(int16_t) + 2 * h.channels * sizeof(int32_t));
}

// The range counts pieces of HEAD_ROWS positions, through all groups.
static void heads(int64_t first, int64_t last, const Heads& h, char* scratch) {
    for (int group = 0; group < h.groups && last > 0; ++group) {
        const Group& g = h.group[group];
        const int64_t pieces = (g.last - g.first + HEAD_ROWS - 1) / HEAD_ROWS;
        for (int64_t i = first < 0 ? 0 : first; i < last && i < pieces; ++i) {
            const int64_t at = g.first + i * HEAD_ROWS, n = g.last - at < HEAD_ROWS ? g.last - at : (int64_t)HEAD_ROWS;
            head_of(h, g, h.order + at, (int)n, scratch);
        }
        first -= pieces;
        last -= pieces;
    }
}
