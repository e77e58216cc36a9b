// The kernels' loops. The unit of each instruction set (functions.h) includes this file inside a namespace of its own
// and with the compiler's target set, after defining one of
//
//     HPCM_AVX512, HPCM_AVX2, HPCM_SSE2, HPCM_PLAIN
//
// which chooses the dot product. The other loops are plain C++ that the compiler vectorises. Integer sums are exact, so
// neither the width of vectors nor the order matters; all else is core.h's, element by element. A function does a range
// of rows (positions), blocks or channels, so that threads can share the work.

#include "core.h"

#if defined(HPCM_AVX512)
typedef __m512i Ints;
enum { LANES = 16, ROWS = 6, PANELS = 4, DOUBLES = 8 };
static inline Ints load(const int16_t* p) { return _mm512_loadu_si512(p); }
static inline Ints spread(int32_t pair) { return _mm512_set1_epi32(pair); }
static inline void store(int32_t* p, Ints x) { _mm512_storeu_si512(p, x); }
static inline Ints dot(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }
static inline Ints zip_low(Ints a, Ints b) { return _mm512_unpacklo_epi16(a, b); }
static inline Ints zip_high(Ints a, Ints b) { return _mm512_unpackhi_epi16(a, b); }
static inline void store_zipped(int32_t* p, Ints low, Ints high) {
    const Ints first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const Ints second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    store(p, _mm512_permutex2var_epi32(low, first, high));
    store(p + LANES, _mm512_permutex2var_epi32(low, second, high));
}
#elif defined(HPCM_AVX2)
typedef __m256i Ints;
enum { LANES = 8, ROWS = 6, PANELS = 1, DOUBLES = 4 };
static inline Ints load(const int16_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline Ints spread(int32_t pair) { return _mm256_set1_epi32(pair); }
static inline void store(int32_t* p, Ints x) { _mm256_storeu_si256((__m256i*)p, x); }
static inline Ints dot(Ints sum, Ints a, Ints b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
static inline Ints zip_low(Ints a, Ints b) { return _mm256_unpacklo_epi16(a, b); }
static inline Ints zip_high(Ints a, Ints b) { return _mm256_unpackhi_epi16(a, b); }
static inline void store_zipped(int32_t* p, Ints low, Ints high) {
    store(p, _mm256_permute2x128_si256(low, high, 0x20));
    store(p + LANES, _mm256_permute2x128_si256(low, high, 0x31));
}
#elif defined(HPCM_SSE2)
typedef __m128i Ints;
enum { LANES = 4, ROWS = 2, PANELS = 1, DOUBLES = 2 };
static inline Ints load(const int16_t* p) { return _mm_loadu_si128((const __m128i*)p); }
static inline Ints spread(int32_t pair) { return _mm_set1_epi32(pair); }
static inline void store(int32_t* p, Ints x) { _mm_storeu_si128((__m128i*)p, x); }
static inline Ints dot(Ints sum, Ints a, Ints b) { return _mm_add_epi32(sum, _mm_madd_epi16(a, b)); }
static inline Ints zip_low(Ints a, Ints b) { return _mm_unpacklo_epi16(a, b); }
static inline Ints zip_high(Ints a, Ints b) { return _mm_unpackhi_epi16(a, b); }
static inline void store_zipped(int32_t* p, Ints low, Ints high) {
    store(p, low);
    store(p + LANES, high);
}
#else
// For processors without a dot product of their own below: the compiler's vector types, which it turns into what they
// have.
typedef int32_t Ints __attribute__((vector_size(16)));
enum { LANES = 4, ROWS = 2, PANELS = 1, DOUBLES = 2 };
static inline Ints load(const int16_t* p) {
    Ints x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline Ints spread(int32_t pair) { return Ints{pair, pair, pair, pair}; }
static inline void store(int32_t* p, Ints x) { memcpy(p, &x, sizeof x); }
static inline Ints dot(Ints sum, Ints a, Ints b) {
    return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
typedef int16_t Shorts __attribute__((vector_size(16)));
#ifdef __clang__
#define HPCM_SHUFFLE(a, b, ...) (Ints) __builtin_shufflevector((Shorts)a, (Shorts)b, __VA_ARGS__)
#else
#define HPCM_SHUFFLE(a, b, ...) (Ints) __builtin_shuffle((Shorts)a, (Shorts)b, Shorts{__VA_ARGS__})
#endif
static inline Ints zip_low(Ints a, Ints b) { return HPCM_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
static inline Ints zip_high(Ints a, Ints b) { return HPCM_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
static inline void store_zipped(int32_t* p, Ints low, Ints high) {
    store(p, low);
    store(p + LANES, high);
}
#endif

enum { VECTORS = PANEL / LANES, TILE = PANELS * PANEL };

// --- matrix products: (rows, inputs) codes times packed weights ----------------------------------------------------
//
// Two neighbouring inputs of a row are one 32-bit operand, spread over the lanes; the packed weights hold the same two
// inputs of one output in each lane (abi.h: "Packed weights"). The sums of R rows and P panels stay in registers.

static inline int32_t pair_at(const int16_t* p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

template <int R, int P>
static __attribute__((noinline)) void multiply(const int16_t* a, int64_t inputs, const int16_t* w, int32_t* out) {
    Ints sums[R][P * VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < P * VECTORS; ++v) sums[r][v] = spread(0);
    const int64_t panel = inputs * PANEL;
    for (int64_t i = 0; i < inputs / 2; ++i) {
        Ints b[P * VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < P * VECTORS; ++v)
            b[v] = load(w + v / VECTORS * panel + i * PANEL * 2 + v % VECTORS * LANES * 2);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Ints x = spread(pair_at(a + r * inputs + 2 * i));
#pragma GCC unroll 16
            for (int v = 0; v < P * VECTORS; ++v) sums[r][v] = dot(sums[r][v], x, b[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < P * VECTORS; ++v) store(out + r * TILE + v * LANES, sums[r][v]);
}

// There are few shapes, since each is compiled for every instruction set. Where fewer than ROWS rows or PANELS panels
// are left, they are done one by one.
static void multiply_tile(int rows, int panels, const int16_t* a, int64_t inputs, const int16_t* w, int32_t* out) {
    const int step = rows == ROWS ? ROWS : 1;
    for (int r = 0; r < rows; r += step, a += step * inputs, out += step * TILE) {
        if (panels == PANELS) {
            step == 1 ? multiply<1, PANELS>(a, inputs, w, out) : multiply<ROWS, PANELS>(a, inputs, w, out);
            continue;
        }
        for (int p = 0; p < panels; ++p) {
            const int16_t* part = w + p * inputs * PANEL;
            step == 1 ? multiply<1, 1>(a, inputs, part, out + p * PANEL)
                      : multiply<ROWS, 1>(a, inputs, part, out + p * PANEL);
        }
    }
}

static inline void finish_row(const int32_t* sums, int n, const float* scale, const float* bias, float limit,
                              int16_t* out) {
    for (int i = 0; i < n; ++i) out[i] = hpcm_code(hpcm_requantise(sums[i], scale[i], bias[i]), limit);
}

// An input's sums on the output's grid, added to those of the inputs before it.
static inline void add_sums(const int32_t* sums, int n, const float* scale, bool first, float* __restrict total) {
    if (first)
        for (int i = 0; i < n; ++i) total[i] = (float)sums[i] * scale[i];
    else
        for (int i = 0; i < n; ++i) {
            const float term = (float)sums[i] * scale[i];
            total[i] = total[i] + term;
        }
}

// Stores the n outputs of a row from output o on, whose scaled sums are total(0), total(1), ...
template <class Total>
static inline void put_outputs(const Linear& l, int64_t row, int o, int n, const Total& total) {
    const int64_t at = row * l.outputs + o;
    const float* bias = l.bias + o;
    if (!l.low) {
        const float limit = (float)l.limit;
        int16_t* __restrict out = (int16_t*)l.out + at;
        for (int i = 0; i < n; ++i) out[i] = hpcm_code(total(i) + bias[i], limit);
        return;
    }
    const float *low = l.low + o, *high = l.high + o;
    int32_t* out = (int32_t*)l.out + at;
    if (l.onto)  // which may be `out`
        for (int i = 0; i < n; ++i) out[i] = l.onto[at + i] + hpcm_round(hpcm_limit(total(i) + bias[i], low[i], high[i]));
    else
        for (int i = 0; i < n; ++i) out[i] = hpcm_round(hpcm_limit(total(i) + bias[i], low[i], high[i]));
}

// The same, with the number of outputs known to the compiler where it is the usual one.
template <class Total>
static inline void put_row(const Linear& l, int64_t row, int o, int n, const Total& total) {
    n == TILE ? put_outputs(l, row, o, TILE, total) : put_outputs(l, row, o, n, total);
}

// The n outputs from o on, for up to ROWS rows of codes.
static inline void linear_tile(const Linear& l, int64_t row, int rows, int o, int n) {
    int32_t sums[ROWS * TILE];
    float totals[ROWS * TILE];
    for (int k = 0; k < l.n_inputs; ++k) {
        const Input& in = l.inputs[k];
        const float* scale = in.scale + o;
        if (in.a)
            multiply_tile(rows, (n + PANEL - 1) / PANEL, in.a + row * in.columns, in.columns,
                          in.weights + o * in.columns, sums);
        if (l.n_inputs == 1 && in.a) {
            for (int r = 0; r < rows; ++r)
                put_row(l, row + r, o, n, [&](int i) { return (float)sums[r * TILE + i] * scale[i]; });
            return;
        }
        for (int r = 0; r < rows; ++r) {
            float* total = totals + r * TILE;
            if (in.a)
                n == TILE ? add_sums(sums + r * TILE, TILE, scale, k == 0, total)
                          : add_sums(sums + r * TILE, n, scale, k == 0, total);
            else
                for (int i = 0; i < n; ++i) total[i] = k == 0 ? scale[i] : total[i] + scale[i];
        }
    }
    for (int r = 0; r < rows; ++r) put_row(l, row + r, o, n, [&](int i) { return totals[r * TILE + i]; });
}

static void linear(int64_t first, int64_t last, const Linear& l) {
    for (int64_t block = first; block < last; block += ROW_BLOCK) {
        const int64_t end = block + ROW_BLOCK < last ? block + ROW_BLOCK : last;
        for (int o = 0; o < l.outputs; o += TILE)
            for (int64_t row = block; row < end; row += ROWS)
                linear_tile(l, row, end - row < ROWS ? (int)(end - row) : (int)ROWS, o,
                            l.outputs - o < TILE ? l.outputs - o : (int)TILE);
    }
}

// --- depthwise convolution: rows of the image (batch included), zero padding ---------------------------------------

//
// Two taps are one dot product: their channels are interleaved ("zipped"), and so are their weights. The sums are
// zipped too, within each 128 bits, until store_zipped puts them in order.

enum { WIDE_STEP = 2 * LANES };  // channels that are computed together

struct Rows {
    const int16_t* at[5];  // the input rows that an output row sees; zeros outside the image
    int64_t step[5];       // from one column to the next; 0 in a row of zeros
};

template <int K, bool EDGE>
static inline void convolve(const Rows& rows, int64_t column, int64_t width, const Ints* weights, int32_t* sums) {
    Ints low = spread(0), high = spread(0);
#pragma GCC unroll 13
    for (int t = 0; t < K * K; t += 2) {
        Ints pair[2] = {spread(0), spread(0)};
#pragma GCC unroll 2
        for (int n = 0; n < 2; ++n) {
            if (t + n == K * K) continue;
            const int64_t x = column + (t + n) % K - K / 2;
            if (EDGE && (x < 0 || x >= width)) continue;
            pair[n] = load(rows.at[(t + n) / K] + x * rows.step[(t + n) / K]);
        }
        low = dot(low, zip_low(pair[0], pair[1]), weights[t]);
        high = dot(high, zip_high(pair[0], pair[1]), weights[t + 1]);
    }
    store_zipped(sums, low, high);
}

// The weights of WIDE_STEP channels from `c` on, zipped.
template <int K>
static inline void zip_weights(const Depthwise& d, int c, Ints* weights) {
    for (int t = 0; t < K * K; t += 2) {
        const Ints a = load(d.weights + (int64_t)t * d.channels + c);
        const Ints b = t + 1 < K * K ? load(d.weights + (int64_t)(t + 1) * d.channels + c) : spread(0);
        weights[t] = zip_low(a, b);
        weights[t + 1] = zip_high(a, b);
    }
}

// Computes `n` columns of one output row at the WIDE_STEP channels from `c` on. None of them sees an edge, unless EDGES:
// then the first and the last K / 2 columns do. out: the row's first code, `stride` codes for each column.
template <int K, bool EDGES = false>
static void convolve_columns(const Depthwise& d, Rows rows, int c, int64_t n, int16_t* out, int64_t stride) {
    Ints weights[K * K + 1];
    zip_weights<K>(d, c, weights);
    for (int i = 0; i < K; ++i)
        if (rows.step[i]) rows.at[i] += c;
    const float *scale = d.scale + c, *bias = d.bias + c, limit = (float)d.limit;
    int32_t sums[WIDE_STEP];
    for (int64_t x = 0; x < n; ++x) {
        if (EDGES && (x < K / 2 || x >= n - K / 2))
            convolve<K, true>(rows, x, n, weights, sums);
        else
            convolve<K, false>(rows, x, n, weights, sums);
        finish_row(sums, WIDE_STEP, scale, bias, limit, out + x * stride + c);
    }
}

template <int K>
static void convolve_row(const Depthwise& d, int64_t row, int c) {
    static const int16_t zeros[WIDE_STEP] = {};
    Rows rows;
    const int64_t y = row % d.height;
    for (int i = 0; i < K; ++i) {
        const bool there = y + i - K / 2 >= 0 && y + i - K / 2 < d.height;
        rows.at[i] = there ? d.a + (row + i - K / 2) * d.width * d.channels : zeros;
        rows.step[i] = there ? d.channels : 0;
    }
    convolve_columns<K, true>(d, rows, c, d.width, d.out + row * d.width * d.channels, d.channels);
}

static inline void convolve_one(const Depthwise& d, int64_t row, int64_t column, int c, int32_t* sum) {
    const int half = d.k / 2;
    const int64_t y = row % d.height;
    *sum = 0;
    for (int i = 0; i < d.k; ++i)
        for (int j = 0; j < d.k; ++j) {
            const int64_t x = column + j - half;
            if (y + i - half < 0 || y + i - half >= d.height || x < 0 || x >= d.width) continue;
            *sum += d.a[((row + i - half) * d.width + x) * d.channels + c] *
                    d.weights[(int64_t)(i * d.k + j) * d.channels + c];
        }
}

static void depthwise(int64_t first, int64_t last, const Depthwise& d) {
    const int whole = d.k == 3 || d.k == 5 ? d.channels / WIDE_STEP * WIDE_STEP : 0;
    for (int64_t row = first; row < last; ++row) {
        for (int c = 0; c < whole; c += WIDE_STEP) d.k == 3 ? convolve_row<3>(d, row, c) : convolve_row<5>(d, row, c);
        for (int64_t column = 0; column < d.width; ++column)
            for (int c = whole; c < d.channels; ++c) {
                int32_t sum;
                convolve_one(d, row, column, c, &sum);
                finish_row(&sum, 1, d.scale + c, d.bias + c, (float)d.limit,
                           d.out + (row * d.width + column) * d.channels + c);
            }
    }
}

// --- element by element ----------------------------------------------------------------------------------------------

static void norm(int64_t first, int64_t last, const Norm& p) {
    const int n = p.channels;
    const float limit = (float)p.limit;
    for (int64_t row = first; row < last; ++row) {
        const int16_t* a = p.a + row * n;
        int64_t sum = 0, squares = 0;
        for (int start = 0; start < n; start += 64) {  // the sum of 64 squared codes fits uint32
            const int stop = start + 64 < n ? start + 64 : n;
            int32_t s = 0;
            uint32_t q = 0;
            for (int i = start; i < stop; ++i) {
                s += a[i];
                q += (uint32_t)((int32_t)a[i] * a[i]);
            }
            sum += s;
            squares += q;
        }
        const float factor = hpcm_norm_factor(sum, squares, n), width = (float)n, mean = (float)sum;
        for (int i = 0; i < n; ++i)
            p.out[row * n + i] = hpcm_norm(a[i], width, mean, factor, p.gamma[i], p.beta[i], limit);
    }
}

static void lrelu(int64_t first, int64_t last, const Elements& p) {
    for (int64_t i = first; i < last; ++i) p.out[i] = hpcm_lrelu(p.a[i]);
}

static void relu_squared(int64_t first, int64_t last, const Elements& p) {
    const float limit = (float)p.limit;
    for (int64_t i = first; i < last; ++i) p.out[i] = hpcm_relu_squared(p.a[i], p.factor, limit);
}

static void gate(int64_t first, int64_t last, const Elements& p) {
    const float* table = p.table + HPCM_TABLE_MAX;
    for (int64_t i = first; i < last; ++i) p.out[i] = hpcm_gate(table[p.b[i]], p.a[i]);
}

static void add(int64_t first, int64_t last, const Elements& p) {
    const int32_t limit = p.limit;  // in a register: g++ vectorises no loop that reads it anew
    for (int64_t i = first; i < last; ++i) p.out[i] = hpcm_limit_code((int32_t)p.a[i] + p.b[i], limit);
}

static void latent_code(int64_t first, int64_t last, const Elements& p) {
    const int32_t limit = p.limit;
    for (int64_t i = first; i < last; ++i) p.out[i] = hpcm_limit_code(p.wide[i], limit);
}

static void channel_scale(int64_t first, int64_t last, const Elements& p) {
    const float limit = (float)p.limit;
    for (int64_t row = first; row < last; ++row)
        for (int c = 0; c < p.channels; ++c)
            p.out[row * p.channels + c] = hpcm_code((float)p.a[row * p.channels + c] * p.table[c], limit);
}

static void narrow(int64_t first, int64_t last, const Elements& p) {
    for (int64_t row = first; row < last; ++row)
        for (int c = 0; c < p.channels; ++c)
            p.out[row * p.channels + c] = hpcm_narrow(p.wide[row * p.channels + c], p.table[c], (float)p.limit);
}

template <class Level>
static void pixels(int64_t first, int64_t last, const Pixels& p) {
    for (int64_t i = first; i < last; ++i)
        ((Level*)p.out)[i] = (Level)hpcm_pixel(p.wide[i], p.factor, p.half, p.top);
}

// a is one row (channels,), the same at all positions.
static void blend(int64_t first, int64_t last, const Elements& p) {
    const float* table = p.table + HPCM_TABLE_MAX;
    for (int64_t row = first; row < last; ++row)
        for (int c = 0; c < p.channels; ++c) {
            const int64_t i = row * p.channels + c;
            p.out[i] = hpcm_blend(table[p.b[i]], p.a[c], p.c[i]);
        }
}

static void sum_rows(int64_t first, int64_t last, const int16_t* a, int channels, int64_t* sums) {
    for (int c = 0; c < channels; ++c) sums[c] = 0;
    for (int64_t row = first; row < last; ++row)
        for (int c = 0; c < channels; ++c) sums[c] += a[row * channels + c];
}

#include "folded.h"
#include "residual.h"

// --- Bi-WKV4 -----------------------------------------------------------------------------------------------------------
//
// A work item is a group: one sample at 32 channels, whose codes fill a cache line. It goes from the last block to the
// first to find what the blocks to the right carry into each, and then from the first to the last for the results.
// Codes are thus read and their weights looked up twice, but only one pair of sums per block is kept. Groups of one
// sample run side by side, block by block, so that memory is read in order. A block's codes are first gathered, since
// the tokens lie so far apart that they would share few places of the cache; then the channels of a vector are computed
// together. Channels beyond the last are computed from zeros (with weights of one, so that nothing is divided by zero)
// and not stored.

typedef double Doubles __attribute__((vector_size(8 * DOUBLES)));
typedef int64_t Longs __attribute__((vector_size(8 * DOUBLES)));
typedef uint64_t Words __attribute__((vector_size(8 * DOUBLES)));
typedef int32_t Wholes __attribute__((vector_size(4 * DOUBLES)));
typedef int16_t Codes __attribute__((vector_size(2 * DOUBLES)));
enum { GROUP = 32, VECS = GROUP / DOUBLES };

struct Lanes {
    int64_t token;  // the block's first token, counted through all samples
    int count, channel, channels;
};

static inline Doubles take(const double* row, int channels, double other) {
    Doubles x = Doubles{} + other;
    if (channels >= DOUBLES)
        memcpy(&x, row, sizeof x);
    else
        for (int l = 0; l < channels; ++l) x[l] = row[l];
    return x;
}

struct Gathered {
    int16_t k[HPCM_BLOCK][GROUP], v[HPCM_BLOCK][GROUP];
};

// Copies a group's codes of one token. The size is a constant where it can be: a call would cost as much as the
// arithmetic.
static inline void copy_codes(int16_t* to, const int16_t* from, int n) {
    if (n == GROUP)
        memcpy(to, from, GROUP * sizeof(int16_t));
    else
        memcpy(to, from, n * sizeof(int16_t));
}

// ahead: the distance in tokens to the block that is prefetched, two blocks on, so that memory has time to answer.
static inline void gather(const Wkv& p, const Lanes& at, int64_t ahead, Gathered& codes) {
    if (!p.table) return;
    if (at.channels < GROUP) memset(&codes, 0, sizeof codes);
    for (int j = 0; j < at.count; ++j) {
        const int64_t i = (at.token + j) * p.channels + at.channel;
        __builtin_prefetch(p.k + i + ahead * p.channels);
        __builtin_prefetch(p.v + i + ahead * p.channels);
        copy_codes(codes.k[j], p.k + i, at.channels);
        copy_codes(codes.v[j], p.v + i, at.channels);
    }
}

static inline Doubles look_up(const double* table, const int16_t* k) {
#if defined(HPCM_AVX512)
    return Doubles{table[k[0]], table[k[1]], table[k[2]], table[k[3]],
                   table[k[4]], table[k[5]], table[k[6]], table[k[7]]};
#elif defined(HPCM_AVX2)
    return Doubles{table[k[0]], table[k[1]], table[k[2]], table[k[3]]};
#else
    return Doubles{table[k[0]], table[k[1]]};
#endif
}

// int16 becomes float64 by way of int32: converted directly, g++ goes lane by lane.
static inline Doubles values_of(const int16_t* v) {
    Codes x;
    memcpy(&x, v, sizeof x);
    return __builtin_convertvector(__builtin_convertvector(x, Wholes), Doubles);
}

// e and e v of token j of the block, at the channels of one vector, which starts at channel c of the group.
static inline void take_token(const Wkv& p, const Lanes& at, const Gathered& codes, int j, int c, Doubles& e,
                              Doubles& ev) {
    if (p.table) {
        e = look_up(p.table + HPCM_TABLE_MAX, codes.k[j] + c);
        ev = e * values_of(codes.v[j] + c);
    } else {
        const int64_t i = (at.token + j) * p.channels + at.channel + c;
        e = take(p.weights + i, at.channels - c, 1.0);
        ev = e * take(p.values + i, at.channels - c, 0.0);
    }
}

// hpcm_code of every lane.
static inline Codes code_of(Doubles x, double limit) {
    const Doubles low = Doubles{} - limit, high = Doubles{} + limit;
    x = x < low ? low : x;
    x = x > high ? high : x;
    x = x + 6755399441055744.0;
    Longs bits;
    memcpy(&bits, &x, sizeof bits);
    return __builtin_convertvector(__builtin_convertvector(bits, Wholes), Codes);
}

static inline void put_result(const Wkv& p, const Lanes& at, Gathered& codes, int j, int c, Doubles y) {
    if (p.table) {  // overwrites v, which is not needed again
        const Codes out = code_of(y * p.factor, (double)p.limit);
        memcpy(codes.v[j] + c, &out, sizeof out);
    } else if (at.channels > c) {
        const int n = at.channels - c < DOUBLES ? at.channels - c : (int)DOUBLES;
        memcpy(p.out + (at.token + j) * p.channels + at.channel + c, &y, n * sizeof(double));
    }
}

struct Group {
    Lanes at;
    Doubles power[VECS][HPCM_BLOCK + 1], own[VECS], sums[VECS][2];  // sums: numerators and denominators
    double* ends;  // (blocks, VECS, 2, DOUBLES): what the blocks to the right carry into each
};

enum { GROUPS = 4 };  // how many groups of a sample run side by side

static inline void go_to(const Wkv& p, int64_t sample, int64_t block, Lanes& at) {
    const int64_t start = block * p.length;
    at.token = sample * p.tokens + start;
    at.count = (int)(p.tokens - start < p.length ? p.tokens - start : p.length);
}

static void wkv_groups(const Wkv& p, int64_t sample, int first, int n) {
    Gathered codes;
    Group groups[GROUPS];
    for (int i = 0; i < n; ++i) {
        Group& g = groups[i];
        g.at.channel = (first + i) * GROUP;
        g.at.channels = p.channels - g.at.channel < GROUP ? p.channels - g.at.channel : (int)GROUP;
        g.ends = p.ends + (sample * p.groups + first + i) * p.blocks * 2 * GROUP;
        memset(g.sums, 0, sizeof g.sums);
        for (int h = 0; h < VECS; ++h) {
            const int c = g.at.channel + h * DOUBLES;
            for (int j = 0; j <= p.length; ++j)
                g.power[h][j] = take(p.powers + (int64_t)j * p.channels + c, p.channels - c, 1.0);
            g.own[h] = take(p.own + c, p.channels - c, 1.0);
        }
    }
    for (int64_t block = p.blocks - 1; block >= 0; --block)
        for (int i = 0; i < n; ++i) {
            Group& g = groups[i];
            memcpy(g.ends + block * VECS * 2 * DOUBLES, g.sums, sizeof g.sums);
            if (block == 0) continue;
            go_to(p, sample, block, g.at);
            gather(p, g.at, -2 * p.length, codes);
            for (int h = 0; h < VECS && h * DOUBLES < g.at.channels; ++h) {
                const Doubles w = g.power[h][1];
                Doubles end_n = {}, end_d = {}, e, ev;
                for (int j = g.at.count - 1; j >= 0; --j) {
                    take_token(p, g.at, codes, j, h * DOUBLES, e, ev);
                    hpcm_wkv_step(end_n, end_d, w, e, ev);
                }
                hpcm_wkv_carry(g.sums[h][0], g.sums[h][1], g.power[h][p.length], end_n, end_d);
            }
        }
    for (int i = 0; i < n; ++i) memset(groups[i].sums, 0, sizeof groups[i].sums);
    for (int64_t block = 0; block < p.blocks; ++block)
        for (int i = 0; i < n; ++i) {
            Group& g = groups[i];
            go_to(p, sample, block, g.at);
            gather(p, g.at, 2 * p.length, codes);
            for (int h = 0; h < VECS && h * DOUBLES < g.at.channels; ++h) {
                const int c = h * DOUBLES;
                const Doubles* const power = g.power[h];
                Doubles right[2];
                memcpy(right, g.ends + (block * VECS + h) * 2 * DOUBLES, sizeof right);
                hpcm_wkv_block(
                    g.at.count, p.length,
                    [&](int j, Doubles& e, Doubles& ev) { take_token(p, g.at, codes, j, c, e, ev); },
                    [power](int j) { return power[j]; }, g.own[h], g.sums[h][0], g.sums[h][1], right[0], right[1],
                    [&](int j, Doubles n, Doubles d) { put_result(p, g.at, codes, j, c, n / d); });
            }
            for (int j = 0; p.table && j < g.at.count; ++j)
                copy_codes(p.codes + (g.at.token + j) * p.channels + g.at.channel, codes.v[j], g.at.channels);
        }
}

// The range counts groups, through all samples.
static void wkv(int64_t first, int64_t last, const Wkv& p) {
    while (first < last) {
        const int64_t in_sample = p.groups - first % p.groups, left = last - first;
        int64_t n = in_sample < left ? in_sample : left;
        if (n > GROUPS) n = GROUPS;
        wkv_groups(p, first / p.groups, (int)(first % p.groups), (int)n);
        first += n;
    }
}

// --- Bi-WKV4 for training ----------------------------------------------------------------------------------------------
//
// A work item is all tokens of a sample at the channels of one vector. Channels beyond the last are computed from zeros
// and not stored.


typedef float Floats __attribute__((vector_size(4 * DOUBLES)));
typedef uint32_t Bits __attribute__((vector_size(4 * DOUBLES)));
typedef uint16_t Halves __attribute__((vector_size(2 * DOUBLES)));

static inline Doubles widen(const float* p) {
    Floats x;
    memcpy(&x, p, sizeof x);
    return __builtin_convertvector(x, Doubles);
}

static inline Doubles widen(const double* p) {
    Doubles x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline Doubles widen(const HpcmBf16* p) {
    Halves x;
    memcpy(&x, p, sizeof x);
    return __builtin_convertvector((Floats)(__builtin_convertvector(x, Bits) << 16), Doubles);
}

static inline void narrow(Doubles x, float* p) {
    const Floats y = __builtin_convertvector(x, Floats);
    memcpy(p, &y, sizeof y);
}

static inline void narrow(Doubles x, double* p) { memcpy(p, &x, sizeof x); }

// Rounds as hpcm_put does.
static inline void narrow(Doubles x, HpcmBf16* p) {
    const Floats y = __builtin_convertvector(x, Floats);
    const Bits bits = (Bits)y, rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const Halves out = __builtin_convertvector(y != y ? Bits{} + 0x7FC0 : rounded, Halves);
    memcpy(p, &out, sizeof out);
}

template <class T>
static inline Doubles read_reals(const T* p, int n) {
    if (n == DOUBLES) return widen(p);
    Doubles x = {};
    for (int l = 0; l < n; ++l) x[l] = hpcm_of(p[l]);
    return x;
}

template <class T>
static inline void write_reals(T* p, int n, Doubles x) {
    if (n == DOUBLES) return narrow(x, p);
    for (int l = 0; l < n; ++l) hpcm_put(x[l], p + l);
}

// In: the type of k, v and their gradients; Out: the type of y and its gradient.
template <class In, class Out>
struct Sequence {
    const In *k_at, *v_at;
    In *gk_at, *gv_at;
    const Out* g_at;
    Out* y_at;
    int64_t stride;
    int channels;
    Doubles* scratch;

    Doubles k(int64_t t) const { return read_reals(k_at + t * stride, channels); }
    Doubles v(int64_t t) const { return read_reals(v_at + t * stride, channels); }
    Doubles g(int64_t t) const { return read_reals(g_at + t * stride, channels); }
    void y(int64_t t, Doubles x) const { write_reals(y_at + t * stride, channels, x); }
    void gk(int64_t t, Doubles x) const { write_reals(gk_at + t * stride, channels, x); }
    void gv(int64_t t, Doubles x) const { write_reals(gv_at + t * stride, channels, x); }
    Doubles& kept(int i, int64_t t) const { return scratch[t * 5 + i]; }
};

template <class In, class Out>
static void biwkv4(int64_t first, int64_t last, const Biwkv4& p, int* failed) {
    Doubles* scratch = (Doubles*)aligned_alloc(sizeof(Doubles), p.tokens * 5 * sizeof(Doubles));
    if (!scratch) {
        __atomic_store_n(failed, 1, __ATOMIC_RELAXED);
        return;
    }
    const int64_t vectors = (p.channels + DOUBLES - 1) / DOUBLES;
    for (int64_t item = first; item < last; ++item) {
        const int c = (int)(item % vectors) * DOUBLES, n = p.channels - c < DOUBLES ? p.channels - c : (int)DOUBLES;
        const int64_t at = item / vectors * p.tokens * p.channels + c;
        Doubles w = {}, own = {}, gw, gu;
        for (int l = 0; l < n; ++l) {
            w[l] = hpcm_decay_factor(p.decay[c + l], p.tokens);
            own[l] = hpcm_own_factor(p.boost[c + l], p.tokens);
        }
        Sequence<In, Out> io = {};
        io.k_at = (const In*)p.k + at;
        io.v_at = (const In*)p.v + at;
        io.stride = p.channels;
        io.channels = n;
        io.scratch = scratch;
        if (!p.g) {
            io.y_at = (Out*)p.y + at;
            hpcm_biwkv4<Words>(p.tokens, w, own, io);
            continue;
        }
        io.g_at = (const Out*)p.g + at;
        io.gk_at = (In*)p.gk + at;
        io.gv_at = (In*)p.gv + at;
        hpcm_biwkv4_gradients<Words>(p.tokens, w, own, io, gw, gu);
        double* sums = p.sums + item / vectors * 2 * p.channels + c;
        for (int l = 0; l < n; ++l) {
            sums[l] = gw[l];
            sums[p.channels + l] = gu[l];
        }
    }
    free(scratch);
}

static void biwkv4_sum(int64_t batch, const Biwkv4& p, double* g_decay, double* g_boost) {
    for (int c = 0; c < p.channels; ++c)
        hpcm_biwkv4_sum(batch, p.channels, p.tokens, c, p.sums, p.decay, p.boost, g_decay, g_boost);
}

// This is constexpr so that no instruction of a copy runs before the copy is chosen, not even to fill in this table.
static constexpr Functions functions = {
    linear,  depthwise, norm,        lrelu, relu_squared, gate, add, channel_scale, blend, sum_rows, latent_code, wkv,
    narrow,  residual,  residual_scratch, around, heads, heads_scratch,
    {pixels<uint8_t>, pixels<uint16_t>},
    BAND,    HEAD_ROWS, DOUBLES, {biwkv4<float, float>, biwkv4<HpcmBf16, float>, biwkv4<double, double>}, biwkv4_sum,
};
