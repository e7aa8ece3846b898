/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What kvm_thin offers to the KVM cores on a host.
 *
 * kvm_thin cannot be replaced while a VM runs, cores can: so this only ever
 * grows.  A function keeps its name, type and meaning; struct kvm_thin_ops
 * gets new members at its end; either raises KVM_THIN_ABI.  A core tells what
 * it was built for, and is refused by a kvm_thin that is older.
 *
 * No structure is shared: what a core holds of thin is opaque, as the cores'
 * VMs are to thin.  That also keeps the symbol versions (CONFIG_MODVERSIONS)
 * of these functions the same from one kvm_thin to the next.
 */
#ifndef KVM_THIN_H
#define KVM_THIN_H

#include <linux/fs.h>
#include <linux/types.h>

#define KVM_THIN_ABI		1
/* the oldest ABI whose cores are still served */
#define KVM_THIN_ABI_OLDEST	1
/* room for the name of a build, with the NUL */
#define KVM_THIN_NAME_LEN	32

struct kvm;
struct kvm_thin_core;
struct module;

/*
 * What thin asks of a core, from kvm_thin_enable() to kvm_thin_disable(); the
 * last two as long as the core has VMs.  Members may be NULL where noted.
 */
struct kvm_thin_ops {
	/* on each CPU, hardware is on: by IPI, or as the CPU comes online */
	int (*enable_cpu)(void);
	/* on each CPU that was enabled, hardware is about to go off */
	void (*disable_cpu)(void);
	/* any context: from here on VMX and SVM instructions may fault */
	void (*rebooting)(void);
	/* NMI context, hardware is about to go off for good (may be NULL) */
	void (*emergency_cpu)(void);

	/* NMI context: is a vCPU of this core interrupted here, and where */
	unsigned int (*perf_state)(void);
	unsigned long (*perf_ip)(void);
	unsigned int (*perf_pt_intr)(void);

	/* the IOMMU has an interrupt for a vCPU that does not run (AMD) */
	int (*ga_log)(u32 tag);
	/* hard interrupt: a posted interrupt for a vCPU that waits (Intel) */
	void (*pi_wakeup)(void);

	bool (*get_kvm_safe)(struct kvm *kvm);
	void (*put_kvm)(struct kvm *kvm);
	/* ABI 1 ends here */
};

/* the core's life: register, enable, publish; and back */
struct kvm_thin_core *kvm_thin_register(u32 abi, const char *name,
					struct module *owner, const void *ops,
					size_t ops_size);
void kvm_thin_unregister(struct kvm_thin_core *core);
int kvm_thin_enable(struct kvm_thin_core *core);
void kvm_thin_disable(struct kvm_thin_core *core);
void kvm_thin_publish(struct kvm_thin_core *core,
		      const struct file_operations *fops);
void kvm_thin_unpublish(struct kvm_thin_core *core);

/* 1 to 255, no other core has it: to make ids of VMs in the IOMMU's log of */
u8 kvm_thin_core_id(struct kvm_thin_core *core);

/* VMs, for who asks thin for kvm_get_kvm_safe() and kvm_put_kvm() */
int kvm_thin_vm_add(struct kvm_thin_core *core, struct kvm *kvm);
void kvm_thin_vm_remove(struct kvm_thin_core *core, struct kvm *kvm);

/* user-return MSRs: a slot or -1; 0 or 1 as kvm_set_user_return_msr() */
int kvm_thin_uret_add(u32 msr);
int kvm_thin_uret_set(unsigned int slot, u64 value, u64 mask);

/*
 * Which guest context this CPU has had last (a VMCB, a VMCS), whichever core
 * it belongs to.  swap() returns the former one: if it is another one, the
 * context has to be loaded and branch predictions to be flushed.  forget() is
 * for this CPU, forget_all() for all, before the memory is used for another.
 */
const void *kvm_thin_guest_swap(const void *guest);
void kvm_thin_guest_forget(const void *guest);
void kvm_thin_guest_forget_all(const void *guest);

/* SVM, with preemption disabled */
unsigned long kvm_thin_svm_save_area_pa(void);
void kvm_thin_svm_tsc_ratio(u64 ratio);
/* just before VMRUN: makes *asid one that may be used on this CPU */
void kvm_thin_asid_get(u64 *generation, u32 *asid);
bool kvm_thin_asid_flush_pending(void);
void kvm_thin_asid_flushed(void);

/* VMX: 0 when there is none left */
int kvm_thin_vpid_alloc(struct kvm_thin_core *core);
void kvm_thin_vpid_free(struct kvm_thin_core *core, int vpid);
void kvm_thin_vpid_check(struct kvm_thin_core *core, int vpid);

#endif
