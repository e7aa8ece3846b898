# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong in a rollout, and how each stands since. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import budget_of, is_over_budget
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import GOOD_OUTCOMES, is_good
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import milliseconds

Report = Mapping[str, Any]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """Something that went wrong, and how things stand since."""

    wave: int
    where: str
    what: str
    why: str
    now: str


def problems(report: Report) -> list[Problem]:
    """Return everything that went wrong, in the order of the waves: hosts before their VMs."""
    found = [*_host_problems(report), *_vm_problems(report)]
    return sorted(found, key=lambda problem: problem.wave)


def _host_problems(report: Report) -> Iterator[Problem]:
    vms_that_tell = {vm["host"] for vm in report["vms"] if not is_good(vm)}
    for host in report["hosts"]:
        outcome, reason = host["outcome"], host["reason"] or "no reason was recorded"
        if outcome in ("unreachable", "interrupted"):
            now = "the host finishes or undoes what it began; the same command again tells what came of it"
            yield Problem(host["wave"], host["name"], outcome, reason, now)
        elif outcome == "failed" and host["name"] not in vms_that_tell:
            yield Problem(
                host["wave"], host["name"], "failed", reason, _back_or(host["rollback"], "as the reason says")
            )
        if host["rollback"] not in (None, "ok"):
            now = "a person must look: its VMs may be on either build"
            yield Problem(host["wave"], host["name"], f"roll-back {host['rollback']}", reason, now)


_NOW = {
    "refused": "not touched; runs on what it ran before",
    "not_attempted": "not touched; runs on what it ran before",
    "rolled_back": "taken back by the old process; runs on what it ran before",
    "failed": "a person must look at it",
    "lost": "the guest is gone; start it anew",
}


def _vm_problems(report: Report) -> Iterator[Problem]:
    budget_ms = report["downtime_budget_ms"]
    for vm in report["vms"]:
        where, outcome = f"{vm['host']}/{vm['name']}", vm["outcome"]
        undone = (vm["rollback"] or {}).get("outcome")
        back = _back_or(
            undone and ("ok" if undone in GOOD_OUTCOMES else undone), f"stays on {vm['new_build_id'] or 'its build'}"
        )
        if outcome not in GOOD_OUTCOMES:
            why = vm["error"] or vm["reason"] or "no reason was recorded"
            yield Problem(vm["wave"], where, outcome.replace("_", " "), why, _NOW[outcome])
        elif is_over_budget(vm, budget_ms):
            limit = milliseconds(budget_of(vm, budget_ms))
            yield Problem(
                vm["wave"], where, "pause too long", f"{milliseconds(vm['downtime_ms'])}, budget {limit}", back
            )
        regressions = (vm["health"] or {}).get("regressions")
        if regressions:
            yield Problem(vm["wave"], where, "less healthy than before", "; ".join(regressions), back)
        if undone and undone not in GOOD_OUTCOMES:
            why = vm["rollback"]["error"] or "no reason was recorded"
            yield Problem(vm["wave"], where, f"roll-back {undone.replace('_', ' ')}", why, _NOW["failed"])


def _back_or(rollback: str | None, otherwise: str) -> str:
    return {"ok": "rolled back with its wave", None: otherwise}.get(rollback, "a person must look at it")
