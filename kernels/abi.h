// What Python, C++ and CUDA share: limits, enumerations, and the structs that are passed between them.
//
// hpcmcodec/native/abi.py says the same in Python. The function hpcm_abi of a library (C++) or an image (CUDA) reports
// the values of HPCM_ABI in this order; Python refuses kernels whose values differ from its own.

#ifndef HPCM_ABI_H
#define HPCM_ABI_H

#ifndef __CUDACC_RTC__
#include <stdint.h>
#endif

enum { HPCM_TABLE_MAX = 2047, HPCM_BLOCK = 64, HPCM_EXPONENT_MAX = 16 };  // exact/constants.py explains these
enum { PANEL = 16, MAX_INPUTS = 8 };  // outputs side by side in packed weights; inputs of one linear layer

// The type of the elements of k, v and y. Where k and v are BFLOAT16, y is float32.
enum Real { FLOAT32 = 0, BFLOAT16 = 1, FLOAT64 = 2, REALS = 3 };

// "Packed weights" of a linear layer with O outputs and I inputs (I even): int16 (ceil(O / PANEL), I / 2, PANEL, 2),
// with zeros for outputs beyond O. Sixteen outputs lie side by side, with two neighbouring inputs of each together.
struct Input {
    const int16_t* a;  // (rows, columns) codes; null: `scale` holds the scaled sums, alike for all rows
    int64_t columns;
    const int16_t* weights;  // packed
    const float* scale;      // (O,)
};

struct Linear {
    int64_t rows;
    int32_t outputs, n_inputs, limit;
    const float* bias;  // (O,)
    const float *low, *high;  // null: `out` is int16, within `limit`; else int32, within these
    const int32_t* onto;  // null, or what int32 results are added to; it may be `out`
    void* out;  // (rows, O)
    Input inputs[MAX_INPUTS];
};

// The head of one group: the layers to its hidden channels, where it has any, and to the parameters of its latents.
struct Group {
    int64_t first, last;  // its positions in `order`
    Linear hidden, head;
};

// Means and levels at all positions; each is computed by the head of its group. `hidden` is even.
struct Heads {
    int32_t n_inputs, groups, hidden, channels;  // channels: of means and of levels
    const int32_t* order;                        // positions, those of each group together
    const Group* group;
    const int16_t* inputs[MAX_INPUTS];  // (positions, columns)
    int64_t columns[MAX_INPUTS];
    int32_t *means, *levels;  // (positions, channels)
};

// One layer of a residual block. weights: of a depthwise convolution (9, C), otherwise packed. limit: of its results.
struct Layer {
    const int16_t* weights;
    const float *scale, *bias;
    int64_t limit;
};

// A residual block over the rows of `before` and those of `x` below them, `height` in all. Those from `first` to `last`
// are computed. Elements are int16 codes; where there is `read`, they are int32.
struct Residual {
    int64_t batch, height, width, above, first, last;
    int32_t channels, hidden, limit;  // limit: of the codes that a block reads or gives
    const void *before, *x;           // (batch, above, width, channels), (batch, height - above, width, channels)
    void* out;                        // (batch, last - first, width, channels)
    const float* read;                // (channels,) what int32 are multiplied by to become codes; null: x are codes
    Layer around, up, down;
};

// Bi-WKV4 for training. sums: (batch, 2, channels), each sample's gradients by w and u; scratch is used by CUDA alone.
struct Biwkv4 {
    int64_t batch, tokens;
    int32_t real, channels;
    const void *k, *v, *g;  // where g is null, the forward pass is computed
    const double *decay, *boost;
    void *y, *gk, *gv;
    double *sums, *scratch;
};

// offsetof, which NVRTC does not have.
#define HPCM_AT(type, member) ((int64_t) & ((type*)0)->member)
#define HPCM_ABI                                                                                                     \
    HPCM_TABLE_MAX, HPCM_BLOCK, HPCM_EXPONENT_MAX, PANEL, MAX_INPUTS, FLOAT32, BFLOAT16, FLOAT64,                    \
        (int64_t)sizeof(Input), HPCM_AT(Input, a), HPCM_AT(Input, columns), HPCM_AT(Input, weights),                 \
        HPCM_AT(Input, scale), (int64_t)sizeof(Linear), HPCM_AT(Linear, rows), HPCM_AT(Linear, outputs),             \
        HPCM_AT(Linear, n_inputs), HPCM_AT(Linear, limit), HPCM_AT(Linear, bias), HPCM_AT(Linear, low),              \
        HPCM_AT(Linear, high), HPCM_AT(Linear, onto), HPCM_AT(Linear, out), HPCM_AT(Linear, inputs),                 \
        (int64_t)sizeof(Group), HPCM_AT(Group, first), HPCM_AT(Group, last), HPCM_AT(Group, hidden),                 \
        HPCM_AT(Group, head), (int64_t)sizeof(Heads), HPCM_AT(Heads, n_inputs), HPCM_AT(Heads, groups),              \
        HPCM_AT(Heads, hidden), HPCM_AT(Heads, channels), HPCM_AT(Heads, order), HPCM_AT(Heads, group),              \
        HPCM_AT(Heads, inputs), HPCM_AT(Heads, columns), HPCM_AT(Heads, means), HPCM_AT(Heads, levels),              \
        (int64_t)sizeof(Layer), HPCM_AT(Layer, weights), HPCM_AT(Layer, scale), HPCM_AT(Layer, bias),                \
        HPCM_AT(Layer, limit), (int64_t)sizeof(Residual), HPCM_AT(Residual, batch), HPCM_AT(Residual, height),       \
        HPCM_AT(Residual, width), HPCM_AT(Residual, above), HPCM_AT(Residual, first), HPCM_AT(Residual, last),       \
        HPCM_AT(Residual, channels), HPCM_AT(Residual, hidden), HPCM_AT(Residual, limit),                            \
        HPCM_AT(Residual, before), HPCM_AT(Residual, x), HPCM_AT(Residual, out), HPCM_AT(Residual, read),            \
        HPCM_AT(Residual, around), HPCM_AT(Residual, up), HPCM_AT(Residual, down),                                   \
        (int64_t)sizeof(Biwkv4), HPCM_AT(Biwkv4, batch), HPCM_AT(Biwkv4, tokens), HPCM_AT(Biwkv4, real),             \
        HPCM_AT(Biwkv4, channels), HPCM_AT(Biwkv4, k), HPCM_AT(Biwkv4, v), HPCM_AT(Biwkv4, g),                       \
        HPCM_AT(Biwkv4, decay), HPCM_AT(Biwkv4, boost), HPCM_AT(Biwkv4, y), HPCM_AT(Biwkv4, gk),                     \
        HPCM_AT(Biwkv4, gv), HPCM_AT(Biwkv4, sums), HPCM_AT(Biwkv4, scratch)

#endif
