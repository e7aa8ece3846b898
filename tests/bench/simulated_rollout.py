# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout whose hosts are dice and whose gate is the real one: what is recorded is drawn, how it is judged is not."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import Gate, judge
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import Look, look_at, next_step
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.waves import plan_waves

BUDGET_MS = 50.0
_SLOW_MS, _USUAL_MS, _SPREAD = 120.0, 8.0, 0.35
_BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)

Judge = Callable[[Sequence[str], Mapping[str, Any], "float | None", "Look | None"], Gate]


@dataclass(frozen=True)
class Build:
    """What a build does to a VM, each a probability.

    ``lost``: the guest is lost. ``taken_back``: the old QEMU runs on. ``slow``: the pause is over the budget. ``late``: its
    health is worse after the soak, not before. ``flaps``: the health of any VM, upgraded or not, looks worse for reasons of its
    own. ``alike``: how strongly the VMs of one host share their fate (the correlation within a host).
    """

    name: str
    lost: float = 0.0
    taken_back: float = 0.0
    slow: float = 0.0
    late: float = 0.0
    flaps: float = 0.0
    alike: float = 0.0


@dataclass(frozen=True)
class Fleet:
    """Hosts, VMs on each, the sizes of the waves, and what the gate is asked for."""

    hosts: int
    vms_per_host: int
    waves: tuple[int | str, ...]
    gate: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a simulated rollout ended: in which wave it stopped (None: it did not), how many hosts that touched, and why."""

    stopped_in: int | None
    waves: int
    hosts_touched: int
    verdict: str
    checks: tuple[str, ...]

    @property
    def was_stopped(self) -> bool:
        """Whether it stopped before the last wave, so that part of the fleet never saw the build."""
        return self.stopped_in is not None and self.stopped_in < self.waves - 1


def run(fleet: Fleet, build: Build, dice: random.Random, judged_by: Judge = judge) -> Ended:
    """Roll ``build`` out over ``fleet``, wave by wave, until the gate stops it or the fleet ends."""
    hosts = [f"h{number}" for number in range(fleet.hosts)]
    waves = plan_waves(hosts, fleet.waves)
    events: list[Event] = [{"event": "begin", "waves": waves, "gate": dict(fleet.gate)}]
    records: dict[str, Event] = {}
    soak_s, controls = int(fleet.gate.get("soak_s", 0)), int(fleet.gate.get("controls", 0))
    touched = 0
    gate = None
    for wave, batch in enumerate(waves):
        touched += len(batch)
        for host in batch:
            turn = _turn(fleet, build, dice)
            later = {"vms": [_soaked(vm, build, dice) for vm in turn["vms"]]}
            for seconds, record in ((0, turn), (soak_s, {**turn, **later})):
                at = (_BEGIN + datetime.timedelta(seconds=seconds)).isoformat()
                records[host] = {"event": "host", "host": host, "wave": wave, "at": at, **record}
                events.append(records[host])
        rest = [host for later_wave in waves[wave + 1 :] for host in later_wave][:controls]
        if rest:
            events.append(
                {"event": "others", "wave": wave, "hosts": {host: _others(fleet, build, dice) for host in rest}}
            )
        look = look_at(events, wave)
        gate = judged_by(batch, records, BUDGET_MS, look)
        then = next_step(gate.verdict, look.policy, waves, wave)
        events.append({"event": "gate", "wave": wave, "gate": {**gate.to_dict(), "then": then}})
        if then in ("stop", "pause"):
            failing = tuple(check.check for check in gate.checks if check.verdict != "PASS")
            return Ended(wave, len(waves), touched, gate.verdict, failing)
    assert gate is not None
    return Ended(None, len(waves), touched, gate.verdict, ())


def _turn(fleet: Fleet, build: Build, dice: random.Random) -> dict[str, Any]:
    rates = {name: _on_this_host(getattr(build, name), build.alike, dice) for name in ("lost", "taken_back", "slow")}
    late = _on_this_host(build.late, build.alike, dice)
    vms = [{**_vm(f"vm{number}", rates, dice), "_late": late} for number in range(fleet.vms_per_host)]
    bad = any(vm["outcome"] != "upgraded" for vm in vms)
    return {"outcome": "failed" if bad else "ok", "reason": None, "vms": vms, "default_changed": False}


def _vm(name: str, rates: Mapping[str, float], dice: random.Random) -> dict[str, Any]:
    outcome = "upgraded"
    if dice.random() < rates["lost"]:
        outcome = "lost"
    elif dice.random() < rates["taken_back"]:
        outcome = "rolled_back"
    pause_ms = _SLOW_MS if dice.random() < rates["slow"] else _USUAL_MS
    return {
        "name": name,
        "outcome": outcome,
        "downtime_ms": pause_ms * dice.lognormvariate(0, _SPREAD) if outcome == "upgraded" else None,
        "old_build_id": "old",
        "health": None,
    }


def _soaked(vm: Mapping[str, Any], build: Build, dice: random.Random) -> dict[str, Any]:
    worse = vm["outcome"] == "upgraded" and dice.random() < 1 - (1 - vm["_late"]) * (1 - build.flaps)
    return {**vm, "health": {"before": [], "after": [], "regressions": ["ping: silent"] if worse else []}}


def _others(fleet: Fleet, build: Build, dice: random.Random) -> list[dict[str, Any]]:
    return [
        {"name": f"vm{number}", "regressions": ["ping: silent"] if dice.random() < build.flaps else []}
        for number in range(fleet.vms_per_host)
    ]


def _on_this_host(rate: float, alike: float, dice: random.Random) -> float:
    """A host's own rate around that of the build; drawn so, VMs of one host have the correlation ``alike`` (beta-binomial)."""
    if not 0 < rate < 1 or not alike:
        return rate
    size = 1 / alike - 1
    return dice.betavariate(rate * size, (1 - rate) * size)
