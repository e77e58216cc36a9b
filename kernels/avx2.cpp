// The loops for processors with AVX2.

#include "functions.h"

#ifdef HPCM_X86
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC target("avx2,fma,bmi,bmi2")

namespace hpcm {
namespace {
namespace avx2 {
#define HPCM_AVX2
#include "cpu.h"
}  // namespace avx2
}  // namespace

constexpr Functions avx2_functions = avx2::functions;
}  // namespace hpcm
#endif
