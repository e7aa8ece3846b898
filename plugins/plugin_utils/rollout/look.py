# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""At what point of a rollout a wave is judged: what is demanded, and what was seen so far. PRIVATE to the collection."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.checks import FAIL, PASS
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.policy import (
    GO_ON,
    GROW,
    GatePolicy,
    parse_policy,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import Watch


@dataclass(frozen=True)
class Look:
    """What a judgement needs besides the records of its wave.

    ``earlier``: the hosts of the waves before. ``looks``: how many waves there are in all, each of which is judged once.
    ``soaked_s``: per host for how long its VMs ran before the last look at their health. ``others``: whether VMs on hosts that
    were yet to be upgraded got worse while a wave ran, per wave and host; ``has_others``: whether some were looked at with
    this wave. ``watch``: what the watcher saw, None where nobody watches.
    """

    policy: GatePolicy = field(default_factory=GatePolicy)
    earlier: Sequence[str] = ()
    looks: int = 1
    soaked_s: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    has_others: bool = False
    watch: Watch | None = None


def look_at(events: Sequence[Event], wave: int, watch: Watch | None = None) -> Look:
    """Return from the journal what is needed to judge ``wave``, with what the watcher saw."""
    begin = events[0]
    others = [event for event in events if event["event"] == "others" and event["wave"] <= wave]
    return Look(
        policy=parse_policy(begin.get("gate")),
        earlier=[host for hosts in begin["waves"][:wave] for host in hosts],
        looks=len(begin["waves"]),
        soaked_s=_soaked(events),
        others={
            f"{event['wave']} {host}": [bool(vm["regressions"]) for vm in vms]
            for event in others
            for host, vms in event["hosts"].items()
        },
        has_others=any(event["wave"] == wave and any(event["hosts"].values()) for event in others),
        watch=watch,
    )


def next_step(
    verdict: str, policy: GatePolicy, waves: Sequence[Sequence[str]], wave: int, accepted: bool = False
) -> str:
    """Return what the rollout does after ``wave`` of ``waves``: ``go_on``, ``stop``, ``pause`` for a person, or ``grow``.

    To grow is to take the next wave as more of this one, as long as the hosts so far with it are no larger a share of all than
    the policy lets be upgraded without proof. ``accepted``: a person lets the wave pass unless it is shown that it may not.
    """
    if verdict == PASS:
        return "go_on"
    if verdict == FAIL:
        return "stop"
    if accepted or policy.on_inconclusive == GO_ON:
        return "go_on"
    together = sum(len(hosts) for hosts in waves[: wave + 2])
    is_small = together <= policy.grow_limit * sum(len(hosts) for hosts in waves)
    return "grow" if policy.on_inconclusive == GROW and wave + 1 < len(waves) and is_small else "pause"


def left_open(events: Sequence[Event]) -> dict[str, list[str]]:
    """Return the hosts of waves that grew, by what the rollout did once they were judged with a later one (``then``).

    Waves that nothing came after are left out: a run that was interrupted decided nothing. A pause is over when the wave is
    judged anew.
    """
    waves = events[0]["waves"]
    then_of: dict[int, str] = {}
    growing: set[int] = set()
    for event in events:
        if event["event"] == "gate":
            then = str(event["gate"].get("then"))
            if then == "grow":
                growing.add(event["wave"])
                continue
            then_of.update(dict.fromkeys(growing, then))
            growing = growing if then == "pause" else set()
    decided: dict[str, list[str]] = {}
    for wave, then in sorted(then_of.items()):
        decided.setdefault(then, []).extend(waves[wave])
    return decided


def is_growing(events: Sequence[Event]) -> bool:
    """Whether the last wave that was judged has grown, so that it is judged with a later one."""
    gates = [event for event in events if event["event"] == "gate"]
    return bool(gates) and gates[-1]["gate"].get("then") == "grow"


def lasted_s(events: Sequence[Event]) -> dict[str, float]:
    """Return per host how many seconds ago its turn was over, by the clock of this controller."""
    now = datetime.datetime.now(datetime.timezone.utc)
    over: dict[str, datetime.datetime] = {}
    for event in events:
        if event["event"] == "host":
            over.setdefault(event["host"], datetime.datetime.fromisoformat(event["at"]))
    return {host: max((now - at).total_seconds(), 0.0) for host, at in over.items()}


def _soaked(events: Sequence[Event]) -> dict[str, float]:
    """A host is recorded after its turn and, if it soaked, again: what lies between is measured, not what was asked for."""
    first: dict[str, datetime.datetime] = {}
    soaked = {}
    for event in events:
        if event["event"] == "host":
            at = datetime.datetime.fromisoformat(event["at"])
            soaked[event["host"]] = (at - first.setdefault(event["host"], at)).total_seconds()
    return soaked
