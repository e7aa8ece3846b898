/*
 * CPR by vfork and exec: sockets at which the VM listens
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The old QEMU leaves all of them open to the new one, which takes one where
 * it would bind to the address anew: that fails for TCP, and would take the
 * path of a unix socket away from an old QEMU that is to run on.
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/sockets.h"
#include "qapi/error.h"
#include "migration/cpr-vfork.h"

/* New QEMU: what nobody has taken yet */
static GArray *inherited;

static bool cpr_vfork_listens(int fd)
{
    socklen_t length = sizeof(int);
    int listens = 0;

    return !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) &&
           listens;
}

/*
 * Old QEMU: all its listening sockets but those that are in @given.  None of
 * them blocks from here on.
 */
GArray *cpr_vfork_listeners(const intList *given)
{
    GArray *fds = g_array_new(false, false, sizeof(int));
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;

    while (dir && (entry = readdir(dir))) {
        const intList *item = given;
        int fd;

        if (qemu_strtoi(entry->d_name, NULL, 10, &fd) < 0 ||
            !cpr_vfork_listens(fd)) {
            continue;
        }
        /*
         * A client wakes up both processes.  Whoever comes second must not
         * wait in accept() for the next one.
         */
        qemu_set_blocking(fd, false, NULL);
        while (item && item->value != fd) {
            item = item->next;
        }
        if (!item) {
            g_array_append_val(fds, fd);
        }
    }
    if (dir) {
        closedir(dir);
    }
    return fds;
}

static bool cpr_vfork_same_address(const SocketAddress *a,
                                   const SocketAddress *b)
{
    if (a->type != b->type) {
        return false;
    }
    switch (a->type) {
    case SOCKET_ADDRESS_TYPE_UNIX:
#ifdef CONFIG_LINUX
        if ((a->u.q_unix.has_abstract && a->u.q_unix.abstract) !=
            (b->u.q_unix.has_abstract && b->u.q_unix.abstract)) {
            return false;
        }
#endif
        return !g_strcmp0(a->u.q_unix.path, b->u.q_unix.path);
    case SOCKET_ADDRESS_TYPE_INET:
        /* Both are numbers: names were resolved by who asks us */
        return !g_strcmp0(a->u.inet.host, b->u.inet.host) &&
               !g_strcmp0(a->u.inet.port, b->u.inet.port);
    default:
        return false;
    }
}

static int cpr_vfork_take_listener(const SocketAddress *wanted)
{
    for (guint i = 0; i < inherited->len; i++) {
        int fd = g_array_index(inherited, int, i);
        g_autoptr(SocketAddress) address = socket_local_address(fd, NULL);

        if (address && cpr_vfork_same_address(address, wanted)) {
            g_array_remove_index(inherited, i);
            return fd;
        }
    }
    return -1;
}

/* New QEMU, before anybody listens.  @list: numbers, each with a comma. */
void cpr_vfork_inherit_listeners(const char *list)
{
    const char *next = list;
    int fd;

    inherited = g_array_new(false, false, sizeof(int));
    while (next && qemu_strtoi(next, &next, 10, &fd) != -EINVAL &&
           *next++ == ',') {
        qemu_set_cloexec(fd);
        g_array_append_val(inherited, fd);
    }
    socket_set_inherited(cpr_vfork_take_listener);
}

/* New QEMU, once all have been made that its command tells */
void cpr_vfork_close_listeners(void)
{
    socket_set_inherited(NULL);
    for (guint i = 0; i < inherited->len; i++) {
        close(g_array_index(inherited, int, i));
    }
    g_clear_pointer(&inherited, g_array_unref);
}
