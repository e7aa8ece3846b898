# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The strongest question of preflight: the running QEMU lets the new one load this very VM, and takes the guest back.

It goes the way of the upgrade up to where the new process would take the guest: the same command, descriptors and limits,
under the same lock. PRIVATE to the collection.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.judge import Judged, judge_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import (
    PreflightRequest,
    Rehearsal,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_vfork import CprVfork, Rehearsed
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import (
    GuestLost,
    GuestStranded,
    Limits,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.host_lock import HostBusyError, HostLock
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.recovery import unfinished_transactions
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.source import (
    fetched_descriptors,
    monitor_of,
    opened_source,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.tap import TapState


def rehearse_host(request: PreflightRequest, limits_of: Callable[[str], Limits]) -> list[Judged]:
    """Judge the VMs of this host, and rehearse one by one those that would be moved by ``vfork``.

    ``limits_of(name)`` are those that the VM's upgrade would have. Raises ``LiveUpgradeError`` as ``judge_host``, and when
    an upgrade or another rehearsal is at work on this host.
    """
    build_dir = BuildStore(Path(request.state_dir)).get(request.build_id).path
    lock = HostLock(Path(request.state_dir))
    try:
        _take(lock, Path(request.state_dir))
        judged = judge_host(request)
        for item in judged:
            _rehearse(item, build_dir, limits_of(item.vm.name))
        return judged
    finally:
        lock.close()


def leave_out_rehearsals(judged: list[Judged], why: str) -> None:
    """Note on every verdict that a rehearsal was asked for and not done, though it could have been."""
    for item in judged:
        item.verdict.rehearsal = Rehearsal("not_done", _why_not(item) or why)
        if item.verdict.verdict == "go":
            item.verdict.warn("not-rehearsed", f"no rehearsal was done: {item.verdict.rehearsal.reason}")


def _take(lock: HostLock, state_dir: Path) -> None:
    try:
        lock.acquire({"rehearsal": True, "pid": os.getpid()})
    except HostBusyError as exc:
        raise LiveUpgradeError(f"{exc}. Nothing was rehearsed; wait for it to end") from exc
    unfinished = unfinished_transactions(state_dir / "transactions")
    if unfinished:
        raise LiveUpgradeError(
            f"host {os.uname().nodename}: the engine of transaction {unfinished[0].name} died. Nothing was rehearsed; run "
            "the upgrade again, which finishes or undoes what it left"
        )


def _why_not(item: Judged) -> str | None:
    verdict = item.verdict
    if verdict.verdict == "already":
        return verdict.mechanism_reason
    if verdict.verdict == "refuse":
        return "the VM is refused without one"
    if verdict.mechanism != "vfork":
        return f"the VM would be moved by {verdict.mechanism}; only vfork can rehearse"
    if item.kvm.to_come:
        return "its KVM core is not loaded"
    return None


def _rehearse(item: Judged, build_dir: Path, limits: Limits) -> None:
    verdict = item.verdict
    why_not = _why_not(item)
    if why_not:
        leave_out_rehearsals([item], why_not)
        return
    budget_ms = round(limits.downtime_s * 1000)
    try:
        done = _play(item, build_dir, limits)
    except (GuestLost, GuestStranded) as exc:
        verdict.rehearsal = Rehearsal("failed", str(exc), pause_budget_ms=budget_ms)
        verdict.refuse("rehearsal-unclear", f"the rehearsal went wrong: {exc}")
    except (LiveUpgradeError, OSError) as exc:
        verdict.rehearsal = Rehearsal("failed", str(exc), pause_budget_ms=budget_ms)
        verdict.refuse("rehearsal-failed", f"the rehearsal could not be done: {exc}")
    else:
        outcome = "passed" if done.passed else "failed"
        verdict.rehearsal = Rehearsal(outcome, done.reason, done.pause_ms, budget_ms, done.phases_ms)
        if not done.passed:
            verdict.refuse("rehearsal-failed", f"the new build did not load the VM in a rehearsal: {done.reason}")
    verdict.close()


def _play(item: Judged, build_dir: Path, limits: Limits) -> Rehearsed:
    vm = item.vm

    def note(_step: str, **_facts: Any) -> None:
        """There is nothing to finish or to undo: QEMU takes the guest back also when we are gone."""

    def target_monitor(pid: int) -> QmpClient:
        return monitor_of([endpoint.path for endpoint in vm.qmp_endpoints], pid)

    with opened_source(vm, build_dir, "vfork", item.kvm.node) as (source, command):
        with fetched_descriptors(command.fds) as descriptors:
            taps = TapState(list(descriptors.values()))
            transfer = CprVfork(vm.pid, source, target_monitor, limits, note)
            try:
                return transfer.rehearse(command.argv, list(descriptors))
            finally:
                transfer.close()
                taps.restore()
