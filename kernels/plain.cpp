// The loops for all other processors, written in the compiler's vector types.

#include "functions.h"

#ifndef HPCM_X86
#include <stdlib.h>
#include <string.h>

namespace hpcm {
namespace {
namespace plain {
#define HPCM_PLAIN
#include "cpu.h"
}  // namespace plain
}  // namespace

constexpr Functions plain_functions = plain::functions;
}  // namespace hpcm
#endif
