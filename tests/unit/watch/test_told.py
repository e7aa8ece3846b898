# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what the watcher wrote down to what is told of it: gaps, events, and why something was not watched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import FAIL, PASS, Gate, judge
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import Look
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import (
    NO_WATCHER,
    ROLLOUT_ENDED,
    Gap,
    Watch,
    summary,
    told,
)

SCHEMA = json.loads((Path(__file__).resolve().parents[3] / "docs" / "upgrade.schema.json").read_text(encoding="utf-8"))


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02d}.000+00:00"


def records(*events: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The n-th record is of second n."""
    return [{"event": name, "at": at(second), **fields} for second, (name, fields) in enumerate(events)]


BEGIN: list[tuple[str, dict[str, Any]]] = [
    ("watching", {"pid": 7}),
    ("connected", {"host": "h1"}),
    ("monitor", {"host": "h1", "vm": "vm1", "state": "watched", "version": "10.2.2", "path": "/a"}),
]
END: list[tuple[str, dict[str, Any]]] = [("left", {"host": "h1", "probes": 9}), ("ended", {"reason": ROLLOUT_ENDED})]


def qmp(name: str, **data: Any) -> tuple[str, dict[str, Any]]:
    return "qmp", {"host": "h1", "vm": "vm1", "name": name, "data": data, "host_at": at(59)}


def valid(watch: Watch) -> dict[str, Any]:
    """Return it as in the report, where it is valid."""
    data = json.loads(json.dumps(watch.to_dict()))
    schema = {"$defs": SCHEMA["$defs"], "$ref": "#/$defs/watch"}
    jsonschema.Draft202012Validator(schema).validate(data)
    return dict(data)


def test_a_watch_from_beginning_to_end() -> None:
    watch = told(
        records(
            *BEGIN,
            qmp("STOP"),
            ("monitor", {"host": "h1", "vm": "vm1", "state": "lost", "reason": "closed"}),
            ("monitor", {"host": "h1", "vm": "vm1", "state": "watched", "version": "11.1.1", "path": "/a"}),
            ("probe", {"host": "h1", "vms": {"vm1": "running"}, "probes": 3}),
            ("counted", {"host": "h1", "vm": "vm1", "name": "STOP", "count": 60}),
            *END,
        )
    )

    data = valid(watch)
    assert (data["watched"], data["reason"]) == (True, None)
    (host,) = data["hosts"]
    assert (host["start"], host["end"], host["probes"], host["gaps"]) == (at(1), at(8), 9, [])
    (vm,) = host["vms"]
    assert vm == {
        "name": "vm1",
        "watched": True,
        "reason": None,
        "status": "running",
        "versions": ["10.2.2", "11.1.1"],
        "gaps": [{"start": at(4), "end": at(5), "reason": "closed"}],
        "events": [{"at": at(3), "host_at": at(59), "name": "STOP", "text": "STOP", "hard": ""}],
        "more": {"STOP": 60},
    }


def test_a_gap_lasts_from_the_first_loss_to_the_next_connection() -> None:
    lost = ("lost", {"host": "h1", "reason": "the host closed the session"})
    other = ("lost", {"host": "h1", "reason": "connection refused"})

    watch = told(records(*BEGIN, lost, other, ("connected", {"host": "h1"}), lost))

    assert watch.hosts["h1"].gaps == [
        Gap(at(3), at(5), "the host closed the session"),
        Gap(at(6), None, "the host closed the session"),
    ]
    valid(watch)


def test_what_was_never_watched_says_why() -> None:
    watch = told(
        records(
            ("watching", {"pid": 7}),
            ("lost", {"host": "h1", "reason": "connection refused"}),
            ("refused", {"host": "h2", "reason": "the host key is not known"}),
            ("unwatched", {"host": "h3", "reason": "not by ssh"}),
            ("unwatched", {"host": "h4", "vm": "vm1", "reason": "one monitor"}),
            ("monitor", {"host": "h4", "vm": "vm2", "state": "lost", "reason": "held"}),
            ("ended", {"reason": ROLLOUT_ENDED}),
        )
    )

    assert [(host.watched, host.reason, host.gaps) for host in list(watch.hosts.values())[:3]] == [
        (False, "connection refused", []),
        (False, "the host key is not known", []),
        (False, "not by ssh", []),
    ]
    assert {vm.name: (vm.watched, vm.reason) for vm in watch.hosts["h4"].vms.values()} == {
        "vm1": (False, "one monitor"),
        "vm2": (False, "held"),
    }
    valid(watch)


def test_a_rollout_that_is_not_watched_says_why() -> None:
    watch = told(records(("unwatched", {"reason": "upgrade_watch is never"})))

    assert valid(watch) == {"watched": False, "reason": "upgrade_watch is never", "hosts": []}
    assert summary(watch, ["h1"], []) == "nothing was watched: upgrade_watch is never"


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        pytest.param([], NO_WATCHER, id="killed"),
        pytest.param([("ended", {"reason": "told to"})], "the watch ended: told to", id="ended-too-early"),
        pytest.param([("silent", {"reason": "did not answer"})], "did not answer", id="put-down"),
        pytest.param(END, None, id="as-it-should"),
    ],
)
def test_a_watcher_that_does_not_reach_the_end_is_told(
    last: list[tuple[str, dict[str, Any]]], reason: str | None
) -> None:
    assert valid(told(records(*BEGIN, *last)))["reason"] == reason


@pytest.mark.parametrize(
    ("end", "gap"),
    [
        pytest.param([], Gap(at(2), at(4), NO_WATCHER), id="killed"),
        pytest.param(
            [("left", {"host": "h1", "probes": 1}), ("ended", {"reason": "the rollout's process has ended"})],
            Gap(at(3), at(6), NO_WATCHER),
            id="ended-with-its-rollout",
        ),
    ],
)
def test_between_a_watcher_and_the_one_of_the_run_that_goes_on_is_a_gap(
    end: list[tuple[str, dict[str, Any]]], gap: Gap
) -> None:
    watch = told(records(*BEGIN, *end, *BEGIN, *END))

    assert watch.hosts["h1"].gaps == [gap]
    assert valid(watch)["reason"] is None


def record(outcome: str = "upgraded") -> dict[str, Any]:
    vm = {"name": "vm1", "outcome": outcome, "downtime_ms": 5.0, "health": None, "old_build_id": "a", "reason": "so"}
    return {"host": "h1", "outcome": "ok", "vms": [vm], "reason": None}


def judged(watch: Watch | None, outcome: str = "upgraded") -> Gate:
    return judge(["h1"], {"h1": record(outcome)}, None, Look(watch=watch))


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (qmp("GUEST_PANICKED", action="run"), "the guest crashed"),
        (qmp("BLOCK_IO_ERROR", device="disk0"), "disk requests fail"),
    ],
)
def test_an_event_that_tells_of_harm_is_a_hard_stop(event: tuple[str, dict[str, Any]], why: str) -> None:
    gate = judged(told(records(*BEGIN, event, event)))

    assert gate.verdict == FAIL
    (check,) = [check for check in gate.checks if check.check == "hard_stop"]
    assert (check.verdict, check.text, check.observed) == (FAIL, f"h1/vm1: {why}", 1)
    (reason,) = gate.reasons
    assert reason.startswith(f"h1/vm1: {event[1]['name']} (") and reason.endswith(at(59))


def test_it_stops_where_more_failures_would_be_allowed_and_only_for_what_was_upgraded() -> None:
    panicked = told(records(*BEGIN, qmp("GUEST_PANICKED")))

    assert judged(panicked, "already").verdict == PASS
    later = judge(
        ["h2"], {"h1": record(), "h2": {**record(), "host": "h2"}}, None, Look(earlier=["h1"], watch=panicked)
    )
    assert later.verdict == FAIL, "a wave that grew is judged with the next one"


def test_a_connection_that_was_lost_is_told_and_stops_nothing() -> None:
    lost = ("lost", {"host": "h1", "reason": "gone"})
    gate = judged(told(records(*BEGIN, qmp("STOP"), qmp("RESET", guest=True), lost)))

    assert gate.verdict == PASS
    (check,) = [check for check in gate.checks if check.check == "watch"]
    assert check.text == "1 of 1 host and 1 of 1 VM watched, 1 lost connection, 1 event that no upgrade brings about"


def test_without_a_watch_nothing_is_told_of_it() -> None:
    assert [check.check for check in judged(None).checks if check.check == "watch"] == []
