# SPDX-License-Identifier: GPL-3.0-or-later
"""The VM that is moved to and fro between two builds, and what each move costs it and the host."""

from __future__ import annotations

import time
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.ram_word import Gap
from ansible_collections.vmm.live_upgrade.tests.bench import cost, ram
from ansible_collections.vmm.live_upgrade.tests.bench.figures import Measured
from ansible_collections.vmm.live_upgrade.tests.bench.mechanisms import MECHANISMS, HandedOver, Task, cpr_transfer
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import (
    QemuFactory,
    firmware,
    qemu_binary,
    working_accel,
)

_NIC = ("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=nic0,romfile=")
# So that the threads of vCPUs are known from others.
_THREAD_NAMES = ("-name", "debug-threads=on")
_IDLE_AT_MOST_S = 0.5


class Subject:
    """One VM under write load, its RAM full of data; process after process runs it."""

    def __init__(self, directory: Path, vcpus: int, ram_mib: int) -> None:
        """Start it. Side effect: its processes become children of ours."""
        cost.adopt_orphans(True)
        self._builds = {stock: [qemu_binary(series, stock) for series in ("10.2", "11.1")] for stock in (False, True)}
        self._directory = directory
        self._stock = False
        self._hops = self._version = 0
        first = self._builds[False][0]
        self._factory = QemuFactory(directory, first, working_accel(first))
        try:
            qemu = self._factory(
                machine="pc-q35-10.2",
                memory_mib=ram_mib,
                guest="write",
                extra=["-smp", str(vcpus), *_NIC, *_THREAD_NAMES],
            )
            qemu.let_go_of_ram()
            qemu.process.returncode = 0  # who measures it reaps it
            self._arguments = qemu.argv[1 + len(firmware(first)) :]
            self._pid, self._monitor_path, self._ram_bytes = qemu.pid, qemu.qmp_path, qemu.memory_bytes
            ram.fill(self._pid, self._ram_bytes)
            ram.wait_counting(self._pid, self._ram_bytes)
        except BaseException:
            self.close()
            raise

    def move(self, mechanism: str) -> Measured:
        """Move the VM to the other version by ``mechanism``.

        Where that goes between two stock QEMUs or between two of ours, the VM is first brought to such a one of its version.
        """
        way = MECHANISMS[mechanism]
        if way.stock != self._stock:
            self._stock = way.stock
            self._bring()
        self._version = 1 - self._version
        task = self._next_task()
        old_pid = self._pid
        memory_mib = cost.memory_mib([old_pid])
        trace = ram.RamTrace(old_pid, self._ram_bytes)
        used_ns = cost.overhead_ns(old_pid)

        began_ns = time.time_ns()
        handed_over = way.move(task)
        ended_ns = time.time_ns()

        self._pid, self._monitor_path = handed_over.pid, task.new_monitor_path
        more_mib = cost.memory_mib({old_pid, self._pid}) - memory_mib
        pause, stall = self._gaps(trace, handed_over, began_ns, ended_ns)
        releasing_ns = time.time_ns()
        handed_over.release()
        total_s = (ended_ns - began_ns + time.time_ns() - releasing_ns) / 1e9
        used_s = (self._used_ns(old_pid, handed_over) - used_ns) / 1e9
        return Measured(
            downtime_ms=pause.length_ms,
            stall_ms=max(pause, stall, key=lambda gap: gap.length_ms).length_ms,
            total_ms=total_s * 1000,
            extra_memory_mib=max(0.0, more_mib),
            cpu_s=used_s - self._idle_s(total_s),
        )

    def close(self) -> None:
        """End all processes that run the VM or were to."""
        self._factory.close()
        cost.adopt_orphans(False)

    def _bring(self) -> None:
        """Bring the VM to the QEMU that is said, by what all of them have; nothing is measured."""
        task = self._next_task()
        handed_over = cpr_transfer(task)
        self._pid, self._monitor_path = handed_over.pid, task.new_monitor_path
        handed_over.release()
        ram.wait_counting(self._pid, self._ram_bytes)

    def _next_task(self) -> Task:
        self._hops += 1
        binary = self._builds[self._stock][self._version]
        new_monitor_path = str(self._directory / f"qmp{self._hops}.sock")
        rest = list(self._arguments)
        rest[rest.index("-qmp") + 1] = f"unix:{new_monitor_path},server=on,wait=off"
        argv = [str(binary), *firmware(binary), *rest]
        return Task(self._pid, self._monitor_path, argv, new_monitor_path, self._directory, self._ram_bytes)

    def _gaps(self, old: ram.RamTrace, handed_over: HandedOver, began_ns: int, ended_ns: int) -> tuple[Gap, Gap]:
        """End the traces, since they keep the old RAM alive, and find in them the pause, and the longest gap of all."""
        ram.wait_counting(self._pid, self._ram_bytes)
        seen = old.stop()
        if handed_over.new_ram is None:
            pause = ram.gap_within(seen, handed_over.stopped_us * 1000, handed_over.running_us * 1000)
        else:
            pause = ram.gap_across(seen, handed_over.new_ram.stop())
        stall = ram.gap_within(seen[:-1], began_ns, ended_ns)
        assert pause is not None, "no pause was seen"
        return pause, stall or pause

    def _used_ns(self, old_pid: int, handed_over: HandedOver) -> int:
        """The CPU time of both processes, to the end of the old one, without that of vCPUs."""
        if old_pid == self._pid:
            return cost.overhead_ns(self._pid) - handed_over.old_vcpus_ns
        return cost.final_ns(old_pid) - handed_over.old_vcpus_ns + cost.overhead_ns(self._pid)

    def _idle_s(self, total_s: float) -> float:
        """CPU time that the VM would have used anyway, besides its vCPUs, in as long a time."""
        before_ns, began = cost.overhead_ns(self._pid), time.monotonic()
        time.sleep(min(total_s, _IDLE_AT_MOST_S))
        rate = (cost.overhead_ns(self._pid) - before_ns) / 1e9 / (time.monotonic() - began)
        return rate * total_s
