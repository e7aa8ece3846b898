# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report as metrics for the textfile collector of Prometheus' node_exporter. PRIVATE to the collection."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    budget_of,
    is_over_budget,
)

Report = Mapping[str, Any]
Labels = Mapping[str, str]

_VM_OUTCOMES = (
    "upgraded",
    "already",
    "planned",
    "refused",
    "rolled_back",
    "failed",
    "lost",
    "not_attempted",
    "left_out",
)
_HOST_OUTCOMES = ("ok", "failed", "unreachable", "interrupted", "not_attempted", "left_out")
_GATE_VERDICTS = (PASS, FAIL, INCONCLUSIVE, "none")


def render_metrics(report: Report) -> str:
    """Return the report in Prometheus' text format. Counts are there when they are zero, too, so that alerts can rely on them."""
    kind = {"kind": report["kind"]}
    told = {**kind, "rollout_id": report["rollout_id"], "build": report["build"] or "", "verdict": report["verdict"]}
    vms, waves = report["vms"], report["waves"]
    families = [
        _family("info", "Which rollout this tells of.", [({**told, "kvm_build": report.get("kvm_build") or ""}, 1)]),
        _family("success", "Whether every wave passed.", [(kind, int(report["verdict"] == "ok"))]),
        _family("start_timestamp_seconds", "When it began.", [(kind, _timestamp(report["started"]))]),
        _family("end_timestamp_seconds", "When it ended.", [(kind, _timestamp(report["finished"]))]),
        _family("vms", "VMs by outcome.", _counted(kind, "outcome", _VM_OUTCOMES, (vm["outcome"] for vm in vms))),
        _family(
            "vms_undone", "Upgraded VMs that were rolled back with their wave.", [(kind, report["summary"]["undone"])]
        ),
        _family(
            "hosts",
            "Hosts by outcome.",
            _counted(kind, "outcome", _HOST_OUTCOMES, (host["outcome"] for host in report["hosts"])),
        ),
        _family(
            "waves",
            "Waves by the verdict of the gate.",
            _counted(
                kind, "verdict", _GATE_VERDICTS, (wave["gate"]["verdict"] if wave["gate"] else "none" for wave in waves)
            ),
        ),
        *_downtimes(report, kind),
    ]
    return "".join(families)


def _downtimes(report: Report, kind: Labels) -> list[str]:
    """Families by class of VM. A class without a measured pause has a count of 0 and no other sample."""
    measured, longest, over, budgets = [], [], [], []
    for vm_class in sorted({vm["vm_class"] or "" for vm in report["vms"]}):
        vms = [vm for vm in report["vms"] if (vm["vm_class"] or "") == vm_class]
        pauses = [vm["downtime_ms"] / 1000 for vm in vms if vm["downtime_ms"] is not None]
        labels = {**kind, "vm_class": vm_class}
        if pauses:
            measured.append(({**labels, "quantile": "0.5"}, statistics.median(pauses), ""))
            longest.append((labels, max(pauses)))
        measured += [(labels, sum(pauses), "_sum"), (labels, len(pauses), "_count")]
        over.append((labels, sum(1 for vm in vms if is_over_budget(vm, report["downtime_budget_ms"]))))
        budget_ms = next((b for vm in vms if (b := budget_of(vm, report["downtime_budget_ms"])) is not None), None)
        if budget_ms is not None:
            budgets.append((labels, budget_ms / 1000))
    name = "vmm_rollout_downtime_seconds"
    summary = f"# HELP {name} Measured pauses of VMs.\n# TYPE {name} summary\n"
    summary += "".join(f"{name}{suffix}{_labels(labels)} {value:.10g}\n" for labels, value, suffix in measured)
    return [
        summary if measured else "",
        _family("downtime_max_seconds", "Longest measured pause of a VM.", longest),
        _family("downtime_budget_seconds", "Longest pause that was allowed.", budgets),
        _family("vms_over_budget", "VMs whose measured pause was longer than allowed.", over),
    ]


def _family(name: str, text: str, samples: Iterable[tuple[Labels, float]]) -> str:
    full = f"vmm_rollout_{name}"
    lines = [f"{full}{_labels(labels)} {value:.13g}" for labels, value in samples]
    return "\n".join([f"# HELP {full} {text}", f"# TYPE {full} gauge", *lines, ""]) if lines else ""


def _counted(kind: Labels, label: str, known: Iterable[str], found: Iterable[str]) -> list[tuple[Labels, float]]:
    counts = dict.fromkeys(known, 0)
    for value in found:
        counts[value] = counts.get(value, 0) + 1
    return [({**kind, label: value}, count) for value, count in counts.items()]


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _timestamp(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
