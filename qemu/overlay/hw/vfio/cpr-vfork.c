/*
 * CPR by vfork and exec: VFIO devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What is of a process, and so passes from the old QEMU to the new one:
 *
 *   irqfds in KVM and handlers of    let go once the vCPUs are stopped, and
 *   eventfds                         attached by whoever runs the guest next
 *   groups or devices in the KVM     the same
 *   pseudo device
 *   owner of the DMA mappings        of a container: taken by the new QEMU
 *                                    while it loads, taken back by the old one;
 *                                    of iommufd: taken with the guest
 *
 * All else, the device's state and where its interrupts are signalled to, is
 * the kernel's and is left alone by the new QEMU.
 */

#include "qemu/osdep.h"
#include "hw/pci/pci.h"
#include "hw/vfio/pci.h"
#include "hw/vfio/vfio-container-legacy.h"
#include "hw/vfio/vfio-cpr.h"
#include "hw/vfio/vfio-device.h"
#include "hw/vfio/vfio-helpers.h"
#include "migration/cpr.h"
#include "migration/cpr-vfork.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "system/kvm.h"
#include "trace.h"

/************************************************************************/
/* Interrupts */

static bool vfio_cpr_vfork_detach_msi(VFIOPCIDevice *vdev, Error **errp)
{
    bool ok = true;

    for (int i = 0; i < vdev->nr_vectors; i++) {
        VFIOMSIVector *vector = &vdev->msi_vectors[i];
        int ret;

        if (!vector->use) {
            continue;
        }
        vfio_pci_msi_set_handler(vdev, i, false);
        if (vector->virq < 0) {
            continue;
        }
        ret = kvm_irqchip_remove_irqfd_notifier_gsi(kvm_state,
                                                    &vector->kvm_interrupt,
                                                    vector->virq);
        if (ret && ok) {
            error_setg_errno(errp, -ret, "%s: cannot take vector %d from KVM",
                             vdev->vbasedev.name, i);
            ok = false;
        }
    }
    return ok;
}

static void vfio_cpr_vfork_attach_msi(VFIOPCIDevice *vdev)
{
    for (int i = 0; i < vdev->nr_vectors; i++) {
        VFIOMSIVector *vector = &vdev->msi_vectors[i];
        int ret;

        if (!vector->use) {
            continue;
        }
        vfio_pci_msi_set_handler(vdev, i, true);
        if (vector->virq < 0) {
            continue;
        }
        ret = kvm_irqchip_add_irqfd_notifier_gsi(kvm_state,
                                                 &vector->kvm_interrupt, NULL,
                                                 vector->virq);
        /* Busy: it was not detached, since that failed */
        if (ret && ret != -EBUSY) {
            error_report("cpr-vfork: %s: cannot give vector %d to KVM: %s",
                         vdev->vbasedev.name, i, strerror(-ret));
        }
    }
}

static bool vfio_cpr_vfork_detach_intx(VFIOPCIDevice *vdev, Error **errp)
{
    int ret;

    if (!vdev->intx.kvm_accel) {
        vfio_pci_intx_set_handler(vdev, false);
        return true;
    }
    ret = kvm_irqchip_remove_irqfd_notifier_gsi(kvm_state,
                                                &vdev->intx.interrupt,
                                                vdev->intx.route.irq);
    if (ret) {
        error_setg_errno(errp, -ret, "%s: cannot take INTx from KVM",
                         vdev->vbasedev.name);
        return false;
    }
    vdev->intx.kvm_accel = false;
    return true;
}

static void vfio_cpr_vfork_attach_intx(VFIOPCIDevice *vdev)
{
    Error *err = NULL;

    if (vdev->intx.kvm_accel) {
        return;     /* It was not detached, since that failed */
    }
    if (kvm_enabled() && !vfio_pci_cpr_intx_enable_kvm(vdev, &err)) {
        warn_reportf_err(err, "cpr-vfork: %s: ", vdev->vbasedev.name);
    }
    if (vdev->intx.kvm_accel) {
        /*
         * The line went down in KVM when it was detached.  The kernel raises
         * it again if the device still asks for it, and masks it until then.
         */
        event_notifier_set(&vdev->intx.unmask);
    } else {
        vfio_pci_cpr_intx_serve(vdev);
    }
}

static bool vfio_cpr_vfork_detach_irqs(VFIOPCIDevice *vdev, Error **errp)
{
    trace_vfio_cpr_vfork_irqs(vdev->vbasedev.name, "detach", vdev->interrupt,
                              vdev->nr_vectors);
    vfio_pci_set_event_handlers(vdev, false);
    switch (vdev->interrupt) {
    case VFIO_INT_INTx:
        return vfio_cpr_vfork_detach_intx(vdev, errp);
    case VFIO_INT_MSI:
    case VFIO_INT_MSIX:
        return vfio_cpr_vfork_detach_msi(vdev, errp);
    default:
        return true;
    }
}

static void vfio_cpr_vfork_attach_irqs(VFIOPCIDevice *vdev)
{
    trace_vfio_cpr_vfork_irqs(vdev->vbasedev.name, "attach", vdev->interrupt,
                              vdev->nr_vectors);
    switch (vdev->interrupt) {
    case VFIO_INT_INTx:
        vfio_cpr_vfork_attach_intx(vdev);
        break;
    case VFIO_INT_MSI:
    case VFIO_INT_MSIX:
        vfio_cpr_vfork_attach_msi(vdev);
        break;
    default:
        break;
    }
    vfio_pci_set_event_handlers(vdev, true);
}

/************************************************************************/
/* DMA mappings */

/*
 * Of those of a container the new QEMU is the owner already, of those of
 * iommufd the old one still is: they find nothing to do.  The guest goes on
 * whatever comes of it; it is tried again before the next hand-over.
 */
static void vfio_cpr_vfork_own_mappings(VFIODevice *vbasedev)
{
    Object *container = OBJECT(vbasedev->bcontainer);
    Error *err = NULL;

    if (object_dynamic_cast(container, TYPE_VFIO_IOMMU_LEGACY)) {
        vfio_legacy_cpr_remap(VFIO_IOMMU_LEGACY(container));
    } else if (vbasedev->iommufd &&
               !vfio_iommufd_cpr_take(vbasedev->iommufd, &err)) {
        warn_reportf_err(err, "cpr-vfork: %s: ", vbasedev->name);
    }
}

/************************************************************************/

static bool vfio_cpr_vfork_detach(Error **errp)
{
    VFIODevice *vbasedev;

    /* It may have been lowered since it was asked for */
    if (!vfio_cpr_vfork_check_limit(errp)) {
        return false;
    }
    QLIST_FOREACH(vbasedev, &vfio_device_list, global_next) {
        if (!vfio_cpr_vfork_detach_irqs(vfio_pci_from_vfio_device(vbasedev),
                                        errp)) {
            return false;
        }
    }
    return vfio_kvm_device_cpr_detach(errp);
}

/* Interrupts last: how KVM delivers them depends on what it knows by then. */
static void vfio_cpr_vfork_attach(void)
{
    VFIODevice *vbasedev;

    QLIST_FOREACH(vbasedev, &vfio_device_list, global_next) {
        vfio_cpr_vfork_own_mappings(vbasedev);
    }
    vfio_kvm_device_cpr_attach();
    QLIST_FOREACH(vbasedev, &vfio_device_list, global_next) {
        vfio_cpr_vfork_attach_irqs(vfio_pci_from_vfio_device(vbasedev));
    }
}

void vfio_cpr_vfork_register(void)
{
    static const CprVforkDevices devices = {
        .check = vfio_cpr_vfork_check,
        .detach = vfio_cpr_vfork_detach,
        .attach = vfio_cpr_vfork_attach,
    };

    cpr_vfork_add_devices(&devices);
}
