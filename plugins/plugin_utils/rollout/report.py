# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a rollout, made from its journal alone (docs/upgrade.schema.json). PRIVATE to the collection."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.cores import changed_core, merge_kvm
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import PASS
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import (
    Event,
    Journal,
    utc_now,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import groups_before, is_good
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEFT_OUT
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.resume import is_finished, pause_of
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.status import ASKED, WINDOW, status_of
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import Watch, read_watch

SCHEMA = 1


def build_report(events: Sequence[Event], aborted: bool, watch: Watch | None = None) -> dict[str, Any]:
    """Return the report of the rollout told by ``events``, with what the watcher saw.

    ``aborted`` says that the play ended without coming to its finish: such a rollout is never ok, whatever it did. One that waits
    for something has come to it, and is not at its end either.
    """
    begin = events[0]
    records = {event["host"]: event for event in events if event["event"] == "host"}
    started = {event["host"]: event for event in events if event["event"] == "started"}
    rollbacks = {event["host"]: event for event in events if event["event"] == "rollback"}
    settled = {event["host"]: event for event in events if event["event"] == "settled"}
    # the journal of an older version has neither checks nor what the rollout did then
    gates = {
        event["wave"]: {"checks": [], "then": None, **event["gate"]} for event in events if event["event"] == "gate"
    }
    judged_at = {event["wave"]: event.get("at") for event in events if event["event"] == "gate"}
    waves = [
        {
            "index": index,
            "hosts": hosts,
            "started": min(_times(started.get(host) for host in hosts), default=None),
            "judged": judged_at.get(index),
            "finished": max(_times(_last(host, records, rollbacks, settled) for host in hosts), default=None),
            "gate": gates.get(index),
            "rolled_back": any(host in rollbacks for host in hosts),
        }
        for index, hosts in enumerate(begin["waves"])
    ]
    concluded = _conclusions(events)
    vms = [
        {**_vm(record, vm, rollbacks.get(host)), "finished": concluded.get((host, vm["name"]))}
        for host, record in records.items()
        for vm in record["vms"]
    ]
    pause = pause_of(events)
    verdict, exit_reason = _judge(waves, vms, rollbacks, settled, pause, begin["plan"], aborted)
    report = {
        "schema": SCHEMA,
        "rollout_id": begin["rollout_id"],
        "kind": begin["kind"],
        "mode": "plan" if begin["plan"] else "apply",
        "started": begin["at"],
        # That it was gone back on later is no part of it.
        "finished": next(event.get("at") for event in reversed(events) if event["event"] != "undone") or utc_now(),
        "build": begin["build_id"],
        "kvm_build": begin.get("kvm_build_id"),
        "downtime_budget_ms": begin["downtime_budget_ms"],
        "waves": waves,
        "hosts": [
            {
                **_host(
                    host, index, records.get(host), rollbacks.get(host), judged=index in gates, started=host in started
                ),
                "started": (started.get(host) or {}).get("at"),
                "finished": (records.get(host) or {}).get("at"),
                "rollback_finished": (rollbacks.get(host) or {}).get("at"),
                "kvm": _cores(records.get(host), rollbacks.get(host), settled.get(host)),
            }
            for index, hosts in enumerate(begin["waves"])
            for host in hosts
        ],
        "vms": vms,
        "watch": watch and watch.to_dict(),
        "summary": summarise(vms),
        "verdict": verdict,
        "exit_reason": exit_reason,
    }
    waits_for = str(pause.get("waits_for", WINDOW)) if pause else None
    return {**report, "status": status_of(report, waits_for)}


def summarise(vms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the count per outcome, how many were rolled back later, and n, median and maximum of the downtimes (ms)."""
    downtimes = [vm["downtime_ms"] for vm in vms if vm["outcome"] == "upgraded" and vm["downtime_ms"] is not None]
    outcomes: dict[str, int] = {}
    for vm in vms:
        outcomes[vm["outcome"]] = outcomes.get(vm["outcome"], 0) + 1
    return {
        "outcomes": outcomes,
        "undone": sum(1 for vm in vms if _undone(vm)),
        "downtime_measured": len(downtimes),
        "downtime_median_ms": statistics.median(downtimes) if downtimes else None,
        "downtime_max_ms": max(downtimes, default=None),
    }


def load_report(path: Path) -> dict[str, Any]:
    """Return the report in ``path``, which is a report or the journal of a rollout that never wrote one."""
    if path.suffix == ".jsonl":
        events = Journal(path).read()
        return build_report(events, aborted=not is_finished(events), watch=read_watch(path))
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise AnsibleError(f"the report {path} cannot be read: {exc.strerror}; name one with -e") from exc
    except ValueError as exc:
        raise AnsibleError(f"{path} is not a report: {exc}") from exc
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise AnsibleError(f"{path} is not a report that this version reads (schema {SCHEMA})")
    return report


def previous_builds(report: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return per host the VMs that are where they are because of the report's rollout, grouped by what they ran before.

    ``wanted`` narrows it to VMs of these names. What the rollout rolled back by itself is left out. See ``groups_before``.
    """
    moved: dict[str, list[Mapping[str, Any]]] = {}
    for vm in report["vms"]:
        if vm["outcome"] == "upgraded" and not _undone(vm) and (not wanted or vm["name"] in wanted):
            moved.setdefault(vm["host"], []).append(vm)
    return {host: groups_before(vms) for host, vms in moved.items()}


def previous_defaults(report: Mapping[str, Any]) -> dict[str, str]:
    """Return per host the build that new VMs started on before the report's rollout changed it."""
    return {host["name"]: host["previous_default"] for host in report["hosts"] if host["previous_default"]}


def previous_cores(report: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return per host what to do with its KVM cores to undo the report's rollout.

    ``default``: the core that was it before, empty to leave it, as when only the VMs ``wanted`` go back. ``unload``: the cores
    that are not needed any more once no VM runs on them.
    """
    found: dict[str, dict[str, Any]] = {}
    for vm in report["vms"]:
        if (
            vm["outcome"] == "upgraded"
            and changed_core(vm)
            and not _undone(vm)
            and (not wanted or vm["name"] in wanted)
        ):
            found.setdefault(vm["host"], {"default": "", "unload": set()})["unload"].add(vm["kvm"]["to"])
    for host in [] if wanted else report["hosts"]:
        kvm = host.get("kvm")
        if kvm and kvm["default"]:
            undo = found.setdefault(host["name"], {"default": "", "unload": set()})
            undo["default"] = kvm["previous_default"] or ""
            undo["unload"].add(kvm["default"])
    return {host: {**undo, "unload": sorted(undo["unload"] - {None})} for host, undo in found.items()}


def _undone(vm: Mapping[str, Any]) -> bool:
    return (vm["rollback"] or {}).get("outcome") in ("upgraded", "already")


def _judge(
    waves: Sequence[Mapping[str, Any]],
    vms: Sequence[Mapping[str, Any]],
    rollbacks: Mapping[str, Event],
    settled: Mapping[str, Event],
    pause: Event | None,
    plan: bool,
    aborted: bool,
) -> tuple[str, str]:
    for wave in waves:
        gate = wave["gate"]
        if gate is not None and gate["verdict"] != PASS and gate["then"] not in ("go_on", "grow"):
            failed_rollbacks = sorted(
                host for host in wave["hosts"] if rollbacks.get(host, {}).get("outcome", "ok") != "ok"
            )
            undone = "; rolled back" if wave["rolled_back"] else ""
            if failed_rollbacks:
                undone = f"; the roll-back of {', '.join(failed_rollbacks)} failed too, a person must look"
            waits = f". {pause['reason']}" if pause and pause["wave"] == wave["index"] else ""
            return "failed", f"wave {wave['index']} {gate['verdict']}: {'; '.join(gate['reasons'])}{undone}{waits}"
    unsettled = [f"{host}: {event['reason']}" for host, event in settled.items() if event["outcome"] != "ok"]
    if unsettled:
        return "failed", f"the VMs were moved, but not all was done after that: {'; '.join(unsettled)}"
    if pause:
        return "paused" if pause.get("waits_for") == ASKED else "aborted", str(pause["reason"])
    if aborted:
        return "aborted", "the run ended before the rollout did; run it again to go on where it stopped"
    missing = [str(wave["index"]) for wave in waves if wave["gate"] is None]
    if missing or not waves:
        return "failed", f"no judgement of wave {', '.join(missing)}" if missing else "no host was selected"
    if plan:
        return "ok", "plan only: nothing was changed"
    return "ok", _reached(waves, vms)


def _reached(waves: Sequence[Mapping[str, Any]], vms: Sequence[Mapping[str, Any]]) -> str:
    """What a rollout came to that was not stopped. A gate may be asked to let failures pass, or waves that prove nothing."""
    bad = [f"{vm['host']}/{vm['name']}" for vm in vms if not is_good(vm)]
    if bad:
        told = f"the gate allowed {len(bad)} of {len(vms)} VMs not to be on their build or to be less healthy: {', '.join(bad)}"
    else:
        told = "every VM is on its build and no less healthy than before"
    unproved = [
        str(wave["index"]) for wave in waves if wave["gate"]["verdict"] != PASS and wave["gate"]["then"] == "go_on"
    ]
    left = [f"{vm['host']}/{vm['name']}" for vm in vms if vm["outcome"] == LEFT_OUT]
    if left:
        told = told.replace("every VM", "every other VM")
        told += f"; {len(left)} VM{' was' if len(left) == 1 else 's were'} left out: {', '.join(left)}"
    return told + (f"; wave {', '.join(unproved)} was let pass without proof, as configured" if unproved else "")


def _times(events: Iterable[Event | None]) -> list[str]:
    return [event["at"] for event in events if event and event.get("at")]


def _last(host: str, *kinds: Mapping[str, Event]) -> Event | None:
    """The last of what was recorded of a host; ``kinds`` are in the order in which they happen."""
    return next((kind[host] for kind in reversed(kinds) if host in kind), None)


def _conclusions(events: Sequence[Event]) -> dict[tuple[str, str], str]:
    """When the way forward of each VM came to its end; the moves of a roll-back come after and do not count."""
    found: dict[tuple[str, str], str] = {}
    for event in events:
        if event["event"] == "vm":
            found.setdefault((event["host"], event["name"]), event["at"])
    return found


def _host(
    name: str, wave: int, record: Event | None, rollback: Event | None, judged: bool, started: bool
) -> dict[str, Any]:
    if record:
        outcome, reason = record["outcome"], record["reason"]
    elif judged:
        outcome, reason = "unreachable", "it left the play before its outcome was known"
    elif started:
        outcome, reason = (
            "interrupted",
            "the run ended during its turn; the host finishes or undoes the upgrade by itself",
        )
    else:
        outcome, reason = "not_attempted", None
    return {
        "name": name,
        "wave": wave,
        "outcome": outcome,
        "reason": reason,
        "rollback": rollback["outcome"] if rollback else None,
        "previous_default": record["previous_default"] if record and record["default_changed"] else None,
    }


def _cores(turn: Event | None, *judged: Event | None) -> dict[str, Any] | None:
    """What was done to a host's KVM cores: in its turn, and then as its wave was judged."""
    found = (turn or {}).get("kvm")
    for event in judged:
        found = merge_kvm(found, (event or {}).get("kvm"))
    return found


def _vm(record: Event, vm: Mapping[str, Any], rollback: Event | None) -> dict[str, Any]:
    undone = {entry["name"]: entry for entry in rollback["vms"]} if rollback else {}
    entry = undone.get(vm["name"])
    return {
        "host": record["host"],
        "wave": record["wave"],
        "kvm": None,  # the journal of a version that knew nothing of it
        "warnings": [],
        **vm,
        "rollback": entry
        and {
            key: entry.get(key) for key in ("outcome", "new_build_id", "kvm", "downtime_ms", "downtime_source", "error")
        },
    }
