// order FUNCTIONS CALLED PROGRAM [ARG...] - appends to CALLED which functions a program calls, itself and in what it forks,
// in the order of their first call. FUNCTIONS has the address of each, in hexadecimal, and so has CALLED. ptrace(2).
//
// The program is a static one at fixed addresses. Every function begins with a breakpoint that is taken away when it is
// hit, so a program is stopped once for each function that it calls, and not for each call. Another program that it
// executes is let go.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

struct function {
    unsigned long at;
    unsigned char first; // of its bytes
    char known, called;
};

static struct function *functions;
static size_t count;
static FILE *called;

static int by_address(const void *a, const void *b) {
    const struct function *one = a, *other = b;
    return (one->at > other->at) - (one->at < other->at);
}

static void read_functions(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) err(1, "%s", path);
    unsigned long at;
    while (fscanf(file, "%lx", &at) == 1) {
        functions = realloc(functions, (count + 1) * sizeof *functions);
        if (!functions) err(1, "memory");
        functions[count++] = (struct function){.at = at};
    }
    fclose(file);
    qsort(functions, count, sizeof *functions, by_address);
}

static int memory_of(pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    return open(path, O_RDWR | O_CLOEXEC);
}

static void set_breakpoints(pid_t pid) {
    int memory = memory_of(pid);
    if (memory < 0) err(1, "the memory of %d", pid);
    for (size_t i = 0; i < count; i++) {
        struct function *f = &functions[i];
        if (f->called) continue;
        if (!f->known && pread(memory, &f->first, 1, f->at) != 1) err(1, "%lx", f->at);
        f->known = 1;
        if (pwrite(memory, "\xcc", 1, f->at) != 1) err(1, "%lx", f->at);
    }
    close(memory);
}

// A process that was forked in the meantime may meet a function again.
static int is_breakpoint(pid_t pid) {
    struct user_regs_struct registers;
    if (ptrace(PTRACE_GETREGS, pid, 0, &registers) != 0) return 0;
    struct function wanted = {.at = registers.rip - 1};
    struct function *f = bsearch(&wanted, functions, count, sizeof *functions, by_address);
    if (!f || !f->known) return 0;
    if (!f->called) fprintf(called, "%lx\n", f->at);
    f->called = 1;
    int memory = memory_of(pid);
    if (memory < 0 || pwrite(memory, &f->first, 1, f->at) != 1) err(1, "%lx", f->at);
    close(memory);
    registers.rip -= 1;
    ptrace(PTRACE_SETREGS, pid, 0, &registers);
    return 1;
}

static int executes(pid_t pid, const struct stat *program) {
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    return stat(path, &found) == 0 && found.st_dev == program->st_dev && found.st_ino == program->st_ino;
}

int main(int argc, char **argv) {
    if (argc < 4) errx(2, "usage: order FUNCTIONS CALLED PROGRAM [ARG...]");
    read_functions(argv[1]);
    called = fopen(argv[2], "ae");
    if (!called) err(1, "%s", argv[2]);
    struct stat program;
    if (stat(argv[3], &program) != 0) err(1, "%s", argv[3]);
    pid_t first = fork();
    if (first == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        execv(argv[3], argv + 3);
        err(127, "%s", argv[3]);
    }
    int status, code = 1;
    if (waitpid(first, &status, 0) != first) err(1, "wait");
    ptrace(PTRACE_SETOPTIONS, first, 0,
        PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC);
    ptrace(PTRACE_CONT, first, 0, 0);
    for (;;) {
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0) break;
        if (WIFEXITED(status) && pid == first) code = WEXITSTATUS(status);
        if (!WIFSTOPPED(status)) continue;
        int signal = WSTOPSIG(status), event = status >> 16;
        if (event == PTRACE_EVENT_EXEC && !executes(pid, &program)) {
            ptrace(PTRACE_DETACH, pid, 0, 0);
            continue;
        }
        if (event == PTRACE_EVENT_EXEC) set_breakpoints(pid);
        int is_ours = event != 0 || signal == SIGSTOP || (signal == SIGTRAP && is_breakpoint(pid));
        ptrace(PTRACE_CONT, pid, 0, is_ours ? 0 : signal);
    }
    return code;
}
