# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one KVM offers and another does not is named; what is no offer, or is more, is nothing lost."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.kvm_offer import KvmOffer, what_is_lost

OLD = KvmOffer(
    api_version=12,
    capabilities={"IRQFD": 1, "ADJUST_CLOCK": 0b111, "NR_MEMSLOTS": 32764},
    cpuid={
        (0x0, 0): (0x10, 1, 2, 3),
        (0x1, 0): (0x800F12, 0x1000800, 0b1011, 0b1),
        (0x7, 0): (0, 1 << 5, 0, 0),
        (0x80000008, 0): (0x3030, 1 << 9, 0, 0),
    },
    msrs=frozenset({0x3B, 0x4B564D06}),
    feature_msrs={0x10A: 0b1001, 0x48: 7, 0x481: 0x7F_00000016},
)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        pytest.param({}, [], id="same"),
        pytest.param({"api_version": 13}, ["API version 12"], id="api"),
        pytest.param(
            {"capabilities": {"ADJUST_CLOCK": 0b1101, "NR_MEMSLOTS": 512}},
            [
                "KVM_CAP_IRQFD (0x1, there 0x0)",
                "KVM_CAP_ADJUST_CLOCK (0x7, there 0xd)",
                "KVM_CAP_NR_MEMSLOTS (0x7ffc, there 0x200)",
            ],
            id="capabilities",
        ),
        pytest.param({"capabilities": {"IRQFD": 1, "ADJUST_CLOCK": 0b1111, "NR_MEMSLOTS": 65000}}, [], id="more"),
        pytest.param(
            {"cpuid": {**OLD.cpuid, (0x1, 0): (0x800F12, 0x1000800, 0b0011, 0b0)}},
            ["CPUID 0x1.0 ECX bit 3", "CPUID 0x1.0 EDX bit 0"],
            id="feature-bits",
        ),
        pytest.param(
            {"cpuid": {key: value for key, value in OLD.cpuid.items() if key != (0x7, 0)}},
            ["CPUID 0x7.0 EBX bit 5"],
            id="leaf",
        ),
        pytest.param(
            {"cpuid": {**OLD.cpuid, (0x1, 0): (0x1, 0x3000800, 0b1011, 0b1)}}, [], id="asked-on-another-cpu-or-model"
        ),
        pytest.param(
            {"cpuid": {**OLD.cpuid, (0x0, 0): (0xD, 1, 2, 3), (0x80000008, 0): (0x302E, 1 << 9, 0, 0)}},
            ["CPUID 0x0: leaves (0x10, there 0xd)", "CPUID 0x80000008: bits of physical addresses (0x30, there 0x2e)"],
            id="quantities",
        ),
        pytest.param({"msrs": frozenset({0x3B, 0x99})}, ["MSR 0x4b564d06"], id="msr"),
        pytest.param(
            {"feature_msrs": {0x10A: 0b0011, 0x48: 1, 0x481: 0x3F_00000036}},
            ["MSR 0x10a bit 3", "MSR 0x481 bit 5", "MSR 0x481 bit 38"],
            id="feature-msr-values",
        ),
        pytest.param({"feature_msrs": {0x10A: 0b1001, 0x481: 0x7F_00000016}}, ["feature MSR 0x48"], id="feature-msr"),
        pytest.param({"feature_msrs": {**OLD.feature_msrs, 0x481: 0xFF_00000006}}, [], id="controls-more-free"),
    ],
)
def test_what_is_lost_is_named(changes: dict[str, Any], lost: list[str]) -> None:
    assert what_is_lost(OLD, dataclasses.replace(OLD, **changes)) == lost
