# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have a KVM core there, as the default, or gone: what has to be done, and doing it or nothing. PRIVATE to the collection."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.boot import BootChoice
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.changes import (
    Boot,
    Change,
    Default,
    Load,
    Node,
    Picture,
    Rule,
    Trial,
    Unload,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.fitness import check_fit
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kernel import Kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import name_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.module_file import module_information
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.nodes import Nodes
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.state import (
    STOCK,
    THIN,
    VENDORS,
    KvmState,
    VmName,
    read_state,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import KvmStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.trials import Trials

_POLL_S = 0.1


class CoreManager:
    """The cores of one host."""

    def __init__(self, kernel: Kernel, store: KvmStore, nodes: Nodes, boot: BootChoice, vm_name: VmName) -> None:
        self._kernel = kernel
        self._store = store
        self._nodes = nodes
        self._boot = boot
        self._vm_name = vm_name
        self._trials = Trials(kernel.root)

    def state(self) -> KvmState:
        """Look at the host."""
        return read_state(self._kernel, self._store, self._vm_name)

    def picture(self) -> Picture:
        """What is on the host of what is changed here."""
        state = self.state()
        thin = [THIN] if state.thin_loaded else []
        modules = (*state.stock, *thin, *(core.module for core in state.cores))
        return Picture(modules, state.default, tuple(self._boot.builds()), tuple(self._trials.names()))

    def plan_present(self, build_id: str, *, default: bool, persist: bool, trial: bool = False) -> list[Change]:
        """Return what it takes to have the staged build loaded. Raises ``LiveUpgradeError`` when that cannot be.

        ``trial``: a core that is loaded for this is on trial. One that is there already is what it is.
        """
        build = self._store.get(build_id)
        state = self.state()
        manifest = build.manifest
        changes: list[Change] = []
        if state.core(manifest.name) is None:
            check_fit(manifest, self._kernel, state)
            build.verify()
            if trial and manifest.name not in self._trials:
                changes.append(Trial(manifest.name, begins=True))
            changes += self._plan_unload_stock(state)
            if not state.thin_loaded:
                changes.append(Load(THIN, build.thin))
            if self._nodes.rule_missing():
                changes.append(Rule())
            changes += [Load(manifest.module, build.core), Node(manifest.node)]
        elif not self._nodes.right(manifest.node):
            changes += [*([Rule()] if self._nodes.rule_missing() else []), Node(manifest.node)]
        if default and (state.default or manifest.name) != manifest.name:
            changes.append(Default(manifest.name))
        if persist:
            changes += self._plan_boot_with(build_id, default)
        return [*changes, *([] if trial else self._plan_end_of_trial(manifest.name))]

    def plan_boot(self, build_id: str, *, default: bool) -> list[Change]:
        """Return what it takes to have the staged build loaded at the next boot, not now. Raises ``LiveUpgradeError``."""
        build = self._store.get(build_id)
        check_fit(
            build.manifest, self._kernel, replace(self.state(), thin_abi=None)
        )  # the next boot loads a thin that fits
        build.verify()
        return self._plan_boot_with(build_id, default)

    def plan_absent(self, build_id: str, *, deadline_s: float, persist: bool) -> list[Change]:
        """Return what it takes to have the build not loaded, nor at boot unless ``persist``. Raises ``LiveUpgradeError``."""
        state = self.state()
        core = state.core(name_of(build_id))
        changes: list[Change] = []
        if core is not None:
            if core.default and len(state.cores) > 1:
                others = ", ".join(other.build_id or other.name for other in state.cores if other is not core)
                raise LiveUpgradeError(
                    f"{build_id} is what /dev/kvm opens, and stays: make another the default first (state=default), "
                    f"one of {others}"
                )
            changes.append(Unload(core.module, deadline_s))
            if len(state.cores) == 1:
                changes.append(Unload(THIN, deadline_s))
        changes += self._plan_end_of_trial(name_of(build_id))
        chosen = self._boot.builds()
        if build_id in chosen and not persist:
            changes.append(Boot(tuple(chosen_id for chosen_id in chosen if chosen_id != build_id)))
        return changes

    def apply(self, changes: Sequence[Change]) -> None:
        """Do it all; what fails takes back what was done before. Raises ``LiveUpgradeError``."""
        before, state = self.picture(), self.state()
        done: list[Change] = []
        try:
            for change in changes:
                self._do(change)
                done.append(change)
        except (LiveUpgradeError, OSError) as exc:
            raise LiveUpgradeError(f"{exc}. {self._take_back(done, before, state)}") from exc

    def _plan_end_of_trial(self, name: str) -> list[Change]:
        return [Trial(name, begins=False)] if name in self._trials else []

    def _plan_unload_stock(self, state: KvmState) -> list[Change]:
        """The kernel's own KVM goes when nobody uses it."""
        if self._kernel.built_in(STOCK):
            raise LiveUpgradeError(
                "KVM is built into this kernel: no core can be loaded beside it. Nothing was changed"
            )
        if not state.stock:
            return []
        holders = [str(user) for user in state.stock_users]
        strange = set(self._kernel.users(STOCK)) - set(VENDORS)
        holders += [f"module {module}" for module in sorted(strange)]
        if not holders and any(self._kernel.references(module) for module in state.stock if module in VENDORS):
            holders.append("the kernel itself (a device given to a VM, or a process that just ended)")
        if holders:
            raise LiveUpgradeError(
                f"the kernel's own KVM is in use by {', '.join(holders)}: no core can be loaded beside it. Nothing was changed. "
                "Move or end these VMs, or have the core loaded at the next boot (persist=true, load=false) and reboot"
            )
        return [Unload(module) for module in state.stock]

    def _plan_boot_with(self, build_id: str, default: bool) -> list[Change]:
        self._boot.check()
        chosen = self._boot.builds()
        staged = {build.manifest.build_id for build in self._store.list()}
        others = [other for other in chosen if other != build_id and other in staged]
        if default:
            builds = [build_id, *others]
        elif build_id in chosen:
            builds = [other for other in chosen if other in staged]
        else:
            builds = [*others, build_id]
        return [] if builds == chosen and self._boot.complete(builds) else [Boot(tuple(builds))]

    def _do(self, change: Change) -> None:
        if isinstance(change, Unload):
            self._unload(change)
        elif isinstance(change, Load):
            self._load(change.path)
        elif isinstance(change, Trial):
            (self._trials.begin if change.begins else self._trials.end)(change.name)
        elif isinstance(change, Rule):
            self._nodes.install_rule()
        elif isinstance(change, Node):
            self._nodes.wait(change.node)
        elif isinstance(change, Default):
            self._kernel.set_parameter(THIN, "cores", change.name)
        elif isinstance(change, Boot):
            self._boot.set(list(change.builds))

    def _load(self, path: Path) -> None:
        needed = module_information(path).get("depends", "")
        for module in filter(None, needed.split(",")):
            if module != THIN:
                self._kernel.probe(module)
        self._kernel.load(path)

    def _unload(self, change: Unload) -> None:
        """Unload it when nobody uses it, or raise ``LiveUpgradeError`` naming who does."""
        end_s = time.monotonic() + change.patience_s
        while True:
            if not self._kernel.references(change.module):
                try:
                    self._kernel.unload(change.module)
                    return
                except LiveUpgradeError:
                    # somebody may have come in between
                    if not self._kernel.references(change.module) or time.monotonic() >= end_s:
                        raise
            if time.monotonic() >= end_s:
                raise LiveUpgradeError(
                    f"{change.module} is still in use after {change.patience_s:g} s by {self._users_of(change.module)}, "
                    "and stays loaded: move or end these VMs, or give them more time (deadline_s)"
                )
            time.sleep(_POLL_S)

    def _users_of(self, module: str) -> str:
        state = self.state()
        core = state.core(module.rpartition("_")[2])
        users = core.users if core else state.stock_users
        return ", ".join(map(str, users)) or "the kernel itself (a device given to a VM)"

    def _take_back(self, done: list[Change], before: Picture, state: KvmState) -> str:
        """Undo what was done, last first, and return in words what came of that."""
        failed = []
        for change in reversed(done):
            try:
                self._undo(change, before, state)
            except (LiveUpgradeError, OSError) as exc:
                failed.append(f"{change}: {exc}")
        if failed:
            return f"What was done before could not all be taken back: {'; '.join(failed)}"
        return "KVM is as it was before"

    def _undo(self, change: Change, before: Picture, state: KvmState) -> None:
        if isinstance(change, Load):
            self._kernel.unload(change.module)
        elif isinstance(change, Trial):
            (self._trials.end if change.begins else self._trials.begin)(change.name)
        elif isinstance(change, Unload) and change.module in (STOCK, *VENDORS):
            self._kernel.probe(change.module)
        elif isinstance(change, Unload):
            self._load(self._staged_file(change.module, state))
        elif isinstance(change, Default) and before.default is not None:
            self._kernel.set_parameter(THIN, "cores", before.default)
        elif isinstance(change, Boot):
            self._boot.set(list(before.boot))

    def _staged_file(self, module: str, state: KvmState) -> Path:
        """The file that a module which was loaded in ``state`` came from."""
        for build in self._store.list():
            if module == build.manifest.module:
                return build.core
            if module == THIN and build.manifest.thin_build == state.thin_version:
                return build.thin
        raise LiveUpgradeError(f"{module} is of no staged build")
