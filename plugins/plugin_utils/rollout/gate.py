# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement after a wave: PASS, FAIL or INCONCLUSIVE, with its evidence. Inconclusive never passes.

PRIVATE to the collection.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.bounds import CONFIDENCE, upper_failure_bound
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import (
    GOOD_OUTCOMES,
    groups_before,
    is_good,
)

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on. Rates are 0..1, times in milliseconds, null where nothing was measured."""

    hosts: int
    hosts_failed: int
    hosts_unreachable: int
    vms: int
    vms_already: int
    failures: int
    downtime_measured: int
    downtime_unmeasured: int
    downtime_median_ms: float | None
    downtime_max_ms: float | None
    downtime_budget_ms: float | None
    over_budget: int
    health_regressions: int
    failure_rate_upper_bound: float
    confidence: float


@dataclass(frozen=True)
class Gate:
    """A verdict, why, and on what evidence."""

    verdict: str
    reasons: list[str]
    evidence: Evidence

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)


def judge(hosts: Sequence[str], records: Mapping[str, Record], downtime_budget_ms: float | None) -> Gate:
    """Judge the wave of ``hosts`` by the host ``records`` (name → record) that exist.

    A host without a record was lost on the way and counts as unreachable. ``vms`` and ``failures`` count VMs that had to
    move; VMs which were on the build already prove nothing about the upgrade, but let a wave pass. ``downtime_budget_ms`` is for
    VMs whose class has no budget of its own.
    """
    vms = [(host, vm) for host in hosts if host in records for vm in records[host]["vms"]]
    moved = [(host, vm) for host, vm in vms if vm["outcome"] != "already"]
    downtimes = [vm["downtime_ms"] for _host, vm in moved if vm.get("downtime_ms") is not None]
    unmeasured = [item for item in moved if item[1]["outcome"] == "upgraded" and item[1].get("downtime_ms") is None]
    unjudged = [_label(item) for item in unmeasured if budget_of(item[1], downtime_budget_ms) is not None]
    over_budget = [item for item in moved if is_over_budget(item[1], downtime_budget_ms)]
    regressed = [item for item in vms if (item[1].get("health") or {}).get("regressions")]
    bad = [item for item in moved if item[1]["outcome"] not in GOOD_OUTCOMES]
    failed_moves = {_label(item) for item in [*bad, *over_budget, *regressed] if item[1]["outcome"] != "already"}

    reasons = _host_reasons(hosts, records)
    reasons += [f"{_label(item)}: {item[1]['outcome']}{_because(item[1])}" for item in bad]
    reasons += [
        f"{_label(item)}: downtime {item[1]['downtime_ms']:.1f} ms is over the budget of "
        f"{budget_of(item[1], downtime_budget_ms):g} ms"
        for item in over_budget
    ]
    reasons += [
        f"{_label(item)}: less healthy than before: {'; '.join(item[1]['health']['regressions'])}" for item in regressed
    ]

    verdict = FAIL if reasons else PASS
    if verdict == PASS and not vms:
        verdict, reasons = INCONCLUSIVE, ["no VM was upgraded and none was on the build already: nothing was proved"]
    elif verdict == PASS and unjudged:
        verdict = INCONCLUSIVE
        reasons = [f"no downtime was measured for {', '.join(unjudged)}, so the budget cannot be judged"]
    return Gate(
        verdict=verdict,
        reasons=reasons,
        evidence=Evidence(
            hosts=len(hosts),
            hosts_failed=sum(1 for host in hosts if _outcome(host, records) == "failed"),
            hosts_unreachable=sum(1 for host in hosts if _outcome(host, records) == "unreachable"),
            vms=len(moved),
            vms_already=len(vms) - len(moved),
            failures=len(failed_moves),
            downtime_measured=len(downtimes),
            downtime_unmeasured=len(unmeasured),
            downtime_median_ms=statistics.median(downtimes) if downtimes else None,
            downtime_max_ms=max(downtimes, default=None),
            downtime_budget_ms=downtime_budget_ms,
            over_budget=len(over_budget),
            health_regressions=len(regressed),
            failure_rate_upper_bound=upper_failure_bound(len(failed_moves), len(moved)),
            confidence=CONFIDENCE,
        ),
    )


def rollback_targets(hosts: Sequence[str], records: Mapping[str, Record]) -> dict[str, list[dict[str, Any]]]:
    """Return per host the VMs that this wave moved, grouped by what they ran before; see ``groups_before``."""
    targets = {}
    for host in hosts:
        moved = [vm for vm in records.get(host, {}).get("vms", []) if vm["outcome"] == "upgraded"]
        if moved:
            targets[host] = groups_before(moved)
    return targets


def loaded_cores(hosts: Sequence[str], records: Mapping[str, Record]) -> dict[str, list[str]]:
    """Return per host the KVM cores that the rollout loaded, of the hosts that can be reached to unload them again."""
    found = {host: (records.get(host, {}).get("kvm") or {}).get("loaded", []) for host in hosts}
    return {host: cores for host, cores in found.items() if cores and records[host]["outcome"] != "unreachable"}


def _outcome(host: str, records: Mapping[str, Record]) -> str:
    return str(records[host]["outcome"]) if host in records else "unreachable"


def _host_reasons(hosts: Sequence[str], records: Mapping[str, Record]) -> list[str]:
    """Reasons that are the host's own; those of its VMs are listed VM by VM."""
    reasons = []
    for host in hosts:
        if host not in records:
            reasons.append(f"{host}: unreachable: it left the play before its outcome was known")
        elif records[host]["outcome"] == "unreachable":
            reasons.append(f"{host}: unreachable{_because(records[host])}")
        elif records[host]["outcome"] == "failed" and all(is_good(vm) for vm in records[host]["vms"]):
            reasons.append(f"{host}: failed{_because(records[host])}")
    return reasons


def budget_of(vm: Record, downtime_budget_ms: float | None) -> float | None:
    """Return what the pause of a VM is held against: the budget of its class, else that of the rollout, which may be none."""
    return vm["pause_budget_ms"] if vm.get("vm_class") is not None else downtime_budget_ms


def is_over_budget(vm: Record, downtime_budget_ms: float | None) -> bool:
    """Whether the measured pause of a VM was longer than its budget, where it has one and was measured."""
    budget_ms = budget_of(vm, downtime_budget_ms)
    return budget_ms is not None and vm.get("downtime_ms") is not None and vm["downtime_ms"] > budget_ms


def _because(record: Record) -> str:
    text = record.get("error") or record.get("reason")
    return f": {text}" if text else ""


def _label(item: tuple[str, Record]) -> str:
    return f"{item[0]}/{item[1]['name']}"
