# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses KVM: the processes that hold a node of it open, and the VMs they run. PRIVATE to the collection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_NODE = re.compile(r"/dev/kvm(?:-([0-9a-f]{16}))?")
_VM = "anon_inode:kvm-v"  # kvm-vm, and kvm-vcpu:N
_DELETED = " (deleted)"  # the node of a core that was unloaded and loaded again


@dataclass(frozen=True)
class User:
    """A process that uses KVM. ``vm`` is the name of the VM that it runs, None when it is no QEMU."""

    pid: int
    vm: str | None

    def __str__(self) -> str:
        """Return the user in words."""
        return f"VM {self.vm} (process {self.pid})" if self.vm else f"process {self.pid}"


@dataclass(frozen=True)
class Open:
    """What of KVM a process has open: ``names`` of the cores whose nodes it holds; ``others``: ``/dev/kvm``, or VMs only."""

    user: User
    names: frozenset[str]
    others: bool


def users_of_kvm(root: Path, vm_name: Callable[[int], str | None]) -> list[Open]:
    """Return every process that has KVM open, by pid. ``vm_name`` tells which VM a process runs."""
    found = []
    for entry in sorted((name for name in os.listdir(root / "proc") if name.isdigit()), key=int):
        names, others = _opened(root / "proc" / entry / "fd")
        if names or others:
            found.append(Open(User(int(entry), vm_name(int(entry))), frozenset(names), others))
    return found


def users_by_core(root: Path, cores: list[str], default: str | None, opened: list[Open]) -> dict[str, list[User]]:
    """Return name of a core → its users.

    Who opened ``/dev/kvm`` is on the core that was the default then: debugfs has a folder for each of its VMs. Where debugfs
    is not mounted, it is counted to the default of now.
    """
    created = {name: _creators(root / "sys/kernel/debug" / f"kvm-{name}") for name in cores}
    users: dict[str, list[User]] = {name: [] for name in cores}
    for process in opened:
        on = {name for name in cores if name in process.names or process.user.pid in created[name]}
        if process.others and not on and default is not None:
            on = {default}
        for name in on:
            users[name].append(process.user)
    return users


def _opened(folder: Path) -> tuple[set[str], bool]:
    names: set[str] = set()
    others = False
    try:
        descriptors = os.listdir(folder)
    except OSError:
        return names, others  # ended meanwhile
    for descriptor in descriptors:
        try:
            link = os.readlink(folder / descriptor)
        except OSError:
            continue  # closed meanwhile
        match = _NODE.fullmatch(link[: -len(_DELETED)] if link.endswith(_DELETED) else link)
        if match and match[1]:
            names.add(match[1])
        elif match or link.startswith(_VM):
            others = True
    return names, others


def _creators(folder: Path) -> set[int]:
    """The processes that made the VMs of a core: debugfs calls the folder of each ``<pid>-<descriptor>``."""
    try:
        return {int(match[1]) for name in os.listdir(folder) if (match := re.fullmatch(r"(\d+)-\d+", name))}
    except OSError:
        return set()
