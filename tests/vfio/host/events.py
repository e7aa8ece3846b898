# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to a VM around a hand-over. As the acts, each returns a complaint or nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError
from host.hops import await_end, begin_stopped, begin_vfork, end_vfork
from host.outcome import gone, taken_back
from host.vm import LOG, PATIENCE_S, Vm
from vfiolab.devices import BY_NAME

_GIVEN = "given to the new QEMU"
_GONE = "/a-file-that-is-gone"


def _old_refuses(vm: Vm, to: str) -> str:
    """The old QEMU still answers its monitor; the guest's RAM and devices are the new one's."""
    complaint = gone(begin_vfork(vm, vm.next_argv(to)) or await_end(vm))
    if complaint:
        return complaint
    complaints = [_asked(vm, command) for command in ("cont", "system_reset")]
    vm.follow(int(vm.monitor.execute("query-cpr-vfork")["child-pid"]), to)
    return "; ".join(filter(None, complaints))


def _extra_device(vm: Vm, to: str, name: str) -> str:
    """One of the host that no process has: it must neither be opened nor reset for a VM that does not have it."""
    argv = [*vm.next_argv(to), "-device", vm.spec.device(BY_NAME[name])]
    return taken_back(begin_vfork(vm, argv) or end_vfork(vm, to), "exited")


def _missing_device(vm: Vm, to: str) -> str:
    """The last one, whose state the new QEMU then finds nobody for, when it has the DMA mappings of all."""
    return taken_back(begin_vfork(vm, vm.next_argv(to)[:-2]) or end_vfork(vm, to), "exited")


def late_failure(vm: Vm, to: str) -> str:
    """One device after the other fails in the new QEMU once it has it, and must not be taken from the guest by that."""
    for device in vm.spec.devices:
        own = vm.spec.device(device)
        argv = vm.next_argv(to)
        argv[argv.index(own)] = own.replace("rombar=0", f"romfile={_GONE}")
        said = LOG.stat().st_size
        complaint = taken_back(begin_vfork(vm, argv) or end_vfork(vm, to), "exited with status 1")
        if complaint:
            return f"{device.name}: {complaint}"
        if _GONE not in LOG.read_text(errors="replace")[said:]:
            return f"{device.name}: the new QEMU does not say why it failed"
    return ""


def _twice(vm: Vm, to: str) -> str:
    """A device that the guest has is given to the new QEMU another time, under its own name and under another."""
    again = vm.spec.properties(vm.spec.devices[0])
    for name in (again["id"], "another"):
        words = {**again, "id": name, "addr": "0x1e"}
        more = ",".join(f"{key}={value}" for key, value in words.items()).removeprefix("driver=")
        argv = [*vm.next_argv(to), "-device", more]
        complaint = taken_back(begin_vfork(vm, argv) or end_vfork(vm, to), "exited with status 1")
        if complaint:
            return f"as {name}: {complaint}"
    return ""


def _reboot(vm: Vm, to: str) -> str:
    """The new QEMU has the descriptors of the interrupts from before, and must not get the guest with them."""
    child = begin_stopped(vm, to, "ready")
    vm.monitor.execute("system_reset")
    vm.monitor.wait_event({"RESET"}, PATIENCE_S)
    # no more I/O of the guest from before: what comes is of the one that boots
    before = {device: vm.status.counts(device.slot).ios for device in vm.spec.devices}
    os.kill(child, signal.SIGCONT)
    complaint = taken_back(end_vfork(vm, to), "try again")
    vm.await_load(before)
    return complaint


def _refused(vm: Vm, to: str, reason: str) -> str:
    """Before a new QEMU is started, for what ``query-cpr-vfork`` says before anybody tries."""
    told = vm.monitor.execute("query-cpr-vfork").get("blocked-reasons", [])
    if not any(reason in why for why in told):
        return f"it is not told before that it is refused: {told}"
    info = begin_vfork(vm, vm.next_argv(to))
    return "" if reason in str(info.get("reason")) else f"not refused: {info or end_vfork(vm, to)}"


def _asked(vm: Vm, command: str) -> str:
    try:
        vm.monitor.execute(command)
    except QmpCommandError as refusal:
        return "" if _GIVEN in refusal.description else f"{command}: {refusal.description}"
    return f"the old QEMU does {command}"


ACTS: dict[str, Callable[..., str]] = {
    "old_refuses": _old_refuses,
    "extra_device": _extra_device,
    "missing_device": _missing_device,
    "late_failure": late_failure,
    "twice": _twice,
    "reboot": _reboot,
    "refused": _refused,
}
