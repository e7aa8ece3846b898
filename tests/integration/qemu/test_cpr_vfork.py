# SPDX-License-Identifier: GPL-3.0-or-later
"""The migration mode cpr-vfork of the QEMUs that are built here, and every way in which it can fail.

After each case exactly one process runs the guest, and its counter has never gone back; or, where that is the case, the
guest was lost with the process that had taken it, and nobody else runs it.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError, QmpDeadError
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import MACHINE, NIC, Vm, await_that, lives

_F_OFD_SETLK = 37


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


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("ready:exit", "exited with status 3"),
        ("ready:kill", "killed by signal 9"),
        ("ready:garbage", "does not speak the protocol"),
        ("ready:hang", "was not ready within 1000 ms"),
        ("ready:stop", "was not ready within 1000 ms"),
        ("loaded:exit", "exited with status 3"),
        ("loaded:kill", "killed by signal 9"),
        ("loaded:garbage", "does not speak the protocol"),
        ("loaded:hang", "the pause exceeded its budget of 400 ms"),
        ("loaded:stop", "the pause exceeded its budget of 400 ms"),
        ("committed:exit", "exited with status 3"),
        ("committed:kill", "killed by signal 9"),
    ],
)
def test_child_that_fails_before_it_took_the_guest_is_taken_back(
    vm: Vm, qemu_new: Path, fault: str, reason: str
) -> None:
    before = vm.qemu.counter()

    info = vm.hand_over(
        qemu_new, "-global", f"migration.x-cpr-vfork-fault={fault}", **{"prepare-timeout": 1000, "pause-budget": 400}
    )

    assert (info["phase"], info["owner"]) == ("aborted", "old")
    assert reason in info["reason"]
    assert vm.qemu.counter() >= before
    vm.assert_runs_on()
    later = vm.hand_over(qemu_new)
    assert later["phase"] == "running", later


@pytest.mark.parametrize("fault", ["taken:kill", "running:kill", "running:exit"])
def test_child_that_dies_with_the_guest_loses_it_and_nobody_runs_it_twice(vm: Vm, qemu_new: Path, fault: str) -> None:
    info = vm.hand_over(qemu_new, "-global", f"migration.x-cpr-vfork-fault={fault}")

    assert (info["phase"], info["owner"]) == ("lost", "new")
    assert "ended after it had taken the guest" in info["reason"]
    vm.qemu.assert_not_counting()
    assert vm.monitor.execute("query-status")["status"] == "postmigrate"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"drop": NIC}, "exited with status 1"),
        ({"replace": (MACHINE, "pc-q35-10.1")}, "exited with status 1"),
        ({"binary": "/bin/false"}, "exited with status 1"),
    ],
    ids=["lacks-a-device", "other-machine", "other-program"],
)
def test_child_that_is_not_the_same_machine_is_taken_back(
    vm: Vm, qemu_new: Path, change: dict[str, Any], reason: str
) -> None:
    command = vm.command(Path(change.get("binary", qemu_new)))
    command = [word for word in command if word not in change.get("drop", [])]
    old, new = change.get("replace", ("", ""))
    vm.begin([word.replace(old, new) if old else word for word in command])

    info = vm.end()

    assert (info["phase"], info["owner"]) == ("aborted", "old")
    assert reason in info["reason"]
    vm.assert_runs_on()


def test_disk_that_cannot_be_activated_is_taken_back(vm: Vm, qemu_new: Path) -> None:
    """The child's image is locked by somebody else, which shows when it activates its disks, after the load."""
    locked = vm.qemu.directory / "locked.img"
    locked.write_bytes(vm.qemu.disk_path.read_bytes())
    command = [word.replace(str(vm.qemu.disk_path), str(locked)) for word in vm.command(qemu_new)]
    with open(locked, "r+b") as holder:
        # QEMU's lock bytes lie at 100 and 200 (block/file-posix.c).
        fcntl.fcntl(holder, _F_OFD_SETLK, struct.pack("hh4xqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 100, 200, 0))
        vm.begin(command)
        info = vm.end()

    assert (info["phase"], info["owner"], info["reason"]) == ("aborted", "old", "the new QEMU exited with status 1")
    assert "cannot activate the disks" in vm.qemu.log_path.read_text()
    assert "saved" in [entry["phase"] for entry in info["times"]]
    vm.assert_runs_on()


def test_parent_that_dies_before_the_commit_takes_its_child_along(start: Callable[..., Vm], qemu_new: Path) -> None:
    vm = start(extra=[*NIC, "-global", "migration.x-cpr-vfork-fault=old-commit:kill"])
    vm.begin(vm.command(qemu_new))
    child = _child(vm)

    vm.qemu.process.wait(30)
    _await_end(child)

    vm.qemu.assert_not_counting()


def test_parent_that_dies_after_the_commit_leaves_a_child_that_runs(start: Callable[..., Vm], qemu_new: Path) -> None:
    vm = start(extra=[*NIC, "-global", "migration.x-cpr-vfork-fault=old-given:kill"])
    command = vm.command(qemu_new)
    at = command.index("-global")
    del command[at : at + 2]
    before = vm.qemu.counter()
    vm.begin(command)
    child = _child(vm)

    vm.qemu.process.wait(30)

    assert vm.qemu.wait_counting() > before
    os.kill(child, 0)


@pytest.mark.parametrize("phase", ["spawned", "ready"])
def test_parent_that_is_killed_while_the_child_gets_ready_takes_it_along(vm: Vm, qemu_new: Path, phase: str) -> None:
    vm.begin(vm.command(qemu_new))
    while True:
        event = vm.monitor.wait_event({"CPR_VFORK"}, 30)
        if event.data["phase"] == phase:
            break
    vm.qemu.process.kill()
    vm.qemu.process.wait(10)

    # It may have committed before it was killed: then the child is the VM.
    child = event.data["child-pid"]
    if phase == "spawned":
        _await_end(child)
        vm.qemu.assert_not_counting()
    else:
        await_that(lambda: not lives(child) or _counts(vm))


def test_cancel_is_heard_while_the_child_gets_ready(vm: Vm, qemu_new: Path) -> None:
    vm.begin(vm.command(qemu_new, "-global", "migration.x-cpr-vfork-fault=ready:hang"))
    vm.monitor.wait_event({"CPR_VFORK"}, 30)

    vm.monitor.execute("migrate_cancel")

    info = vm.end()
    assert (info["phase"], info["reason"]) == ("aborted", "it was cancelled")
    await_that(lambda: vm.monitor.execute("query-migrate")["status"] == "cancelled")
    vm.assert_runs_on()


def test_rehearsal_loads_the_vm_and_takes_it_back(vm: Vm, qemu_new: Path) -> None:
    info = vm.hand_over(qemu_new, rehearse=True)

    assert (info["phase"], info["owner"], info["rehearsal"]) == ("aborted", "old", True)
    assert info["reason"] == "it was a rehearsal: the new QEMU loaded the VM"
    assert "loaded" in [entry["phase"] for entry in info["times"]]
    vm.assert_runs_on()
    assert vm.hand_over(qemu_new, rehearse=False)["phase"] == "running"


def test_given_descriptors_are_inherited_and_no_others(start: Callable[..., Vm], qemu_new: Path) -> None:
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
    start: Callable[..., Vm],
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
    def held() -> list[str]:
        links = [os.readlink(f"/proc/{vm.pid}/fd/{name}") for name in os.listdir(f"/proc/{vm.pid}/fd")]
        return sorted(re.sub(r"\[\d+\]", "", link) for link in links)

    faults = ["ready:exit", "ready:kill", "loaded:exit", "committed:kill"]
    vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=ready:exit")
    first = held()
    for count in range(24):
        fault = faults[count % len(faults)]
        assert vm.hand_over(qemu_new, "-global", f"migration.x-cpr-vfork-fault={fault}")["phase"] == "aborted"

    vm.assert_runs_on()
    await_that(lambda: held() == first)
    threads = len(os.listdir(f"/proc/{vm.pid}/task"))
    assert threads < 20, "threads are left over"


def _monitor_fd(vm: Vm) -> int:
    """A listening socket of the old process."""
    links = {int(name): os.readlink(f"/proc/{vm.pid}/fd/{name}") for name in os.listdir(f"/proc/{vm.pid}/fd")}
    return next(number for number, link in sorted(links.items()) if link.startswith("socket:"))


def _child(vm: Vm) -> int:
    """The new process; its parent's monitor may be gone a moment later."""
    event = vm.monitor.wait_event({"CPR_VFORK"}, 30)
    try:
        vm.monitor.close()
    except QmpDeadError:
        pass
    return int(event.data["child-pid"])


def _await_end(pid: int) -> None:
    """Wait for a process that is not ours to end."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], 30)[0], f"process {pid} does not end"
    os.close(pidfd)


def _counts(vm: Vm) -> bool:
    first = vm.qemu.counter()
    time.sleep(0.1)
    return vm.qemu.counter() > first
