/*
 * CPR by vfork and exec, the human monitor
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-cpr-vfork.h"
#include "migration/cpr-vfork.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qobject/qdict.h"

void cpr_vfork_print(Monitor *mon, const CprVforkInfo *info)
{
    strList *reason;

    monitor_printf(mon, "Hand-over: \t\t%s, may run the guest: %s%s\n",
                   CprVforkPhase_str(info->phase),
                   CprVforkOwner_str(info->owner),
                   info->rehearsal ? ", rehearsal" : "");
    if (info->has_child_pid) {
        monitor_printf(mon, "  New QEMU: \t\tprocess %" PRId64 "\n",
                       info->child_pid);
    }
    if (info->reason) {
        monitor_printf(mon, "  Reason: \t\t%s\n", info->reason);
    }
    for (CprVforkPhaseTimeList *item = info->times; item; item = item->next) {
        monitor_printf(mon, "  %-10s \t\t%" PRId64 " us\n",
                       CprVforkPhase_str(item->value->phase),
                       item->value->time);
    }
    for (reason = info->blocked_reasons; reason; reason = reason->next) {
        monitor_printf(mon, "  Blocked: \t\t%s\n", reason->value);
    }
}

void hmp_info_cpr_vfork(Monitor *mon, const QDict *qdict)
{
    g_autoptr(CprVforkInfo) info = qmp_query_cpr_vfork(&error_abort);

    cpr_vfork_print(mon, info);
}

static bool cpr_vfork_parse_fds(const char *text, intList **fds, Error **errp)
{
    g_auto(GStrv) words = g_strsplit(text, ",", 0);
    intList **tail = fds;

    for (char **word = words; *word; word++) {
        int fd;

        if (qemu_strtoi(*word, NULL, 10, &fd) < 0) {
            error_setg(errp, "'%s' is not the number of a descriptor", *word);
            return false;
        }
        QAPI_LIST_APPEND(tail, fd);
    }
    return true;
}

static bool cpr_vfork_parse_ms(const QDict *qdict, const char *name,
                               uint32_t *ms, Error **errp)
{
    int64_t value = qdict_get_try_int(qdict, name, 0);

    if (value < 0 || value > UINT32_MAX) {
        error_setg(errp, "A time of %" PRId64 " ms is not possible", value);
        return false;
    }
    *ms = value;
    return true;
}

void hmp_cpr_vfork_set(Monitor *mon, const QDict *qdict)
{
    const char *fds_text = qdict_get_try_str(qdict, "fds");
    bool rehearse = qdict_get_try_bool(qdict, "rehearse", false);
    g_autoptr(intList) fds = NULL;
    uint32_t budget_ms, prepare_ms;
    Error *err = NULL;

    if (cpr_vfork_parse_ms(qdict, "pause-budget", &budget_ms, &err) &&
        cpr_vfork_parse_ms(qdict, "prepare-timeout", &prepare_ms, &err) &&
        (!fds_text || cpr_vfork_parse_fds(fds_text, &fds, &err))) {
        qmp_cpr_vfork_set(qdict_haskey(qdict, "pause-budget"), budget_ms,
                          qdict_haskey(qdict, "prepare-timeout"), prepare_ms,
                          true, rehearse, fds != NULL, fds, &err);
    }
    hmp_handle_error(mon, err);
}
