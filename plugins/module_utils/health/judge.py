# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a VM's health at one moment, and how two moments compare. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is not well. ``check`` and ``subject`` identify it over time, ``message`` is for people."""

    check: str
    subject: str
    message: str


@dataclass(frozen=True)
class Vcpu:
    """What one vCPU did while it was watched. ``exits`` and ``halted`` are null where KVM does not tell."""

    index: int
    cpu_ns: int
    exits: int | None
    halted: bool | None

    @property
    def progressed(self) -> bool:
        """Whether its thread used CPU time or KVM counted an exit."""
        return self.cpu_ns > 0 or bool(self.exits)


@dataclass(frozen=True)
class Disk:
    """One disk: QEMU's io-status (null where it has none) and how many of its requests failed."""

    device: str
    io_status: str | None
    failed_operations: int


@dataclass(frozen=True)
class Answer:
    """Whether something that was asked answered well, and what it said or why not."""

    ok: bool
    detail: str


@dataclass(frozen=True)
class SerialPosition:
    """Where a serial log ended: a later look starts there, unless the file is another one by then."""

    path: str
    inode: int
    offset: int


@dataclass(frozen=True)
class Monitor:
    """A QMP monitor: the path of its socket, ``ok``, ``busy`` or ``dead``, and whether the host sees it by that path, too."""

    path: str
    state: str
    on_host: bool


@dataclass
class Snapshot:
    """A VM's health as it was seen. Null or empty means that nobody asked, not that all is well.

    A ``pid`` of 0 means that no process runs the VM; then nothing is known of its ``build_id``, which is else null for a QEMU
    that is not one of our builds.
    """

    name: str
    pid: int
    build_id: str | None = None
    run_state: str | None = None
    watched_s: float = 0.0
    vcpus: list[Vcpu] = field(default_factory=list)
    ram_word_moved: bool | None = None
    disks: list[Disk] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    serial: SerialPosition | None = None
    complaints: list[Problem] = field(default_factory=list)
    monitors: list[Monitor] = field(default_factory=list)
    unasked: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data; ``judge.judge`` takes that back as a baseline."""
        return asdict(self)


def problems(snapshot: Snapshot) -> list[Problem]:
    """Return what is not well in ``snapshot`` by itself."""
    found = [*snapshot.unasked, *snapshot.complaints]
    if snapshot.run_state not in (None, "running"):
        found.append(Problem("run_state", "", f"the VM is {snapshot.run_state}, not running"))
    if snapshot.ram_word_moved is False:
        found.append(Problem("ram_word", "", f"the word in guest RAM did not change in {snapshot.watched_s:.1f} s"))
    found += _stuck_vcpus(snapshot)
    for disk in snapshot.disks:
        if disk.io_status not in (None, "ok"):
            found.append(Problem("disk_status", disk.device, f"disk {disk.device} has io-status {disk.io_status}"))
        if disk.failed_operations:
            found.append(
                Problem("disk_errors", disk.device, f"disk {disk.device}: {disk.failed_operations} requests failed")
            )
    for check, answer in snapshot.answers.items():
        if not answer.ok:
            found.append(Problem(check, "", answer.detail))
    return found


def regressions(before: Mapping[str, Any], after: Snapshot) -> list[Problem]:
    """Return the problems of ``after`` that the VM did not have ``before`` (a snapshot's ``to_dict``).

    A problem that was there before is not the upgrade's. A VM that was busy and now only halts, for the whole time it was
    watched, is one: its timer is probably lost. Disk errors count anew in a new process.
    """
    had = {(problem["check"], problem["subject"]) for problem in before["problems"]}
    failed_before = {disk["device"]: disk["failed_operations"] for disk in before["disks"]}
    same_process = before["pid"] == after.pid
    found = []
    for problem in problems(after):
        known = (problem.check, problem.subject) in had
        if problem.check == "serial":
            known = False  # only what was logged since the baseline was looked at
        elif problem.check == "disk_errors":
            failed = next(disk.failed_operations for disk in after.disks if disk.device == problem.subject)
            known = same_process and failed <= failed_before.get(problem.subject, 0)
        if not known:
            found.append(problem)
    if _fell_silent(before, after) and not any(problem.check in ("vcpu", "ram_word") for problem in found):
        found.append(Problem("vcpu", "", f"its vCPUs worked before and all halted for {after.watched_s:.1f} s now"))
    return found


def _stuck_vcpus(snapshot: Snapshot) -> list[Problem]:
    """A vCPU that KVM says is not halted, and that does nothing, is stuck. Without KVM's word only a baseline can tell."""
    if snapshot.run_state != "running" or snapshot.ram_word_moved:
        return []
    silent = [vcpu for vcpu in snapshot.vcpus if not vcpu.progressed]
    return [
        Problem("vcpu", str(vcpu.index), f"vCPU {vcpu.index} neither ran nor halted in {snapshot.watched_s:.1f} s")
        for vcpu in silent
        if vcpu.halted is False
    ]


def _fell_silent(before: Mapping[str, Any], after: Snapshot) -> bool:
    if after.ram_word_moved or after.run_state != "running" or not after.vcpus:
        return False
    worked = any(vcpu["cpu_ns"] > 0 or vcpu["exits"] for vcpu in before["vcpus"])
    return worked and not any(vcpu.progressed for vcpu in after.vcpus)
