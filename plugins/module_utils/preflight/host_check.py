# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the host the room and the kernel for a second process beside each VM? PRIVATE to the collection."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest, Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import read_status

_SYS_PIDFD_GETFD = 438
_MIB = 1 << 20
# A new QEMU before it has loaded anything: measured 20 to 45 MiB of private memory.
_PROCESS_MIB = 64
_CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_YAMA_FORBIDS_ALL = 3


@dataclass(frozen=True)
class Host:
    """What of the host matters to every VM; null is "cannot be told"."""

    memory_available_mib: int
    state_dir_free_mib: int
    state_dir_free_inodes: int | None
    has_pidfd_getfd: bool
    ptrace_scope: int

    @classmethod
    def look(cls, state_dir: str) -> Host:
        """Read the state of this host. Changes nothing: a state directory that is not there yet is not made."""
        meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        existing = Path(state_dir)
        while not existing.is_dir() and existing != existing.parent:
            existing = existing.parent
        room = os.statvfs(existing)
        return cls(
            memory_available_mib=int(meminfo["MemAvailable"].split()[0]) // 1024,
            state_dir_free_mib=room.f_bavail * room.f_frsize // _MIB,
            state_dir_free_inodes=room.f_favail if room.f_files else None,
            has_pidfd_getfd=_has_pidfd_getfd(),
            ptrace_scope=_number("/proc/sys/kernel/yama/ptrace_scope"),
        )

    def check(self, verdict: Verdict, request: PreflightRequest, vm: Vm) -> None:
        """Refuse ``vm`` where the host has no room for its new process or the kernel cannot do what it takes."""
        if not self.has_pidfd_getfd:
            verdict.refuse(
                "kernel-too-old", f"Linux {os.uname().release} has no pidfd_getfd, which takes over descriptors"
            )
        if self.ptrace_scope >= _YAMA_FORBIDS_ALL:
            verdict.refuse(
                "ptrace-forbidden", "kernel.yama.ptrace_scope=3 forbids to take over descriptors of a process"
            )
        if self.state_dir_free_mib < request.disk_headroom_mib:
            message = f"{request.state_dir}: {self.state_dir_free_mib} MiB free, {request.disk_headroom_mib} wanted"
            verdict.refuse("disk-low", message)
        if self.state_dir_free_inodes == 0:
            verdict.refuse("disk-low", f"{request.state_dir}: no free inodes")
        try:
            self._check_memory(verdict, request, vm)
        except (OSError, KeyError, ValueError) as exc:
            verdict.warn("facts-missing", f"the memory that the new process needs cannot be estimated: {exc}")

    def _check_memory(self, verdict: Verdict, request: PreflightRequest, vm: Vm) -> None:
        needed_mib = memory_needed_mib(vm.pid)
        if self.memory_available_mib - needed_mib < request.memory_headroom_mib:
            message = (
                f"the new process may take {needed_mib} MiB beside the old one; {self.memory_available_mib} MiB are available "
                f"and {request.memory_headroom_mib} MiB must stay free"
            )
            verdict.refuse("memory-low", message)
        for path, left_mib in _cgroup_room(vm.cgroup):
            if left_mib < needed_mib:
                message = f"the new process may take {needed_mib} MiB; control group {path} leaves {left_mib} MiB"
                verdict.refuse("cgroup-memory-low", message)


def memory_needed_mib(pid: int) -> int:
    """Estimate the private memory of a twin of ``pid``: as much as the old has, and page tables for shared guest memory."""
    status = read_status(pid)
    kib = sum(int(status[key].split()[0]) for key in ("RssAnon", "VmPTE"))
    return kib // 1024 + _PROCESS_MIB


def _cgroup_room(cgroup: str | None) -> list[tuple[str, int]]:
    """Return each limited v2 group from that of the VM upwards → MiB left in it, counting what the kernel can reclaim."""
    found = []
    root = next((Path(path) for path in _CGROUPS if Path(path, "cgroup.controllers").exists()), None)
    parts = [part for part in (cgroup or "").split("/") if part]
    while root and parts and ".." not in parts:
        folder = root.joinpath(*parts)
        try:
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                used = int((folder / "memory.current").read_text())
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                reclaimable = int(statistics.get("inactive_file", 0))
                found.append(("/" + "/".join(parts), (int(limit) - used + reclaimable) // _MIB))
        except FileNotFoundError:
            pass  # no memory controller in this group
        parts.pop()
    return found


def _has_pidfd_getfd() -> bool:
    """Try it on ourselves: duplicate our own standard input, or whatever descriptor there is."""
    try:
        read_fd, write_fd = os.pipe()
        pidfd = os.pidfd_open(os.getpid())
    except OSError:
        return False
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(_SYS_PIDFD_GETFD, pidfd, read_fd, 0)
        if copy >= 0:
            os.close(copy)
        return bool(copy >= 0)
    finally:
        for fd in (read_fd, write_fd, pidfd):
            os.close(fd)


def _number(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return 0
