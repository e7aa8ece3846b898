# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of the passthrough tests, and the VM's initial root."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kbuild import Kbuild
from vmmlab.cpio import CpioArchive
from vmmlab.guest import SOURCES as LAB_SOURCES
from vmmlab.guest import initial_root
from vmmlab.kernel import Kernel
from vmmlab.progress import LabError

SOURCES = Path(__file__).resolve().parent.parent / "guest"
CFLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", f"-I{LAB_SOURCES}"]
PROGRAMS = {"vfioload": ("vfioload.c", "disk.c", "net.c", "kernel_log.c"), "gapwatch": ("gapwatch.c",)}
DRIVERS = "nvme e1000e igb igbvf xhci_pci usb_storage sd_mod virtio_pci virtio_net"


def guest_root(kernel: Kernel, build_root: Path, scratch: Path) -> bytes:
    """Return the initial root of the VM, packed. ``build_root``: a root with the headers of ``kernel`` to build a module in."""
    archive = CpioArchive()
    archive.file("edu_load.ko", _edu_module(kernel, build_root))
    program = compile_program("vfioload", scratch)
    return gzip.compress(initial_root(program, SOURCES / "init", kernel, DRIVERS) + archive.data(), 1, mtime=0)


def compile_program(name: str, folder: Path) -> Path:
    """Compile one of ``PROGRAMS`` into ``folder``. Raises LabError."""
    target = folder / name
    command = ["gcc", *CFLAGS, "-o", str(target), *(str(SOURCES / source) for source in PROGRAMS[name])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{name} does not compile (packages gcc and libc6-dev?):\n{done.stderr}")
    return target


def _edu_module(kernel: Kernel, build_root: Path) -> bytes:
    kbuild = Kbuild(build_root, kernel.release)
    kbuild.check()
    with tempfile.TemporaryDirectory(dir=build_root / "var" / "tmp", prefix="edu-") as folder:
        for name in ("edu_load.c", "status.h", "Kbuild"):
            shutil.copy(SOURCES / name, folder)
        kbuild.modules(Path(folder), jobs=1)
        return (Path(folder) / "edu_load.ko").read_bytes()
