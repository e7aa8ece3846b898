# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of one host's turn in a wave: from the answers of the modules to one record. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.cores import changed_core, vm_move
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEFT_OUT

GOOD_OUTCOMES = frozenset({"upgraded", "already", "planned", LEFT_OUT})
"""A VM is, or in a plan would be, where it should be. Every other outcome breaks the wave."""

UNMOVED_OUTCOMES = frozenset({"already", LEFT_OUT})
"""Nothing was to be done to a VM, so it tells nothing of the build."""

_VM_FIELDS = (
    "mechanism",
    "reason",
    "downtime_ms",
    "downtime_source",
    "pause_budget_ms",
    "vm_class",
    "total_ms",
    "extra_memory_mib",
    "cpu_s",
    "old_build_id",
    "new_build_id",
    "error",
)
_OUTCOME_OF_VERDICT = {"refuse": "refused", "already": "already", "go": "not_attempted"}

Result = Mapping[str, Any]


def vm_records(
    preflight: Result, health_before: Result, upgrade: Result, health_after: Result, failure: str | None = None
) -> list[dict[str, Any]]:
    """Return one record per VM of the host, from the furthest step that knows the VM.

    Each argument is the answer of one module, empty where the step did not run. A VM that preflight let through and that
    ``vm_upgrade`` never reported was not attempted, because of ``failure``, which is what the host ended with; one that it
    reported without an outcome is in an unclear state.
    """
    before, after = _by_name(health_before), _by_name(health_after)
    found: dict[str, dict[str, Any]] = {
        name: {"outcome": "not_attempted", **_build_seen(health)} for name, health in before.items()
    }
    for name, verdict in _by_name(preflight).items():
        refusals = "; ".join(str(refusal.get("message", refusal)) for refusal in verdict.get("refusals") or [])
        found[name] = {
            "outcome": _OUTCOME_OF_VERDICT.get(str(verdict.get("verdict")), "refused"),
            "mechanism": verdict.get("mechanism"),
            "reason": refusals or verdict.get("mechanism_reason"),
        }
        if "old_build_id" in verdict:  # as new build what it runs, not what it might have
            found[name].update(old_build_id=verdict["old_build_id"], new_build_id=verdict["old_build_id"])
        if "kvm_build_id_before" in verdict:
            found[name].update((key, verdict["kvm_build_id_before"]) for key in ("kvm_build_id_before", "kvm_build_id"))
    for name, result in _by_name(upgrade).items():
        known = found.get(name, {})
        found[name] = dict(result)
        if not result.get("outcome"):
            for key in ("old_build_id", "kvm_build_id_before"):
                if key in known:
                    found[name].setdefault(key, known[key])
            found[name]["outcome"] = "failed"
            found[name]["error"] = (
                f"state unknown: contact was lost at step {result.get('step') or 'unknown'}; the host finishes or undoes it "
                "by itself, run the rollout again to learn the outcome"
            )
    for result in found.values():
        if result["outcome"] == "not_attempted" and not result.get("error"):
            result["error"] = failure
    return [_vm_record(name, result, before.get(name), after.get(name)) for name, result in found.items()]


def soaked_vms(vms: Sequence[Result], health_after: Result, compared: bool = True) -> list[dict[str, Any]]:
    """Return the records of a host's VMs with what a later look at their health found, too; what was found before stays.

    ``compared``: whether the look had the one before the upgrade as its baseline. That of a run which was cut is gone; then
    what is wrong now is held against what the record says was wrong before.
    """
    after = _by_name(health_after)
    return [
        (
            {**vm, "health": _later_health(vm.get("health") or {}, after[vm["name"]], compared)}
            if vm["name"] in after
            else dict(vm)
        )
        for vm in vms
    ]


def health_by_host(looks: Result) -> dict[str, list[dict[str, Any]]]:
    """Return per host how its VMs are, from a loop of ``vm_health`` over hosts; one that was not reached tells nothing."""
    return {
        str(item[item.get("ansible_loop_var", "item")]): [
            {"name": vm["name"], "regressions": _problems(vm, "regressions")} for vm in item["vms"]
        ]
        for item in looks.get("results") or []
        if item.get("vms") and not item.get("failed") and not item.get("unreachable")
    }


def host_outcome(vms: list[dict[str, Any]], unreachable: bool, failed: bool, left_out: bool = False) -> str:
    """Return what a host came to: unreachable wins, then any failure of the host or of one of its VMs.

    ``left_out``: whether no VM of it was to be moved, because one or all cannot be.
    """
    if unreachable:
        return "unreachable"
    if failed or not all(is_good(vm) for vm in vms):
        return "failed"
    return LEFT_OUT if left_out else "ok"


def is_good(vm: Result) -> bool:
    """Whether a VM record is where it should be and no less healthy than before."""
    return vm["outcome"] in GOOD_OUTCOMES and not (vm.get("health") or {}).get("regressions")


def merge_loop(result: Result) -> Result:
    """Return the answer of a task that looped as if it were one answer: all VMs, unreachable if any item was."""
    if "results" not in result:
        return result
    items = result["results"]
    return {
        "vms": [vm for item in items for vm in item.get("vms") or []],
        "unreachable": any(item.get("unreachable") for item in items),
        "msg": "; ".join(str(item["msg"]) for item in items if item.get("msg")) or None,
    }


def groups_before(vms: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the VMs of a host, by their records, grouped by what they ran before they were moved.

    Each group is ``build_id``, ``vms`` and, where KVM was changed, too, ``kvm_build_id``. An id is null where a VM came from
    what is not one of our builds, so that it cannot be moved back.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for vm in vms:
        ran = {"build_id": vm["old_build_id"]}
        if changed_core(vm):
            ran["kvm_build_id"] = vm["kvm"]["from"]
        groups.setdefault(tuple(ran.items()), {**ran, "vms": []})["vms"].append(vm["name"])
    return list(groups.values())


def _by_name(result: Result) -> dict[str, Result]:
    return {str(vm["name"]): vm for vm in result.get("vms") or []}


def _build_seen(health: Result) -> dict[str, Any]:
    """What a look at a VM tells of its build. There is nothing to tell when no process ran it."""
    if "build_id" not in health or not health["pid"]:
        return {}
    return {"old_build_id": health["build_id"], "new_build_id": health["build_id"]}


def _vm_record(name: str, result: Result, before: Result | None, after: Result | None) -> dict[str, Any]:
    record: dict[str, Any] = {"name": name, "outcome": result["outcome"]}
    record.update((field, result.get(field)) for field in _VM_FIELDS)
    record["old_build_known"] = "old_build_id" in result
    record["kvm"] = vm_move(result)
    record["warnings"] = list(result.get("warnings") or [])
    record["health"] = None
    if before is not None or after is not None:
        record["health"] = {
            "before": _problems(before, "problems"),
            "after": _problems(after, "problems"),
            "regressions": _problems(after, "regressions"),
        }
    return record


def _later_health(earlier: Result, after: Result, compared: bool) -> dict[str, Any]:
    found = _problems(after, "problems" if not compared else "regressions") or []
    if not compared:
        known = {problem.partition(": ")[0] for problem in earlier.get("before") or []}
        found = [problem for problem in found if problem.partition(": ")[0] not in known]
    return {
        "before": earlier.get("before"),
        "after": _problems(after, "problems"),
        "regressions": list(dict.fromkeys([*(earlier.get("regressions") or []), *found])),
    }


def _problems(health: Result | None, kind: str) -> list[str] | None:
    if health is None:
        return None
    return [f"{_check(problem)}: {problem['message']}" for problem in health.get(kind) or []]


def _check(problem: Result) -> str:
    """The name of the check; for a serial log with the kind of complaint, on which it depends how bad it is."""
    return f"serial {problem['subject']}" if problem["check"] == "serial" else str(problem["check"])
