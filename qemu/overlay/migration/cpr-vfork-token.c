/*
 * CPR by vfork and exec: the page that old and new QEMU share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One word says who may run the guest.  It starts as "old", and there are
 * three changes, each by compare-and-swap:
 *
 *   old   -> given   by old QEMU: commit
 *   given -> new     by new QEMU, before it starts a vCPU
 *   given -> old     by old QEMU, when new QEMU ended before it took it
 *
 * So whatever dies when, at most one process may run the guest, and who that
 * is can be read.  The layout is read by QEMUs of different versions: fields
 * may only be added at the end.
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qemu/atomic.h"
#include "qemu/memfd.h"
#include "qapi/error.h"
#include "migration/cpr-vfork.h"
#include "trace.h"

#define CPR_VFORK_PAGE_MAGIC    0x6b726f66765f7270ULL   /* "pr_vfork" */
#define CPR_VFORK_PAGE_VERSION  1
#define CPR_VFORK_PAGE_SIZE     4096
#define CPR_VFORK_PHASES        16

struct CprVforkPage {
    uint64_t magic;
    uint32_t version;
    uint32_t owner;
    int64_t marked[CPR_VFORK_PHASES];   /* CLOCK_MONOTONIC, us; 0: not yet */
    uint32_t old_can, new_can;          /* 0: a build from before there were */
};

#define CPR_VFORK_CAN           CPR_VFORK_CAN_DEVICES

QEMU_BUILD_BUG_ON(CPR_VFORK_PHASE__MAX > CPR_VFORK_PHASES);
QEMU_BUILD_BUG_ON(sizeof(CprVforkPage) > CPR_VFORK_PAGE_SIZE);

CprVforkPage *cpr_vfork_page_new(int *fd, Error **errp)
{
    CprVforkPage *page;

    page = qemu_memfd_alloc("cpr-vfork", CPR_VFORK_PAGE_SIZE, 0, fd, errp);
    if (page) {
        page->magic = CPR_VFORK_PAGE_MAGIC;
        page->version = CPR_VFORK_PAGE_VERSION;
        page->old_can = CPR_VFORK_CAN;
        qatomic_set(&page->owner, CPR_VFORK_OWNER_OLD);
    }
    return page;
}

CprVforkPage *cpr_vfork_page_map(int fd, Error **errp)
{
    CprVforkPage *page = mmap(NULL, CPR_VFORK_PAGE_SIZE,
                              PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (page == MAP_FAILED) {
        error_setg_errno(errp, errno, "cpr-vfork: cannot map the token");
        return NULL;
    }
    if (page->magic != CPR_VFORK_PAGE_MAGIC ||
        page->version != CPR_VFORK_PAGE_VERSION) {
        error_setg(errp, "cpr-vfork: the old QEMU speaks version %" PRIu32
                   " of the protocol, this one version %d",
                   page->version, CPR_VFORK_PAGE_VERSION);
        cpr_vfork_page_free(page);
        return NULL;
    }
    qatomic_set(&page->new_can, CPR_VFORK_CAN);
    return page;
}

void cpr_vfork_page_free(CprVforkPage *page)
{
    munmap(page, CPR_VFORK_PAGE_SIZE);
}

CprVforkOwner cpr_vfork_owner(CprVforkPage *page)
{
    return qatomic_load_acquire(&page->owner);
}

bool cpr_vfork_pass(CprVforkPage *page, CprVforkOwner from, CprVforkOwner to)
{
    bool passed = qatomic_cmpxchg(&page->owner, from, to) == from;

    trace_cpr_vfork_pass(CprVforkOwner_str(from), CprVforkOwner_str(to),
                         passed);
    return passed;
}

bool cpr_vfork_old_can(CprVforkPage *page, uint32_t ability)
{
    return page->old_can & ability;
}

bool cpr_vfork_new_can(CprVforkPage *page, uint32_t ability)
{
    return qatomic_read(&page->new_can) & ability;
}

void cpr_vfork_mark(CprVforkPage *page, CprVforkPhase phase)
{
    int64_t now_us = g_get_monotonic_time();

    trace_cpr_vfork_phase(CprVforkPhase_str(phase), now_us);
    qatomic_set(&page->marked[phase], now_us);
}

int64_t cpr_vfork_marked(CprVforkPage *page, CprVforkPhase phase)
{
    return qatomic_read(&page->marked[phase]);
}
