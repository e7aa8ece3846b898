# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a KVM offers to guests and to QEMU, asked through its node, and what another one would take away.

PRIVATE to the collection.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_GET_API_VERSION = 0xAE00
_CHECK_EXTENSION = 0xAE03
_GET_MSR_INDEX_LIST = 0xC004AE02
_GET_MSR_FEATURE_INDEX_LIST = 0xC004AE0A
_GET_SUPPORTED_CPUID = 0xC008AE05
_GET_MSRS = 0xC008AE88
_MOST_CPUID = 256
_MOST_MSRS = 4096
_GET_MSR_FEATURES = 153

# KVM_CAP_* that QEMU 10.2 and 11.1 ask for on x86, by whether the answer is a quantity or a set of bits (a plain yes is one).
_QUANTITIES = {
    "NR_MEMSLOTS": 10,
    "IRQ_ROUTING": 25,
    "MCE": 31,
    "MAX_VCPUS": 66,
    "MULTI_ADDRESS_SPACE": 118,
    "MAX_VCPU_ID": 128,
    "NESTED_STATE": 157,
    "DIRTY_LOG_RING": 192,
    "DIRTY_LOG_RING_ACQ_REL": 223,
}
_SETS = {
    "IRQCHIP": 0,
    "USER_MEMORY": 3,
    "SET_TSS_ADDR": 4,
    "EXT_CPUID": 7,
    "MP_STATE": 14,
    "COALESCED_MMIO": 15,
    "SYNC_MMU": 16,
    "DESTROY_MEMORY_REGION_WORKS": 21,
    "SET_GUEST_DEBUG": 23,
    "REINJECT_CONTROL": 24,
    "IRQ_INJECT_STATUS": 26,
    "JOIN_MEMORY_REGIONS_WORKS": 30,
    "IRQFD": 32,
    "PIT2": 33,
    "PIT_STATE2": 35,
    "IOEVENTFD": 36,
    "SET_IDENTITY_MAP_ADDR": 37,
    "XEN_HVM": 38,
    "ADJUST_CLOCK": 39,
    "INTERNAL_ERROR_DATA": 40,
    "VCPU_EVENTS": 41,
    "HYPERV": 44,
    "DEBUGREGS": 50,
    "X86_ROBUST_SINGLESTEP": 51,
    "XSAVE": 55,
    "XCRS": 56,
    "TSC_CONTROL": 60,
    "GET_TSC_KHZ": 61,
    "TSC_DEADLINE_TIMER": 72,
    "KVMCLOCK_CTRL": 76,
    "SIGNAL_MSI": 77,
    "READONLY_MEM": 81,
    "IRQFD_RESAMPLE": 82,
    "DEVICE_CTRL": 89,
    "HYPERV_TIME": 96,
    "VM_ATTRIBUTES": 101,
    "X86_SMM": 117,
    "SPLIT_IRQCHIP": 121,
    "IOEVENTFD_ANY_LENGTH": 122,
    "X2APIC_API": 129,
    "IMMEDIATE_EXIT": 136,
    "X86_DISABLE_EXITS": 143,
    "HYPERV_SYNIC2": 148,
    "HYPERV_VP_INDEX": 149,
    "GET_MSR_FEATURES": _GET_MSR_FEATURES,
    "HYPERV_TLBFLUSH": 155,
    "HYPERV_SEND_IPI": 161,
    "COALESCED_PIO": 162,
    "HYPERV_ENLIGHTENED_VMCS": 163,
    "EXCEPTION_PAYLOAD": 164,
    "HYPERV_CPUID": 167,
    "MANUAL_DIRTY_LOG_PROTECT2": 168,
    "X86_USER_SPACE_MSR": 188,
    "ENFORCE_PV_FEATURE_CPUID": 190,
    "SYS_HYPERV_CPUID": 191,
    "X86_BUS_LOCK_EXIT": 193,
    "SET_GUEST_DEBUG2": 195,
    "SGX_ATTRIBUTE": 196,
    "HYPERV_ENFORCE_CPUID": 199,
    "SREGS2": 200,
    "EXIT_HYPERCALL": 201,
    "BINARY_STATS_FD": 203,
    "SYS_ATTRIBUTES": 209,
    "PMU_CAPABILITY": 212,
    "DISABLE_QUIRKS2": 213,
    "X86_TRIPLE_FAULT_EVENT": 218,
    "X86_NOTIFY_VMEXIT": 219,
    "DIRTY_LOG_RING_WITH_BITMAP": 225,
    "USER_MEMORY2": 231,
    "MEMORY_ATTRIBUTES": 233,
    "GUEST_MEMFD": 234,
    "VM_TYPES": 235,
    "PRE_FAULT_MEMORY": 236,
    "X86_APIC_BUS_CYCLES_NS": 237,
}
# Leaf, subleaf → registers whose bits are features. What else CPUID tells (sizes, topology, the CPU that was asked) is no
# offer, but for the quantities below.
_FEATURE_REGISTERS = {
    (0x1, 0): "CD",
    (0x6, 0): "A",
    (0x7, 0): "BCD",
    (0x7, 1): "ABCD",
    (0x7, 2): "D",
    (0xD, 0): "AD",
    (0xD, 1): "ACD",
    (0x12, 0): "AB",
    (0x12, 1): "ABCD",
    (0x14, 0): "BC",
    (0x24, 0): "B",
    (0x40000001, 0): "A",
    (0x80000001, 0): "CD",
    (0x80000007, 0): "BD",
    (0x80000008, 0): "B",
    (0x8000000A, 0): "D",
    (0x8000001F, 0): "A",
    (0x80000021, 0): "AC",
    (0x80000022, 0): "A",
    (0xC0000001, 0): "D",
}
# Leaf → what register A (its lowest bits by the mask) is the quantity of.
_QUANTITY_LEAVES = {
    0x0: ("leaves", 0xFFFFFFFF),
    0x40000000: ("KVM's leaves", 0xFFFFFFFF),
    0x80000000: ("extended leaves", 0xFFFFFFFF),
    0x80000008: ("bits of physical addresses", 0xFF),
}
# Feature MSRs whose bits are features: IA32_ARCH_CAPABILITIES, IA32_PERF_CAPABILITIES, VMX EPT/VPID, VMX VM functions.
_FEATURE_MSRS = (0x10A, 0x345, 0x48C, 0x491)
# VMX controls: the upper half has the bits that may be 1, the lower one those that must be.
_CONTROL_MSRS = (0x481, 0x482, 0x483, 0x484, 0x48B, 0x48D, 0x48E, 0x48F, 0x490)

Registers = tuple[int, int, int, int]


@dataclass(frozen=True)
class KvmOffer:
    """The answers of one KVM. ``cpuid``: leaf, subleaf → registers; ``feature_msrs``: number → value."""

    api_version: int
    capabilities: dict[str, int]
    cpuid: dict[tuple[int, int], Registers]
    msrs: frozenset[int]
    feature_msrs: dict[int, int]

    @classmethod
    def read(cls, fd: int) -> KvmOffer:
        """Ask the KVM behind ``fd``, an open node. Makes no VM. Raises ``OSError``."""
        capabilities = {
            name: fcntl.ioctl(fd, _CHECK_EXTENSION, number) for name, number in {**_QUANTITIES, **_SETS}.items()
        }
        features = _read_msr_list(fd, _GET_MSR_FEATURE_INDEX_LIST) if capabilities["GET_MSR_FEATURES"] else []
        return cls(
            api_version=fcntl.ioctl(fd, _GET_API_VERSION, 0),
            capabilities=capabilities,
            cpuid=_read_cpuid(fd),
            msrs=frozenset(_read_msr_list(fd, _GET_MSR_INDEX_LIST)),
            feature_msrs={number: _read_feature_msr(fd, number) for number in features},
        )


def what_is_lost(old: KvmOffer, new: KvmOffer) -> list[str]:
    """Return, one by one and in words, what ``old`` offers and ``new`` does not."""
    return [
        *([f"API version {old.api_version}"] if old.api_version != new.api_version else []),
        *_capabilities_lost(old.capabilities, new.capabilities),
        *_cpuid_lost(old.cpuid, new.cpuid),
        *(f"MSR {number:#x}" for number in sorted(old.msrs - new.msrs)),
        *_feature_msrs_lost(old.feature_msrs, new.feature_msrs),
    ]


def _capabilities_lost(old: dict[str, int], new: dict[str, int]) -> Iterator[str]:
    for name, had in old.items():
        has = new.get(name, 0)
        if has < had if name in _QUANTITIES else had & ~has:
            yield f"KVM_CAP_{name} ({had:#x}, there {has:#x})"


def _cpuid_lost(old: dict[tuple[int, int], Registers], new: dict[tuple[int, int], Registers]) -> Iterator[str]:
    nothing = (0, 0, 0, 0)
    for (leaf, subleaf), letters in _FEATURE_REGISTERS.items():
        had, has = old.get((leaf, subleaf), nothing), new.get((leaf, subleaf), nothing)
        for letter in letters:
            register = "ABCD".index(letter)
            for bit in _bits(had[register] & ~has[register]):
                yield f"CPUID {leaf:#x}.{subleaf} E{letter}X bit {bit}"
    for leaf, (what, mask) in _QUANTITY_LEAVES.items():
        had_a, has_a = old.get((leaf, 0), nothing)[0] & mask, new.get((leaf, 0), nothing)[0] & mask
        if has_a < had_a:
            yield f"CPUID {leaf:#x}: {what} ({had_a:#x}, there {has_a:#x})"


def _feature_msrs_lost(old: dict[int, int], new: dict[int, int]) -> Iterator[str]:
    for number, had in sorted(old.items()):
        if number not in new:
            yield f"feature MSR {number:#x}"
            continue
        has = new[number]
        lost = had & ~has
        if number in _CONTROL_MSRS:
            lost = (had & ~has) >> 32 << 32 | (has & ~had & 0xFFFFFFFF)
        elif number not in _FEATURE_MSRS:
            continue
        yield from (f"MSR {number:#x} bit {bit}" for bit in _bits(lost))


def _bits(value: int) -> list[int]:
    return [bit for bit in range(value.bit_length()) if value >> bit & 1]


def _read_cpuid(fd: int) -> dict[tuple[int, int], Registers]:
    buffer = bytearray(struct.pack("<II", _MOST_CPUID, 0) + bytes(40 * _MOST_CPUID))
    fcntl.ioctl(fd, _GET_SUPPORTED_CPUID, buffer)
    (count,) = struct.unpack_from("<I", buffer)
    found = {}
    for number in range(count):
        leaf, subleaf, _flags, a, b, c, d = struct.unpack_from("<7I", buffer, 8 + 40 * number)
        found[leaf, subleaf] = (a, b, c, d)
    return found


def _read_msr_list(fd: int, request: int) -> list[int]:
    buffer = bytearray(struct.pack("<I", _MOST_MSRS) + bytes(4 * _MOST_MSRS))
    fcntl.ioctl(fd, request, buffer)
    (count,) = struct.unpack_from("<I", buffer)
    return list(struct.unpack_from(f"<{count}I", buffer, 4))


def _read_feature_msr(fd: int, number: int) -> int:
    """Return the value that guests may be given; 0 for one that cannot be read."""
    buffer = bytearray(struct.pack("<IIIIQ", 1, 0, number, 0, 0))
    if fcntl.ioctl(fd, _GET_MSRS, buffer) != 1:
        return 0
    return int(struct.unpack_from("<Q", buffer, 16)[0])
