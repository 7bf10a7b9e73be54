/* A disk that fails when it is told to: preloaded into a node, between it and the C library.
 *
 * The file that ROUNDTABLE_FAULT names says what happens to the files whose paths begin with ROUNDTABLE_FAULT_DIR:
 *   sync-fails     syncs end with EIO, and what was written since the last one may be lost
 *   sync-slow N    syncs take N more milliseconds
 * (a write to a file that was opened with O_DSYNC is a sync as well)
 *   write-tears    the next write of the log writes its first half, and the process is gone
 * Anything else, or no such file: nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int what(char *fault, size_t size) {
    const char *path = getenv("ROUNDTABLE_FAULT");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    ssize_t length = read(file, fault, size - 1);
    close(file);
    fault[length > 0 ? length : 0] = 0;
    return length > 0;
}

static int is_ours(int file, const char *suffix) {
    char link[64], path[4096];
    const char *dir = getenv("ROUNDTABLE_FAULT_DIR");
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!dir || length < 0) return 0;
    path[length] = 0;
    size_t end = strlen(suffix);
    return !strncmp(path, dir, strlen(dir)) && (size_t)length >= end && !strcmp(path + length - end, suffix);
}

/* Whether a sync of the file fails; it may take longer. */
static int sync_fails(int file) {
    char fault[64];
    if (!is_ours(file, "") || !what(fault, sizeof fault)) return 0;
    if (!strncmp(fault, "sync-slow ", 10)) usleep((useconds_t)atoi(fault + 10) * 1000);
    return !strncmp(fault, "sync-fails", 10);
}

static int sync_with(const char *name, int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    if (sync_fails(file)) {
        errno = EIO;
        return -1;
    }
    return real(file);
}

int fsync(int file) { return sync_with("fsync", file); }
int fdatasync(int file) { return sync_with("fdatasync", file); }

static ssize_t write_with(const char *name, int file, const void *bytes, size_t count, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) =
        (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, name);
    char fault[64];
    if (count > 1 && is_ours(file, ".log") && what(fault, sizeof fault) && !strncmp(fault, "write-tears", 11)) {
        /* By a descriptor of its own: by this one a write may have to be of whole blocks. */
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        int plain = open(link, O_WRONLY | O_CLOEXEC);
        if (plain < 0 || real(plain, bytes, count / 2, at) != (ssize_t)(count / 2)) _exit(99);
        kill(getpid(), SIGKILL);
        pause();
    }
    if ((fcntl(file, F_GETFL) & O_DSYNC) && sync_fails(file)) {
        errno = EIO;
        return -1;
    }
    return real(file, bytes, count, at);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) {
    return write_with("pwrite", file, bytes, count, at);
}
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    return write_with("pwrite64", file, bytes, count, at);
}
