# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The waves over time, as geometry for the page: a lane per host, a mark per VM and judgement. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import GOOD_OUTCOMES
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEFT_OUT
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import (
    amount,
    duration,
    seconds_between,
    span,
)

Report = Mapping[str, Any]
Record = Mapping[str, Any]

WIDTH = 1060
LEFT, RIGHT = 150, 1030
_TOP, _HEAD, _LANE, _GAP = 26, 24, 7, 14
_LANES_SHOWN = 40
"""Hosts of a wave that get a lane each. More would be hairlines: then the wave is drawn as a whole."""
_SLOTS, _SLOT_HEIGHT = 110, 34
_TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800)
_MOST_TICKS = 8


@dataclass(frozen=True)
class Bar:
    """A stretch of time."""

    x: float
    y: float
    width: float
    height: float
    tone: str


@dataclass(frozen=True)
class Mark:
    """A VM whose outcome was known."""

    x: float
    y: float
    good: bool


@dataclass(frozen=True)
class Alarm:
    """What the watcher saw that stops a rollout."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Row:
    """A wave."""

    y: float
    height: float
    label: str
    detail: str
    verdict: str | None
    judged_x: float | None
    rolled_back: bool
    touched: bool
    bars: list[Bar] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)


@dataclass(frozen=True)
class Timeline:
    """The drawing, and the same in words for who cannot see it."""

    height: float
    rows: list[Row]
    ticks: list[tuple[float, str]]
    table: list[tuple[str, ...]]
    description: str


def draw(report: Report) -> Timeline | None:
    """Return the drawing, None for a report without times: that of a plan, or of a version that kept none."""
    begun = [wave for wave in report["waves"] if wave.get("started")]
    total_s = seconds_between(report["started"], report["finished"])
    if not begun or total_s <= 0 or report["mode"] == "plan":
        return None
    scale = _Scale(report["started"], total_s)
    rows, y = [], float(_TOP)
    for wave in report["waves"]:
        rows.append(_row(wave, report, scale, y))
        y += rows[-1].height + _GAP
    return Timeline(
        height=y + 20,
        rows=rows,
        ticks=[(scale.at(seconds), duration(seconds) if seconds else "start") for seconds in _ticks(total_s)],
        table=[_words(wave, report) for wave in report["waves"]],
        description="; ".join(f"{row.label}: {row.verdict or 'not judged'}, {row.detail}" for row in rows),
    )


class _Scale:
    def __init__(self, start: str, total_s: float) -> None:
        self._start, self._total_s = start, total_s

    def at(self, seconds: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * min(max(seconds / self._total_s, 0), 1), 1)

    def x(self, moment: str) -> float:
        return self.at(seconds_between(self._start, moment))


def _row(wave: Record, report: Report, scale: _Scale, y: float) -> Row:
    hosts = [host for host in report["hosts"] if host["wave"] == wave["index"] and host.get("started")]
    vms = [vm for vm in report["vms"] if vm["wave"] == wave["index"]]
    by_lane = len(hosts) <= _LANES_SHOWN
    bars, marks = _lanes(hosts, vms, wave, report, scale, y + _HEAD) if by_lane else ([], [])
    gaps, alarms = _watched(hosts, report, scale, y + _HEAD, by_lane)
    bars += gaps
    if not by_lane:
        bars = _whole(hosts, vms, wave, report, scale, y + _HEAD)
    body = (len(hosts) * _LANE if by_lane else _SLOT_HEIGHT + 8) + 4
    return Row(
        y=y,
        height=max(_HEAD + body, 40) if hosts else 40,
        label=_name(wave),
        detail=f"{amount(len(wave['hosts']), 'host')}, {amount(len(vms), 'VM')}",
        verdict=wave["gate"]["verdict"] if wave["gate"] else None,
        judged_x=scale.x(wave["judged"]) if wave.get("judged") else None,
        rolled_back=wave["rolled_back"],
        touched=bool(hosts),
        bars=bars,
        marks=marks,
        alarms=alarms,
    )


def _lanes(
    hosts: Sequence[Record], vms: Sequence[Record], wave: Record, report: Report, scale: _Scale, top: float
) -> tuple[list[Bar], list[Mark]]:
    bars, marks = [], []
    for lane, host in enumerate(hosts):
        y = top + lane * _LANE
        tone = "accent" if host["outcome"] in ("ok", LEFT_OUT) else "bad"
        bars.append(_bar(scale, host["started"], host.get("finished") or report["finished"], y, _LANE - 2, tone))
        if host["rollback"] and wave.get("judged") and host.get("rollback_finished"):
            bars.append(_bar(scale, wave["judged"], host["rollback_finished"], y, _LANE - 2, "undo"))
        marks += [
            Mark(scale.x(vm["finished"]), y + (_LANE - 2) / 2, vm["outcome"] in GOOD_OUTCOMES)
            for vm in vms
            if vm["host"] == host["name"] and vm.get("finished")
        ]
    return bars, marks


def _watched(
    hosts: Sequence[Record], report: Report, scale: _Scale, top: float, by_lane: bool
) -> tuple[list[Bar], list[Alarm]]:
    """Where the watcher lost a host, in its lane, and what it saw that stops a rollout, in all drawings."""
    seen = {host["name"]: host for host in (report.get("watch") or {"hosts": []})["hosts"]}
    gaps, alarms = [], []
    for lane, host in enumerate(hosts):
        y = top + (lane * _LANE if by_lane else _SLOT_HEIGHT)
        watched = seen.get(host["name"], {"gaps": [], "vms": []})
        for gap in watched["gaps"] if by_lane else []:
            gaps.append(_bar(scale, gap["start"], gap["end"] or report["finished"], y + (_LANE - 2) / 4, 2.5, "gap"))
        for vm in watched["vms"]:
            hard = [event for event in vm["events"] if event["hard"]]
            alarms += [
                Alarm(scale.x(event["at"]), y + (_LANE - 2) / 2, f"{host['name']}/{vm['name']}: {event['hard']}")
                for event in hard[:1]
            ]
    return gaps, alarms


def _whole(
    hosts: Sequence[Record], vms: Sequence[Record], wave: Record, report: Report, scale: _Scale, top: float
) -> list[Bar]:
    """A bar for the wave, and above it how many VMs came to their end when."""
    ends = [host.get("finished") or report["finished"] for host in hosts]
    base = top + _SLOT_HEIGHT
    bad = any(host["outcome"] not in ("ok", LEFT_OUT) for host in hosts)
    bars = [_bar(scale, min(host["started"] for host in hosts), max(ends), base, 5, "bad" if bad else "accent")]
    backs = [host["rollback_finished"] for host in hosts if host.get("rollback_finished")]
    if backs and wave.get("judged"):
        bars.append(_bar(scale, wave["judged"], max(backs), base, 5, "undo"))
    slot = (RIGHT - LEFT) / _SLOTS
    counts: dict[int, list[int]] = {}
    for vm in vms:
        if vm.get("finished"):
            index = min(int((scale.x(vm["finished"]) - LEFT) / slot), _SLOTS - 1)
            counts.setdefault(index, [0, 0])[vm["outcome"] not in GOOD_OUTCOMES] += 1
    tallest = max((sum(count) for count in counts.values()), default=1)
    for index, (good, bad_count) in sorted(counts.items()):
        y = base
        for number, tone in ((good, "accent"), (bad_count, "bad")):
            height = round((_SLOT_HEIGHT - 4) * number / tallest, 1)
            y -= height
            if number:
                bars.append(Bar(round(LEFT + index * slot, 1), round(y, 1), round(slot - 1, 1), height, tone))
    return bars


def _bar(scale: _Scale, start: str, end: str, y: float, height: float, tone: str) -> Bar:
    x = scale.x(start)
    return Bar(x, y, max(round(scale.x(end) - x, 1), 2.0), height, tone)


def _ticks(total_s: float) -> list[int]:
    step = next((step for step in _TICKS_S if total_s / step <= _MOST_TICKS), _TICKS_S[-1])
    return [index * step for index in range(int(total_s // step) + 1)][: 4 * _MOST_TICKS]


def _words(wave: Record, report: Report) -> tuple[str, ...]:
    gate = wave["gate"]["verdict"] if wave["gate"] else "not judged"
    vms = [vm for vm in report["vms"] if vm["wave"] == wave["index"]]
    good = sum(1 for vm in vms if vm["outcome"] in GOOD_OUTCOMES)
    return (
        _name(wave),
        f"{len(wave['hosts']):,}",
        f"{good:,} of {len(vms):,}",
        span(report["started"], wave["started"]) if wave.get("started") else "not touched",
        span(wave.get("started"), wave.get("judged")),
        f"{gate}, rolled back" if wave["rolled_back"] else gate,
        span(wave.get("judged"), wave.get("finished")) if wave["rolled_back"] else "\N{EN DASH}",
    )


def _name(wave: Record) -> str:
    return f"Wave {wave['index']}{', canary' if wave['index'] == 0 else ''}"
