# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page and the terminal tell of the watch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from rollout_story import journal

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page import timeline, watched
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.page.page import render_page
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.render import render_table
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import build_report
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import told


@pytest.fixture
def report() -> dict[str, Any]:
    """Return the report of a rollout in which the watcher saw a crash, lost a host, and was kept from another's VM."""
    plain = build_report(journal(), aborted=False)
    one, other = plain["waves"][0]["hosts"][0], plain["waves"][1]["hosts"][0]
    vm = next(vm for vm in plain["vms"] if vm["host"] == one)
    at, later = vm["finished"], plain["waves"][0]["judged"]
    event = {
        "event": "qmp",
        "host": one,
        "vm": vm["name"],
        "name": "GUEST_PANICKED",
        "data": {"action": "run"},
        "host_at": at,
    }
    watch = told(
        [
            {"event": "watching", "at": at, "pid": 7},
            {"event": "connected", "at": at, "host": one},
            {"event": "monitor", "at": at, "host": one, "vm": vm["name"], "state": "watched", "version": "11.1.1"},
            {"at": at, **event},
            {"at": at, **event, "name": "STOP", "data": {}},
            {"event": "lost", "at": at, "host": one, "reason": "<the host> closed the session"},
            {"event": "connected", "at": later, "host": one},
            {"event": "unwatched", "at": at, "host": other, "vm": "db7", "reason": "it has one monitor"},
        ]
    )
    return build_report(journal(), aborted=False, watch=watch)


def test_the_section_tells_what_no_upgrade_brings_about_and_where_nothing_was_seen(report: dict[str, Any]) -> None:
    section = watched.seen(report)

    assert section is not None
    assert [(row.what.partition(" ")[0], row.tone) for row in section.rows] == [
        ("connection", "warn"),
        ("GUEST_PANICKED", "bad"),
    ]
    assert "the guest crashed" in section.rows[1].what
    assert section.sentence.startswith("1 host and the monitors of 1 VM were watched, 1 lost connection, 1 event")
    assert "not until the end: the watcher ended before the rollout did" in section.sentence
    assert list(section.unwatched) == ["it has one monitor"]


def test_the_page_shows_it_in_the_drawing_too(report: dict[str, Any]) -> None:
    page = render_page(report)

    assert "What the watcher saw" in page
    assert "&lt;the host&gt; closed the session" in page
    drawing = timeline.draw(report)
    assert drawing is not None
    (alarm,) = drawing.rows[0].alarms
    assert "the guest crashed" in alarm.text
    assert [bar.tone for bar in drawing.rows[0].bars].count("gap") == 1
    assert all(row.alarms == [] for row in drawing.rows[1:])


def test_a_long_list_is_cut_and_says_so(report: dict[str, Any]) -> None:
    events = report["watch"]["hosts"][0]["vms"][0]["events"]
    events += [copy.deepcopy(events[0]) for _more in range(300)]

    section = watched.seen(report)

    assert section is not None and (len(section.rows), section.more) == (200, 102)
    assert "102 more rows in the JSON report" in render_page(report)


def test_a_terminal_is_told_in_lines(report: dict[str, Any]) -> None:
    lines = render_table(report).splitlines()

    assert any(line.startswith("watch: 1 host and the monitors of 1 VM were watched") for line in lines)
    assert any(line.startswith("not watched, it has one monitor: ") and line.endswith("/db7") for line in lines)


def test_a_report_of_a_version_that_did_not_watch_has_no_such_section(report: dict[str, Any]) -> None:
    del report["watch"]

    assert watched.seen(report) is None
    assert "watcher" not in render_page(report)
    assert not [line for line in render_table(report).splitlines() if line.startswith(("watch", "not watched"))]
