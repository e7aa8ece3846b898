# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measured pauses by class of VM against the budget, as geometry for the page. PRIVATE to the collection."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.bounds import CONFIDENCE
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import budget_of, is_over_budget
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page.facts import by_class
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import milliseconds, percent

Report = Mapping[str, Any]
Record = Mapping[str, Any]

WIDTH = 1060
LEFT, RIGHT = 190, 1020
_TOP, _ROW, _PLOT = 24, 92, 58
_BINS = 83
_LEAST_MS = 0.01
"""A logarithmic scale has no zero: a shorter pause is drawn here."""


@dataclass(frozen=True)
class Column:
    """VMs with about the same pause."""

    x: float
    y: float
    width: float
    height: float
    over: bool


@dataclass(frozen=True)
class ClassRow:
    """A class of VMs."""

    y: float
    base: float
    name: str
    measured: int
    unmeasured: int
    median_ms: float
    longest_ms: float
    budget_ms: float | None
    over: int
    proof: str
    tallest: int
    columns: list[Column]
    median_x: float
    longest_x: float
    budget_x: float | None


@dataclass(frozen=True)
class Distribution:
    """The drawing, and the same in words for who cannot see it."""

    height: float
    rows: list[ClassRow]
    ticks: list[tuple[float, str]]
    description: str


def draw(report: Report) -> Distribution | None:
    """Return the drawing, None when no pause was measured."""
    paused = [vm for vm in report["vms"] if vm["downtime_ms"] is not None or vm["outcome"] == "upgraded"]
    measured = {name: vms for name, vms in by_class(paused).items() if any(vm["downtime_ms"] is not None for vm in vms)}
    if not measured:
        return None
    scale = _Scale([value for vms in measured.values() for value in _drawn(vms, report)])
    rows = [_row(name, vms, report, scale, _TOP + index * _ROW) for index, (name, vms) in enumerate(measured.items())]
    return Distribution(
        height=_TOP + len(rows) * _ROW + 26,
        rows=rows,
        ticks=[(scale.x(value), milliseconds(value)) for value in scale.ticks],
        description="; ".join(
            f"{row.name}: {row.measured} measured, median {milliseconds(row.median_ms)}, longest "
            f"{milliseconds(row.longest_ms)}, budget {milliseconds(row.budget_ms)}, {row.over} over it"
            for row in rows
        ),
    )


class _Scale:
    """Logarithmic, from a round value below the least to one above the greatest."""

    def __init__(self, values: Sequence[float]) -> None:
        least, most = max(min(values), _LEAST_MS) / 1.15, max(*values, _LEAST_MS) * 1.15
        series = [factor * 10.0**power for power in range(-3, 9) for factor in (1, 2, 5)]
        low = max((value for value in series if value <= least), default=series[0])
        high = min((value for value in series if value >= most), default=series[-1])
        self.ticks = [value for value in series if low <= value <= high]
        self._low, self._span = math.log(low), math.log(high) - math.log(low)

    def x(self, value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * self.part(value), 1)

    def part(self, value: float) -> float:
        return (math.log(max(value, _LEAST_MS)) - self._low) / self._span


def _drawn(vms: Sequence[Record], report: Report) -> list[float]:
    budgets = [budget_of(vm, report["downtime_budget_ms"]) for vm in vms]
    return [vm["downtime_ms"] for vm in vms if vm["downtime_ms"] is not None] + [b for b in budgets if b]


def _row(name: str, vms: Sequence[Record], report: Report, scale: _Scale, y: float) -> ClassRow:
    measured = [vm for vm in vms if vm["downtime_ms"] is not None]
    pauses = [vm["downtime_ms"] for vm in measured]
    budget_ms = next((b for vm in vms if (b := budget_of(vm, report["downtime_budget_ms"])) is not None), None)
    over = [is_over_budget(vm, report["downtime_budget_ms"]) for vm in measured]
    base = y + _PLOT
    columns, tallest = _columns(pauses, over, scale, base)
    median = statistics.median(pauses)
    return ClassRow(
        y=y,
        base=base,
        name=name,
        measured=len(pauses),
        unmeasured=len(vms) - len(pauses),
        median_ms=median,
        longest_ms=max(pauses),
        budget_ms=budget_ms,
        over=sum(over),
        proof=_proof(pauses),
        tallest=tallest,
        columns=columns,
        median_x=scale.x(median),
        longest_x=scale.x(max(pauses)),
        budget_x=scale.x(budget_ms) if budget_ms else None,
    )


def _columns(pauses: Sequence[float], over: Sequence[bool], scale: _Scale, base: float) -> tuple[list[Column], int]:
    """VMs over the budget stand on top of those within it, where the budget lies within the width of a column."""
    counts: dict[int, list[int]] = {}
    for pause_ms, is_over in zip(pauses, over):
        index = min(max(int(scale.part(pause_ms) * _BINS), 0), _BINS - 1)
        counts.setdefault(index, [0, 0])[is_over] += 1
    tallest = max(sum(count) for count in counts.values())
    width = (RIGHT - LEFT) / _BINS
    columns = []
    for index, (within, above) in sorted(counts.items()):
        y = base
        for number, is_over in ((within, False), (above, True)):
            if number:
                height = round((_PLOT - 8) * number / tallest, 1)
                y = round(y - height, 1)
                columns.append(Column(round(LEFT + index * width, 1), y, round(width - 1, 1), height, is_over))
    return columns, tallest


def _proof(pauses: Sequence[float]) -> str:
    """What n measured pauses say of those to come: the order statistic of the longest, one-sided and free of a distribution."""
    share = (1 - CONFIDENCE) ** (1 / len(pauses))
    return f"at least {percent(math.floor(share * 1000) / 1000)} of such VMs pause no longer than {milliseconds(max(pauses))}"
