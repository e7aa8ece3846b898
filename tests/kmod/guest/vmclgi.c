// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * vmclgi SVME DEVICE...: runs one VM on each device in turn, moved from one to the next as it is. Its guest executes CLGI,
 * which has to be carried out when SVME is 1, and #UD when it is 0: that is EFER.SVME of the guest. Tells for each device
 * what came of it. Ends with status 0 when the guest went on in its memory all the time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm.h"

#define CODE_AT 0x1000
#define COUNT_AT 0x2000
#define IDT_AT 0x2100
#define GDT_AT 0x2200
#define STACK_AT 0x3000
#define MEMORY_SIZE 0x2000
#define UD_VECTOR 6
#define EFER_SVME 0x1000
#define ROUNDS 1000

extern const uint8_t clgi_code[], clgi_undefined[], clgi_code_end[];

static const struct kvm_segment code = { .limit = 0xffff, .selector = 8, .type = 11, .present = 1, .s = 1 };
static const struct kvm_segment data = { .limit = 0xffff, .selector = 16, .type = 3, .present = 1, .s = 1 };

/* A segment of base 0 as a descriptor, or an interrupt gate of 16 bits into the code. */
static uint64_t descriptor(const struct kvm_segment *segment)
{
    return segment->limit | (uint64_t)(0x90 | segment->type) << 40;
}

static uint64_t gate(uint16_t offset)
{
    return offset | (uint64_t)code.selector << 16 | (uint64_t)0x86 << 40;
}

static uint8_t *make_guest(void)
{
    uint8_t *memory = make_memory(MEMORY_SIZE);
    uint64_t gdt[] = { 0, descriptor(&code), descriptor(&data) };
    uint64_t idt[UD_VECTOR + 1] = { [UD_VECTOR] = gate(CODE_AT + (clgi_undefined - clgi_code)) };

    memcpy(memory, clgi_code, clgi_code_end - clgi_code);
    memcpy(memory + GDT_AT - CODE_AT, gdt, sizeof(gdt));
    memcpy(memory + IDT_AT - CODE_AT, idt, sizeof(idt));
    return memory;
}

static struct vm make_vm_on(const char *device, uint8_t *memory)
{
    int kvm = checked(open(device, O_RDWR | O_CLOEXEC), device);
    struct vm vm = make_vm(kvm, memory, CODE_AT, MEMORY_SIZE);

    close(kvm);
    return vm;
}

static void get_state(const struct vm *vm, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
    checked(ioctl(vm->vcpu, KVM_GET_SREGS, sregs), "KVM_GET_SREGS");
    checked(ioctl(vm->vcpu, KVM_GET_REGS, regs), "KVM_GET_REGS");
}

static void set_state(const struct vm *vm, const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
    checked(ioctl(vm->vcpu, KVM_SET_SREGS, sregs), "KVM_SET_SREGS");
    checked(ioctl(vm->vcpu, KVM_SET_REGS, regs), "KVM_SET_REGS");
}

static void start(const struct vm *vm, int svme)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    get_state(vm, &regs, &sregs);
    regs = (struct kvm_regs){ .rip = CODE_AT, .rsp = STACK_AT, .rflags = 2 };
    sregs.cr0 |= 1;
    sregs.efer = svme ? EFER_SVME : 0;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.ss = data;
    sregs.gdt = (struct kvm_dtable){ .base = GDT_AT, .limit = 3 * 8 - 1 };
    sregs.idt = (struct kvm_dtable){ .base = IDT_AT, .limit = (UD_VECTOR + 1) * 8 - 1 };
    set_state(vm, &regs, &sregs);
}

/* The instruction that the last exit was for is done with the next entry: enter without running the guest. */
static void complete_exit(const struct vm *vm)
{
    vm->run->immediate_exit = 1;
    if (ioctl(vm->vcpu, KVM_RUN, 0) >= 0) {
        errx(2, "the guest ran where it was not to");
    }
    vm->run->immediate_exit = 0;
}

static void move(const struct vm *from, const struct vm *to)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    complete_exit(from);
    get_state(from, &regs, &sregs);
    set_state(to, &regs, &sregs);
}

static void run(const struct vm *vm, int svme, const char *device)
{
    unsigned long executed = 0, undefined = 0;

    for (int round = 0; round < ROUNDS; round++) {
        checked(ioctl(vm->vcpu, KVM_RUN, 0), "KVM_RUN");
        if (vm->run->exit_reason != KVM_EXIT_IO) {
            errx(2, "exit for reason %u", vm->run->exit_reason);
        }
        executed += vm->run->io.port == 0x20;
        undefined += vm->run->io.port == 0x21;
    }
    printf("vmclgi %s: CLGI with SVME=%d executed=%lu undefined=%lu\n", device, svme, executed, undefined);
}

int main(int argc, char **argv)
{
    uint8_t *memory = make_guest();
    uint32_t rounds;
    struct vm vm;
    int svme;

    if (argc < 3) {
        errx(2, "usage: vmclgi SVME DEVICE...");
    }
    svme = atoi(argv[1]);
    vm = make_vm_on(argv[2], memory);
    start(&vm, svme);
    run(&vm, svme, argv[2]);
    for (int i = 3; i < argc; i++) {
        struct vm next = make_vm_on(argv[i], memory);

        move(&vm, &next);
        end_vm(&vm);
        vm = next;
        run(&vm, svme, argv[i]);
    }
    memcpy(&rounds, memory + COUNT_AT - CODE_AT, sizeof(rounds));
    printf("vmclgi: %u rounds on %d devices\n", rounds, argc - 2);
    return rounds != ROUNDS * (uint32_t)(argc - 2);
}
