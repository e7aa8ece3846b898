// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM as one module among others of its kind: what the kernel has as kvm.ko,
 * kvm-amd.ko and kvm-intel.ko, registered with kvm_thin.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpufeature.h>
#include <linux/err.h>
#include <linux/kvm_host.h>
#include <linux/module.h>

#include "kvm_core.h"
#include "svm/svm.h"
#include "vmx/posted_intr.h"

struct kvm_thin_core *kvm_core;
unsigned int (*kvm_core_pt_intr)(void);

bool kvm_core_nested = true;
module_param_named(nested, kvm_core_nested, bool, 0444);
bool kvm_core_vnmi = true;
module_param_named(vnmi, kvm_core_vnmi, bool, 0444);

static void core_rebooting(void)
{
	kvm_rebooting = true;
}

static void core_emergency_cpu(void)
{
	if (kvm_x86_ops.emergency_disable_virtualization_cpu)
		kvm_x86_ops.emergency_disable_virtualization_cpu();
}

static unsigned int core_perf_state(void)
{
	struct kvm_vcpu *vcpu = kvm_get_running_vcpu();

	if (!kvm_arch_pmi_in_guest(vcpu))
		return 0;
	return PERF_GUEST_ACTIVE | (kvm_arch_vcpu_in_kernel(vcpu) ? 0 : PERF_GUEST_USER);
}

/* only where core_perf_state() says that a guest was interrupted */
static unsigned long core_perf_ip(void)
{
	return kvm_arch_vcpu_get_ip(kvm_get_running_vcpu());
}

static unsigned int core_perf_pt_intr(void)
{
	return kvm_core_pt_intr ? kvm_core_pt_intr() : 0;
}

static const struct kvm_thin_ops core_ops = {
	.enable_cpu = kvm_arch_enable_virtualization_cpu,
	.disable_cpu = kvm_arch_disable_virtualization_cpu,
	.rebooting = core_rebooting,
	.emergency_cpu = core_emergency_cpu,
	.perf_state = core_perf_state,
	.perf_ip = core_perf_ip,
	.perf_pt_intr = core_perf_pt_intr,
	.ga_log = avic_ga_log_notifier,
	.pi_wakeup = pi_wakeup_handler,
	.get_kvm_safe = kvm_get_kvm_safe,
	.put_kvm = kvm_put_kvm,
};

static bool on_intel(void)
{
	return boot_cpu_has(X86_FEATURE_VMX);
}

static int __init core_init(void)
{
	int r;

	kvm_core = kvm_thin_register(KVM_THIN_ABI, KVM_CORE_NAME, THIS_MODULE,
				     &core_ops, sizeof(core_ops));
	if (IS_ERR(kvm_core))
		return PTR_ERR(kvm_core);
	r = kvm_x86_init();
	if (!r)
		r = on_intel() ? vmx_init() : svm_init();
	if (r)
		kvm_thin_unregister(kvm_core);
	return r;
}

static void __exit core_exit(void)
{
	if (on_intel())
		vmx_exit();
	else
		svm_exit();
	kvm_x86_exit();
	kvm_thin_unregister(kvm_core);
}

module_init(core_init);
module_exit(core_exit);
MODULE_DESCRIPTION("A build of KVM beside others, for kvm_thin");
MODULE_LICENSE("GPL");
MODULE_VERSION(KVM_CORE_NAME);
/* the release of Linux that this KVM is of: that of vermagic may be another */
MODULE_INFO(vmm_source, __stringify(KVM_CORE_SOURCE));
MODULE_INFO(kvm_thin_abi, __stringify(KVM_THIN_ABI));
