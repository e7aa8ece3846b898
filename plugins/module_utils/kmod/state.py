# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of KVM is on a host: kvm_thin and its cores, the kernel's own KVM, who uses what. PRIVATE to the collection."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kernel import Kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import KvmStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.users import User, users_by_core, users_of_kvm

THIN = "kvm_thin"
STOCK = "kvm"
VENDORS = ("kvm_amd", "kvm_intel")
_CORE = re.compile(r"([0-9a-f]{16}) vms=(\d+) enabled=\d+ default=([01])")

VmName = Callable[[int], "str | None"]


@dataclass(frozen=True)
class Core:
    """A loaded core. ``build_id`` and ``version`` are None when no build of its name is staged. ``vms``: as the kernel counts."""

    name: str
    default: bool
    vms: int
    users: list[User]
    build_id: str | None
    version: str | None

    @property
    def module(self) -> str:
        """Name of its module."""
        return f"kvm_core_{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts of it."""
        return {
            "name": self.name,
            "build_id": self.build_id,
            "version": self.version,
            "node": f"/dev/kvm-{self.name}",
            "default": self.default,
            "vms": self.vms,
            "users": [{"pid": user.pid, "vm": user.vm} for user in self.users],
            "staged": self.build_id is not None,
        }


@dataclass(frozen=True)
class ListedCore:
    """A loaded core, as kvm_thin lists it. ``vms``: as the kernel counts."""

    name: str
    vms: int
    default: bool


@dataclass(frozen=True)
class KvmState:
    """``thin_abi``: None when the kvm_thin that runs is of no staged build. ``stock``: modules of the kernel's own KVM."""

    thin_loaded: bool
    thin_version: str | None
    thin_abi: int | None
    stock: list[str]
    stock_users: list[User]
    cores: list[Core] = field(default_factory=list)

    def core(self, name: str) -> Core | None:
        """Return the loaded core ``name``."""
        return next((core for core in self.cores if core.name == name), None)

    @property
    def default(self) -> str | None:
        """Name of the core that ``/dev/kvm`` opens."""
        return next((core.name for core in self.cores if core.default), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, as ``kvm_info`` tells them."""
        return {
            "thin": {"loaded": self.thin_loaded, "abi": self.thin_abi, "version": self.thin_version},
            "stock": {
                "loaded": bool(self.stock),
                "users": [{"pid": user.pid, "vm": user.vm} for user in self.stock_users],
            },
            "cores": [core.to_dict() for core in self.cores],
        }


def listed_cores(kernel: Kernel) -> list[ListedCore]:
    """Return the loaded cores; none without kvm_thin."""
    listed = _CORE.findall(kernel.parameter(THIN, "cores"))
    return [ListedCore(name, int(vms), default == "1") for name, vms, default in listed]


def read_state(kernel: Kernel, store: KvmStore, vm_name: VmName) -> KvmState:
    """Look at the host."""
    thin_loaded = kernel.loaded(THIN)
    version = kernel.version(THIN) if thin_loaded else None
    opened = users_of_kvm(kernel.root, vm_name)
    stock = [module for module in (*VENDORS, STOCK) if kernel.loaded(module)]
    listed = listed_cores(kernel)
    default = next((core.name for core in listed if core.default), None)
    users = users_by_core(kernel.root, [core.name for core in listed], default, opened)
    return KvmState(
        thin_loaded=thin_loaded,
        thin_version=version,
        thin_abi=next(
            (build.manifest.thin_abi for build in store.list() if build.manifest.thin_build == version), None
        ),
        stock=stock,
        stock_users=[process.user for process in opened] if stock else [],
        cores=[_core(store, core, users[core.name]) for core in listed],
    )


def _core(store: KvmStore, listed: ListedCore, users: list[User]) -> Core:
    build = store.named(listed.name)
    return Core(
        name=listed.name,
        default=listed.default,
        vms=listed.vms,
        users=users,
        build_id=build.manifest.build_id if build else None,
        version=build.manifest.version if build else None,
    )
