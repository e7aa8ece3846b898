# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's kernel with iommufd, which Debian leaves out: it is a module, as is all of VFIO, so no kernel has to be compiled."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from .cache import Cache
from .chroot import run, run_in
from .kernel import Kernel
from .progress import LabError, Progress

# What Debian's configuration would have besides. The IOMMU drivers in the kernel are compiled without: they track no dirty pages.
OPTIONS = "-DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_IOMMUFD_DRIVER=1 -DCONFIG_VFIO_DEVICE_CDEV=1"
# Folder of the source → what is made of it, in place of the Makefile there.
KBUILD = {
    "drivers/iommu/iommufd": """\
obj-m := iommufd.o
iommufd-y := device.o fault.o hw_pagetable.o io_pagetable.o ioas.o main.o pages.o vfio_compat.o
iommufd-y += iova_bitmap.o span_iter.o
""",
    "drivers/vfio": """\
obj-m := vfio.o vfio_iommu_type1.o
vfio-y := vfio_main.o device_cdev.o group.o iommufd.o container.o virqfd.o
""",
    "drivers/vfio/pci": """\
obj-m := vfio-pci-core.o vfio-pci.o
vfio-pci-core-y := vfio_pci_core.o vfio_pci_intrs.o vfio_pci_rdwr.o vfio_pci_config.o
vfio-pci-y := vfio_pci.o vfio_pci_igd.o
""",
}
TOP = "".join(f"obj-m += {folder}/\n" for folder in KBUILD)
PARTS = ["drivers/iommu/iommu-priv.h", "drivers/iommu/iommufd", "drivers/vfio", "lib/interval_tree.c"]
SPAN_OPTION = "#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER\n"


def get_iommufd_kernel(cache: Cache, debian: Kernel, root: Path, progress: Progress) -> Kernel:
    """``debian`` with iommufd, and VFIO that knows of it, from the cache or built into it. As root.

    ``root`` is the one to build modules for ``debian`` in.
    """
    material = {"format": 1, "kernel": debian.folder.name, "options": OPTIONS, "kbuild": KBUILD}

    def build(folder: Path) -> None:
        progress.say(f"building iommufd and VFIO for {debian.release}")
        shutil.copy(debian.image, folder / "vmlinuz")
        shutil.copytree(debian.folder / "lib", folder / "lib")
        with tempfile.TemporaryDirectory(prefix="iommufd-", dir=root / "var/tmp") as tree:
            built = _build(Path(tree), root, debian)
            _put_in_place(built, folder / "lib/modules" / debian.release / "kernel")

    folder = cache.entry("kernel-iommufd", material, build)
    return Kernel(folder, debian.release, debian.package, debian.version, debian.sha256)


def _build(tree: Path, root: Path, debian: Kernel) -> list[Path]:
    """Compile in the folder ``tree`` of ``root``, and return the modules with their paths as the kernel has them below it."""
    series = ".".join(debian.release.split(".")[:2])
    tarball = root / "usr/src" / f"linux-source-{series}.tar.xz"
    wanted = [f"linux-source-{series}/{part}" for part in PARTS]
    run(["tar", "-C", str(tree), "--strip-components=1", "-xf", str(tarball), *wanted], f"{tarball} has no VFIO")
    (tree / "Kbuild").write_text(TOP)
    for folder, rules in KBUILD.items():
        (tree / folder / "Kbuild").write_text(rules)
    (tree / "drivers/iommu/iommufd/span_iter.c").write_text(span_iterator((tree / "lib/interval_tree.c").read_text()))
    headers, inside = f"/usr/src/linux-headers-{debian.release}", f"/{tree.relative_to(root)}"
    command = ["make", "--silent", "-j2", "-C", headers, f"M={inside}", f"KCFLAGS={OPTIONS}", "modules"]
    run_in(root, command, "iommufd and VFIO do not compile")
    modules = sorted(tree.glob("drivers/**/*.ko"))
    run_in(
        root,
        ["strip", "--strip-debug", *(f"/{path.relative_to(root)}" for path in modules)],
        "modules are not stripped",
    )
    return modules


def span_iterator(interval_tree: str) -> str:
    """That part of the source of interval trees which is only in a kernel with iommufd."""
    _, found, part = interval_tree.partition(SPAN_OPTION)
    if not found:
        raise LabError(f"lib/interval_tree.c of the kernel has no {SPAN_OPTION.strip()}")
    return "#include <linux/interval_tree.h>\n#include <linux/export.h>\n" + part.rpartition("#endif")[0]


def _put_in_place(modules: list[Path], target: Path) -> None:
    for module in modules:
        place = target / "drivers" / str(module).rpartition("/drivers/")[2]
        if module.name != "iommufd.ko" and not place.exists():
            raise LabError(f"Debian's kernel has no {place}: what is built here would be a second one")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, place)
