/* What a loss of power leaves of a directory: power ROOT COPY CALLS COMMAND...

Runs COMMAND and keeps in COPY what it has synced below ROOT. Stops it at each fsync, fdatasync and syncfs that CALLS names, by
whatever library it is called (seccomp(2), ptrace(2)), and notes before the call goes on:
    COPY/INODE        the bytes of a file, as they were at its last sync
    COPY/INODE.names  the names in a directory at its last sync: INODE MODE NAME, a line each
What is there when it starts counts as synced. Any other way to sync is not noted, so it promises nothing: a test errs by failing.
A SIGTERM is the power cut: COMMAND and what it started are killed. Exits with 0 then, with 1 if COMMAND ended by itself. */

#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/limits.h>
#include <linux/seccomp.h>
#include <search.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *root;
static int copy;
static struct stat root_is;
static pid_t command;
static volatile sig_atomic_t cut;

static int compare(const void *a, const void *b) { return (*(const ino_t *)a > *(const ino_t *)b) - (*(const ino_t *)a < *(const ino_t *)b); }

/* Keep the inode from being given to another file while this runs: takes the descriptor. */
static void hold(int fd, ino_t inode) {
    static void *held;
    ino_t *key = malloc(sizeof *key);
    if (!key) err(2, "hold");
    *key = inode;
    ino_t **found = tsearch(key, &held, compare);
    if (!found) err(2, "hold");
    if (*found != key) {
        free(key);
        close(fd);
    }
}

static void note_file(int fd, ino_t inode) {
    static char now[1 << 16], before[sizeof now];
    char name[32];
    snprintf(name, sizeof name, "%lu", (unsigned long)inode);
    int to = openat(copy, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (to < 0) err(2, "%s", name);
    off_t at = 0;
    for (ssize_t n; (n = pread(fd, now, sizeof now, at)); at += n) {
        if (n < 0) err(2, "read %s", name);
        if (pread(to, before, n, at) == n && !memcmp(now, before, n)) continue;
        if (pwrite(to, now, n, at) != n) err(2, "write %s", name);
    }
    if (ftruncate(to, at) || close(to)) err(2, "%s", name);
}

/* All below it too with `deep`, and the bytes of files. */
static void note_names(int fd, ino_t inode, int deep) {
    char path[32];
    snprintf(path, sizeof path, "%lu.names", (unsigned long)inode);
    int to = openat(copy, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FILE *names = to < 0 ? NULL : fdopen(to, "w");
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = again < 0 ? NULL : fdopendir(again);
    if (!names || !directory) err(2, "%s", path);
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        struct stat is;
        int held = openat(fd, entry->d_name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        /* Gone meanwhile. */
        if (held < 0 && errno == ENOENT) continue;
        if (held < 0 || fstat(held, &is)) err(2, "%s", entry->d_name);
        fprintf(names, "%lu %u %s\n", (unsigned long)is.st_ino, is.st_mode, entry->d_name);
        int file = deep && (S_ISDIR(is.st_mode) || S_ISREG(is.st_mode)) ? openat(fd, entry->d_name, O_RDONLY | O_CLOEXEC) : -1;
        if (file >= 0) {
            if (S_ISDIR(is.st_mode)) note_names(file, is.st_ino, 1);
            else note_file(file, is.st_ino);
            close(file);
        }
        hold(held, is.st_ino);
    }
    closedir(directory);
    if (fclose(names)) err(2, "%s", path);
}

static void note_all(void) {
    int fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) err(2, "%s", root);
    note_names(fd, root_is.st_ino, 1);
    close(fd);
}

static void note(pid_t thread, unsigned long call, unsigned number) {
    char link[64], path[PATH_MAX];
    struct stat is;
    snprintf(link, sizeof link, "/proc/%d/fd/%u", thread, number);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return; /* No such descriptor: the call fails. */
    path[length] = 0;
    size_t below = strlen(root);
    if (strncmp(path, root, below) || (path[below] && path[below] != '/')) return;
    if (call == SYS_syncfs) {
        note_all();
        return;
    }
    int fd = open(link, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &is)) {
        if (kill(command, 0)) return; /* The power cut came first. */
        err(2, "%s", path);
    }
    if (S_ISDIR(is.st_mode)) note_names(fd, is.st_ino, 0);
    else note_file(fd, is.st_ino);
    hold(fd, is.st_ino);
}

static void on_term(int number) {
    (void)number;
    cut = 1;
    kill(command, SIGKILL);
}

static void run(char **argv) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fsync, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fdatasync, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_syncfs, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (ptrace(PTRACE_TRACEME, 0, 0, 0)) err(2, "ptrace");
    raise(SIGSTOP);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) err(2, "seccomp");
    execvp(*argv, argv);
    err(2, "%s", *argv);
}

int main(int argc, char **argv) {
    if (argc < 5) errx(2, "power ROOT COPY CALLS COMMAND...");
    const char *calls = argv[3];
    struct rlimit files;
    root = realpath(argv[1], NULL);
    if (!root || stat(root, &root_is)) err(2, "%s", argv[1]);
    if ((copy = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) err(2, "%s", argv[2]);
    if ((command = fork()) == 0) run(argv + 4);
    /* Its own, not the command's: every inode noted is held open. */
    if (getrlimit(RLIMIT_NOFILE, &files)) err(2, "files");
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files)) err(2, "files");
    signal(SIGTERM, on_term);
    int status;
    if (command < 0 || waitpid(command, &status, 0) < 0 || !WIFSTOPPED(status)) err(2, "fork");
    long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SETOPTIONS, command, 0, options)) err(2, "ptrace");
    note_all();
    for (pid_t thread = command;;) {
        int event = status >> 16, deliver = 0;
        if (event == PTRACE_EVENT_SECCOMP) {
            struct __ptrace_syscall_info info;
            if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) > 0) {
                unsigned long call = info.seccomp.nr;
                const char *name = call == SYS_fsync ? "fsync" : call == SYS_fdatasync ? "fdatasync" : "syncfs";
                if (strstr(calls, name)) note(thread, call, info.seccomp.args[0]);
            }
        } else if (!event && WSTOPSIG(status) != SIGSTOP) {
            /* A stop is how each traced thread begins. */
            deliver = WSTOPSIG(status);
        }
        /* Fails for one that was killed meanwhile. */
        ptrace(PTRACE_CONT, thread, 0, deliver);
        do {
            while ((thread = waitpid(-1, &status, __WALL)) < 0)
                if (errno != EINTR) err(2, "wait");
            if (thread == command && !WIFSTOPPED(status)) return !cut;
        } while (!WIFSTOPPED(status));
    }
}
