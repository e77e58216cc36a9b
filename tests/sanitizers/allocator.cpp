// An allocator that fails when it is asked to: the linker has the kernels' allocations come here (--wrap).

#include <stdint.h>
#include <stdlib.h>

#include <atomic>
#include <new>

namespace {

std::atomic<int64_t> count{0}, failing{0};

bool fails() { return ++count == failing.load(); }

}  // namespace

extern "C" {

void* __real_malloc(size_t);
void* __real_calloc(size_t, size_t);
void* __real_aligned_alloc(size_t, size_t);
void* __real__Znwm(size_t);
void* __real__ZnwmRKSt9nothrow_t(size_t, const std::nothrow_t&);

void* __wrap_malloc(size_t n) { return fails() ? nullptr : __real_malloc(n); }
void* __wrap_calloc(size_t n, size_t each) { return fails() ? nullptr : __real_calloc(n, each); }
void* __wrap_aligned_alloc(size_t to, size_t n) { return fails() ? nullptr : __real_aligned_alloc(to, n); }

void* __wrap__Znwm(size_t n) {
    if (fails()) throw std::bad_alloc();
    return __real__Znwm(n);
}

void* __wrap__ZnwmRKSt9nothrow_t(size_t n, const std::nothrow_t& nothrow) {
    return fails() ? nullptr : __real__ZnwmRKSt9nothrow_t(n, nothrow);
}

// Has allocation number n from here on fail; 0: none.
__attribute__((visibility("default"))) void hpcm_fail(int64_t n) {
    count.store(0);
    failing.store(n);
}

// How many allocations there were since the last call of hpcm_fail.
__attribute__((visibility("default"))) int64_t hpcm_allocations() { return count.load(); }
}
