# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong in a wave, host by host and VM by VM, from the records. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import GOOD_OUTCOMES, is_good
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import Watch

Record = Mapping[str, Any]

HOST, OUTCOME, PAUSE, HEALTH, WATCH = "host", "outcome", "pause", "health", "watch"

_HARD_OUTCOMES = {"lost": "the guest is lost", "failed": "its state is not clear, so who runs the guest is not"}
_HARD_CHECKS = {
    "gone": "the guest is lost",
    "run_state": "the guest stands still",
    "disk_errors": "disk requests fail",
    "disk_status": "disk requests fail",
    "serial crash": "the guest crashed",
    "serial disk": "disk requests fail",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. ``vm`` is empty for what is the host's own.

    ``hard``: what makes it a reason to stop whatever the statistics say, empty where it is none.
    """

    kind: str
    host: str
    vm: str
    text: str
    hard: str = ""


def vms_of(hosts: Sequence[str], records: Mapping[str, Record]) -> list[tuple[str, Record]]:
    """Return the records of all VMs on ``hosts``, each with its host."""
    return [(host, vm) for host in hosts if host in records for vm in records[host]["vms"]]


def find(hosts: Sequence[str], records: Mapping[str, Record], downtime_budget_ms: float | None) -> list[Finding]:
    """Return what is wrong on ``hosts``: first what is the hosts' own, then outcomes, pauses, health."""
    vms = vms_of(hosts, records)
    return [
        *_of_hosts(hosts, records),
        *(finding for host, vm in vms for finding in _of_outcome(host, vm)),
        *(finding for host, vm in vms for finding in _of_pause(host, vm, downtime_budget_ms)),
        *(finding for host, vm in vms for finding in _of_health(host, vm)),
    ]


def find_watched(hosts: Sequence[str], records: Mapping[str, Record], watch: Watch | None) -> list[Finding]:
    """Return what the watcher saw of VMs that were upgraded and that stops a rollout."""
    return [
        Finding(WATCH, host, vm["name"], f"{host}/{vm['name']}: {event.text}, at {event.host_at}", event.hard)
        for host, vm in (vms_of(hosts, records) if watch else [])
        if watch and vm["outcome"] == "upgraded"
        for event in watch.hard_events(host, vm["name"])
    ]


def outcome_of(host: str, records: Mapping[str, Record]) -> str:
    """Return what a host came to; one without a record was lost on the way."""
    return str(records[host]["outcome"]) if host in records else "unreachable"


def budget_of(vm: Record, downtime_budget_ms: float | None) -> float | None:
    """Return what the pause of a VM is held against: the budget of its class, else that of the rollout, which may be none."""
    return vm["pause_budget_ms"] if vm.get("vm_class") is not None else downtime_budget_ms


def is_over_budget(vm: Record, downtime_budget_ms: float | None) -> bool:
    """Whether the measured pause of a VM was longer than its budget, where it has one and was measured."""
    budget_ms = budget_of(vm, downtime_budget_ms)
    return budget_ms is not None and vm.get("downtime_ms") is not None and vm["downtime_ms"] > budget_ms


def _of_hosts(hosts: Sequence[str], records: Mapping[str, Record]) -> Iterator[Finding]:
    """What is the host's own; a host that failed by its VMs is told VM by VM."""
    for host in hosts:
        if host not in records:
            yield Finding(HOST, host, "", f"{host}: unreachable: it left the play before its outcome was known")
        elif records[host]["outcome"] == "unreachable":
            yield Finding(HOST, host, "", f"{host}: unreachable{_because(records[host])}")
        elif records[host]["outcome"] == "failed" and all(is_good(vm) for vm in records[host]["vms"]):
            yield Finding(HOST, host, "", f"{host}: failed{_because(records[host])}")


def _of_outcome(host: str, vm: Record) -> Iterator[Finding]:
    outcome = vm["outcome"]
    if outcome not in GOOD_OUTCOMES:
        text = f"{host}/{vm['name']}: {outcome}{_because(vm)}"
        yield Finding(OUTCOME, host, vm["name"], text, _HARD_OUTCOMES.get(outcome, ""))


def _of_pause(host: str, vm: Record, downtime_budget_ms: float | None) -> Iterator[Finding]:
    if vm["outcome"] != "already" and is_over_budget(vm, downtime_budget_ms):
        budget_ms = budget_of(vm, downtime_budget_ms)
        text = f"{host}/{vm['name']}: downtime {vm['downtime_ms']:.1f} ms is over the budget of {budget_ms:g} ms"
        yield Finding(PAUSE, host, vm["name"], text)


def _of_health(host: str, vm: Record) -> Iterator[Finding]:
    regressions = (vm.get("health") or {}).get("regressions")
    if regressions:
        text = f"{host}/{vm['name']}: less healthy than before: {'; '.join(regressions)}"
        checks = [regression.partition(": ")[0] for regression in regressions]
        hard = next((_HARD_CHECKS[check] for check in checks if check in _HARD_CHECKS), "")
        yield Finding(HEALTH, host, vm["name"], text, hard)


def _because(record: Record) -> str:
    text = record.get("error") or record.get("reason")
    return f": {text}" if text else ""
