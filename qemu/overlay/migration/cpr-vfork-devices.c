/*
 * CPR by vfork and exec: devices of the host, which both processes have open
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The new QEMU has the descriptors of such devices, and those of their
 * interrupts, from the start, while the old one still runs the guest on them.
 * So who uses them follows the guest:
 *
 *   the vCPUs are stopped    the old QEMU lets go: nobody hears interrupts,
 *                            they are counted in their descriptors
 *   the token is taken       the new QEMU attaches, and finds them there
 *   the child was reaped     the old QEMU attaches again
 *
 * In between the new QEMU neither consumes an interrupt nor changes a device.
 * What can fail in the new QEMU and can be undone it does while it loads,
 * before the commit: DMA mappings of a container are taken so, and back again.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "migration/cpr.h"
#include "migration/cpr-vfork.h"
#include "trace.h"

static const CprVforkDevices *devices;

/* Descriptors that the child has been given */
static unsigned int given_fds;
static bool detached;

/* May be called several times with the same */
void cpr_vfork_add_devices(const CprVforkDevices *to_add)
{
    assert(!devices || devices == to_add);
    devices = to_add;
}

bool cpr_vfork_check_devices(Error **errp)
{
    return !devices || devices->check(errp);
}

/* The child is ready: can its build do what is needed next? */
bool cpr_vfork_check_new(CprVforkPage *page, Error **errp)
{
    if (devices && !cpr_vfork_new_can(page, CPR_VFORK_CAN_DEVICES)) {
        error_setg(errp, "the build of the new QEMU cannot take over devices "
                   "of the host");
        return false;
    }
    return true;
}

/* The child was given the descriptors as they are now. */
void cpr_vfork_devices_begin(void)
{
    given_fds = cpr_fds_changes();
    detached = false;
}

/*
 * A guest that set its interrupts up anew, as a driver does that starts, has
 * others than the child: it would wait for interrupts that never come.
 */
bool cpr_vfork_detach_devices(Error **errp)
{
    if (cpr_fds_changes() != given_fds) {
        error_setg(errp, "the guest set up interrupts or memory of a device "
                   "while the new QEMU got ready; try again");
        return false;
    }
    if (!devices) {
        return true;
    }
    detached = true;
    trace_cpr_vfork_devices("detach");
    if (!devices->detach(errp)) {
        return false;
    }
    if (cpr_vfork_fault("old-detached")) {
        error_setg(errp, "fault old-detached");
        return false;
    }
    return true;
}

/* Old QEMU, after the end of the child */
void cpr_vfork_take_back_devices(void)
{
    if (detached) {
        detached = false;
        trace_cpr_vfork_devices("take back");
        devices->attach();
    }
}

/* New QEMU, before it starts a vCPU */
void cpr_vfork_take_devices(void)
{
    if (devices) {
        trace_cpr_vfork_devices("take");
        devices->attach();
    }
}
