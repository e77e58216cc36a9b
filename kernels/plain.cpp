// The loops for processors without a copy of their own, in vectors of the compiler's.

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
