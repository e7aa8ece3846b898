# SPDX-License-Identifier: GPL-3.0-or-later
"""The migration mode cpr-vfork of the QEMUs that are built here, and every way in which it can fail.

After each case exactly one process runs the guest, and its counter has never gone back; or, where that is the case, the
guest was lost with the process that had taken it, and nobody else runs it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.fault_run import held_by, run_fault
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.faults import FAULTS, Fault
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import (
    FAULT,
    HANGS,
    NIC,
    Vm,
    VmFactory,
    await_that,
)


def test_guest_goes_there_and_back_again(vm: Vm, qemu_old: Path, qemu_new: Path) -> None:
    seen = vm.qemu.counter()
    for binary in (qemu_new, qemu_old, qemu_new, qemu_new):
        info = vm.hand_over(binary)

        assert (info["phase"], info["owner"], info["rehearsal"]) == ("running", "new", False)
        assert [entry["phase"] for entry in info["times"]] == [
            *("spawned", "ready", "stopped", "saved", "loaded", "committed", "running")
        ]
        times = {entry["phase"]: entry["time"] for entry in info["times"]}
        assert 0 == times["spawned"] < times["ready"] < times["stopped"] < times["loaded"] < times["running"]
        assert vm.monitor.execute("query-status")["status"] == "postmigrate"
        assert vm.monitor.execute("query-migrate")["status"] == "completed"
        vm.follow(info)
        assert os.readlink(f"/proc/{vm.pid}/exe") == str(binary)
        assert vm.qemu.wait_counting() > seen
        seen = vm.qemu.counter()


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault.name}-at-{fault.phase}".replace(" ", "-") for fault in FAULTS])
def test_fault_leaves_one_runner_or_none(fault: Fault, start: VmFactory, qemu_new: Path) -> None:
    assert run_fault(fault, start, qemu_new).wrong == []


def test_rehearsal_loads_the_vm_and_takes_it_back(vm: Vm, qemu_new: Path) -> None:
    info = vm.hand_over(qemu_new, rehearse=True)

    assert (info["phase"], info["owner"], info["rehearsal"]) == ("aborted", "old", True)
    assert info["reason"] == "it was a rehearsal: the new QEMU loaded the VM"
    assert "loaded" in [entry["phase"] for entry in info["times"]]
    vm.assert_runs_on()
    assert vm.hand_over(qemu_new, rehearse=False)["phase"] == "running"


def test_given_descriptors_are_inherited_and_no_others(start: VmFactory, qemu_new: Path) -> None:
    reader, writer = os.pipe()
    vm = start(pass_fds=[reader, writer])
    os.close(reader)
    os.close(writer)
    pipe = os.readlink(f"/proc/{vm.pid}/fd/{reader}")

    child = f"/proc/{vm.hand_over(qemu_new, fds=[reader])['child-pid']}/fd"

    assert os.readlink(f"{child}/{reader}") == pipe
    links = {name: os.readlink(f"{child}/{name}") for name in os.listdir(child)}
    assert [name for name, link in links.items() if link == pipe] == [str(reader)], "the other one leaked"
    assert os.readlink(f"/proc/{vm.pid}/fd/{_monitor_fd(vm)}") not in links.values(), "a socket of the old one leaked"


@pytest.mark.parametrize(
    ("options", "command", "settings", "why"),
    [
        ({"shared_ram": False}, None, {}, "not compatible with CPR"),
        ({"aux_ram_share": False}, None, {}, "not compatible with CPR"),
        ({}, ["qemu-system-x86_64"], {}, "not the absolute path of a program"),
        ({}, ["/nonexistent/qemu"], {}, "not the absolute path of a program"),
        ({"extra": [*NIC, "-sandbox", "on,spawn=deny"]}, None, {}, "spawn=deny"),
        ({}, None, {"fds": [999]}, "Descriptor 999 is not open"),
        ({}, None, {"pause-budget": 0}, "0 ms is not possible"),
    ],
    ids=["private-ram", "private-aux-ram", "relative", "missing", "sandbox", "descriptor", "budget"],
)
def test_what_cannot_be_done_is_refused_and_the_vm_runs_on(
    start: VmFactory,
    qemu_new: Path,
    options: dict[str, Any],
    command: list[str] | None,
    settings: dict[str, Any],
    why: str,
) -> None:
    vm = start(**options)

    with pytest.raises(QmpCommandError, match=re.escape(why)):
        vm.begin(command or vm.command(qemu_new), **settings)

    assert vm.monitor.execute("query-cpr-vfork")["phase"] == "idle"
    assert vm.monitor.execute("query-status")["status"] == "running"


def test_aborted_hand_overs_leave_nothing_behind(vm: Vm, qemu_new: Path) -> None:
    """A hundred, by faults of all phases, rehearsals and cancels in turn."""
    faults = ["ready:exit", "ready:kill", "ready:garbage", "loaded:exit", "loaded:garbage", "committed:kill"]
    ways = [("-global", f"{FAULT}={fault}") for fault in faults]
    vm.hand_over(qemu_new, *ways[0])
    first, first_kib = held_by(vm.pid), _private_kib(vm.pid)

    for count in range(100):
        if (at := count % (len(ways) + 2)) < len(ways):
            info = vm.hand_over(qemu_new, *ways[at])
        elif at == len(ways):
            info = vm.hand_over(qemu_new, rehearse=True)
        else:
            vm.begin(vm.command(qemu_new, *HANGS))
            vm.monitor.wait_event({"CPR_VFORK"}, 30)
            vm.monitor.execute("migrate_cancel")
            info = vm.end()
        assert info["phase"] == "aborted", info

    vm.assert_runs_on()
    await_that(lambda: held_by(vm.pid) == first)
    assert len(os.listdir(f"/proc/{vm.pid}/task")) < 20, "threads are left over"
    assert _children(vm.pid) == [], "processes are left over"
    assert _private_kib(vm.pid) < first_kib + 16384, "memory is left over"


def _monitor_fd(vm: Vm) -> int:
    """A listening socket of the old process."""
    links = {int(name): os.readlink(f"/proc/{vm.pid}/fd/{name}") for name in os.listdir(f"/proc/{vm.pid}/fd")}
    return next(number for number, link in sorted(links.items()) if link.startswith("socket:"))


def _children(pid: int) -> list[str]:
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def _private_kib(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.M))
