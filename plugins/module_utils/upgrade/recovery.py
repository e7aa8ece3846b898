# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finish or undo what an engine that died left behind, by its journal and by asking the processes.

PRIVATE to the collection.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import Journal, read_journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_transfer import CprTransfer
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_vfork import CprVfork, await_orphan
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import (
    GuestLost,
    GuestStranded,
    Limits,
    TakenBack,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import VmResult
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.pidfile import rewrite_pidfile
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.source import monitor_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.spawn import start_ticks
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.threads import carry_over

_LIMITS = Limits(prepare_s=30, downtime_s=30)


@dataclass
class _Interrupted:
    """What the journal says of a VM whose last record is not its end."""

    name: str
    old_pid: int
    old_start_ticks: int
    old_build_id: str | None
    mechanism: str
    qmp_paths: list[str]
    workspace: Path
    pidfile: str | None
    pause_budget_ms: int | None
    vm_class: str | None
    threads: dict[str, dict[str, Any]]
    kvm_build_id_before: str | None
    kvm_build_id_after: str | None
    target_pid: int = 0
    target_start_ticks: int = 0
    committed: bool = False
    boot_id: str = ""


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def interrupted_vms(transaction: Path) -> list[str]:
    """Return the names of the VMs which the journal of ``transaction`` leaves in the middle."""
    return [vm.name for vm in _read(transaction)]


def recover(transaction: Path, journal: Journal, new_build_id: str, only: str | None = None) -> list[VmResult]:
    """Bring interrupted VMs of ``transaction`` (all, or ``only`` one) to an end, one way or the other, and say which."""
    results = []
    for vm in _read(transaction):
        if only not in (None, vm.name):
            continue
        result = _recover_vm(vm, transaction, journal, new_build_id)
        journal.write("end", vm.name, result=result.to_dict())
        shutil.rmtree(vm.workspace, ignore_errors=True)
        results.append(result)
    return results


def _read(transaction: Path) -> list[_Interrupted]:
    open_vms: dict[str, _Interrupted] = {}
    current_boot = ""
    for record in read_journal(transaction / "journal.jsonl"):
        name = record.get("vm", "")
        if record["step"] == "start":
            current_boot = record["boot_id"]
        elif record["step"] == "begin":
            open_vms[name] = _Interrupted(
                name=name,
                old_pid=record["old_pid"],
                old_start_ticks=record["old_start_ticks"],
                old_build_id=record["old_build_id"],
                mechanism=record["mechanism"],
                qmp_paths=record["qmp_paths"],
                workspace=Path(record["workspace"]),
                pidfile=record["pidfile"],
                pause_budget_ms=record.get("pause_budget_ms"),  # journals of 0.1.0 have none
                vm_class=record.get("vm_class"),
                threads=record.get("threads", {}),
                kvm_build_id_before=(record.get("kvm_before") or {}).get("build_id"),
                kvm_build_id_after=(record.get("kvm_after") or {}).get("build_id"),
                boot_id=current_boot,
            )
        elif record["step"] == "spawned":
            open_vms[name].target_pid = record["target_pid"]
            open_vms[name].target_start_ticks = record["target_start_ticks"]
        elif record["step"] == "committed":
            open_vms[name].committed = True
        elif record["step"] == "end":
            open_vms.pop(name, None)
    return list(open_vms.values())


def _recover_vm(vm: _Interrupted, transaction: Path, journal: Journal, new_build_id: str) -> VmResult:
    result = VmResult(
        name=vm.name,
        outcome="failed",
        mechanism=vm.mechanism,
        pause_budget_ms=vm.pause_budget_ms,
        vm_class=vm.vm_class,
        reason="interrupted by the death of its engine, brought to an end from the journal",
        old_build_id=vm.old_build_id,
        new_build_id=vm.old_build_id,
        old_pid=vm.old_pid,
        new_pid=vm.old_pid,
        kvm_build_id_before=vm.kvm_build_id_before,
        kvm_build_id=vm.kvm_build_id_before,
    )
    same_boot = vm.boot_id == boot_id()
    old_lives = same_boot and _lives(vm.old_pid, vm.old_start_ticks)
    target_lives = same_boot and bool(vm.target_pid) and _lives(vm.target_pid, vm.target_start_ticks)
    try:
        if not same_boot:
            raise GuestLost("the host rebooted in the middle of the upgrade; its VMs started anew, if they did")
        if not old_lives and not target_lives:
            raise GuestLost("neither the old nor the new process lives")
        if old_lives:
            new_pid = _settle(vm, vm.target_pid if target_lives else 0, transaction, journal)
        else:
            new_pid = _adopt_target(vm)
        result.outcome, result.new_pid, result.new_build_id = "upgraded", new_pid, new_build_id
        result.kvm_build_id = vm.kvm_build_id_after
        carried = carry_over(vm.threads, new_pid, lambda: monitor_of(vm.qmp_paths, new_pid))
        result.threads, result.warnings = carried.done, [*carried.failed]
        if vm.pidfile:
            result.warnings += rewrite_pidfile(vm.pidfile, vm.old_pid, new_pid)
    except TakenBack:
        result.outcome = "rolled_back"
        result.error = (
            f"VM {vm.name}: the upgrade was interrupted and taken back. State: still running on the old build."
        )
    except GuestLost as exc:
        result.outcome, result.new_pid, result.new_build_id = "lost", None, None
        result.kvm_build_id = None
        result.error = f"VM {vm.name}: {exc}. State: start the VM anew if it does not run."
    except (LiveUpgradeError, OSError) as exc:
        result.error = f"VM {vm.name}: {exc}. State: unclear, nothing was ended; look at process {vm.old_pid}."
    return result


def _settle(vm: _Interrupted, target_pid: int, transaction: Path, journal: Journal) -> int:
    """The old process lives: let it and the target, if any, decide. Returns the pid that runs the guest."""

    def note(step: str, **facts: object) -> None:
        journal.write(step, vm.name, **facts)

    with monitor_of(vm.qmp_paths, vm.old_pid) as source:
        log_path = transaction / "logs" / f"{vm.name}.log"
        transfer: CprTransfer | CprVfork
        if vm.mechanism == "vfork":
            transfer = CprVfork(vm.old_pid, source, lambda pid: monitor_of(vm.qmp_paths, pid), _LIMITS, note)
        else:
            transfer = CprTransfer(vm.old_pid, source, vm.workspace, log_path, _LIMITS, note)
        try:
            committed = transfer.resume(target_pid)
            transfer.release_source()
            return committed.target_pid
        finally:
            transfer.close()


def _adopt_target(vm: _Interrupted) -> int:
    """The old process is gone: the target runs the guest, or may be told to when it holds all of it."""
    if vm.mechanism == "vfork":
        pidfd = os.pidfd_open(vm.target_pid)
        try:
            await_orphan(vm.target_pid, pidfd, lambda pid: monitor_of(vm.qmp_paths, pid))
        finally:
            os.close(pidfd)
        return vm.target_pid
    try:
        with QmpClient.connect(str(vm.workspace / "monitor.sock")) as target:
            if target.execute("query-status")["status"] != "running":
                if target.execute("query-migrate").get("status") != "completed":
                    raise GuestLost("the old process died before the new one had loaded the guest")
                target.execute("cont")
    except QmpError as exc:
        raise GuestStranded(f"the new process {vm.target_pid} lives but cannot be asked: {exc}") from exc
    return vm.target_pid


def _lives(pid: int, ticks: int) -> bool:
    try:
        return start_ticks(pid) == ticks and _state(pid) not in "ZX"
    except ProcessLookupError:
        return False


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def unfinished_transactions(transactions: Path) -> list[Path]:
    """Return the transaction directories that have no result, oldest first."""
    if not transactions.is_dir():
        return []
    return sorted(path for path in transactions.iterdir() if path.is_dir() and not (path / "result.json").exists())
