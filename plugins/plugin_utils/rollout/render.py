# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report for people at a terminal: plain lines. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.cores import changed_core
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEFT_OUT
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.words import sentence, unwatched

Report = Mapping[str, Any]

_HEADINGS = ("wave", "host", "VM", "old build", "new build", "by", "downtime", "total", "outcome")
_KVM_HEADINGS = ("old KVM", "new KVM")
_KVM_COLUMN = _HEADINGS.index("by")


def render_table(report: Report) -> str:
    """Return the report as plain lines: verdict, gates, one row per VM, hosts without a VM row, and the summary."""
    rows = [_headings(report), *_rows(report)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    lines = [_headline(report), f"  {report['exit_reason']}", ""]
    lines += [
        f"wave {wave['index']} ({', '.join(wave['hosts'])}): {_gate_line(wave, report['mode'] == 'plan')}"
        for wave in report["waves"]
    ]
    lines += ["", *("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)]
    told = [*_core_lines(report), *_left_out_lines(report), *_warning_lines(report), *_watch_lines(report)]
    lines += ["", *told] if told else []
    lines += ["", summary_line(report["summary"])]
    return "\n".join(lines)


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return the counts and the downtimes in one line."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(summary["outcomes"].items())) or "none"
    if summary["undone"]:
        outcomes += f" ({summary['undone']} of the upgraded rolled back since)"
    downtime = "none measured"
    if summary["downtime_measured"]:
        downtime = (
            f"n={summary['downtime_measured']} median {format_ms(summary['downtime_median_ms'])} "
            f"max {format_ms(summary['downtime_max_ms'])}"
        )
    return f"VMs: {outcomes}; downtime: {downtime}"


def evidence_line(evidence: Mapping[str, Any], plan: bool) -> str:
    """Return the evidence of a gate in one line; a plan has none on downtimes and rates."""
    where = f"{_count(evidence['vms'], 'VM')} to move on {_count(evidence['hosts'], 'host')}"
    where += f", {evidence['vms_already']} already there, {_count(evidence['failures'], 'failure')}"
    where += f", {evidence['vms_left_out']} left out" if evidence.get("vms_left_out") else ""
    where += f", {evidence['hosts_unreachable']} unreachable"
    if plan:
        return where
    budget = "" if evidence["downtime_budget_ms"] is None else f" (budget {evidence['downtime_budget_ms']:g} ms)"
    downtime = (
        f"downtime n={evidence['downtime_measured']} median {format_ms(evidence['downtime_median_ms'])} "
        f"max {format_ms(evidence['downtime_max_ms'])}{budget}"
    )
    return (
        f"{where}, {downtime}, {_count(evidence['health_regressions'], 'health regression')}, failure rate below "
        f"{evidence['failure_rate_upper_bound']:.0%} ({evidence['confidence']:.0%} confidence)"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def format_ms(value: float | None) -> str:
    """Return milliseconds as text, ``-`` for what was not measured."""
    return "-" if value is None else f"{value:.1f} ms"


def _headline(report: Report) -> str:
    plan = " (plan, nothing was changed)" if report["mode"] == "plan" else ""
    builds = [build for build in (report["build"], report.get("kvm_build")) if build]
    target = f" to {' and '.join(builds)}" if builds else ""
    return f"{report['kind'].capitalize()} {report['rollout_id']}{target}: {report['verdict'].upper()}{plan}"


def _gate_line(wave: Mapping[str, Any], plan: bool) -> str:
    if wave["gate"] is None:
        return "not judged"
    undone = ", rolled back" if wave["rolled_back"] else ""
    return f"{wave['gate']['verdict']}{undone}: {evidence_line(wave['gate']['evidence'], plan)}"


def _shows_kvm(report: Report) -> bool:
    return bool(report.get("kvm_build")) or any(changed_core(vm) for vm in report["vms"])


def _headings(report: Report) -> tuple[str, ...]:
    kvm = _KVM_HEADINGS if _shows_kvm(report) else ()
    return (*_HEADINGS[:_KVM_COLUMN], *kvm, *_HEADINGS[_KVM_COLUMN:])


def _core_lines(report: Report) -> list[str]:
    """One line per host whose KVM cores were changed, or would have been but for somebody who holds one."""
    lines = []
    for host in report["hosts"]:
        kvm = host.get("kvm") or {"loaded": [], "default": None, "unloaded": [], "kept": []}
        would = "to be " if report["mode"] == "plan" else ""
        told = [f"{core} {would}loaded" for core in kvm["loaded"]]
        told += [f"{kvm['default']} made the default"] if kvm["default"] else []
        told += [f"{core} unloaded" for core in kvm["unloaded"]]
        told += [f"{kept['core']} kept: {kept['reason']}" for kept in kvm["kept"]]
        lines += [f"KVM on {host['name']}: {'; '.join(told)}"] if told else []
    return lines


def _left_out_lines(report: Report) -> list[str]:
    return [f"left out: {vm['host']}/{vm['name']}: {vm['reason']}" for vm in report["vms"] if vm["outcome"] == LEFT_OUT]


def _warning_lines(report: Report) -> list[str]:
    """One line for each thing to know of a VM that neither stopped it nor, in a plan, would."""
    return [f"note on {vm['host']}/{vm['name']}: {text}" for vm in report["vms"] for text in vm.get("warnings") or []]


def _watch_lines(report: Report) -> list[str]:
    """How well the rollout was watched, and each reason for which something was not."""
    watch = report.get("watch")
    if watch is None:
        return []
    lines = [f"not watched, {reason}: {', '.join(names)}" for reason, names in unwatched(watch).items()]
    return [f"watch: {sentence(watch)}", *lines]


def _rows(report: Report) -> Sequence[tuple[str, ...]]:
    rows = []
    shows_kvm = _shows_kvm(report)
    for vm in report["vms"]:
        kvm = vm.get("kvm") or {"from": None, "to": None}
        outcome = vm["outcome"]
        if vm["rollback"]:
            outcome += f", then roll-back: {vm['rollback']['outcome']}"
        rows.append(
            (
                str(vm["wave"]),
                vm["host"],
                vm["name"],
                vm["old_build_id"] or ("foreign" if vm.get("old_build_known", True) else "unknown"),
                vm["new_build_id"] or "-",
                *((kvm["from"] or "-", kvm["to"] or "-") if shows_kvm else ()),
                vm["mechanism"] or "-",
                format_ms(vm["downtime_ms"]),
                format_ms(vm["total_ms"]),
                outcome,
            )
        )
    shown = {vm["host"] for vm in report["vms"]}
    rows += [
        (str(host["wave"]), host["name"], *["-"] * (len(_headings(report)) - 3), host["outcome"])
        for host in report["hosts"]
        if host["name"] not in shown
    ]
    return sorted(rows, key=lambda row: int(row[0]))
