# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Go on with a rollout whose controller went away: what is left of it, by its journal. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import JOURNALS, RUNS, Event, Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEFT_OUT


@dataclass(frozen=True)
class WaveState:
    """What is known of a wave that is entered again.

    ``done``: hosts whose turn is over. ``before``: the health of a host's VMs before they were touched, by a run that was cut.
    ``looked``: the same, and more, of hosts in whose turn it was; ``preflight`` is what it said, where VMs were refused.
    """

    done: list[str]
    before: dict[str, Any]
    looked: dict[str, dict[str, Any]]


def find_journal(reference: str, report: Path) -> Journal:
    """Return the journal that ``reference`` is, or that is beside ``report`` under this rollout id. Raises ``AnsibleError``."""
    path = Path(reference).expanduser()
    if path.suffix != ".jsonl":
        if Path(reference).name != reference:
            raise AnsibleError(f"upgrade_resume is {reference!r}, neither the id of a rollout nor a journal (.jsonl)")
        path = journal_beside(report, reference)
    if not path.is_file():
        raise AnsibleError(
            f"there is no journal {path}; nothing was touched. Give upgrade_resume=<rollout id>, with the upgrade_report of that "
            "rollout where it had another, or the path of its journal"
        )
    journal = Journal(path.absolute())
    begin = journal.begin()
    if begin["kind"] != "upgrade" or begin["plan"]:
        raise AnsibleError(f"{path} is not the journal of an upgrade, so it cannot be resumed; nothing was touched")
    return journal


def journal_beside(report: Path, rollout_id: str) -> Path:
    """Return where the journal of a rollout is that reports to ``report``."""
    return report.parent / JOURNALS / f"{rollout_id}.jsonl"


def is_finished(events: Sequence[Event]) -> bool:
    """Whether the rollout came to its end, good or bad. Such a one is not gone on with; one that waits for something is."""
    return any(event["event"] == "finish" and not event.get("paused") for event in events)


def pause_of(events: Sequence[Event]) -> Event | None:
    """Return what the last run has to wait for: the ``paused`` event it has come to, None when it waits for nothing."""
    for event in reversed(events):
        if event["event"] == "paused":
            return event
        if event["event"] in RUNS:
            return None
    return None


def waiting_wave(events: Sequence[Event]) -> int | None:
    """Return the wave of which a person has to decide whether the rollout goes on after it, None when there is none."""
    then = {event["wave"]: event["gate"].get("then") for event in events if event["event"] == "gate"}
    waiting = [wave for wave, step in then.items() if step == "pause"]
    return max(waiting, default=None)


def accepted_waves(events: Sequence[Event]) -> set[int]:
    """Return the waves that a person lets pass though it could not be shown that they may."""
    return {event["wave"] for event in events if event["event"] == "accepted"}


def undone_by(events: Sequence[Event]) -> str:
    """Return the roll-back that has taken VMs of the rollout back since, empty when there was none."""
    return next((str(event["by"]) for event in reversed(events) if event["event"] == "undone"), "")


def waves_left(events: Sequence[Event]) -> list[list[str]]:
    """Return the waves that did not pass yet, in order. One that passed is never judged again.

    Nor is one that grew, by itself: it is judged with the waves after it, and seen to at the end.
    """
    begin = events[0]
    then = {event["wave"]: event["gate"]["then"] for event in events if event["event"] == "gate"}
    passed = {wave for wave, step in then.items() if step == "go_on"}
    grown = {wave for wave, step in then.items() if step == "grow"}
    settled = {event["host"] for event in events if event["event"] == "settled" and event["outcome"] == "ok"}
    settled |= {event["host"] for event in events if event["event"] == "host" and event["outcome"] == LEFT_OUT}
    return [
        hosts
        for index, hosts in enumerate(begin["waves"])
        if index not in passed | grown
        or (index in passed and begin.get("kvm_build_id") and not settled.issuperset(hosts))
    ]


def wave_state(events: Sequence[Event], wave: int) -> WaveState:
    """Return what is known of a wave. A host that could not be reached gets another turn, unless its wave was judged."""
    hosts = events[0]["waves"][wave]
    judged = any(event["event"] == "gate" and event["wave"] == wave for event in events)
    records = {event["host"]: event for event in events if event["event"] == "host"}
    done = [host for host in hosts if judged or (host in records and records[host]["outcome"] != "unreachable")]
    seen = {event["host"]: event for event in events if event["event"] == "looked" and event["host"] in hosts}
    return WaveState(
        done=done,
        before={host: event["health_before"] for host, event in seen.items()},
        looked={
            host: {key: event.get(key, {}) for key in ("health_before", "kvm_load", "preflight")}
            for host, event in seen.items()
            if host not in done
        },
    )
