# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control flow of the plays, run by the real ansible-playbook over scripted hosts."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

import jsonschema
import pytest

from .conftest import NEW, OLD, REPOSITORY, Fleet

UNREACHABLE: dict[str, Any] = {
    "ansible_connection": "ssh",
    "ansible_host": "127.0.0.1",
    "ansible_ssh_common_args": "-o ConnectTimeout=5",
}


def valid(report: dict[str, Any]) -> dict[str, Any]:
    """Return ``report`` after holding it against the schema."""
    jsonschema.validate(report, json.loads((REPOSITORY / "docs" / "upgrade.schema.json").read_text()))
    return report


def test_upgrades_wave_by_wave_and_again_changes_nothing(fleet: Fleet) -> None:
    for name in ("h1", "h2", "h3"):
        fleet.add_host(name, {"vm1": {}, "vm2": {"downtime_ms": 7.0}})

    first = fleet.upgrade(upgrade_waves=[1, "100%"], upgrade_downtime_budget_ms=100)

    assert first.exit_status == 0, first.output
    assert all(fleet.builds(name) == {"vm1": NEW, "vm2": NEW} for name in fleet.inventory)
    assert all(fleet.host(name)["default"] == NEW for name in fleet.inventory)
    report = valid(fleet.report())
    assert (report["verdict"], report["mode"], [wave["hosts"] for wave in report["waves"]]) == (
        "ok",
        "apply",
        [["h1"], ["h2", "h3"]],
    )
    assert [wave["gate"]["verdict"] for wave in report["waves"]] == ["PASS", "PASS"]
    assert report["summary"] == {
        "outcomes": {"upgraded": 6},
        "undone": 0,
        "downtime_measured": 6,
        "downtime_median_ms": 6.0,
        "downtime_max_ms": 7.0,
    }
    assert "h1/vm1: begin → spawned\n" in first.output
    assert f"h1/vm1: handing-over → committed → released → running on {NEW}, downtime 5.0 ms" in first.output
    assert fleet.locks() == []

    second = fleet.upgrade(upgrade_waves=[1, "100%"])

    assert second.exit_status == 0, second.output
    assert set(re.findall(r"changed=(\d+)", second.output)) == {"0"}
    assert valid(fleet.report())["summary"]["outcomes"] == {"already": 6}


def test_a_vm_is_held_against_the_budget_of_its_class(fleet: Fleet) -> None:
    """One that may take longer than the others passes; one that may not breaks its wave, and gets a second for the way back."""
    fleet.add_host("h1", {"batch1": {"downtime_ms": 300.0}}, vm_classes={"batch1": "batch", "rt1": "realtime"})
    fleet.add_host("h2", {"rt1": {"downtime_ms": 30.0}}, vm_classes={"batch1": "batch", "rt1": "realtime"})

    run = fleet.upgrade(
        upgrade_waves=[1], upgrade_downtime_budget_ms=100, upgrade_pause_budgets_ms={"batch": 5000, "realtime": "20"}
    )

    assert run.exit_status == 2, run.output
    report = valid(fleet.report())
    assert [wave["gate"]["verdict"] for wave in report["waves"]] == ["PASS", "FAIL"]
    assert "h2/rt1: downtime 30.0 ms is over the budget of 20 ms" in report["exit_reason"]
    assert [(vm["vm_class"], vm["pause_budget_ms"]) for vm in report["vms"]] == [("batch", 5000), ("realtime", 20)]
    assert (fleet.builds("h1"), fleet.builds("h2")) == ({"batch1": NEW}, {"rt1": OLD})
    assert fleet.host("h2")["budgets_ms"] == [{"batch": 5000, "realtime": "20"}, {"batch": 5000, "realtime": 1000}]


def test_a_failing_canary_is_rolled_back_and_the_rest_untouched(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {}, "vm2": {"outcome": "rolled_back"}})
    fleet.add_host("h2")

    run = fleet.upgrade(upgrade_waves=[1])

    assert run.exit_status == 2, run.output
    assert fleet.builds("h1") == {"vm1": OLD, "vm2": OLD}
    assert (fleet.host("h1")["default"], "calls" in fleet.host("h2")) == (OLD, False)
    report = valid(fleet.report())
    assert report["verdict"] == "failed"
    assert "VM vm2: scripted to be rolled_back" in report["exit_reason"]
    assert [wave["gate"] and wave["gate"]["verdict"] for wave in report["waves"]] == ["FAIL", None]
    assert [(host["name"], host["outcome"], host["rollback"]) for host in report["hosts"]] == [
        ("h1", "failed", "ok"),
        ("h2", "not_attempted", None),
    ]
    vm1 = next(vm for vm in report["vms"] if vm["name"] == "vm1")
    assert (vm1["outcome"], vm1["rollback"]["outcome"], vm1["rollback"]["new_build_id"]) == (
        "upgraded",
        "upgraded",
        OLD,
    )


def test_without_automatic_roll_back_the_wave_stays_as_it_is(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {}, "vm2": {"outcome": "rolled_back"}})

    run = fleet.upgrade(upgrade_rollback="never")

    assert run.exit_status == 2, run.output
    assert fleet.builds("h1") == {"vm1": NEW, "vm2": OLD}
    assert not valid(fleet.report())["waves"][0]["rolled_back"]


def test_all_hosts_of_a_bad_wave_go_back_with_their_default_build(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2", {"vm1": {"sick_on": [NEW]}})
    fleet.add_host("h3")

    run = fleet.upgrade(upgrade_waves=[2, "100%"])

    assert run.exit_status == 2, run.output
    assert (fleet.builds("h1"), fleet.builds("h2"), fleet.builds("h3")) == ({"vm1": OLD}, {"vm1": OLD}, {"vm1": OLD})
    assert fleet.host("h1")["default"] == OLD
    assert "less healthy than before" in valid(fleet.report())["exit_reason"]


def test_a_problem_from_before_is_no_regression(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"sick_on": [OLD, NEW]}})

    run = fleet.upgrade()

    assert run.exit_status == 0, run.output
    assert valid(fleet.report())["vms"][0]["health"]["before"] == ["scripted: sick"]


def test_a_downtime_over_the_budget_fails_the_wave(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"downtime_ms": 250.5}})

    run = fleet.upgrade(upgrade_downtime_budget_ms=100)

    assert run.exit_status == 2, run.output
    assert fleet.builds("h1") == {"vm1": OLD}
    assert "downtime 250.5 ms is over the budget of 100 ms" in valid(fleet.report())["exit_reason"]


def test_a_budget_of_the_inventory_counts_as_one_of_the_command_line(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"downtime_ms": 250.5}}, upgrade_downtime_budget_ms=100)

    run = fleet.upgrade()

    assert run.exit_status == 2, run.output
    assert "downtime 250.5 ms is over the budget of 100 ms" in valid(fleet.report())["exit_reason"]


def test_an_unmeasured_downtime_never_passes_a_budget(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"downtime_ms": None}})
    fleet.add_host("h2")

    run = fleet.upgrade(upgrade_downtime_budget_ms=100, upgrade_waves=[1])

    assert run.exit_status == 2, run.output
    assert valid(fleet.report())["waves"][0]["gate"]["verdict"] == "INCONCLUSIVE"
    assert fleet.builds("h2") == {"vm1": OLD}


def test_a_canary_without_a_vm_proves_nothing(fleet: Fleet) -> None:
    fleet.add_host("h1", {})
    fleet.add_host("h2")

    run = fleet.upgrade(upgrade_waves=[1])

    assert run.exit_status == 2, run.output
    assert valid(fleet.report())["waves"][0]["gate"]["verdict"] == "INCONCLUSIVE"
    assert fleet.builds("h2") == {"vm1": OLD}


def test_a_vm_refused_by_preflight_leaves_its_host_untouched(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {}, "vm2": {"refuse": "its RAM is private"}})

    run = fleet.upgrade()

    assert run.exit_status == 2, run.output
    assert fleet.builds("h1") == {"vm1": OLD, "vm2": OLD}
    outcomes = {vm["name"]: (vm["outcome"], vm["reason"]) for vm in valid(fleet.report())["vms"]}
    assert outcomes["vm2"] == ("refused", "its RAM is private")
    assert outcomes["vm1"][0] == "not_attempted"


def test_an_unreachable_host_fails_its_wave_and_stops_the_rollout(fleet: Fleet, closed_port: int) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2", **{**UNREACHABLE, "ansible_port": closed_port})
    fleet.add_host("h3")
    fleet.add_host("h4")

    run = fleet.upgrade(upgrade_waves=[1, 2])

    assert run.exit_status == 2, run.output
    report = valid(fleet.report())
    assert [host["outcome"] for host in report["hosts"]] == ["ok", "unreachable", "ok", "not_attempted"]
    assert report["waves"][1]["gate"]["evidence"]["hosts_unreachable"] == 1
    assert [fleet.builds(name)["vm1"] for name in ("h1", "h3", "h4")] == [NEW, OLD, OLD]


def test_a_canary_that_is_unreachable_is_reported_too(fleet: Fleet, closed_port: int) -> None:
    fleet.add_host("h1", **{**UNREACHABLE, "ansible_port": closed_port})
    fleet.add_host("h2")

    run = fleet.upgrade()

    assert run.exit_status == 2, run.output
    assert [host["outcome"] for host in valid(fleet.report())["hosts"]] == ["unreachable", "not_attempted"]
    assert fleet.builds("h2") == {"vm1": OLD}


def test_a_stopped_rollout_goes_on_where_it_stopped(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2", {"vm1": {"outcome": "rolled_back"}})
    fleet.add_host("h3")
    assert fleet.upgrade(upgrade_waves=[1]).exit_status == 2
    assert fleet.builds("h3") == {"vm1": OLD}

    fleet.change("h2", "vm1", outcome=None)
    run = fleet.upgrade(upgrade_waves=[1])

    assert run.exit_status == 0, run.output
    outcomes = {vm["host"]: vm["outcome"] for vm in valid(fleet.report())["vms"]}
    assert outcomes == {"h1": "already", "h2": "upgraded", "h3": "upgraded"}


def test_check_mode_plans_all_waves_and_touches_nothing(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"refuse": "its RAM is private"}})
    fleet.add_host("h2")

    refused = fleet.upgrade("--check", "--diff", upgrade_waves=[1])

    assert refused.exit_status == 2, refused.output
    report = valid(fleet.report("upgrade.plan.json"))
    assert report["mode"] == "plan"
    assert {vm["host"]: vm["outcome"] for vm in report["vms"]} == {"h1": "refused", "h2": "planned"}

    fleet.change("h1", "vm1", refuse=None)
    planned = fleet.upgrade("--check", "--diff", upgrade_waves=[1])

    assert planned.exit_status == 0, planned.output
    assert valid(fleet.report("upgrade.plan.json"))["summary"]["outcomes"] == {"planned": 2}
    assert "plan PASS: 1 VM to move on 1 host, 0 already there, 0 failures, 0 unreachable\n" in planned.output
    for name in ("h1", "h2"):
        assert (fleet.builds(name), fleet.host(name)["default"]) == ({"vm1": OLD}, OLD)
        assert "upgrade" not in fleet.host(name)["calls"]
    assert fleet.locks() == []
    assert not (fleet.root / "build" / "results" / "upgrade.json").exists(), "a roll-back goes by what was done"
    assert not list((fleet.root / "build" / "results" / "rollouts").glob("*"))


def test_a_second_rollout_over_a_host_is_refused_and_an_interrupt_is_reported(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2")
    fleet.add_host("h3")
    fifo = fleet.root / "fifo"
    os.mkfifo(fifo)
    fleet.set("h1", wait_on=str(fifo))
    first = fleet.start("upgrade", upgrade_build=NEW, upgrade_hosts="h1:h2", upgrade_waves=[1])
    gate = os.open(fifo, os.O_WRONLY)  # returns once the module waits on the host

    second = fleet.upgrade(upgrade_hosts="h2:h3", upgrade_report="second.json")

    assert second.exit_status == 2, second.output
    assert "is working on h2" in second.output
    assert not (fleet.root / "second.json").exists()
    assert "calls" not in fleet.host("h3")
    elsewhere = fleet.upgrade(upgrade_hosts="h3", upgrade_report="third.json")
    assert elsewhere.exit_status == 0, elsewhere.output

    os.kill(first.pid, signal.SIGINT)
    os.close(gate)
    interrupted = fleet.wait(first)

    assert interrupted.exit_status not in (0, 2), interrupted.output
    report = valid(fleet.report())
    assert report["verdict"] == "aborted", interrupted.output
    assert [host["outcome"] for host in report["hosts"]] == ["interrupted", "not_attempted"]
    assert fleet.locks() == []


def test_the_lock_of_a_killed_run_is_stale_and_its_journal_still_makes_a_report(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fifo = fleet.root / "fifo"
    os.mkfifo(fifo)
    fleet.set("h1", wait_on=str(fifo))
    killed = fleet.start("upgrade", upgrade_build=NEW)
    gate = os.open(fifo, os.O_WRONLY)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    os.close(gate)
    assert len(fleet.locks()) == 1
    (journal,) = (fleet.root / "build" / "results" / "rollouts").glob("*.jsonl")

    shown = fleet.run("report", report_file=str(journal), report_html="page.html")

    assert shown.exit_status == 0, shown.output
    assert "ABORTED" in shown.output
    page = (fleet.root / "page.html").read_text()
    assert "Aborted" in page and "Waves over time" in page
    assert "Pauses of the VMs" not in page, "nothing was measured"

    fleet.set("h1", wait_on=None)
    again = fleet.upgrade()
    assert again.exit_status == 0, again.output
    assert fleet.locks() == []


def test_a_cut_connection_is_survived(fleet: Fleet) -> None:
    cuts = fleet.root / "cuts"
    cuts.write_bytes(b"xx")
    fleet.add_host("h1", ansible_connection="vmm.live_upgrade.flaky", flaky_cuts=str(cuts))

    run = fleet.upgrade()

    assert run.exit_status == 0, run.output
    assert cuts.stat().st_size == 0
    assert run.output.count("connection lost, trying again") == 2
    assert fleet.report()["vms"][0]["outcome"] == "upgraded"


def test_a_module_that_is_killed_is_called_again(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fleet.set("h1", dies=True)

    run = fleet.upgrade()

    assert run.exit_status == 0, run.output
    assert "the module was killed on the host" in run.output
    assert fleet.builds("h1") == {"vm1": NEW}


def test_a_connection_that_stays_cut_is_unreachable(fleet: Fleet) -> None:
    cuts = fleet.root / "cuts"
    cuts.write_bytes(b"x" * 100)
    fleet.add_host("h1", ansible_connection="vmm.live_upgrade.flaky", flaky_cuts=str(cuts), vmm_reconnect_timeout_s=1)
    fleet.add_host("h2")

    run = fleet.upgrade(upgrade_waves=[1])

    assert run.exit_status == 2, run.output
    report = valid(fleet.report())
    assert [host["outcome"] for host in report["hosts"]] == ["unreachable", "not_attempted"]
    assert "whether the upgrade began is unknown" in report["exit_reason"]


def test_roll_back_goes_to_the_builds_before_and_again_changes_nothing(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {}, "vm2": {"build": "qemu-10.2.1-2222222222222222"}})
    fleet.add_host("h2")
    assert fleet.upgrade().exit_status == 0

    first = fleet.run("rollback", rollback_hosts="h1")

    assert first.exit_status == 0, first.output
    assert fleet.builds("h1") == {"vm1": OLD, "vm2": "qemu-10.2.1-2222222222222222"}
    assert (fleet.builds("h2"), fleet.host("h1")["default"]) == ({"vm1": NEW}, OLD)
    report = valid(fleet.report("rollback.json"))
    assert (report["kind"], report["verdict"], report["summary"]["outcomes"]) == ("rollback", "ok", {"upgraded": 2})

    second = fleet.run("rollback", rollback_hosts="h1")
    assert second.exit_status == 0, second.output
    assert set(re.findall(r"changed=(\d+)", second.output)) == {"0"}


def test_roll_back_of_one_vm_to_a_named_build(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"build": NEW}, "vm2": {"build": NEW}})

    run = fleet.run("rollback", rollback_build=OLD, rollback_vms=["vm2"])

    assert run.exit_status == 0, run.output
    assert fleet.builds("h1") == {"vm1": NEW, "vm2": OLD}


@pytest.mark.parametrize("accepted", [False, True])
def test_the_risk_of_vfio_devices_is_accepted_for_the_way_back_too(fleet: Fleet, accepted: bool) -> None:
    """By the roll-back of a wave that failed, which has what the upgrade was given, and by a roll-back that is asked for."""
    fleet.add_host("h1", {"vm1": {}, "vm2": {"outcome": "rolled_back"}})
    fleet.add_host("h2", {"vm1": {"build": NEW}})

    fleet.upgrade(upgrade_hosts="h1", upgrade_accept_vfio_risk=accepted)
    fleet.run("rollback", rollback_hosts="h2", rollback_build=OLD, rollback_accept_vfio_risk=accepted)

    assert fleet.host("h1")["vfio_risks"] == [accepted, accepted]
    assert fleet.host("h2")["vfio_risks"] == [accepted]


def test_roll_back_to_a_foreign_build_is_refused(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"build": None}})
    assert fleet.upgrade().exit_status == 0

    run = fleet.run("rollback")

    assert run.exit_status == 2, run.output
    assert "vm1 came from a QEMU that is not one of our builds" in fleet.report("rollback.json")["exit_reason"]
    assert fleet.builds("h1") == {"vm1": NEW}


def test_a_limit_without_localhost_is_refused_before_anything_is_touched(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2")

    refused = fleet.upgrade("--limit", "h1")

    assert refused.exit_status == 2, refused.output
    assert "localhost is not part of this run" in refused.output
    assert "calls" not in fleet.host("h1")

    run = fleet.upgrade("--limit", "h1,localhost")
    assert run.exit_status == 0, run.output
    assert [host["name"] for host in fleet.report()["hosts"]] == ["h1"]


def test_requests_that_cannot_be_carried_out_touch_nothing(fleet: Fleet) -> None:
    fleet.add_host("h1", upgrade_waves=[1])
    requests: list[dict[str, Any]] = [
        {"upgrade_build": None},
        {"upgrade_build": "../../etc"},
        {"upgrade_hosts": "nobody"},
        {"upgrade_waves": ["many"]},
        {"upgrade_waves": []},
        {"upgrade_rollback": "perhaps"},
    ]
    for variables in requests:
        run = fleet.upgrade(**variables)
        assert run.exit_status != 0, (variables, run.output)
    assert "calls" not in fleet.host("h1")
    assert fleet.locks() == []
