# SPDX-License-Identifier: GPL-3.0-or-later
"""Upgrades back and forth on one VM that is at work, and what they left behind."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import VmResult
from ansible_collections.vmm.live_upgrade.tests.integration.load.clients import Console, EchoStream
from ansible_collections.vmm.live_upgrade.tests.integration.load.disk_records import verify_image
from ansible_collections.vmm.live_upgrade.tests.integration.load.disks import DISKS, DiskSet
from ansible_collections.vmm.live_upgrade.tests.integration.load.linux_guest import HOST_ADDRESS, Status, linux_accel
from ansible_collections.vmm.live_upgrade.tests.integration.load.loaded_vm import LoadedVm, build_of, held
from ansible_collections.vmm.live_upgrade.tests.integration.load.namespace import TapNamespace

# Two processes of the same build differ by what their allocators and, under emulation, their translators keep.
_MEMORY_SLACK_KIB = 16384
_COUNTED = ("fds", "memfds", "sockets")
_BLOCKS_PER_HOP = 20
_RECORDS_PER_HOP = 5


@dataclass
class SoakReport:
    """What a soak came to. ``downtime_ms``: by how it was measured.

    ``begin`` and ``end`` are what two processes of the older build held, hops apart.
    """

    accel: str
    hops_wanted: int
    hops: int = 0
    downtime_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    total_ms: dict[str, float] = field(default_factory=dict)
    records_written: int = 0
    records_on_disk_verified: int = 0
    network_bytes: int = 0
    console_lines: int = 0
    console_lines_lost: int = 0
    begin: dict[str, int] = field(default_factory=dict)
    end: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """For people."""
        rows = [
            ("hops", f"{self.hops} of {self.hops_wanted}, under {self.accel}"),
            *(
                (f"downtime by {source}", f"{_spread(values)} ms")
                for source, values in sorted(self.downtime_ms.items())
            ),
            ("upgrade in all", f"{_spread(self.total_ms)} ms"),
            ("disk records", f"{self.records_written} written and read back, {self.records_on_disk_verified} on disk"),
            ("network", f"{self.network_bytes} bytes over one TCP connection, each compared"),
            ("console", f"{self.console_lines} lines on one connection, {self.console_lines_lost} lost in the change"),
            *((name, f"{self.begin.get(name)} at begin, {self.end.get(name)} at end") for name in self.begin),
            ("verdict", "; ".join(self.failures) or "passed"),
        ]
        return "\n".join(f"{name:28} {text}" for name, text in rows)


class Soak:
    """One soak of ``hops`` upgrades, an even number."""

    def __init__(self, builds: tuple[Path, Path], directory: Path, hops: int, say: Callable[[str], None]) -> None:
        """``builds``: programs of the older and the newer build; ``say`` gets lines of progress."""
        assert hops >= 4 and hops % 2 == 0, f"{hops} hops: an even number is needed, from 4, to end on the first build"
        self._builds = builds
        self._directory = directory
        self._say = say
        self._report = SoakReport(linux_accel(), hops)
        self._downtimes: dict[str, list[float]] = {}
        self._totals: list[float] = []

    def run(self) -> SoakReport:
        """Do it; whatever failed is in the report."""
        namespace = TapNamespace(f"vmm-soak-{os.getpid()}", HOST_ADDRESS)
        try:
            disks = DiskSet.create(self._directory, self._directory / "vm", DISKS)
            with LoadedVm(self._builds[0], self._directory / "vm", namespace, disks) as vm:
                self._say(f"the guest is at work, under {self._report.accel}")
                try:
                    self._load(vm, disks)
                except (AssertionError, OSError) as exc:
                    self._fail(str(exc))
        finally:
            namespace.close()
        return self._report

    def _load(self, vm: LoadedVm, disks: DiskSet) -> None:
        report = self._report
        nonce = vm.status().nonce
        stream, console = vm.stream(), Console(vm.serial_path)
        try:
            self._hop_on(vm, stream, console)
        finally:
            report.network_bytes, report.console_lines = stream.bytes_compared, len(console.ticks)
            report.downtime_ms = {source: _measure(values) for source, values in self._downtimes.items()}
            report.total_ms = _measure(self._totals)
            console.close()
            stream.close()
        report.console_lines_lost = len(console.missing())
        if report.console_lines_lost:
            self._fail(f"the console lost {report.console_lines_lost} lines")
        last = vm.quit()
        report.records_written = last.records
        if last.failures or last.nonce != nonce:
            self._fail(f"the guest saw failures, or another guest runs: {last}")
        self._verify_disks(disks, last)
        self._compare_holdings()

    def _hop_on(self, vm: LoadedVm, stream: EchoStream, console: Console) -> None:
        report = self._report
        for hop in range(1, report.hops_wanted + 1):
            self._note(vm.upgrade(build_of(self._builds[hop % 2])))
            stream.wait_more(_BLOCKS_PER_HOP)
            console.exchange()
            console.wait_tick(1)
            vm.wait_records(_RECORDS_PER_HOP)
            report.hops = hop
            if hop == 2:
                report.begin = _holdings(vm)
            if hop % 10 == 0 or hop == report.hops_wanted:
                records, sent = vm.status().records, stream.bytes_compared >> 20
                self._say(f"hop {hop} of {report.hops_wanted}: {records} records, {sent} MiB")
        report.end = _holdings(vm)

    def _note(self, result: VmResult) -> None:
        self._downtimes.setdefault(str(result.downtime_source), []).append(float(result.downtime_ms or 0))
        self._totals.append(float(result.total_ms or 0))

    def _verify_disks(self, disks: DiskSet, last: Status) -> None:
        for disk, image, told in zip(disks.disks, disks.images, last.disks):
            self._report.records_on_disk_verified += verify_image(image, disk.image_format, told, last.nonce)

    def _compare_holdings(self) -> None:
        begin, end = self._report.begin, self._report.end
        for name in (*_COUNTED, "harness_fds"):
            if end[name] != begin[name]:
                self._fail(f"{name} went from {begin[name]} to {end[name]}")
        for name in ("rss", "pss", "private_dirty"):
            if end[name] > begin[name] * 1.1 + _MEMORY_SLACK_KIB:
                self._fail(f"{name} went from {begin[name]} to {end[name]} KiB")

    def _fail(self, why: str) -> None:
        self._report.failures.append(why)
        self._say(f"FAILED: {why}")


def _holdings(vm: LoadedVm) -> dict[str, int]:
    """What the VM's process holds, and how many descriptors the engine left in ours."""
    return {**held(vm.pid), "harness_fds": len(os.listdir("/proc/self/fd"))}


def _measure(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"n": len(values), "median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def _spread(measured: dict[str, float]) -> str:
    return f"n={measured['n']} median {measured['median']} max {measured['max']}" if measured else "none"
