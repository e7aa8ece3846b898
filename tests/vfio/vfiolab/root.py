# SPDX-License-Identifier: GPL-3.0-or-later
"""The initial root of the emulated host: kernel modules, Python, QEMU builds, the VM's kernel and root, the driver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkout import ROOT

from kmodlab.builds import Modules
from vmmlab.artifact import BINARY
from vmmlab.cpio import CpioArchive
from vmmlab.guest import BUSYBOX, add_modules, require_static_busybox
from vmmlab.kernel import Kernel
from vmmlab.python_files import add_folder, add_libraries, add_python

HERE = Path(__file__).resolve().parent
HOST = HERE.parent / "host"
# None that would take a device before vfio-pci has it, but that of the physical functions.
MODULES = "kvm_amd vfio_pci vfio_iommu_type1 iommufd virtio_pci virtio_net af_packet msr"
LATER = "igb"
MODULE_UTILS = "py/ansible_collections/vmm/live_upgrade/plugins/module_utils"


def base_root(kernel: Kernel, programs: list[Path]) -> bytes:
    """The kernel's modules and what starts the driver, as a cpio archive."""
    require_static_busybox()
    archive = CpioArchive()
    for name in ("proc", "sys", "dev", "tmp", "run"):
        archive.folder(name)
    archive.copy("bin/busybox", BUSYBOX)
    for program in programs:
        archive.copy(f"bin/{program.name}", program)
    archive.copy("init", HOST / "init")
    add_modules(archive, kernel.modules(MODULES))
    first = set(kernel.modules(MODULES))
    for number, path in enumerate(path for path in kernel.modules(LATER) if path not in first):
        archive.copy(f"later/{number:02}-{path.name}", path)
    add_python(archive)
    add_folder(archive, MODULE_UTILS, ROOT / "plugins" / "module_utils")
    return archive.data()


def builds_root(builds: dict[str, Path], kernel: Kernel, guest: bytes) -> bytes:
    """QEMU builds, name → folder (``bin/``, ``share/qemu/``), and what their VMs boot, as a cpio archive."""
    archive = CpioArchive()
    archive.copy("guest/vmlinuz", kernel.image)
    archive.file("guest/initrd.gz", guest)
    for name, folder in builds.items():
        archive.copy(f"qemu/{name}/{BINARY}", folder / BINARY)
        add_folder(archive, f"qemu/{name}/share/qemu", folder / "share" / "qemu")
    add_libraries(archive, [folder / BINARY for folder in builds.values()])
    return archive.data()


def cores_root(modules: Modules) -> bytes:
    """kvm_thin with two cores, as a cpio archive."""
    archive = CpioArchive()
    for name, data in modules.files.items():
        archive.file(f"cores/{name}.ko", data)
    archive.file("cores/names.json", json.dumps(modules.names).encode())
    return archive.data()


def driver_root(plan: dict[str, Any]) -> bytes:
    """The driver, and what it is to do, as a cpio archive."""
    archive = CpioArchive()
    add_folder(archive, "py/host", HOST)
    archive.copy("py/vfiolab/__init__.py", HERE / "__init__.py")
    for name in ("devices", "cases"):
        archive.copy(f"py/vfiolab/{name}.py", HERE / f"{name}.py")
    archive.file("plan.json", json.dumps(plan).encode())
    return archive.data()
