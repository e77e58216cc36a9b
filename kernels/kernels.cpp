// The kernels for processors. This file chooses between the copies of cpu.h (functions.h) when the library is first
// used, has a pool of threads, and defines the plain C interface that hpcmcodec/native/compiled.py calls through
// ctypes.
//
//     g++ -std=c++17 -O2 -shared -fPIC -pthread -ffp-contract=off *.cpp      (hpcmcodec/native/build.py)
//
// Arrays are contiguous, with channels last. Only the entropy coder checks its arguments here; compiled.py checks all
// others.
// Whatever the instruction set and the number of threads, results have the same bits, those of the numpy reference.
//
// HPCM_PORTABLE leaves out the code written for x86-64, so that the code for other processors can be tested on x86-64.

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "functions.h"

#define HPCM_API extern "C" __attribute__((visibility("default")))

namespace {

using namespace hpcm;

#include "rans.h"

struct Variant {
    const char* name;
    const Functions* functions;
    bool (*supported)();
};

const Variant variants[] = {
#ifdef HPCM_X86
    {"avx512", &avx512_functions,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
     }},
    {"avx2", &avx2_functions,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                __builtin_cpu_supports("bmi2");
     }},
    {"sse2", &sse2_functions, [] { return true; }},
#else
    {"plain", &plain_functions, [] { return true; }},
#endif
};
enum { VARIANTS = sizeof variants / sizeof *variants };

std::atomic<const Variant*> chosen{nullptr};

const Functions& use() {
    const Variant* v = chosen.load(std::memory_order_acquire);
    if (!v) {
        for (v = variants; !v->supported(); ++v) {
        }
        chosen.store(v, std::memory_order_release);
    }
    return *v->functions;
}

#include "pool.h"

// How many elements of simple work, or multiply-adds, are worth waking a thread for: about 30 microseconds of work.
const int64_t ELEMENTS = 1 << 16, PRODUCTS = 1 << 21;

int64_t rows_of(int64_t total, int64_t each) { return total / (each > 0 ? each : 1) + 1; }

// Returns 0, or 1 where memory could not be allocated.
int run_sequences(int64_t elements, const Biwkv4& p) {
    const Functions& f = use();
    const int64_t vectors = (p.channels + f.doubles - 1) / f.doubles;
    int failed = 0;
    parallel(p.batch * vectors, rows_of(elements, p.tokens * f.doubles),
             [&](int64_t a, int64_t b) { f.biwkv4[p.real](a, b, p, &failed); });
    return failed;
}

}  // namespace

// --- interface -------------------------------------------------------------------------------------------------------------

// Returns how many values HPCM_ABI has, and writes them to `values` where that is not null.
HPCM_API int hpcm_abi(int64_t* values) {
    static const int64_t own[] = {HPCM_ABI};
    if (values) memcpy(values, own, sizeof own);
    return sizeof own / sizeof *own;
}

HPCM_API const char* hpcm_variant() {
    use();
    return chosen.load()->name;
}

// The names of the copies that this processor can run, best first, separated by commas.
HPCM_API const char* hpcm_variants() {
    static char names[64];
    static std::once_flag once;
    std::call_once(once, [] {
        for (const Variant& v : variants)
            if (v.supported()) {
                if (*names) strcat(names, ",");
                strcat(names, v.name);
            }
    });
    return names;
}

// Uses the copy of this name from here on, for tests and benchmarks. Returns 0, or -1 where this processor cannot run
// it.
HPCM_API int hpcm_choose(const char* name) {
    for (const Variant& v : variants)
        if (!strcmp(v.name, name) && v.supported()) {
            chosen.store(&v);
            return 0;
        }
    return -1;
}

HPCM_API void hpcm_threads(int n) { wanted_threads.store(n < 1 ? 1 : n); }

HPCM_API void hpcm_linear(const Linear* l) {
    int64_t columns = 0;
    for (int k = 0; k < l->n_inputs; ++k) columns += l->inputs[k].columns;
    const Functions& f = use();
    int64_t grain = (rows_of(PRODUCTS, columns * l->outputs) + 5) / 6 * 6;
    parallel(l->rows, grain, [&](int64_t a, int64_t b) { f.linear(a, b, *l); });
}

HPCM_API void hpcm_depthwise(int64_t batch, int64_t height, int64_t width, int channels, int k, const int16_t* a,
                             const int16_t* weights, const float* scale, const float* bias, int limit, int16_t* out) {
    const Depthwise d = {a, weights, scale, bias, out, height, width, channels, k, limit};
    const Functions& f = use();
    parallel(batch * height, rows_of(ELEMENTS, width * channels), [&](int64_t a, int64_t b) { f.depthwise(a, b, d); });
}

// A depthwise 3x3 convolution at the channels of one group at each position: out (batch, height, width, channels /
// groups). pattern: (tile, tile), the group of each lattice point; it repeats.
HPCM_API void hpcm_around(int64_t batch, int64_t height, int64_t width, int channels, int groups, int tile,
                          const int32_t* pattern, const int16_t* a, const int16_t* weights, const float* scale,
                          const float* bias, int limit, int16_t* out) {
    const Depthwise d = {a, weights, scale, bias, out, height, width, channels, 3, limit};
    const Folding folding = {groups, tile, pattern};
    const Functions& f = use();
    parallel(batch * height, rows_of(ELEMENTS, width * channels / groups),
             [&](int64_t a, int64_t b) { f.around(a, b, d, folding); });
}

// Returns 0, or 1 where memory could not be allocated.
HPCM_API int hpcm_heads(const Heads* h) {
    const Functions& f = use();
    int64_t pieces = 0;
    for (int i = 0; i < h->groups; ++i)
        pieces += (h->group[i].last - h->group[i].first + f.head_rows - 1) / f.head_rows;
    std::atomic<int> failed{0};
    parallel(pieces, 1, [&](int64_t a, int64_t b) {
        char* scratch = (char*)malloc(f.heads_scratch(*h));
        if (scratch)
            f.heads(a, b, *h, scratch);
        else
            failed = 1;
        free(scratch);
    });
    return failed;
}

// Returns 0, or 1 where memory could not be allocated.
HPCM_API int hpcm_residual(const Residual* r) {
    const Functions& f = use();
    const int64_t across = (r->width + f.band - 1) / f.band, wanted = r->last - r->first;
    if (wanted < 1) return 0;
    // Some items for each thread, of several rows: an item reads two rows more than it has.
    const int64_t share = wanted * across / (4 * wanted_threads.load());
    const int64_t rows = share < 2 ? 2 : share > 16 ? 16 : share;
    std::atomic<int> failed{0};
    parallel(r->batch * across * ((wanted + rows - 1) / rows), 1, [&](int64_t a, int64_t b) {
        int16_t* scratch = (int16_t*)calloc(f.residual_scratch(*r), sizeof(int16_t));
        if (scratch)
            f.residual(a, b, *r, rows, scratch);
        else
            failed = 1;
        free(scratch);
    });
    return failed;
}

HPCM_API void hpcm_norm(int64_t rows, int channels, const int16_t* a, const float* gamma, const float* beta, int limit,
                        int16_t* out) {
    const Norm p = {a, gamma, beta, out, channels, limit};
    const Functions& f = use();
    parallel(rows, rows_of(ELEMENTS, channels), [&](int64_t a, int64_t b) { f.norm(a, b, p); });
}

HPCM_API void hpcm_lrelu(int64_t n, const int16_t* a, int16_t* out) {
    Elements p = {};
    p.a = a;
    p.out = out;
    const Functions& f = use();
    parallel(n, ELEMENTS, [&](int64_t a, int64_t b) { f.lrelu(a, b, p); });
}

HPCM_API void hpcm_relu_squared(int64_t n, const int16_t* a, float factor, int limit, int16_t* out) {
    Elements p = {};
    p.a = a;
    p.factor = factor;
    p.limit = limit;
    p.out = out;
    const Functions& f = use();
    parallel(n, ELEMENTS, [&](int64_t a, int64_t b) { f.relu_squared(a, b, p); });
}

HPCM_API void hpcm_gate(int64_t n, const int16_t* r, const int16_t* a, const float* table, int16_t* out) {
    Elements p = {};
    p.a = a;
    p.b = r;
    p.table = table;
    p.out = out;
    const Functions& f = use();
    parallel(n, ELEMENTS, [&](int64_t a, int64_t b) { f.gate(a, b, p); });
}

HPCM_API void hpcm_add(int64_t n, const int16_t* a, const int16_t* b, int limit, int16_t* out) {
    Elements p = {};
    p.a = a;
    p.b = b;
    p.limit = limit;
    p.out = out;
    const Functions& f = use();
    parallel(n, ELEMENTS, [&](int64_t a, int64_t b) { f.add(a, b, p); });
}

HPCM_API void hpcm_latent_code(int64_t n, const int32_t* y_hat, int limit, int16_t* out) {
    Elements p = {};
    p.wide = y_hat;
    p.limit = limit;
    p.out = out;
    const Functions& f = use();
    parallel(n, ELEMENTS, [&](int64_t a, int64_t b) { f.latent_code(a, b, p); });
}

// int32 times a factor for each channel, as codes.
HPCM_API void hpcm_narrow(int64_t rows, int channels, const int32_t* a, const float* factors, int limit, int16_t* out) {
    Elements p = {};
    p.wide = a;
    p.table = factors;
    p.limit = limit;
    p.channels = channels;
    p.out = out;
    const Functions& f = use();
    parallel(rows, rows_of(ELEMENTS, channels), [&](int64_t a, int64_t b) { f.narrow(a, b, p); });
}

// a * factor + half, as levels 0 .. top: uint8 where top is below 256, otherwise uint16.
HPCM_API void hpcm_pixels(int64_t n, const int32_t* a, float factor, float half, int top, void* out) {
    const Pixels p = {a, factor, half, (float)top, out};
    const Functions& f = use();
    parallel(n, ELEMENTS, [&](int64_t a, int64_t b) { f.pixels[top > 255](a, b, p); });
}

HPCM_API void hpcm_channel_scale(int64_t rows, int channels, const int16_t* a, const float* scale, int limit,
                                 int16_t* out) {
    Elements p = {};
    p.a = a;
    p.table = scale;
    p.limit = limit;
    p.channels = channels;
    p.out = out;
    const Functions& f = use();
    parallel(rows, rows_of(ELEMENTS, channels), [&](int64_t a, int64_t b) { f.channel_scale(a, b, p); });
}

// a (channels,) is the same for all rows; r and b are (rows, channels).
HPCM_API void hpcm_blend(int64_t rows, int channels, const int16_t* r, const int16_t* a, const int16_t* b,
                         const float* table, int16_t* out) {
    Elements p = {};
    p.a = a;
    p.b = r;
    p.c = b;
    p.table = table;
    p.channels = channels;
    p.out = out;
    const Functions& f = use();
    parallel(rows, rows_of(ELEMENTS, channels), [&](int64_t a, int64_t b) { f.blend(a, b, p); });
}

HPCM_API void hpcm_sum_rows(int64_t rows, int channels, const int16_t* a, int64_t* sums) {
    use().sum_rows(0, rows, a, channels, sums);
}

// How many doubles the scratch memory `ends` of hpcm_wkv must hold.
HPCM_API int64_t hpcm_wkv_scratch(int64_t batch, int64_t tokens, int channels, int length) {
    return batch * ((tokens + length - 1) / length) * ((channels + 31) / 32) * 4 * 16;
}

// Bi-WKV4 over k and v (batch, tokens, channels). With a `table` of exp(k), they are codes, and the result times
// `factor` is stored as codes. Where `table` is null, all is float64: k holds exp(k), and the result is stored as it
// is.
HPCM_API void hpcm_wkv(int64_t batch, int64_t tokens, int channels, int length, const void* k, const void* v,
                       const double* table, const double* powers, const double* own, double factor, int limit,
                       double* ends, void* out) {
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
    p.limit = limit;
    p.ends = ends;
    p.tokens = tokens;
    p.channels = channels;
    p.length = length;
    p.blocks = (tokens + length - 1) / length;
    p.groups = (channels + 31) / 32;
    const Functions& f = use();
    // Each thread gets one piece, since groups of a sample that stay together read whole rows of codes.
    const int64_t items = batch * p.groups, threads = wanted_threads.load(), least = rows_of(ELEMENTS / 4, tokens * 32);
    const int64_t grain = (items + threads - 1) / threads;
    parallel(items, grain < least ? least : grain, [&](int64_t a, int64_t b) { f.wkv(a, b, p); });
}

// Bi-WKV4 for training over k, v (batch, tokens, channels) of the type `real`; decay, boost (channels,) as float64.
// y is float64 for FLOAT64, otherwise float32. Returns 0, or 1 where memory could not be allocated.
HPCM_API int hpcm_float_biwkv4(const Biwkv4* p) { return run_sequences(ELEMENTS / 16, *p); }

// Encodes n symbols, the last one first, into `words` from its end on; `room` is how many words are still free at its
// start. Returns how many symbols could not be encoded. rans.h has the details.
HPCM_API int64_t hpcm_rans_encode(int64_t n, const int32_t* symbols, const int32_t* indexes, int64_t n_tables,
                                  int64_t width, const int32_t* cdf, const int32_t* sizes, const int32_t* offsets,
                                  uint64_t* state, uint8_t* words, int64_t* room) {
    return rans::encode(n, symbols, indexes, {n_tables, width, cdf, sizes, offsets}, state, words, room);
}

// Decodes n symbols from a stream of n_words words of 4 bytes; `position` is the next word. Returns how many it
// decoded.
HPCM_API int64_t hpcm_rans_decode(int64_t n, const int32_t* indexes, int64_t n_tables, int64_t width,
                                  const int32_t* cdf, const int32_t* sizes, const int32_t* offsets,
                                  const uint8_t* stream, int64_t n_words, uint64_t* state, int64_t* position,
                                  int32_t* symbols) {
    return rans::decode(n, indexes, {n_tables, width, cdf, sizes, offsets}, stream, n_words, state, position, symbols);
}

// The gradients of hpcm_float_biwkv4 by k and v (of the type `real`), decay and boost (float64), from the gradient by y
// (of y's type). Samples are summed in order, whatever the number of threads.
HPCM_API int hpcm_float_biwkv4_gradients(const Biwkv4* p, double* g_decay, double* g_boost) {
    const int failed = run_sequences(ELEMENTS / 32, *p);
    use().biwkv4_sum(p->batch, *p, g_decay, g_boost);
    return failed;
}
