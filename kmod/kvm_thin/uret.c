// SPDX-License-Identifier: GPL-2.0-only
/*
 * MSRs that hold a guest's value until the CPU returns to user mode.
 *
 * Each CPU has one cache of what the MSR holds and of what the host wants in
 * it.  Were there one for each core, a core would skip a write because of what
 * it remembers, while the other has put its own guest's value there.
 */
#include <linux/cpu.h>
#include <linux/user-return-notifier.h>
#include <asm/msr.h>

#include "thin.h"

#define MAX_MSRS	32

struct uret_cpu {
	struct user_return_notifier notifier;
	bool registered;
	struct {
		u64 host, now;
	} msr[MAX_MSRS];
};

static DEFINE_PER_CPU(struct uret_cpu, uret_cpu);
static u32 msrs[MAX_MSRS];
static unsigned int nr_msrs;	/* only grows; under thin_lock */

static void on_user_return(struct user_return_notifier *notifier)
{
	struct uret_cpu *cpu = container_of(notifier, struct uret_cpu, notifier);
	unsigned long flags;
	unsigned int i;

	/* the IPI of a reboot does the same on this CPU */
	local_irq_save(flags);
	if (cpu->registered) {
		cpu->registered = false;
		user_return_notifier_unregister(notifier);
	}
	local_irq_restore(flags);
	for (i = 0; i < READ_ONCE(nr_msrs); i++) {
		if (cpu->msr[i].now == cpu->msr[i].host)
			continue;
		wrmsrl(msrs[i], cpu->msr[i].host);
		cpu->msr[i].now = cpu->msr[i].host;
	}
}

static void sample(void *slot)
{
	struct uret_cpu *cpu = this_cpu_ptr(&uret_cpu);
	unsigned long i = (unsigned long)slot;
	u64 value = 0;

	rdmsrl_safe(msrs[i], &value);
	cpu->msr[i].host = value;
	cpu->msr[i].now = value;
}

/*
 * The CPU is about to run VMs: what its MSRs hold is the host's.  A CPU that
 * comes online long after the MSR was added has its turn here.
 */
void thin_uret_online(void)
{
	unsigned long i;

	for (i = 0; i < nr_msrs; i++)
		sample((void *)i);
}

void thin_uret_offline(void)
{
	struct uret_cpu *cpu = this_cpu_ptr(&uret_cpu);

	if (cpu->registered)
		on_user_return(&cpu->notifier);
}

/* It is written on the CPU that it was read on, at once: no guest has had it. */
static bool works(u32 msr)
{
	u64 value;

	guard(preempt)();
	return !rdmsrl_safe(msr, &value) && !wrmsrl_safe(msr, value);
}

int kvm_thin_uret_add(u32 msr)
{
	unsigned long i;

	guard(mutex)(&thin_lock);
	for (i = 0; i < nr_msrs; i++)
		if (msrs[i] == msr)
			return i;
	if (i == MAX_MSRS || !works(msr))
		return -1;
	msrs[i] = msr;
	cpus_read_lock();
	on_each_cpu(sample, (void *)i, 1);
	smp_store_release(&nr_msrs, i + 1);	/* once all have their samples */
	cpus_read_unlock();
	return i;
}
EXPORT_SYMBOL_GPL(kvm_thin_uret_add);

static void check(struct uret_cpu *cpu, unsigned int slot)
{
#ifdef KVM_THIN_DEBUG
	u64 value;

	WARN_ONCE(!rdmsrl_safe(msrs[slot], &value) && value != cpu->msr[slot].now,
		  "MSR %x holds %llx, not %llx\n", msrs[slot], value, cpu->msr[slot].now);
#endif
}

int kvm_thin_uret_set(unsigned int slot, u64 value, u64 mask)
{
	struct uret_cpu *cpu = this_cpu_ptr(&uret_cpu);

	check(cpu, slot);
	value = (value & mask) | (cpu->msr[slot].host & ~mask);
	if (value == cpu->msr[slot].now)
		return 0;
	if (wrmsrl_safe(msrs[slot], value))
		return 1;
	cpu->msr[slot].now = value;
	if (!cpu->registered) {
		cpu->notifier.on_user_return = on_user_return;
		user_return_notifier_register(&cpu->notifier);
		cpu->registered = true;
	}
	return 0;
}
EXPORT_SYMBOL_GPL(kvm_thin_uret_set);
