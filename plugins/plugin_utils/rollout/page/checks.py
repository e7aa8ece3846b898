# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of a gate with their bounds, each with what was seen drawn against the limit. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import amount, milliseconds, percent

Record = Mapping[str, Any]

WIDTH, HEIGHT = 150, 22
_LEFT, _RIGHT = 4, 146
_RATES = ("failure_rate", "comparison", "health")


@dataclass(frozen=True)
class Drawing:
    """What was seen (a dot), how bad it may be (a line to the bound), and what is allowed (a stroke)."""

    observed_x: float | None
    bound_x: float | None
    limit_x: float | None
    description: str


@dataclass(frozen=True)
class CheckRow:
    """A check in words."""

    name: str
    subject: str
    verdict: str
    sample: str
    observed: str
    bound: str
    limit: str
    confidence: str
    needed: str
    text: str
    drawing: Drawing | None


def rows(gate: Record) -> list[CheckRow]:
    """Return the checks of ``gate``; none where it was judged by a version that kept none."""
    return [_row(check) for check in gate.get("checks") or []]


def _row(check: Record) -> CheckRow:
    kind, unit = str(check["check"]), {"vm": "VM"}.get(check["unit"], str(check["unit"]))
    needed = check.get("n_needed")
    return CheckRow(
        name=kind.replace("_", " "),
        subject=str(check["subject"]),
        verdict=str(check["verdict"]),
        sample=amount(check["n"], unit),
        observed=_value(kind, check.get("observed")),
        bound=_value(kind, check.get("bound")),
        limit=_value(kind, check.get("limit")),
        confidence="\N{EN DASH}" if check.get("confidence") is None else percent(check["confidence"]),
        needed="\N{EN DASH}" if needed is None else amount(needed, unit),
        text=str(check["text"]),
        drawing=_drawing(kind, check),
    )


def _value(kind: str, value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    if kind == "downtime":
        return milliseconds(value)
    return percent(value) if kind in _RATES else f"{value:g}"


def _drawing(kind: str, check: Record) -> Drawing | None:
    values = {name: check.get(name) for name in ("observed", "bound", "limit")}
    known = [value for value in values.values() if value is not None]
    if values["limit"] is None or len(known) < 2:
        return None
    least, most = min(0.0, *known), max(*known, 0.0)
    reach = (most - least) * 1.08 or 1.0
    at = {
        name: None if value is None else round(_LEFT + (_RIGHT - _LEFT) * (value - least) / reach, 1)
        for name, value in values.items()
    }
    told = ", ".join(f"{name} {_value(kind, value)}" for name, value in values.items() if value is not None)
    return Drawing(at["observed"], at["bound"], at["limit"], told)
