# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request would do to each VM of this host, decided before anything is touched. PRIVATE to the collection."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.judge import Judged, judge_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.budgets import PauseBudget
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest, VmResult
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.source import open_monitor
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.kvm_place import KvmMove
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.recreate import diff, plan_command


@dataclass(frozen=True)
class VmPlan:
    """The decision about one VM: ``upgrade``, ``already`` or ``refused``, and why."""

    vm: Vm
    decision: str
    mechanism: str | None
    reason: str
    error: str | None
    build_dir: Path
    new_build_id: str
    budget: PauseBudget
    kvm: KvmMove
    warnings: tuple[str, ...] = ()

    def result(self, planned: bool = False) -> VmResult:
        """Return the result of a VM that nothing is done to; ``planned`` in check mode."""
        outcome = {"upgrade": "planned" if planned else "not_attempted"}.get(self.decision, self.decision)
        runs_on = self.new_build_id if outcome == "planned" else self.vm.build_id
        return VmResult(
            name=self.vm.name,
            outcome=outcome,
            reason=self.reason,
            mechanism=self.mechanism,
            pause_budget_ms=self.budget.ms,
            vm_class=self.budget.vm_class,
            old_build_id=self.vm.build_id,
            new_build_id=runs_on,
            old_pid=self.vm.pid,
            new_pid=None if outcome == "planned" else self.vm.pid,
            kvm_build_id_before=self.kvm.build_id_before,
            kvm_build_id=self.kvm.build_id_after if outcome == "planned" else self.kvm.build_id_before,
            error=self.error,
            warnings=list(self.warnings) if planned else [],
        )

    def diff(self) -> dict[str, str]:
        """Return the command line before and after, and what else will differ, for ``--diff``. Asks the VM."""
        with open_monitor(self.vm) as monitor:
            command = plan_command(self.vm, monitor, self.build_dir, str(self.mechanism), self.kvm.node)
        before, after = diff(self.vm.argv, command.argv)
        changes = [*command.changes, f"the longest pause allowed: {self.budget}", *self.warnings]
        notes = "".join(f"# {change}\n" for change in changes)
        return {
            "before_header": f"{self.vm.name} (process {self.vm.pid}, {self.vm.build_id or self.vm.exe})",
            "after_header": f"{self.vm.name} ({self.new_build_id}, by {self.mechanism})",
            "before": before,
            "after": after + notes,
        }


def plan_host(request: UpgradeRequest, kvm_load_later: bool = False) -> list[VmPlan]:
    """Decide for every VM that ``request`` selects, in the order in which they would be taken.

    ``kvm_load_later``: the core to move to may be one that is yet to be loaded; nothing can be carried out by such a plan.
    Raises ``LiveUpgradeError`` when the build is not staged or a VM of that name does not run here.
    """
    staged = BuildStore(Path(request.state_dir)).get(request.build_id)
    preflight = PreflightRequest(
        build_id=request.build_id,
        state_dir=request.state_dir,
        vms=request.vms,
        mechanism=request.mechanism,
        accept_vfio_risk=request.accept_vfio_risk,
        kvm_build_id=request.kvm_build_id,
        kvm_root=request.kvm_root,
        kvm_load_later=kvm_load_later,
    )
    judged = judge_host(preflight)
    _check_order(request, judged)
    budgets = request.budgets()
    plans = [_plan(item, staged.path, request.build_id, budgets.of(item.vm.name)) for item in judged]
    rank = {name: index for index, name in enumerate(request.order)}
    return sorted(plans, key=lambda plan: (rank.get(plan.vm.name, len(rank)), plan.vm.name))


def _plan(item: Judged, build_dir: Path, build_id: str, budget: PauseBudget) -> VmPlan:
    verdict = item.verdict
    error = None
    if verdict.verdict == "refuse":
        reasons = "; ".join(f"{finding.message} ({finding.action})" for finding in verdict.refusals)
        error = (
            f"VM {item.vm.name} on {os.uname().nodename} is refused: {reasons}. "
            f"State: untouched, still running on {item.vm.build_id or item.vm.exe}."
        )
    decision = {"go": "upgrade", "refuse": "refused"}.get(verdict.verdict, verdict.verdict)
    warnings = tuple(finding.message for finding in verdict.warnings)
    return VmPlan(
        *(item.vm, decision, verdict.mechanism, verdict.mechanism_reason, error),
        *(build_dir, build_id, budget, item.kvm, warnings),
    )


def _check_order(request: UpgradeRequest, judged: list[Judged]) -> None:
    unknown = sorted(set(request.order) - {item.vm.name for item in judged})
    if unknown:
        raise LiveUpgradeError(f"order names VMs that are not among those to upgrade: {', '.join(unknown)}")
