# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout whose controller died, and one that only seemed to: resume, leases, late steps."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from .conftest import NEW, OLD, Fleet
from .test_control_flow import valid


def cut_in_turn_of(fleet: Fleet, name: str, **variables: Any) -> tuple[Path, int, Any]:
    """Start an upgrade; return its journal, what lets its step on the host ``name`` go on, and its process."""
    fifo = fleet.root / "fifo"
    os.mkfifo(fifo)
    fleet.set(name, wait_on=str(fifo))
    process = fleet.start("upgrade", upgrade_build=NEW, **variables)
    gate = os.open(fifo, os.O_WRONLY)  # returns once the module waits on the host
    fleet.set(name, wait_on=None)
    (journal,) = (fleet.root / "build" / "results" / "rollouts").glob("*.jsonl")
    return journal, gate, process


def events(journal: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in journal.read_text().splitlines()]
    return [event for event in found if event["event"] == kind]


@pytest.mark.parametrize("sick_on", [[], [NEW]], ids=["healthy", "sick-on-the-new-build"])
def test_a_killed_controller_is_followed_by_one_that_goes_on(fleet: Fleet, sick_on: list[str]) -> None:
    """What was seen of a VM before it was touched is what its health is held against, also by the second controller."""
    fleet.add_host("h1")
    fleet.add_host("h2", {"vm1": {"sick_on": sick_on}})
    fleet.add_host("h3")
    journal, gate, killed = cut_in_turn_of(fleet, "h2", upgrade_waves=[1], upgrade_gate={"soak_s": 1})
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    os.close(gate)
    calls = [fleet.host(name).get("calls", []) for name in ("h1", "h2")]

    run = fleet.run("upgrade", upgrade_resume=journal.stem)

    report = valid(fleet.report())
    assert report["rollout_id"] == journal.stem
    assert len(list(journal.parent.glob("*.jsonl"))) == 1
    assert fleet.host("h1")["calls"] == calls[0], "a wave that passed is left alone"
    assert fleet.host("h2")["calls"].count("preflight") == 1, "the verdict was given before anything was touched"
    assert [event["wave"] for event in events(journal, "gate")] == ([0, 1] if sick_on else [0, 1, 2])
    assert (
        next(vm for vm in report["vms"] if vm["host"] == "h2")["outcome"] == "upgraded"
    ), "it was measured by the host"
    assert fleet.locks() == []
    if sick_on:
        assert run.exit_status == 2, run.output
        assert "h2/vm1: less healthy than before" in report["exit_reason"]
        assert [fleet.builds(name)["vm1"] for name in ("h1", "h2", "h3")] == [NEW, OLD, OLD]
    else:
        assert run.exit_status == 0, run.output
        assert [fleet.builds(name)["vm1"] for name in ("h1", "h2", "h3")] == [NEW, NEW, NEW]

    before = journal.read_bytes(), (fleet.root / "build" / "results" / "upgrade.json").read_bytes()
    touched = [fleet.host(name) for name in ("h1", "h2", "h3")]
    again = fleet.run("upgrade", upgrade_resume=str(journal))
    assert again.exit_status == run.exit_status, again.output
    assert "has ended; there is nothing to go on with" in again.output
    assert (journal.read_bytes(), (fleet.root / "build" / "results" / "upgrade.json").read_bytes()) == before
    assert [fleet.host(name) for name in ("h1", "h2", "h3")] == touched
    assert "changed=1" not in again.output


def test_a_host_is_kept_from_another_controller_and_a_run_that_was_followed_is_refused(fleet: Fleet) -> None:
    """The controller only seemed to be dead: another goes on with its rollout, and what it does after that is refused."""
    fleet.add_host("h1")
    fleet.add_host("h2")
    journal, gate, slow = cut_in_turn_of(fleet, "h1", upgrade_waves=[1])
    fleet.state = fleet.root / "state of another controller"

    refused = fleet.upgrade(upgrade_waves=[1], upgrade_report="other/report.json")
    assert refused.exit_status == 2, refused.output
    assert "holds this host for" in refused.output and journal.stem in refused.output
    assert fleet.builds("h1") == {"vm1": OLD}

    resumed = fleet.run("upgrade", upgrade_resume=str(journal))
    assert resumed.exit_status == 0, resumed.output
    ended = fleet.report()
    state = [fleet.host(name)["vms"] for name in ("h1", "h2")]

    os.close(gate)
    late = fleet.wait(slow)

    assert late.exit_status != 0, late.output
    assert "a later run has taken this host since" in late.output
    assert "was taken over by a later run" in " ".join(late.output.split())
    assert [fleet.host(name)["vms"] for name in ("h1", "h2")] == state
    assert fleet.report() == ended
    shown = fleet.run("report", report_file=str(journal))
    assert "a later run" not in shown.output, "what it says of the host is not taken for what became of it"


def test_resuming_what_cannot_be_resumed_touches_nothing(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2")
    journal, gate, running = cut_in_turn_of(fleet, "h1", upgrade_waves=[1])
    requests: list[tuple[dict[str, Any], str]] = [
        ({"upgrade_resume": journal.stem}, "is working on h1"),
        ({"upgrade_resume": "upgrade-of-nobody"}, "there is no journal"),
        ({"upgrade_resume": "../x"}, "neither the id of a rollout nor a journal"),
        ({"upgrade_resume": journal.stem, "upgrade_build": OLD}, f"has '{NEW}'"),
        ({"upgrade_resume": journal.stem, "upgrade_plan": "p.json"}, "not both"),
    ]
    for variables, words in requests:
        run = fleet.run("upgrade", **variables)
        assert run.exit_status == 2, run.output
        assert words in " ".join(run.output.split()), run.output
    assert "calls" not in fleet.host("h2")
    os.close(gate)
    assert fleet.wait(running).exit_status == 0
    assert fleet.locks() == []
