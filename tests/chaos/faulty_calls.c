// Preloaded (LD_PRELOAD): counts the calls by which a process changes what lies below a folder, and disturbs one of them.
// Whoever calls is caught: Python, Arrow's C++ and safetensors' Rust go through libc.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FULL, READ_ONLY, IO_ERROR, REMOVE };

static char below[PATH_MAX], gone[PATH_MAX + 8];
static long at;
static int how = COUNT;
static long calls;

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

// From now on count from 0 what happens below `folder`, and do as `kind` says at call number `number` (full and read-only: from
// there on). "" turns it off.
void disturb(const char *folder, long number, int kind) {
    calls = 0, at = number, how = kind;
    snprintf(gone, sizeof gone, "%s.gone", folder);
    strncpy(below, folder, sizeof below - 1);
}

long num_calls(void) { return calls; }

static int is_below(const char *path) {
    size_t length = strlen(below);
    return length && !strncmp(path, below, length) && (!path[length] || path[length] == '/');
}

static const char *path_of(int fd, const char *name, char *buffer) {
    if (name && name[0] == '/') return name;
    char link[64];
    if (fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    if (length < 0) return "";
    buffer[length] = 0;
    if (name) snprintf(buffer + length, PATH_MAX - length, "/%s", name);
    return buffer;
}

static int is_struck(const char *call, const char *path) {
    if (!is_below(path)) return 0;
    if (++calls != at) return 0;
    dprintf(2, "struck %ld: %s %s\n", calls, call, path + strlen(below));
    return 1;
}

// 0, or the error that the call is to end with.
static int error_of(const char *call, int fd, const char *name, int needs_room) {
    if (!below[0]) return 0;
    char buffer[PATH_MAX];
    int struck = is_struck(call, path_of(fd, name, buffer));
    if (struck && how == KILL) kill(getpid(), SIGKILL);
    if (struck && how == REMOVE) { REAL(rename); real(below, gone); }
    if (struck && how == IO_ERROR) return EIO;
    if (calls < at || !at || !is_below(path_of(fd, name, buffer))) return 0;
    if (how == FULL && needs_room) return ENOSPC;
    if (how == READ_ONLY && strcmp(call, "fsync")) return EROFS;
    return 0;
}

#define CHECK(call, fd, name, needs_room) \
    do { int error = error_of(call, fd, name, needs_room); if (error) { errno = error; return -1; } } while (0)

#define OPENS(function, first, ...) \
    { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } \
        if (flags & (O_WRONLY | O_RDWR | O_CREAT)) CHECK("open", first, name, flags & O_CREAT); \
        REAL(function); \
        return real(__VA_ARGS__, flags, mode); \
    }
int open(const char *name, int flags, ...) OPENS(open, AT_FDCWD, name)
int open64(const char *name, int flags, ...) OPENS(open64, AT_FDCWD, name)
int openat(int fd, const char *name, int flags, ...) OPENS(openat, fd, fd, name)
int openat64(int fd, const char *name, int flags, ...) OPENS(openat64, fd, fd, name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    // Killed in the midst of it: half of it is there.
    if (below[0] && how == KILL && calls + 1 == at) {
        char buffer[PATH_MAX];
        if (is_below(path_of(fd, NULL, buffer))) real(fd, data, size / 2);
    }
    CHECK("write", fd, NULL, 1);
    return real(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    CHECK("writev", fd, NULL, 1);
    REAL(writev);
    return real(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    CHECK("pwrite", fd, NULL, 1);
    REAL(pwrite);
    return real(fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    CHECK("pwrite", fd, NULL, 1);
    REAL(pwrite64);
    return real(fd, data, size, offset);
}
int fsync(int fd) { CHECK("fsync", fd, NULL, 0); REAL(fsync); return real(fd); }
int fdatasync(int fd) { CHECK("fsync", fd, NULL, 0); REAL(fdatasync); return real(fd); }
int ftruncate(int fd, off_t size) { CHECK("ftruncate", fd, NULL, 0); REAL(ftruncate); return real(fd, size); }
int rename(const char *from, const char *to) { CHECK("rename", AT_FDCWD, from, 0); REAL(rename); return real(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    CHECK("rename", a, from, 0);
    REAL(renameat);
    return real(a, from, b, to);
}
int link(const char *from, const char *to) { CHECK("link", AT_FDCWD, to, 1); REAL(link); return real(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    CHECK("link", b, to, 1);
    REAL(linkat);
    return real(a, from, b, to, flags);
}
int unlink(const char *name) { CHECK("unlink", AT_FDCWD, name, 0); REAL(unlink); return real(name); }
int unlinkat(int fd, const char *name, int flags) { CHECK("unlink", fd, name, 0); REAL(unlinkat); return real(fd, name, flags); }
int rmdir(const char *name) { CHECK("rmdir", AT_FDCWD, name, 0); REAL(rmdir); return real(name); }
int mkdir(const char *name, mode_t mode) { CHECK("mkdir", AT_FDCWD, name, 1); REAL(mkdir); return real(name, mode); }
int mkdirat(int fd, const char *name, mode_t mode) { CHECK("mkdir", fd, name, 1); REAL(mkdirat); return real(fd, name, mode); }
int chmod(const char *name, mode_t mode) { CHECK("chmod", AT_FDCWD, name, 0); REAL(chmod); return real(name, mode); }
