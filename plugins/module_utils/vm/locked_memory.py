# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The locked memory of a process, and what its successor may lock. PRIVATE to the collection."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import LockedMemory
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import read_status

_CAP_IPC_LOCK = 1 << 14
_LABEL = "Max locked memory"


def locked_memory(pid: int, root: Path = Path("/")) -> LockedMemory:
    """Return what process ``pid`` has locked and pinned, and the limit that a process made from it has. Raises ``OSError``."""
    status = read_status(pid, root)
    soft_kib, hard_kib = _limits_kib(pid, root)
    return LockedMemory(
        locked_kib=_kib(status, "VmLck"),
        pinned_kib=_kib(status, "VmPin"),
        limit_kib=soft_kib,
        hard_limit_kib=hard_kib,
        exempt=_successor_is_exempt(status),
    )


def pinned_by_user_kib(uid: int, root: Path = Path("/")) -> int:
    """Return what all processes of the real user ``uid`` have pinned, as iommufd counts it: by the user, over all VMs."""
    pinned_kib = 0
    for entry in os.listdir(root / "proc"):
        if entry.isdigit():
            try:
                status = read_status(int(entry), root)
            except OSError:
                continue  # ended meanwhile
            if int(status["Uid"].split()[0]) == uid:
                pinned_kib += _kib(status, "VmPin")
    return pinned_kib


def _kib(status: dict[str, str], name: str) -> int:
    """A kernel thread has no memory."""
    return int(status.get(name, "0 kB").split()[0])


def _limits_kib(pid: int, root: Path) -> tuple[int | None, int | None]:
    """``prlimit`` wants CAP_SYS_RESOURCE even for a look at another user's process."""
    for line in (root / f"proc/{pid}/limits").read_text().splitlines():
        if line.startswith(_LABEL):
            soft, hard = line[len(_LABEL) :].split()[:2]
            return _limit_kib(soft), _limit_kib(hard)
    return None, None


def _limit_kib(value: str) -> int | None:
    return None if value == "unlimited" else int(value) // 1024


def _successor_is_exempt(status: dict[str, str]) -> bool:
    """Whether what ``exec`` leaves has CAP_IPC_LOCK: of root what is in the bounding set, of others what is ambient."""
    root_user = int(status["Uid"].split()[1]) == 0
    return bool(int(status["CapBnd" if root_user else "CapAmb"], 16) & _CAP_IPC_LOCK)
