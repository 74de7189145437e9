/* Syncs that fail, lie or are slow, on command: LD_PRELOAD. The file named by QUORATE_SYNC_FAULT says what to do with each sync
   of a file under the directory named by QUORATE_SYNC_UNDER: "fail" lets it fail, "lie" lets it say that it was done, a
   number is how many milliseconds it takes. Without that file all is well. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_under(int fd) {
    char link[64], path[4096];
    const char *under = getenv("QUORATE_SYNC_UNDER");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || !under) return 0;
    path[length] = 0;
    return strncmp(path, under, strlen(under)) == 0;
}

static int fault(int fd) {
    const char *name = getenv("QUORATE_SYNC_FAULT");
    char order[32];
    int control = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (control < 0) return 0;
    ssize_t length = read(control, order, sizeof order - 1);
    close(control);
    if (length <= 0 || !is_under(fd)) return 0;
    order[length] = 0;
    if (strncmp(order, "fail", 4) == 0) return -1;
    if (strncmp(order, "lie", 3) == 0) return 1;
    usleep((useconds_t)atoi(order) * 1000);
    return 0;
}

#define WRAP(name)                                                  \
    int name(int fd) {                                              \
        static int (*real)(int);                                    \
        if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, #name);    \
        int struck = fault(fd);                                     \
        if (struck > 0) return 0;                                   \
        if (struck < 0) {                                           \
            errno = EIO;                                            \
            return -1;                                              \
        }                                                           \
        return real(fd);                                            \
    }

WRAP(fsync)
WRAP(fdatasync)
