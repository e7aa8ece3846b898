// SPDX-License-Identifier: GPL-2.0-only
/*
 * kvm_thin: what KVM may have only once on a host, for any number of KVM cores.
 *
 * Here: which cores there are, and the module itself.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/cpufeature.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/stringify.h>
#include <asm/hypervisor.h>

#include "kernel.h"
#include "thin.h"

DEFINE_MUTEX(thin_lock);	/* see thin.h */
LIST_HEAD(thin_cores);
bool thin_is_amd;

static DECLARE_BITMAP(core_ids, U8_MAX + 1) = { 1 };	/* 0 is nobody */

static int check_core(u32 abi, const char *name, size_t ops_size)
{
	if (abi < KVM_THIN_ABI_OLDEST || abi > KVM_THIN_ABI) {
		pr_err("core %s was built for thin ABI %u, this kvm_thin serves %u to %u: refused\n",
		       name, abi, KVM_THIN_ABI_OLDEST, KVM_THIN_ABI);
		return -ENOEXEC;
	}
	if (ops_size > sizeof(struct kvm_thin_ops) || strlen(name) >= KVM_THIN_NAME_LEN) {
		pr_err("core %s does not fit its ABI %u: refused\n", name, abi);
		return -ENOEXEC;
	}
	return 0;
}

struct kvm_thin_core *kvm_thin_register(u32 abi, const char *name,
					struct module *owner, const void *ops, size_t ops_size)
{
	struct kvm_thin_core *core;
	unsigned long id;
	int r;

	guard(mutex)(&thin_lock);
	r = check_core(abi, name, ops_size);
	if (r)
		return ERR_PTR(r);
	id = find_first_zero_bit(core_ids, U8_MAX + 1);
	if (id > U8_MAX)
		return ERR_PTR(-ENOSPC);
	core = kzalloc(sizeof(*core), GFP_KERNEL);
	if (!core)
		return ERR_PTR(-ENOMEM);
	core->id = id;
	core->owner = owner;
	/* members that an older core does not know stay NULL */
	memcpy(&core->ops, ops, ops_size);
	strscpy(core->name, name, sizeof(core->name));
	__set_bit(id, core_ids);
	list_add_tail_rcu(&core->list, &thin_cores);
	pr_info("core %s is there (thin ABI %u)\n", name, abi);
	return core;
}
EXPORT_SYMBOL_GPL(kvm_thin_register);

void kvm_thin_unregister(struct kvm_thin_core *core)
{
	guard(mutex)(&thin_lock);
	WARN_ON(core->enabled || core->fops || atomic_read(&core->vms));
	cpus_read_lock();
	list_del_rcu(&core->list);
	cpus_read_unlock();
	/* NMIs, interrupts and IPIs that still see it are over after this */
	synchronize_rcu();
	__clear_bit(core->id, core_ids);
	pr_info("core %s is gone\n", core->name);
	kfree(core);
}
EXPORT_SYMBOL_GPL(kvm_thin_unregister);

u8 kvm_thin_core_id(struct kvm_thin_core *core)
{
	return core->id;
}
EXPORT_SYMBOL_GPL(kvm_thin_core_id);

/* Reasons why cores cannot be had on this host at all. */
static int __init check_host(void)
{
	if (host_has_snp()) {
		pr_err("SEV-SNP is on: its host pages are not handled\n");
		return -EOPNOTSUPP;
	}
	if (hypervisor_is_type(X86_HYPER_MS_HYPERV)) {
		pr_err("on Hyper-V, which has but one set of enlightenments: not supported\n");
		return -EOPNOTSUPP;
	}
	thin_is_amd = boot_cpu_has(X86_FEATURE_SVM);
	if (!thin_is_amd && !boot_cpu_has(X86_FEATURE_VMX)) {
		pr_err("the CPU has neither SVM nor VMX\n");
		return -EOPNOTSUPP;
	}
	return 0;
}

static int __init thin_init(void)
{
	int r = check_host();

	if (r)
		return r;
	r = thin_hardware_init();
	if (!r)
		r = misc_register(&thin_device);
	if (!r)
		thin_dispatch_init();
	else
		thin_hardware_exit();
	return r;
}

static void __exit thin_exit(void)
{
	thin_dispatch_exit();
	misc_deregister(&thin_device);
	thin_hardware_exit();
}

module_init(thin_init);
module_exit(thin_exit);
MODULE_DESCRIPTION("What KVM may have only once on a host");
MODULE_LICENSE("GPL");
MODULE_VERSION(KVM_THIN_BUILD);
MODULE_INFO(kvm_thin_abi, __stringify(KVM_THIN_ABI));
