// The loops are compiled once for each instruction set. `Functions` is what such a copy offers; the structs before it
// are the arguments of its functions. `limit`: of the result's codes.
//
// A copy is a translation unit: avx512.cpp, avx2.cpp, sse2.cpp, plain.cpp. Each sets the compiler's target by a pragma,
// so that all units are compiled with the same flags, one by one or in one call. Nothing in such a unit may have a name
// that other units can see, except its `Functions`: where two units contain the same inline function, the linker keeps
// one of them for both, and processes on older processors would end at an instruction that they do not know. Therefore
// these units include no header of the C++ library, and their loops are in an unnamed namespace.

#ifndef HPCM_FUNCTIONS_H
#define HPCM_FUNCTIONS_H

#include <stdint.h>

#include "abi.h"

#if defined(__x86_64__) && !defined(__clang__) && !defined(HPCM_PORTABLE)
#define HPCM_X86
#endif

namespace hpcm {

enum { ROW_BLOCK = 96 };  // rows of a linear layer that stay in the cache while all outputs are computed for them

struct Depthwise {
    const int16_t *a, *weights;
    const float *scale, *bias;
    int16_t* out;
    int64_t height, width;
    int channels, k, limit;
};

// Which of `groups` a coding step codes at each lattice point: a pattern (tile, tile) that repeats.
struct Folding {
    int groups, tile;
    const int32_t* pattern;
};

struct Norm {
    const int16_t* a;
    const float *gamma, *beta;
    int16_t* out;
    int channels, limit;
};

struct Elements {
    const int16_t *a, *b, *c;
    const int32_t* wide;
    const float* table;
    float factor;
    int channels, limit;
    int16_t* out;
};

struct Pixels {
    const int32_t* wide;
    float factor, half, top;
    void* out;
};

struct Wkv {
    // Inputs are codes k, v with a table of exp(k); where the table is null, float64 weights exp(k) and values v.
    const int16_t *k, *v;
    const double *table, *weights, *values, *powers, *own;
    double factor;
    double* ends;
    int16_t* codes;
    double* out;
    int64_t tokens, blocks, groups;
    int channels, length, limit;
};

struct Functions {
    void (*linear)(int64_t, int64_t, const Linear&);
    void (*depthwise)(int64_t, int64_t, const Depthwise&);
    void (*norm)(int64_t, int64_t, const Norm&);
    void (*lrelu)(int64_t, int64_t, const Elements&);
    void (*relu_squared)(int64_t, int64_t, const Elements&);
    void (*gate)(int64_t, int64_t, const Elements&);
    void (*add)(int64_t, int64_t, const Elements&);
    void (*channel_scale)(int64_t, int64_t, const Elements&);
    void (*blend)(int64_t, int64_t, const Elements&);
    void (*sum_rows)(int64_t, int64_t, const int16_t*, int, int64_t*);
    void (*latent_code)(int64_t, int64_t, const Elements&);
    void (*wkv)(int64_t, int64_t, const Wkv&);
    void (*narrow)(int64_t, int64_t, const Elements&);
    void (*residual)(int64_t, int64_t, const Residual&, int64_t rows, int16_t* scratch);
    int64_t (*residual_scratch)(const Residual&);
    void (*around)(int64_t, int64_t, const Depthwise&, const Folding&);
    void (*heads)(int64_t, int64_t, const Heads&, char* scratch);
    int64_t (*heads_scratch)(const Heads&);
    void (*pixels[2])(int64_t, int64_t, const Pixels&);  // to uint8, to uint16
    int band, head_rows;  // positions in a work item of `residual`, side by side, and of `heads`
    int doubles;  // channels per work item of the functions that follow
    void (*biwkv4[REALS])(int64_t, int64_t, const Biwkv4&, int* failed);
    void (*biwkv4_sum)(int64_t, const Biwkv4&, double*, double*);
};

#ifdef HPCM_X86
extern const Functions avx512_functions, avx2_functions, sse2_functions;
#else
extern const Functions plain_functions;
#endif

}  // namespace hpcm

#endif
