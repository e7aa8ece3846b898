# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a transaction, and what came of it. PRIVATE to the collection."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import name_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.budgets import PauseBudgets

OUTCOMES_BAD = ("refused", "rolled_back", "failed", "lost", "not_attempted")


@dataclass(frozen=True)
class UpgradeRequest:
    """The arguments of ``vm_upgrade`` that make up one transaction. ``vms`` empty means all VMs of the host.

    ``probes``: VM name → probe (see docs/architecture.md). ``pause_budgets_ms``: class → longest pause, ``vm_classes``: VM name →
    class; ``downtime_budget_ms`` is that of all others. ``kvm_build_id``, ``kvm_root``: as in ``PreflightRequest``. Times in
    seconds (``_s``) and milliseconds (``_ms``).
    """

    build_id: str
    state_dir: str = "/var/lib/vmm-live-upgrade"
    run_dir: str = "/run/vmm-live-upgrade"
    vms: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    mechanism: str = "auto"
    accept_vfio_risk: bool = False
    parallel: int = 1
    downtime_budget_ms: int = 1000
    pause_budgets_ms: dict[str, Any] = field(default_factory=dict)
    vm_classes: dict[str, str] = field(default_factory=dict)
    prepare_timeout_s: int = 60
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    rollout_id: str | None = None
    kvm_build_id: str | None = None
    kvm_root: str = "/"

    def validate(self) -> None:
        """Raise ``LiveUpgradeError`` for values that no host could make sense of."""
        for name in ("parallel", "downtime_budget_ms", "prepare_timeout_s"):
            if getattr(self, name) < 1:
                raise LiveUpgradeError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("state_dir", "run_dir"):
            if not os.path.isabs(getattr(self, name)):
                raise LiveUpgradeError(f"{name} must be an absolute path, not {getattr(self, name)!r}")
        if len(self.run_dir) > 30:
            raise LiveUpgradeError(
                f"run_dir {self.run_dir!r} is too long for the paths of UNIX sockets (30 characters)"
            )
        if self.kvm_build_id is not None:
            name_of(self.kvm_build_id)
        self.budgets()

    def budgets(self) -> PauseBudgets:
        """Return the longest pause of each VM. Raises ``LiveUpgradeError``."""
        return PauseBudgets(self.downtime_budget_ms, self.pause_budgets_ms, self.vm_classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the request as JSON-ready values."""
        return dataclasses.asdict(self)

    def fingerprint(self) -> str:
        """Return a digest that two requests share when they ask for the same thing in the same rollout."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class VmResult:
    """What came of one VM; the fields are described in docs/architecture.md."""

    name: str
    outcome: str
    reason: str = ""
    mechanism: str | None = None
    downtime_ms: float | None = None
    downtime_source: str | None = None
    pause_budget_ms: int | None = None
    vm_class: str | None = None
    total_ms: float | None = None
    extra_memory_mib: float | None = None
    cpu_s: float | None = None
    threads: list[str] = field(default_factory=list)
    old_build_id: str | None = None
    new_build_id: str | None = None
    old_pid: int | None = None
    new_pid: int | None = None
    kvm_build_id_before: str | None = None
    kvm_build_id: str | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return dataclasses.asdict(self)
