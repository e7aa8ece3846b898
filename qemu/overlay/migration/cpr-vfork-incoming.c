/*
 * CPR by vfork and exec, the new QEMU's side
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Until it has taken the token, the new QEMU touches neither guest RAM nor a
 * disk nor a socket's path, and ends when the old QEMU does.
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "qemu/timer.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-migration.h"
#include "exec/cpu-common.h"
#include "io/channel-file.h"
#include "migration/cpr.h"
#include "migration/cpr-vfork.h"
#include "migration.h"
#include "qemu-file.h"
#include "system/runstate.h"
#include "system/ramblock.h"
#include "trace.h"

/* migration.h wants the blocks that are sent; these are all blocks. */
#undef qemu_ram_foreach_block

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/* 4 KiB pages take about 25 ms per GiB; what is left is faulted in on use */
#define POPULATE_LIMIT_MS   25
#define POPULATE_PIECE      (8 * MiB)

static int main_fd = -1, ctl_fd = -1;
static char *clients;
static CprVforkPage *page;

static void G_NORETURN cpr_vfork_give_up(const char *why)
{
    error_report("cpr-vfork: %s", why);
    /* What runs at exit would take away what the old QEMU serves */
    _exit(EXIT_FAILURE);
}

/*
 * For errors that are dealt with by undoing what was done to a device: before
 * new QEMU has the guest, the old one runs it on that very device.  Only the
 * kernel can close our descriptors and leave what they refer to alone.  @err
 * may be NULL.  Returns in every other case.
 */
void cpr_vfork_incoming_failed(const char *what, const Error *err)
{
    g_autofree char *why = NULL;

    if (!cpr_vfork_incoming() ||
        cpr_vfork_owner(page) == CPR_VFORK_OWNER_NEW) {
        return;
    }
    why = g_strdup_printf("%s: %s", what, err ? error_get_pretty(err) :
                          "it would be taken from the old QEMU");
    cpr_vfork_give_up(why);
}

static bool cpr_vfork_say(char message)
{
    return RETRY_ON_EINTR(send(ctl_fd, &message, 1, MSG_NOSIGNAL)) == 1;
}

/* Whether the caller is to fail */
bool cpr_vfork_fault(const char *point)
{
    const char *fault = migrate_get_current()->cpr_vfork_fault;
    const char *action;

    if (!fault || !strstart(fault, point, &action) || *action++ != ':') {
        return false;
    }
    error_report("cpr-vfork: fault %s", fault);
    if (!strcmp(action, "exit")) {
        _exit(3);
    } else if (!strcmp(action, "kill")) {
        raise(SIGKILL);
    } else if (!strcmp(action, "stop")) {
        raise(SIGSTOP);
    } else if (!strcmp(action, "hang")) {
        for (;;) {
            pause();
        }
    } else if (!strcmp(action, "garbage")) {
        cpr_vfork_say('?');
    }
    return !strcmp(action, "fail");
}

bool cpr_vfork_has_state(void)
{
    return g_getenv(CPR_VFORK_ENV) != NULL;
}

bool cpr_vfork_incoming(void)
{
    return ctl_fd >= 0;
}

/* New QEMU: to be asked before anything is done to a device of the host */
bool cpr_vfork_inherits_device(const char *name, Error **errp)
{
    if (!cpr_vfork_incoming()) {
        return true;
    }
    if (!cpr_vfork_old_can(page, CPR_VFORK_CAN_DEVICES)) {
        error_setg(errp, "cpr-vfork: the build of the old QEMU cannot hand "
                   "over devices of the host");
        return false;
    }
    if (cpr_find_fd(name, 0) < 0) {
        error_setg(errp, "cpr-vfork: the old QEMU does not have the device %s",
                   name);
        return false;
    }
    return true;
}

QEMUFile *cpr_vfork_input(Error **errp)
{
    g_autoptr(QIOChannelFile) fioc = NULL;
    int state_fd, page_fd;
    int pidfile_fd = -1;    /* builds before it was added do not tell it */

    if (sscanf(g_getenv(CPR_VFORK_ENV), "%d:%d:%d:%d:%d", &state_fd, &main_fd,
               &ctl_fd, &page_fd, &pidfile_fd) < 4) {
        error_setg(errp, "cpr-vfork: " CPR_VFORK_ENV " cannot be read");
        return NULL;
    }
    g_unsetenv(CPR_VFORK_ENV);
    cpr_vfork_end_with_old(true);
    cpr_vfork_inherit_listeners(g_getenv(CPR_VFORK_LISTENERS_ENV));
    g_unsetenv(CPR_VFORK_LISTENERS_ENV);
    clients = g_strdup(g_getenv(CPR_VFORK_CLIENTS_ENV));
    g_unsetenv(CPR_VFORK_CLIENTS_ENV);
    qemu_set_cloexec(state_fd);
    qemu_set_cloexec(main_fd);
    qemu_set_cloexec(ctl_fd);
    page = cpr_vfork_page_map(page_fd, errp);
    close(page_fd);
    if (!page || !cpr_vfork_pidfile_inherit(pidfile_fd, errp)) {
        return NULL;
    }
    /* The offset is shared with the old QEMU, which is done with it */
    lseek(state_fd, 0, SEEK_SET);
    fioc = qio_channel_file_new_fd(state_fd);
    qio_channel_set_name(QIO_CHANNEL(fioc), CPR_VFORK_STATE);
    return qemu_file_new_input(QIO_CHANNEL(fioc));
}

/* How many pages from the first on are alike: in memory, or not */
static size_t cpr_vfork_run(const unsigned char *in_memory, size_t n_pages)
{
    size_t n = 1;

    while (n < n_pages && (in_memory[n] & 1) == (in_memory[0] & 1)) {
        n++;
    }
    return n;
}

static void cpr_vfork_populate_piece(char *host, size_t size)
{
    unsigned char in_memory[POPULATE_PIECE / (4 * KiB)];
    size_t page_size = qemu_real_host_page_size();
    size_t n_pages = size / page_size, n;

    if (mincore(host, size, in_memory)) {
        return;
    }
    for (size_t i = 0; i < n_pages; i += n) {
        n = cpr_vfork_run(in_memory + i, n_pages - i);
        if (in_memory[i] & 1) {
            /* An old kernel does not know it; the guest is slower then */
            madvise(host + i * page_size, n * page_size, MADV_POPULATE_READ);
        }
    }
}

/*
 * Fill page tables, so that the guest does not fault its memory in again page
 * by page.  Only where there is memory: filling holes would use it up.  Pages
 * that are read in can be written to as well, and come 16 at a time.
 *
 * A hole is not looked for by SEEK_HOLE, which goes through all memory up to
 * it: 8 ms per GiB.
 */
static int cpr_vfork_populate(RAMBlock *block, void *opaque)
{
    int64_t *until_ms = opaque;
    int fd = qemu_ram_get_fd(block);
    char *host = qemu_ram_get_host_addr(block);
    off_t start = block->fd_offset, at = start;
    off_t end = start + qemu_ram_get_used_length(block);

    while (fd >= 0 && qemu_ram_is_shared(block) && at < end &&
           qemu_clock_get_ms(QEMU_CLOCK_REALTIME) < *until_ms) {
        off_t data = lseek(fd, at, SEEK_DATA);

        if (data < 0 || data >= end) {
            break;
        }
        at = MIN(data + POPULATE_PIECE, end);
        cpr_vfork_populate_piece(host + (data - start), at - data);
    }
    return 0;
}

/* All devices are realized: listen to the main channel, then say so. */
void cpr_vfork_incoming_ready(void)
{
    g_autofree char *uri = g_strdup_printf("fd:%d", main_fd);
    int64_t until_ms;

    cpr_vfork_close_listeners();
    cpr_vfork_add_clients(clients);
    g_clear_pointer(&clients, g_free);
    qmp_migrate_incoming(uri, false, NULL, true, true, &error_fatal);
    until_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + POPULATE_LIMIT_MS;
    qemu_ram_foreach_block(cpr_vfork_populate, &until_ms);
    cpr_vfork_fault("ready");
    if (!cpr_vfork_say(CPR_VFORK_MSG_READY)) {
        cpr_vfork_give_up("the old QEMU has ended");
    }
}

/*
 * The device state is loaded.  Activate the disks, which the old QEMU has
 * inactivated, while it can still take the guest back; then wait for the
 * commit and take the guest.  Returns only when the guest is ours.
 */
void cpr_vfork_incoming_loaded(void)
{
    Error *err = NULL;
    char message = 0;

    if (!migration_block_activate(&err)) {
        error_prepend(&err, "cannot activate the disks: ");
        cpr_vfork_give_up(error_get_pretty(err));
    }
    cpr_vfork_fault("loaded");
    cpr_vfork_mark(page, CPR_VFORK_PHASE_LOADED);
    cpr_vfork_end_with_old(false);
    if (!cpr_vfork_say(CPR_VFORK_MSG_LOADED)) {
        cpr_vfork_give_up("the old QEMU has ended");
    }

    /* Whether it was said or the old QEMU has ended: the token tells */
    (void)RETRY_ON_EINTR(read(ctl_fd, &message, 1));
    cpr_vfork_fault("committed");
    if (!cpr_vfork_pass(page, CPR_VFORK_OWNER_GIVEN, CPR_VFORK_OWNER_NEW)) {
        cpr_vfork_give_up("the old QEMU keeps the guest");
    }
    cpr_vfork_take_devices();
    cpr_vfork_hear_clients(true);
    cpr_vfork_fault("taken");
}

void cpr_vfork_incoming_running(void)
{
    cpr_vfork_mark(page, CPR_VFORK_PHASE_RUNNING);
    cpr_vfork_fault("running");
    cpr_vfork_pidfile_take();
    /* The old QEMU may have ended, which is its business now */
    cpr_vfork_say(CPR_VFORK_MSG_RUNNING);
    close(ctl_fd);
    ctl_fd = -1;
    g_clear_pointer(&page, cpr_vfork_page_free);
}
