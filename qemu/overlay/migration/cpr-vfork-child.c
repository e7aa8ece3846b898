/*
 * CPR by vfork and exec: the new QEMU as a child of the old one
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * It is started, limited in time, and ended here.  There is one at most.
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "qemu/lockable.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "qapi/error.h"
#include "migration/cpr.h"
#include "migration/cpr-vfork.h"

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

/* The channels are closed within an exit; this is for what comes before. */
#define EXIT_GRACE_MS       50
#define NEVER               INT64_MAX

static struct {
    pid_t pid;
    QemuThread watchdog;
    QemuMutex lock;         /* the rest */
    QemuCond cond;
    int64_t deadline_ms;    /* QEMU_CLOCK_REALTIME */
    bool stop, overdue;
} child;

/************************************************************************/
/* Deadlines */

/*
 * A child that hangs may block us in a write to the main channel with the
 * BQL held, so that a timer of the main loop would be of no use.
 */
static void *cpr_vfork_watchdog(void *opaque)
{
    QEMU_LOCK_GUARD(&child.lock);
    while (!child.stop) {
        int64_t left_ms;

        if (child.deadline_ms == NEVER) {
            qemu_cond_wait(&child.cond, &child.lock);
            continue;
        }
        left_ms = child.deadline_ms - qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
        if (left_ms <= 0) {
            child.overdue = true;
            /* No other process can have the pid: it is reaped after our end */
            kill(child.pid, SIGKILL);
            break;
        }
        qemu_cond_timedwait(&child.cond, &child.lock, left_ms);
    }
    return NULL;
}

static void cpr_vfork_start_watchdog(void)
{
    child.stop = child.overdue = false;
    child.deadline_ms = NEVER;
    qemu_mutex_init(&child.lock);
    qemu_cond_init(&child.cond);
    qemu_thread_create(&child.watchdog, "mig/vfork", cpr_vfork_watchdog, NULL,
                       QEMU_THREAD_JOINABLE);
}

/* Kill the child if it lives that long from now; 0: however long it lives */
void cpr_vfork_child_limit(uint32_t limit_ms)
{
    QEMU_LOCK_GUARD(&child.lock);
    child.deadline_ms = limit_ms ?
                        qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + limit_ms :
                        NEVER;
    qemu_cond_signal(&child.cond);
}

/* No limit from here on; false when it was killed already */
bool cpr_vfork_child_spare(void)
{
    QEMU_LOCK_GUARD(&child.lock);
    if (!child.overdue) {
        child.deadline_ms = NEVER;
    }
    return !child.overdue;
}

/* It lives its own life: it will not be killed by us any more. */
void cpr_vfork_child_release(void)
{
    WITH_QEMU_LOCK_GUARD(&child.lock) {
        child.stop = true;
        qemu_cond_signal(&child.cond);
    }
    qemu_thread_join(&child.watchdog);
    qemu_cond_destroy(&child.cond);
    qemu_mutex_destroy(&child.lock);
}

/************************************************************************/
/* Start */

static bool cpr_vfork_keep_fd(int fd)
{
    int flags = fcntl(fd, F_GETFD);

    return flags >= 0 && fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC) == 0;
}

/*
 * Runs in the child, which shares our memory until it executes: nothing but
 * async-signal-safe calls, and no change to what we would see.  The descriptor
 * table is its own.
 */
static void G_NORETURN cpr_vfork_exec(char **argv, char **envp,
                                      const int *fds, size_t n_fds,
                                      /* volatile: read by the parent */
                                      volatile int *error)
{
    struct sigaction action;
    sigset_t none;
    bool ok;

    for (int sig = 1; sig < NSIG; sig++) {
        if (!sigaction(sig, NULL, &action) && action.sa_handler != SIG_IGN) {
            action.sa_handler = SIG_DFL;
            action.sa_flags = 0;
            sigaction(sig, &action, NULL);
        }
    }
    /* Since Linux 5.11; without it, what QEMU marked itself has to do */
    syscall(__NR_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
    ok = cpr_walk_fd(cpr_vfork_keep_fd);
    for (size_t i = 0; ok && i < n_fds; i++) {
        ok = cpr_vfork_keep_fd(fds[i]);
    }
    if (ok) {
        sigemptyset(&none);
        pthread_sigmask(SIG_SETMASK, &none, NULL);
        execve(argv[0], argv, envp);
    }
    *error = errno;
    _exit(127);
}

/*
 * Execute @argv with @fds and those of the CPR state open.  Returns its pid,
 * or -1.
 */
pid_t cpr_vfork_child_start(char **argv, char **envp, const GArray *fds,
                            Error **errp)
{
    volatile int error = 0;     /* volatile: written by the child */
    sigset_t all, before;
    pid_t pid;

    /* No handler of ours may run in the child */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid = vfork();
    if (pid == 0) {
        cpr_vfork_exec(argv, envp, (const int *)fds->data, fds->len, &error);
    }
    if (pid < 0) {
        error = errno;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);

    if (error) {
        if (pid > 0) {
            waitpid(pid, NULL, 0);
        }
        error_setg_errno(errp, error, "cpr-vfork: cannot execute %s", argv[0]);
        return -1;
    }
    child.pid = pid;
    cpr_vfork_start_watchdog();
    return pid;
}

/************************************************************************/
/* End */

/* Whoever waits for it goes on. */
void cpr_vfork_child_kill(void)
{
    kill(child.pid, SIGKILL);
}

int cpr_vfork_child_wait(void)
{
    int status = 0;

    while (waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
        continue;
    }
    return status;
}

/*
 * End the child, know that it is gone, and say how it ended; NULL when that
 * was by its limit.  @ctl_fd: where to look whether it is about to exit, with
 * a status that tells more; or -1.
 */
char *cpr_vfork_child_end(int ctl_fd)
{
    struct pollfd ctl = { .fd = ctl_fd };
    int status;

    cpr_vfork_child_release();
    if (!child.overdue && ctl_fd >= 0) {
        RETRY_ON_EINTR(poll(&ctl, 1, EXIT_GRACE_MS));
    }
    cpr_vfork_child_kill();
    status = cpr_vfork_child_wait();
    if (child.overdue) {
        return NULL;
    }
    if (WIFEXITED(status)) {
        return g_strdup_printf("the new QEMU exited with status %d",
                               WEXITSTATUS(status));
    }
    return g_strdup_printf("the new QEMU was killed by signal %d",
                           WTERMSIG(status));
}
