/* Makes opening a file below $SLOW_BELOW take $SLOW_MICROSECONDS longer, as a network drive does.
   Built and preloaded by bench_scan.py; no part of the program. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static void wait_for(const char *path, int flags)
{
    const char *below = getenv("SLOW_BELOW"), *time = getenv("SLOW_MICROSECONDS");
    if (below && time && path && !(flags & O_DIRECTORY) && strncmp(path, below, strlen(below)) == 0)
        usleep((useconds_t)atoi(time));
}

static mode_t mode_of(int flags, va_list more)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
}

#define OPEN(name)                                                                    \
    int name(const char *path, int flags, ...)                                        \
    {                                                                                 \
        va_list more;                                                                 \
        va_start(more, flags);                                                        \
        mode_t mode = mode_of(flags, more);                                           \
        va_end(more);                                                                 \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);                \
        wait_for(path, flags);                                                        \
        return real(path, flags, mode);                                               \
    }

#define OPENAT(name)                                                                  \
    int name(int folder, const char *path, int flags, ...)                            \
    {                                                                                 \
        va_list more;                                                                 \
        va_start(more, flags);                                                        \
        mode_t mode = mode_of(flags, more);                                           \
        va_end(more);                                                                 \
        int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, #name);           \
        wait_for(path, flags);                                                        \
        return real(folder, path, flags, mode);                                       \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
