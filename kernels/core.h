// The arithmetic of the kernels for one element or one channel, for g++ and nvcc alike.
//
// Every function does the IEEE operations of hpcmcodec/exact/reference.py (class ExactOps) and
// hpcmcodec/exact/biwkv.py in the same order, with one rounding each, so that numpy, C++ and CUDA give the same bits.
// Compile with contraction off (-ffp-contract=off, -fmad=false) and without fast-math.
//
// Activations are codes: integers within +-8191 (what indexes a table: +-2047), held in int16. Sums of products of
// codes and weights stay below 2^31, each partial sum included. `limit` is what codes are limited to. `V` is what one
// thread works on: a double on a GPU; on a CPU, a vector of doubles, one per channel. Nothing here calls a library or
// has state. Everything is static, because the unit of every instruction set includes this file, and the linker must
// not share a function between them (functions.h).

#include "abi.h"

#ifdef __CUDACC__
#define HPCM_FN __device__ static __forceinline__
#else
#define HPCM_FN static inline __attribute__((always_inline))
#endif

HPCM_FN float hpcm_limit(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

HPCM_FN double hpcm_limit(double x, double low, double high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

// x rounded to the nearest integer, half to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits
// of the sum. Unlike rint this needs addition alone. Where x is limited, that is done before rounding; as limits are
// integers, the result is the same as in the other order.
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

HPCM_FN int16_t hpcm_code(float x, float limit) { return (int16_t)hpcm_round(hpcm_limit(x, -limit, limit)); }

HPCM_FN int16_t hpcm_code(double x, double limit) { return (int16_t)hpcm_round(hpcm_limit(x, -limit, limit)); }

HPCM_FN int16_t hpcm_limit_code(int32_t x, int32_t limit) {
    x = x < -limit ? -limit : x;
    return (int16_t)(x > limit ? limit : x);
}

// Any int32 times a factor, as a code: wide values, and y_hat.
HPCM_FN int16_t hpcm_narrow(int32_t x, float factor, float limit) { return hpcm_code((float)x * factor, limit); }

// A wide value as a level of a pixel.
HPCM_FN int32_t hpcm_pixel(int32_t x, float factor, float half, float top) {
    float level = (float)x * factor;
    level = level + half;
    return hpcm_round(hpcm_limit(level, 0.0f, top));
}

// An exact sum, scaled to the output's grid (ExactOps._linear).
HPCM_FN float hpcm_requantise(int32_t sum, float scale, float bias) {
    float x = (float)sum * scale;
    return x + bias;
}

// max(x, 0.1 x) of a code.
HPCM_FN int16_t hpcm_lrelu(int16_t x) {
    int32_t scaled = hpcm_round((float)x * 0.1f);
    return (int16_t)(x > scaled ? x : scaled);
}

HPCM_FN int16_t hpcm_relu_squared(int16_t x, float factor, float limit) {
    float positive = x > 0 ? (float)x : 0.0f;
    float square = positive * positive;
    return hpcm_code(square * factor, limit);
}

// sigmoid * a, and sigmoid * a + (1 - sigmoid) * b as sigmoid * (a - b) + b.
HPCM_FN int16_t hpcm_gate(float sigmoid, int16_t a) { return (int16_t)hpcm_round(sigmoid * (float)a); }

HPCM_FN int16_t hpcm_blend(float sigmoid, int16_t a, int16_t b) {
    float x = sigmoid * ((float)a - (float)b);
    x = x + (float)b;
    return (int16_t)hpcm_round(x);
}

// 1 / sqrt(x) for normal x > 0: a first guess from the bits, then four Newton iterations (elementary.rsqrt).
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

HPCM_FN int16_t hpcm_norm(int16_t x, float n, float sum, float factor, float gamma, float beta, float limit) {
    float out = (float)x * n;
    out = out - sum;
    out = out * factor;
    out = out * gamma;
    out = out + beta;
    return hpcm_code(out, limit);
}

// --- Bi-WKV4 (exact/biwkv.py) ---------------------------------------------------------------------------------------
//
// A block of `count` <= L tokens at one channel (or one vector of channels): e = exp(k) and ev = e * v. Where a block
// has fewer tokens than L, the missing ones count as zeros, so the powers of W are those of the full length L.

// Moves the numerator n and denominator d of all tokens before one token past that token.
template <class V>
HPCM_FN void hpcm_wkv_step(V& n, V& d, V w, V e, V ev) {
    n = n * w;
    n = n + ev;
    d = d * w;
    d = d + e;
}

// Moves n and d from the start of a block past its end: end_n and end_d are the sums of the block's own tokens.
template <class V>
HPCM_FN void hpcm_wkv_carry(V& n, V& d, V w_block, V end_n, V end_d) {
    hpcm_wkv_step(n, d, w_block, end_d, end_n);
}

// A block, its tokens forward and then backward. take(j, e, ev) gives e and ev of token j; put(j, n, d) receives its
// (left + right) + own; power(i) is W^i, i = 0..L. left_n and left_d hold the sums from all blocks to the left, and
// afterwards also this block's; right_n and right_d hold those from all blocks to the right.
template <class V, class Take, class Power, class Put>
HPCM_FN void hpcm_wkv_block(int count, int length, const Take& take, const Power& power, V own, V& left_n, V& left_d,
                            V right_n, V right_d, const Put& put) {
    V e[HPCM_BLOCK], ev[HPCM_BLOCK], total_n[HPCM_BLOCK], total_d[HPCM_BLOCK];
    const V w = power(1);
    V n = {}, d = {};
    for (int j = 0; j < count; ++j) {
        take(j, e[j], ev[j]);
        V wj = power(j), tn = left_n * wj, td = left_d * wj;
        total_n[j] = n + tn;
        total_d[j] = d + td;
        hpcm_wkv_step(n, d, w, e[j], ev[j]);
    }
    hpcm_wkv_carry(left_n, left_d, power(length), n, d);
    n = V{};
    d = V{};
    for (int j = count - 1; j >= 0; --j) {
        V wj = power(length - 1 - j), rn = right_n * wj, rd = right_d * wj, on = ev[j] * own, od = e[j] * own;
        rn = n + rn;
        rd = d + rd;
        hpcm_wkv_step(n, d, w, e[j], ev[j]);
        rn = total_n[j] + rn;
        rd = total_d[j] + rd;
        put(j, rn + on, rd + od);
    }
}

// --- Bi-WKV4 for training, differentiable (native/torch_ops.py) --------------------------------------------------------
//
// The arithmetic is float64, whatever the tensors hold: sums of thousands of terms then need no care, and one set of
// formulas serves float32, bfloat16 and the float64 of gradcheck. A call does all T tokens of one channel (or vector).

HPCM_FN double hpcm_of(float x) { return (double)x; }
HPCM_FN double hpcm_of(double x) { return x; }

struct HpcmBf16 {
    uint16_t bits;
};

HPCM_FN double hpcm_of(HpcmBf16 x) {
    union {
        uint32_t i;
        float f;
    } wide;
    wide.i = (uint32_t)x.bits << 16;
    return (double)wide.f;
}

HPCM_FN void hpcm_put(double x, double* out) { *out = x; }
HPCM_FN void hpcm_put(double x, float* out) { *out = (float)x; }

// Rounds to the nearest bfloat16, half to even; a NaN stays a NaN.
HPCM_FN void hpcm_put(double x, HpcmBf16* out) {
    union {
        float f;
        uint32_t i;
    } wide;
    wide.f = (float)x;
    const uint32_t rounded = (wide.i + 0x7FFFu + ((wide.i >> 16) & 1u)) >> 16;
    out->bits = (uint16_t)(x != x ? 0x7FC0u : rounded);
}

// e^x with x limited to +-300, relative error 1e-14; NaN stays NaN. `Bits` is V's counterpart of uint64.
template <class Bits, class V>
HPCM_FN V hpcm_exp(V x) {
    const V low = V{} - 300.0, high = V{} + 300.0;
    x = x < low ? low : x;
    x = x > high ? high : x;
    union {
        V f;
        Bits i;
    } sum, power;
    sum.f = x * 1.4426950408889634 + 6755399441055744.0;  // the nearest integer n, in the low bits
    const V n = sum.f - 6755399441055744.0;
    const V r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    const V r2 = r * r, r4 = r2 * r2;
    const V p0 = (1.0 + r) + r2 * (0.5 + r * (1.0 / 6));
    const V p1 = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
    const V p2 = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
    power.i = (sum.i + 1023) << 52;
    return (p0 + r4 * (p1 + r4 * p2)) * power.f;
}

// exp(-w) and exp(u) from decay and boost, which are clamped and have gradients only within their clamps.
HPCM_FN double hpcm_decay_factor(double decay, int64_t tokens) {
    return hpcm_exp<uint64_t>(-(hpcm_limit(decay, 0.0, (double)HPCM_EXPONENT_MAX) / (double)tokens));
}

HPCM_FN double hpcm_own_factor(double boost, int64_t tokens) {
    return hpcm_exp<uint64_t>(hpcm_limit(boost, -(double)HPCM_EXPONENT_MAX, (double)HPCM_EXPONENT_MAX) / (double)tokens);
}

HPCM_FN double hpcm_clamp_gradient(double x, double low, double high, double g, int64_t tokens) {
    return x < low || x > high ? 0.0 : g / (double)tokens;
}

// `io`: k(t) and v(t) are the inputs at token t, y(t, value) stores a result, kept(i, t) is scratch memory, V&, i < 3.
template <class Bits, class V, class Io>
HPCM_FN void hpcm_biwkv4(int64_t tokens, V w, V own, const Io& io) {
    V n = {}, d = {};
    for (int64_t t = tokens - 1; t >= 0; --t) {
        const V e = hpcm_exp<Bits>(io.k(t)), ev = e * io.v(t);
        io.kept(0, t) = e;
        io.kept(1, t) = n + ev * own;
        io.kept(2, t) = d + e * own;
        n = n * w + ev;
        d = d * w + e;
    }
    n = V{};
    d = V{};
    for (int64_t t = 0; t < tokens; ++t) {
        const V e = io.kept(0, t);
        io.y(t, (n + io.kept(1, t)) / (d + io.kept(2, t)));
        n = n * w + e * io.v(t);
        d = d * w + e;
    }
}

// The gradients (DESIGN: with a_t = g_t / D_t and b_t = a_t y_t they are sums of the same kind over a and b). `io` also
// has g(t), the gradient by y, and stores gk(t, value) and gv(t, value); kept(i, t) has i < 5. gw and gu receive the
// gradients by w and u.
//
// L marks a sum over the tokens before t, R one over those behind it. P and Q are the sums of e v and of e, A and B
// those of a and of b; X_t = a_t PL_t - b_t QL_t; Z_t = e_t (v_t AL_t - BL_t); O_t is the own term. gw weighs the term
// of the tokens i < t with its distance less one, t - 1 - i: it counts t - 1 times in X_t and i times less in the sums
// of a and b that its partner i sees. The sums behind t follow from N_t = y_t D_t and from gk_t, which hold both sides.
// So no recurrence for the distances is needed: gw = -sum_t (2 t - 1) (X_t + Z_t) + 2 t O_t - t gk_t.
template <class Bits, class V, class Io>
HPCM_FN void hpcm_biwkv4_gradients(int64_t tokens, V w, V own, const Io& io, V& gw, V& gu) {
    V p = {}, q = {};
    for (int64_t t = tokens - 1; t >= 0; --t) {
        const V e = hpcm_exp<Bits>(io.k(t)), ev = e * io.v(t);
        io.kept(0, t) = e;
        io.kept(1, t) = p + ev * own;
        io.kept(2, t) = q + e * own;
        p = p * w + ev;
        q = q * w + e;
    }
    p = V{};
    q = V{};
    V a_sum = {}, b_sum = {}, by_w = {}, by_u = {};
    for (int64_t t = 0; t < tokens; ++t) {
        const V e = io.kept(0, t), v = io.v(t), ev = e * v, inverse = 1.0 / (q + io.kept(2, t));
        const V a = io.g(t) * inverse, b = a * ((p + io.kept(1, t)) * inverse);
        const V a_own = a * own, b_own = b * own, o = ev * a_own - e * b_own;
        const V x = a * p - b * q, z = ev * a_sum - e * b_sum;
        by_w = by_w + ((x + z) * (double)(2 * t - 1) + o * (double)(2 * t));
        by_u = by_u + o;
        io.kept(1, t) = a_sum + a_own;
        io.kept(2, t) = b_sum + b_own;
        io.kept(3, t) = a;
        io.kept(4, t) = b;
        p = p * w + ev;
        q = q * w + e;
        a_sum = a_sum * w + a;
        b_sum = b_sum * w + b;
    }
    a_sum = V{};
    b_sum = V{};
    for (int64_t t = tokens - 1; t >= 0; --t) {
        const V e = io.kept(0, t), gv = e * (a_sum + io.kept(1, t));
        const V gk = gv * io.v(t) - e * (b_sum + io.kept(2, t));
        io.gv(t, gv);
        io.gk(t, gk);
        by_w = by_w - gk * (double)t;
        a_sum = a_sum * w + io.kept(3, t);
        b_sum = b_sum * w + io.kept(4, t);
    }
    gw = V{} - by_w;
    gu = by_u;
}

// The gradients by decay and boost at channel c, from the sums, in order, of all samples' gradients by w and u.
HPCM_FN void hpcm_biwkv4_sum(int64_t batch, int channels, int64_t tokens, int c, const double* sums,
                             const double* decay, const double* boost, double* g_decay, double* g_boost) {
    const double limit = HPCM_EXPONENT_MAX;
    double gw = 0, gu = 0;
    for (int64_t b = 0; b < batch; ++b) {
        gw = gw + sums[2 * b * channels + c];
        gu = gu + sums[(2 * b + 1) * channels + c];
    }
    g_decay[c] = hpcm_clamp_gradient(decay[c], 0.0, limit, gw, tokens);
    g_boost[c] = hpcm_clamp_gradient(boost[c], -limit, limit, gu, tokens);
}
