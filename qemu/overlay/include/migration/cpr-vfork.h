/*
 * CPR by vfork and exec: the new QEMU is made while the guest runs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_CPR_VFORK_H
#define MIGRATION_CPR_VFORK_H

#include "qapi/qapi-types-cpr-vfork.h"
#include "qapi/qapi-types-migration.h"

typedef struct CprVforkPage CprVforkPage;

/* The page that both processes share; see migration/cpr-vfork-token.c */
CprVforkPage *cpr_vfork_page_new(int *fd, Error **errp);
CprVforkPage *cpr_vfork_page_map(int fd, Error **errp);
void cpr_vfork_page_free(CprVforkPage *page);
CprVforkOwner cpr_vfork_owner(CprVforkPage *page);
bool cpr_vfork_pass(CprVforkPage *page, CprVforkOwner from, CprVforkOwner to);
bool cpr_vfork_old_can(CprVforkPage *page, uint32_t ability);
bool cpr_vfork_new_can(CprVforkPage *page, uint32_t ability);
void cpr_vfork_mark(CprVforkPage *page, CprVforkPhase phase);
int64_t cpr_vfork_marked(CprVforkPage *page, CprVforkPhase phase);

/* Old QEMU; all with the BQL unless it says otherwise */
bool cpr_vfork_check(Error **errp);
QEMUFile *cpr_vfork_output(Error **errp);
void cpr_vfork_start(MigrationState *s, Error **errp);
void cpr_vfork_cancel(void);
bool cpr_vfork_is_committed(void);
void cpr_vfork_pause_begins(void);
bool cpr_vfork_stopped(Error **errp);
bool cpr_vfork_complete(MigrationState *s, Error **errp); /* without BQL */
void cpr_vfork_abort(void);
void cpr_vfork_source_destroy(void);
void cpr_vfork_tell_end(void);
void cpr_vfork_leave(int status);

/* The child; see migration/cpr-vfork-child.c */
pid_t cpr_vfork_child_start(char **argv, char **envp, const GArray *fds,
                            Error **errp);
void cpr_vfork_child_limit(uint32_t limit_ms);
bool cpr_vfork_child_spare(void);
void cpr_vfork_child_release(void);
void cpr_vfork_child_kill(void);
int cpr_vfork_child_wait(void);
char *cpr_vfork_child_end(int ctl_fd);

/* Either: misbehave here when the property x-cpr-vfork-fault says so */
bool cpr_vfork_fault(const char *point);

/*
 * Devices of the host that the VM has, VFIO devices; see
 * migration/cpr-vfork-devices.c
 */
typedef struct CprVforkDevices {
    /* Old QEMU: can they be handed over?  The reason goes to @errp. */
    bool (*check)(Error **errp);
    /* Old QEMU, vCPUs stopped: let their interrupts and KVM go. */
    bool (*detach)(Error **errp);
    /* Old QEMU: take back all that was let go.  New QEMU: take it. */
    void (*attach)(void);
} CprVforkDevices;

void cpr_vfork_add_devices(const CprVforkDevices *devices);
bool cpr_vfork_check_devices(Error **errp);
bool cpr_vfork_check_new(CprVforkPage *page, Error **errp);
void cpr_vfork_devices_begin(void);
bool cpr_vfork_detach_devices(Error **errp);
void cpr_vfork_take_back_devices(void);
void cpr_vfork_take_devices(void);
bool cpr_vfork_inherits_device(const char *name, Error **errp);
bool cpr_vfork_is_given(void);

/* New QEMU */
bool cpr_vfork_has_state(void);
QEMUFile *cpr_vfork_input(Error **errp);
bool cpr_vfork_incoming(void);
void cpr_vfork_incoming_ready(void);
void cpr_vfork_incoming_loaded(void);
void cpr_vfork_incoming_running(void);
void cpr_vfork_incoming_failed(const char *what, const Error *err);

/* The process of the VM; see migration/cpr-vfork-process.c */
bool cpr_vfork_check_parent(Error **errp);
bool cpr_vfork_check_root(Error **errp);
void cpr_vfork_pidfile_written(const char *path);
int cpr_vfork_pidfile_fd(void);
void cpr_vfork_pidfile_want(const char *path);
bool cpr_vfork_pidfile_inherit(int fd, Error **errp);
void cpr_vfork_pidfile_take(void);
void cpr_vfork_end_with_old(bool on);

/* Listening sockets; see migration/cpr-vfork-listeners.c */
GArray *cpr_vfork_listeners(const intList *given);
void cpr_vfork_inherit_listeners(const char *list);
void cpr_vfork_close_listeners(void);

/* Connected clients; see migration/cpr-vfork-clients.c */
typedef struct CprVforkClients {
    GArray *fds;
    GString *list;
} CprVforkClients;

void cpr_vfork_list_clients(CprVforkClients *clients);
void cpr_vfork_hear_clients(bool hear);
void cpr_vfork_add_clients(const char *list);

/* The human monitor */
void cpr_vfork_print(Monitor *mon, const CprVforkInfo *info);

/* Environment variable with which the old QEMU tells the new one */
#define CPR_VFORK_ENV "QEMU_CPR_VFORK"
#define CPR_VFORK_LISTENERS_ENV "QEMU_CPR_VFORK_LISTENERS"
#define CPR_VFORK_CLIENTS_ENV "QEMU_CPR_VFORK_CLIENTS"
#define CPR_VFORK_STATE "QEMU_CPR_VFORK_STATE"

/* What a QEMU can do besides the protocol; said in the shared page */
#define CPR_VFORK_CAN_DEVICES   (1U << 0)

/* Messages on the control channel, one byte each */
#define CPR_VFORK_MSG_READY     'R'
#define CPR_VFORK_MSG_LOADED    'L'
#define CPR_VFORK_MSG_COMMIT    'C'
#define CPR_VFORK_MSG_RUNNING   'G'

#endif
