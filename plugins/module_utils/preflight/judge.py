# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on every VM of a host: may it be moved to a staged build, and would it come back?

Reads only. One VM's trouble is a refusal of that VM; only a build that is unknown, damaged or does not run, and names of
VMs that do not run here, are errors of the whole. PRIVATE to the collection.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore, StagedBuild
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import name_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.build_check import Build
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.host_check import Host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.kvm_check import check_kvm, check_node
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import (
    Finding,
    PreflightRequest,
    Verdict,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.process_check import (
    OpenImages,
    check_images,
    check_twin,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.throttle_check import check_throttles
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.vfio_check import check_vfio
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.vmstate_check import check_vmstate
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import monitor
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import Option, parse
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.discovery import discover, select
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.kvm_place import KvmHost, KvmMove
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.mechanisms import (
    Obstacle,
    command_obstacles,
    common_obstacles,
    has_vfio,
    vfio_transfer_obstacles,
    vfork_obstacles,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.recreate import plan_command

_MAX_THREADS = 8


@dataclass(frozen=True)
class Judged:
    """A VM, the verdict on it, and which KVM its upgrade takes it from and to."""

    vm: Vm
    verdict: Verdict
    kvm: KvmMove


@dataclass(frozen=True)
class _Court:
    """What is the same for all VMs of the host."""

    request: PreflightRequest
    store: BuildStore
    build: Build
    host: Host
    kvm: KvmHost
    names: Counter[str]


def judge_host(request: PreflightRequest) -> list[Judged]:
    """Return the verdict on each chosen VM, by name.

    Raises ``LiveUpgradeError``: the build is not staged, damaged or does not run here, a chosen VM does not run here, or
    ``kvm_build_id`` is none.
    """
    if request.kvm_build_id is not None:
        name_of(request.kvm_build_id)
    store = BuildStore(Path(request.state_dir))
    staged = store.get(request.build_id)
    running = discover()
    chosen = select(running, request.vms)
    kvm = KvmHost(Path(request.state_dir), Path(request.kvm_root))
    judged = [_open(vm, request, kvm) for vm in chosen]
    rest = [item for item in judged if item.verdict.verdict != "already"]
    if rest:
        names = Counter(vm.name for vm in running)
        court = _Court(request, store, Build(staged), Host.look(request.state_dir), kvm, names)
        _begin(rest)
        with ThreadPoolExecutor(max_workers=min(_MAX_THREADS, len(rest))) as pool:
            for _done in pool.map(lambda item: _judge(item, court), rest):
                pass  # which raises what a judge raised
    return sorted(judged, key=lambda item: (item.vm.name, item.vm.pid))


def _open(vm: Vm, request: PreflightRequest, kvm: KvmHost) -> Judged:
    """Begin the verdict: ``already`` for a VM that is where it was asked to be, with its QEMU and with its KVM."""
    before = kvm.place_of(vm.pid, vm.kvm_device) if vm.kvm_device else None
    move = kvm.move(before, request.kvm_build_id, request.kvm_load_later)
    verdict = Verdict(
        name=vm.name,
        pid=vm.pid,
        old_build_id=vm.build_id,
        new_build_id=request.build_id,
        kvm_build_id_before=move.build_id_before,
        kvm_build_id=move.build_id_after,
    )
    asked = request.kvm_build_id
    is_there = asked is None or (before is not None and before.core == name_of(asked))
    if vm.build_id == request.build_id and is_there:
        verdict.verdict = "already"
        verdict.kvm_build_id = move.build_id_before
        verdict.mechanism_reason = "the VM runs this build already" + (" on this KVM" if asked else "")
    return Judged(vm, verdict, move)


def _begin(judged: list[Judged]) -> None:
    """Look at what has to be looked at by a process of one thread."""
    images = OpenImages()
    for item in judged:
        _guarded(item.verdict, check_images, item.vm, images)
        _guarded(item.verdict, check_node, item.vm, item.kvm)


def _judge(item: Judged, court: _Court) -> None:
    _guarded(item.verdict, _check_all, item, court)
    item.verdict.close()


def _choose_mechanism(verdict: Verdict, vm: Vm, options: list[Option], court: _Court) -> str:
    """Choose the mechanism, say why, and refuse the VM when the one that was asked for is not possible."""
    obstacles = vfork_obstacles(vm, options)
    if "cpr-vfork" not in court.build.staged.manifest.capabilities:
        obstacles.append(Obstacle("vfork-unavailable", "the new build has no mode cpr-vfork"))
    elif has_vfio(vm) and not court.build.hands_over_devices:
        message = "the mode cpr-vfork of the new build is too old to take VFIO devices over"
        obstacles.append(Obstacle("vfork-unavailable", message))
    wanted = court.request.mechanism
    if wanted == "vfork":
        for obstacle in obstacles:
            verdict.refuse(obstacle.code, obstacle.message)
    if wanted == "vfork" or (wanted == "auto" and not obstacles):
        verdict.mechanism = "vfork"
        verdict.mechanism_reason = "both builds have the mode cpr-vfork, whose old QEMU takes the guest back by itself"
    else:
        why = "; ".join(obstacle.message for obstacle in obstacles) if wanted == "auto" else "it was asked for"
        verdict.mechanism = "cpr-transfer"
        verdict.mechanism_reason = f"both builds are 10.2 or newer; not vfork: {why}" if wanted == "auto" else why
        for obstacle in vfio_transfer_obstacles(vm):
            if court.request.accept_vfio_risk:
                verdict.warn(obstacle.code, f"{obstacle.message}; this was accepted")
            else:
                verdict.refuse(obstacle.code, obstacle.message)
    return verdict.mechanism


def _guarded(verdict: Verdict, check: Callable[..., None], *arguments: object) -> None:
    """A defect, or a VM that ends while it is looked at, costs this VM its upgrade and not the others their verdict."""
    try:
        check(verdict, *arguments)
    except Exception as exc:
        where = traceback.extract_tb(exc.__traceback__)[-1]
        verdict.refuse("check-failed", f"{type(exc).__name__} at {Path(where.filename).name}:{where.lineno}: {exc}")


def _check_all(verdict: Verdict, item: Judged, court: _Court) -> None:
    vm = item.vm
    try:
        options = parse(vm.argv)
    except (LiveUpgradeError, ValueError) as exc:
        verdict.refuse("command-line-unreadable", str(exc))
        return
    for obstacle in common_obstacles(vm):
        verdict.refuse(obstacle.code, obstacle.message)
    if court.names[vm.name] > 1:
        verdict.refuse("name-ambiguous", f"{court.names[vm.name]} processes bear the name {vm.name}")
    court.build.check(verdict, vm, options)
    court.host.check(verdict, court.request, vm)
    check_twin(verdict, vm)
    check_kvm(verdict, vm, item.kvm, court.kvm, court.request.kvm_build_id)
    mechanism = _choose_mechanism(verdict, vm, options, court)
    check_vfio(verdict, vm, options)
    if not _check_with_monitor(verdict, item, mechanism, court):
        for obstacle in command_obstacles(vm, options):
            verdict.refuse(obstacle.code, obstacle.message)
    _add_notes(verdict, vm, court)


def _check_with_monitor(verdict: Verdict, item: Judged, mechanism: str, court: _Court) -> bool:
    """What takes a conversation with the VM; return whether there was one. Without it the VM is refused already."""
    vm = item.vm
    path = next((endpoint.path for endpoint in vm.qmp_endpoints if endpoint.state == "ok"), None)
    if path is None or vm.status is None:
        return False
    staged = court.build.staged
    try:
        with monitor.connect(vm.pid, path) as qmp:
            if vm.machine_type in staged.manifest.machine_types:
                types = monitor.device_types(qmp)
                check_vmstate(verdict, court.request, vm, court.store, staged, types)
            check_throttles(verdict, vm, qmp)
            _check_command(verdict, item, qmp, staged, mechanism)
    except QmpError as exc:
        verdict.refuse("qmp-silent", str(exc).replace(f"/proc/{vm.pid}/root", ""))
        return False
    return True


def _check_command(verdict: Verdict, item: Judged, qmp: QmpClient, staged: StagedBuild, mechanism: str) -> None:
    try:
        plan = plan_command(item.vm, qmp, staged.path, mechanism, item.kvm.node)
    except QmpError:
        raise
    except LiveUpgradeError as exc:
        verdict.refuse("command-not-recreatable", str(exc))
        return
    for problem in plan.problems:
        verdict.add_refusal(Finding(problem.code, problem.message, problem.action))


def _add_notes(verdict: Verdict, vm: Vm, court: _Court) -> None:
    if vm.build_id is None or all(staged.manifest.build_id != vm.build_id for staged in court.store.list()):
        what = (
            f"build {vm.build_id}"
            if vm.build_id
            else f"a QEMU that was not built here ({vm.version or 'version unknown'})"
        )
        verdict.warn("old-build-not-staged", f"the VM runs {what}, which is not staged: it cannot be rolled back to it")
    if vm.exe_deleted:
        verdict.warn("binary-deleted", f"the VM runs {vm.exe}, which was deleted or replaced")
    if vm.hotplugged:
        names = ", ".join(f"{item.kind} {item.id}" for item in vm.hotplugged)
        verdict.warn("hot-plugged", f"added since the start: {names}")
    for problem in vm.problems:
        verdict.warn("facts-missing", problem)
