// The kernels' loops for one instruction set. kernels.cpp includes this once for each, inside a namespace of its own
// and with the compiler's target set, after defining one of
//
//     HPCM_AVX512, HPCM_AVX2, HPCM_SSE2, HPCM_PLAIN
//
// which chooses the dot product; the loops that are plain C++ are vectorised by the compiler. Integer sums are exact, so
// neither the width nor the order matters; everything else is core.h's, element by element. Each function does a range
// of rows (positions), blocks or channels, so that threads can share the work.

#if defined(HPCM_AVX512)
typedef __m512i Ints;
enum { LANES = 16, ROWS = 6, PANELS = 4 };
static inline Ints load(const int16_t* p) { return _mm512_loadu_si512(p); }
static inline Ints spread(int32_t pair) { return _mm512_set1_epi32(pair); }
static inline void store(int32_t* p, Ints x) { _mm512_storeu_si512(p, x); }
static inline Ints dot(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }
#elif defined(HPCM_AVX2)
typedef __m256i Ints;
enum { LANES = 8, ROWS = 6, PANELS = 1 };
static inline Ints load(const int16_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline Ints spread(int32_t pair) { return _mm256_set1_epi32(pair); }
static inline void store(int32_t* p, Ints x) { _mm256_storeu_si256((__m256i*)p, x); }
static inline Ints dot(Ints sum, Ints a, Ints b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
#elif defined(HPCM_SSE2)
typedef __m128i Ints;
enum { LANES = 4, ROWS = 2, PANELS = 1 };
static inline Ints load(const int16_t* p) { return _mm_loadu_si128((const __m128i*)p); }
static inline Ints spread(int32_t pair) { return _mm_set1_epi32(pair); }
static inline void store(int32_t* p, Ints x) { _mm_storeu_si128((__m128i*)p, x); }
static inline Ints dot(Ints sum, Ints a, Ints b) { return _mm_add_epi32(sum, _mm_madd_epi16(a, b)); }
#else
// Processors without a dot product written for them: vectors of the compiler's own, lowered to what there is.
typedef int32_t Ints __attribute__((vector_size(16)));
enum { LANES = 4, ROWS = 2, PANELS = 1 };
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
#endif

enum { VECTORS = PANEL / LANES, TILE = PANELS * PANEL };

// --- matrix products: (rows, inputs) codes times packed weights ----------------------------------------------------
//
// Two neighbouring inputs of a row are one 32-bit operand, spread over the lanes; the packed weights hold the same two
// inputs of one output in each lane (kernels.cpp: "Packed weights"). The sums of R rows and P panels stay in registers.

static inline int32_t pair_at(const int16_t* p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

template <int R, int P>
static __attribute__((noinline)) void multiply(const int16_t* a, int64_t stride, int inputs, const int16_t* w, int32_t* out) {
    Ints sums[R][P * VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < P * VECTORS; ++v) sums[r][v] = spread(0);
    const int64_t panel = (int64_t)inputs * PANEL;
    for (int i = 0; i < inputs / 2; ++i) {
        Ints b[P * VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < P * VECTORS; ++v)
            b[v] = load(w + v / VECTORS * panel + (int64_t)i * PANEL * 2 + v % VECTORS * LANES * 2);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Ints x = spread(pair_at(a + r * stride + 2 * i));
#pragma GCC unroll 16
            for (int v = 0; v < P * VECTORS; ++v) sums[r][v] = dot(sums[r][v], x, b[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < P * VECTORS; ++v) store(out + r * TILE + v * LANES, sums[r][v]);
}

// Few shapes, since each is compiled for every instruction set: rows at the end of a range go one by one, and so do
// panels that are fewer than PANELS.
static void multiply_tile(int rows, int panels, const int16_t* a, int64_t stride, int inputs, const int16_t* w,
                          int32_t* out) {
    const int step = rows == ROWS ? ROWS : 1;
    for (int r = 0; r < rows; r += step, a += step * stride, out += step * TILE) {
        if (panels == PANELS) {
            step == 1 ? multiply<1, PANELS>(a, stride, inputs, w, out) : multiply<ROWS, PANELS>(a, stride, inputs, w, out);
            continue;
        }
        for (int p = 0; p < panels; ++p) {
            const int16_t* part = w + (int64_t)p * inputs * PANEL;
            step == 1 ? multiply<1, 1>(a, stride, inputs, part, out + p * PANEL)
                      : multiply<ROWS, 1>(a, stride, inputs, part, out + p * PANEL);
        }
    }
}

// One chunk of inputs: float32 throughout.
static inline void finish_row(const int32_t* sums, int n, const float* scale, const float* bias, int16_t* out) {
    for (int i = 0; i < n; ++i) out[i] = hpcm_code(hpcm_requantise(sums[i], scale[i], bias[i]));
}

static inline void finish_row_lrelu(const int32_t* sums, int n, const float* scale, const float* bias, int16_t* out) {
    for (int i = 0; i < n; ++i) out[i] = hpcm_lrelu(hpcm_code(hpcm_requantise(sums[i], scale[i], bias[i])));
}

static inline void finish_row_wide(const int32_t* sums, int n, const float* scale, const float* bias, const float* low,
                                   const float* high, int32_t* out) {
    for (int i = 0; i < n; ++i)
        out[i] = hpcm_round(hpcm_limit(hpcm_requantise(sums[i], scale[i], bias[i]), low[i], high[i]));
}

static void linear(int64_t first, int64_t last, const Linear& l) {
    int32_t sums[ROWS * TILE];
    double total[TILE];
    int32_t chunk_sums[ROWS * TILE * MAX_CHUNKS];
    for (int64_t block = first; block < last; block += ROW_BLOCK) {
        const int64_t end = block + ROW_BLOCK < last ? block + ROW_BLOCK : last;
        for (int o = 0; o < l.outputs; o += TILE) {
            const int width = l.outputs - o < TILE ? l.outputs - o : (int)TILE, panels = (width + PANEL - 1) / PANEL;
            for (int64_t row = block; row < end; row += ROWS) {
                const int rows = end - row < ROWS ? (int)(end - row) : (int)ROWS;
                // One chunk and many share the products; the sums of many wait for each other in `chunk_sums`.
                for (int c = 0; c < l.n_chunks; ++c) {
                    const Chunk& k = l.chunks[c];
                    if (k.a == 0) continue;
                    const int16_t* w = k.weights + (int64_t)o * k.inputs;
                    int32_t* out = l.n_chunks == 1 ? sums : chunk_sums + c * (ROWS * TILE);
                    multiply_tile(rows, panels, k.a + row * k.stride, k.stride, (int)k.inputs, w, out);
                }
                for (int r = 0; r < rows; ++r) {
                    const int64_t at = (row + r) * l.outputs + o;
                    if (l.n_chunks == 1) {
                        const float* scale = (const float*)l.chunks[0].scale + o;
                        const float* bias = (const float*)l.bias + o;
                        if (l.form == WIDE)
                            finish_row_wide(sums + r * TILE, width, scale, bias, l.low + o, l.high + o,
                                            (int32_t*)l.out + at);
                        else if (l.form == LRELU)
                            finish_row_lrelu(sums + r * TILE, width, scale, bias, (int16_t*)l.out + at);
                        else
                            finish_row(sums + r * TILE, width, scale, bias, (int16_t*)l.out + at);
                        continue;
                    }
                    for (int c = 0; c < l.n_chunks; ++c) {
                        const double* scale = (const double*)l.chunks[c].scale + o;
                        const int32_t* s = chunk_sums + (c * ROWS + r) * TILE;
                        if (l.chunks[c].a == 0) {  // the product of one row for all positions, scaled already
                            if (c == 0)
                                for (int i = 0; i < width; ++i) total[i] = scale[i];
                            else
                                for (int i = 0; i < width; ++i) total[i] = total[i] + scale[i];
                        } else if (c == 0) {
                            for (int i = 0; i < width; ++i) total[i] = (double)s[i] * scale[i];
                        } else {
                            for (int i = 0; i < width; ++i) {
                                const double term = (double)s[i] * scale[i];
                                total[i] = total[i] + term;
                            }
                        }
                    }
                    const double* bias = (const double*)l.bias + o;
                    int16_t* out = (int16_t*)l.out + at;
                    if (l.form == WIDE) {
                        int32_t* wide = (int32_t*)l.out + at;
                        for (int i = 0; i < width; ++i)
                            wide[i] = hpcm_round(
                                hpcm_limit(total[i] + bias[i], (double)l.low[o + i], (double)l.high[o + i]));
                    } else if (l.form == LRELU) {
                        for (int i = 0; i < width; ++i) out[i] = hpcm_lrelu(hpcm_code(total[i] + bias[i]));
                    } else {
                        for (int i = 0; i < width; ++i) out[i] = hpcm_code(total[i] + bias[i]);
                    }
                }
            }
        }
    }
}

// --- depthwise convolution: rows of the image (batch included), zero padding ---------------------------------------

typedef int16_t Codes16 __attribute__((vector_size(32), aligned(2)));
typedef int32_t Ints16 __attribute__((vector_size(64)));

template <int N>  // N vectors of 16 channels
static inline void convolve(const Depthwise& d, int64_t row, int64_t column, int c, int32_t* sums) {
    const int half = d.k / 2;
    const int64_t y = row % d.height;
    Ints16 sum[N];
    for (int v = 0; v < N; ++v) sum[v] = Ints16{};
    for (int i = 0; i < d.k; ++i) {
        if (y + i - half < 0 || y + i - half >= d.height) continue;
        for (int j = 0; j < d.k; ++j) {
            const int64_t x = column + j - half;
            if (x < 0 || x >= d.width) continue;
            const int16_t* a = d.a + ((row + i - half) * d.width + x) * d.channels + c;
            const int16_t* w = d.weights + (int64_t)(i * d.k + j) * d.channels + c;
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v)
                sum[v] += __builtin_convertvector(*(const Codes16*)(a + 16 * v), Ints16) *
                          __builtin_convertvector(*(const Codes16*)(w + 16 * v), Ints16);
        }
    }
    memcpy(sums, sum, sizeof sum);
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
    int32_t sums[64];
    for (int64_t row = first; row < last; ++row)
        for (int64_t column = 0; column < d.width; ++column) {
            int16_t* out = d.out + (row * d.width + column) * d.channels;
            for (int c = 0; c < d.channels;) {
                const int left = d.channels - c, n = left >= 64 ? 64 : left >= 16 ? 16 : 1;
                if (n == 64)
                    convolve<4>(d, row, column, c, sums);
                else if (n == 16)
                    convolve<1>(d, row, column, c, sums);
                else
                    convolve_one(d, row, column, c, sums);
                finish_row(sums, n, d.scale + c, d.bias + c, out + c);
                c += n;
            }
        }
}

// --- element by element ----------------------------------------------------------------------------------------------

static void norm(int64_t first, int64_t last, const Norm& p) {
    const int n = p.channels;
    for (int64_t row = first; row < last; ++row) {
        const int16_t* a = p.a + row * n;
        int64_t sum = 0, squares = 0;
        for (int start = 0; start < n; start += 256) {  // 256 squares of codes stay within int32
            const int stop = start + 256 < n ? start + 256 : n;
            int32_t s = 0, q = 0;
            for (int i = start; i < stop; ++i) {
                s += a[i];
                q += (int32_t)a[i] * a[i];
            }
            sum += s;
            squares += q;
        }
        const float factor = hpcm_norm_factor(sum, squares, n), width = (float)n, mean = (float)sum;
        for (int i = 0; i < n; ++i) p.out[row * n + i] = hpcm_norm(a[i], width, mean, factor, p.gamma[i], p.beta[i]);
    }
}

static void lrelu(int64_t first, int64_t last, const Elements& p) {
    for (int64_t i = first; i < last; ++i) p.out[i] = hpcm_lrelu(p.a[i]);
}

static void relu_squared(int64_t first, int64_t last, const Elements& p) {
    for (int64_t i = first; i < last; ++i) p.out[i] = hpcm_relu_squared(p.a[i], p.factor);
}

static void gate(int64_t first, int64_t last, const Elements& p) {
    const float* table = p.table + HPCM_CODE_MAX;
    for (int64_t i = first; i < last; ++i) p.out[i] = hpcm_gate(table[p.b[i]], p.a[i]);
}

static void add(int64_t first, int64_t last, const Elements& p) {
    for (int64_t i = first; i < last; ++i) p.out[i] = (int16_t)hpcm_limit_code((int32_t)p.a[i] + p.b[i]);
}

static void latent_code(int64_t first, int64_t last, const Elements& p) {
    for (int64_t i = first; i < last; ++i) p.out[i] = hpcm_latent_code(p.wide[i]);
}

static void channel_scale(int64_t first, int64_t last, const Elements& p) {
    for (int64_t row = first; row < last; ++row)
        for (int c = 0; c < p.channels; ++c)
            p.out[row * p.channels + c] = hpcm_code((float)p.a[row * p.channels + c] * p.table[c]);
}

// a is one row for all positions.
static void blend(int64_t first, int64_t last, const Elements& p) {
    const float* table = p.table + HPCM_CODE_MAX;
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

// --- Bi-WKV4 -----------------------------------------------------------------------------------------------------------
//
// Work item: one block of tokens at one vector of 8 channels. Channels beyond the last are computed from zeros (with
// weights of one, so that nothing is divided by zero) and not stored.

typedef double Doubles __attribute__((vector_size(64)));
enum { DOUBLES = 8 };

struct Lanes {
    int64_t token;  // the block's first, batch included
    int count, channel, channels;
};

static inline Lanes lanes_of(const Wkv& p, int64_t item) {
    const int64_t block = item / p.vectors, of_batch = block % p.blocks, start = of_batch * p.length;
    Lanes at;
    at.token = block / p.blocks * p.tokens + start;
    at.count = (int)(p.tokens - start < p.length ? p.tokens - start : p.length);
    at.channel = (int)(item % p.vectors) * DOUBLES;
    at.channels = p.channels - at.channel < DOUBLES ? p.channels - at.channel : (int)DOUBLES;
    return at;
}

static inline Doubles take(const double* row, const Lanes& at, double other) {
    Doubles x;
    if (at.channels == DOUBLES)
        memcpy(&x, row + at.channel, sizeof x);
    else
        for (int l = 0; l < DOUBLES; ++l) x[l] = l < at.channels ? row[at.channel + l] : other;
    return x;
}

static inline void take_tokens(const Wkv& p, const Lanes& at, Doubles* e, Doubles* ev) {
    if (p.table) {
        const double* table = p.table + HPCM_CODE_MAX;
        for (int j = 0; j < at.count; ++j) {
            const int64_t i = (at.token + j) * p.channels + at.channel;
            double w[DOUBLES], v[DOUBLES];
            for (int l = 0; l < DOUBLES; ++l) {
                w[l] = l < at.channels ? table[p.k[i + l]] : 1.0;
                v[l] = l < at.channels ? (double)p.v[i + l] : 0.0;
            }
            memcpy(&e[j], w, sizeof w);
            memcpy(&ev[j], v, sizeof v);
            ev[j] = e[j] * ev[j];
        }
        return;
    }
    for (int j = 0; j < at.count; ++j) {
        const int64_t row = (at.token + j) * p.channels;
        e[j] = take(p.weights + row, at, 1.0);
        ev[j] = e[j] * take(p.values + row, at, 0.0);
    }
}

// ends: (items, 4, 8): left numerator, left denominator, right numerator, right denominator.
static void wkv_ends(int64_t first, int64_t last, const Wkv& p) {
    for (int64_t item = first; item < last; ++item) {
        const Lanes at = lanes_of(p, item);
        Doubles e[HPCM_BLOCK], ev[HPCM_BLOCK], ends[4];
        take_tokens(p, at, e, ev);
        hpcm_wkv_ends(e, ev, at.count, take(p.powers + p.channels, at, 1.0), ends[0], ends[1], ends[2], ends[3]);
        memcpy(p.ends + item * 4 * DOUBLES, ends, sizeof ends);
    }
}

// Replaces each block's ends by what the blocks before (left) and behind (right) carry into it. A work item is one
// vector of channels of one batch.
static void wkv_carries(int64_t first, int64_t last, const Wkv& p) {
    for (int64_t item = first; item < last; ++item) {
        const int64_t batch = item / p.vectors;
        Lanes at = lanes_of(p, item % p.vectors);
        const Doubles w = take(p.powers + (int64_t)p.length * p.channels, at, 1.0);
        Doubles carry[4] = {}, ends[4];
        for (int64_t n = 0; n < p.blocks; ++n) {
            double* left = p.ends + ((batch * p.blocks + n) * p.vectors + item % p.vectors) * 4 * DOUBLES;
            double* right =
                p.ends + ((batch * p.blocks + p.blocks - 1 - n) * p.vectors + item % p.vectors) * 4 * DOUBLES;
            memcpy(ends, left, 2 * sizeof(Doubles));
            memcpy(ends + 2, right + 2 * DOUBLES, 2 * sizeof(Doubles));
            memcpy(left, carry, 2 * sizeof(Doubles));
            memcpy(right + 2 * DOUBLES, carry + 2, 2 * sizeof(Doubles));
            for (int i = 0; i < 4; ++i) {
                carry[i] = carry[i] * w;
                carry[i] = carry[i] + ends[i];
            }
        }
    }
}

static void wkv_out(int64_t first, int64_t last, const Wkv& p) {
    for (int64_t item = first; item < last; ++item) {
        const Lanes at = lanes_of(p, item);
        Doubles e[HPCM_BLOCK], ev[HPCM_BLOCK], power[HPCM_BLOCK + 1], carry[4];
        take_tokens(p, at, e, ev);
        for (int i = 0; i <= p.length; ++i) power[i] = take(p.powers + (int64_t)i * p.channels, at, 1.0);
        memcpy(carry, p.ends + item * 4 * DOUBLES, sizeof carry);
        hpcm_wkv_sums(
            e, ev, at.count, p.length, [&](int i) { return power[i]; }, take(p.own, at, 1.0), carry[0], carry[1],
            carry[2], carry[3]);
        for (int j = 0; j < at.count; ++j) {
            const Doubles y = ev[j] / e[j];
            const int64_t i = (at.token + j) * p.channels + at.channel;
            double plain[DOUBLES];
            memcpy(plain, &y, sizeof plain);
            if (p.table) {
                int16_t codes[DOUBLES];
                for (int l = 0; l < DOUBLES; ++l) codes[l] = hpcm_code(plain[l] * p.factor);
                memcpy(p.codes + i, codes, at.channels * sizeof(int16_t));
            } else {
                memcpy(p.out + i, plain, at.channels * sizeof(double));
            }
        }
    }
}

static const Functions functions = {linear,        depthwise, norm,     lrelu,       relu_squared, gate,    add,
                                    channel_scale, blend,     sum_rows, latent_code, wkv_ends,     wkv_carries, wkv_out};
