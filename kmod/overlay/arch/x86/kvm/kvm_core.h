/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef KVM_CORE_H
#define KVM_CORE_H

#include <kvm_thin.h>

extern struct kvm_thin_core *kvm_core;

/* Parameters that the modules of both vendors have by the same name. */
extern bool kvm_core_nested;
extern bool kvm_core_vnmi;

/* Set by a vendor that has to know of interrupts of Intel PT. */
extern unsigned int (*kvm_core_pt_intr)(void);

int kvm_x86_init(void);
void kvm_x86_exit(void);
int svm_init(void);
void svm_exit(void);
int vmx_init(void);
void vmx_exit(void);

#endif
