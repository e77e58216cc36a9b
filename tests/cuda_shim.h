// CUDA's launch syntax and thread indices on a processor: kernels.cu compiled by g++ runs its threads one after the
// other. It uses no barrier and no shared memory, so the order means nothing.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline

struct ShimIndex {
    unsigned x;
};

static thread_local ShimIndex blockIdx, blockDim, threadIdx;

enum { cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

static int cudaGetLastError() { return 0; }

template <class Kernel>
static void shim_launch(unsigned blocks, unsigned threads, const Kernel& kernel) {
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel();
}
