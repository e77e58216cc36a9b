// The arithmetic of the kernels: what one channel or one element goes through, for g++ and nvcc alike.
//
// Every function does the IEEE operations of hpcmcodec/numerics.py (class ExactOps) and hpcmcodec/ops/biwkv.py in the
// same order, one rounding each, so that numpy, C++ and CUDA give the same bits. Compile with contraction off
// (-ffp-contract=off, -fmad=false) and without fast-math.
//
// Activations are codes: integers within +-2047, held in int16. Sums of products of codes and weights stay below 2^24
// (int32 holds them, float32 represents them). `V` is what one thread works on: a double on a GPU, a vector of doubles,
// one channel each, on a CPU. Nothing here calls a library or has state; everything is static, since a copy for a newer
// instruction set that the linker chose for all would end older processors.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define HPCM_FN __host__ __device__ static __forceinline__
#else
#define HPCM_FN static inline __attribute__((always_inline))
#endif

enum { HPCM_CODE_MAX = 2047, HPCM_BLOCK = 64 };

HPCM_FN float hpcm_limit(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

HPCM_FN double hpcm_limit(double x, double low, double high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

// To the nearest integer, half to even, for |x| <= 2^21: adding 1.5 * 2^23 leaves the integer in the low bits of the
// sum. Unlike rint it needs no instruction beyond addition. Limits are integers, so limiting first changes nothing.
HPCM_FN int32_t hpcm_round(float x) {
    union {
        float f;
        int32_t i;
    } sum;
    sum.f = x + 12582912.0f;
    return sum.i - 0x4B400000;
}

HPCM_FN int32_t hpcm_round(double x) {
    union {
        double f;
        int64_t i;
    } sum;
    sum.f = x + 6755399441055744.0;
    return (int32_t)sum.i;
}

HPCM_FN int16_t hpcm_code(float x) {
    return (int16_t)hpcm_round(hpcm_limit(x, -(float)HPCM_CODE_MAX, (float)HPCM_CODE_MAX));
}

HPCM_FN int16_t hpcm_code(double x) {
    return (int16_t)hpcm_round(hpcm_limit(x, -(double)HPCM_CODE_MAX, (double)HPCM_CODE_MAX));
}

HPCM_FN int32_t hpcm_limit_code(int32_t x) {
    x = x < -HPCM_CODE_MAX ? -HPCM_CODE_MAX : x;
    return x > HPCM_CODE_MAX ? HPCM_CODE_MAX : x;
}

// An exact sum on the output's grid: one chunk of inputs in float32, several in float64 (ExactOps._linear).
HPCM_FN float hpcm_requantise(int32_t sum, float scale, float bias) {
    float x = (float)sum * scale;
    return x + bias;
}

// max(x, 0.1 x) on the code.
HPCM_FN int16_t hpcm_lrelu(int16_t x) {
    int32_t scaled = hpcm_round((float)x * 0.1f);
    return (int16_t)(x > scaled ? x : scaled);
}

HPCM_FN int16_t hpcm_relu_squared(int16_t x, float factor) {
    float positive = x > 0 ? (float)x : 0.0f;
    float square = positive * positive;
    return hpcm_code(square * factor);
}

// sigmoid * a, and sigmoid * a + (1 - sigmoid) * b as sigmoid * (a - b) + b.
HPCM_FN int16_t hpcm_gate(float sigmoid, int16_t a) { return (int16_t)hpcm_round(sigmoid * (float)a); }

HPCM_FN int16_t hpcm_blend(float sigmoid, int16_t a, int16_t b) {
    float x = sigmoid * ((float)a - (float)b);
    x = x + (float)b;
    return (int16_t)hpcm_round(x);
}

// What the context sees of y_hat in sixteenths: eighths, floored after adding one.
HPCM_FN int16_t hpcm_latent_code(int32_t y_hat) { return (int16_t)hpcm_limit_code((y_hat + 1) >> 1); }

// 1 / sqrt(x) for normal x > 0: first guess from the bits, four Newton steps (numerics.rsqrt).
HPCM_FN double hpcm_rsqrt(double x) {
    union {
        double f;
        int64_t i;
    } guess;
    guess.f = x;
    guess.i = 6910469410427058090LL - (guess.i >> 1);
    double r = guess.f, half = x * 0.5;
    for (int step = 0; step < 4; ++step) {
        double t = (half * r) * r;
        t = 1.5 - t;
        r = r * t;
    }
    return r;
}

// The factor that LayerNorm multiplies with, from the integer sums of n codes and of their squares.
HPCM_FN float hpcm_norm_factor(int64_t sum, int64_t squares, int64_t n) {
    double s1 = (double)sum, s2 = (double)squares;
    double variance = s2 * (double)n - s1 * s1;
    return (float)hpcm_rsqrt(variance + (double)(n * n));
}

HPCM_FN int16_t hpcm_norm(int16_t x, float n, float sum, float factor, float gamma, float beta) {
    float out = (float)x * n;
    out = out - sum;
    out = out * factor;
    out = out * gamma;
    out = out + beta;
    return hpcm_code(out);
}

// --- Bi-WKV4 (ops/biwkv.py) ---------------------------------------------------------------------------------------
//
// A block of `count` <= L tokens at one channel (or one vector of channels): e = exp(k) and ev = e * v. The block's
// length L counts for the powers of W, the last block's missing tokens are zeros.

// What a block alone hands to the blocks after it (left) and before it (right): numerators n and denominators d.
template <class V>
HPCM_FN void hpcm_wkv_ends(const V* e, const V* ev, int count, V w, V& left_n, V& left_d, V& right_n, V& right_d) {
    V ln = {}, ld = {}, rn = {}, rd = {};
    for (int j = 0; j < count; ++j) {
        int r = count - 1 - j;
        ln = ln * w;
        ln = ln + ev[j];
        ld = ld * w;
        ld = ld + e[j];
        rn = rn * w;
        rn = rn + ev[r];
        rd = rd * w;
        rd = rd + e[r];
    }
    left_n = ln;
    left_d = ld;
    right_n = rn;
    right_d = rd;
}

// (left + right) + own for each token, in place of e and ev, from what the neighbouring blocks carry in.
// `power(i)` is W^i, i = 0..L.
template <class V, class Power>
HPCM_FN void hpcm_wkv_sums(V* e, V* ev, int count, int length, const Power& power, V own, V left_n, V left_d, V right_n,
                           V right_d) {
    V total_n[HPCM_BLOCK], total_d[HPCM_BLOCK];
    const V w = power(1);
    V n = {}, d = {};
    for (int j = 0; j < count; ++j) {
        V wj = power(j), tn = left_n * wj, td = left_d * wj;
        total_n[j] = n + tn;
        total_d[j] = d + td;
        n = n * w;
        n = n + ev[j];
        d = d * w;
        d = d + e[j];
    }
    n = V{};
    d = V{};
    for (int j = count - 1; j >= 0; --j) {
        V wj = power(length - 1 - j), rn = right_n * wj, rd = right_d * wj, on = ev[j] * own, od = e[j] * own;
        rn = n + rn;
        rd = d + rd;
        n = n * w;
        n = n + ev[j];
        d = d * w;
        d = d + e[j];
        rn = total_n[j] + rn;
        rd = total_d[j] + rd;
        ev[j] = rn + on;
        e[j] = rd + od;
    }
}
