# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault that is injected into a hand-over, and what has to come of it.

Tests and ``make fault-table`` take their cases from ``FAULTS``; fault_run.py does one and judges it.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpDeadError
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import FAULT, MACHINE, Vm

_F_OFD_SETLK = 37
_LIMITS = {"prepare-timeout": 1000, "pause-budget": 400}
_ROOMY = {"pause-budget": 20000}
_SHORT = {"pause-budget": 2000}
_STOP_S = 30.0

# Does the fault with a VM and the new binary. Returns what the old QEMU says of it at the end; None when it was killed.
Injection = Callable[[Vm, Path], "dict[str, Any] | None"]


@dataclass(frozen=True)
class Fault:
    """One row. ``phase``: how far the hand-over had come. ``runner``: who may run the guest after it.

    ``phase_after`` and ``reason`` (a pattern) are what the old QEMU has to say, where it lives. ``old_fault`` is what the
    old QEMU is started with. ``log``: a pattern that has to be in the log.
    """

    name: str
    phase: str
    runner: tuple[str, ...]
    inject: Injection
    phase_after: tuple[str, ...] = ("aborted",)
    reason: str = ""
    old_fault: str = ""
    log: str = ""


def _child_does(fault: str, limits: dict[str, int]) -> Injection:
    return lambda vm, binary: vm.hand_over(binary, "-global", f"{FAULT}={fault}", **limits)


def _taken_back(fault: str, phase: str, reason: str, limits: dict[str, int] | None = None) -> Fault:
    return Fault(f"child {fault}", phase, ("old",), _child_does(fault, limits or _LIMITS), reason=reason)


def _lost(fault: str, phase: str) -> Fault:
    reason = "ended after it had taken the guest"
    return Fault(f"child {fault}", phase, ("nobody",), _child_does(fault, _ROOMY), ("lost",), reason)


def _child_is(change: Callable[[list[str]], list[str]]) -> Injection:
    def inject(vm: Vm, binary: Path) -> dict[str, Any]:
        vm.begin(change(vm.command(binary)))
        return vm.end()

    return inject


def _child_sleeps_at(point: str) -> Injection:
    """The child stops itself there for longer than the old QEMU waits, and then goes on."""

    def inject(vm: Vm, binary: Path) -> dict[str, Any]:
        info = vm.hand_over(binary, "-global", f"{FAULT}={point}:stop", **_SHORT)
        os.kill(info["child-pid"], signal.SIGCONT)
        return info

    return inject


def _without_nic(command: list[str]) -> list[str]:
    at = command.index("-netdev")
    return [*command[:at], *command[at + 4 :]]


def _replaced(old: str, new: str) -> Injection:
    return _child_is(lambda command: [word.replace(old, new) for word in command])


def _disk_is_locked(vm: Vm, binary: Path) -> dict[str, Any]:
    """The child's image is locked by somebody else, which shows when it activates its disks, after the load."""
    locked = vm.qemu.directory / "locked.img"
    locked.write_bytes(vm.qemu.disk_path.read_bytes())
    command = [word.replace(str(vm.qemu.disk_path), str(locked)) for word in vm.command(binary)]
    with open(locked, "r+b") as holder:
        # QEMU's lock bytes lie at 100 and 200 (block/file-posix.c).
        fcntl.fcntl(holder, _F_OFD_SETLK, struct.pack("hh4xqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 100, 200, 0))
        vm.begin(command)
        return vm.end()


def _old_does(vm: Vm, binary: Path) -> None:
    """The fault was given to the old QEMU at its start; the child must not have it."""
    command = vm.command(binary)
    at = next(index for index, word in enumerate(command) if word.startswith(FAULT))
    del command[at - 1 : at + 1]
    vm.begin(command)
    _await_child(vm)
    vm.qemu.process.wait(_STOP_S)


def _old_killed_on(event: str, phase: str = "") -> Injection:
    def inject(vm: Vm, binary: Path) -> None:
        vm.begin(vm.command(binary), **_ROOMY)
        _await_child(vm)
        while event != "CPR_VFORK" or phase != "spawned":
            if vm.monitor.wait_event({event}, _STOP_S).data.get("phase", "") == phase:
                break
        _kill_old(vm)

    return inject


def _old_killed_while_child_is_at(point: str) -> Injection:
    """The child stops itself there, the old QEMU is killed, and the child goes on: so the phase is certain."""

    def inject(vm: Vm, binary: Path) -> None:
        vm.begin(vm.command(binary, "-global", f"{FAULT}={point}:stop"), **_ROOMY)
        child = _await_child(vm)
        deadline = time.monotonic() + _STOP_S
        while not _stopped(child):
            assert time.monotonic() < deadline, f"the child does not come to {point}"
            time.sleep(0.01)
        _kill_old(vm)
        os.kill(child, signal.SIGCONT)

    return inject


def _await_child(vm: Vm) -> int:
    """The first event names the child; it may be the last thing that is heard of the old QEMU."""
    try:
        vm.child = int(vm.monitor.wait_event({"CPR_VFORK"}, _STOP_S).data["child-pid"])
    except QmpDeadError:
        assert vm.child, "the old QEMU died before it told its child"
    return vm.child


def _kill_old(vm: Vm) -> None:
    os.kill(vm.pid, signal.SIGKILL)
    vm.qemu.process.wait(_STOP_S)


def _stopped(pid: int) -> bool:
    return re.search(r"\) T ", Path(f"/proc/{pid}/stat").read_text()) is not None


FAULTS = [
    _taken_back("ready:exit", "spawned", "exited with status 3"),
    _taken_back("ready:kill", "spawned", "killed by signal 9"),
    _taken_back("ready:garbage", "spawned", "does not speak the protocol"),
    _taken_back("ready:hang", "spawned", "was not ready within 1000 ms"),
    _taken_back("ready:stop", "spawned", "was not ready within 1000 ms"),
    Fault("child is another program", "spawned", ("old",), _child_is(lambda _c: ["/bin/false"]), reason="status 1"),
    Fault(
        "child is a script", "spawned", ("old",), _child_is(lambda _c: ["/bin/sh", "-c", "exit 7"]), reason="status 7"
    ),
    Fault("child is another machine", "stopped", ("old",), _replaced(MACHINE, "pc-q35-10.1"), reason="status 1"),
    Fault(
        "child lacks a device", "stopped", ("old",), _child_is(_without_nic), reason="status 1", log="Unknown section"
    ),
    Fault(
        "child rejects a section",
        "stopped",
        ("old",),
        _replaced("virtio-net-pci,", "virtio-net-pci,vectors=0,"),
        reason="status 1",
        log="error while loading state",
    ),
    Fault(
        "child cannot activate a disk",
        "saved",
        ("old",),
        _disk_is_locked,
        reason="status 1",
        log="cannot activate the disks",
    ),
    _taken_back("loaded:exit", "saved", "exited with status 3"),
    _taken_back("loaded:kill", "saved", "killed by signal 9"),
    _taken_back("loaded:garbage", "saved", "does not speak the protocol"),
    _taken_back("loaded:hang", "saved", "the pause exceeded its budget of 400 ms"),
    _taken_back("loaded:stop", "saved", "the pause exceeded its budget of 400 ms"),
    _taken_back("committed:exit", "committed", "exited with status 3"),
    _taken_back("committed:kill", "committed", "killed by signal 9"),
    _taken_back("committed:stop", "committed", "did not take the guest"),
    _taken_back("committed:hang", "committed", "did not take the guest"),
    # Who is first takes the token: the old QEMU, which does not know what to think of it, or the new one.
    Fault(
        "child committed:garbage",
        "committed",
        ("old", "new"),
        _child_does("committed:garbage", _ROOMY),
        ("aborted", "running"),
    ),
    Fault("child taken:stop, woken later", "committed", ("new",), _child_sleeps_at("taken"), ("stranded",)),
    _lost("taken:exit", "committed"),
    _lost("taken:kill", "committed"),
    _lost("running:exit", "running"),
    _lost("running:kill", "running"),
    Fault("child running:garbage", "running", ("new",), _child_does("running:garbage", _ROOMY), ("running",)),
    Fault("parent killed", "spawned", ("nobody",), _old_killed_while_child_is_at("ready")),
    Fault("parent killed on event", "spawned", ("nobody",), _old_killed_on("CPR_VFORK", "spawned")),
    Fault("parent killed on event", "ready", ("nobody", "new"), _old_killed_on("CPR_VFORK", "ready")),
    Fault("parent killed on event", "stopped", ("nobody", "new"), _old_killed_on("STOP")),
    Fault("parent killed", "saved", ("nobody",), _old_killed_while_child_is_at("loaded")),
    Fault("parent old-commit:kill", "loaded", ("nobody",), _old_does, old_fault="old-commit:kill"),
    Fault("parent old-given:kill", "committed", ("new",), _old_does, old_fault="old-given:kill"),
    Fault("parent killed", "committed", ("new",), _old_killed_while_child_is_at("committed")),
    Fault("parent killed, token taken", "committed", ("new",), _old_killed_while_child_is_at("taken")),
    Fault("parent killed on event", "running", ("new",), _old_killed_on("CPR_VFORK", "running")),
]
