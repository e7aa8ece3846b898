# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a rollout is, from the events of its journal as they come. PRIVATE to the collection."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import PASS
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import GOOD_OUTCOMES
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEFT_OUT
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import (
    amount,
    duration,
    milliseconds,
    parsed,
)

WAITING, RUNS, DONE, FAILED, GOING_BACK, BACK = "waiting", "runs", "done", "failed", "going back", "back"
_OVER = (DONE, FAILED, GOING_BACK, BACK)


def stops(gate: Event) -> bool:
    """Whether a judgement stopped the rollout. One that is no pass does, unless the gate was asked to go on or grow the wave."""
    return gate["verdict"] != PASS and gate.get("then") not in ("go_on", "grow")


class JournalTail:
    """Reads what was appended to a journal since the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_events(self) -> list[Event]:
        """Return the whole events that came since; half a line is left for the next time."""
        if os.stat(self._path).st_size <= self._offset:
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            whole = stream.read().rpartition(b"\n")[0] + b"\n"
        if whole == b"\n":
            return []
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := _parsed_line(line)) is not None]


class Progress:
    """What became of each host and VM so far, and how long the rest may take.

    ``forks`` is how many hosts Ansible works on at the same time: a wave of more takes as many turns.
    """

    def __init__(self, begin: Event, forks: int) -> None:
        self.rollout_id: str = begin["rollout_id"]
        self.waves: list[list[str]] = begin["waves"]
        self.budget_ms: float | None = begin["downtime_budget_ms"]
        self.target = " and ".join(filter(None, (begin["build_id"], begin.get("kvm_build_id")))) or "the builds before"
        self.gates: dict[int, str] = {}
        self.stopped = False
        self.states = {host: WAITING for hosts in self.waves for host in hosts}
        self.vms: dict[tuple[str, str], str] = {}
        self.undone: set[tuple[str, str]] = set()
        self.pauses_ms: dict[tuple[str, str], float] = {}
        self._forks = max(forks, 1)
        self._began_s = parsed(begin["at"]).timestamp()
        self._wave_began_s: dict[int, float] = {}
        self._wave_judged_s: dict[int, float] = {}

    def add(self, event: Event) -> None:
        """Take note of an event. Kinds that say nothing of the progress are passed over."""
        note = {"started": self._started, "vm": self._vm, "host": self._host, "gate": self._gate}
        note = {**note, "rollback": self._rolled_back, "resume": self._resumed}
        if event["event"] in note:
            note[event["event"]](event)

    def count(self, *states: str) -> int:
        """Return how many hosts are in one of ``states``."""
        return sum(1 for state in self.states.values() if state in states)

    def running(self) -> list[str]:
        """Return the hosts that are being worked on."""
        return [host for host, state in self.states.items() if state in (RUNS, GOING_BACK)]

    def vms_of(self, host: str) -> int:
        """Return how many VMs of a host came to their end in what it does now."""
        if self.states[host] == GOING_BACK:
            return sum(1 for key in self.undone if key[0] == host)
        return sum(1 for key in self.vms if key[0] == host)

    @property
    def wave(self) -> int:
        """The wave that runs, or ran last."""
        return max(self._wave_began_s, default=0)

    def elapsed_s(self, now_s: float) -> float:
        """Return the seconds since the beginning of this run."""
        return max(now_s - self._began_s, 0.0)

    def left_s(self, now_s: float) -> float | None:
        """Return how long the rest takes if it goes as the last wave that was judged; None while there is none, or it failed."""
        if not self._wave_judged_s or self.stopped:
            return None
        last = max(self._wave_judged_s)
        took_s = self._wave_judged_s[last] - self._wave_began_s.get(last, self._began_s)
        turn_s = took_s / self._turns(last)
        left_s = 0.0
        for wave in range(last + 1, len(self.waves)):
            spent_s = now_s - self._wave_began_s[wave] if wave in self._wave_began_s else 0.0
            left_s += max(turn_s * self._turns(wave) - spent_s, 0.0)
        return left_s

    def told_hosts(self) -> str:
        """Return the hosts in words."""
        told = f"{self.count(*_OVER):,} of {len(self.states):,} had their turn"
        for state, word in ((FAILED, "failed"), (GOING_BACK, "going back"), (BACK, "rolled back")):
            told += f", {self.count(state):,} {word}" if self.count(state) else ""
        return told

    def told_vms(self) -> str:
        """Return the VMs in words."""
        there = GOOD_OUTCOMES - {LEFT_OUT}
        good = sum(1 for key, outcome in self.vms.items() if outcome in there and key not in self.undone)
        bad = [outcome.replace("_", " ") for outcome in self.vms.values() if outcome not in there]
        told = f"{good:,} on the build"
        told += "".join(f", {bad.count(outcome):,} {outcome}" for outcome in sorted(set(bad)))
        return told + (f", {len(self.undone):,} back" if self.undone else "")

    def told_pauses(self) -> str:
        """Return the downtime so far in words."""
        if not self.pauses_ms:
            return "none measured yet"
        values = list(self.pauses_ms.values())
        budget = "" if self.budget_ms is None else f", budget {milliseconds(self.budget_ms)}"
        return f"median {milliseconds(statistics.median(values))}, longest {milliseconds(max(values))} (n={len(values)}){budget}"

    def told_time(self, now_s: float) -> str:
        """Return the time in words."""
        told = f"{duration(self.elapsed_s(now_s))} so far"
        if self.stopped:
            return f"{told}, stopping"
        if len(self.gates) == len(self.waves):
            return f"{told}, all waves are judged"
        left_s = self.left_s(now_s)
        return (
            f"{told}, about {duration(left_s)} to go"
            if left_s is not None
            else f"{told}, the first wave tells how long it takes"
        )

    def line(self, now_s: float) -> str:
        """Return it all in one plain line."""
        return (
            f"progress: wave {self.wave} (of 0 to {len(self.waves) - 1}); hosts: {self.told_hosts()}; VMs: {self.told_vms()}; "
            f"pauses: {self.told_pauses()}; time: {self.told_time(now_s)}"
        )

    def _turns(self, wave: int) -> int:
        return math.ceil(len(self.waves[wave]) / self._forks)

    def _started(self, event: Event) -> None:
        self.states[event["host"]] = RUNS
        self._wave_began_s.setdefault(event["wave"], parsed(event["at"]).timestamp())

    def _vm(self, event: Event) -> None:
        key = (event["host"], event["name"])
        if self.states[event["host"]] not in (DONE, FAILED, GOING_BACK):
            self._outcome(key, event)
            return
        # Its turn is over, so this is the way back.
        self.states[event["host"]] = GOING_BACK
        if event["outcome"] in GOOD_OUTCOMES:
            self.undone.add(key)

    def _host(self, event: Event) -> None:
        self.states[event["host"]] = DONE if event["outcome"] in ("ok", LEFT_OUT) else FAILED
        for vm in event["vms"]:
            self._outcome((event["host"], vm["name"]), vm)

    def _outcome(self, key: tuple[str, str], vm: Event) -> None:
        self.vms[key] = vm["outcome"]
        if vm.get("downtime_ms") is not None:
            self.pauses_ms[key] = vm["downtime_ms"]

    def _gate(self, event: Event) -> None:
        wave = event["wave"]
        self.gates[wave] = event["gate"]["verdict"]
        self.stopped = self.stopped or stops(event["gate"])
        # Judged anew, it says nothing of how long a wave takes: somebody may have thought it over.
        self._wave_judged_s.setdefault(wave, parsed(event["at"]).timestamp())

    def _resumed(self, event: Event) -> None:
        """Another run goes on, maybe days later; its own time is what is told."""
        self.stopped = False
        self._began_s = parsed(event["at"]).timestamp()

    def _rolled_back(self, event: Event) -> None:
        self.states[event["host"]] = BACK if event["outcome"] == "ok" else FAILED
        good = (vm for vm in event["vms"] if vm["outcome"] in GOOD_OUTCOMES)
        self.undone.update((event["host"], vm["name"]) for vm in good)


def _parsed_line(line: bytes) -> Event | None:
    """A line that a writer was killed in the middle of is nobody's event; see ``Journal``."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def drawn(progress: Progress, now_s: float, width: int, unicode: bool) -> list[tuple[str, str | None]]:
    """Return the lines of the live view, cut to ``width``, each with its colour."""
    signs = dict(zip(("PASS", "FAIL", "INCONCLUSIVE"), "✓✕?" if unicode else "+x?"))
    lines: list[tuple[str, str | None]] = [
        (_rule(f"{progress.rollout_id} to {progress.target}", width, "─" if unicode else "-"), "bright blue"),
        (f" waves  {_waves(progress, signs, '▶' if unicode else '>', width)}", "red" if progress.stopped else None),
        (f" hosts  {_bar(progress, min(30, width // 4), unicode)} {progress.told_hosts()}", None),
        (f" VMs    {progress.told_vms()}", None),
        (f" pause  {progress.told_pauses()}", None),
        (f" time   {progress.told_time(now_s)}", None),
        (f" now    {_running(progress, width - 8)}", None),
    ]
    return [(text[:width], colour) for text, colour in lines]


def _rule(text: str, width: int, dash: str) -> str:
    return f"{dash * 2} {text} ".ljust(width, dash)


def _waves(progress: Progress, signs: dict[str, str], arrow: str, width: int) -> str:
    marks = []
    for wave in range(len(progress.waves)):
        if wave in progress.gates:
            marks.append(f"{signs[progress.gates[wave]]} {wave}")
        elif wave == progress.wave:
            marks.append(
                f"{arrow} {wave}{' canary' if wave == 0 else ''} ({amount(len(progress.waves[wave]), 'host')})"
            )
        else:
            marks.append(str(wave))
    text = "   ".join(marks)
    if len(text) <= width - 8:
        return text
    passed = sum(1 for verdict in progress.gates.values() if verdict == PASS)
    hosts = amount(len(progress.waves[progress.wave]), "host")
    return f"{passed} of {len(progress.waves)} passed, {arrow} {progress.wave} ({hosts})"


def _bar(progress: Progress, width: int, unicode: bool) -> str:
    full, empty = ("█", "░") if unicode else ("#", ".")
    done = progress.count(*_OVER) * width // max(len(progress.states), 1)
    return full * done + empty * (width - done)


def _running(progress: Progress, width: int) -> str:
    told = [
        f"{host}{' back' if progress.states[host] == GOING_BACK else ''} {amount(progress.vms_of(host), 'VM')}"
        for host in progress.running()
    ]
    return _fitted(told, width) if told else "judging, or between two waves"


def _fitted(parts: Sequence[str], width: int) -> str:
    for shown in range(len(parts), 0, -1):
        more = f" and {len(parts) - shown} more" if shown < len(parts) else ""
        text = ", ".join(parts[:shown]) + more
        if len(text) <= width or shown == 1:
            return text
    return ""
