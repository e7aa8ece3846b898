# SPDX-License-Identifier: GPL-3.0-or-later
"""A device is taken from the VM, after a hand-over that was taken back or before one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpTimeoutError
from host.events import late_failure
from host.hops import FAULT, vfork
from host.outcome import gone, taken_back
from host.prepare import bind
from host.vm import Vm
from vfiolab.devices import Device

# In which a guest lets go of a device. QEMU tells of it once nobody has a reference to it any more.
_GONE_S = 120.0
# Descriptors go when nobody looks at the memory of the device any more, which QEMU waits for by itself.
_LET_GO_S = 30.0
# In which the kernel asks for a device several times, and the guest lets go of it.
_HEARD_S = 60.0


def _take_back(vm: Vm, to: str, how: str) -> str:
    is_rehearsal = how == "rehearsal"
    fault = () if is_rehearsal else ("-global", f"{FAULT}={how}")
    return taken_back(vfork(vm, to, *fault, rehearse=is_rehearsal))


def _unplug(vm: Vm, to: str, how: str = "") -> str:
    """All that are plugged in go, and come again. ``how`` was the hand-over taken back before: ``rehearsal``, or a fault."""
    complaint = _take_back(vm, to, how) if how else ""
    devices = vm.spec.later()
    for device in devices:
        vm.monitor.execute("device_del", {"id": device.name})
        try:
            _await_deleted(vm, device, _GONE_S)
        except QmpTimeoutError:
            return complaint or f"the guest was asked for {device.name}, and QEMU still has it"
    left = _await_let_go(vm.pid)
    _plug_in(vm, devices)
    return complaint or (f"after the last device has gone, QEMU holds {left}" if left else "")


def _unplug_first(vm: Vm, to: str) -> str:
    """What is left of several has to be what a new QEMU makes of it, which counts what it has from 0."""
    here, whole = vm.build, vm.spec
    device = whole.later()[0]
    vm.monitor.execute("device_del", {"id": device.name})
    _await_deleted(vm, device, _GONE_S)
    vm.spec = replace(whole, unplugged=(device.name,))
    complaint = gone(vfork(vm, to))
    vm.spec = whole
    _plug_in(vm, [device])
    return complaint or gone(vfork(vm, here))


def _ask_back(vm: Vm, to: str) -> str:
    """The host takes a device back, of which the kernel tells QEMU by an eventfd, after it has failed in a new QEMU."""
    device = vm.spec.later()[0]
    complaint = late_failure(vm, to)
    address = vm.spec.addresses[device.name]
    driver = Path("/sys/bus/pci/drivers/vfio-pci/unbind")
    asking = threading.Thread(target=driver.write_text, args=(address,))  # returns when the device is free
    asking.start()
    try:
        _await_deleted(vm, device, _HEARD_S)
    except QmpTimeoutError:
        complaint = complaint or "QEMU is not told that the host wants its device back"
        vm.monitor.execute("device_del", {"id": device.name})
        _await_deleted(vm, device, _GONE_S)
    asking.join()
    left = _await_let_go(vm.pid)
    bind(device)
    _plug_in(vm, [device])
    return complaint or (f"after the device has gone, QEMU holds {left}" if left else "")


def _await_deleted(vm: Vm, device: Device, timeout_s: float) -> None:
    while vm.monitor.wait_event({"DEVICE_DELETED"}, timeout_s).data.get("device") != device.name:
        continue


def _plug_in(vm: Vm, devices: list[Device]) -> None:
    before = {device: vm.status.counts(device.slot).ios for device in devices}
    for device in devices:
        vm.monitor.execute("device_add", vm.spec.properties(device))
    vm.await_load(before)


def _await_let_go(pid: int) -> str:
    """Return what of VFIO the process still holds at last."""
    deadline = time.monotonic() + _LET_GO_S
    while held := _held(pid):
        if time.monotonic() > deadline:
            return ", ".join(held)
        time.sleep(0.05)  # a descriptor that is closed tells nobody
    return ""


def _held(pid: int) -> list[str]:
    links = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except FileNotFoundError:
            continue  # closed meanwhile
    return sorted(link for link in links if "kvm" not in link and ("vfio" in link or "iommu" in link))


ACTS: dict[str, Callable[..., str]] = {
    "unplug": _unplug,
    "unplug_first": _unplug_first,
    "ask_back": _ask_back,
}
