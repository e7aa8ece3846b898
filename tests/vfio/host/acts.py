# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cases do to the VM. Each returns a complaint, or nothing when the hand-over itself went as it has to."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpDeadError
from host.events import ACTS as EVENT_ACTS
from host.hops import FAULT, Transfer, begin_stopped, begin_vfork, end_vfork, vfork
from host.kvm import reload
from host.outcome import gone, taken_back
from host.ownership import ACTS as OWNERSHIP_ACTS
from host.paused import ACTS as PAUSED_ACTS
from host.prepare import say
from host.unplug import ACTS as UNPLUG_ACTS
from host.vm import MACHINE, PATIENCE_S, Vm, end

# A hand-over that is aborted by time takes so long, of which the guest stands still.
_SHORT_MS = 3000
_ANOTHER_MACHINE = "pc-q35-10.1"
_SAID_EVERY = 10


def _vfork(vm: Vm, to: str) -> str:
    return gone(vfork(vm, to))


def _rehearse(vm: Vm, to: str) -> str:
    return taken_back(vfork(vm, to, rehearse=True), "rehearsal")


def _abort(vm: Vm, to: str, fault: str) -> str:
    budget_ms = _SHORT_MS if fault.endswith((":stop", ":hang")) else 30000
    return taken_back(vfork(vm, to, "-global", f"{FAULT}={fault}", pause_budget_ms=budget_ms))


def _abort_old(vm: Vm, to: str, fault: str) -> str:
    """A fault of the old QEMU: one that the VM is moved to for it, since it is told to a process when it starts."""
    return gone(vfork(vm, to, "-global", f"{FAULT}={fault}")) or taken_back(vfork(vm, to))


def _abort_machine(vm: Vm, to: str) -> str:
    argv = [word.replace(MACHINE, _ANOTHER_MACHINE) for word in vm.next_argv(to)]
    return taken_back(begin_vfork(vm, argv) or end_vfork(vm, to), "status 1")


def _late(vm: Vm, to: str) -> str:
    """The new QEMU has to know which interrupts of a device it has not yet got from the kernel."""
    complaint = gone(vfork(vm, to))
    vm.status.go()
    return complaint


def _cancel(vm: Vm, to: str) -> str:
    refusal = begin_vfork(vm, vm.next_argv(to))
    if refusal:
        return gone(refusal)
    vm.monitor.wait_event({"CPR_VFORK"}, PATIENCE_S)
    vm.monitor.execute("migrate_cancel")
    return taken_back(end_vfork(vm, to), "cancel")


def _kill_old(vm: Vm, to: str) -> str:
    """The new QEMU stops itself when it has been given the guest; so it takes it only once the old one is gone."""
    child = begin_stopped(vm, to, "committed", int(PATIENCE_S * 1000))
    end(vm.pid)
    os.kill(child, signal.SIGCONT)
    vm.follow(child, to)
    return ""


def _switch_core(vm: Vm, to: str) -> str:
    """To the other core, whose node a new QEMU is told, and back. A core that nothing is left on can be unloaded."""
    for left, core in (("A", "B"), ("B", "A")):
        vm.core = core
        complaint = _vfork(vm, to) or reload(left)
        if complaint:
            return f"to core {core}: {complaint}"
        say(f"on core {core}, and core {left} was loaded anew")
    return ""


def _soak(vm: Vm, to: str, hops: str) -> str:
    builds = (vm.build, to)
    for hop in range(1, int(hops) + 1):
        complaint = _vfork(vm, builds[hop % 2])
        if complaint:
            return f"hop {hop}: {complaint}"
        if hop % _SAID_EVERY == 0:
            say(f"{hop} hops, pinned {vm.pinned_kib()} KiB, {len(os.listdir(f'/proc/{vm.pid}/fd'))} descriptors")
    return ""


def _transfer(vm: Vm, to: str) -> str:
    hop = Transfer(vm, to)
    hop.begin()
    status = hop.end()
    return "" if status == "completed" else f"the migration ended as {status}"


def _transfer_refused(vm: Vm, to: str, return_path: str = "") -> str:
    """The new QEMU lacks the last device, whose state comes late: what the old one has sent by then is all there is."""
    argv = vm.next_argv(to)[:-2]
    hop = Transfer(vm, to, bool(return_path), argv)
    hop.begin()
    status = hop.wait()
    hop.target.wait(PATIENCE_S)
    return "" if status == "failed" else f"the migration ended as {status}"


def _transfer_killed(vm: Vm, to: str) -> str:
    """The new QEMU is killed when it has the descriptors, and before it takes the state."""
    hop = Transfer(vm, to)
    try:
        hop.begin()
        hop.target.kill()
        hop.target.wait(PATIENCE_S)
        status = hop.wait()
    except QmpDeadError as error:
        return f"QmpDeadError: {error}"
    return "" if status == "failed" else f"the migration ended as {status}"


ACTS: dict[str, Callable[..., str]] = {
    **EVENT_ACTS,
    **PAUSED_ACTS,
    **OWNERSHIP_ACTS,
    **UNPLUG_ACTS,
    "vfork": _vfork,
    "rehearse": _rehearse,
    "abort": _abort,
    "abort_machine": _abort_machine,
    "abort_old": _abort_old,
    "cancel": _cancel,
    "kill_old": _kill_old,
    "late": _late,
    "switch_core": _switch_core,
    "soak": _soak,
    "transfer": _transfer,
    "transfer_refused": _transfer_refused,
    "transfer_killed": _transfer_killed,
}
