# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand-overs of a guest that stands still while its device asks for service, by a line or by a message."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from host.hops import FAULT, vfork
from host.outcome import gone, taken_back
from host.vm import PATIENCE_S, Vm
from vfiolab.devices import Device

# The device is at a transfer of a tenth of a second nearly always, at the end of which it raises its line.
_RAISED_S = 1.0
_SEVERAL = 6
_BY_QEMU, _BY_KVM = "x-no-kvm-intx=on", "x-no-kvm-intx=off"


def _intx_pending(vm: Vm, to: str) -> str:
    """Who raises the interrupt for the guest before and after each: QEMU, which waits for an access of the guest, or KVM."""
    here = vm.build
    return (
        _taken_back(vm, to)
        or _gone(vm, to, _BY_QEMU)
        or _gone(vm, here, _BY_KVM)
        or _taken_back(vm, to)
        or _gone(vm, to, _BY_QEMU)
        or _gone(vm, here, _BY_QEMU)
    )


def _msi_pending(vm: Vm, to: str) -> str:
    """QEMU knows of the vCPU's state from when it was asked for: before the message came."""
    here = vm.build
    for build in (to, here, to, here):
        complaint = _gone(vm, build, vm.spec.more, look=True)
        if complaint:
            return complaint
    return ""


def _gone(vm: Vm, to: str, more: str, look: bool = False) -> str:
    def act() -> str:
        vm.spec = replace(vm.spec, more=more)
        return gone(vfork(vm, to))

    return _stopped(vm, act, f"to {to}, from {vm.spec.more} to {more}", look)


def _taken_back(vm: Vm, to: str) -> str:
    return _stopped(vm, lambda: taken_back(vfork(vm, to, "-global", f"{FAULT}=loaded:kill")), f"back to {vm.spec.more}")


def _stopped(vm: Vm, act: Callable[[], str], what: str, look: bool = False) -> str:
    vm.monitor.execute("stop")
    if look:
        vm.monitor.execute("human-monitor-command", {"command-line": "info registers"})
    time.sleep(_RAISED_S)  # the device works on, and nobody is told what it asks for
    complaint = act()
    if complaint:
        return f"{what}: {complaint}"
    vm.monitor.execute("cont")
    return "" if all(_serves(vm, device) for device in vm.spec.devices) else f"{what}: interrupts do not arrive"


def _serves(vm: Vm, device: Device) -> bool:
    """Tell whether several interrupts come through: one could be a leftover, after which the line is stuck."""
    before = vm.status.counts(device.slot)
    deadline = time.monotonic() + PATIENCE_S
    while (now := vm.status.counts(device.slot)).ios < before.ios + _SEVERAL:
        if now.lost_interrupts > before.lost_interrupts or time.monotonic() > deadline:
            return False
        time.sleep(0.05)  # words in RAM tell nobody that they have changed
    return True


ACTS: dict[str, Callable[..., str]] = {"intx_pending": _intx_pending, "msi_pending": _msi_pending}
