# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How people are told quantities. PRIVATE to the collection."""

from __future__ import annotations

import datetime
import re

_HASH = re.compile(r"-([0-9a-f]{16})$")


def milliseconds(value: float | None) -> str:
    """Return a time with a digit that means something: 5.2 ms, 250 ms, 1.5 s; a dash for what was not measured."""
    if value is None:
        return "\N{EN DASH}"
    if value >= 1000:
        return f"{value / 1000:.4g} s"
    return f"{value:.0f} ms" if value == int(value) else f"{value:.1f} ms"


def percent(value: float) -> str:
    """Return a share of 1; small ones with a digit more."""
    return f"{100 * value:.2g} %" if 0 < value < 0.01 else f"{100 * value:.3g} %"


def amount(number: int, noun: str) -> str:
    """Return ``1 host``, ``2 hosts``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def clock(moment: str | None) -> str:
    """Return a moment of the report (ISO 8601, UTC) as people write it, to the second."""
    return "\N{EN DASH}" if moment is None else f"{parsed(moment):%Y-%m-%d %H:%M:%S} UTC"


def span(start: str | None, end: str | None) -> str:
    """Return how long it was from one moment to another."""
    return "\N{EN DASH}" if start is None or end is None else duration(seconds_between(start, end))


def duration(seconds: float) -> str:
    """Return a duration with its two largest units."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two_units(whole, 60, "min", "s")
    return _two_units(whole // 60, 60, "h", "min") if whole < 86400 else _two_units(whole // 3600, 24, "d", "h")


def _two_units(small: int, per_large: int, large_unit: str, small_unit: str) -> str:
    rest = f" {small % per_large:02d} {small_unit}" if small % per_large else ""
    return f"{small // per_large} {large_unit}{rest}"


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from one moment of the report to another."""
    return (parsed(end) - parsed(start)).total_seconds()


def parsed(moment: str) -> datetime.datetime:
    """Return a moment of the report."""
    return datetime.datetime.fromisoformat(moment)


def short_build(build_id: str | None) -> str:
    """Return a build id with the head of its hash, enough to tell builds apart on one page, which lists the whole ids."""
    return "\N{EN DASH}" if build_id is None else _HASH.sub(lambda found: f"-{found[1][:6]}", build_id)
