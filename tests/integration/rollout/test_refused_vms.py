# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that cannot be moved: the rollout stops at them, or leaves them or their host out, as it is asked to."""

from __future__ import annotations

import os
import signal
from typing import Any

from .conftest import CORE_NEW, CORE_OLD, NEW, OLD, Fleet
from .test_control_flow import valid
from .test_plan import by_plan, planned
from .test_resume import cut_in_turn_of

REFUSED: dict[str, Any] = {"vm1": {}, "vm2": {"refuse": "its RAM is private"}}


def outcomes(fleet: Fleet) -> dict[str, str]:
    return {f"{vm['host']}/{vm['name']}": vm["outcome"] for vm in valid(fleet.report())["vms"]}


def test_the_vm_alone_is_left_out(fleet: Fleet) -> None:
    fleet.add_host("h1", REFUSED)
    fleet.add_host("h2")

    check = fleet.upgrade("--check", upgrade_refused_vms="leave_out_vm", upgrade_waves=[1])
    assert check.exit_status == 0, check.output
    run = fleet.upgrade(upgrade_refused_vms="leave_out_vm", upgrade_waves=[1])

    assert run.exit_status == 0, run.output
    assert (fleet.builds("h1"), fleet.host("h1")["default"]) == ({"vm1": NEW, "vm2": OLD}, NEW)
    assert outcomes(fleet) == {"h1/vm1": "upgraded", "h1/vm2": "left_out", "h2/vm1": "upgraded"}
    report = fleet.report()
    assert report["exit_reason"] == (
        "every other VM is on its build and no less healthy than before; 1 VM was left out: h1/vm2"
    )
    evidence = report["waves"][0]["gate"]["evidence"]
    assert [evidence[name] for name in ("vms", "vms_already", "vms_left_out", "failures")] == [1, 0, 1, 0]
    assert "left out: h1/vm2: its RAM is private" in run.output
    assert "1 VM to move on 1 host, 0 already there, 0 failures, 1 left out" in run.output
    assert '<skipped message="left out: its RAM is private"' in (
        fleet.root / "build/results/upgrade.junit.xml"
    ).read_text(encoding="utf-8")

    again = fleet.upgrade(upgrade_refused_vms="leave_out_vm", upgrade_waves=[1])
    assert again.exit_status == 0, again.output
    assert "changed=1" not in again.output


def test_its_host_is_left_out_with_the_core_that_was_loaded_for_it(fleet: Fleet) -> None:
    fleet.add_thin_host("h1")
    fleet.add_thin_host("h2", REFUSED)

    run = fleet.upgrade(upgrade_refused_vms="leave_out_host", upgrade_kvm_build=CORE_NEW, upgrade_waves=["100%"])

    assert run.exit_status == 0, run.output
    assert (fleet.builds("h2"), fleet.host("h2")["default"]) == ({"vm1": OLD, "vm2": OLD}, OLD)
    assert "upgrade" not in fleet.host("h2")["calls"]
    assert fleet.cores("h1") == ({"vm1": CORE_NEW}, {CORE_NEW: True})
    assert fleet.cores("h2") == ({"vm1": CORE_OLD, "vm2": CORE_OLD}, {CORE_OLD: True})
    assert outcomes(fleet) == {"h1/vm1": "upgraded", "h2/vm1": "left_out", "h2/vm2": "left_out"}
    assert [host["outcome"] for host in fleet.report()["hosts"]] == ["ok", "left_out"]
    assert "left out: h2/vm1: its host is left out, because vm2 cannot be moved" in run.output


def test_a_canary_of_which_nothing_is_moved_proves_nothing(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm2": {"refuse": "its RAM is private"}})
    fleet.add_host("h2")

    run = fleet.upgrade(upgrade_refused_vms="leave_out_vm", upgrade_waves=[1])

    assert run.exit_status == 2, run.output
    assert fleet.status()["status"] == "paused"
    assert "nothing was proved" in valid(fleet.report())["exit_reason"]
    assert fleet.builds("h2") == {"vm1": OLD}


def test_a_run_that_goes_on_in_the_middle_of_a_host_moves_no_vm_that_was_left_out(fleet: Fleet) -> None:
    fleet.add_host("h1", {**REFUSED, "vm3": {}})
    journal, gate, killed = cut_in_turn_of(fleet, "h1", upgrade_refused_vms="leave_out_vm")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    os.close(gate)
    fleet.change("h1", "vm2", refuse=None)

    run = fleet.run("upgrade", upgrade_resume=journal.stem)

    assert run.exit_status == 0, run.output
    assert fleet.builds("h1") == {"vm1": NEW, "vm2": OLD, "vm3": NEW}
    assert outcomes(fleet)["h1/vm2"] == "left_out"


def test_a_plan_tells_what_it_leaves_out_and_is_carried_out_so(fleet: Fleet) -> None:
    fleet.add_host("h1", REFUSED)
    fleet.add_host("h2")
    path = fleet.root / "build" / "results" / "plan.json"

    refused = fleet.run("plan", upgrade_build=NEW, upgrade_refused_vms="stop")
    assert refused.exit_status == 2, refused.output
    assert "h1/vm2: its RAM is private" in " ".join(refused.output.split())
    assert not path.exists()

    without_host = planned(fleet, upgrade_refused_vms="leave_out_host")
    assert [item["host"] for item in without_host["excluded"]] == ["h1"]

    plan = planned(fleet, upgrade_waves=["100%"])
    assert ([wave["hosts"] for wave in plan["waves"]], plan["excluded"]) == ([["h1", "h2"]], [])
    assert "h1    vm2  preflight refuses it [scripted]  its RAM is private" in path.with_suffix(".txt").read_text()

    other = by_plan(fleet, upgrade_approved=plan["hash"], upgrade_refused_vms="stop")
    assert other.exit_status == 2, other.output
    assert "refused_vms is given as 'stop', but the plan" in " ".join(other.output.split())

    run = by_plan(fleet, upgrade_approved=plan["hash"])

    assert run.exit_status == 0, run.output
    assert fleet.builds("h1") == {"vm1": NEW, "vm2": OLD}
    assert outcomes(fleet) == {"h1/vm1": "upgraded", "h1/vm2": "left_out", "h2/vm1": "upgraded"}


def test_a_policy_that_there_is_not_is_refused(fleet: Fleet) -> None:
    fleet.add_host("h1")
    run = fleet.upgrade(upgrade_refused_vms="ignore")
    assert run.exit_status == 2, run.output
    assert "refused_vms" in run.output and "leave_out_vm" in run.output
    assert fleet.status()["status"] == "not_started"
    assert "calls" not in fleet.host("h1")
