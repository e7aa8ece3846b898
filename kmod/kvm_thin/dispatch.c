// SPDX-License-Identifier: GPL-2.0-only
/* Hooks of the kernel that exist once, handed on to the core that is meant. */
#include <linux/amd-iommu.h>
#include <linux/module.h>
#include <linux/perf_event.h>
#include <linux/xarray.h>
#include <asm/irq.h>

#include "thin.h"

static struct kvm_thin_core *core_in_guest(void)
{
	struct kvm_thin_core *core;

	for_each_core(core)
		if (READ_ONCE(core->enabled) && core->ops.perf_state())
			return core;
	return NULL;
}

static unsigned int perf_state(void)
{
	struct kvm_thin_core *core = core_in_guest();

	return core ? core->ops.perf_state() : 0;
}

static unsigned long perf_ip(void)
{
	struct kvm_thin_core *core = core_in_guest();

	return core ? core->ops.perf_ip() : 0;
}

static unsigned int perf_pt_intr(void)
{
	struct kvm_thin_core *core = core_in_guest();

	return core ? core->ops.perf_pt_intr() : 0;
}

static struct perf_guest_info_callbacks perf_callbacks = {
	.state = perf_state,
	.get_ip = perf_ip,
	.handle_intel_pt_intr = perf_pt_intr,
};

/* The vector says only that some waiting vCPU has an interrupt: all look. */
static void pi_wakeup(void)
{
	struct kvm_thin_core *core;

	for_each_core(core)
		if (READ_ONCE(core->enabled))
			core->ops.pi_wakeup();
}

/* VM ids hold the core's, so only one finds its VM. */
static int ga_log(u32 tag)
{
	struct kvm_thin_core *core;

	guard(rcu)();
	for_each_core(core)
		if (READ_ONCE(core->enabled))
			core->ops.ga_log(tag);
	return 0;
}

void thin_dispatch_init(void)
{
	perf_register_guest_info_callbacks(&perf_callbacks);
	if (thin_is_amd)
		amd_iommu_register_ga_log_notifier(ga_log);
	else
		kvm_set_posted_intr_wakeup_handler(pi_wakeup);
}

void thin_dispatch_exit(void)
{
	if (thin_is_amd)
		amd_iommu_register_ga_log_notifier(NULL);
	else
		kvm_set_posted_intr_wakeup_handler(NULL);
	perf_unregister_guest_info_callbacks(&perf_callbacks);
}

/* struct kvm * -> its core */
static DEFINE_XARRAY(vms);

int kvm_thin_vm_add(struct kvm_thin_core *core, struct kvm *kvm)
{
	int r = xa_insert(&vms, (unsigned long)kvm, core, GFP_KERNEL_ACCOUNT);

	if (!r)
		atomic_inc(&core->vms);
	return r;
}
EXPORT_SYMBOL_GPL(kvm_thin_vm_add);

void kvm_thin_vm_remove(struct kvm_thin_core *core, struct kvm *kvm)
{
	if (!WARN_ON(xa_erase(&vms, (unsigned long)kvm) != core))
		atomic_dec(&core->vms);
}
EXPORT_SYMBOL_GPL(kvm_thin_vm_remove);

/*
 * vfio finds these two by name and believes to hold KVM's module by them.  It
 * holds this one, so each reference to a VM holds the VM's core as well.
 */
bool kvm_get_kvm_safe(struct kvm *kvm)
{
	struct kvm_thin_core *core;

	scoped_guard(rcu) {
		core = xa_load(&vms, (unsigned long)kvm);
		if (!core || !try_module_get(core->owner))
			return false;
	}
	if (core->ops.get_kvm_safe(kvm))
		return true;
	module_put(core->owner);
	return false;
}
EXPORT_SYMBOL_GPL(kvm_get_kvm_safe);

void kvm_put_kvm(struct kvm *kvm)
{
	struct kvm_thin_core *core = xa_load(&vms, (unsigned long)kvm);

	if (WARN_ON(!core))
		return;
	core->ops.put_kvm(kvm);
	module_put(core->owner);
}
EXPORT_SYMBOL_GPL(kvm_put_kvm);
