// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vmload DEVICE SECONDS VALUE CPU: makes VMs one after another, each with VALUE in TSC_AUX, and checks on every exit
 * that the guest has seen nothing else, that its memory counts on, and that the host has its own TSC_AUX back.
 * CPU is where it runs, -1 is anywhere. Ends with status 0 when all was well and the guest has run.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kvm.h"

#define MSR_TSC_AUX 0xc0000103
#define CODE_AT 0x1000
#define DATA_AT 0x2000
#define MEMORY_SIZE 0x2000
#define VM_LIFE_S 4
#define ROUNDS 2048

extern const uint8_t guest_code[], guest_code_end[];

struct tally {
    unsigned long vms, exits, guest_wrong, host_wrong, stalls;
};

static double now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void set_registers(int vcpu, uint32_t value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msrs = { .head.nmsrs = 1, .entry = { .index = MSR_TSC_AUX, .data = value } };
    struct kvm_regs regs = { .rip = CODE_AT, .rflags = 2 };
    struct kvm_sregs sregs;

    if (ioctl(vcpu, KVM_SET_MSRS, &msrs) != 1) {
        errx(2, "TSC_AUX cannot be set");
    }
    checked(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    checked(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    checked(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static struct vm make_guest(int kvm, uint32_t value)
{
    uint8_t *memory = make_memory(MEMORY_SIZE);
    struct vm vm;

    memcpy(memory, guest_code, guest_code_end - guest_code);
    memcpy(memory + DATA_AT - CODE_AT, &value, sizeof(value));
    vm = make_vm(kvm, memory, CODE_AT, MEMORY_SIZE);
    set_registers(vm.vcpu, value);
    return vm;
}

static void end_guest(struct vm *vm)
{
    end_vm(vm);
    munmap(vm->memory, MEMORY_SIZE);
}

static unsigned int cpu_now(void)
{
    unsigned int cpu;

    checked(syscall(SYS_getcpu, &cpu, NULL, NULL), "getcpu");
    return cpu;
}

/* Linux has the CPU's number in the low twelve bits. Nothing is known when the CPU changed meanwhile. */
static int host_is_wrong(void)
{
    unsigned int before = cpu_now(), low, high, aux;

    __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
    if (before != cpu_now() || (aux & 0xfff) == before) {
        return 0;
    }
    printf("the host's TSC_AUX on CPU %u is %x\n", before, aux);
    return 1;
}

static uint32_t counter(const struct vm *vm)
{
    uint32_t value;

    memcpy(&value, vm->memory + DATA_AT - CODE_AT + 4, sizeof(value));
    return value;
}

static void run_vm(struct vm *vm, uint32_t value, double end_s, struct tally *tally)
{
    uint32_t last = 0;

    while (now_s() < end_s) {
        if (ioctl(vm->vcpu, KVM_RUN, 0) < 0) {
            if (errno == EINTR) {
                continue;
            }
            err(2, "KVM_RUN");
        }
        tally->host_wrong += host_is_wrong();
        if (vm->run->exit_reason != KVM_EXIT_IO) {
            errx(2, "exit for reason %u", vm->run->exit_reason);
        }
        if (vm->run->io.port == 0x11) {
            uint32_t seen;

            memcpy(&seen, (uint8_t *)vm->run + vm->run->io.data_offset, sizeof(seen));
            if (!tally->guest_wrong++) {
                printf("the guest's TSC_AUX is %x, not %x\n", seen, value);
            }
            last = counter(vm);
            continue;
        }
        tally->stalls += counter(vm) - last < ROUNDS;
        last = counter(vm);
        tally->exits++;
    }
}

static void pin_to(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    checked(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
}

int main(int argc, char **argv)
{
    struct tally tally = { 0 };
    uint32_t value;
    double end_s;
    int kvm;

    if (argc != 5) {
        errx(2, "usage: vmload DEVICE SECONDS VALUE CPU");
    }
    end_s = now_s() + atof(argv[2]);
    value = strtoul(argv[3], NULL, 0);
    if (atoi(argv[4]) >= 0) {
        pin_to(atoi(argv[4]));
    }
    kvm = checked(open(argv[1], O_RDWR | O_CLOEXEC), argv[1]);
    while (now_s() < end_s) {
        double life_s = now_s() + VM_LIFE_S;
        struct vm vm = make_guest(kvm, value);

        run_vm(&vm, value, life_s < end_s ? life_s : end_s, &tally);
        end_guest(&vm);
        tally.vms++;
    }
    printf("vmload %s cpu %s: vms=%lu exits=%lu guest_wrong=%lu host_wrong=%lu stalls=%lu\n", argv[1], argv[4],
           tally.vms, tally.exits, tally.guest_wrong, tally.host_wrong, tally.stalls);
    return tally.guest_wrong || tally.host_wrong || tally.stalls || !tally.exits;
}
