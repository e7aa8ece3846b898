# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page tells of a report besides the drawings: figures, who ended where. PRIVATE to the collection."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import PASS, budget_of, is_over_budget
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page.problems import problems
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.progress import stops
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import GOOD_OUTCOMES
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import (
    amount,
    milliseconds,
    seconds_between,
)

Report = Mapping[str, Any]
Record = Mapping[str, Any]

ALL_VMS = "all VMs"
OTHER_VMS = "no class"
_REASONS_IN_HEADLINE = 3


@dataclass(frozen=True)
class Figure:
    """One number that the page starts with."""

    label: str
    value: str
    detail: str
    tone: str = "plain"


@dataclass(frozen=True)
class Part:
    """How many VMs ended in the same place."""

    label: str
    count: int
    tone: str
    share: float


@dataclass(frozen=True)
class WayBack:
    """What the roll-back of a wave came to."""

    wave: int
    hosts: int
    hosts_failed: list[str]
    vms: int
    vms_failed: int
    longest_ms: float | None
    seconds: float | None


@dataclass(frozen=True)
class Cores:
    """Hosts on which the same was done to the KVM cores."""

    hosts: list[str]
    steps: list[str]


@dataclass(frozen=True)
class VmRow:
    """A row of the list of all VMs."""

    vm: Record
    budget_ms: float | None
    over: bool
    outcome: str
    tone: str


def headline(report: Report) -> list[str]:
    """Return why the rollout ended as it did, in a few lines: a wave of hundreds of VMs may have as many reasons."""
    failed = next((wave for wave in report["waves"] if wave["gate"] and stops(wave["gate"])), None)
    if failed is None or report["verdict"] != "failed":
        return [report["exit_reason"]]
    reasons = failed["gate"]["reasons"]
    undone = " and was rolled back" if failed["rolled_back"] else ""
    untouched = sum(1 for host in report["hosts"] if host["outcome"] == "not_attempted")
    later = f" {amount(untouched, 'host')} of later waves stayed untouched." if untouched else ""
    lines = [f"Wave {failed['index']} did not pass the gate{undone}.{later}", *reasons[:_REASONS_IN_HEADLINE]]
    more = len(reasons) - _REASONS_IN_HEADLINE
    return [*lines, *([f"\N{HORIZONTAL ELLIPSIS} and {amount(more, 'more reason')}, below"] if more > 0 else [])]


def figures(report: Report) -> list[Figure]:
    """Return the numbers that the page starts with."""
    vms, hosts, waves = report["vms"], report["hosts"], report["waves"]
    pauses = [vm["downtime_ms"] for vm in vms if vm["downtime_ms"] is not None]
    there = sum(1 for vm in vms if _standing(vm) == "there")
    passed = sum(1 for wave in waves if wave["gate"] and wave["gate"]["verdict"] == PASS)
    wrong = len({problem.where for problem in problems(report)})
    back = report["summary"]["undone"]
    touched = sum(1 for host in hosts if host["outcome"] != "not_attempted")
    goal = "Would be moved" if report["mode"] == "plan" else "VMs on the build asked for"
    return [
        Figure("Waves passed", f"{passed} of {len(waves)}", f"{touched} of {amount(len(hosts), 'host')} had a turn"),
        Figure(goal, f"{there:,} of {len(vms):,}", "of the VMs looked at"),
        Figure(
            "Longest pause",
            milliseconds(max(pauses, default=None)),
            f"median {milliseconds(statistics.median(pauses) if pauses else None)} (n={len(pauses):,})",
        ),
        Figure("Rolled back", f"{back:,}", "VMs, with their wave", "undo" if back else "plain"),
        Figure("Went wrong", f"{wrong:,}", "hosts and VMs, listed below", "bad" if wrong else "ok"),
    ]


_PLACES = {
    "there": ("on the build asked for", "ok"),
    "planned": ("would be moved", "ok"),
    "back": ("rolled back with their wave", "undo"),
    "before": ("stayed on the build before", "plain"),
    "look": ("a person must look", "bad"),
}


def standing(report: Report) -> list[Part]:
    """Return how many VMs ended where, in the order in which a bar shows them."""
    found = [_standing(vm) if report["mode"] == "apply" else _planned(vm) for vm in report["vms"]]
    return [
        Part(label, found.count(place), tone, found.count(place) / len(found))
        for place, (label, tone) in _PLACES.items()
        if found.count(place)
    ]


def builds(report: Report) -> list[tuple[str, str, int]]:
    """Return every build that a VM came from or went to, in full: id, whether it was left or reached, how many VMs."""
    found: dict[tuple[str, str], int] = {}
    for vm in report["vms"]:
        kvm = vm.get("kvm") or {"from": None, "to": None}
        for before, after in ((vm["old_build_id"], vm["new_build_id"]), (kvm["from"], kvm["to"])):
            if vm["outcome"] == "upgraded" and before != after:
                for build, way in ((before, "left"), (after, "reached")):
                    if build is not None:
                        found[build, way] = found.get((build, way), 0) + 1
    return [(build, way, count) for (build, way), count in sorted(found.items())]


def rollbacks(report: Report) -> list[WayBack]:
    """Return what the roll-back of each wave came to that had one."""
    found = []
    for wave in report["waves"]:
        if not wave["rolled_back"]:
            continue
        hosts = [host for host in report["hosts"] if host["wave"] == wave["index"] and host["rollback"]]
        moved = [vm["rollback"] for vm in report["vms"] if vm["wave"] == wave["index"] and vm["rollback"]]
        ends = [host["rollback_finished"] for host in hosts if host.get("rollback_finished")]
        judged = wave.get("judged")
        found.append(
            WayBack(
                wave=wave["index"],
                hosts=len(hosts),
                hosts_failed=[host["name"] for host in hosts if host["rollback"] != "ok"],
                vms=sum(1 for entry in moved if entry["outcome"] in GOOD_OUTCOMES),
                vms_failed=sum(1 for entry in moved if entry["outcome"] not in GOOD_OUTCOMES),
                longest_ms=max((e["downtime_ms"] for e in moved if e["downtime_ms"] is not None), default=None),
                seconds=seconds_between(judged, max(ends)) if judged and ends else None,
            )
        )
    return found


def cores(report: Report) -> list[Cores]:
    """Return what was done to the KVM cores, hosts with the same together."""
    would = "to be " if report["mode"] == "plan" else ""
    found: dict[tuple[str, ...], list[str]] = {}
    for host in report["hosts"]:
        kvm = host.get("kvm")
        if not kvm:
            continue
        steps = [f"{core} {would}loaded" for core in kvm["loaded"]]
        steps += [f"{kvm['default']} made the default"] if kvm["default"] else []
        steps += [f"{core} unloaded" for core in kvm["unloaded"]]
        steps += [f"{kept['core']} kept: {kept['reason']}" for kept in kvm["kept"]]
        if steps:
            found.setdefault(tuple(steps), []).append(host["name"])
    return [Cores(hosts, list(steps)) for steps, hosts in found.items()]


def vm_rows(report: Report) -> list[VmRow]:
    """Return a row per VM, in the order of the waves."""
    budget_ms = report["downtime_budget_ms"]
    rows = []
    for vm in sorted(report["vms"], key=lambda vm: (vm["wave"], vm["host"], vm["name"])):
        outcome = vm["outcome"].replace("_", " ")
        if vm["rollback"]:
            undone = vm["rollback"]["outcome"] in GOOD_OUTCOMES
            outcome += ", rolled back" if undone else f", roll-back {vm['rollback']['outcome'].replace('_', ' ')}"
        tone = _PLACES[_standing(vm) if report["mode"] == "apply" else _planned(vm)][1]
        rows.append(VmRow(vm, budget_of(vm, budget_ms), is_over_budget(vm, budget_ms), outcome, tone))
    return rows


def hosts_without_vms(report: Report) -> list[Record]:
    """Return the hosts of which no VM is known."""
    known = {vm["host"] for vm in report["vms"]}
    return [host for host in report["hosts"] if host["name"] not in known]


def by_class(vms: Iterable[Record]) -> dict[str, list[Record]]:
    """Return VMs by what the page calls their class."""
    found: dict[str | None, list[Record]] = {}
    for vm in vms:
        found.setdefault(vm["vm_class"], []).append(vm)
    without = OTHER_VMS if found.keys() - {None} else ALL_VMS
    return {without if name is None else name: members for name, members in sorted(found.items(), key=str)}


def _standing(vm: Record) -> str:
    outcome = vm["outcome"]
    if vm["rollback"]:
        return "back" if vm["rollback"]["outcome"] in GOOD_OUTCOMES else "look"
    if outcome in ("upgraded", "already"):
        return "there"
    return "look" if outcome in ("failed", "lost") else "before"


def _planned(vm: Record) -> str:
    return {"planned": "planned", "already": "there"}.get(vm["outcome"], "before")
