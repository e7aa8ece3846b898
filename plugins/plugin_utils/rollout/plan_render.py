# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan as a page of text for the person who approves it. PRIVATE to the collection."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.filter.table import table
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan import Plan, no_way_back


def render_plan(plan: Plan) -> str:
    """Return the waves, the VMs of each, what is left out, what cannot go back, and the hash."""
    target = " and ".join(filter(None, (plan["build"], plan["kvm_build"])))
    wave_of = {host["name"]: host["wave"] for host in plan["hosts"]}
    moves = sum(wave["vms"] for wave in plan["waves"])
    parts = [
        f"{plan['plan_id']}: {moves} VMs on {sum(len(w['hosts']) for w in plan['waves'])} hosts to {target}, "
        f"in {len(plan['waves'])} waves",
        table(
            [_wave_row(wave) for wave in plan["waves"]], ["wave", "hosts", "VMs", "most of a domain", "when", "which"]
        ),
        _classes(plan),
        table(
            [_vm_row(wave_of[vm["host"]], vm) for vm in plan["vms"]],
            ["host", "VM", "wave", "class", "budget ms", "runs", "mechanism", "way back", "why"],
        ),
    ]
    left_out = [[e["host"], None, e["why"], e["detail"] or None] for e in plan["excluded"]]
    left_out += [
        _refused_row(vm) for vm in plan["vms"] if vm["verdict"] == "refuse" and wave_of[vm["host"]] is not None
    ]
    if left_out:
        parts.append("Left out:")
        parts.append(table(left_out, ["host", "VM", "why", "detail"]))
    stuck = no_way_back(plan)
    if stuck:
        parts.append("No way back, which must be approved explicitly (-e upgrade_approve_no_way_back=true):")
        parts.append("\n".join(f"  {line}" for line in stuck))
    parts.append(f"hash: {plan['hash']}")
    return "\n\n".join(parts)


def _wave_row(wave: dict[str, Any]) -> list[Any]:
    fullest = max(
        (
            (item["n"] / item["of"], f"{item['n']} of {item['of']} in {kind} {value}")
            for kind, values in wave["domains"].items()
            for value, item in values.items()
        ),
        default=(0, None),
    )[1]
    hosts = wave["hosts"]
    shown = ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
    name = f"{wave['index']}{' (canary)' if wave['index'] == 0 else ''}"
    return [name, len(hosts), wave["vms"], fullest, wave["windows"], shown]


def _refused_row(vm: dict[str, Any]) -> list[Any]:
    codes = ", ".join(sorted({str(item["code"]) for item in vm["refusals"]}))
    return [
        vm["host"],
        vm["name"],
        f"preflight refuses it [{codes}]",
        "; ".join(str(i["message"]) for i in vm["refusals"]),
    ]


def _classes(plan: Plan) -> str:
    """How the VMs that are moved divide by class and mechanism: what a canary of each should have shown."""
    wave_of = {host["name"]: host["wave"] for host in plan["hosts"]}
    total: Counter[tuple[str, str]] = Counter()
    canary: Counter[tuple[str, str]] = Counter()
    for vm in plan["vms"]:
        if vm["verdict"] == "go" and wave_of[vm["host"]] is not None:
            kind = (vm["class"] or "(none)", str(vm["mechanism"]))
            total[kind] += 1
            canary[kind] += wave_of[vm["host"]] == 0
    rows = [[*kind, count, canary[kind]] for kind, count in sorted(total.items())]
    return table(rows, ["class", "mechanism", "VMs", "in the canary"])


def _vm_row(wave: int | None, vm: dict[str, Any]) -> list[Any]:
    back = {True: "yes", False: "NO", None: None}[vm["can_go_back"]]
    why = "; ".join(str(item["message"]) for item in vm["refusals"]) or vm["reason"]
    what = vm["mechanism"] if vm["verdict"] == "go" else vm["verdict"]
    return [vm["host"], vm["name"], wave, vm["class"], vm["budget_ms"], vm["old_build"] or "foreign", what, back, why]
