# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement after a wave: PASS, FAIL or INCONCLUSIVE, with its evidence. Inconclusive is never called a PASS.

PRIVATE to the collection.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout import findings
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.bounds import CONFIDENCE, upper_failure_bound
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.checks import (
    ALL,
    FAIL,
    INCONCLUSIVE,
    PASS,
    Check,
    comparison,
    downtime_quantile,
    downtime_told,
    failure_rate,
    failures_told,
    hard_stop,
    health_told,
    minimum,
    watch_told,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.findings import (
    Finding,
    Record,
    budget_of,
    find,
    find_watched,
    is_over_budget,
    outcome_of,
    vms_of,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import Look
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import UNMOVED_OUTCOMES, groups_before
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEFT_OUT
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.sample import Sample, sample_of
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import summary

__all__ = [
    "FAIL",
    "INCONCLUSIVE",
    "PASS",
    "Evidence",
    "Gate",
    "budget_of",
    "is_over_budget",
    "judge",
    "left_out",
    "loaded_cores",
    "previous_defaults_of",
    "rollback_targets",
]


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
    vms_left_out: int = 0


@dataclass(frozen=True)
class Gate:
    """A verdict, why, on what evidence, and check by check."""

    verdict: str
    reasons: list[str]
    evidence: Evidence
    checks: list[Check] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)


def judge(
    hosts: Sequence[str], records: Mapping[str, Record], downtime_budget_ms: float | None, look: Look | None = None
) -> Gate:
    """Judge the wave of ``hosts`` by the host ``records`` (name → record) that exist.

    A host without a record was lost on the way and counts as unreachable. ``vms`` and ``failures`` count VMs that had to
    move; VMs which were on the build already prove nothing about the upgrade, but let a wave pass. ``downtime_budget_ms`` is for
    VMs whose class has no budget of its own. ``look`` tells what is demanded and what was seen before; without one any failure
    fails the wave, and nothing is demanded of its size.
    """
    wave = _Wave(hosts, records, downtime_budget_ms, look or Look())
    checks = wave.checks()
    verdict = next((verdict for verdict in (FAIL, INCONCLUSIVE) if any(c.verdict == verdict for c in checks)), PASS)
    return Gate(verdict, wave.reasons(checks) if verdict != PASS else [], wave.evidence(), checks)


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


def left_out(hosts: Sequence[str], records: Mapping[str, Record]) -> list[str]:
    """Return those of ``hosts`` on which no VM was to be moved: nothing is settled on them either."""
    return [host for host in hosts if records.get(host, {}).get("outcome") == LEFT_OUT]


def previous_defaults_of(hosts: Sequence[str], records: Mapping[str, Record]) -> dict[str, str]:
    """Return per host the build that new VMs started on before this rollout changed it, where it did."""
    changed = {host: records[host] for host in hosts if host in records and records[host]["default_changed"]}
    return {host: record["previous_default"] for host, record in changed.items() if record["previous_default"]}


class _Wave:
    """What is known of a wave when it is judged, and of the waves before it."""

    def __init__(
        self, hosts: Sequence[str], records: Mapping[str, Record], downtime_budget_ms: float | None, look: Look
    ) -> None:
        self._hosts = list(hosts)
        self._records = records
        self._budget_ms = downtime_budget_ms
        self._look = look
        self._policy = look.policy
        self._vms = vms_of(hosts, records)
        self._counted_vms = [(host, vm) for host, vm in self._vms if vm["outcome"] != LEFT_OUT]
        self._moved = [(host, vm) for host, vm in self._vms if vm["outcome"] not in UNMOVED_OUTCOMES]
        # Waves that grew are judged with this one, and watched until then.
        watched = find_watched([*look.earlier, *hosts], records, look.watch)
        self._found = [*find(hosts, records, downtime_budget_ms), *watched]
        # The doubt that is allowed for the whole rollout is shared by its looks, one per wave: what is shown once by chance
        # would be shown the more likely the more often one looks.
        self._confidence = 1 - (1 - self._policy.confidence) / look.looks

    def checks(self) -> list[Check]:
        """Return all checks, those first that stop a rollout by themselves."""
        found = [self._hard_stop(), self._failures(), self._health(), *self._watched(), *self._downtimes()]
        so_far = [*self._look.earlier, *self._hosts]
        moved = sum(vm["outcome"] not in UNMOVED_OUTCOMES for _host, vm in vms_of(so_far, self._records))
        if 0 < moved < self._policy.min_vms:
            found.append(minimum(moved, self._policy.min_vms))
        if self._is_compared():
            margin = self._policy.margin or 0.0
            upgraded = sample_of(self._flags([findings.HEALTH], so_far), self._policy)
            others = sample_of(self._look.others, self._policy)
            found.append(comparison(upgraded, others, margin, self._confidence))
        return found

    def reasons(self, checks: Sequence[Check]) -> list[str]:
        """Return why the wave did not pass: what was demanded and not shown, then what went wrong, one by one."""
        unjudged = self._unjudged()
        texts = [check.text for check in checks if check.verdict != PASS and self._is_demanded(check)]
        texts += [finding.text for finding in self._found]
        if unjudged and not self._found and self._policy.downtime_quantile is None:
            texts += [f"no downtime was measured for {', '.join(unjudged)}, so the budget cannot be judged"]
        return texts

    def evidence(self) -> Evidence:
        """Return the figures that are told whatever is demanded."""
        downtimes = [vm["downtime_ms"] for _host, vm in self._moved if vm.get("downtime_ms") is not None]
        failed = self._failed_moves()
        outcomes = [outcome_of(host, self._records) for host in self._hosts]
        return Evidence(
            hosts=len(self._hosts),
            hosts_failed=outcomes.count("failed"),
            hosts_unreachable=outcomes.count("unreachable"),
            vms=len(self._moved),
            vms_already=len(self._counted_vms) - len(self._moved),
            vms_left_out=len(self._vms) - len(self._counted_vms),
            failures=failed,
            downtime_measured=len(downtimes),
            downtime_unmeasured=len(self._unmeasured()),
            downtime_median_ms=statistics.median(downtimes) if downtimes else None,
            downtime_max_ms=max(downtimes, default=None),
            downtime_budget_ms=self._budget_ms,
            over_budget=sum(finding.kind == findings.PAUSE for finding in self._found),
            health_regressions=sum(finding.kind == findings.HEALTH for finding in self._found),
            failure_rate_upper_bound=upper_failure_bound(failed, len(self._moved)),
            confidence=CONFIDENCE,
        )

    def _hard_stop(self) -> Check:
        return hard_stop([finding for finding in self._found if finding.hard], len(self._vms))

    def _failures(self) -> Check:
        limit = self._policy.max_failure_rate
        if limit is not None and (self._counted_vms or self._counted()):
            kinds = self._counted_kinds()
            wave = sample_of(self._flags(kinds, self._hosts), self._policy)
            so_far = sample_of(self._flags(kinds, [*self._look.earlier, *self._hosts]), self._policy)
            return failure_rate(wave, so_far, limit, self._confidence)
        verdict = FAIL if self._counted() else PASS if self._counted_vms else INCONCLUSIVE
        hosts = sum(finding.kind == findings.HOST for finding in self._found)
        return failures_told(Sample(self._failed_moves(), len(self._moved)), hosts, verdict, self._policy.confidence)

    def _health(self) -> Check:
        worse = sum(finding.kind == findings.HEALTH for finding in self._found)
        judged_here = self._policy.max_failure_rate is None and not self._is_compared()
        soaked = self._look.soaked_s
        upgraded = {host for host, vm in self._moved if vm["outcome"] == "upgraded"}
        unsoaked = sorted(host for host in upgraded if soaked.get(host, 0.0) < self._policy.soak_s)
        return health_told(worse, len(self._vms), judged_here, unsoaked, self._policy.soak_s)

    def _watched(self) -> list[Check]:
        """A lost connection is told and stops nothing: that the host can be reached is seen by its turn and its looks."""
        if self._look.watch is None:
            return []
        vms = [(host, str(vm["name"])) for host, vm in self._vms]
        return [watch_told(summary(self._look.watch, self._hosts, vms), len(vms))]

    def _downtimes(self) -> list[Check]:
        found = []
        for subject in sorted({_subject(vm) for _host, vm in self._moved if vm["outcome"] == "upgraded"}):
            own = [(host, vm) for host, vm in self._moved if _subject(vm) == subject]
            budget_ms = budget_of(next(vm for _host, vm in own if vm["outcome"] == "upgraded"), self._budget_ms)
            if budget_ms is not None and self._policy.downtime_quantile is not None:
                so_far = self._pauses(subject, [*self._look.earlier, *self._hosts])
                wave = self._pauses(subject, self._hosts)
                found.append(downtime_quantile(subject, wave, so_far, budget_ms, self._policy, self._confidence))
                continue
            names = {(host, vm["name"]) for host, vm in own}
            over = any(
                finding.kind == findings.PAUSE and (finding.host, finding.vm) in names for finding in self._found
            )
            unmeasured = any(_is_unmeasured(vm) for _host, vm in own)
            measured = {
                host: [ms for ms in values if ms != math.inf]
                for host, values in self._pauses(subject, self._hosts).items()
            }
            verdict = FAIL if over else INCONCLUSIVE if unmeasured and budget_ms is not None else PASS
            found.append(downtime_told(subject, measured, budget_ms, verdict, self._policy.confidence))
        return found

    def _is_compared(self) -> bool:
        """Whether health is held against that of VMs which were not touched meanwhile, in place of by itself."""
        return self._policy.margin is not None and self._look.has_others

    def _is_demanded(self, check: Check) -> bool:
        """Whether a check is more than what the single findings tell already."""
        if check.check == "failure_rate":
            return not self._found or self._policy.max_failure_rate is not None or check.n_needed is not None
        if check.check == "health":
            return check.verdict == INCONCLUSIVE
        if check.check == "downtime":
            return self._policy.downtime_quantile is not None and check.limit is not None
        return check.check == "comparison"

    def _counted_kinds(self) -> list[str]:
        kinds = [findings.HOST, findings.OUTCOME]
        kinds += [findings.PAUSE] if self._policy.downtime_quantile is None else []
        return kinds if self._is_compared() else [*kinds, findings.HEALTH]

    def _counted(self) -> list[Finding]:
        return [finding for finding in self._found if finding.kind in self._counted_kinds()]

    def _failed_moves(self) -> int:
        moved = {(host, vm["name"]) for host, vm in self._moved}
        return len({(finding.host, finding.vm) for finding in self._found} & moved)

    def _flags(self, kinds: Sequence[str], hosts: Sequence[str]) -> dict[str, list[bool]]:
        """Per host whether each of its VMs that had to move, or got worse, is bad by ``kinds``; a bad host counts as a VM."""
        bad = {(f.host, f.vm) for f in find(hosts, self._records, self._budget_ms) if f.kind in kinds}
        flags: dict[str, list[bool]] = {host: [] for host in hosts}
        for host, vm in vms_of(hosts, self._records):
            is_bad = (host, vm["name"]) in bad
            if is_bad or vm["outcome"] not in UNMOVED_OUTCOMES:
                flags[host].append(is_bad)
        for host in hosts:
            flags[host] += [True] if (host, "") in bad else []
        return flags

    def _pauses(self, subject: str, hosts: Sequence[str]) -> dict[str, list[float]]:
        """Per host the pauses of the VMs of a class that were upgraded, infinite where they could not be measured."""
        pauses: dict[str, list[float]] = {}
        for host, vm in vms_of(hosts, self._records):
            if _subject(vm) == subject and (vm["outcome"] == "upgraded" or vm.get("downtime_ms") is not None):
                measured = vm.get("downtime_ms")
                pauses.setdefault(host, []).append(math.inf if measured is None else float(measured))
        return pauses

    def _unmeasured(self) -> list[tuple[str, Record]]:
        return [item for item in self._moved if _is_unmeasured(item[1])]

    def _unjudged(self) -> list[str]:
        unjudged = [item for item in self._unmeasured() if budget_of(item[1], self._budget_ms) is not None]
        return [f"{host}/{vm['name']}" for host, vm in unjudged]


def _is_unmeasured(vm: Record) -> bool:
    return vm["outcome"] == "upgraded" and vm.get("downtime_ms") is None


def _subject(vm: Record) -> str:
    """The class of a VM; those without one are told together."""
    return str(vm.get("vm_class") or ALL)
