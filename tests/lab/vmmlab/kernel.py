# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels of the lab: Debian's image and those modules that hosts or guests can use."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache
from .debian import PrivateApt
from .generation import DEFAULT, Generation
from .progress import LabError, Progress

# Full flavour for hosts (kvm-amd with ccp, AMD IOMMU, all the devices an emulated machine can have).
HOST_MODULES = """
    kvm_amd kvm_intel ccp tun tap vhost_net vhost_vsock bridge veth dummy vfio_pci vfio_iommu_type1
    virtio_blk virtio_net virtio_rng virtio_console virtio_balloon virtio_scsi virtiofs ext4 loop overlay squashfs vfat
    nls_cp437 nls_ascii nvme e1000e igb af_packet inet_diag tcp_diag unix_diag netlink_diag autofs4 configfs dm_mod
    crc32c_generic crc32c_intel nf_tables nft_chain_nat nf_conntrack fuse msr cpuid rtc_cmos button
"""
GUEST_MODULES = "virtio_blk virtio_net nvme"
# Both the host and the guest of the passthrough tests run on it: drivers of all devices that are passed through.
PASSTHROUGH_MODULES = """
    kvm_amd kvm_intel ccp vfio_pci vfio_iommu_type1 iommufd virtio_pci virtio_net virtio_blk ext4 crc32c_generic
    nvme e1000e igb igbvf xhci_pci usb_storage uas sd_mod af_packet msr
"""
# Role → flavour of Debian's kernel, and its modules that are kept.
ROLES = {
    "host": ("amd64", HOST_MODULES),
    "guest": ("cloud-amd64", GUEST_MODULES),
    "passthrough": ("amd64", PASSTHROUGH_MODULES),
}
# What the first initial root of a host needs to reach its disk, in order of loading (with what they depend on).
HOST_BOOT_MODULES = "virtio_blk crc32c_generic ext4"


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: ``folder`` holds ``vmlinuz`` and ``lib/modules/<release>/`` (modules uncompressed)."""

    folder: Path
    release: str
    package: str
    version: str
    sha256: str

    @property
    def image(self) -> Path:
        return self.folder / "vmlinuz"

    def modules(self, names: str) -> list[Path]:
        """Files of these modules and of all they depend on, dependencies first. Built-in ones are left out."""
        return ModuleTree(self.folder / "lib/modules" / self.release).closure(names.split(), strict=False)


class ModuleTree:
    """The modules below ``lib/modules/<release>``, compressed or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {_normal(path.name.split(".ko")[0]): path for path in folder.glob("kernel/**/*.ko*")}
        builtin = (folder / "modules.builtin").read_text().split()
        self._builtin = {_normal(Path(line).stem) for line in builtin}

    def closure(self, names: list[str], strict: bool) -> list[Path]:
        """Files of the modules ``names`` and their dependencies in loading order; ``strict`` refuses unknown ones."""
        order: dict[str, Path] = {}
        for name in names:
            self._visit(_normal(name), order, strict)
        return list(order.values())

    def _visit(self, name: str, order: dict[str, Path], strict: bool) -> None:
        if name in order or name in self._builtin:
            return
        path = self._files.get(name)
        if path is None:
            if strict:
                raise LabError(f"the kernel in {self.folder} has no module {name}")
            return
        for dependency in _dependencies(module_bytes(path)):
            self._visit(dependency, order, strict)
        order[name] = path


def module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _dependencies(module: bytes) -> list[str]:
    """What the module's own information section says: ``depends=`` and ``softdep=pre:``."""
    found: list[str] = []
    for hard in re.findall(rb"\0depends=([^\0]+)\0", module):
        found += hard.decode().split(",")
    for soft in re.findall(rb"\0softdep=pre: ([^\0]+)\0", module):
        found += soft.decode().split(" post:")[0].split()
    return [_normal(name) for name in found]


def _normal(name: str) -> str:
    return name.replace("-", "_")


def get_kernel(cache: Cache, role: str, progress: Progress, generation: Generation = DEFAULT) -> Kernel:
    """The kernel for ``role`` (a key of ``ROLES``) from the cache, or fetched into it."""
    series, suite = generation.series, generation.suite
    flavour, modules = ROLES[role]
    material = {"format": 3, "suite": suite, "series": series, "flavour": flavour, "modules": modules.split()}

    def build(folder: Path) -> None:
        progress.say(f"fetching Debian's {series} kernel for the {role}s ({flavour})")
        apt = PrivateApt(folder / "apt", suite)
        apt.update()
        name = re.compile(f"linux-image-{generation.release}-{re.escape(flavour)}")
        candidate, package = apt.fetch_first(apt.candidates(name), folder, progress)
        unpacked = folder / "unpacked"
        subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
        release = candidate.package.removeprefix("linux-image-")
        shutil.copy(unpacked / "boot" / f"vmlinuz-{release}", folder / "vmlinuz")
        copy_modules(unpacked / generation.modules / release, folder / "lib/modules" / release, modules.split())
        facts = {"release": release, **vars(candidate)}
        (folder / "kernel.json").write_text(json.dumps(facts, indent=1) + "\n")
        for leftover in (folder / "apt", unpacked):
            shutil.rmtree(leftover)
        package.unlink()

    folder = cache.entry(f"kernel-{role}", material, build)
    facts = json.loads((folder / "kernel.json").read_text())
    return Kernel(folder, facts["release"], facts["package"], facts["version"], facts["sha256"])


def copy_modules(source: Path, target: Path, names: list[str]) -> None:
    """Copy the modules ``names`` and their dependencies out of ``lib/modules/<release>``, uncompressed."""
    target.mkdir(parents=True)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(source / name, target / name)
    for path in ModuleTree(source).closure(names, strict=False):
        copy = target / path.relative_to(source).with_name(path.name.removesuffix(".xz"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(module_bytes(path))
