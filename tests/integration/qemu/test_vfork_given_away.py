# SPDX-License-Identifier: GPL-3.0-or-later
"""The old QEMU after a hand-over by cpr-vfork: it answers, and leaves the guest alone. And what it says of a VM before."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import Vm, VmFactory


@pytest.mark.parametrize("command", ["cont", "system_reset"])
def test_old_qemu_neither_runs_nor_resets_the_guest(vm: Vm, qemu_new: Path, command: str) -> None:
    info = vm.hand_over(qemu_new)
    seen = vm.qemu.counter()

    with pytest.raises(QmpCommandError, match="The guest was given to the new QEMU"):
        vm.monitor.execute(command)

    assert vm.monitor.execute("query-status")["status"] == "postmigrate"
    vm.follow(info)
    assert vm.qemu.wait_counting() > seen


def test_guest_is_run_and_reset_after_a_take_back(vm: Vm, qemu_new: Path) -> None:
    vm.hand_over(qemu_new, rehearse=True)

    vm.monitor.execute("stop")
    vm.monitor.execute("cont")
    vm.monitor.execute("system_reset")

    vm.monitor.wait_event({"RESET"}, 30)
    vm.assert_runs_on()


def test_nothing_blocks_an_ordinary_vm(vm: Vm) -> None:
    assert vm.monitor.execute("query-cpr-vfork")["blocked-reasons"] == []


def test_reasons_are_told_before_anybody_tries(start: VmFactory) -> None:
    blocked = start(aux_ram_share=False).monitor.execute("query-cpr-vfork")["blocked-reasons"]

    assert blocked and all("not compatible with CPR" in reason for reason in blocked)
