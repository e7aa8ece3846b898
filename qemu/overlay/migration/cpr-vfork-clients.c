/*
 * CPR by vfork and exec: clients that are connected to the VM's sockets
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A serial console or a guest agent stays connected: the new QEMU has the
 * connection too, and whoever may run the guest reads from it.  What comes in
 * the pause waits in the socket.  Not so monitors, whose sessions are a state
 * of the old QEMU, and connections with a protocol of their own.
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/sockets.h"
#include "chardev/char-io.h"
#include "chardev/char-socket.h"
#include "io/net-listener.h"
#include "migration/cpr-vfork.h"
#include "monitor/monitor-internal.h"

static bool cpr_vfork_is_monitor(const Chardev *chr)
{
    Monitor *mon;

    QEMU_LOCK_GUARD(&monitor_lock);
    QTAILQ_FOREACH(mon, &mon_list, entry) {
        if (mon->chr.chr == chr) {
            return true;
        }
    }
    return false;
}

/* A socket that listens and whose connections are nothing but bytes */
static SocketChardev *cpr_vfork_plain_socket(Object *obj)
{
    Chardev *chr = (Chardev *)object_dynamic_cast(obj, TYPE_CHARDEV_SOCKET);
    SocketChardev *s = chr ? SOCKET_CHARDEV(chr) : NULL;

    if (!s || !s->is_listen || s->tls_creds || s->is_telnet || s->is_tn3270 ||
        s->is_websock || cpr_vfork_is_monitor(chr)) {
        return NULL;
    }
    return s;
}

static bool cpr_vfork_is_connected(const SocketChardev *s)
{
    return s && s->state == TCP_CHARDEV_STATE_CONNECTED && s->sioc;
}

static void cpr_vfork_for_chardevs(int (*func)(Object *obj, void *opaque),
                                   void *opaque)
{
    object_child_foreach(object_get_container("chardevs"), func, opaque);
}

/************************************************************************/
/* Old QEMU */

static int cpr_vfork_list_client(Object *obj, void *opaque)
{
    SocketChardev *s = cpr_vfork_plain_socket(obj);
    CprVforkClients *clients = opaque;

    if (cpr_vfork_is_connected(s)) {
        g_array_append_val(clients->fds, s->sioc->fd);
        g_string_append_printf(clients->list, "%d:%s,", s->sioc->fd,
                               CHARDEV(s)->label);
    }
    return 0;
}

/* Adds the descriptors to @clients->fds, and what to tell to @clients->list */
void cpr_vfork_list_clients(CprVforkClients *clients)
{
    cpr_vfork_for_chardevs(cpr_vfork_list_client, clients);
}

static int cpr_vfork_stop_reading(Object *obj, void *opaque)
{
    SocketChardev *s = cpr_vfork_plain_socket(obj);

    if (cpr_vfork_is_connected(s)) {
        remove_fd_in_watch(CHARDEV(s));
    }
    return 0;
}

static int cpr_vfork_read_on(Object *obj, void *opaque)
{
    SocketChardev *s = cpr_vfork_plain_socket(obj);

    if (s) {
        CHARDEV_GET_CLASS(s)->chr_update_read_handler(CHARDEV(s));
    }
    return 0;
}

/* Either: whether the guest, and with it what its clients say, is ours */
void cpr_vfork_hear_clients(bool hear)
{
    cpr_vfork_for_chardevs(hear ? cpr_vfork_read_on : cpr_vfork_stop_reading,
                           NULL);
}

/************************************************************************/
/* New QEMU */

/* Who connects now is not to be taken away from the old QEMU. */
static int cpr_vfork_stop_accepting(Object *obj, void *opaque)
{
    SocketChardev *s = cpr_vfork_plain_socket(obj);

    if (s && s->listener && !cpr_vfork_is_connected(s)) {
        qio_net_listener_set_client_func_full(s->listener, NULL, NULL, NULL,
                                              CHARDEV(s)->gcontext);
    }
    return 0;
}

static void cpr_vfork_add_client(const char *label, int fd)
{
    Chardev *chr = qemu_chr_find(label);

    qemu_set_cloexec(fd);
    if (!chr || !cpr_vfork_plain_socket(OBJECT(chr)) ||
        qemu_chr_add_client(chr, fd) < 0) {
        warn_report("cpr-vfork: the client of character device %s is cut off",
                    label);
        close(fd);
    }
}

/* All devices are realized.  @list: FD:LABEL, each with a comma; or NULL */
void cpr_vfork_add_clients(const char *list)
{
    g_auto(GStrv) clients = g_strsplit(list ?: "", ",", -1);

    for (char **client = clients; *client && **client; client++) {
        const char *label;
        int fd;

        if (qemu_strtoi(*client, &label, 10, &fd) != -EINVAL &&
            *label == ':') {
            cpr_vfork_add_client(label + 1, fd);
        }
    }
    cpr_vfork_hear_clients(false);
    cpr_vfork_for_chardevs(cpr_vfork_stop_accepting, NULL);
}
