/* SPDX-License-Identifier: GPL-2.0-only */
/* What Linux 6.1 has otherwise than 6.12, whose names are the ones used here. */
#ifndef KVM_THIN_KERNEL_H
#define KVM_THIN_KERNEL_H

#include <linux/cc_platform.h>
#include <linux/cpuhotplug.h>
#include <linux/syscore_ops.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)

#define CPUHP_AP_KVM_ONLINE		CPUHP_AP_KVM_STARTING

#define SYSCORE_DATA			void
#define register_syscore(syscore)	register_syscore_ops((syscore)->ops)
#define unregister_syscore(syscore)	unregister_syscore_ops((syscore)->ops)
struct syscore { struct syscore_ops *ops; };

/* it can be a guest with SEV-SNP, but not the host of such guests */
#define host_has_snp()			false

#else

#define SYSCORE_DATA			void *data
#define host_has_snp()			cc_platform_has(CC_ATTR_HOST_SEV_SNP)

#endif
#endif
