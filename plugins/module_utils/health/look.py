# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at the health of VMs: each in a thread of its own, each within its time. PRIVATE to the collection."""

from __future__ import annotations

import json
import os
import queue
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.health import probes, serial
from ansible_collections.vmm.live_upgrade.plugins.module_utils.health.judge import (
    Disk,
    Monitor,
    Problem,
    Snapshot,
    Vcpu,
    problems,
    regressions,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpCommandError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.monitor import connect

_POLL_S = 0.02
_AGENT_PORT = "org.qemu.guest_agent.0"
_WORD = struct.Struct("<Q")
# What descriptors of shared guest memory point to; nothing is made there.
_SHARED_MEMORY = ("/memfd:", "/dev/shm/", "/dev/hugepages/")  # noqa: S108
_FAILED_COUNTERS = (
    "failed_rd_operations",
    "failed_wr_operations",
    "failed_flush_operations",
    "failed_unmap_operations",
    "failed_zone_append_operations",
)


@dataclass(frozen=True)
class Limits:
    """Seconds: for the whole of one VM, for vCPUs to show progress, for each question put to it."""

    vm_s: float
    progress_s: float
    probe_s: float


Probe = Mapping[str, Any]


def look_at_all(
    vms: Sequence[Vm], vm_probes: Mapping[str, Probe], baseline: Mapping[str, Mapping[str, Any]], limits: Limits
) -> list[dict[str, Any]]:
    """Return one report per VM, by name; ``baseline`` holds earlier reports by VM name.

    A report is a snapshot's data with ``healthy``, ``problems``, ``pre_existing`` and ``regressions``. A VM that does not
    answer in time, or that is gone since the baseline, has that as its report.
    """
    answers: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()

    def look(vm: Vm) -> None:
        answers.put(_look(vm, vm_probes.get(vm.name, {}), baseline.get(vm.name), limits))

    for vm in vms:
        threading.Thread(target=look, args=(vm,), daemon=True).start()
    deadline = time.monotonic() + limits.vm_s
    seen: dict[tuple[str, int], Snapshot] = {}
    while len(seen) < len(vms):
        try:
            snapshot = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        seen[snapshot.name, snapshot.pid] = snapshot
    reports = []
    for vm in vms:
        late = Snapshot(
            vm.name, vm.pid, vm.build_id, unasked=[Problem("answer", "", f"no answer within {limits.vm_s:g} s")]
        )
        reports.append(_report(seen.get((vm.name, vm.pid), late), baseline.get(vm.name)))
    return sorted(reports, key=lambda report: str(report["name"]))


def gone(name: str) -> dict[str, Any]:
    """Return the report of a VM that the baseline knows and the host does not run any more."""
    problem = Problem("gone", "", "no process runs this VM any more")
    return {
        **Snapshot(name, 0).to_dict(),
        "healthy": False,
        "problems": [asdict(problem)],
        "pre_existing": [],
        "regressions": [asdict(problem)],
    }


def _report(snapshot: Snapshot, before: Mapping[str, Any] | None) -> dict[str, Any]:
    found = problems(snapshot)
    new = regressions(before, snapshot) if before else []
    return {
        **snapshot.to_dict(),
        "healthy": not found and not new,
        "problems": [asdict(problem) for problem in found],
        "pre_existing": [asdict(problem) for problem in found if problem not in new] if before else [],
        "regressions": [asdict(problem) for problem in new],
    }


def _look(vm: Vm, probe: Probe, before: Mapping[str, Any] | None, limits: Limits) -> Snapshot:
    """Look at one VM. What prevents one check is that check's problem, the others are made all the same."""
    snapshot = Snapshot(vm.name, vm.pid, vm.build_id)
    snapshot.monitors = [Monitor(e.path, e.state, _is_on_host(vm.pid, e.path)) for e in vm.qmp_endpoints]
    try:
        _look_at_serial(snapshot, probe, before)
        _look_inside(snapshot, vm, probe, limits)
        _ask(snapshot, vm, probe, limits)
    except Exception as exc:  # a thread has no caller; what it did not expect belongs into its VM's answer
        snapshot.unasked.append(Problem("look", "", f"{type(exc).__name__}: {exc}"))
    return snapshot


def _look_at_serial(snapshot: Snapshot, probe: Probe, before: Mapping[str, Any] | None) -> None:
    path = probe.get("serial_log")
    if not path:
        return
    try:
        snapshot.serial = serial.position(str(path))
        if before and before["serial"]:
            snapshot.complaints = serial.complaints_since(before["serial"], snapshot.serial)
    except LiveUpgradeError as exc:
        snapshot.unasked.append(Problem("serial_log", "", str(exc)))


def _look_inside(snapshot: Snapshot, vm: Vm, probe: Probe, limits: Limits) -> None:
    """Ask QEMU, and watch vCPUs and the word in guest RAM until they move or the time is up."""
    ram = _RamWord.of(vm, probe, snapshot)
    try:
        with _monitor(vm, limits.probe_s) as qmp:
            snapshot.run_state = str(qmp.execute("query-status")["status"])
            snapshot.disks = _disks(qmp)
            _watch(snapshot, vm.pid, qmp, ram, limits.progress_s)
    except (LiveUpgradeError, OSError) as exc:
        snapshot.unasked.append(Problem("qmp", "", f"QEMU could not be asked: {exc}"))
    finally:
        if ram:
            ram.close()


def _ask(snapshot: Snapshot, vm: Vm, probe: Probe, limits: Limits) -> None:
    agent = probe.get("guest_agent") or agent_socket(vm.argv)
    if agent:
        snapshot.answers["guest_agent"] = probes.guest_agent(f"/proc/{vm.pid}/root{agent}", limits.probe_s)
    if probe.get("ping"):
        snapshot.answers["ping"] = probes.ping(str(probe["ping"]), limits.probe_s)
    if probe.get("tcp"):
        snapshot.answers["tcp"] = probes.tcp(str(probe["tcp"]["host"]), int(probe["tcp"]["port"]), limits.probe_s)
    if probe.get("command"):
        snapshot.answers["command"] = probes.command([str(word) for word in probe["command"]], limits.probe_s)


def _is_on_host(pid: int, path: str) -> bool:
    """Whether ``path`` is the same file for the host as for the process, which may have a mount namespace of its own."""
    try:
        return os.path.samefile(path, f"/proc/{pid}/root{path}")
    except OSError:
        return False


def _monitor(vm: Vm, timeout_s: float) -> QmpClient:
    reasons = []
    for endpoint in vm.qmp_endpoints:
        try:
            return connect(vm.pid, endpoint.path, timeout_s)
        except LiveUpgradeError as exc:
            reasons.append(str(exc))
    raise LiveUpgradeError("; ".join(reasons) or "it has no QMP monitor on a UNIX socket")


def _disks(qmp: QmpClient) -> list[Disk]:
    failed = {}
    for entry in qmp.execute("query-blockstats"):
        counters = entry.get("stats", {})
        failed[_device(entry)] = sum(int(counters.get(counter, 0)) for counter in _FAILED_COUNTERS)
    return [
        Disk(_device(entry), entry.get("io-status"), failed.get(_device(entry), 0))
        for entry in qmp.execute("query-block")
        if entry.get("inserted")
    ]


def _device(entry: Mapping[str, Any]) -> str:
    return str(entry.get("qdev") or entry.get("device") or entry.get("node-name"))


def _watch(snapshot: Snapshot, pid: int, qmp: QmpClient, ram: _RamWord | None, limit_s: float) -> None:
    """Wait until every vCPU has progressed or is halted with others working; a working guest shows it in milliseconds."""
    threads = {str(cpu["qom-path"]): int(cpu["thread-id"]) for cpu in qmp.execute("query-cpus-fast")}
    start = time.monotonic()
    cpu_before = {path: _cpu_ns(pid, tid) for path, tid in threads.items()}
    kvm_before = _kvm_stats(qmp)
    word_before = ram.read() if ram else None
    while True:
        time.sleep(_POLL_S)  # neither /proc nor guest RAM can wake us when they change
        kvm = _kvm_stats(qmp)
        snapshot.watched_s = time.monotonic() - start
        snapshot.vcpus = [
            Vcpu(
                index=index,
                cpu_ns=_cpu_ns(pid, tid) - cpu_before[path],
                exits=kvm[path][0] - kvm_before[path][0] if path in kvm and path in kvm_before else None,
                halted=kvm[path][1] if path in kvm else None,
            )
            for index, (path, tid) in enumerate(threads.items())
        ]
        if ram:
            snapshot.ram_word_moved = snapshot.ram_word_moved or ram.read() != word_before
        working = [vcpu for vcpu in snapshot.vcpus if vcpu.progressed]
        settled = working and all(vcpu.progressed or vcpu.halted is not False for vcpu in snapshot.vcpus)
        if (settled and snapshot.ram_word_moved is not False) or snapshot.watched_s >= limit_s:
            return
        if snapshot.run_state != "running":
            return  # nothing will move


def _cpu_ns(pid: int, tid: int) -> int:
    """Return the CPU time of a thread in nanoseconds."""
    return int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text(encoding="ascii").split()[0])


def _kvm_stats(qmp: QmpClient) -> dict[str, tuple[int, bool]]:
    """Return per vCPU (QOM path) KVM's count of exits and whether it blocks in a halt; empty under another accelerator."""
    request = {"target": "vcpu", "providers": [{"provider": "kvm", "names": ["exits", "blocking"]}]}
    try:
        results = qmp.execute("query-stats", request)
    except QmpCommandError:
        return {}
    found = {}
    for result in results:
        values = {stat["name"]: stat["value"] for stat in result["stats"]}
        if "exits" in values and "blocking" in values:
            found[str(result["qom-path"])] = (int(values["exits"]), bool(values["blocking"]))
    return found


def agent_socket(argv: Sequence[str]) -> str | None:
    """Return the path of the UNIX socket behind the guest agent's port, None when the VM has no such port."""
    options = list(zip(argv, argv[1:]))
    paths = {}
    for option, value in options:
        fields = _fields(value) if option == "-chardev" else {}
        if fields.get("id") and fields.get("path"):
            paths[fields["id"]] = fields["path"]
    for option, value in options:
        fields = _fields(value) if option == "-device" else {}
        if fields.get("name") == _AGENT_PORT:
            return paths.get(fields.get("chardev", ""))
    return None


def _fields(value: str) -> dict[str, str]:
    if value.startswith("{"):
        data = json.loads(value)
        return {str(key): str(item) for key, item in data.items()}
    pairs = (item.partition("=") for item in value.split(",") if "=" in item)
    return {key: item for key, _equals, item in pairs}


class _RamWord:
    """The word in guest RAM that the guest increments, read through a descriptor of the VM's RAM."""

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._offset = offset

    @classmethod
    def of(cls, vm: Vm, probe: Probe, snapshot: Snapshot) -> _RamWord | None:
        """Open the word of ``probe``; None, and a problem in ``snapshot``, when there is none to read."""
        wanted = probe.get("ram_word")
        if not wanted:
            return None
        backend, offset = str(wanted["backend"]), int(wanted["offset"])
        sizes = {block.size_bytes for block in vm.ram_blocks if block.id.rpartition("/")[2] == backend}
        found = _shared_files(vm.pid, sizes.pop()) if len(sizes) == 1 else {}
        if len(found) != 1:
            message = f"the RAM of backend {backend!r} is not one shared file of the process, its word cannot be read"
            snapshot.unasked.append(Problem("ram_word_probe", "", message))
            return None
        return cls(os.open(next(iter(found.values())), os.O_RDONLY | os.O_CLOEXEC), offset)

    def read(self) -> int:
        """Return the word. Raises ``OSError`` when the offset is outside of the RAM."""
        data = os.pread(self._fd, _WORD.size, self._offset)
        if len(data) != _WORD.size:
            raise OSError(f"offset {self._offset:#x} is outside of the guest's RAM")
        return int(_WORD.unpack(data)[0])

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def _shared_files(pid: int, size_bytes: int) -> dict[tuple[int, int], str]:
    """Return the open files of a process that have that size and are memory, by (device, inode)."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            target, status = os.readlink(entry.path), os.stat(entry.path)
        except OSError:
            continue  # closed meanwhile
        if status.st_size == size_bytes and target.startswith(_SHARED_MEMORY):
            found[status.st_dev, status.st_ino] = entry.path
    return found
