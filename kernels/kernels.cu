// The kernels for NVIDIA GPUs: core.h's arithmetic, one thread an element (Bi-WKV4: one a block of tokens and channel).
//
//     nvcc -std=c++17 -O2 -fmad=false --extended-lambda -shared -Xcompiler -fPIC kernels.cu
//
// The interface is that of kernels.cpp with device pointers, and at its end the stream to launch on, which belongs to
// the current device; nothing is allocated or waited for, and each function returns the error of its launches (0: none).
// There is no atomic and no shared memory, so results do not depend on how threads are scheduled. Elsewhere than in nvcc
// the file compiles behind tests/cuda_shim.h, which runs the threads one after the other.

#include <stdint.h>

#include "core.h"

#ifndef HPCM_SOURCE
#define HPCM_SOURCE "unknown"
#endif

#define HPCM_API extern "C" __attribute__((visibility("default")))

namespace {

enum { PANEL = 16, MAX_CHUNKS = 16, THREADS = 256 };
enum Form { CODES = 0, WIDE = 1 };

template <class F>
__global__ void each(int64_t n, F f) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i < n) f(i);
}

// f(i) for i = 0..n-1.
template <class F>
int launch(int64_t n, const F& f, void* stream) {
    if (n <= 0) return 0;
    const int64_t blocks = (n + THREADS - 1) / THREADS;
    if (blocks > 0x7fffffff) return (int)cudaErrorInvalidConfiguration;
#ifdef __CUDACC__
    each<<<(unsigned)blocks, THREADS, 0, (cudaStream_t)stream>>>(n, f);
#else
    (void)stream;
    shim_launch((unsigned)blocks, THREADS, [&] { each(n, f); });
#endif
    return (int)cudaGetLastError();
}

struct Chunk {
    const int16_t* a;  // null: `scale` is the same product for every row, scaled already
    int64_t stride, inputs;
    const int16_t* weights;  // packed as kernels.cpp says
    const void* scale;
};

struct Linear {
    int outputs, n_chunks, form;
    Chunk chunks[MAX_CHUNKS];
    const void* bias;
    const float *low, *high;
    void* out;
};

__device__ int32_t sum_of(const Chunk& k, int64_t row, int o) {
    const int16_t* a = k.a + row * k.stride;
    const int16_t* w = k.weights + (int64_t)(o / PANEL) * PANEL * k.inputs + o % PANEL * 2;
    int32_t sum = 0;
    for (int64_t i = 0; i < k.inputs; ++i) sum += (int32_t)a[i] * w[i / 2 * PANEL * 2 + i % 2];
    return sum;
}

template <class T>
__device__ void finish(const Linear& l, int64_t at, int o, T x) {
    if (l.form == WIDE)
        ((int32_t*)l.out)[at] = hpcm_round(hpcm_limit(x, (T)l.low[o], (T)l.high[o]));
    else
        ((int16_t*)l.out)[at] = hpcm_code(x);
}

struct Wkv {
    const int16_t *k, *v;
    const double *table, *weights, *values, *powers, *own;
    double factor;
    double* ends;
    int16_t* codes;
    double* out;
    int64_t tokens, blocks;
    int channels, length;
};

// The tokens of a block at channel c; returns how many there are.
__device__ int take_tokens(const Wkv& p, int64_t block, int c, double* e, double* ev) {
    const int64_t start = block % p.blocks * p.length, first = block / p.blocks * p.tokens + start;
    const int count = (int)(p.tokens - start < p.length ? p.tokens - start : p.length);
    for (int j = 0; j < count; ++j) {
        const int64_t i = (first + j) * p.channels + c;
        e[j] = p.table ? p.table[HPCM_CODE_MAX + p.k[i]] : p.weights[i];
        ev[j] = e[j] * (p.table ? (double)p.v[i] : p.values[i]);
    }
    return count;
}

}  // namespace

HPCM_API const char* hpcm_source() { return HPCM_SOURCE; }

// chunks: on the host; their contents are addresses on the device.
HPCM_API int hpcm_linear(int64_t rows, int outputs, int n_chunks, const int64_t* chunks, const void* bias, int form,
                         const float* low, const float* high, void* out, void* stream) {
    if (n_chunks < 1 || n_chunks > MAX_CHUNKS) return (int)cudaErrorInvalidValue;
    Linear l = {};
    l.outputs = outputs;
    l.n_chunks = n_chunks;
    l.form = form;
    l.bias = bias;
    l.low = low;
    l.high = high;
    l.out = out;
    for (int c = 0; c < n_chunks; ++c) {
        const int64_t* k = chunks + 5 * c;
        l.chunks[c] = {(const int16_t*)k[0], k[1], k[2], (const int16_t*)k[3], (const void*)k[4]};
    }
    return launch(
        rows * outputs,
        [=] __device__(int64_t i) {
            const int64_t row = i / l.outputs;
            const int o = (int)(i % l.outputs);
            if (l.n_chunks == 1) {
                finish(l, i, o,
                       hpcm_requantise(sum_of(l.chunks[0], row, o), ((const float*)l.chunks[0].scale)[o],
                                       ((const float*)l.bias)[o]));
                return;
            }
            double total = 0;
            for (int c = 0; c < l.n_chunks; ++c) {
                const double scale = ((const double*)l.chunks[c].scale)[o];
                const double term = l.chunks[c].a ? (double)sum_of(l.chunks[c], row, o) * scale : scale;
                total = c == 0 ? term : total + term;
            }
            finish(l, i, o, total + ((const double*)l.bias)[o]);
        },
        stream);
}

HPCM_API int hpcm_depthwise(int64_t batch, int64_t height, int64_t width, int channels, int k, const int16_t* a,
                            const int16_t* weights, const float* scale, const float* bias, int16_t* out,
                            void* stream) {
    return launch(
        batch * height * width * channels,
        [=] __device__(int64_t at) {
            const int c = (int)(at % channels);
            const int64_t column = at / channels % width, row = at / channels / width, y = row % height;
            int32_t sum = 0;
            for (int i = 0; i < k; ++i)
                for (int j = 0; j < k; ++j) {
                    const int64_t yi = y + i - k / 2, xj = column + j - k / 2;
                    if (yi < 0 || yi >= height || xj < 0 || xj >= width) continue;
                    sum += (int32_t)a[((row + i - k / 2) * width + xj) * channels + c] *
                           weights[(int64_t)(i * k + j) * channels + c];
                }
            out[at] = hpcm_code(hpcm_requantise(sum, scale[c], bias[c]));
        },
        stream);
}

// One thread a row.
HPCM_API int hpcm_norm(int64_t rows, int channels, const int16_t* a, const float* gamma, const float* beta,
                       int16_t* out, void* stream) {
    return launch(
        rows,
        [=] __device__(int64_t row) {
            const int16_t* x = a + row * channels;
            int64_t sum = 0, squares = 0;
            for (int i = 0; i < channels; ++i) {
                sum += x[i];
                squares += (int32_t)x[i] * x[i];
            }
            const float factor = hpcm_norm_factor(sum, squares, channels);
            for (int i = 0; i < channels; ++i)
                out[row * channels + i] = hpcm_norm(x[i], (float)channels, (float)sum, factor, gamma[i], beta[i]);
        },
        stream);
}

HPCM_API int hpcm_lrelu(int64_t n, const int16_t* a, int16_t* out, void* stream) {
    return launch(n, [=] __device__(int64_t i) { out[i] = hpcm_lrelu(a[i]); }, stream);
}

HPCM_API int hpcm_relu_squared(int64_t n, const int16_t* a, float factor, int16_t* out, void* stream) {
    return launch(n, [=] __device__(int64_t i) { out[i] = hpcm_relu_squared(a[i], factor); }, stream);
}

HPCM_API int hpcm_gate(int64_t n, const int16_t* r, const int16_t* a, const float* table, int16_t* out, void* stream) {
    return launch(n, [=] __device__(int64_t i) { out[i] = hpcm_gate(table[HPCM_CODE_MAX + r[i]], a[i]); }, stream);
}

HPCM_API int hpcm_add(int64_t n, const int16_t* a, const int16_t* b, int16_t* out, void* stream) {
    return launch(n, [=] __device__(int64_t i) { out[i] = (int16_t)hpcm_limit_code((int32_t)a[i] + b[i]); }, stream);
}

HPCM_API int hpcm_latent_code(int64_t n, const int32_t* y_hat, int16_t* out, void* stream) {
    return launch(n, [=] __device__(int64_t i) { out[i] = hpcm_latent_code(y_hat[i]); }, stream);
}

HPCM_API int hpcm_channel_scale(int64_t rows, int channels, const int16_t* a, const float* scale, int16_t* out,
                                void* stream) {
    return launch(
        rows * channels, [=] __device__(int64_t i) { out[i] = hpcm_code((float)a[i] * scale[i % channels]); }, stream);
}

HPCM_API int hpcm_blend(int64_t rows, int channels, const int16_t* r, const int16_t* a, const int16_t* b,
                        const float* table, int16_t* out, void* stream) {
    return launch(
        rows * channels,
        [=] __device__(int64_t i) { out[i] = hpcm_blend(table[HPCM_CODE_MAX + r[i]], a[i % channels], b[i]); },
        stream);
}

// One thread a channel.
HPCM_API int hpcm_sum_rows(int64_t rows, int channels, const int16_t* a, int64_t* sums, void* stream) {
    return launch(
        channels,
        [=] __device__(int64_t c) {
            int64_t sum = 0;
            for (int64_t row = 0; row < rows; ++row) sum += a[row * channels + c];
            sums[c] = sum;
        },
        stream);
}

// How many doubles `ends` of hpcm_wkv holds.
HPCM_API int64_t hpcm_wkv_scratch(int64_t batch, int64_t tokens, int channels, int length) {
    return batch * ((tokens + length - 1) / length) * channels * 4;
}

// As kernels.cpp says.
HPCM_API int hpcm_wkv(int64_t batch, int64_t tokens, int channels, int length, const void* k, const void* v,
                      const double* table, const double* powers, const double* own, double factor, double* ends,
                      void* out, void* stream) {
    if (length < 1 || length > HPCM_BLOCK) return (int)cudaErrorInvalidValue;
    Wkv p = {};
    if (table) {
        p.k = (const int16_t*)k;
        p.v = (const int16_t*)v;
        p.codes = (int16_t*)out;
    } else {
        p.weights = (const double*)k;
        p.values = (const double*)v;
        p.out = (double*)out;
    }
    p.table = table;
    p.powers = powers;
    p.own = own;
    p.factor = factor;
    p.ends = ends;
    p.tokens = tokens;
    p.channels = channels;
    p.length = length;
    p.blocks = (tokens + length - 1) / length;
    const int64_t items = batch * p.blocks * channels;
    int error = launch(
        items,
        [=] __device__(int64_t i) {
            const int c = (int)(i % p.channels);
            double e[HPCM_BLOCK], ev[HPCM_BLOCK];
            const int count = take_tokens(p, i / p.channels, c, e, ev);
            double* at = p.ends + i * 4;
            hpcm_wkv_ends(e, ev, count, p.powers[p.channels + c], at[0], at[1], at[2], at[3]);
        },
        stream);
    if (error) return error;
    // What the blocks before (left, 0 and 1) and behind (right, 2 and 3) carry into each: one thread a sum.
    error = launch(
        batch * channels * 4,
        [=] __device__(int64_t i) {
            const int which = (int)(i % 4), c = (int)(i / 4 % p.channels);
            const int64_t sample = i / 4 / p.channels;
            const double w = p.powers[(int64_t)p.length * p.channels + c];
            double carry = 0;
            for (int64_t n = 0; n < p.blocks; ++n) {
                const int64_t block = which < 2 ? n : p.blocks - 1 - n;
                double* at = p.ends + ((sample * p.blocks + block) * p.channels + c) * 4 + which;
                const double end = *at;
                *at = carry;
                carry = carry * w;
                carry = carry + end;
            }
        },
        stream);
    if (error) return error;
    return launch(
        items,
        [=] __device__(int64_t i) {
            const int c = (int)(i % p.channels);
            const int64_t block = i / p.channels;
            double e[HPCM_BLOCK], ev[HPCM_BLOCK];
            const int count = take_tokens(p, block, c, e, ev);
            const double* carry = p.ends + i * 4;
            const double* powers = p.powers + c;
            const int channels = p.channels;
            hpcm_wkv_sums(
                e, ev, count, p.length, [=](int j) { return powers[(int64_t)j * channels]; }, p.own[c], carry[0],
                carry[1], carry[2], carry[3]);
            const int64_t first = block / p.blocks * p.tokens + block % p.blocks * p.length;
            for (int j = 0; j < count; ++j) {
                const double y = ev[j] / e[j];
                const int64_t at = (first + j) * p.channels + c;
                if (p.table)
                    p.codes[at] = hpcm_code(y * p.factor);
                else
                    p.out[at] = y;
            }
        },
        stream);
}
