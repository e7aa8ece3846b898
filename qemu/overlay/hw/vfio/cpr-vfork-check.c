/*
 * CPR by vfork and exec: which VFIO devices can be handed over
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>
#include "hw/pci/pci.h"
#include "hw/vfio/pci.h"
#include "hw/vfio/vfio-container-legacy.h"
#include "hw/vfio/vfio-cpr.h"
#include "hw/vfio/vfio-device.h"
#include "migration/cpr.h"
#include "migration/cpr-vfork.h"
#include "qapi/error.h"
#include "qemu/units.h"
#include "system/address-spaces.h"
#include "system/kvm.h"

/*
 * There is no new QEMU as long as this is not so: it is tried again.  Of an
 * iommufd also fails what could never be taken, by whomever.
 */
static bool vfio_cpr_vfork_has_mappings(VFIODevice *vbasedev, Error **errp)
{
    VFIOLegacyContainer *container;

    /* They are the guest's: who has not got it may be asked, too */
    if (cpr_vfork_incoming() || cpr_vfork_is_given()) {
        return true;
    }
    if (vbasedev->iommufd) {
        return vfio_iommufd_cpr_take(vbasedev->iommufd, errp);
    }
    container = VFIO_IOMMU_LEGACY(vbasedev->bcontainer);
    if (container->cpr.remap_failed) {
        vfio_legacy_cpr_remap(container);
    }
    if (container->cpr.remap_failed) {
        error_setg(errp, "not from another QEMU before, nor now, as the log "
                   "tells");
        return false;
    }
    return true;
}

/*
 * What a link in the device's folder of sysfs leads to.  Of a device that is
 * given as a descriptor this is known by the node that was opened.
 */
static char *vfio_cpr_vfork_link(VFIODevice *vbasedev, const char *name)
{
    g_autofree char *link = NULL;
    struct stat st;

    if (vbasedev->sysfsdev) {
        link = g_strdup_printf("%s/%s", vbasedev->sysfsdev, name);
    } else if (!fstat(vbasedev->fd, &st) && S_ISCHR(st.st_mode)) {
        link = g_strdup_printf("/sys/dev/char/%u:%u/device/%s",
                               major(st.st_rdev), minor(st.st_rdev), name);
    }
    return link ? realpath(link, NULL) : NULL;
}

static bool vfio_cpr_vfork_is_mdev(VFIODevice *vbasedev)
{
    g_autofree char *subsystem = vfio_cpr_vfork_link(vbasedev, "subsystem");

    return vbasedev->mdev || !g_strcmp0(subsystem, "/sys/bus/mdev");
}

/* QEMU 10.2 maps nothing so, and has no such property */
static bool vfio_cpr_vfork_has_dma_buf(VFIOPCIDevice *vdev)
{
    return object_property_find(OBJECT(vdev), "x-dma-buf") &&
           object_property_get_bool(OBJECT(vdev), "x-dma-buf", &error_abort);
}

static const char *vfio_cpr_vfork_refuse(VFIODevice *vbasedev)
{
    VFIOPCIDevice *vdev = vfio_pci_from_vfio_device(vbasedev);

    if (!vdev || !object_dynamic_cast(OBJECT(vdev), TYPE_VFIO_PCI)) {
        return "is not a PCI device of the host";
    }
    if (vfio_cpr_vfork_is_mdev(vbasedev)) {
        return "is a mediated device, whose driver is bound to the KVM that "
               "the old QEMU has";
    }
    if (vbasedev->bcontainer->space->as != &address_space_memory) {
        return "is behind a virtual IOMMU, with which this was never tried";
    }
    if (vbasedev->migration) {
        return "has a driver that can migrate it, and would stop it in the "
               "pause: give it enable-migration=off";
    }
    if (vdev->dpy) {
        return "has a display";
    }
    if (vdev->vga || vdev->igd_opregion) {
        return "is the graphics card of the VM with its legacy ranges";
    }
    if (vbasedev->iommufd && vfio_cpr_vfork_has_dma_buf(vdev)) {
        return "has its memory mapped for other devices (x-dma-buf=on), and "
               "the kernel does not change the owner of such a mapping";
    }
    return NULL;
}

static uint64_t vfio_cpr_vfork_status(const char *status, const char *name,
                                      int base)
{
    const char *line = strstr(status, name);

    return line ? g_ascii_strtoull(line + strlen(name), NULL, base) : 0;
}

/*
 * Memory that is pinned by way of a container counts as locked by the process
 * that owns its mappings, and is counted anew when the owner changes.  With
 * iommufd it is the same if whoever made that told it so; else it counts for
 * the user, and is counted for the new process before that of the old one goes.
 */
static uint64_t vfio_cpr_vfork_needs_kib(const char *status)
{
    VFIODevice *vbasedev;
    uint64_t needs_kib = 0;

    QLIST_FOREACH(vbasedev, &vfio_device_list, global_next) {
        uint64_t kib = vfio_cpr_vfork_status(status, "\nVmLck:", 10);

        if (vbasedev->iommufd &&
            vfio_iommufd_cpr_counts_for_user(vbasedev->iommufd)) {
            kib = 2 * vfio_cpr_vfork_status(status, "\nVmPin:", 10);
        }
        needs_kib = MAX(needs_kib, kib);
    }
    return needs_kib;
}

/*
 * It was within the limit when it was pinned.  The limit can have been lowered
 * after that, as by whoever manages the VM: then neither the new QEMU could
 * take the mappings, nor the old one take them back.
 */
bool vfio_cpr_vfork_check_limit(Error **errp)
{
    g_autofree char *status = NULL;
    uint64_t needs_kib;
    struct rlimit limit;

    if (!g_file_get_contents("/proc/self/status", &status, NULL, NULL) ||
        getrlimit(RLIMIT_MEMLOCK, &limit) || limit.rlim_max == RLIM_INFINITY) {
        return true;
    }
    needs_kib = vfio_cpr_vfork_needs_kib(status);
    if (needs_kib <= limit.rlim_max / KiB ||
        (vfio_cpr_vfork_status(status, "\nCapEff:", 16) &
         (1ULL << CAP_IPC_LOCK))) {
        return true;
    }
    error_setg(errp, "VFIO devices need %" PRIu64 " KiB of locked memory to go "
               "to another process, and the hard limit RLIMIT_MEMLOCK is %"
               PRIu64 " KiB: neither QEMU might have them again; raise it "
               "(prlimit --pid %d --memlock=...)",
               needs_kib, (uint64_t)limit.rlim_max / KiB, (int)getpid());
    return false;
}

bool vfio_cpr_vfork_check(Error **errp)
{
    ERRP_GUARD();
    VFIODevice *vbasedev;

    QLIST_FOREACH(vbasedev, &vfio_device_list, global_next) {
        const char *why = vfio_cpr_vfork_refuse(vbasedev);

        if (why) {
            error_setg(errp, "cpr-vfork: the VFIO device %s %s",
                       vbasedev->name, why);
            return false;
        }
        if (!vfio_cpr_vfork_has_mappings(vbasedev, errp)) {
            error_prepend(errp, "cpr-vfork: the VFIO device %s has DMA "
                          "mappings that could not be taken: ",
                          vbasedev->name);
            return false;
        }
    }
    if (!vfio_cpr_vfork_check_limit(errp)) {
        error_prepend(errp, "cpr-vfork: ");
        return false;
    }
    return true;
}

/* New QEMU: to be asked before anything is done to a device */
bool vfio_cpr_vfork_inherits(VFIODevice *vbasedev, const char *name,
                             Error **errp)
{
    VFIODevice *other;

    if (!cpr_vfork_incoming()) {
        return true;
    }
    /* A descriptor could be used twice, which opening does not allow */
    QLIST_FOREACH(other, &vfio_device_list, global_next) {
        if (!strcmp(other->name, vbasedev->name)) {
            error_setg(errp, "cpr-vfork: there is the device %s already",
                       vbasedev->name);
            return false;
        }
    }
    return cpr_vfork_inherits_device(vbasedev->iommufd ? vbasedev->name : name,
                                     errp);
}

/*
 * A device that is opened while KVM knows of it refers to that KVM until it
 * is closed, which with hand-overs is the end of the VM: the KVM of the QEMU
 * that opened it, and the module that it is of, would stay.  The kernel's own
 * driver has no use for it.  Others may.
 */
bool vfio_cpr_vfork_opens_without_kvm(VFIODevice *vbasedev)
{
    g_autofree char *driver = NULL;

    if (!kvm_enabled() || cpr_is_incoming() ||
        vfio_cpr_vfork_is_mdev(vbasedev)) {
        return false;
    }
    driver = vfio_cpr_vfork_link(vbasedev, "driver");
    return driver && g_str_has_suffix(driver, "/vfio-pci");
}
