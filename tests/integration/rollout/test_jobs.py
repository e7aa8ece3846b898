# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout in several runs, as jobs of CI: where each stops, what the next one takes up, and how it stands in between."""

from __future__ import annotations

import datetime
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import NEW, OLD, Finished, Fleet
from .test_control_flow import valid
from .test_plan import by_plan, planned

# One host after the other, none of which can show as much as is asked for.
UNDECIDED: dict[str, Any] = {"upgrade_waves": [1], "upgrade_gate": {"max_failure_rate": 0.5, "soak_s": 1}}


def kinds(fleet: Fleet, kind: str) -> list[dict[str, Any]]:
    return [event for event in fleet.journal() if event["event"] == kind]


def go_on(fleet: Fleet, **variables: Any) -> Finished:
    """Go on with the rollout that the status names."""
    return fleet.run("upgrade", upgrade_resume=fleet.status()["rollout_id"], **variables)


def test_each_wave_is_a_run_of_its_own_in_another_working_copy(fleet: Fleet) -> None:
    for name in ("h1", "h2", "h3"):
        fleet.add_host(name)
    plan = planned(fleet, upgrade_waves=[1])
    fleet.move_on("canary")

    canary = by_plan(fleet, upgrade_approved=plan["hash"], upgrade_until_wave=0)

    assert canary.exit_status == 0, canary.output
    told = fleet.status()
    assert (told["status"], told["next_wave"]) == ("wave_done", 1)
    report = valid(fleet.report())
    assert (report["verdict"], report["status"]) == ("paused", "wave_done")
    assert (
        f"wave 0 has passed, and no wave after 0 was asked for; go on with -e upgrade_resume={told['rollout_id']}"
        in (report["exit_reason"])
    )
    assert '<skipped message="not at its end yet' in (fleet.place / "build/results/upgrade.junit.xml").read_text()
    assert "Paused" in (fleet.place / "build/results/upgrade.html").read_text()
    assert [fleet.builds(name)["vm1"] for name in ("h1", "h2", "h3")] == [NEW, OLD, OLD]
    before = fleet.report()

    fleet.move_on("next")
    again = go_on(fleet, upgrade_until_wave=0)
    assert again.exit_status == 0, again.output
    assert fleet.status()["status"] == "wave_done"
    assert fleet.host("h1")["calls"].count("upgrade") == 2, "as the one run did: begun, then told"

    second = go_on(fleet, upgrade_until_wave=1)
    assert second.exit_status == 0, second.output
    assert fleet.status()["next_wave"] == 2
    fleet.move_on("rest")
    last = go_on(fleet)

    assert last.exit_status == 0, last.output
    assert (fleet.status()["status"], fleet.status()["next_wave"]) == ("done", None)
    assert [fleet.builds(name)["vm1"] for name in ("h1", "h2", "h3")] == [NEW, NEW, NEW]
    assert (valid(fleet.report())["rollout_id"], fleet.report()["verdict"]) == (told["rollout_id"], "ok")
    assert [event["wave"] for event in kinds(fleet, "gate")] == [0, 1, 2], "no wave is judged twice"
    assert fleet.host("h1")["calls"].count("health") == 2
    assert json.loads((fleet.root / "canary/build/results/upgrade.json").read_text()) == before, "its own copy stays"


def test_a_wave_that_is_grown_into_is_not_entered_when_it_was_not_asked_for(fleet: Fleet) -> None:
    for name in ("h1", "h2", "h3", "h4"):
        fleet.add_host(name)
    gate = {"max_failure_rate": 0.5, "on_inconclusive": "grow", "confidence": 0.5}

    run = fleet.upgrade(upgrade_waves=[1], upgrade_gate=gate, upgrade_until_wave=0)

    assert run.exit_status == 2, run.output
    assert fleet.status()["status"] == "paused"
    assert "would have been judged with wave 1" in fleet.status()["reason"]
    assert (fleet.builds("h1"), fleet.builds("h2")) == ({"vm1": NEW}, {"vm1": OLD})
    assert valid(fleet.report())["verdict"] == "aborted"


def test_a_person_lets_a_wave_pass_and_it_does_not_soak_again(fleet: Fleet) -> None:
    for name in ("h1", "h2"):
        fleet.add_host(name)
    run = fleet.upgrade(**UNDECIDED)
    assert run.exit_status == 2, run.output
    told = fleet.status()
    assert (told["status"], told["next_wave"]) == ("paused", 0)
    assert f"-e upgrade_resume={told['rollout_id']} -e upgrade_accept_wave=0" in valid(fleet.report())["exit_reason"]
    looks = fleet.host("h1")["calls"].count("health")

    fleet.move_on("next")
    unchanged = go_on(fleet)
    assert unchanged.exit_status == 2, unchanged.output
    assert fleet.status()["status"] == "paused", "nobody decided"
    assert "soaks for" not in unchanged.output
    assert fleet.host("h1")["calls"].count("health") == looks

    refused = go_on(fleet, upgrade_accept_wave=1)
    assert refused.exit_status == 2, refused.output
    assert "it is wave 0 that waits for a decision" in " ".join(refused.output.split())
    assert fleet.status()["status"] == "not_started"

    resume = {"upgrade_resume": told["rollout_id"]}
    accepted = fleet.run("upgrade", **resume, upgrade_accept_wave=0, upgrade_until_wave=0)
    assert accepted.exit_status == 0, accepted.output
    assert fleet.status()["status"] == "wave_done"
    assert fleet.builds("h2") == {"vm1": OLD}

    rest = fleet.run("upgrade", **resume, upgrade_accept_wave=0)
    assert rest.exit_status == 2, rest.output
    assert (fleet.status()["status"], fleet.status()["next_wave"]) == ("paused", 1), "it was of wave 0 alone"
    assert fleet.builds("h2") == {"vm1": NEW}

    assert fleet.run("upgrade", **resume, upgrade_accept_wave=1).exit_status == 0
    report = valid(fleet.report())
    assert (report["verdict"], report["status"]) == ("ok", "done")
    assert "wave 0, 1 was let pass without proof" in report["exit_reason"]
    assert fleet.host("h1")["calls"].count("health") == looks


def test_what_a_wave_has_run_counts_when_the_controller_died_in_its_soak(fleet: Fleet) -> None:
    fleet.add_host("h1")
    soaking = fleet.start("upgrade", upgrade_build=NEW, upgrade_gate={"soak_s": 7200})
    assert soaking.stdout is not None
    for line in soaking.stdout:
        if "soaks for 7200 s" in line:
            break
    fleet.kill(soaking)
    (path,) = (fleet.root / "build" / "results" / "rollouts").glob("*.jsonl")
    an_hour_before = datetime.timedelta(hours=1, seconds=1)
    path.write_text("".join(f"{_older(line, an_hour_before)}\n" for line in path.read_text().splitlines()))

    half = fleet.start("upgrade", upgrade_resume=path.stem)
    assert half.stdout is not None
    told = next(line for line in half.stdout if "soaks for" in line)
    fleet.kill(half)
    assert 3000 < int(told.split("soaks for ")[1].split()[0]) < 3600, told

    path.write_text("".join(f"{_older(line, an_hour_before)}\n" for line in path.read_text().splitlines()))
    run = fleet.run("upgrade", upgrade_resume=path.stem)

    assert run.exit_status == 0, run.output
    assert "soaks for 0 s: h1" in run.output, "it is looked at, and not waited for"
    (health,) = [check for check in valid(fleet.report())["waves"][0]["gate"]["checks"] if check["check"] == "health"]
    assert "after at least 7200 s on the new build" in health["text"]


def _older(line: str, by: datetime.timedelta) -> str:
    event = json.loads(line)
    return json.dumps({**event, "at": (datetime.datetime.fromisoformat(event["at"]) - by).isoformat()})


def _refused(fleet: Fleet) -> Finished:
    fleet.add_host("h1", {"vm1": {}, "vm2": {"refuse": "its RAM is private"}})
    return fleet.upgrade()


def _rolled_back(fleet: Fleet) -> Finished:
    fleet.add_host("h1", {"vm1": {}, "vm2": {"outcome": "rolled_back"}})
    return fleet.upgrade()


def _taken_back(fleet: Fleet) -> Finished:
    fleet.add_host("h1", {"vm1": {"outcome": "rolled_back"}})
    return fleet.upgrade()


def _never_back(fleet: Fleet) -> Finished:
    fleet.add_host("h1", {"vm1": {}, "vm2": {"outcome": "rolled_back"}})
    return fleet.upgrade(upgrade_rollback="never")


def _lost(fleet: Fleet) -> Finished:
    fleet.add_host("h1", {"vm1": {}, "vm2": {"outcome": "lost"}})
    return fleet.upgrade()


def _planned(fleet: Fleet) -> Finished:
    fleet.add_host("h1")
    return fleet.upgrade("--check")


def _no_approval(fleet: Fleet) -> Finished:
    fleet.add_host("h1")
    planned(fleet)
    return by_plan(fleet)


def _old_approval(fleet: Fleet) -> Finished:
    fleet.add_host("h1")
    plan = planned(fleet)
    fleet.add_host("h2")
    return by_plan(fleet, upgrade_approved=plan["hash"])


def _no_build(fleet: Fleet) -> Finished:
    fleet.add_host("h1")
    return fleet.upgrade(upgrade_build=None)


def _no_number(fleet: Fleet) -> Finished:
    fleet.add_host("h1")
    return fleet.upgrade(upgrade_until_wave="first")


def _no_host(fleet: Fleet) -> Finished:
    fleet.add_host("h1")
    return fleet.upgrade(upgrade_hosts="nobody")


def _done(fleet: Fleet) -> Finished:
    fleet.add_host("h1")
    return fleet.upgrade()


ENDS: dict[str, tuple[Callable[[Fleet], Finished], str, int, str]] = {
    "done": (_done, "done", 0, "every VM is on its build"),
    "planned": (_planned, "planned", 0, "nothing was changed"),
    "rolled-back": (_rolled_back, "rolled_back", 2, "rolled back"),
    "taken-back": (_taken_back, "rolled_back", 2, "scripted to be rolled_back"),
    "refused": (_refused, "stopped", 2, "its RAM is private"),
    "not-rolled-back": (_never_back, "attention", 2, "scripted to be rolled_back"),
    "lost": (_lost, "attention", 2, "scripted to be lost"),
    "no-approval": (_no_approval, "not_approved", 2, "is not approved"),
    "old-approval": (_old_approval, "not_approved", 2, "the fleet has changed"),
    "no-build": (_no_build, "not_started", 2, "Give the build to move to"),
    "no-number": (_no_number, "not_started", 2, "until_wave"),
    "no-host": (_no_host, "not_started", 2, "before anything was begun"),
}


@pytest.mark.parametrize(("act", "status", "exit_status", "words"), ENDS.values(), ids=list(ENDS))
def test_the_status_tells_how_a_run_ended(
    fleet: Fleet, act: Callable[[Fleet], Finished], status: str, exit_status: int, words: str
) -> None:
    run = act(fleet)

    assert run.exit_status == exit_status, run.output
    told = fleet.status("upgrade.plan.status.json" if status == "planned" else "upgrade.status.json")
    assert told["status"] == status, told
    assert words in told["reason"]
    if told["rollout_id"]:
        assert valid(fleet.report(told["report"]))["status"] == status


def test_the_status_of_a_run_that_was_cut(fleet: Fleet) -> None:
    """By Ctrl-C it says so; killed, it could say nothing, and is found as it was: running."""
    fleet.add_host("h1")
    for number, ends_by, status in ((0, signal.SIGKILL, "running"), (1, signal.SIGINT, "interrupted")):
        fifo = fleet.root / f"fifo{number}"
        os.mkfifo(fifo)
        fleet.set("h1", wait_on=str(fifo))
        process = fleet.start("upgrade", upgrade_build=NEW)
        waits = os.open(fifo, os.O_WRONLY)
        assert fleet.status()["status"] == "running"
        if ends_by == signal.SIGKILL:
            fleet.kill(process)
        else:
            os.kill(process.pid, ends_by)
        os.close(waits)
        if ends_by == signal.SIGINT:
            assert fleet.wait(process).exit_status not in (0, 2)
        assert fleet.status()["status"] == status
    assert valid(fleet.report())["status"] == "interrupted"


def test_a_rollout_is_gone_back_on_by_its_id_and_then_not_gone_on_with(fleet: Fleet) -> None:
    for name in ("h1", "h2"):
        fleet.add_host(name)
    assert fleet.upgrade(upgrade_waves=[1], upgrade_until_wave=0).exit_status == 0
    rollout_id = fleet.status()["rollout_id"]

    unknown = fleet.run("rollback", rollback_from="upgrade-20260101T000000Z-000000")
    assert unknown.exit_status == 2, unknown.output
    assert "there is no journal" in unknown.output
    assert fleet.status("rollback.status.json")["status"] == "not_started"

    back = fleet.run("rollback", rollback_from=rollout_id)
    assert back.exit_status == 0, back.output
    assert fleet.builds("h1") == {"vm1": OLD}
    told = fleet.status("rollback.status.json")
    assert told["status"] == "done"

    refused = fleet.run("upgrade", upgrade_resume=rollout_id)
    assert refused.exit_status == 2, refused.output
    assert f"were taken back by {told['rollout_id']} since" in " ".join(refused.output.split())
    assert [fleet.builds(name)["vm1"] for name in ("h1", "h2")] == [OLD, OLD]
    shown = fleet.run("report", report_file=str(Path("build/results/rollouts") / f"{rollout_id}.jsonl"))
    assert "PAUSED" in shown.output, "the note changes nothing of what it came to"
