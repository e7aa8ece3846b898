# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmark sees and counts, against causes that are known: a pause made by hand, memory and CPU time used."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.ram_word import Gap
from ansible_collections.vmm.live_upgrade.tests.bench import cost, ram
from ansible_collections.vmm.live_upgrade.tests.bench.mechanisms import MECHANISMS
from ansible_collections.vmm.live_upgrade.tests.bench.subject import Subject
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import (
    WRITTEN_FROM,
    WRITTEN_TO,
    LocalQemu,
    QemuFactory,
)

PAUSE_S = 0.3
MEMORY_MIB = 128


@pytest.fixture
def writer(start_qemu: QemuFactory) -> LocalQemu:
    """A VM under write load, which is seen to count."""
    qemu = start_qemu(memory_mib=MEMORY_MIB, guest="write")
    qemu.wait_counting()
    return qemu


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    made = Subject(tmp_path, 1, MEMORY_MIB)
    yield made
    made.close()


def test_guest_writes_to_each_page_of_its_working_set(writer: LocalQemu) -> None:
    fd = ram.open_ram(writer.pid, writer.memory_bytes, os.O_RDONLY)

    def words() -> set[bytes]:
        return {os.pread(fd, 4, at) for at in range(WRITTEN_FROM, WRITTEN_TO, 4096)}

    before = os.pread(fd, 4, WRITTEN_TO - 4096)
    deadline = time.monotonic() + 60
    while bytes(4) in words() or os.pread(fd, 4, WRITTEN_TO - 4096) == before:
        assert time.monotonic() < deadline, "the guest does not write to all of it, over and over"
    assert os.pread(fd, 4, WRITTEN_TO) == bytes(4)
    os.close(fd)


def test_known_pause_is_seen(writer: LocalQemu) -> None:
    trace = ram.RamTrace(writer.pid, writer.memory_bytes)
    ram.wait_counting(writer.pid, writer.memory_bytes)

    stood_ns, told_ns = _pause(writer.monitor(), writer.monitor)

    writer.wait_counting()
    _assert_covers(ram.gap_within(trace.stop(), stood_ns, told_ns), stood_ns, told_ns)


def test_known_pause_is_seen_over_a_migration_to_other_ram(writer: LocalQemu, start_qemu: QemuFactory) -> None:
    """The page of the counter is copied while the guest pauses, which must not pass for its going on."""
    path = writer.directory / "migration.sock"
    target = start_qemu("target", memory_mib=MEMORY_MIB, guest="write", extra=["-incoming", f"unix:{path}"])
    old = ram.RamTrace(writer.pid, writer.memory_bytes)
    new = ram.RamTrace(target.pid, target.memory_bytes)
    ram.wait_counting(writer.pid, writer.memory_bytes)

    def migrated() -> QmpClient:
        writer.execute("migrate", {"uri": f"unix:{path}"})
        monitor = target.monitor()
        deadline = time.monotonic() + 60
        while monitor.execute("query-status")["status"] != "paused":
            assert time.monotonic() < deadline, "the migration does not end"
            time.sleep(0.01)
        assert target.counter() == writer.counter(), "the counter was not copied: this proves nothing"
        time.sleep(PAUSE_S)
        return monitor

    stood_ns, told_ns = _pause(writer.monitor(), migrated)

    target.wait_counting()
    left, arrived_in = old.stop(), new.stop()
    _assert_covers(ram.gap_across(left, arrived_in), stood_ns, told_ns)
    assert [stand.value for stand in arrived_in if stand.first_ns < told_ns][-1] == left[-1].value, "no copy was seen"


def test_fill_leaves_no_two_pages_alike_and_the_guest_running(writer: LocalQemu) -> None:
    ram.fill(writer.pid, writer.memory_bytes)

    writer.wait_counting()
    fd = ram.open_ram(writer.pid, writer.memory_bytes, os.O_RDONLY)
    pages = {os.pread(fd, 4096, at) for at in range(1 << 20, writer.memory_bytes, 4096)}
    os.close(fd)
    assert len(pages) == (writer.memory_bytes - (1 << 20)) // 4096


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_mechanism_moves_the_vm_both_ways(subject: Subject, mechanism: str) -> None:
    for measured in (subject.move(mechanism), subject.move(mechanism)):
        assert 0 < measured.downtime_ms <= measured.stall_ms
        assert measured.downtime_ms < measured.total_ms
        copied = mechanism == "local-migration"
        assert (measured.extra_memory_mib > MEMORY_MIB) == copied, measured


def test_memory_counts_what_two_processes_share_once_and_what_one_has_alone_in_full() -> None:
    source = (
        "import os, sys; fd = os.memfd_create('ram'); os.write(fd, bytes(64 << 20)); alone = bytearray(48 << 20)\n"
        "child = os.fork(); child and print(child, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin and parent.stdout
        child = int(parent.stdout.readline())
        one, both = cost.memory_mib([parent.pid]), cost.memory_mib([parent.pid, child])
        parent.stdin.close()

    # Forked, each has half of what the other has too; the file is whole in both counts.
    assert 64 + 24 < one < 64 + 48
    assert 64 + 48 < both < 64 + 48 + 32


def test_cpu_time_is_that_of_the_process_and_of_its_end() -> None:
    spin = "import os, sys, time\nwhile time.process_time() < 0.2: pass\nprint('.', flush=True); sys.stdin.read()\n"
    process = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdout.readline()
    running_ns = cost.process_ns(process.pid)
    process.stdin.close()
    final_ns = cost.final_ns(process.pid)
    process.returncode = 0

    assert running_ns >= 0.2e9
    assert running_ns <= final_ns + 1000  # of which the system tells microseconds


def test_cpu_time_of_vcpus_is_told_from_the_rest(start_qemu: QemuFactory) -> None:
    qemu = start_qemu(guest="spin", extra=["-name", "debug-threads=on"])
    qemu.wait_counting()
    vcpus_ns, rest_ns = cost.vcpus_ns(qemu.pid), cost.overhead_ns(qemu.pid)
    deadline = time.monotonic() + 60
    while cost.vcpus_ns(qemu.pid) - vcpus_ns < 0.5e9:
        assert time.monotonic() < deadline, "the vCPU uses no CPU time"
        time.sleep(0.05)

    assert cost.overhead_ns(qemu.pid) - rest_ns < 0.1e9


def _pause(monitor: QmpClient, resumer: Callable[[], QmpClient]) -> tuple[int, int]:
    """Stop the guest, wait, start it on the monitor that ``resumer`` returns; return since when, till when it stood."""
    monitor.execute("stop")
    monitor.close()
    stood_ns = time.time_ns()
    time.sleep(PAUSE_S)
    with resumer() as new:
        told_ns = time.time_ns()
        new.execute("cont")
    return stood_ns, told_ns


def _assert_covers(gap: Gap | None, stood_ns: int, told_ns: int) -> None:
    """The gap is the known pause; that it was looked at late may take a little off, never add a count of the guest."""
    assert gap is not None
    assert gap.length_ms >= PAUSE_S * 1000 / 2
    assert gap.start_ns < stood_ns + PAUSE_S * 1e9 / 2 and gap.end_ns > told_ns - PAUSE_S * 1e9 / 2
