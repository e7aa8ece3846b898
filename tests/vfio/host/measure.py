# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hand-over does to the devices of a VM, seen from outside."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from host.iommu import maps
from host.vm import Vm, alive

# That a device works after a hand-over, it shows by so many further I/Os, within the time given.
PROOF = 12
PROOF_S = 180.0
# A guest without a tick for so long is lost.
LOST_S = 60.0
# How often the kernel found something that must not be.
_COUNTS = (Path("/sys/kernel/warn_count"), Path("/sys/kernel/oops_count"))


class Measure:
    """Begins with the hand-over."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        vm.status.gaps_ms()
        self._before = {device.name: vm.status.counts(device.slot) for device in vm.spec.devices}
        self._complaints = vm.status.complaints()
        self._host_complaints = host_complaints()
        self._maps = maps()
        self._pinned_kib = vm.pinned_kib()

    def finish(self) -> dict[str, Any]:
        """Wait until all devices have shown that they work, and return what there is to tell."""
        vm = self._vm
        working, ticking = self._await_proof()
        tick_gap_ms, gaps_ms = vm.status.gaps_ms()
        devices = {}
        for device in vm.spec.devices:
            counts = vm.status.counts(device.slot).since(self._before[device.name])
            devices[device.name] = {
                **asdict(counts),
                "works": device.name in working,
                "longest_gap_ms": round(gaps_ms[device.slot], 1),
            }
        return {
            "vm_alive": ticking and alive(vm.pid),
            "devices": devices,
            "tick_gap_ms": round(tick_gap_ms, 1),
            "complaints": vm.status.complaints() - self._complaints,
            "host_complaints": host_complaints() - self._host_complaints,
            "pinned_kib": [self._pinned_kib, vm.pinned_kib()],
            "dma_maps": [now - then for now, then in zip(maps(), self._maps)],
        }

    def _await_proof(self) -> tuple[set[str], bool]:
        """Return the devices that work, and whether the guest still ticks: one that did for a while may stop for good."""
        status = self._vm.status
        after = {device.name: status.counts(device.slot).ios for device in self._vm.spec.devices}
        first = ticks = status.ticks()
        working: set[str] = set()
        began_s = ticked_s = time.monotonic()
        while len(working) < len(after) and alive(self._vm.pid):
            time.sleep(0.05)  # words in RAM tell nobody that they have changed
            now_s = time.monotonic()
            if status.ticks() != ticks:
                ticks, ticked_s = status.ticks(), now_s
            if now_s > began_s + PROOF_S or now_s > ticked_s + LOST_S:
                break
            for device in self._vm.spec.devices:
                if status.counts(device.slot).ios >= after[device.name] + PROOF:
                    working.add(device.name)
        return working, first < status.ticks() and time.monotonic() < ticked_s + LOST_S


def host_complaints() -> int:
    """How often the host's kernel has warned of itself so far."""
    return sum(int(path.read_text()) for path in _COUNTS)
