# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which KVM a VM runs on: the node that its QEMU opened, and the core behind it. PRIVATE to the collection."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.fitness import refusals
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kernel import Kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import KmodManifest, name_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.state import listed_cores, read_state
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import KvmStore

_NODE = re.compile(r"kvm-([0-9a-f]{16})")
_DEBUGFS = "sys/kernel/debug"


@dataclass(frozen=True)
class KvmPlace:
    """``device`` is the node; ``core`` the name of the core behind it, null for stock KVM or where it cannot be told.

    ``build_id``: that of the core, null also when its build is not staged on this host.
    """

    device: str
    core: str | None = None
    build_id: str | None = None


@dataclass(frozen=True)
class KvmMove:
    """Where a VM is and where its upgrade leaves it; null for a VM without KVM.

    ``node``: the one that the new process is told to open; null leaves its options as they are. ``to_come``: the core is not
    loaded yet, and is to be before the VM is moved, so that nothing can be asked through its node.
    """

    before: KvmPlace | None = None
    after: KvmPlace | None = None
    node: str | None = None
    to_come: bool = False

    @property
    def build_id_before(self) -> str | None:
        """The KVM build that the VM is on; None for stock KVM and where it is not known."""
        return self.before.build_id if self.before else None

    @property
    def build_id_after(self) -> str | None:
        """The KVM build that it will be on."""
        return self.after.build_id if self.after else None

    def to_dict(self) -> dict[str, dict[str, str | None] | None]:
        """Return what the journal keeps."""
        return {
            "kvm_before": dataclasses.asdict(self.before) if self.before else None,
            "kvm_after": dataclasses.asdict(self.after) if self.after else None,
        }


class KvmHost:
    """The cores of this host: those that are loaded, and the builds that are staged for its kernel."""

    def __init__(self, state_dir: Path, root: Path = Path("/")) -> None:
        """``root`` is what nodes and /sys are below: another one in tests only."""
        self._root = root
        self._kernel = Kernel(root)
        self._store = KvmStore(state_dir, self._kernel.release)
        self._defaults = {core.name: core.default for core in listed_cores(self._kernel)}

    @property
    def loaded(self) -> list[str]:
        """Names of the loaded cores."""
        return list(self._defaults)

    @property
    def default(self) -> str | None:
        """The core that /dev/kvm opens now; None where stock KVM serves it."""
        return next((name for name, default in self._defaults.items() if default), None)

    def node_of(self, build_id: str) -> str:
        """Return the node of a build's core."""
        return str(self._root / "dev" / f"kvm-{name_of(build_id)}")

    def staged(self, build_id: str) -> KmodManifest:
        """Return the manifest of a build staged for the kernel that runs. Raises ``LiveUpgradeError`` when it is not."""
        return self._store.get(build_id).manifest

    def unfit(self, build_id: str) -> list[str]:
        """Return why a staged build could not be loaded, in words. Raises ``LiveUpgradeError`` when it is not staged."""
        return refusals(self.staged(build_id), self._kernel, read_state(self._kernel, self._store, lambda _pid: None))

    def place_of(self, pid: int, device: str) -> KvmPlace:
        """Tell where the VM of process ``pid`` is, which has ``device`` open.

        What /dev/kvm is may have changed since it was opened: each core tells of its VMs in debugfs, and where that is not
        mounted, a core that is the only one is it.
        """
        match = _NODE.fullmatch(os.path.basename(device))
        if match:
            return self._place(device, match[1])
        found = [name for name in self.loaded if any((self._root / _DEBUGFS / f"kvm-{name}").glob(f"{pid}-*"))]
        if len(found) != 1 and len(self.loaded) == 1:
            found = self.loaded
        return self._place(device, found[0] if len(found) == 1 else None)

    def move(self, before: KvmPlace | None, build_id: str | None, load_later: bool = False) -> KvmMove:
        """Return the move of a VM to ``build_id``; None leaves it on its node.

        ``load_later``: its core may be one that is yet to be loaded, beside those that are.
        """
        if before is None:
            return KvmMove()
        if build_id is not None:
            node, core = self.node_of(build_id), name_of(build_id)
            to_come = load_later and bool(self.loaded) and core not in self.loaded
            return KvmMove(before, KvmPlace(node, core, build_id), node, to_come)
        if _NODE.fullmatch(os.path.basename(before.device)):
            return KvmMove(before, before)
        return KvmMove(before, self._place(before.device, self.default))

    def _place(self, device: str, core: str | None) -> KvmPlace:
        return KvmPlace(device, core, self._build_of(core) if core else None)

    def _build_of(self, core: str) -> str | None:
        """A core knows its name only; the version that makes a build id of it is known from the store."""
        build = self._store.named(core)
        return build.manifest.build_id if build else None
