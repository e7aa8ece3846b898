/* SPDX-License-Identifier: GPL-2.0-only */
/* Inside of kvm_thin. */
#ifndef KVM_THIN_INTERNAL_H
#define KVM_THIN_INTERNAL_H

#include <linux/atomic.h>
#include <linux/bug.h>
#include <linux/cpumask.h>
#include <linux/export.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/rculist.h>
#include <linux/smp.h>

#include "kvm_thin.h"

struct kvm_thin_core {
	struct list_head list;
	struct kvm_thin_ops ops;
	struct module *owner;
	const struct file_operations *fops;	/* NULL: not published */
	struct cpumask joined;			/* CPUs it is enabled on */
	atomic_t vms;
	atomic_t error;				/* of being enabled */
	u8 id;					/* never 0 */
	bool enabled;
	char name[KVM_THIN_NAME_LEN];
};

/*
 * Locks: thin_lock, then cpus_read_lock().  thin_lock covers the list of cores
 * and all transitions.  The list is read without it under RCU (NMI, interrupts,
 * IPIs), and in hotplug callbacks, which a change of the list excludes by
 * holding cpus_read_lock().
 */
extern struct mutex thin_lock;
extern struct list_head thin_cores;
extern bool thin_is_amd;
extern bool thin_rebooting;

#define for_each_core(core)	list_for_each_entry_rcu(core, &thin_cores, list, true)

/* the page that the hardware keeps of the host: save area, VMXON region */
DECLARE_PER_CPU(void *, thin_area);

int thin_hardware_init(void);
void thin_hardware_exit(void);

int thin_svm_on(void);
void thin_svm_off(void);
void thin_svm_emergency_off(void);

int thin_vmx_on(void);
void thin_vmx_off(void);
void thin_vmx_emergency_off(void);

void thin_uret_online(void);
void thin_uret_offline(void);

void thin_dispatch_init(void);
void thin_dispatch_exit(void);

/* by these names vfio looks for KVM */
bool kvm_get_kvm_safe(struct kvm *kvm);
void kvm_put_kvm(struct kvm *kvm);

extern struct miscdevice thin_device;

#endif
