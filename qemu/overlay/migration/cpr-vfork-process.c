/*
 * CPR by vfork and exec: what the operating system sees of the VM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The pid file, and what ends with whom.  The descriptor of the pid file is
 * inherited, so that it does not matter which user QEMU has become.
 */

#include "qemu/osdep.h"
#include <sys/prctl.h>
#include "qemu/config-file.h"
#include "qemu/error-report.h"
#include "qemu/notify.h"
#include "qemu/option.h"
#include "qemu/thread.h"
#include "qapi/error.h"
#include "migration/cpr-vfork.h"
#include "system/system.h"

static struct {
    int fd;
    char *path;                 /* absolute, for the unlink at exit */
    const char *wanted;         /* in the command of new QEMU */
    Notifier exit;
} pidfile = { .fd = -1 };

static QemuOpts *cpr_vfork_run_with(void)
{
    return qemu_opts_find(qemu_find_opts("run-with"), NULL);
}

/* Either: the VM cannot end with a parent that it will not have */
bool cpr_vfork_check_parent(Error **errp)
{
    QemuOpts *opts = cpr_vfork_run_with();

    if (opts && qemu_opt_get_bool(opts, "exit-with-parent", false)) {
        error_setg(errp, "cpr-vfork is not possible with -run-with "
                   "exit-with-parent=on: the new QEMU is a child of the old "
                   "one, not of its parent");
        return false;
    }
    return true;
}

/************************************************************************/
/* Old QEMU */

bool cpr_vfork_check_root(Error **errp)
{
    QemuOpts *opts = cpr_vfork_run_with();

    if (opts && qemu_opt_get(opts, "chroot")) {
        error_setg(errp, "cpr-vfork is not possible with -run-with chroot=%s: "
                   "what the new QEMU needs to start lies outside",
                   qemu_opt_get(opts, "chroot"));
        return false;
    }
    return true;
}

/* To be called while it can be opened.  The lock is bound to the process. */
void cpr_vfork_pidfile_written(const char *path)
{
    pidfile.fd = qemu_open_old(path, O_WRONLY);
}

int cpr_vfork_pidfile_fd(void)
{
    return pidfile.fd;
}

/************************************************************************/
/* New QEMU */

/* In place of writing it, which is left until the guest is ours */
void cpr_vfork_pidfile_want(const char *path)
{
    pidfile.wanted = path;
}

bool cpr_vfork_pidfile_inherit(int fd, Error **errp)
{
    g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autofree char *held = NULL;
    g_autofree char *wanted = NULL;

    if (!pidfile.wanted) {
        if (fd >= 0) {
            close(fd);
        }
        return true;
    }
    if (fd < 0) {
        error_setg(errp, "cpr-vfork: -pidfile %s: the old QEMU has no pid file "
                   "that could be taken over", pidfile.wanted);
        return false;
    }
    qemu_set_cloexec(fd);
    held = g_file_read_link(link, NULL);
    wanted = realpath(pidfile.wanted, NULL);
    /* A directory that only root may enter does not make it another file */
    if (!held || (!wanted && errno != EACCES) ||
        (wanted && strcmp(wanted, held))) {
        error_setg(errp, "cpr-vfork: -pidfile %s is not the pid file of the "
                   "old QEMU, %s", pidfile.wanted, held ?: "which is unknown");
        return false;
    }
    pidfile.fd = fd;
    pidfile.path = g_steal_pointer(&held);
    return true;
}

static void cpr_vfork_pidfile_unlink(Notifier *notifier, void *data)
{
    unlink(pidfile.path);
}

/* The old QEMU has the lock until it ends */
static void *cpr_vfork_pidfile_lock(void *opaque)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

    if (RETRY_ON_EINTR(fcntl(pidfile.fd, F_SETLKW, &lock)) < 0) {
        warn_report("cpr-vfork: cannot lock the pid file %s: %s",
                    pidfile.path, strerror(errno));
    }
    return NULL;
}

/* The guest is ours: so is the file. */
void cpr_vfork_pidfile_take(void)
{
    g_autofree char *text = g_strdup_printf(FMT_pid "\n", getpid());
    ssize_t length = strlen(text);
    QemuThread thread;

    if (!pidfile.path) {
        return;
    }
    if (ftruncate(pidfile.fd, 0) < 0 ||
        pwrite(pidfile.fd, text, length, 0) != length) {
        warn_report("cpr-vfork: cannot write the pid file %s: %s",
                    pidfile.path, strerror(errno));
    }
    pidfile.exit.notify = cpr_vfork_pidfile_unlink;
    qemu_add_exit_notifier(&pidfile.exit);
    qemu_thread_create(&thread, "pidfile", cpr_vfork_pidfile_lock, NULL,
                       QEMU_THREAD_DETACHED);
}

/*
 * Whatever hinders the new QEMU to notice that the old one has ended.  From
 * @loaded on the token tells whether the end of the old one is that of the new.
 */
void cpr_vfork_end_with_old(bool on)
{
    prctl(PR_SET_PDEATHSIG, on ? SIGKILL : 0);
}
