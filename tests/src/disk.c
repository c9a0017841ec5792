// Loaded into a program by LD_PRELOAD: calls do not return while a file of their name is in the
// directory $HANGING. To the program this is a disk that does not answer.
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void hang(const char *calls) {
    char file[PATH_MAX];
    snprintf(file, sizeof file, "%s/%s", getenv("HANGING"), calls);
    while (access(file, F_OK) == 0)
        usleep(1000);
}

int fdatasync(int file) {
    hang("sync");
    return (int)syscall(SYS_fdatasync, file);
}

int fsync(int file) {
    hang("sync");
    return (int)syscall(SYS_fsync, file);
}

int unlink(const char *path) {
    hang("delete");
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
