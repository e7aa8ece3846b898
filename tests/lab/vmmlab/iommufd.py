# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel with iommufd, which Debian leaves out: it is a module, as is all of VFIO, so no kernel has to be compiled.

Debian's newest, from its backports: what QEMU asks of iommufd for a VM that goes from process to process came with Linux 6.13.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from .cache import Cache
from .chroot import run
from .debian import Candidate, PrivateApt
from .kernel import PASSTHROUGH_MODULES, Kernel, copy_modules
from .progress import LabError, Progress

SUITE = "trixie-backports"
NAME = re.compile(r"linux-binary-(7\.[0-9.]+\+deb13-amd64)")
# What the configuration would have besides. The IOMMU drivers in the kernel are compiled without: they track no dirty pages.
OPTIONS = (
    "-DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_IOMMUFD_DRIVER=1 -DCONFIG_IOMMUFD_DRIVER_CORE=1 -DCONFIG_VFIO_DEVICE_CDEV=1"
)
# Folder of the source → what is made of it, in place of the Makefile there.
KBUILD = {
    "drivers/iommu/iommufd": """\
obj-m := iommufd.o
iommufd-y := device.o eventq.o hw_pagetable.o io_pagetable.o ioas.o main.o pages.o vfio_compat.o viommu.o
iommufd-y += driver.o iova_bitmap.o span_iter.o
""",
    "drivers/vfio": """\
obj-m := vfio.o vfio_iommu_type1.o
vfio-y := vfio_main.o device_cdev.o group.o iommufd.o container.o virqfd.o
""",
    "drivers/vfio/pci": """\
obj-m := vfio-pci-core.o vfio-pci.o
vfio-pci-core-y := vfio_pci_core.o vfio_pci_intrs.o vfio_pci_rdwr.o vfio_pci_config.o vfio_pci_dmabuf.o
vfio-pci-y := vfio_pci.o vfio_pci_igd.o
""",
}
TOP = "".join(f"obj-m += {folder}/\n" for folder in KBUILD)
PARTS = [
    *("drivers/iommu/iommu-priv.h", "drivers/iommu/iommu-pages.h", "drivers/iommu/iommufd", "drivers/vfio"),
    "lib/interval_tree.c",
]
SPAN_OPTION = "#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER\n"


def get_iommufd_kernel(cache: Cache, build_root: Path, progress: Progress) -> Kernel:
    """The kernel with iommufd and VFIO that knows of it, from the cache or made into it. As root.

    ``build_root`` is a root of Debian 13 that modules can be built in. It is not changed.
    """
    modules = PASSTHROUGH_MODULES.split()
    material = {"format": 2, "name": NAME.pattern, "modules": modules, "options": OPTIONS, "kbuild": KBUILD}

    def build(folder: Path) -> None:
        progress.say("fetching Debian's backported kernel, and building iommufd and VFIO for it")
        packages = _Packages(folder / "apt", progress)
        _unpack_kernel(packages, folder, modules)
        root = folder / "root"
        # Links, not copies: nobody writes to a file of a build root.
        run(["cp", "--archive", "--link", str(build_root), str(root)], "the build root cannot be copied")
        packages.unpack(f"linux-headers-{packages.release}", root)
        packages.unpack(f"linux-headers-{packages.common}-common", root)
        packages.unpack(f"linux-kbuild-{packages.common}", root)
        packages.unpack(f"linux-source-{packages.series}", root)
        _put_in_place(_build(root, packages), folder / "lib/modules" / packages.release / "kernel")
        facts = {"release": packages.release, **vars(packages.kernel)}
        (folder / "kernel.json").write_text(json.dumps(facts, indent=1) + "\n")
        for leftover in ("apt", "root"):
            shutil.rmtree(folder / leftover)

    folder = cache.entry("kernel-iommufd", material, build)
    facts = json.loads((folder / "kernel.json").read_text())
    return Kernel(folder, facts["release"], facts["package"], facts["version"], facts["sha256"])


class _Packages:
    """The packages of one version of the kernel, the newest that can be had; ``folder`` is for apt and what it fetches."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        self._apt = PrivateApt(folder, SUITE)
        self._apt.update()
        self.kernel, self._image = self._apt.fetch_first(self._apt.candidates(NAME), folder, progress)
        found = NAME.fullmatch(self.kernel.package)
        assert found
        self.release = found[1]
        self.common = self.release.removesuffix("-amd64")
        self.series = ".".join(self.release.split(".")[:2])

    def unpack_image(self, target: Path) -> None:
        _unpack(self._image, target)

    def unpack(self, name: str, target: Path) -> None:
        """Fetch the package ``name`` of the kernel's version, and unpack it. Raises LabError."""
        known = self._apt.candidates(re.compile(re.escape(name)))
        same: list[Candidate] = [candidate for candidate in known if candidate.version == self.kernel.version]
        _, package = self._apt.fetch_first(same, self._folder, self._progress)
        _unpack(package, target)


def _unpack(package: Path, target: Path) -> None:
    run(["dpkg-deb", "-x", str(package), str(target)], f"{package.name} cannot be unpacked")
    package.unlink()


def _unpack_kernel(packages: _Packages, folder: Path, modules: list[str]) -> None:
    unpacked = folder / "apt" / "unpacked"
    packages.unpack_image(unpacked)
    packages.unpack(f"linux-base-{packages.release}", unpacked)
    packages.unpack(f"linux-modules-{packages.release}", unpacked)
    tree = unpacked / "usr/lib/modules" / packages.release
    shutil.copy(tree / "vmlinuz", folder / "vmlinuz")
    copy_modules(tree, folder / "lib/modules" / packages.release, modules)


def _build(root: Path, packages: _Packages) -> list[Path]:
    """Compile in ``root``, and return the modules with their paths as the kernel has them below it."""
    source = f"linux-source-{packages.series}"
    tarball = root / "usr/src" / f"{source}.tar.xz"
    tree = root / "var/tmp/iommufd"
    tree.mkdir()
    wanted = [f"{source}/{part}" for part in PARTS]
    run(["tar", "-C", str(tree), "--strip-components=1", "-xf", str(tarball), *wanted], f"{tarball} has no VFIO")
    (tree / "Kbuild").write_text(TOP)
    for folder, rules in KBUILD.items():
        (tree / folder / "Kbuild").write_text(rules)
    (tree / "drivers/iommu/iommufd/span_iter.c").write_text(span_iterator((tree / "lib/interval_tree.c").read_text()))
    headers, inside = f"/usr/src/linux-headers-{packages.release}", f"/{tree.relative_to(root)}"
    make = ["make", "--silent", "-j2", "-C", headers, f"M={inside}", f"KCFLAGS={OPTIONS}", "modules"]
    # objtool looks into /proc, which is taken along for this command only
    script = 'mount --bind /proc "$0/proc" && exec chroot "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, str(root), *make]
    run(command, "iommufd and VFIO do not compile")
    modules = sorted(tree.glob("drivers/**/*.ko"))
    run(["strip", "--strip-debug", *map(str, modules)], "modules are not stripped")
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
