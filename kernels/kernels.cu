// The kernels for NVIDIA GPUs: core.h's arithmetic, with one thread per element (Bi-WKV4: per block of tokens and
// channel).
//
//     nvcc --std=c++17 --fmad=false -cubin -arch=sm_NN kernels.cu            (hpcmcodec/native/cuda.py, or NVRTC there)
//
// The file holds kernels alone: cuda.py launches them through the driver, so the compilers see no code for the host.
// Pointers are device addresses. There are no atomics and no shared memory, so results do not depend on how threads are
// scheduled. Without CUDA, the file compiles after tests/cuda_shim.h, which runs the threads one after the other.

#ifdef __CUDACC_RTC__  // NVRTC has no headers of its own
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

#include "core.h"

#ifdef __CUDACC__
#define HPCM_KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#endif

// The number of this thread's element. Launches are rounded up to whole blocks, so it may lie beyond the last.
__device__ static inline int64_t element() { return blockIdx.x * (int64_t)blockDim.x + threadIdx.x; }

// The values of HPCM_ABI; each thread writes one.
HPCM_KERNEL(hpcm_abi, int64_t* values) {
    const int64_t own[] = {HPCM_ABI}, i = element();
    if (i < (int64_t)(sizeof own / sizeof *own)) values[i] = own[i];
}

__device__ static int32_t sum_of(const Input& in, int64_t row, int o) {
    const int16_t* a = in.a + row * in.columns;
    const int16_t* w = in.weights + (int64_t)(o / PANEL) * PANEL * in.columns + o % PANEL * 2;
    int32_t sum = 0;
    for (int64_t i = 0; i < in.columns; ++i) sum += (int32_t)a[i] * w[i / 2 * PANEL * 2 + i % 2];
    return sum;
}

HPCM_KERNEL(hpcm_linear, Linear l) {
    const int64_t i = element();
    if (i >= l.rows * l.outputs) return;
    const int64_t row = i / l.outputs;
    const int o = (int)(i % l.outputs);
    float total = 0;
    for (int k = 0; k < l.n_inputs; ++k) {
        const Input& in = l.inputs[k];
        const float term = in.a ? (float)sum_of(in, row, o) * in.scale[o] : in.scale[o];
        total = k == 0 ? term : total + term;
    }
    total = total + l.bias[o];
    if (l.low)
        ((int32_t*)l.out)[i] = (l.onto ? l.onto[i] : 0) + hpcm_round(hpcm_limit(total, l.low[o], l.high[o]));
    else
        ((int16_t*)l.out)[i] = hpcm_code(total, (float)l.limit);
}

HPCM_KERNEL(hpcm_depthwise, int64_t batch, int64_t height, int64_t width, int channels, int k, const int16_t* a,
            const int16_t* weights, const float* scale, const float* bias, int limit, int16_t* out) {
    const int64_t i = element();
    if (i >= batch * height * width * channels) return;
    const int c = (int)(i % channels);
    const int64_t column = i / channels % width, row = i / channels / width, y = row % height;
    int32_t sum = 0;
    for (int m = 0; m < k; ++m)
        for (int n = 0; n < k; ++n) {
            const int64_t ym = y + m - k / 2, xn = column + n - k / 2;
            if (ym < 0 || ym >= height || xn < 0 || xn >= width) continue;
            sum += (int32_t)a[((row + m - k / 2) * width + xn) * channels + c] *
                   weights[(int64_t)(m * k + n) * channels + c];
        }
    out[i] = hpcm_code(hpcm_requantise(sum, scale[c], bias[c]), (float)limit);
}

// One thread per row.
HPCM_KERNEL(hpcm_norm, int64_t rows, int channels, const int16_t* a, const float* gamma, const float* beta, int limit,
            int16_t* out) {
    const int64_t i = element();
    if (i >= rows) return;
    const int16_t* x = a + i * channels;
    int64_t sum = 0, squares = 0;
    for (int c = 0; c < channels; ++c) {
        sum += x[c];
        squares += (int32_t)x[c] * x[c];
    }
    const float factor = hpcm_norm_factor(sum, squares, channels);
    for (int c = 0; c < channels; ++c)
        out[i * channels + c] =
            hpcm_norm(x[c], (float)channels, (float)sum, factor, gamma[c], beta[c], (float)limit);
}

HPCM_KERNEL(hpcm_lrelu, int64_t n, const int16_t* a, int16_t* out) {
    const int64_t i = element();
    if (i >= n) return;
    out[i] = hpcm_lrelu(a[i]);
}

HPCM_KERNEL(hpcm_relu_squared, int64_t n, const int16_t* a, float factor, int limit, int16_t* out) {
    const int64_t i = element();
    if (i >= n) return;
    out[i] = hpcm_relu_squared(a[i], factor, (float)limit);
}

HPCM_KERNEL(hpcm_gate, int64_t n, const int16_t* r, const int16_t* a, const float* table, int16_t* out) {
    const int64_t i = element();
    if (i >= n) return;
    out[i] = hpcm_gate(table[HPCM_TABLE_MAX + r[i]], a[i]);
}

HPCM_KERNEL(hpcm_add, int64_t n, const int16_t* a, const int16_t* b, int limit, int16_t* out) {
    const int64_t i = element();
    if (i >= n) return;
    out[i] = hpcm_limit_code((int32_t)a[i] + b[i], limit);
}

HPCM_KERNEL(hpcm_latent_code, int64_t n, const int32_t* y_hat, int limit, int16_t* out) {
    const int64_t i = element();
    if (i >= n) return;
    out[i] = hpcm_limit_code(y_hat[i], limit);
}

HPCM_KERNEL(hpcm_narrow, int64_t rows, int channels, const int32_t* a, const float* factors, int limit, int16_t* out) {
    const int64_t i = element();
    if (i >= rows * channels) return;
    out[i] = hpcm_narrow(a[i], factors[i % channels], (float)limit);
}

HPCM_KERNEL(hpcm_pixels, int64_t n, const int32_t* a, float factor, float half, int top, void* out) {
    const int64_t i = element();
    if (i >= n) return;
    const int32_t level = hpcm_pixel(a[i], factor, half, (float)top);
    if (top < 256)
        ((uint8_t*)out)[i] = (uint8_t)level;
    else
        ((uint16_t*)out)[i] = (uint16_t)level;
}

HPCM_KERNEL(hpcm_channel_scale, int64_t rows, int channels, const int16_t* a, const float* scale, int limit,
            int16_t* out) {
    const int64_t i = element();
    if (i >= rows * channels) return;
    out[i] = hpcm_code((float)a[i] * scale[i % channels], (float)limit);
}

HPCM_KERNEL(hpcm_blend, int64_t rows, int channels, const int16_t* r, const int16_t* a, const int16_t* b,
            const float* table, int16_t* out) {
    const int64_t i = element();
    if (i >= rows * channels) return;
    out[i] = hpcm_blend(table[HPCM_TABLE_MAX + r[i]], a[i % channels], b[i]);
}

// One thread per channel.
HPCM_KERNEL(hpcm_sum_rows, int64_t rows, int channels, const int16_t* a, int64_t* sums) {
    const int64_t i = element();
    if (i >= channels) return;
    int64_t sum = 0;
    for (int64_t row = 0; row < rows; ++row) sum += a[row * channels + i];
    sums[i] = sum;
}

// --- Bi-WKV4 (kernels.cpp: hpcm_wkv) in three launches; ends: (batch, blocks, channels, 4) --------------------------------

// One block of tokens at one channel.
struct Block {
    int64_t first, channels;  // the block's first token, counted through all samples; channels of a token
    int count, c;
    const void *k, *v;
    const double* table;

    __device__ Block(int64_t tokens, int64_t blocks, int channels, int length, const void* k, const void* v,
                     const double* table, int64_t i)
        : channels(channels), c((int)(i % channels)), k(k), v(v), table(table) {
        const int64_t block = i / channels, start = block % blocks * length;
        first = block / blocks * tokens + start;
        count = (int)(tokens - start < length ? tokens - start : length);
    }

    __device__ int64_t at(int j) const { return (first + j) * channels + c; }

    __device__ void operator()(int j, double& e, double& ev) const {
        e = table ? table[HPCM_TABLE_MAX + ((const int16_t*)k)[at(j)]] : ((const double*)k)[at(j)];
        ev = e * (table ? (double)((const int16_t*)v)[at(j)] : ((const double*)v)[at(j)]);
    }
};

struct Powers {
    const double* at;
    int64_t channels;
    __device__ double operator()(int i) const { return at[i * channels]; }
};

struct Result {
    const Block& block;
    double factor, limit;
    void* out;
    __device__ void operator()(int j, double n, double d) const {
        if (block.table)
            ((int16_t*)out)[block.at(j)] = hpcm_code(n / d * factor, limit);
        else
            ((double*)out)[block.at(j)] = n / d;
    }
};

HPCM_KERNEL(hpcm_wkv_ends, int64_t batch, int64_t tokens, int64_t blocks, int channels, int length, const void* k,
            const void* v, const double* table, const double* powers, double* ends) {
    const int64_t i = element();
    if (i >= batch * blocks * channels) return;
    const Block block(tokens, blocks, channels, length, k, v, table, i);
    const double w = powers[channels + block.c];
    double n[2] = {}, d[2] = {}, e, ev;
    for (int j = 0; j < block.count; ++j) {
        block(j, e, ev);
        hpcm_wkv_step(n[0], d[0], w, e, ev);
        block(block.count - 1 - j, e, ev);
        hpcm_wkv_step(n[1], d[1], w, e, ev);
    }
    double* at = ends + i * 4;
    at[0] = n[0];
    at[1] = d[0];
    at[2] = n[1];
    at[3] = d[1];
}

// What the blocks before (numbers 0 and 1 of `ends`) and behind (2 and 3) carry into each; one thread per sum.
HPCM_KERNEL(hpcm_wkv_carries, int64_t batch, int64_t blocks, int channels, int length, const double* powers,
            double* ends) {
    const int64_t i = element();
    if (i >= batch * channels * 4) return;
    const int which = (int)(i % 4), c = (int)(i / 4 % channels);
    const int64_t sample = i / 4 / channels;
    const double w = powers[(int64_t)length * channels + c];
    double carry = 0;
    for (int64_t n = 0; n < blocks; ++n) {
        const int64_t block = which < 2 ? n : blocks - 1 - n;
        double* at = ends + ((sample * blocks + block) * channels + c) * 4 + which;
        const double end = *at;
        *at = carry;
        carry = carry * w;
        carry = carry + end;
    }
}

HPCM_KERNEL(hpcm_wkv_out, int64_t batch, int64_t tokens, int64_t blocks, int channels, int length, const void* k,
            const void* v, const double* table, const double* powers, const double* own, double factor, int limit,
            const double* ends, void* out) {
    const int64_t i = element();
    if (i >= batch * blocks * channels) return;
    const Block block(tokens, blocks, channels, length, k, v, table, i);
    const double* carry = ends + i * 4;
    double left_n = carry[0], left_d = carry[1];
    hpcm_wkv_block(block.count, length, block, Powers{powers + block.c, channels}, own[block.c], left_n, left_d, carry[2],
                   carry[3], Result{block, factor, (double)limit, out});
}

// --- Bi-WKV4 for training (kernels.cpp: hpcm_float_biwkv4) ----------------------------------------------------------------
//
// One thread per sample and channel. scratch: (3, tokens, batch * channels), for the gradients (5, ...).

template <class In, class Out>
struct Sequence {
    const In *k_at, *v_at;
    const Out* g_at;
    Out* y_at;
    In *gk_at, *gv_at;
    int64_t stride, kept_stride, kept_plane;
    double* scratch;

    __device__ double k(int64_t t) const { return hpcm_of(k_at[t * stride]); }
    __device__ double v(int64_t t) const { return hpcm_of(v_at[t * stride]); }
    __device__ double g(int64_t t) const { return hpcm_of(g_at[t * stride]); }
    __device__ void y(int64_t t, double x) const { hpcm_put(x, y_at + t * stride); }
    __device__ void gk(int64_t t, double x) const { hpcm_put(x, gk_at + t * stride); }
    __device__ void gv(int64_t t, double x) const { hpcm_put(x, gv_at + t * stride); }
    __device__ double& kept(int i, int64_t t) const { return scratch[i * kept_plane + t * kept_stride]; }
};

template <class In, class Out>
__device__ static void run_sequence(const Biwkv4& p, int64_t i) {
    const int c = (int)(i % p.channels);
    const int64_t sample = i / p.channels, at = sample * p.tokens * p.channels + c;
    const double w = hpcm_decay_factor(p.decay[c], p.tokens), own = hpcm_own_factor(p.boost[c], p.tokens);
    Sequence<In, Out> io = {};
    io.k_at = (const In*)p.k + at;
    io.v_at = (const In*)p.v + at;
    io.stride = p.channels;
    io.kept_stride = p.batch * p.channels;
    io.kept_plane = io.kept_stride * p.tokens;
    io.scratch = p.scratch + i;
    if (!p.g) {
        io.y_at = (Out*)p.y + at;
        hpcm_biwkv4<uint64_t>(p.tokens, w, own, io);
        return;
    }
    io.g_at = (const Out*)p.g + at;
    io.gk_at = (In*)p.gk + at;
    io.gv_at = (In*)p.gv + at;
    double* sums = p.sums + 2 * sample * p.channels + c;
    hpcm_biwkv4_gradients<uint64_t>(p.tokens, w, own, io, sums[0], sums[p.channels]);
}

HPCM_KERNEL(hpcm_float_biwkv4, Biwkv4 p) {
    const int64_t i = element();
    if (i >= p.batch * p.channels) return;
    if (p.real == FLOAT32)
        run_sequence<float, float>(p, i);
    else if (p.real == BFLOAT16)
        run_sequence<HpcmBf16, float>(p, i);
    else
        run_sequence<double, double>(p, i);
}

// One thread per channel.
HPCM_KERNEL(hpcm_float_biwkv4_sum, Biwkv4 p, double* g_decay, double* g_boost) {
    const int64_t i = element();
    if (i >= p.channels) return;
    hpcm_biwkv4_sum(p.batch, p.channels, p.tokens, (int)i, p.sums, p.decay, p.boost, g_decay, g_boost);
}
