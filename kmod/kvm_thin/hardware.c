// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtualization hardware of each CPU: on while any core is enabled, whatever
 * happens to the CPU meanwhile (hotplug, suspend, reboot, crash).
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/slab.h>
#include <asm/reboot.h>

#include "kernel.h"
#include "thin.h"

bool thin_rebooting;

DEFINE_PER_CPU(void *, thin_area);
static DEFINE_PER_CPU(bool, hardware_on);
static DEFINE_PER_CPU(const void *, last_guest);
static unsigned int nr_enabled;
static int cpuhp_online_state;

const void *kvm_thin_guest_swap(const void *guest)
{
	return this_cpu_xchg(last_guest, guest);
}
EXPORT_SYMBOL_GPL(kvm_thin_guest_swap);

void kvm_thin_guest_forget(const void *guest)
{
	this_cpu_cmpxchg(last_guest, guest, NULL);
}
EXPORT_SYMBOL_GPL(kvm_thin_guest_forget);

void kvm_thin_guest_forget_all(const void *guest)
{
	int cpu;

	for_each_possible_cpu(cpu)
		cmpxchg(per_cpu_ptr(&last_guest, cpu), guest, NULL);
}
EXPORT_SYMBOL_GPL(kvm_thin_guest_forget_all);

static int join(struct kvm_thin_core *core)
{
	int r = core->ops.enable_cpu();

	if (!r)
		cpumask_set_cpu(smp_processor_id(), &core->joined);
	return r;
}

static void leave(void *data)
{
	struct kvm_thin_core *core = data;

	if (cpumask_test_and_clear_cpu(smp_processor_id(), &core->joined))
		core->ops.disable_cpu();
}

static void cpu_off(void *unused)
{
	struct kvm_thin_core *core;

	if (!__this_cpu_read(hardware_on))
		return;
	for_each_core(core)
		leave(core);
	thin_is_amd ? thin_svm_off() : thin_vmx_off();
	thin_uret_offline();
	__this_cpu_write(last_guest, NULL);
	__this_cpu_write(hardware_on, false);
}

static int cpu_on(void)
{
	struct kvm_thin_core *core;
	int r;

	if (__this_cpu_read(hardware_on))
		return 0;
	r = thin_is_amd ? thin_svm_on() : thin_vmx_on();
	if (r)
		return r;
	thin_uret_online();
	__this_cpu_write(hardware_on, true);
	for_each_core(core)
		if (core->enabled && !r)
			r = join(core);
	if (r)
		cpu_off(NULL);
	return r;
}

/*
 * A CPU that cannot run VMs must not come online: they would be moved to it.
 * It has no tasks yet in the state that calls this.
 */
static int hotplug_online(unsigned int cpu)
{
	int r = cpu_on();

	if (r)
		pr_err("CPU %u: virtualization cannot be enabled (%d)\n", cpu, r);
	return r;
}

/*
 * A CPU that goes is rid of its tasks only in an earlier state, in which 6.1
 * cannot be told that one must not come: so there are two.
 */
static int hotplug_offline(unsigned int cpu)
{
	cpu_off(NULL);
	return 0;
}

static int syscore_suspend_cpu(SYSCORE_DATA)
{
	cpu_off(NULL);
	return 0;
}

static void syscore_resume_cpu(SYSCORE_DATA)
{
	WARN_ON_ONCE(cpu_on());
}

static void tell_rebooting(void)
{
	struct kvm_thin_core *core;

	WRITE_ONCE(thin_rebooting, true);
	for_each_core(core)
		core->ops.rebooting();
}

static void syscore_shutdown_all(SYSCORE_DATA)
{
	pr_info("exiting hardware virtualization\n");
	tell_rebooting();
	on_each_cpu(cpu_off, NULL, 1);
}

static struct syscore_ops syscore_ops = {
	.suspend = syscore_suspend_cpu,
	.resume = syscore_resume_cpu,
	.shutdown = syscore_shutdown_all,
};

static struct syscore syscore = { .ops = &syscore_ops };

/* On each CPU, by NMI too, when the machine crashes or reboots by force. */
static void emergency(void)
{
	struct kvm_thin_core *core;

	tell_rebooting();
	for_each_core(core)
		if (core->enabled && core->ops.emergency_cpu)
			core->ops.emergency_cpu();
	thin_is_amd ? thin_svm_emergency_off() : thin_vmx_emergency_off();
}

static int hooks_install(void)
{
	int r;

	cpu_emergency_register_virt_callback(emergency);
	r = cpuhp_setup_state_nocalls_cpuslocked(CPUHP_AP_KVM_ONLINE, "kvm_thin/cpu:offline",
						 NULL, hotplug_offline);
	if (r)
		goto no_offline;
	r = cpuhp_setup_state_cpuslocked(CPUHP_AP_ONLINE_DYN, "kvm_thin/cpu:online",
					 hotplug_online, NULL);
	if (r < 0)
		goto no_online;
	cpuhp_online_state = r;
	register_syscore(&syscore);
	return 0;

no_online:	/* some CPUs may have it on */
	__cpuhp_remove_state_cpuslocked(CPUHP_AP_KVM_ONLINE, true);
no_offline:
	cpu_emergency_unregister_virt_callback(emergency);
	return r;
}

static void hooks_remove(void)
{
	unregister_syscore(&syscore);
	__cpuhp_remove_state_cpuslocked(cpuhp_online_state, false);
	__cpuhp_remove_state_cpuslocked(CPUHP_AP_KVM_ONLINE, true);
	cpu_emergency_unregister_virt_callback(emergency);
}

static void join_cpu(void *data)
{
	struct kvm_thin_core *core = data;
	int r = join(core);

	if (r)
		atomic_set(&core->error, r);
}

int kvm_thin_enable(struct kvm_thin_core *core)
{
	int r = 0;

	guard(mutex)(&thin_lock);
	cpus_read_lock();
	if (!nr_enabled)
		r = hooks_install();
	if (r)
		goto out;
	nr_enabled++;
	atomic_set(&core->error, 0);
	on_each_cpu(join_cpu, core, 1);
	/*
	 * A reboot by force can have switched all off already: it must not be
	 * on again.  system_state is set before the syscore hook runs.
	 */
	r = system_state > SYSTEM_RUNNING ? -EBUSY : atomic_read(&core->error);
	core->enabled = !r;
	if (r) {
		pr_err("core %s cannot be enabled (%d)\n", core->name, r);
		on_each_cpu(leave, core, 1);
		if (!--nr_enabled)
			hooks_remove();
	}
out:
	cpus_read_unlock();
	return r;
}
EXPORT_SYMBOL_GPL(kvm_thin_enable);

void kvm_thin_disable(struct kvm_thin_core *core)
{
	guard(mutex)(&thin_lock);
	cpus_read_lock();
	core->enabled = false;
	on_each_cpu(leave, core, 1);
	if (!--nr_enabled)
		hooks_remove();
	cpus_read_unlock();
}
EXPORT_SYMBOL_GPL(kvm_thin_disable);

int thin_hardware_init(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		/* a power of two, so it is aligned to its size */
		per_cpu(thin_area, cpu) = kzalloc_node(PAGE_SIZE, GFP_KERNEL, cpu_to_node(cpu));
		if (!per_cpu(thin_area, cpu))
			return -ENOMEM;
	}
	return 0;
}

void thin_hardware_exit(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		kfree(per_cpu(thin_area, cpu));
}
