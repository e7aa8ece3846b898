# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a host may be worked on: its maintenance windows. PRIVATE to the collection."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from ansible.errors import AnsibleError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")

Window = dict[str, Any]


def read_windows(value: Any, host: str) -> list[Window]:
    """Return the windows of a host from its variable ``upgrade_windows``, complete and in order.

    Each has ``days``, ``start`` and ``end`` (HH:MM; an end that is not later than the start is on the next day) and ``timezone``.
    Raises ``AnsibleError`` for what makes no sense.
    """
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise AnsibleError(f"upgrade_windows of {host} is {value!r}; it must be a list of windows. Nothing was touched")
    return sorted((_window(item, host) for item in value), key=str)


def is_open(windows: Sequence[Window], now: datetime.datetime) -> bool:
    """Whether ``now`` is in one of ``windows``. A host without any is always open."""
    return not windows or any(_contains(window, now) for window in windows)


def describe(windows: Sequence[Window]) -> str:
    """Say the windows in words."""
    return ", ".join(f"{'/'.join(w['days'])} {w['start']}-{w['end']} {w['timezone']}" for w in windows) or "at any time"


def _window(item: Any, host: str) -> Window:
    def refuse(what: str) -> AnsibleError:
        return AnsibleError(
            f"upgrade_windows of {host}: {what}. A window is like {{days: [sat, sun], start: '22:00', end: '04:00', timezone: "
            "Europe/Berlin}; days and timezone (UTC) may be left out. Nothing was touched"
        )

    if not isinstance(item, Mapping) or set(item) - {"days", "start", "end", "timezone"}:
        raise refuse(f"{item!r} is not a window")
    for name in ("start", "end"):
        if _TIME.fullmatch(str(item.get(name))) is None:
            # YAML 1.1 reads 22:00 without quotes as a number.
            raise refuse(f"{name} is {item.get(name)!r}, not a time between quotes")
    days = [str(day) for day in item.get("days", DAYS)]
    if not days or set(days) - set(DAYS):
        raise refuse(f"days are {item.get('days')!r}, not some of {', '.join(DAYS)}")
    timezone = str(item.get("timezone", "UTC"))
    try:
        ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as exc:  # also for a name that is a path, or a folder
        raise refuse(f"timezone {timezone!r} is not known here") from exc
    ordered = [day for day in DAYS if day in days]
    return {"days": ordered, "start": str(item["start"]), "end": str(item["end"]), "timezone": timezone}


def _contains(window: Window, now: datetime.datetime) -> bool:
    local = now.astimezone(ZoneInfo(window["timezone"]))
    minute = local.hour * 60 + local.minute
    start, end = (int(window[name][:2]) * 60 + int(window[name][3:]) for name in ("start", "end"))
    today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
    if start < end:
        return today in window["days"] and start <= minute < end
    return (today in window["days"] and minute >= start) or (yesterday in window["days"] and minute < end)
