# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the DMA mappings of VFIO devices could go to the new process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.vfio_check import check_vfio
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import parse
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import LockedMemory, VfioUse, Vm
from ansible_collections.vmm.live_upgrade.tests.vfio_world import VfioWorld

LEGACY, IOMMUFD = VfioUse(["12"], [], True), VfioUse([], ["vfio0"], True)
BOTH = VfioUse(["12"], ["vfio0"], True)
QEMU = 64


def vm(use: VfioUse | None, memory: LockedMemory | None) -> Vm:
    return Vm(
        "web1", 70, 1, "/q", False, None, None, "11.1.1", ["/q"], None, None, QEMU, QEMU, vfio=use, locked_memory=memory
    )


def judged(subject: Vm, root: Path = Path("/"), *words: str, mechanism: str = "vfork") -> Verdict:
    verdict = Verdict("web1", 70, None, "qemu-11.1.1-0123456789abcdef", mechanism=mechanism)
    check_vfio(verdict, subject, parse(["qemu-system-x86_64", *words]), root)
    return verdict


def codes(verdict: Verdict) -> tuple[list[str], list[str]]:
    """Those of refusals, and of warnings."""
    return [item.code for item in verdict.refusals], [item.code for item in verdict.warnings]


def memory(locked: int = 0, pinned: int = 0, limit: int | None = None, exempt: bool = False) -> LockedMemory:
    return LockedMemory(locked, pinned, limit, limit, exempt)


@pytest.mark.parametrize(
    "use,held,expected",
    [
        pytest.param(None, memory(100, 0, 8), ([], []), id="no-devices"),
        pytest.param(LEGACY, memory(100), ([], []), id="no-limit"),
        pytest.param(LEGACY, memory(100, 0, 100), ([], []), id="as-much-as-the-limit"),
        pytest.param(LEGACY, memory(101, 0, 100), (["memlock-low"], []), id="more-than-the-limit"),
        pytest.param(LEGACY, memory(101, 0, 100, True), ([], []), id="exempt"),
        pytest.param(LEGACY, None, ([], ["facts-missing"]), id="memory-unknown"),
        pytest.param(
            dataclasses.replace(LEGACY, mappings_can_move=False), memory(), (["vfio-kernel"], []), id="kernel"
        ),
        pytest.param(
            dataclasses.replace(IOMMUFD, mappings_can_move=False), None, (["vfio-kernel"], ["facts-missing"]), id="two"
        ),
        pytest.param(
            dataclasses.replace(LEGACY, mappings_can_move=None), memory(), ([], ["facts-missing"]), id="silent"
        ),
    ],
)
def test_kernel_and_limit(
    use: VfioUse | None, held: LockedMemory | None, expected: tuple[list[str], list[str]]
) -> None:
    assert codes(judged(vm(use, held))) == expected


@pytest.mark.parametrize(
    "limit,others,words,expected",
    [
        pytest.param(200, 0, [], ([], []), id="room-for-two"),
        pytest.param(199, 0, [], (["memlock-low"], []), id="room-for-one"),
        pytest.param(230, 30, [], ([], []), id="room-beside-another-vm"),
        pytest.param(229, 30, [], (["memlock-low"], []), id="another-vm-of-the-user-has-the-room"),
        pytest.param(99, 0, [], ([], ["memlock-low"]), id="pinned-by-root-or-the-limit-was-lowered"),
        pytest.param(199, 0, ["-run-with", "user=qemu"], ([], ["memlock-low"]), id="began-as-root"),
        pytest.param(199, 0, ["-runas", "qemu"], ([], ["memlock-low"]), id="began-as-root-by-the-old-option"),
        pytest.param(199, 0, ["-run-with", "async-teardown=on"], (["memlock-low"], []), id="another-run-with"),
    ],
)
def test_iommufd_charges_the_user_for_both(
    tmp_path: Path, limit: int, others: int, words: list[str], expected: tuple[list[str], list[str]]
) -> None:
    world = VfioWorld(tmp_path)
    world.add_process(70, uid=QEMU, pinned_kib=100)
    world.add_process(71, uid=QEMU, pinned_kib=others)
    world.add_process(72, uid=0, pinned_kib=10_000)

    assert codes(judged(vm(IOMMUFD, memory(0, 100, limit)), tmp_path, *words)) == expected


@pytest.mark.parametrize("limit,expected", [(100, []), (99, ["memlock-low"])])
def test_iommufd_that_charges_the_process_needs_no_more_than_the_old_one_has(
    tmp_path: Path, limit: int, expected: list[str]
) -> None:
    world = VfioWorld(tmp_path)
    world.add_process(70, uid=QEMU, pinned_kib=100)
    world.add_process(71, uid=QEMU, pinned_kib=1000)

    use = dataclasses.replace(IOMMUFD, counted_for_user=False)
    assert codes(judged(vm(use, memory(100, 100, limit)), tmp_path)) == (expected, [])


@pytest.mark.parametrize("use", [LEGACY, IOMMUFD, dataclasses.replace(IOMMUFD, counted_for_user=False)])
@pytest.mark.parametrize(
    "soft,hard,mechanism,expected",
    [
        (1, 200, "vfork", []),
        (1, None, "vfork", []),
        (1, 99, "vfork", ["memlock-low"]),
        (1, 200, "cpr-transfer", ["memlock-low"]),
        (200, 200, "cpr-transfer", []),
    ],
)
def test_a_child_raises_its_limit_as_far_as_it_may(
    tmp_path: Path, use: VfioUse, soft: int, hard: int | None, mechanism: str, expected: list[str]
) -> None:
    VfioWorld(tmp_path).add_process(70, uid=QEMU, pinned_kib=100)

    found = judged(vm(use, LockedMemory(100, 100, soft, hard, False)), tmp_path, mechanism=mechanism)
    assert [item.code for item in (*found.refusals, *found.warnings)] == expected


def test_each_way_has_its_own_account(tmp_path: Path) -> None:
    """What a legacy container has pinned counts for the process, what iommufd has for the user."""
    world = VfioWorld(tmp_path)
    world.add_process(70, uid=QEMU, pinned_kib=100)

    assert codes(judged(vm(BOTH, memory(150, 100, 200)), tmp_path)) == ([], [])
    found = judged(vm(BOTH, memory(150, 100, 120)), tmp_path)
    assert [item.message.split()[0] for item in found.refusals] == ["the", "user"]


def test_nothing_pinned_is_nothing_to_be_charged_for(tmp_path: Path) -> None:
    assert codes(judged(vm(IOMMUFD, memory(0, 0, 1)), tmp_path)) == ([], [])


def test_a_vm_that_ends_meanwhile_is_said_so(tmp_path: Path) -> None:
    VfioWorld(tmp_path)

    assert codes(judged(vm(IOMMUFD, memory(0, 100, 150)), tmp_path)) == ([], ["facts-missing"])
