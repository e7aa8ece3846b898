#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a guest stands still when its QEMU is replaced: the mechanisms side by side on one machine, round by round.

``downtime.py [ROUNDS]`` runs a guest that increments a word in its memory without pause, moves it to and fro between the two
builds by each mechanism in turn, and watches the word from outside. Prints a table and writes
``build/results/downtime.json``; asserts nothing, because the machine is nobody's alone.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build" / "tree"))

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_transfer import CprTransfer
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_vfork import CprVfork
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import Limits
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.ram_word import (
    RamWordWatcher,
    gap_over,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.discovery import discover_one
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import (
    COUNTER_OFFSET,
    LocalQemu,
    firmware,
    qemu_binary,
    working_accel,
)

RESULTS = Path(__file__).resolve().parents[2] / "build" / "results" / "downtime.json"
MECHANISMS = ("vfork", "cpr-transfer", "cpr-exec")
SHAPES = ((1, 1024), (16, 8192))
NIC = ("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=nic0,romfile=")
LIMITS = Limits(60, 30)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Cell:
    """The rounds of one mechanism with one shape of VM."""

    mechanism: str
    vcpus: int
    ram_mib: int
    downtime_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    extra_memory_mib: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        spread = {
            name: {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}
            for name, values in vars(self).items()
            if isinstance(values, list)
        }
        shape = {"mechanism": self.mechanism, "vcpus": self.vcpus, "ram_mib": self.ram_mib}
        return {**shape, "n": len(self.downtime_ms), **spread}


class Subject:
    """One VM; process after process runs it."""

    def __init__(self, directory: Path, vcpus: int, ram_mib: int) -> None:
        self._builds = [qemu_binary("10.2"), qemu_binary("11.1")]
        self._directory = directory
        self._hops = 0
        self.qemu = LocalQemu(
            self._builds[0],
            directory,
            accel=working_accel(self._builds[0]),
            machine="pc-q35-10.2",
            memory_mib=ram_mib,
            guest="spin",
            extra=["-smp", str(vcpus), *NIC],
        )
        self.qemu.wait_counting()
        self.pid = self.qemu.pid
        self._path = self.qemu.qmp_path

    def move(self, mechanism: str, cell: Cell) -> None:
        """Move the VM to the other build and note what it cost."""
        vm = discover_one(self.pid)
        assert vm is not None
        watcher = RamWordWatcher.of_backend(self.pid, "ram0", COUNTER_OFFSET, vm.ram_blocks)
        self._hops += 1
        argv = self._command()
        began = time.monotonic()
        began_ns = time.time_ns()
        monitor = QmpClient.connect(self._path, 60)
        new_pid, cpu_s = getattr(self, "_" + mechanism.replace("-", "_"))(monitor, argv)
        ended_ns = time.time_ns()
        cell.total_ms.append((time.monotonic() - began) * 1000)
        self.pid, self._path = new_pid, str(self._directory / f"qmp{self._hops}.sock")
        cell.extra_memory_mib.append(_private_mib(new_pid))
        cell.cpu_s.append(cpu_s)
        self.qemu.wait_counting()
        gap = gap_over(list(watcher.stop()), began_ns, ended_ns)
        assert gap is not None, f"no pause was seen by {mechanism}"
        cell.downtime_ms.append(gap.length_ms)

    def close(self) -> None:
        """End whatever process runs the VM now."""
        self.qemu.stop()
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _command(self) -> list[str]:
        binary = self._builds[self._hops % 2]
        rest = list(self.qemu.argv[1 + len(firmware(self._builds[0])) :])
        rest[rest.index("-qmp") + 1] = f"unix:{self._directory}/qmp{self._hops}.sock,server=on,wait=off"
        return [str(binary), *firmware(binary), *rest]

    def _vfork(self, monitor: QmpClient, argv: list[str]) -> tuple[int, float]:
        hand_over = CprVfork(self.pid, monitor, lambda _pid: monitor, LIMITS, lambda *_a, **_k: None)
        committed = hand_over.run(argv, [])
        cpu_s = _cpu_s(committed.target_pid)
        hand_over.release_source()
        hand_over.close()
        return committed.target_pid, cpu_s

    def _cpr_transfer(self, monitor: QmpClient, argv: list[str]) -> tuple[int, float]:
        with tempfile.TemporaryDirectory(dir="/run") as workspace:
            log = self._directory / "target.log"
            hand_over = CprTransfer(self.pid, monitor, Path(workspace), log, LIMITS, lambda *_a, **_k: None)
            committed = hand_over.run(argv, {}, (os.getuid(), os.getgid()))
            cpu_s = _cpu_s(committed.target_pid)
            hand_over.release_source()
            hand_over.close()
        return committed.target_pid, cpu_s

    def _cpr_exec(self, monitor: QmpClient, argv: list[str]) -> tuple[int, float]:
        state = self._directory / "state"
        before_s = _cpu_s(self.pid)
        command = [*argv, "-incoming", f"file:{state}"]
        monitor.execute("migrate-set-parameters", {"mode": "cpr-exec", "cpr-exec-command": command})
        monitor.execute("migrate", {"uri": f"file:{state}"})
        self.qemu.wait_counting()
        monitor.close()
        path = str(self._directory / f"qmp{self._hops}.sock")
        with QmpClient.connect(path, 60) as new:
            assert new.execute("query-status")["status"] == "running"
        return self.pid, _cpu_s(self.pid) - before_s


def _cpu_s(pid: int) -> float:
    """CPU time of all threads but the vCPUs', which spin."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if "KVM" not in (task / "comm").read_text() and "TCG" not in (task / "comm").read_text():
            stat = (task / "stat").read_text().rpartition(")")[2].split()
            total += (int(stat[11]) + int(stat[12])) / _TICKS
    return total


def _private_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {key: value for key, _colon, value in (line.partition(":") for line in lines)}
    return sum(int(fields[key].split()[0]) for key in ("RssAnon", "VmPTE")) / 1024


def _table(cells: list[Cell]) -> str:
    lines = [
        f"{'vCPU':>4} {'RAM':>6}  {'mechanism':12} {'n':>3}  {'downtime ms':>16}  {'total ms':>16}  {'memory MiB':>10}"
    ]
    for cell in cells:
        told = cell.to_dict()
        downtime, total = told["downtime_ms"], told["total_ms"]
        lines.append(
            f"{cell.vcpus:>4} {cell.ram_mib:>6}  {cell.mechanism:12} {told['n']:>3}  "
            f"{downtime['median']:>7.1f} {downtime['max']:>8.1f}  {total['median']:>7.0f} {total['max']:>8.0f}  "
            f"{told['extra_memory_mib']['median']:>10.1f}"
        )
    return "\n".join([*lines, "(downtime and total: median and largest)"])


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    cells: list[Cell] = []
    for vcpus, ram_mib in SHAPES:
        row = [Cell(mechanism, vcpus, ram_mib) for mechanism in MECHANISMS]
        cells += row
        with tempfile.TemporaryDirectory(dir="/run") as directory:
            subject = Subject(Path(directory), vcpus, ram_mib)
            try:
                for number in range(rounds):
                    for cell in row:
                        subject.move(cell.mechanism, cell)
                    print(f"{vcpus} vCPU, {ram_mib} MiB: round {number + 1} of {rounds}", flush=True)
            finally:
                subject.close()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"cells": [cell.to_dict() for cell in cells]}, indent=1) + "\n")
    print(_table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
