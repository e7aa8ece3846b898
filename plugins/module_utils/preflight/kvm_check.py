# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can the VM's new process open the KVM that it is to run on, and does that offer all that the present one does?

PRIVATE to the collection.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ansible_collections.vmm.live_upgrade.plugins.module_utils import syscalls
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import name_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.as_vm import errors_of_opening
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.kvm_offer import KvmOffer, what_is_lost
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.kvm_place import KvmHost, KvmMove
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import descriptors, kvm_descriptor

_SHOWN = 10


def check_node(verdict: Verdict, vm: Vm, move: KvmMove) -> None:
    """Refuse ``vm`` when its new process could not open its node: it is tried, by a process like that.

    Forks: to be called while the process has one thread.
    """
    if move.after is None or move.to_come:
        return
    node = move.after.device
    try:
        if not stat.S_ISCHR(os.stat(f"/proc/{vm.pid}/root{node}").st_mode):
            verdict.refuse("kvm-node-missing", f"{node} is no device node")
            return
    except OSError as exc:
        verdict.refuse("kvm-node-missing", f"{node}, as the VM's process sees it: {exc.strerror}")
        return
    try:
        errors = errors_of_opening(vm, [(node, os.O_RDWR)], in_its_groups=True)
    except LiveUpgradeError as exc:
        verdict.warn("facts-missing", str(exc))
        return
    for _node, error in errors:
        verdict.refuse(*_not_opened(node, vm, error))


def check_kvm(verdict: Verdict, vm: Vm, move: KvmMove, host: KvmHost, build_id: str | None) -> None:
    """Refuse ``vm`` when the KVM that it would come to is not there, or offers less than the one that it runs on.

    One that is to come is looked at as far as that goes, and the rest is told.
    """
    if build_id is not None:
        if move.before is None:
            verdict.refuse("kvm-not-used", f"the VM runs on {vm.accelerator or 'an unknown accelerator'}, not on KVM")
            return
        try:
            host.staged(build_id)
        except LiveUpgradeError as exc:
            verdict.refuse("kvm-build-unknown", str(exc))
        if move.to_come:
            _check_to_come(verdict, host, build_id)
            return
        if name_of(build_id) not in host.loaded:
            loaded = (
                f"loaded are: {', '.join(host.loaded)}" if host.loaded else "kvm_thin has no core, or is not loaded"
            )
            verdict.refuse("kvm-core-not-loaded", f"the core of {build_id} is not loaded; {loaded}")
    if move.before is None or move.after is None:
        return
    if host.loaded and move.before.core is None:
        verdict.warn(
            "kvm-core-unknown", f"it cannot be told which core the VM runs on, that opened {move.before.device}"
        )
    if build_id is None and move.before.core not in (None, move.after.core):
        verdict.warn(
            "kvm-default-changed",
            f"the VM opened {move.before.device} when that was core {move.before.core}; its new process will be on "
            f"{move.after.core}",
        )
    if (move.before.device, move.before.core) != (move.after.device, move.after.core) or (
        host.loaded and move.before.core is None
    ):
        _compare(verdict, vm, move.after.device)


def _check_to_come(verdict: Verdict, host: KvmHost, build_id: str) -> None:
    """Nobody loads a core to look at it: it might be in the way of nothing, but a plan touches nothing."""
    try:
        unfit = host.unfit(build_id)
    except LiveUpgradeError:
        return  # it is not staged, and refused for that
    if unfit:
        verdict.refuse("kvm-core-unfit", f"the core of {build_id} is not loaded, and cannot be: {'; '.join(unfit)}")
    else:
        verdict.warn(
            "kvm-not-compared",
            f"the core of {build_id} is not loaded, so what it offers was not compared with what the VM has; that is done "
            "once it is loaded, before the VM is paused, and refuses the VM where it offers less",
        )


def _not_opened(node: str, vm: Vm, error: OSError) -> tuple[str, str]:
    if error.errno == errno.EPERM:  # what a device policy answers; the mode of a file gives EACCES
        group = f"{vm.cgroup or 'of the VM'} ({vm.unit or 'no unit'})"
        return "kvm-node-denied", f"the control group {group} does not allow {node}"
    if error.errno == errno.EACCES:
        return "kvm-node-forbidden", f"user {vm.uid} may not open {node}"
    return "kvm-node-missing", f"{node} cannot be opened: {error.strerror}"


def _compare(verdict: Verdict, vm: Vm, node: str) -> None:
    try:
        with _present_kvm(vm) as present:
            old = KvmOffer.read(present)
    except (OSError, LiveUpgradeError) as exc:
        verdict.refuse("kvm-not-comparable", f"the KVM that the VM runs on does not tell what it offers: {exc}")
        return
    try:
        fd = os.open(f"/proc/{vm.pid}/root{node}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # it is refused for that already
    try:
        new = KvmOffer.read(fd)
    except OSError as exc:
        verdict.refuse("kvm-not-comparable", f"{node} does not tell what it offers: {exc.strerror}")
        return
    finally:
        os.close(fd)
    lost = what_is_lost(old, new)
    if lost:
        more = f"; and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        verdict.refuse("kvm-offers-less", f"{node} lacks what the VM's KVM offers: {'; '.join(lost[:_SHOWN])}{more}")


@contextmanager
def _present_kvm(vm: Vm) -> Iterator[int]:
    """Hold a duplicate of the descriptor that QEMU itself opened: it leads to its core, whatever /dev/kvm is by now."""
    held = kvm_descriptor(vm.pid, descriptors(vm.pid))
    if held is None:
        raise LiveUpgradeError(f"process {vm.pid} has no node of KVM open that can be recognized")
    pidfd = os.pidfd_open(vm.pid)
    try:
        fd = syscalls.pidfd_getfd(pidfd, held[0])
    finally:
        os.close(pidfd)
    try:
        yield fd
    finally:
        os.close(fd)
