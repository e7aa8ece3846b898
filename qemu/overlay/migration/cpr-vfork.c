/*
 * CPR by vfork and exec, the old QEMU's side
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The new QEMU is a child of the old one.  It makes itself ready while the
 * guest runs; then the guest is stopped, its device state goes over a socket
 * pair, and the new QEMU says that it has loaded it.  Up to here any error,
 * EOF or time-out makes the old QEMU kill and reap the child and run the guest
 * on.  To commit, the old QEMU gives up the token (see cpr-vfork-token.c);
 * from there on the token alone says who runs the guest.
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/socket.h>
#include "qemu/config-file.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/memfd.h"
#include "qemu/option.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/qapi-commands-cpr-vfork.h"
#include "qapi/qapi-events-cpr-vfork.h"
#include "qapi/type-helpers.h"
#include "io/channel-file.h"
#include "io/channel-util.h"
#include "migration/cpr.h"
#include "migration/cpr-vfork.h"
#include "migration/misc.h"
#include "monitor/monitor.h"
#include "cpr-vfork-compat.h"
#include "options.h"
#include "qemu-file.h"
#include "trace.h"

#define STATE_BUFFER_BYTES  (4 * MiB)
/* New QEMU has all it needs to start the vCPUs: it is a matter of ms. */
#define RUNNING_TIMEOUT_MS  10000
/* A commit at the last moment of the pause budget is given so long. */
#define TAKE_TIMEOUT_MIN_MS 50

/* How hand-overs are made; changed by cpr-vfork-set */
static struct {
    uint32_t pause_budget_ms;
    uint32_t prepare_timeout_ms;
    bool rehearse;
    intList *fds;
} set = { .pause_budget_ms = 1000, .prepare_timeout_ms = 60000 };

/* The present or last hand-over.  Protected by the BQL. */
static struct {
    bool begun;             /* its end was not told yet */
    bool active;            /* the child is ours: neither reaped nor let go */
    bool committed;
    CprVforkPhase phase;
    char *reason;
    pid_t pid;
    int state_fd, page_fd, main_fd, ctl_fd;
    CprVforkPage *page;
    int64_t pause_until_ms; /* QEMU_CLOCK_REALTIME */
} old = { .state_fd = -1, .page_fd = -1, .main_fd = -1, .ctl_fd = -1 };

static void cpr_vfork_tell(void)
{
    qapi_event_send_cpr_vfork(old.phase, old.pid, old.reason);
}

static void cpr_vfork_enter(CprVforkPhase phase)
{
    old.phase = phase;
    cpr_vfork_mark(old.page, phase);
    cpr_vfork_tell();
}

/************************************************************************/
/* The end */

static void cpr_vfork_close_fds(void)
{
    int *fds[] = { &old.page_fd, &old.main_fd, &old.ctl_fd };

    if (old.ctl_fd >= 0) {
        qemu_set_fd_handler(old.ctl_fd, NULL, NULL, NULL);
    }
    for (int i = 0; i < ARRAY_SIZE(fds); i++) {
        if (*fds[i] >= 0) {
            close(*fds[i]);
            *fds[i] = -1;
        }
    }
}

static char *cpr_vfork_overdue(void)
{
    if (old.phase < CPR_VFORK_PHASE_READY) {
        return g_strdup_printf("the new QEMU was not ready within %" PRIu32
                               " ms", set.prepare_timeout_ms);
    }
    return g_strdup_printf("the pause exceeded its budget of %" PRIu32 " ms",
                           set.pause_budget_ms);
}

/* Before the guest runs on here, after any failure.  Idempotent. */
void cpr_vfork_abort(void)
{
    g_autofree char *how = NULL;

    if (!old.active || old.committed) {
        return;
    }
    how = cpr_vfork_child_end(old.reason ? -1 : old.ctl_fd);
    old.active = false;
    cpr_vfork_take_back_devices();
    if (!old.reason) {
        old.reason = how ? g_steal_pointer(&how) : cpr_vfork_overdue();
    }
    cpr_vfork_close_fds();
    cpr_vfork_hear_clients(true);
    old.phase = CPR_VFORK_PHASE_ABORTED;
    cpr_vfork_mark(old.page, CPR_VFORK_PHASE_ABORTED);
}

/* The migration is over, whatever way. */
void cpr_vfork_source_destroy(void)
{
    cpr_vfork_abort();
    if (old.active) {
        /* It is the VM now, or nobody is */
        cpr_vfork_child_release();
        cpr_vfork_close_fds();
        old.active = false;
    }
    old.state_fd = -1;      /* closed with its QEMUFile */
}

/* All is settled: whoever hears of the end may begin anew. */
void cpr_vfork_tell_end(void)
{
    if (old.begun) {
        old.begun = false;
        cpr_vfork_tell();
    }
}

/* The child's end makes everybody who waits for it go on. */
void cpr_vfork_cancel(void)
{
    if (old.active && !old.committed) {
        if (!old.reason) {
            old.reason = g_strdup("it was cancelled");
        }
        cpr_vfork_child_kill();
    }
}

bool cpr_vfork_is_committed(void)
{
    return old.active && old.committed;
}

static void cpr_vfork_exit(int status)
{
    fflush(NULL);
    _exit(old.phase == CPR_VFORK_PHASE_LOST ||
          old.phase == CPR_VFORK_PHASE_STRANDED ? EXIT_FAILURE : status);
}

/* The guest, its devices and its files are not ours any more. */
bool cpr_vfork_is_given(void)
{
    return old.page && cpr_vfork_owner(old.page) != CPR_VFORK_OWNER_OLD;
}

/*
 * Sockets, disks and the pid file are those of the new QEMU, once it may run
 * the guest: end without what is done at exit, which would take them away.
 */
void cpr_vfork_leave(int status)
{
    if (cpr_vfork_is_given()) {
        /* Sends the answer to "quit" */
        monitor_cleanup();
        cpr_vfork_exit(status);
    }
}

static void cpr_vfork_at_exit(void)
{
    if (cpr_vfork_is_given()) {
        cpr_vfork_exit(EXIT_FAILURE);
    }
}

/* For an exit() anywhere: what is registered last is called first. */
static void cpr_vfork_guard_exit(void)
{
    static bool guarded;

    if (!guarded) {
        guarded = true;
        atexit(cpr_vfork_at_exit);
    }
}

/************************************************************************/
/* Preparation */

static bool cpr_vfork_sandbox_denies(void)
{
    QemuOptsList *list = qemu_find_opts_err("sandbox", NULL);
    QemuOpts *opts = list ? qemu_opts_find(list, NULL) : NULL;

    return opts && g_strcmp0(qemu_opt_get(opts, "spawn"), "deny") == 0;
}

bool cpr_vfork_check(Error **errp)
{
    MigrationState *s = migrate_get_current();
    const char *program = s->parameters.cpr_exec_command->value;

    if (migrate_multifd() || migrate_tls() || migrate_return_path() ||
        migrate_postcopy_ram() || migrate_background_snapshot()) {
        error_setg(errp, "cpr-vfork cannot be combined with multifd, TLS, "
                   "return-path, postcopy or background-snapshot");
        return false;
    }
    if (cpr_vfork_sandbox_denies()) {
        error_setg(errp, "cpr-vfork cannot execute anything: this QEMU runs "
                   "with -sandbox spawn=deny");
        return false;
    }
    if (!cpr_vfork_check_root(errp) || !cpr_vfork_check_parent(errp)) {
        return false;
    }
    if (!g_path_is_absolute(program) || access(program, X_OK) < 0) {
        error_setg(errp, "cpr-vfork: %s is not the absolute path of a program "
                   "that can be executed", program);
        return false;
    }
    return cpr_vfork_check_devices(errp);
}

QEMUFile *cpr_vfork_output(Error **errp)
{
    g_autoptr(QIOChannelFile) fioc = NULL;

    old.state_fd = qemu_memfd_create(CPR_VFORK_STATE, 0, false, 0, 0, errp);
    if (old.state_fd < 0) {
        return NULL;
    }
    fioc = qio_channel_file_new_fd(old.state_fd);
    qio_channel_set_name(QIO_CHANNEL(fioc), CPR_VFORK_STATE);
    return qemu_file_new_output(QIO_CHANNEL(fioc));
}

/* The first word of new QEMU, or its end. */
static void cpr_vfork_ctl_read(void *opaque)
{
    MigrationState *s = migrate_get_current();
    Error *err = NULL;
    QIOChannel *ioc;
    char message = 0;
    ssize_t n = RETRY_ON_EINTR(read(old.ctl_fd, &message, 1));

    qemu_set_fd_handler(old.ctl_fd, NULL, NULL, NULL);
    if (n != 1 || message != CPR_VFORK_MSG_READY) {
        if (n == 1) {
            old.reason = g_strdup("the new QEMU does not speak the protocol");
        }
        cpr_vfork_abort();
        error_setg(&err, "cpr-vfork: %s", old.reason);
        cpr_vfork_connect_failed(s, err);
        return;
    }
    cpr_vfork_child_limit(0);
    cpr_vfork_enter(CPR_VFORK_PHASE_READY);

    ioc = cpr_vfork_check_new(old.page, &err) ?
          qio_channel_new_fd(old.main_fd, &err) : NULL;
    if (!ioc) {
        old.reason = g_strdup(error_get_pretty(err));
        cpr_vfork_abort();
        cpr_vfork_connect_failed(s, err);
        return;
    }
    old.main_fd = -1;
    qio_channel_set_name(ioc, "migration-vfork-outgoing");
    cpr_vfork_connect(s, ioc);
    object_unref(OBJECT(ioc));
}

static bool cpr_vfork_make_channels(int *main_new, int *ctl_new, Error **errp)
{
    int size = STATE_BUFFER_BYTES;
    int main_pair[2], ctl_pair[2];

    if (qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, main_pair) < 0) {
        error_setg_errno(errp, errno, "cpr-vfork: socketpair");
        return false;
    }
    if (qemu_socketpair(AF_UNIX, SOCK_STREAM, 0, ctl_pair) < 0) {
        error_setg_errno(errp, errno, "cpr-vfork: socketpair");
        close(main_pair[0]);
        close(main_pair[1]);
        return false;
    }
    /* The whole device state should fit, so that nobody waits for the other */
    setsockopt(main_pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    old.main_fd = main_pair[0];
    old.ctl_fd = ctl_pair[0];
    *main_new = main_pair[1];
    *ctl_new = ctl_pair[1];
    return true;
}

/* Descriptors for new QEMU besides those of the CPR state */
static GArray *cpr_vfork_inherited(int main_new, int ctl_new,
                                   const GArray *listeners,
                                   const GArray *clients)
{
    GArray *fds = g_array_new(false, false, sizeof(int));
    int own[] = { old.state_fd, main_new, ctl_new, old.page_fd };
    int pidfile_fd = cpr_vfork_pidfile_fd();

    g_array_append_vals(fds, own, ARRAY_SIZE(own));
    g_array_append_vals(fds, listeners->data, listeners->len);
    g_array_append_vals(fds, clients->data, clients->len);
    if (pidfile_fd >= 0) {
        g_array_append_val(fds, pidfile_fd);
    }
    for (intList *item = set.fds; item; item = item->next) {
        int fd = item->value;

        g_array_append_val(fds, fd);
    }
    return fds;
}

static char *cpr_vfork_list(const GArray *fds)
{
    GString *list = g_string_new(NULL);

    for (guint i = 0; i < fds->len; i++) {
        g_string_append_printf(list, "%d,", g_array_index(fds, int, i));
    }
    return g_string_free(list, false);
}

void cpr_vfork_start(MigrationState *s, Error **errp)
{
    g_auto(GStrv) argv = strv_from_str_list(s->parameters.cpr_exec_command);
    g_auto(GStrv) envp = g_get_environ();
    g_autoptr(GArray) listeners = cpr_vfork_listeners(set.fds);
    g_autofree char *list = cpr_vfork_list(listeners);
    g_autoptr(GArray) client_fds = g_array_new(false, false, sizeof(int));
    g_autoptr(GString) client_list = g_string_new(NULL);
    CprVforkClients clients = { client_fds, client_list };
    g_autofree char *value = NULL;
    g_autoptr(GArray) fds = NULL;
    int main_new, ctl_new;

    g_clear_pointer(&old.reason, g_free);
    g_clear_pointer(&old.page, cpr_vfork_page_free);
    old.phase = CPR_VFORK_PHASE_IDLE;
    old.committed = false;
    old.page = cpr_vfork_page_new(&old.page_fd, errp);
    if (!old.page) {
        return;
    }
    if (!cpr_vfork_make_channels(&main_new, &ctl_new, errp)) {
        cpr_vfork_close_fds();
        return;
    }
    value = g_strdup_printf("%d:%d:%d:%d:%d", old.state_fd, main_new, ctl_new,
                            old.page_fd, cpr_vfork_pidfile_fd());
    envp = g_environ_setenv(envp, CPR_VFORK_ENV, value, true);
    envp = g_environ_setenv(envp, CPR_VFORK_LISTENERS_ENV, list, true);
    cpr_vfork_list_clients(&clients);
    envp = g_environ_setenv(envp, CPR_VFORK_CLIENTS_ENV, client_list->str,
                            true);
    fds = cpr_vfork_inherited(main_new, ctl_new, listeners, client_fds);
    old.pid = cpr_vfork_child_start(argv, envp, fds, errp);
    close(main_new);
    close(ctl_new);
    if (old.pid < 0) {
        cpr_vfork_close_fds();
        return;
    }
    cpr_vfork_devices_begin();
    old.begun = old.active = true;
    cpr_vfork_enter(CPR_VFORK_PHASE_SPAWNED);
    cpr_vfork_child_limit(set.prepare_timeout_ms);
    qemu_set_fd_handler(old.ctl_fd, cpr_vfork_ctl_read, NULL, NULL);
}

/************************************************************************/
/* The pause */

void cpr_vfork_pause_begins(void)
{
    cpr_vfork_mark(old.page, CPR_VFORK_PHASE_STOPPED);
    old.phase = CPR_VFORK_PHASE_STOPPED;
    cpr_vfork_hear_clients(false);
    old.pause_until_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                         set.pause_budget_ms;
    cpr_vfork_child_limit(set.pause_budget_ms);
}

/* The vCPUs are stopped: what the child must have before it loads. */
bool cpr_vfork_stopped(Error **errp)
{
    Error *err = NULL;

    if (cpr_vfork_detach_devices(&err)) {
        return true;
    }
    if (!old.reason) {
        old.reason = g_strdup(error_get_pretty(err));
    }
    error_propagate_prepend(errp, err, "cpr-vfork: ");
    return false;
}

typedef enum { SAID, ENDED, SILENT } Heard;

/* Wait for the next message of the child, its end, or the time-out. */
static Heard cpr_vfork_hear(char *message, int timeout_ms)
{
    struct pollfd ctl = { .fd = old.ctl_fd, .events = POLLIN };

    if (RETRY_ON_EINTR(poll(&ctl, 1, timeout_ms)) == 0) {
        return SILENT;
    }
    return RETRY_ON_EINTR(read(old.ctl_fd, message, 1)) == 1 ? SAID : ENDED;
}

/* The point of no return, with the BQL.  Cancelling is over from here on. */
static bool cpr_vfork_commit(MigrationState *s, Error **errp)
{
    char message = CPR_VFORK_MSG_COMMIT;

    if (s->state != MIGRATION_STATUS_DEVICE) {
        cpr_vfork_cancel();
        error_setg(errp, "cpr-vfork: %s", old.reason);
        return false;
    }
    if (set.rehearse) {
        old.reason = g_strdup("it was a rehearsal: the new QEMU loaded the VM");
        error_setg(errp, "cpr-vfork: %s", old.reason);
        return false;
    }
    /* The owner of the guest may not be killed */
    old.committed = cpr_vfork_child_spare();
    if (!old.committed) {
        old.reason = cpr_vfork_overdue();
        error_setg(errp, "cpr-vfork: %s", old.reason);
        return false;
    }
    cpr_vfork_guard_exit();
    cpr_vfork_fault("old-commit");
    old.phase = CPR_VFORK_PHASE_COMMITTED;
    cpr_vfork_mark(old.page, CPR_VFORK_PHASE_COMMITTED);
    cpr_vfork_pass(old.page, CPR_VFORK_OWNER_OLD, CPR_VFORK_OWNER_GIVEN);
    cpr_vfork_fault("old-given");
    /* If this fails it is gone, which is noticed next */
    (void)RETRY_ON_EINTR(send(old.ctl_fd, &message, 1, MSG_NOSIGNAL));
    return true;
}

/*
 * After the commit: did new QEMU start the guest?  Decided by the token.  As
 * long as nobody has taken it, the pause budget holds.
 */
static bool cpr_vfork_confirm(Error **errp)
{
    int64_t left_ms = old.pause_until_ms -
                      qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    char message = 0;
    Heard heard = cpr_vfork_hear(&message,
                                 CLAMP(left_ms, TAKE_TIMEOUT_MIN_MS, INT_MAX));

    if ((heard != SAID || message != CPR_VFORK_MSG_RUNNING) &&
        cpr_vfork_pass(old.page, CPR_VFORK_OWNER_GIVEN, CPR_VFORK_OWNER_OLD)) {
        /* It never took it, and cannot any more */
        bql_lock();
        old.committed = false;
        if (heard != ENDED) {
            old.reason = g_strdup("the new QEMU did not take the guest");
        }
        cpr_vfork_abort();
        error_setg(errp, "cpr-vfork: %s", old.reason);
        bql_unlock();
        return false;
    }
    if (heard == SILENT) {
        heard = cpr_vfork_hear(&message, RUNNING_TIMEOUT_MS);
    }
    if (heard == ENDED) {
        /* An owner closes the channel by its end only, before it has spoken */
        cpr_vfork_child_wait();
        old.phase = CPR_VFORK_PHASE_LOST;
        old.reason = g_strdup("the new QEMU ended after it had taken the "
                              "guest");
        error_report("cpr-vfork: %s", old.reason);
    } else if (heard == SILENT) {
        old.phase = CPR_VFORK_PHASE_STRANDED;
        old.reason = g_strdup("the new QEMU has taken the guest, and does not "
                              "say that it runs it");
        error_report("cpr-vfork: %s", old.reason);
    } else {
        old.phase = CPR_VFORK_PHASE_RUNNING;
    }
    return true;
}

/* In the migration thread, without the BQL, once the state was sent. */
bool cpr_vfork_complete(MigrationState *s, Error **errp)
{
    char message = 0;
    Heard heard;
    bool ok;

    cpr_vfork_mark(old.page, CPR_VFORK_PHASE_SAVED);
    old.phase = CPR_VFORK_PHASE_SAVED;
    /* The watchdog limits it, by killing the child */
    heard = cpr_vfork_hear(&message, -1);

    bql_lock();
    if (heard == SAID && message == CPR_VFORK_MSG_LOADED) {
        old.phase = CPR_VFORK_PHASE_LOADED;
        ok = cpr_vfork_commit(s, errp);
    } else {
        if (heard == SAID) {
            old.reason = g_strdup("the new QEMU does not speak the protocol");
        }
        cpr_vfork_abort();
        error_setg(errp, "cpr-vfork: %s", old.reason);
        ok = false;
    }
    bql_unlock();

    return ok && cpr_vfork_confirm(errp);
}

/************************************************************************/
/* QMP */

void qmp_cpr_vfork_set(bool has_pause_budget, uint32_t pause_budget,
                       bool has_prepare_timeout, uint32_t prepare_timeout,
                       bool has_rehearse, bool rehearse,
                       bool has_fds, intList *fds, Error **errp)
{
    if (old.active) {
        error_setg(errp, "A hand-over is under way");
        return;
    }
    if ((has_pause_budget && !pause_budget) ||
        (has_prepare_timeout && !prepare_timeout)) {
        error_setg(errp, "A time of 0 ms is not possible");
        return;
    }
    for (intList *item = has_fds ? fds : NULL; item; item = item->next) {
        if (item->value < 3 || item->value > INT_MAX ||
            fcntl(item->value, F_GETFD) < 0) {
            error_setg(errp, "Descriptor %" PRId64 " is not open", item->value);
            return;
        }
    }
    set.pause_budget_ms = has_pause_budget ? pause_budget : 1000;
    set.prepare_timeout_ms = has_prepare_timeout ? prepare_timeout : 60000;
    set.rehearse = has_rehearse && rehearse;
    qapi_free_intList(set.fds);
    set.fds = has_fds ? QAPI_CLONE(intList, fds) : NULL;
}

static strList *cpr_vfork_blocked(void)
{
    Error *err = NULL;
    strList *reasons = NULL;

    for (GSList *item = migration_mode_blockers(MIG_MODE_CPR_VFORK); item;
         item = item->next) {
        QAPI_LIST_PREPEND(reasons, g_strdup(error_get_pretty(item->data)));
    }
    if (!cpr_vfork_check_devices(&err)) {
        QAPI_LIST_PREPEND(reasons, g_strdup(error_get_pretty(err)));
        error_free(err);
    }
    return reasons;
}

CprVforkInfo *qmp_query_cpr_vfork(Error **errp)
{
    CprVforkInfo *info = g_new0(CprVforkInfo, 1);
    CprVforkPhaseTimeList **tail = &info->times;
    int64_t start_us;

    info->phase = old.phase;
    info->rehearsal = set.rehearse;
    info->owner = old.page ? cpr_vfork_owner(old.page) : CPR_VFORK_OWNER_OLD;
    info->has_child_pid = old.pid > 0;
    info->child_pid = old.pid;
    info->reason = g_strdup(old.reason);
    info->blocked_reasons = cpr_vfork_blocked();
    start_us = old.page ? cpr_vfork_marked(old.page, CPR_VFORK_PHASE_SPAWNED)
                        : 0;
    for (int phase = 0; start_us && phase < CPR_VFORK_PHASE__MAX; phase++) {
        int64_t marked_us = cpr_vfork_marked(old.page, phase);

        if (marked_us) {
            CprVforkPhaseTime *entry = g_new0(CprVforkPhaseTime, 1);

            entry->phase = phase;
            entry->time = marked_us - start_us;
            QAPI_LIST_APPEND(tail, entry);
        }
    }
    return info;
}
