# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The VFIO devices of a host, their IOMMU groups, and who uses them. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import descriptors
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_kernel import VfioKernel, look_at_kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_use import CDEV, GROUP

# A mediated device is made by a driver, and has neither ids nor an address but its UUID.
_BUSES = ("pci", "mdev")


@dataclass(frozen=True)
class VfioUser:
    """A process that has a device open. ``vm``: the name of the VM that it runs, null when it is no QEMU."""

    pid: int
    vm: str | None


@dataclass(frozen=True)
class VfioDevice:
    """A device that a VFIO driver has. ``users`` may be those of another device of its ``group``, which is opened as a whole."""

    address: str
    driver: str
    group: str | None
    vendor_id: str | None
    device_id: str | None
    users: list[VfioUser]


@dataclass(frozen=True)
class GroupMember:
    """A device of a group, of whatever driver; null when it has none."""

    address: str
    driver: str | None


@dataclass(frozen=True)
class IommuGroup:
    """A group in which a VFIO driver has a device: all of it goes to one VM, and to nobody else."""

    number: str
    members: list[GroupMember]


@dataclass(frozen=True)
class VfioHost:
    """``iommu``: whether the host has IOMMU groups at all; none without an IOMMU that is switched on."""

    iommu: bool
    kernel: VfioKernel
    devices: list[VfioDevice] = field(default_factory=list)
    groups: list[IommuGroup] = field(default_factory=list)


def look_at_host(vm_name: Callable[[int], str | None], root: Path = Path("/")) -> VfioHost:
    """Return what this host has for VFIO. ``vm_name`` tells which VM a process runs. Changes nothing."""
    folders = [folder for bus in _BUSES for folder in _entries(root / f"sys/bus/{bus}/devices") if _has_vfio(folder)]
    users = _users(root, vm_name) if folders else {}
    devices = [_device(folder, users) for folder in folders]
    numbers = sorted({device.group for device in devices if device.group}, key=lambda number: (len(number), number))
    groups = root / "sys/kernel/iommu_groups"
    return VfioHost(
        iommu=bool(_entries(groups)),
        kernel=look_at_kernel(root),
        devices=devices,
        groups=[IommuGroup(number, _members(groups / number)) for number in numbers],
    )


def _has_vfio(folder: Path) -> bool:
    """Drivers of vendors have names of their own, but the kernel gives each of their devices a folder (Linux 6.1 and later)."""
    return (folder / "vfio-dev").is_dir() or "vfio" in (_linked(folder, "driver") or "")


def _device(folder: Path, users: dict[str, list[VfioUser]]) -> VfioDevice:
    group = _linked(folder, "iommu_group")
    names = {group or "", f"noiommu-{group}", *(entry.name for entry in _entries(folder / "vfio-dev"))}
    return VfioDevice(
        address=folder.name,
        driver=_linked(folder, "driver") or "",
        group=group,
        vendor_id=_text(folder / "vendor"),
        device_id=_text(folder / "device"),
        users=sorted({user for name in names for user in users.get(name, [])}, key=lambda user: user.pid),
    )


def _members(folder: Path) -> list[GroupMember]:
    return [GroupMember(entry.name, _linked(entry, "driver")) for entry in _entries(folder / "devices")]


def _users(root: Path, vm_name: Callable[[int], str | None]) -> dict[str, list[VfioUser]]:
    """Return group or name of a character device → the processes that have it open."""
    found: dict[str, list[VfioUser]] = defaultdict(list)
    for pid in sorted(int(entry) for entry in os.listdir(root / "proc") if entry.isdigit()):
        try:
            links = descriptors(pid, root)
        except OSError:
            continue  # ended meanwhile
        matches = [GROUP.fullmatch(link) or CDEV.fullmatch(link) for link in set(links.values())]
        names = {match[1] for match in matches if match}
        for name in names:
            found[name].append(VfioUser(pid, vm_name(pid)))
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _linked(folder: Path, name: str) -> str | None:
    try:
        return os.path.basename(os.readlink(folder / name))
    except OSError:
        return None  # no driver, or no group


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return None
