# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can a process be made like this one, and will it find the same disk images? PRIVATE to the collection."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.as_vm import errors_of_opening
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Disk, Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import descriptor_info, read_status
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.systemd import why_unit_ends_with

_UNCONFINED = re.compile(r"unconfined|kernel|.*:unconfined_t(:.*)?|.*:unconfined_service_t(:.*)?|.*:kernel_t(:.*)?")
InodeKey = tuple[int, int]


class OpenImages:
    """Which processes of this host have which regular file or block device open for writing. Read once for all VMs."""

    def __init__(self) -> None:
        """Look through all processes. Those that end meanwhile are passed over."""
        self._writers: dict[InodeKey, set[int]] = defaultdict(set)
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                self._add(int(entry))

    def other_writers(self, key: InodeKey, pid: int) -> set[int]:
        """Return the processes other than ``pid`` that have the file open for writing."""
        return self._writers.get(key, set()) - {pid}

    def _add(self, pid: int) -> None:
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            return
        for number in numbers:
            try:
                status = os.stat(f"/proc/{pid}/fd/{number}")
                if (
                    _is_image(status)
                    and int(descriptor_info(pid, int(number))["flags"], 8) & os.O_ACCMODE != os.O_RDONLY
                ):
                    self._writers[_key(status)].add(pid)
            except (OSError, KeyError, ValueError):
                continue  # closed meanwhile


def check_twin(verdict: Verdict, vm: Vm) -> None:
    """Refuse ``vm`` when the new process could not be given what the old one has: label, namespaces, capabilities."""
    try:
        status = read_status(vm.pid)
        if os.readlink(f"/proc/{vm.pid}/root") != "/":
            verdict.refuse("chroot", "the process runs in a chroot")
        for namespace in ("pid", "user"):
            if os.readlink(f"/proc/{vm.pid}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}"):
                verdict.refuse("other-namespace", f"the process lives in another {namespace} namespace")
        capabilities = int(status["CapEff"], 16)
        if capabilities and vm.uid != 0:
            message = f"the process is not root but holds capabilities ({capabilities:x}), which cannot be passed on"
            verdict.refuse("capabilities-held", message)
        ends = why_unit_ends_with(vm.unit, vm.pid)
        if ends:
            verdict.refuse("unit-ends-with-process", ends)
        if _in_v1_groups(vm.pid):
            verdict.warn("cgroup-v1", "the process is in control groups of version 1, which the new one does not join")
    except OSError as exc:
        verdict.warn("facts-missing", f"/proc/{vm.pid} cannot be read: {exc.strerror}")
    _check_label(verdict, vm)


def check_images(verdict: Verdict, vm: Vm, images: OpenImages) -> None:
    """Refuse ``vm`` when its new process would find another image under a path, none, or one it may not open.

    Forks: to be called while the process has one thread.
    """
    held = _held_images(vm.pid)
    wanted = []
    for disk in vm.disks:
        for position, path in enumerate(disk.files):
            key = _check_image(verdict, vm, disk, path, held)
            if key is None:
                continue
            writable = position == 0 and not disk.read_only
            wanted.append((_absolute(vm, path), os.O_RDWR if writable else os.O_RDONLY))
            others = images.other_writers(key, vm.pid) if writable else set()
            if others:
                pids = ", ".join(map(str, sorted(others)))
                verdict.warn(
                    "image-open-elsewhere", f"disk {disk.id}: {path} is open for writing in process {pids} as well"
                )
    _check_access(verdict, vm, wanted)


def _check_label(verdict: Verdict, vm: Vm) -> None:
    label = vm.security_label
    if label is None or _UNCONFINED.fullmatch(label):
        return
    try:
        ours = Path("/proc/self/attr/current").read_text().strip("\0\n ")
    except OSError:
        ours = ""
    if label == ours or label.endswith("(complain)"):
        verdict.warn("security-label", f"the process runs under the security label {label}")
    else:
        verdict.refuse("security-label", f"the process is confined ({label}); the new one would not be")


def _check_image(verdict: Verdict, vm: Vm, disk: Disk, path: str, held: set[InodeKey]) -> InodeKey | None:
    """Return the identity of the image when it is there and the one that the VM uses."""
    try:
        status = os.stat(f"/proc/{vm.pid}/root{_absolute(vm, path)}")
    except OSError as exc:
        verdict.refuse("image-gone", f"disk {disk.id}: {path}: {exc.strerror}")
        return None
    if _is_image(status) and _key(status) not in held:
        verdict.refuse("image-replaced", f"disk {disk.id}: {path} is another file than the one that the VM has open")
        return None
    return _key(status)


def _check_access(verdict: Verdict, vm: Vm, wanted: list[tuple[str, int]]) -> None:
    """Root may open everything; for another user it is tried, by a child of ours that becomes that user."""
    if vm.uid == 0 or os.geteuid() != 0 or not wanted:
        return
    try:
        failures = errors_of_opening(vm, wanted)
    except LiveUpgradeError as exc:
        verdict.warn("facts-missing", str(exc))
        return
    for path, error in failures:
        verdict.refuse("image-unreadable", f"user {vm.uid} may not open {path}: {error.strerror}")


def _held_images(pid: int) -> set[InodeKey]:
    held = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            held.add(_key(os.stat(f"/proc/{pid}/fd/{number}")))
        except OSError:
            continue  # closed meanwhile
    return held


def _is_image(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)


def _key(status: os.stat_result) -> InodeKey:
    """A block device is known by its number, whatever node it was opened through."""
    return (-1, status.st_rdev) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)


def _absolute(vm: Vm, path: str) -> str:
    return path if os.path.isabs(path) else os.path.join(os.readlink(f"/proc/{vm.pid}/cwd"), path)


def _in_v1_groups(pid: int) -> bool:
    def groups(who: str) -> dict[str, str]:
        lines = Path(f"/proc/{who}/cgroup").read_text().splitlines()
        return {
            controllers: path for _number, controllers, path in (line.split(":", 2) for line in lines) if controllers
        }

    return groups(str(pid)) != groups("self")
