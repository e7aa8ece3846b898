# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory that looks as /sys and /proc of a host with VFIO devices do."""

from __future__ import annotations

from pathlib import Path

_CAP_IPC_LOCK = 1 << 14


class VfioWorld:
    """``root`` stands for ``/``. Nodes of ``/dev`` are plain files: a kernel that knows no question."""

    def __init__(self, root: Path) -> None:
        """No IOMMU, no device, no process."""
        self.root = root
        (root / "proc").mkdir(parents=True)
        (root / "dev").mkdir()

    def add_device(self, address: str, driver: str | None, group: str | None, cdev: str | None = None) -> None:
        """Add a PCI device. With ``cdev`` the kernel is one that gives VFIO devices a folder."""
        folder = self.root / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "vendor").write_text("0x8086\n")
        (folder / "device").write_text("0x10c9\n")
        if driver:
            (folder / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
        self._join(folder, group)
        if cdev:
            (folder / "vfio-dev" / cdev).mkdir(parents=True)

    def add_mediated(self, uuid: str, group: str) -> None:
        """Add a mediated device, which has no ids."""
        folder = self.root / "sys/bus/mdev/devices" / uuid
        folder.mkdir(parents=True)
        (folder / "driver").symlink_to("../../../../bus/mdev/drivers/vfio_mdev")
        self._join(folder, group)

    def add_process(
        self,
        pid: int,
        *links: str,
        uid: int = 0,
        locked_kib: int = 0,
        pinned_kib: int = 0,
        limit: str = "unlimited",
        bounding: int = _CAP_IPC_LOCK,
        ambient: int = 0,
    ) -> None:
        """Add a process that has ``links`` open. ``limit``: that of locked memory in bytes."""
        folder = self.root / "proc" / str(pid)
        (folder / "fd").mkdir(parents=True)
        for number, link in enumerate(links):
            (folder / "fd" / str(number)).symlink_to(link)
        (folder / "status").write_text(
            f"Name:\tqemu\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nVmLck:\t{locked_kib:8} kB\nVmPin:\t{pinned_kib:8} kB\n"
            f"CapBnd:\t{bounding:016x}\nCapAmb:\t{ambient:016x}\n"
        )
        (folder / "limits").write_text(
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            f"Max locked memory         {limit:<20} unlimited            bytes     \n"
        )

    def add_kernel_thread(self, pid: int) -> None:
        """Add a process without memory, descriptors or a limit that would matter."""
        folder = self.root / "proc" / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "status").write_text("Name:\tkthreadd\nUid:\t0\t0\t0\t0\n")

    def add_node(self, node: str, module: str = "") -> None:
        """Add a node of ``/dev`` whose device is there, and the module behind it."""
        (self.root / "sys/class/misc" / Path(node).name).mkdir(parents=True)
        path = self.root / "dev" / node
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        if module:
            (self.root / "sys/module" / module).mkdir(parents=True)

    def _join(self, folder: Path, group: str | None) -> None:
        if group is None:
            return
        members = self.root / "sys/kernel/iommu_groups" / group / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (folder / "iommu_group").symlink_to(f"../../../../kernel/iommu_groups/{group}")
        (members / folder.name).symlink_to(folder)
