// What kernels.cpp hands to the loops of cpu.h, the same for every instruction set: a struct for each kind of work, and
// the table of the loops. All is in the unnamed namespace of the one file that has it.

#ifndef HPCM_WORK_H
#define HPCM_WORK_H

#include "abi.h"

namespace {

enum { ROW_BLOCK = 96 };  // rows of a linear that stay in the cache while the outputs pass

struct Depthwise {
    const int16_t *a, *weights;
    const float *scale, *bias;
    int16_t* out;
    int64_t height, width;
    int channels, k;
};

struct Norm {
    const int16_t* a;
    const float *gamma, *beta;
    int16_t* out;
    int channels;
};

struct Elements {
    const int16_t *a, *b, *c;
    const int32_t* wide;
    const float* table;
    float factor;
    int channels;
    int16_t* out;
};

struct Wkv {
    // Codes with a table of exp(k), or float64 weights and values where the table is null.
    const int16_t *k, *v;
    const double *table, *weights, *values, *powers, *own;
    double factor;
    double* ends;
    int16_t* codes;
    double* out;
    int64_t tokens, blocks, groups;
    int channels, length;
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
    int doubles;  // channels that go together in what follows
    void (*biwkv4[REALS])(int64_t, int64_t, const Biwkv4&, int* failed);
    void (*biwkv4_sum)(int64_t, const Biwkv4&, double*, double*);
};

}  // namespace

#endif
