// The loops for processors with AVX-512 and VNNI.

#include "functions.h"

#ifdef HPCM_X86
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,bmi,bmi2,prefer-vector-width=512")

namespace hpcm {
namespace {
namespace avx512 {
#define HPCM_AVX512
#include "cpu.h"
}  // namespace avx512
}  // namespace

constexpr Functions avx512_functions = avx512::functions;
}  // namespace hpcm
#endif
