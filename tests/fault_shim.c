/* Stands before the C library (LD_PRELOAD) and has a chosen call of a process fail, as a broken or a full disk does. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/types.h>

static char failing[32] = "";
static int remaining = 0, code = 0, partly = 0, calls = 0;

/* Has call number n of this name fail with an errno. partly: a write first writes half of what it is given. */
void shim_fail(const char *name, int n, int error, int half) {
    strncpy(failing, name, sizeof failing - 1), remaining = n, code = error, partly = half, calls = 0;
}

/* How many calls of the chosen name there were since. */
int shim_calls(void) { return calls; }

static int fails(const char *name) {
    if (strcmp(name, failing)) return 0;
    ++calls;
    if (--remaining) return 0;
    errno = code;
    return 1;
}

ssize_t write(int to, const void *data, size_t n) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (to > 2 && fails("write")) {
        if (partly) real(to, data, n / 2);
        errno = code;
        return -1;
    }
    return real(to, data, n);
}

#define CALL(name, parameters, arguments)                                        \
    int name parameters {                                                        \
        static int(*real) parameters;                                            \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);            \
        return fails(#name) ? -1 : real arguments;                               \
    }

CALL(fsync, (int file), (file))
CALL(rename, (const char *from, const char *to), (from, to))
CALL(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
CALL(link, (const char *from, const char *to), (from, to))
CALL(linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
CALL(fchmod, (int file, mode_t mode), (file, mode))
CALL(chmod, (const char *path, mode_t mode), (path, mode))
CALL(ftruncate, (int file, off_t size), (file, size))
CALL(posix_fallocate, (int file, off_t start, off_t size), (file, start, size))
