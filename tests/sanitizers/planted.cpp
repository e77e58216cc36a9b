// Faults on purpose: a sanitizer that does not see them would not see those of the kernels either.

#include <stdint.h>
#include <stdlib.h>

#include <thread>

#define PLANTED extern "C" __attribute__((visibility("default")))

PLANTED int planted_address(int n) {
    int* numbers = (int*)malloc(sizeof(int) * n);
    for (int i = 0; i <= n; ++i) numbers[i] = i;  // one beyond the end
    const int last = numbers[n / 2];
    free(numbers);
    return last;
}

PLANTED int planted_undefined(int n) { return (n + INT32_MAX) * 2; }  // overflows

static int shared = 0;

PLANTED int planted_thread(int n) {
    auto count = [n] {
        for (int i = 0; i < 1000 * n; ++i) ++shared;  // without a lock
    };
    std::thread other(count);
    count();
    other.join();
    return shared;
}

PLANTED int planted_allocation(int n) {
    char* text = (char*)malloc(n);
    text[0] = 1;  // without a look at what malloc gave
    const int first = text[0];
    free(text);
    return first;
}
