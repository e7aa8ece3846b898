# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout by an approved plan: the real playbooks over scripted hosts."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import jsonschema

from .conftest import CORE_NEW, CORE_OLD, NEW, OLD, REPOSITORY, Fleet
from .test_control_flow import UNREACHABLE, valid


def planned(fleet: Fleet, **variables: Any) -> dict[str, Any]:
    """Make a plan and return it, held against its schema."""
    run = fleet.run("plan", upgrade_build=NEW, **variables)
    assert run.exit_status == 0, run.output
    plan: dict[str, Any] = json.loads((fleet.root / "build" / "results" / "plan.json").read_text())
    jsonschema.validate(plan, json.loads((REPOSITORY / "docs" / "plan.schema.json").read_text()))
    return plan


def by_plan(fleet: Fleet, **variables: Any) -> Any:
    """Run the upgrade by the plan."""
    return fleet.run("upgrade", upgrade_plan="build/results/plan.json", **variables)


def test_an_approved_plan_is_carried_out_in_its_own_waves(fleet: Fleet, closed_port: int) -> None:
    fleet.add_host("h1", {}, rack="r1", upgrade_downtime_budget_ms=100)
    for name, rack in (("h2", "r1"), ("h3", "r1"), ("h4", "r2")):
        fleet.add_host(name, {"vm1": {}}, rack=rack, upgrade_downtime_budget_ms=100)
    fleet.add_host("h5", {"vm1": {"refuse": "its RAM is private"}}, rack="r2")
    fleet.add_host("h6", rack="r2", upgrade_excluded="waits for a disk")
    fleet.add_host("h7", **{**UNREACHABLE, "ansible_port": closed_port}, rack="r2")
    settings: dict[str, Any] = {"upgrade_waves": [1, "100%"], "upgrade_domains": {"rack": 1}}

    plan = planned(fleet, **settings)

    order = [wave["hosts"] for wave in plan["waves"]]
    assert order == [
        ["h2"],
        ["h1", "h4"],
        ["h3"],
    ], "a host with a VM is the canary, and one host of a rack is in a wave"
    assert {item["host"]: item["why"] for item in plan["excluded"]} == {
        "h5": "preflight refuses vm1 [scripted]",
        "h6": "waits for a disk",
        "h7": "unreachable",
    }
    page = (fleet.root / "build" / "results" / "plan.txt").read_text()
    assert plan["hash"] in page and "waits for a disk" in page and "its RAM is private" in page
    assert {call for name in ("h1", "h2", "h3", "h4", "h5") for call in fleet.host(name)["calls"]} == {"preflight"}

    again = fleet.run("plan", upgrade_build=NEW, **settings)
    assert again.exit_status == 0, again.output
    assert set(re.findall(r"changed=(\d+)", again.output)) == {"0"}

    for approval, words in (({}, "is not approved"), ({"upgrade_approved": "0" * 64}, "is of another plan")):
        refused = by_plan(fleet, **approval)
        assert refused.exit_status == 2, refused.output
        assert words in refused.output
    assert "upgrade" not in fleet.host("h2")["calls"]

    run = by_plan(fleet, upgrade_approved=plan["hash"])

    assert run.exit_status == 0, run.output
    report = valid(fleet.report())
    assert [wave["hosts"] for wave in report["waves"]] == order
    assert report["downtime_budget_ms"] == 100
    assert [fleet.builds(name) for name in ("h2", "h3", "h4", "h5", "h6")] == [{"vm1": NEW}] * 3 + [{"vm1": OLD}] * 2
    assert (fleet.host("h1")["default"], fleet.host("h6")["default"]) == (NEW, OLD)


def test_a_changed_fleet_asks_again_with_the_differences(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {}, "vm2": {}})
    fleet.add_host("h2")
    plan = planned(fleet)
    fleet.change("h1", "vm2", build="qemu-10.2.1-2222222222222222")
    fleet.add_host("h3")

    run = by_plan(fleet, upgrade_approved=plan["hash"])

    assert run.exit_status == 2, run.output
    words = " ".join(run.output.split())
    assert "the fleet has changed since" in words
    assert "h3 is new" in words
    assert f"VM h1/vm2: old_build was {OLD}, is qemu-10.2.1-2222222222222222" in words
    assert all("upgrade" not in fleet.host(name)["calls"] for name in ("h1", "h2"))
    assert fleet.locks() == []

    other = by_plan(fleet, upgrade_approved=plan["hash"], upgrade_build=OLD)
    assert other.exit_status == 2, other.output
    assert f"build_id is given as '{OLD}', but the plan" in " ".join(other.output.split())

    assert planned(fleet)["hash"] != plan["hash"]


def test_what_could_not_go_back_needs_an_approval_of_its_own(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"build": None}})
    plan = planned(fleet)

    refused = by_plan(fleet, upgrade_approved=plan["hash"])

    assert refused.exit_status == 2, refused.output
    assert "h1/vm1: it runs a QEMU that is not one of our builds" in " ".join(refused.output.split())
    assert fleet.builds("h1") == {"vm1": None}

    run = by_plan(fleet, upgrade_approved=plan["hash"], upgrade_approve_no_way_back=True)
    assert run.exit_status == 0, run.output
    assert fleet.builds("h1") == {"vm1": NEW}


def test_a_wave_waits_for_its_window_and_is_gone_on_with_in_it(fleet: Fleet) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    start, end = (f"{now + datetime.timedelta(hours=hours):%H:%M}" for hours in (2, 3))
    fleet.add_host("h1")
    fleet.add_host("h2", upgrade_windows=[{"start": start, "end": end}])
    plan = planned(fleet, upgrade_waves=[1])

    paused = by_plan(fleet, upgrade_approved=plan["hash"])

    assert paused.exit_status == 2, paused.output
    report = valid(fleet.report())
    assert (report["verdict"], fleet.builds("h1"), fleet.builds("h2")) == ("aborted", {"vm1": NEW}, {"vm1": OLD})
    assert (
        f"the maintenance window of h2 is closed (mon/tue/wed/thu/fri/sat/sun {start}-{end} UTC)"
        in report["exit_reason"]
    )
    assert fleet.locks() == []

    # The window opens: from 00:00 to 00:00 is all day.
    (journal,) = (fleet.root / "build" / "results" / "rollouts").glob("*.jsonl")
    journal.write_text(journal.read_text().replace(f'"{start}"', '"00:00"').replace(f'"{end}"', '"00:00"'))
    run = fleet.run("upgrade", upgrade_resume=report["rollout_id"])

    assert run.exit_status == 0, run.output
    assert (valid(fleet.report())["verdict"], fleet.builds("h2")) == ("ok", {"vm1": NEW})
    assert fleet.host("h1")["calls"].count("health") == 2, "the wave that passed is left alone"


def test_a_plan_for_a_new_core_needs_it_not_to_be_loaded(fleet: Fleet) -> None:
    fleet.add_thin_host("h1")
    plan = planned(fleet, upgrade_kvm_build=CORE_NEW)
    assert (plan["kvm_build"], plan["vms"][0]["old_kvm_build"], plan["vms"][0]["can_go_back"]) == (
        CORE_NEW,
        CORE_OLD,
        True,
    )
    assert fleet.cores("h1") == ({"vm1": CORE_OLD}, {CORE_OLD: True})

    run = by_plan(fleet, upgrade_approved=plan["hash"])

    assert run.exit_status == 0, run.output
    assert fleet.cores("h1") == ({"vm1": CORE_NEW}, {CORE_NEW: True})


def test_plans_that_cannot_be_made_say_why(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {}})
    fleet.set("h1", no_answer=f"{NEW} is not staged")
    for variables, words in (
        ({}, "Give the build to move to"),
        ({"upgrade_build": NEW, "upgrade_hosts": "nobody"}, "selects no host"),
        ({"upgrade_build": NEW}, "no host can be upgraded"),
        ({"upgrade_build": NEW, "upgrade_exclude": {"h9": "gone"}}, "upgrade_exclude names h9"),
    ):
        run = fleet.run("plan", **variables)
        assert run.exit_status == 2, run.output
        assert words in " ".join(run.output.split()), run.output
    assert "is not staged" in (fleet.root / "build" / "results" / "plan.txt").read_text()
