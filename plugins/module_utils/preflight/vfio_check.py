# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Could the DMA mappings of a VM's VFIO devices go to its new process?

The pages stay pinned, and who has them is charged for them. A legacy container charges the memory of the new process before it
lets that of the old one go; each has the limit for itself. iommufd charges the user, who pays for both for a moment, and for all
other VMs of that user as well, unless whoever opened it has told it to charge the process, as libvirt can. Where the limit does
not allow it, the new process fails within the pause. A QEMU of this collection raises its limit for that as far as it may.
PRIVATE to the collection.
"""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import Option
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.devices import fields_of, named
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import LockedMemory, VfioUse, Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.locked_memory import pinned_by_user_kib
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import read_status


def check_vfio(verdict: Verdict, vm: Vm, options: list[Option], root: Path = Path("/")) -> None:
    """Refuse ``vm`` when its new process could not have the mappings, for the kernel or for the limit of locked memory.

    The verdict has to tell the mechanism: the new QEMU of ``cpr-transfer`` need not be one of this collection.
    """
    if vm.vfio is None:
        return
    _check_kernel(verdict, vm.vfio)
    memory = vm.locked_memory
    if memory is None:
        verdict.warn("facts-missing", "what the VM's process has locked cannot be read, so that no limit was checked")
        return
    limit_kib = memory.hard_limit_kib if verdict.mechanism == "vfork" else memory.limit_kib
    if memory.exempt or limit_kib is None:
        return
    of_process = vm.vfio.counted_for_user is False
    if vm.vfio.groups or of_process:
        _check_process(verdict, memory, limit_kib)
    if vm.vfio.cdevs and memory.pinned_kib and not of_process:
        _check_iommufd(verdict, vm, options, memory, limit_kib, root)


def _check_kernel(verdict: Verdict, use: VfioUse) -> None:
    wants = [
        *(["legacy containers from 5.12 on"] if use.groups else []),
        *(["iommufd from 6.13 on"] if use.cdevs else []),
    ]
    if use.mappings_can_move is None:
        message = (
            f"the kernel does not tell whether DMA mappings can be given to another process ({' and '.join(wants)} can)"
        )
        verdict.warn("facts-missing", message)
    elif not use.mappings_can_move:
        verdict.refuse(
            "vfio-kernel",
            f"Linux {os.uname().release} cannot give the DMA mappings of the VM's VFIO devices to another process "
            f"({' and '.join(wants)} can, without a mediated device among them)",
        )


def _check_process(verdict: Verdict, memory: LockedMemory, limit_kib: int) -> None:
    """More than the limit is locked by who was root then, or before the limit was set."""
    if memory.locked_kib > limit_kib:
        verdict.refuse(
            "memlock-low",
            f"the new process has to account for the {memory.locked_kib} KiB that the old one has locked, may lock "
            f"{limit_kib} KiB, and has no CAP_IPC_LOCK",
        )


def _check_iommufd(
    verdict: Verdict, vm: Vm, options: list[Option], memory: LockedMemory, limit_kib: int, root: Path
) -> None:
    try:
        uid = int(read_status(vm.pid, root)["Uid"].split()[0])
        needed_kib = pinned_by_user_kib(uid, root) + memory.pinned_kib
    except (OSError, KeyError, ValueError) as exc:
        verdict.warn("facts-missing", f"what the VM's user has pinned cannot be told: {exc}")
        return
    if needed_kib <= limit_kib:
        return
    message = (
        f"user {uid} has to account for {needed_kib} KiB for a moment, twice for the {memory.pinned_kib} KiB that the VM has "
        f"pinned and once for those of all others, and may lock {limit_kib} KiB"
    )
    if memory.pinned_kib > limit_kib or _began_as_root(options):
        verdict.warn("memlock-low", f"{message}, unless they were pinned by root, which does not count")
    else:
        verdict.refuse("memlock-low", message)


def _began_as_root(options: list[Option]) -> bool:
    """Whether QEMU gave its rights up by itself: what it had pinned until then is never counted."""
    return bool(named(options, "runas")) or any("user" in fields_of(option) for option in named(options, "run-with"))
