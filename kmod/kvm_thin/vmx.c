// SPDX-License-Identifier: GPL-2.0-only
/* Intel: VMX on and off with the CPU's VMXON region, and VPIDs. */
#include <linux/spinlock.h>
#include <asm/msr.h>
#include <asm/perf_event.h>
#include <asm/tlbflush.h>
#include <asm/vmx.h>

#include "thin.h"

#define NR_VPIDS	(U16_MAX + 1)

int thin_vmx_on(void)
{
	u32 *region = __this_cpu_read(thin_area);
	u64 pa = __pa(region), basic;

	if (cr4_read_shadow() & X86_CR4_VMXE)
		return -EBUSY;
	rdmsrl(MSR_IA32_VMX_BASIC, basic);
	*region = vmx_basic_vmcs_revision_id(basic);
	intel_pt_handle_vmx(1);
	cr4_set_bits(X86_CR4_VMXE);
	asm goto("1: vmxon %[pa]\n\t" _ASM_EXTABLE(1b, %l[fault])
		 : : [pa] "m" (pa) : "cc", "memory" : fault);
	return 0;

fault:
	cr4_clear_bits(X86_CR4_VMXE);
	intel_pt_handle_vmx(0);
	return -EFAULT;
}

/* VMXOFF faults when an NMI has done it before: no matter then. */
static bool leave_vmx(void)
{
	bool left = false;

	asm goto("1: vmxoff\n\t" _ASM_EXTABLE(1b, %l[fault]) : : : "cc", "memory" : fault);
	left = true;
fault:
	cr4_clear_bits(X86_CR4_VMXE);
	return left;
}

void thin_vmx_off(void)
{
	WARN_ON_ONCE(!leave_vmx() && !READ_ONCE(thin_rebooting));
	intel_pt_handle_vmx(0);
}

void thin_vmx_emergency_off(void)
{
	if (__read_cr4() & X86_CR4_VMXE)
		leave_vmx();
}

/* Whose each VPID is: a core's id.  0 is the host's, for ever. */
static u8 vpid_owner[NR_VPIDS];
static DEFINE_SPINLOCK(vpid_lock);

int kvm_thin_vpid_alloc(struct kvm_thin_core *core)
{
	u8 *free;

	guard(spinlock)(&vpid_lock);
	free = memchr(vpid_owner + 1, 0, NR_VPIDS - 1);
	if (!free)
		return 0;
	*free = core->id;
	return free - vpid_owner;
}
EXPORT_SYMBOL_GPL(kvm_thin_vpid_alloc);

void kvm_thin_vpid_check(struct kvm_thin_core *core, int vpid)
{
	WARN_ON_ONCE(vpid < 0 || vpid >= NR_VPIDS ||
		     (vpid && READ_ONCE(vpid_owner[vpid]) != core->id));
}
EXPORT_SYMBOL_GPL(kvm_thin_vpid_check);

void kvm_thin_vpid_free(struct kvm_thin_core *core, int vpid)
{
	guard(spinlock)(&vpid_lock);
	kvm_thin_vpid_check(core, vpid);
	if (vpid > 0 && vpid < NR_VPIDS && vpid_owner[vpid] == core->id)
		vpid_owner[vpid] = 0;
}
EXPORT_SYMBOL_GPL(kvm_thin_vpid_free);

