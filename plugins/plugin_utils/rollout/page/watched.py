# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the watcher saw, for the page: what no upgrade brings about, where it did not see, and what it did not watch.

PRIVATE to the collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import clock, span
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.events import EXPECTED
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.words import sentence, unwatched

Record = Mapping[str, Any]

_ROWS_SHOWN = 200


@dataclass(frozen=True)
class Row:
    """Something that was seen, or a stretch in which nothing was. ``moment``: by which rows are in order."""

    moment: str
    when: str
    where: str
    what: str
    tone: str


@dataclass(frozen=True)
class Watched:
    """The section of the page. ``unwatched``: by the reason, hosts and VMs that were not watched at all."""

    sentence: str
    rows: list[Row]
    more: int
    unwatched: dict[str, list[str]]


def seen(report: Record) -> Watched | None:
    """Return what there is to tell, None where nobody thought of watching."""
    watch = report.get("watch")
    if watch is None:
        return None
    rows = sorted(_rows(watch), key=lambda row: row.moment)
    told = sentence(watch)
    return Watched(
        sentence=f"{told[0].upper()}{told[1:]}.",
        rows=rows[:_ROWS_SHOWN],
        more=max(len(rows) - _ROWS_SHOWN, 0),
        unwatched=unwatched(watch),
    )


def _rows(watch: Record) -> Iterator[Row]:
    for host in watch["hosts"]:
        yield from _gaps(host["name"], host["gaps"], "connection lost")
        for vm in host["vms"]:
            where = f"{host['name']}/{vm['name']}"
            # Each upgrade closes the old process's monitors: that is none of what went wrong unless it stays so.
            yield from _gaps(where, [gap for gap in vm["gaps"] if gap["end"] is None], "monitor lost")
            for event in vm["events"]:
                if event["name"] not in EXPECTED:
                    what = f"{event['text']}{': ' + event['hard'] if event['hard'] else ''}"
                    yield Row(event["at"], clock(event["at"]), where, what, "bad" if event["hard"] else "plain")


def _gaps(where: str, gaps: list[Record], what: str) -> Iterator[Row]:
    for gap in gaps:
        lasted = f"for {span(gap['start'], gap['end'])}" if gap["end"] else "until the end"
        yield Row(gap["start"], clock(gap["start"]), where, f"{what} {lasted}: {gap['reason']}", "warn")
