// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * First process of an emulated host: put the root file system together, run one command in it,
 * tell its exit status, power off.
 *
 * What to do stands in /kintsugi.run of the initramfs, as records "key=value", each ended by a NUL:
 *
 *   root=9p     the root is the 9p share "root", read-only, below a writable layer in memory;
 *   root=here   the root is the initramfs itself
 *   share=DIR   9p share "share0" (the next one "share1", ...) is mounted writable on DIR
 *   cwd=DIR     where the command starts
 *   env=A=B     a variable of its environment, which has no others
 *   arg=WORD    the next word of the command
 *   tty=1       the command gets a terminal, else the ports "out" and "err"
 *
 * The port "status" then carries one line: "started", and after it either "exit N", with N as a
 * shell would show it, or "error TEXT" if the host could not be set up.
 *
 * The ports are those of virtio with that name, the terminal is hvc0. Without virtio they are the
 * serial lines after the console's: status ttyS1, out ttyS2, err and the terminal ttyS3. Where
 * these are missing too, all goes to the console, each line of ours behind "kintsugi-status ".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define WORDS_MAX 4096
#define SHARES_MAX 8
#define RUN_FILE_BYTES_MAX (1 << 20)

static struct {
    bool root_9p;
    bool tty;
    const char *cwd;
    const char *shares[SHARES_MAX + 1];
    char *env[WORDS_MAX + 1];
    char *args[WORDS_MAX + 1];
} run = {.cwd = "/"};

static int status_fd = -1;
static bool status_is_port;

static void tell(const char *format, ...)
{
    char line[512];
    va_list list;

    va_start(list, format);
    vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    dprintf(status_fd, "%s%s\n", status_is_port ? "" : "kintsugi-status ", line);
}

static _Noreturn void power_off(void)
{
    tcdrain(status_fd);
    sync();
    reboot(RB_POWER_OFF);
    for (;;) {
        pause();
    }
}

static _Noreturn void fail(const char *what)
{
    tell("error %s: %s", what, strerror(errno));
    power_off();
}

static void must_mount(const char *source, const char *target, const char *type,
                       unsigned long flags, const char *options)
{
    char what[256];

    if (mount(source, target, type, flags, options)) {
        snprintf(what, sizeof(what), "mount of %s on %s", type, target);
        fail(what);
    }
}

/* For what a kernel may lack: a test that needs it will say so itself. */
static void may_mount(const char *source, const char *target, const char *type,
                      const char *options)
{
    mkdir(target, 0755);
    mount(source, target, type, 0, options);
}

static void add(char **list, char *word)
{
    int n = 0;

    while (list[n]) {
        n++;
    }
    if (n == WORDS_MAX) {
        errno = E2BIG;
        fail("/kintsugi.run");
    }
    list[n] = word;
}

static void read_run_file(void)
{
    static char text[RUN_FILE_BYTES_MAX];
    int fd = open("/kintsugi.run", O_RDONLY | O_CLOEXEC);
    ssize_t got, used = 0;
    int shares = 0;

    if (fd < 0) {
        fail("/kintsugi.run");
    }
    while ((got = read(fd, text + used, sizeof(text) - 1 - used)) > 0) {
        used += got;
    }
    close(fd);
    for (char *record = text; record < text + used; record += strlen(record) + 1) {
        char *value = strchr(record, '=');

        if (!value) {
            continue;
        }
        value++;
        if (!strncmp(record, "root=", 5)) {
            run.root_9p = !strcmp(value, "9p");
        } else if (!strncmp(record, "share=", 6) && shares < SHARES_MAX) {
            run.shares[shares++] = value;
        } else if (!strncmp(record, "cwd=", 4)) {
            run.cwd = value;
        } else if (!strncmp(record, "tty=", 4)) {
            run.tty = true;
        } else if (!strncmp(record, "env=", 4)) {
            add(run.env, value);
        } else if (!strncmp(record, "arg=", 4)) {
            add(run.args, value);
        }
    }
}

/* Opens a serial line, `raw` or as a terminal; -1 without one. */
static int open_serial(const char *path, bool raw)
{
    int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios settings;

    if (fd < 0) {
        return -1;
    }
    if (tcgetattr(fd, &settings)) { /* no such hardware */
        close(fd);
        return -1;
    }
    if (raw) {
        cfmakeraw(&settings);
    }
    settings.c_cflag |= CLOCAL;
    cfsetspeed(&settings, B115200);
    tcsetattr(fd, TCSANOW, &settings);
    return fd;
}

/* Opens the virtio port of that name; -1 without one. */
static int open_virtio(const char *name)
{
    DIR *ports = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    int found = -1;

    while (ports && found < 0 && (entry = readdir(ports))) {
        char path[300], text[64] = "";
        int fd;

        snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        if (read(fd, text, sizeof(text) - 1) > 0) {
            text[strcspn(text, "\n")] = '\0';
            if (!strcmp(text, name)) {
                snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
                found = open(path, O_RDWR | O_CLOEXEC);
            }
        }
        close(fd);
    }
    if (ports) {
        closedir(ports);
    }
    return found;
}

static int open_port(const char *name, const char *serial)
{
    int fd = open_virtio(name);

    return fd >= 0 ? fd : open_serial(serial, true);
}

static void make_root(void)
{
    char tag[16];

    if (run.root_9p) {
        mkdir("/lower", 0755);
        mkdir("/layer", 0755);
        mkdir("/new", 0755);
        must_mount("root", "/lower", "9p", MS_RDONLY,
                   "trans=virtio,version=9p2000.L,msize=262144,cache=loose,access=any");
        must_mount("tmpfs", "/layer", "tmpfs", 0, "size=75%");
        mkdir("/layer/upper", 0755);
        mkdir("/layer/work", 0755);
        must_mount("overlay", "/new", "overlay", 0,
                   "lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work");
        must_mount("/dev", "/new/dev", NULL, MS_MOVE, NULL);
        must_mount("/sys", "/new/sys", NULL, MS_MOVE, NULL);
        must_mount("/proc", "/new/proc", NULL, MS_MOVE, NULL);
        if (chdir("/new") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/")) {
            fail("change of root");
        }
    }
    may_mount("tmpfs", "/run", "tmpfs", "mode=0755");
    may_mount("tmpfs", "/dev/shm", "tmpfs", "mode=1777");
    may_mount("devpts", "/dev/pts", "devpts", "ptmxmode=0666");
    may_mount("hugetlbfs", "/dev/hugepages", "hugetlbfs", NULL);
    may_mount("debugfs", "/sys/kernel/debug", "debugfs", NULL);
    may_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", NULL);
    symlink("/proc/self/fd", "/dev/fd");
    symlink("/proc/self/fd/0", "/dev/stdin");
    symlink("/proc/self/fd/1", "/dev/stdout");
    symlink("/proc/self/fd/2", "/dev/stderr");
    for (int i = 0; run.shares[i]; i++) {
        snprintf(tag, sizeof(tag), "share%d", i);
        must_mount(tag, run.shares[i], "9p", 0,
                   "trans=virtio,version=9p2000.L,msize=262144,cache=none,access=any");
    }
}

static void loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd >= 0) {
        ioctl(fd, SIOCSIFFLAGS, &request);
        close(fd);
    }
}

static _Noreturn void start(int out, int err)
{
    setsid();
    if (run.tty) {
        int tty = open("/dev/hvc0", O_RDWR);

        if (tty < 0) {
            tty = open_serial("/dev/ttyS3", false);
        }
        ioctl(tty, TIOCSCTTY, 0);
        dup2(tty, 0);
        out = err = tty;
    } else {
        dup2(open("/dev/null", O_RDONLY), 0);
    }
    dup2(out, 1);
    dup2(err, 2);
    if (chdir(run.cwd)) {
        dprintf(2, "%s: %s\n", run.cwd, strerror(errno));
        _exit(126);
    }
    environ = run.env;
    execvp(run.args[0], run.args);
    dprintf(2, "%s: %s\n", run.args[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

int main(void)
{
    int out = -1, err = -1, status, code;
    pid_t child, ended;

    status_fd = open("/dev/console", O_RDWR | O_CLOEXEC);
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    must_mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    must_mount("proc", "/proc", "proc", 0, NULL);
    must_mount("sysfs", "/sys", "sysfs", 0, NULL);
    status = open_port("status", "/dev/ttyS1");
    if (status >= 0) {
        status_fd = status;
        status_is_port = true;
    }
    read_run_file();
    if (!run.tty) {
        out = open_port("out", "/dev/ttyS2");
        err = open_port("err", "/dev/ttyS3");
        if (out < 0 || err < 0) {
            out = err = status_fd;
        }
    }
    make_root();
    loopback_up();
    sethostname("emulated", 8);
    tell("started");
    child = fork();
    if (child == 0) {
        start(out, err);
    }
    if (child < 0) {
        fail("fork");
    }
    do { /* also reaps orphans */
        ended = wait(&status);
    } while (ended != child && !(ended < 0 && errno != EINTR));
    code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    tcdrain(out);
    tcdrain(err);
    tell("exit %d", code);
    power_off();
}
