/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What each user of KVM here needs. */
#ifndef KVM_H
#define KVM_H

#include <err.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* One vCPU; the memory is whose who made it. */
struct vm {
    int fd, vcpu;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *memory;
};

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

static inline uint8_t *make_memory(size_t size)
{
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        err(2, "mmap");
    }
    return memory;
}

static inline struct vm make_vm(int kvm, uint8_t *memory, uint64_t at, size_t size)
{
    struct kvm_userspace_memory_region region = {
        .guest_phys_addr = at, .memory_size = size, .userspace_addr = (uintptr_t)memory
    };
    struct vm vm = { .fd = checked(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM"), .memory = memory };

    checked(ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    vm.vcpu = checked(ioctl(vm.fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    copy_cpuid(kvm, vm.vcpu);
    vm.run_size = checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    vm.run = mmap(NULL, vm.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu, 0);
    if (vm.run == MAP_FAILED) {
        err(2, "mmap of the vCPU");
    }
    return vm;
}

static inline void end_vm(struct vm *vm)
{
    munmap(vm->run, vm->run_size);
    close(vm->vcpu);
    close(vm->fd);
}

#endif
