/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What each user of KVM here needs. */
#ifndef KVM_H
#define KVM_H

#include <err.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <sys/ioctl.h>

static inline long checked(long result, const char *what)
{
    if (result < 0) {
        err(2, "%s", what);
    }
    return result;
}

/* The guest is to have what the host's KVM supports: RDTSCP with it. */
static inline void copy_cpuid(int kvm, int vcpu)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[256];
    } *cpuid = calloc(1, sizeof(*cpuid));

    if (!cpuid) {
        err(2, "calloc");
    }
    cpuid->head.nent = 256;
    checked(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "KVM_GET_SUPPORTED_CPUID");
    checked(ioctl(vcpu, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2");
    free(cpuid);
}

#endif
