// The loops for SSE2, which every x86-64 processor has.

#include "functions.h"

#ifdef HPCM_X86
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

namespace hpcm {
namespace {
namespace sse2 {
#define HPCM_SSE2
#include "cpu.h"
}  // namespace sse2
}  // namespace

constexpr Functions sse2_functions = sse2::functions;
}  // namespace hpcm
#endif
