# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of preflight: what was asked, what was found, the verdict. PRIVATE to the collection."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.codes import REFUSALS, WARNINGS


@dataclass(frozen=True)
class PreflightRequest:
    """What to judge. ``vms`` empty means all VMs of the host; the head-rooms must be left over, in MiB.

    ``kvm_build_id``: the KVM build to move to, null leaves each VM on its node. ``kvm_root``: below what the nodes and /sys are
    looked for, which tests alone change. ``kvm_load_later``: whether its core is yet to be loaded, if it is not.
    """

    build_id: str
    state_dir: str = "/var/lib/vmm-live-upgrade"
    vms: list[str] = field(default_factory=list)
    mechanism: str = "auto"
    memory_headroom_mib: int = 256
    disk_headroom_mib: int = 64
    require_way_back: bool = True
    require_vmstate_check: bool = True
    accept_vfio_risk: bool = False
    kvm_build_id: str | None = None
    kvm_root: str = "/"
    kvm_load_later: bool = False


@dataclass(frozen=True)
class Finding:
    """One reason: ``code`` as in docs/preflight.md, ``message`` what is so, ``action`` what a person can do."""

    code: str
    message: str
    action: str


@dataclass
class Direction:
    """Whether device state of one build loads in the other. ``compatible`` is null when it was not compared."""

    compatible: bool | None = None
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rehearsal:
    """What came of a rehearsal: ``outcome`` is passed, failed or not_done, ``reason`` says why.

    ``pause_ms``: how long the guest was paused; ``pause_budget_ms``: how long it might have been; ``phases_ms``: what was
    reached when, from the start of the new process. Null where nothing was done.
    """

    outcome: str
    reason: str
    pause_ms: float | None = None
    pause_budget_ms: int | None = None
    phases_ms: dict[str, float] | None = None


@dataclass
class Verdict:
    """The verdict on one VM; docs/architecture.md describes the fields."""

    name: str
    pid: int
    old_build_id: str | None
    new_build_id: str
    verdict: str = "go"
    mechanism: str | None = None
    mechanism_reason: str = ""
    refusals: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    forward: Direction = field(default_factory=Direction)
    backward: Direction = field(default_factory=Direction)
    rehearsal: Rehearsal | None = None
    kvm_build_id_before: str | None = None
    kvm_build_id: str | None = None

    def refuse(self, code: str, message: str) -> None:
        """Add a reason not to touch the VM. Said once, however many checks find it."""
        self.add_refusal(Finding(code, message, REFUSALS[code]))

    def add_refusal(self, finding: Finding) -> None:
        """Add a reason worded elsewhere."""
        self.verdict = "refuse"
        if finding not in self.refusals:
            self.refusals.append(finding)

    def warn(self, code: str, message: str) -> None:
        """Add something to know that does not stop the upgrade."""
        finding = Finding(code, message, WARNINGS[code])
        if finding not in self.warnings:
            self.warnings.append(finding)

    def close(self) -> None:
        """Once all is said: a VM that is refused has no mechanism."""
        if self.refusals:
            self.mechanism = None
            self.mechanism_reason = "no mechanism is possible: " + "; ".join(item.message for item in self.refusals)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON-ready values."""
        return dataclasses.asdict(self)
