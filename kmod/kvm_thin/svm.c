// SPDX-License-Identifier: GPL-2.0-only
/*
 * AMD: SVM on and off with the CPU's host save area, and what hangs on it:
 * ASIDs, TSC ratio, SRSO.
 */
#include <linux/mem_encrypt.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <asm/perf_event.h>
#include <asm/svm.h>

#include "thin.h"

struct svm_cpu {
	u64 generation;		/* of ASIDs; 0 is never current */
	u32 max_asid, next_asid;
	bool flush_all;		/* by the next VMRUN on this CPU, whose ever */
	bool hsave_set;
	u64 tsc_ratio;
};

static DEFINE_PER_CPU(struct svm_cpu, svm_cpu);

static void write_tsc_ratio(struct svm_cpu *cpu, u64 ratio)
{
	if (ratio == cpu->tsc_ratio || !boot_cpu_has(X86_FEATURE_TSCRATEMSR))
		return;
	wrmsrl(MSR_AMD64_TSC_RATIO, ratio);
	cpu->tsc_ratio = ratio;
}

/*
 * SRSO: KVM has this on from the first VM to the last.  Here it is on while
 * there are cores: no core can turn it off under another's VMs.  6.1 has not
 * this way to mitigate it.
 */
static void reduce_speculation(bool on)
{
#ifdef X86_FEATURE_SRSO_BP_SPEC_REDUCE
	if (cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE))
		(on ? msr_set_bit : msr_clear_bit)(MSR_ZEN4_BP_CFG,
						   MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
#endif
}

int thin_svm_on(void)
{
	struct svm_cpu *cpu = this_cpu_ptr(&svm_cpu);
	u64 efer;

	rdmsrl(MSR_EFER, efer);
	if (efer & EFER_SVME)
		return -EBUSY;
	/* vCPUs that ran here before get a new ASID, after a flush */
	cpu->generation++;
	cpu->max_asid = cpuid_ebx(SVM_CPUID_FUNC) - 1;
	cpu->next_asid = cpu->max_asid + 1;
	wrmsrl(MSR_EFER, efer | EFER_SVME);
	wrmsrl(MSR_VM_HSAVE_PA, kvm_thin_svm_save_area_pa());
	cpu->hsave_set = true;
	cpu->tsc_ratio = 0;	/* not known: whoever had the CPU may have set it */
	write_tsc_ratio(cpu, SVM_TSC_RATIO_DEFAULT);
	reduce_speculation(true);
	amd_pmu_enable_virt();
	return 0;
}

void thin_svm_emergency_off(void)
{
	u64 efer;

	this_cpu_write(svm_cpu.hsave_set, false);
	wrmsrl(MSR_VM_HSAVE_PA, 0);
	rdmsrl(MSR_EFER, efer);
	if (!(efer & EFER_SVME))
		return;
	/*
	 * GIF has to be 1 or INIT and NMI stay blocked.  An NMI between this
	 * and the read above can have cleared EFER.SVME: so STGI may fault.
	 */
	asm volatile("1: stgi\n2:\n" _ASM_EXTABLE(1b, 2b) : : : "memory");
	wrmsrl(MSR_EFER, efer & ~EFER_SVME);
}

void thin_svm_off(void)
{
	write_tsc_ratio(this_cpu_ptr(&svm_cpu), SVM_TSC_RATIO_DEFAULT);
	thin_svm_emergency_off();
	reduce_speculation(false);
	amd_pmu_disable_virt();
}

/* VMSAVE and VMLOAD of the host's part go there, too */
unsigned long kvm_thin_svm_save_area_pa(void)
{
	return __sme_pa(__this_cpu_read(thin_area));
}
EXPORT_SYMBOL_GPL(kvm_thin_svm_save_area_pa);

void kvm_thin_svm_tsc_ratio(u64 ratio)
{
	write_tsc_ratio(this_cpu_ptr(&svm_cpu), ratio);
}
EXPORT_SYMBOL_GPL(kvm_thin_svm_tsc_ratio);

static bool hsave_is_set(struct svm_cpu *cpu)
{
#ifdef KVM_THIN_DEBUG
	u64 pa;

	rdmsrl(MSR_VM_HSAVE_PA, pa);
	if (pa != kvm_thin_svm_save_area_pa())
		return false;
#endif
	return cpu->hsave_set;
}

/*
 * ASIDs are handed out in order.  When they are used up, a new generation
 * begins and all are flushed: a number is never on two vCPUs at once, be they
 * of one core or of two, and needs no owner.
 */
void kvm_thin_asid_get(u64 *generation, u32 *asid)
{
	struct svm_cpu *cpu = this_cpu_ptr(&svm_cpu);

	if (*generation != cpu->generation) {
		if (cpu->next_asid > cpu->max_asid) {
			cpu->generation++;
			cpu->next_asid = 1;	/* cores refuse SEV */
			cpu->flush_all = true;
		}
		*generation = cpu->generation;
		*asid = cpu->next_asid++;
	}
	WARN_ON_ONCE(!*asid || *asid >= cpu->next_asid);
	WARN_ON_ONCE(!hsave_is_set(cpu) && !READ_ONCE(thin_rebooting));
}
EXPORT_SYMBOL_GPL(kvm_thin_asid_get);

bool kvm_thin_asid_flush_pending(void)
{
	return __this_cpu_read(svm_cpu.flush_all);
}
EXPORT_SYMBOL_GPL(kvm_thin_asid_flush_pending);

void kvm_thin_asid_flushed(void)
{
	__this_cpu_write(svm_cpu.flush_all, false);
}
EXPORT_SYMBOL_GPL(kvm_thin_asid_flushed);

