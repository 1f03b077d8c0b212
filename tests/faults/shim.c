/* A library for LD_PRELOAD that numbers what a process asks of one folder, and lets one call go wrong.
 *
 * A call that changes the folder (open for writing, write, fsync, link, rename, unlink, ...) gets the next number of
 * one series; a call that looks at it (open for reading, read, stat, opendir, ...) the next of another. `faults_arm`
 * says which number of which series goes wrong, and how; calls elsewhere, and of other processes, pass.
 * What was done is appended to a log, with the bytes that were written: `trace.py` reads it.
 *
 * Calls are made one at a time, under a lock, so that the order of the log is the order in which they took effect.
 * The system is called directly: whatever calls libc's functions by name ends up here, in whatever language. What
 * does without libc (the rename of Rust's crate rustix) is found out by `disk.py`, from the files' inodes.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CHANGING = 0, LOOKING = 1, MARK = 2 };
enum { PASS = 0, KILL = 1, HALF = 2, SHORT = 3, ONCE = 4, FROM_NOW_ON = 5 };
/* What a call is; `trace.py` has the same names in the same order. */
enum { OPEN, CREATE, WRITE, TRUNCATE, SYNC, LINK, RENAME, UNLINK, MKDIR, RMDIR, SYMLINK, ATTRIBUTES,
       LOOK_OPEN, LOOK_READ, LOOK_STAT, LOOK_LIST, MARKED };

struct entry { /* of the log; then come path, second path and data */
    uint32_t magic, series, kind, fired;
    int64_t number, result, error, inode, offset;
    uint32_t path, second;
    uint64_t data;
};

#define PATHS 4400
static struct {
    int armed, log, series, action, error;
    pid_t pid;
    int64_t at, count[2];
    size_t length, spared_length;
    char root[PATHS], spared[PATHS];
} orders;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside; /* what the shim itself calls is not the process's */

static pid_t own_pid(void) { return (pid_t)syscall(SYS_getpid); }

static void unlocked(void) { pthread_mutex_init(&lock, NULL); }
__attribute__((constructor)) static void begin(void) { pthread_atfork(NULL, NULL, unlocked); }

/* -- orders ---------------------------------------------------------------------------------------------------- */

/* What is under `spared` passes, too; empty: nothing is spared. */
int faults_arm(const char *root, const char *spared, const char *log, int series, int64_t at, int action,
               int error) {
    int handle = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (handle < 0) return errno;
    orders.log = fcntl(handle, F_DUPFD_CLOEXEC, 900); /* out of the way of numbers that programs expect */
    syscall(SYS_close, handle);
    snprintf(orders.root, sizeof orders.root, "%s", root);
    snprintf(orders.spared, sizeof orders.spared, "%s", spared);
    orders.length = strlen(orders.root), orders.spared_length = strlen(orders.spared);
    orders.series = series, orders.at = at, orders.action = action, orders.error = error;
    orders.count[CHANGING] = orders.count[LOOKING] = 0;
    orders.pid = own_pid();
    orders.armed = 1;
    return 0;
}

void faults_disarm(void) { orders.armed = 0; }

static int watching(void) { return orders.armed && !inside && own_pid() == orders.pid; }

/* -- names ----------------------------------------------------------------------------------------------------- */

static int handle_path(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATHS - 1);
    out[n < 0 ? 0 : n] = 0;
    return n > 0;
}

/* An absolute path without `.`, `..` and double slashes; links are not followed. */
static void absolute(int folder, const char *path, char *out) {
    char whole[2 * PATHS];
    if (path == NULL) path = "";
    if (path[0] == '/')
        snprintf(whole, sizeof whole, "%s", path);
    else {
        char base[PATHS] = "";
        if (folder == AT_FDCWD)
            syscall(SYS_getcwd, base, PATHS);
        else
            handle_path(folder, base);
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    size_t n = 0;
    for (char *rest = whole, *part; (part = strsep(&rest, "/")) != NULL;) {
        if (!*part || !strcmp(part, ".")) continue;
        if (!strcmp(part, "..")) {
            while (n > 0 && out[--n] != '/') {}
            continue;
        }
        size_t length = strlen(part);
        if (n + length + 2 >= PATHS) break;
        out[n++] = '/';
        memcpy(out + n, part, length);
        n += length;
    }
    out[n] = 0;
}

static int below(const char *path, const char *folder, size_t length) {
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}
static int under_root(const char *path) {
    if (orders.spared_length && below(path, orders.spared, orders.spared_length)) return 0;
    return below(path, orders.root, orders.length);
}

/* -- one call -------------------------------------------------------------------------------------------------- */

struct call { /* what is known of it; filled by the wrappers */
    int series, kind, fd, fired;
    int64_t number, offset, size;
    const void *data;
    char path[PATHS], second[PATHS];
};

static int64_t inode_of(struct call *c) {
    struct stat s;
    if (c->fd >= 0 ? syscall(SYS_newfstatat, c->fd, "", &s, AT_EMPTY_PATH)
                   : syscall(SYS_newfstatat, AT_FDCWD, c->second[0] ? c->second : c->path, &s, AT_SYMLINK_NOFOLLOW))
        return 0;
    return (int64_t)s.st_ino;
}

static void note(struct call *c, int64_t result, int error, const void *data, uint64_t size) {
    struct entry e = {0x544c5546u, (uint32_t)c->series, (uint32_t)c->kind, (uint32_t)c->fired, c->number, result, error,
                      result < 0 ? 0 : inode_of(c), c->offset, (uint32_t)strlen(c->path), (uint32_t)strlen(c->second),
                      size};
    struct iovec parts[4] = {{&e, sizeof e}, {c->path, e.path}, {c->second, e.second}, {(void *)data, size}};
    ssize_t all = (ssize_t)(sizeof e + e.path + e.second + size);
    if (syscall(SYS_writev, orders.log, parts, 4) != all) abort(); /* a trace with a hole would prove nothing */
}

static int takes_room(int kind) {
    return kind == CREATE || kind == WRITE || kind == LINK || kind == RENAME || kind == MKDIR || kind == SYMLINK;
}

static void die(void) {
    syscall(SYS_kill, own_pid(), SIGKILL);
    for (;;) syscall(SYS_pause);
}

/* Number a call. 0: let it pass; else the action that it is to meet. The lock is held until `end`. */
static int start(struct call *c) {
    pthread_mutex_lock(&lock);
    inside = 1;
    c->number = ++orders.count[c->series];
    if (c->series != orders.series || orders.action == PASS) return PASS;
    int hit = c->number == orders.at;
    if (orders.action == FROM_NOW_ON && c->number >= orders.at)
        hit = orders.error == EROFS || takes_room(c->kind);
    if (!hit) return PASS;
    c->fired = 1;
    if (orders.action == KILL) {
        note(c, -1, EINTR, NULL, 0);
        die();
    }
    return orders.action;
}

static void end(struct call *c, int64_t result, int error, const void *data, uint64_t size) {
    note(c, result, error, data, size);
    inside = 0;
    pthread_mutex_unlock(&lock);
    errno = error;
}

static int64_t refused(struct call *c) {
    end(c, -1, orders.error, NULL, 0);
    return -1;
}

/* A call that is made whole or not at all. */
#define SIMPLE(c, expression)                                          \
    do {                                                               \
        int met_ = start(c);                                           \
        if (met_ == ONCE || met_ == FROM_NOW_ON) return refused(c);    \
        int64_t result_ = (expression);                                \
        end(c, result_, result_ < 0 ? errno : 0, NULL, 0);             \
        return result_;                                                \
    } while (0)

/* A call that writes `size` bytes; `make(n)` writes n of them. */
#define WRITING(c, size, make, bytes)                                                   \
    do {                                                                                \
        int met_ = start(c);                                                            \
        size_t all_ = (size), n_ = all_;                                                \
        if (met_ == ONCE) return refused(c);                                            \
        if (met_ == FROM_NOW_ON && (orders.error == EROFS || (c)->number > orders.at))  \
            return refused(c);                                                          \
        if (met_ != PASS) n_ = all_ / 2;                                                \
        if (met_ == FROM_NOW_ON && n_ == 0) return refused(c);                          \
        if (met_ == SHORT && n_ == 0) n_ = all_;                                        \
        int64_t result_ = n_ || !all_ ? (make) : 0;                                     \
        int error_ = result_ < 0 ? errno : 0;                                           \
        if (met_ == HALF) {                                                             \
            note(c, result_, error_, (bytes), result_ > 0 ? (uint64_t)result_ : 0);     \
            die();                                                                      \
        }                                                                               \
        end(c, result_, error_, (bytes), result_ > 0 ? (uint64_t)result_ : 0);          \
        return result_;                                                                 \
    } while (0)

static struct call of_path(int series, int kind, int folder, const char *path) {
    struct call c = {.series = series, .kind = kind, .fd = -1};
    absolute(folder, path, c.path);
    return c;
}

static int of_handle(struct call *c, int series, int kind, int fd) {
    memset(c, 0, offsetof(struct call, path));
    c->series = series, c->kind = kind, c->fd = fd;
    c->second[0] = 0;
    return handle_path(fd, c->path) && under_root(c->path);
}

/* -- open ------------------------------------------------------------------------------------------------------ */

static int opened(int folder, const char *path, int flags, mode_t mode) {
    if (!watching()) return (int)syscall(SYS_openat, folder, path, flags, mode);
    struct call c = of_path(LOOKING, LOOK_OPEN, folder, path);
    if (!under_root(c.path)) return (int)syscall(SYS_openat, folder, path, flags, mode);
    if ((flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC))) {
        int there = !syscall(SYS_faccessat, AT_FDCWD, c.path, F_OK);
        c.series = CHANGING;
        c.kind = !there && (flags & O_CREAT) ? CREATE : flags & O_TRUNC ? TRUNCATE : OPEN;
    }
    SIMPLE(&c, syscall(SYS_openat, folder, path, flags, mode));
}

static mode_t mode_of(int flags, va_list more) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
}

#define OPENS(name)                                    \
    int name(const char *path, int flags, ...) {       \
        va_list more;                                  \
        va_start(more, flags);                         \
        mode_t mode = mode_of(flags, more);            \
        va_end(more);                                  \
        return opened(AT_FDCWD, path, flags, mode);    \
    }
#define OPENS_AT(name)                                       \
    int name(int folder, const char *path, int flags, ...) { \
        va_list more;                                        \
        va_start(more, flags);                               \
        mode_t mode = mode_of(flags, more);                  \
        va_end(more);                                        \
        return opened(folder, path, flags, mode);            \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static FILE *stream(const char *name, const char *path, const char *mode) {
    FILE *(*real)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, name);
    if (!watching()) return real(path, mode);
    int changing = strpbrk(mode, "wa+") != NULL;
    struct call c = of_path(changing ? CHANGING : LOOKING, LOOK_OPEN, AT_FDCWD, path);
    if (!under_root(c.path)) return real(path, mode);
    if (changing) {
        int there = !syscall(SYS_faccessat, AT_FDCWD, c.path, F_OK);
        c.kind = !there && mode[0] != 'r' ? CREATE : mode[0] == 'w' ? TRUNCATE : OPEN;
    }
    int met = start(&c);
    if (met == ONCE || met == FROM_NOW_ON) {
        refused(&c);
        return NULL;
    }
    FILE *found = real(path, mode);
    end(&c, found ? 0 : -1, found ? 0 : errno, NULL, 0);
    return found;
}
FILE *fopen(const char *path, const char *mode) { return stream("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return stream("fopen64", path, mode); }

/* -- writing --------------------------------------------------------------------------------------------------- */

static int64_t position(int fd) {
    int flags = (int)syscall(SYS_fcntl, fd, F_GETFL);
    struct stat s;
    if (flags & O_APPEND) return syscall(SYS_newfstatat, fd, "", &s, AT_EMPTY_PATH) ? 0 : (int64_t)s.st_size;
    return (int64_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t size) {
    struct call c;
    if (!watching() || !of_handle(&c, CHANGING, WRITE, fd)) return syscall(SYS_write, fd, data, size);
    c.offset = position(fd);
    WRITING(&c, size, syscall(SYS_write, fd, data, n_), data);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    struct call c;
    if (!watching() || !of_handle(&c, CHANGING, WRITE, fd)) return syscall(SYS_pwrite64, fd, data, size, offset);
    c.offset = offset;
    WRITING(&c, size, syscall(SYS_pwrite64, fd, data, n_, offset), data);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return pwrite(fd, data, size, offset); }

static char *joined(const struct iovec *parts, int count, size_t *size) {
    *size = 0;
    for (int i = 0; i < count; i++) *size += parts[i].iov_len;
    char *all = malloc(*size + 1), *next = all;
    for (int i = 0; i < count; i++) next = (char *)mempcpy(next, parts[i].iov_base, parts[i].iov_len);
    return all;
}
static ssize_t vectored(struct call *c, int fd, const char *all, size_t size, int64_t offset) {
    if (offset >= 0) WRITING(c, size, syscall(SYS_pwrite64, fd, all, n_, offset), all);
    WRITING(c, size, syscall(SYS_write, fd, all, n_), all);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct call c;
    if (!watching() || !of_handle(&c, CHANGING, WRITE, fd)) return syscall(SYS_writev, fd, parts, count);
    size_t size;
    char *all = joined(parts, count, &size);
    c.offset = position(fd);
    ssize_t result = vectored(&c, fd, all, size, -1);
    int error = errno;
    free(all);
    errno = error;
    return result;
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    struct call c;
    if (!watching() || !of_handle(&c, CHANGING, WRITE, fd))
        return syscall(SYS_pwritev, fd, parts, count, (long)offset, 0L);
    size_t size;
    char *all = joined(parts, count, &size);
    c.offset = offset;
    ssize_t result = vectored(&c, fd, all, size, offset);
    int error = errno;
    free(all);
    errno = error;
    return result;
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return pwritev(fd, parts, count, offset);
}

/* What was copied inside the kernel is read and written here instead, so that its bytes are known. */
static ssize_t copied(int to, off_t *to_at, int from, off_t *from_at, size_t size) {
    struct call c;
    of_handle(&c, CHANGING, WRITE, to);
    if (size > (size_t)1 << 22) size = (size_t)1 << 22;
    char *data = malloc(size + 1);
    inside = 1;
    ssize_t n = from_at ? syscall(SYS_pread64, from, data, size, *from_at) : syscall(SYS_read, from, data, size);
    int failed = errno;
    inside = 0;
    if (n <= 0) {
        free(data);
        errno = failed;
        return n;
    }
    c.offset = to_at ? *to_at : position(to);
    ssize_t written = vectored(&c, to, data, (size_t)n, to_at ? *to_at : -1);
    int error = errno;
    free(data);
    if (from_at && written > 0) *from_at += written;
    if (!from_at && written < n) syscall(SYS_lseek, from, (written > 0 ? written : 0) - n, SEEK_CUR);
    if (to_at && written > 0) *to_at += written;
    errno = error;
    return written;
}
static int is_watched(int fd) {
    char path[PATHS];
    return watching() && handle_path(fd, path) && under_root(path);
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    if (!is_watched(to)) return syscall(SYS_sendfile, to, from, at, size);
    return copied(to, NULL, from, at, size);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) { return sendfile(to, from, at, size); }
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned flags) {
    if (!is_watched(to)) return syscall(SYS_copy_file_range, from, from_at, to, to_at, size, flags);
    return copied(to, to_at, from, from_at, size);
}

#define ON_HANDLE(name, parameters, kind_, length, expression)                  \
    int name parameters {                                                      \
        struct call c;                                                          \
        if (!watching() || !of_handle(&c, CHANGING, kind_, fd)) return (int)(expression); \
        c.offset = (length);                                                    \
        SIMPLE(&c, expression);                                                 \
    }
ON_HANDLE(ftruncate, (int fd, off_t size), TRUNCATE, size, syscall(SYS_ftruncate, fd, size))
ON_HANDLE(ftruncate64, (int fd, off64_t size), TRUNCATE, size, syscall(SYS_ftruncate, fd, size))
ON_HANDLE(fallocate, (int fd, int mode, off_t at, off_t size), ATTRIBUTES, 0, syscall(SYS_fallocate, fd, mode, at, size))
ON_HANDLE(fsync, (int fd), SYNC, 0, syscall(SYS_fsync, fd))
ON_HANDLE(fdatasync, (int fd), SYNC, 0, syscall(SYS_fdatasync, fd))
ON_HANDLE(fchmod, (int fd, mode_t mode), ATTRIBUTES, 0, syscall(SYS_fchmod, fd, mode))
ON_HANDLE(futimens, (int fd, const struct timespec times[2]), ATTRIBUTES, 0, syscall(SYS_utimensat, fd, NULL, times, 0))

/* -- names that come and go ------------------------------------------------------------------------------------ */

#define ON_PATH(name, parameters, kind_, folder, path, expression)              \
    int name parameters {                                                       \
        if (!watching()) return (int)(expression);                              \
        struct call c = of_path(CHANGING, kind_, folder, path);                 \
        if (!under_root(c.path)) return (int)(expression);                      \
        SIMPLE(&c, expression);                                                 \
    }
ON_PATH(truncate, (const char *path, off_t size), TRUNCATE, AT_FDCWD, path, syscall(SYS_truncate, path, size))
ON_PATH(unlink, (const char *path), UNLINK, AT_FDCWD, path, syscall(SYS_unlinkat, AT_FDCWD, path, 0))
ON_PATH(unlinkat, (int folder, const char *path, int flags), flags & AT_REMOVEDIR ? RMDIR : UNLINK, folder, path,
        syscall(SYS_unlinkat, folder, path, flags))
ON_PATH(rmdir, (const char *path), RMDIR, AT_FDCWD, path, syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR))
ON_PATH(mkdir, (const char *path, mode_t mode), MKDIR, AT_FDCWD, path, syscall(SYS_mkdirat, AT_FDCWD, path, mode))
ON_PATH(mkdirat, (int folder, const char *path, mode_t mode), MKDIR, folder, path,
        syscall(SYS_mkdirat, folder, path, mode))
ON_PATH(symlink, (const char *to, const char *path), SYMLINK, AT_FDCWD, path, syscall(SYS_symlinkat, to, AT_FDCWD, path))
ON_PATH(symlinkat, (const char *to, int folder, const char *path), SYMLINK, folder, path,
        syscall(SYS_symlinkat, to, folder, path))
ON_PATH(chmod, (const char *path, mode_t mode), ATTRIBUTES, AT_FDCWD, path, syscall(SYS_fchmodat, AT_FDCWD, path, mode))
ON_PATH(fchmodat, (int folder, const char *path, mode_t mode, int flags), ATTRIBUTES, folder, path,
        syscall(SYS_fchmodat, folder, path, mode, flags))
ON_PATH(utimensat, (int folder, const char *path, const struct timespec times[2], int flags), ATTRIBUTES, folder, path,
        syscall(SYS_utimensat, folder, path, times, flags))
int remove(const char *path) {
    struct stat s;
    if (!syscall(SYS_newfstatat, AT_FDCWD, path, &s, AT_SYMLINK_NOFOLLOW) && S_ISDIR(s.st_mode)) return rmdir(path);
    return unlink(path);
}

static int linked(int kind, int folder, const char *path, int folder2, const char *second, int flags) {
#define LINKED (kind == LINK ? syscall(SYS_linkat, folder, path, folder2, second, flags) \
                             : syscall(SYS_renameat2, folder, path, folder2, second, flags))
    if (!watching()) return (int)LINKED;
    struct call c = of_path(CHANGING, kind, folder, path);
    absolute(folder2, second, c.second);
    if (!under_root(c.path) && !under_root(c.second)) return (int)LINKED;
    SIMPLE(&c, LINKED);
}
int link(const char *path, const char *second) { return linked(LINK, AT_FDCWD, path, AT_FDCWD, second, 0); }
int linkat(int folder, const char *path, int folder2, const char *second, int flags) {
    return linked(LINK, folder, path, folder2, second, flags);
}
int rename(const char *path, const char *second) { return linked(RENAME, AT_FDCWD, path, AT_FDCWD, second, 0); }
int renameat(int folder, const char *path, int folder2, const char *second) {
    return linked(RENAME, folder, path, folder2, second, 0);
}
int renameat2(int folder, const char *path, int folder2, const char *second, unsigned flags) {
    return linked(RENAME, folder, path, folder2, second, (int)flags);
}

/* -- looking --------------------------------------------------------------------------------------------------- */

ssize_t read(int fd, void *data, size_t size) {
    struct call c;
    if (!watching() || !of_handle(&c, LOOKING, LOOK_READ, fd)) return syscall(SYS_read, fd, data, size);
    SIMPLE(&c, syscall(SYS_read, fd, data, size));
}
ssize_t pread(int fd, void *data, size_t size, off_t offset) {
    struct call c;
    if (!watching() || !of_handle(&c, LOOKING, LOOK_READ, fd)) return syscall(SYS_pread64, fd, data, size, offset);
    SIMPLE(&c, syscall(SYS_pread64, fd, data, size, offset));
}
ssize_t pread64(int fd, void *data, size_t size, off64_t offset) { return pread(fd, data, size, offset); }

static int looked(int folder, const char *path, struct stat *out, int flags) {
    if (!watching() || !path || !*path) return (int)syscall(SYS_newfstatat, folder, path, out, flags);
    struct call c = of_path(LOOKING, LOOK_STAT, folder, path);
    if (!under_root(c.path)) return (int)syscall(SYS_newfstatat, folder, path, out, flags);
    SIMPLE(&c, syscall(SYS_newfstatat, folder, path, out, flags));
}
int stat(const char *path, struct stat *out) { return looked(AT_FDCWD, path, out, 0); }
int stat64(const char *path, struct stat64 *out) { return looked(AT_FDCWD, path, (struct stat *)out, 0); }
int lstat(const char *path, struct stat *out) { return looked(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW); }
int lstat64(const char *path, struct stat64 *out) {
    return looked(AT_FDCWD, path, (struct stat *)out, AT_SYMLINK_NOFOLLOW);
}
int fstatat(int folder, const char *path, struct stat *out, int flags) { return looked(folder, path, out, flags); }
int fstatat64(int folder, const char *path, struct stat64 *out, int flags) {
    return looked(folder, path, (struct stat *)out, flags);
}
int statx(int folder, const char *path, int flags, unsigned mask, struct statx *out) {
    if (!watching() || !*path) return (int)syscall(SYS_statx, folder, path, flags, mask, out);
    struct call c = of_path(LOOKING, LOOK_STAT, folder, path);
    if (!under_root(c.path)) return (int)syscall(SYS_statx, folder, path, flags, mask, out);
    SIMPLE(&c, syscall(SYS_statx, folder, path, flags, mask, out));
}

DIR *opendir(const char *path) {
    DIR *(*real)(const char *) = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
    if (!watching()) return real(path);
    struct call c = of_path(LOOKING, LOOK_LIST, AT_FDCWD, path);
    if (!under_root(c.path)) return real(path);
    int met = start(&c);
    if (met == ONCE || met == FROM_NOW_ON) {
        refused(&c);
        return NULL;
    }
    DIR *found = real(path);
    end(&c, found ? 0 : -1, found ? 0 : errno, NULL, 0);
    return found;
}
DIR *fdopendir(int fd) {
    DIR *(*real)(int) = (DIR * (*)(int)) dlsym(RTLD_NEXT, "fdopendir");
    struct call c;
    if (!watching() || !of_handle(&c, LOOKING, LOOK_LIST, fd)) return real(fd);
    int met = start(&c);
    if (met == ONCE || met == FROM_NOW_ON) {
        refused(&c);
        return NULL;
    }
    DIR *found = real(fd);
    end(&c, found ? 0 : -1, found ? 0 : errno, NULL, 0);
    return found;
}

/* -- marks ----------------------------------------------------------------------------------------------------- */

/* The process says that it has told somebody that `path` is safe. */
void faults_mark(const char *path) {
    if (!watching()) return;
    struct call c = of_path(MARK, MARKED, AT_FDCWD, path);
    pthread_mutex_lock(&lock);
    inside = 1;
    c.number = orders.count[CHANGING];
    end(&c, 0, 0, NULL, 0);
}
