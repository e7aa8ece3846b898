# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator demands of a wave, in the plays: soak, comparison, growing, and what each comes to."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from .conftest import CORE_NEW, CORE_OLD, NEW, OLD, Fleet
from .test_control_flow import valid


def test_a_build_that_makes_vms_sick_later_is_found_in_the_soak(fleet: Fleet) -> None:
    """Looks at h1: before, after, and, as the third, after the soak. Without one nobody sees it."""
    fleet.add_host("h1", {"vm1": {"sick_from": 3}, "vm2": {}})
    fleet.add_host("h2")

    run = fleet.upgrade(upgrade_waves=[1], upgrade_gate={"soak_s": 1})

    assert run.exit_status == 2, run.output
    report = valid(fleet.report())
    gate = report["waves"][0]["gate"]
    assert (gate["verdict"], gate["then"]) == ("FAIL", "stop")
    assert "h1/vm1: less healthy than before: scripted: sick" in gate["reasons"]
    assert re.search("soaks for [01] s: h1", run.output), "what it has run until then counts"
    assert next(vm for vm in report["vms"] if vm["name"] == "vm1")["health"] == {
        "before": [],
        "after": ["scripted: sick"],
        "regressions": ["scripted: sick"],
    }
    assert (fleet.builds("h1"), fleet.builds("h2")) == ({"vm1": OLD, "vm2": OLD}, {"vm1": OLD})


def test_a_good_build_soaks_and_passes_and_a_rerun_waits_for_nothing(fleet: Fleet) -> None:
    fleet.add_host("h1")
    policy = {"soak_s": 1, "min_vms": 1}

    first = fleet.upgrade(upgrade_gate=policy)

    assert first.exit_status == 0, first.output
    (check,) = [c for c in valid(fleet.report())["waves"][0]["gate"]["checks"] if c["check"] == "health"]
    assert check["text"] == "0 of 1 VM less healthy than before, after at least 1 s on the new build"

    second = fleet.upgrade(upgrade_gate=policy)

    assert second.exit_status == 0, second.output
    assert "soaks for" not in second.output


def test_a_host_that_nobody_can_look_at_after_its_soak_fails_its_wave(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fleet.set("h1", blind_from=3)

    run = fleet.upgrade(upgrade_gate={"soak_s": 1}, upgrade_rollback="never")

    assert run.exit_status == 2, run.output
    report = valid(fleet.report())
    assert report["waves"][0]["gate"]["verdict"] == "FAIL"
    assert "h1: failed: scripted: nobody can look" in report["exit_reason"]
    assert [vm["outcome"] for vm in report["vms"]] == ["upgraded"]


def test_an_interrupt_in_the_soak_ends_it_and_is_reported(fleet: Fleet) -> None:
    fleet.add_host("h1")
    run = fleet.start("upgrade", upgrade_build=NEW, upgrade_gate={"soak_s": 3600})
    output = run.stdout
    assert output and any("soaks for" in line for line in output)
    # Ansible waits for ever for the lock of its queue when the worker is killed that has just spoken and still holds it.
    time.sleep(1)

    os.killpg(run.pid, signal.SIGINT)  # as Ctrl-C does
    done = fleet.wait(run)

    assert done.exit_status not in (0, 2), done.output
    report = valid(fleet.report())
    assert (report["verdict"], report["waves"][0]["gate"]) == ("aborted", None)
    assert [vm["outcome"] for vm in report["vms"]] == ["upgraded"]
    assert fleet.locks() == []


def test_a_wave_that_fails_at_once_does_not_soak(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"sick_on": [NEW]}})

    run = fleet.upgrade(upgrade_gate={"soak_s": 300})

    assert run.exit_status == 2, run.output
    assert "soaks for" not in run.output
    assert fleet.builds("h1") == {"vm1": OLD}


def test_too_few_vms_pause_for_a_person_who_goes_on_by_the_same_command(fleet: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2")

    run = fleet.upgrade(upgrade_waves=[1], upgrade_gate={"max_failure_rate": 0.05})

    assert run.exit_status == 2, run.output
    report = valid(fleet.report())
    gate = report["waves"][0]["gate"]
    assert (gate["verdict"], gate["then"], report["waves"][1]["gate"]) == ("INCONCLUSIVE", "pause", None)
    (check,) = [check for check in gate["checks"] if check["check"] == "failure_rate"]
    assert (check["n"], check["unit"], check["n_needed"]) == (1, "host", 72)
    assert "72 hosts in all would show it if no other was bad" in report["exit_reason"]
    assert (fleet.builds("h1"), fleet.builds("h2")) == ({"vm1": NEW}, {"vm1": OLD})

    again = fleet.upgrade(upgrade_waves=[1], upgrade_gate={"max_failure_rate": 0.05, "on_inconclusive": "pass"})

    assert again.exit_status == 0, again.output
    assert "wave 1 was let pass without proof, as configured" in valid(fleet.report())["exit_reason"]
    assert fleet.builds("h2") == {"vm1": NEW}


def test_a_failure_that_the_gate_allows_is_told_at_the_end(fleet: Fleet) -> None:
    """One of ten taken back: the rate may be 60 %, so the wave passes, and nobody says that all VMs are on the build."""
    fleet.add_host("h1", {"bad": {"outcome": "rolled_back"}, **{f"vm{n}": {} for n in range(9)}})

    run = fleet.upgrade(upgrade_gate={"max_failure_rate": 0.6, "unit": "vm", "correlation": 0})

    assert run.exit_status == 0, run.output
    report = valid(fleet.report())
    assert report["waves"][0]["gate"]["verdict"] == "PASS"
    assert report["exit_reason"] == (
        "the gate allowed 1 of 10 VMs not to be on their build or to be less healthy: h1/bad"
    )
    assert fleet.builds("h1")["bad"] == OLD


def test_a_lost_guest_is_a_hard_stop_whatever_rate_is_allowed(fleet: Fleet) -> None:
    fleet.add_host("h1", {"bad": {"outcome": "lost"}, **{f"vm{n}": {} for n in range(9)}})

    run = fleet.upgrade(upgrade_gate={"max_failure_rate": 0.6, "unit": "vm", "correlation": 0})

    assert run.exit_status == 2, run.output
    gate = valid(fleet.report())["waves"][0]["gate"]
    assert [check["check"] for check in gate["checks"] if check["verdict"] == "FAIL"] == ["hard_stop"]


@pytest.mark.parametrize("all_sick", [True, False], ids=["all-alike", "the-upgraded-only"])
def test_what_strikes_those_that_are_not_upgraded_too_is_not_held_against_the_build(
    fleet: Fleet, all_sick: bool
) -> None:
    """All guests of h1 get sick in its wave; those of h2, looked at meanwhile, do or do not. A tenth of doubt, few VMs."""
    fleet.add_host("h1", {f"vm{n}": {"sick_from": 2} for n in range(20)})
    fleet.add_host("h2", {f"vm{n}": ({"sick_from": 2} if all_sick else {}) for n in range(20)})
    policy = {"margin": 0.3, "controls": 1, "unit": "vm", "correlation": 0, "confidence": 0.8}

    run = fleet.upgrade(upgrade_waves=[1], upgrade_gate=policy)

    gate = valid(fleet.report())["waves"][0]["gate"]
    (check,) = [check for check in gate["checks"] if check["check"] == "comparison"]
    assert (check["verdict"], gate["verdict"]) == (("PASS", "PASS") if all_sick else ("FAIL", "FAIL")), run.output
    assert fleet.builds("h1")["vm0"] == (NEW if all_sick else OLD)
    assert "upgrade" not in fleet.host("h2").get("calls", []) or all_sick


class TestGrow:
    POLICY = {"min_vms": 2, "on_inconclusive": "grow", "grow_limit": 1}

    def test_a_wave_that_proves_nothing_takes_in_the_next(self, fleet: Fleet) -> None:
        for name in ("h1", "h2", "h3"):
            fleet.add_host(name)

        run = fleet.upgrade(upgrade_waves=[1], upgrade_gate=self.POLICY)

        assert run.exit_status == 0, run.output
        gates = [wave["gate"] for wave in valid(fleet.report())["waves"]]
        assert [(gate["verdict"], gate["then"]) for gate in gates] == [
            ("INCONCLUSIVE", "grow"),
            ("PASS", "go_on"),
            ("PASS", "go_on"),
        ]
        assert all(fleet.builds(name) == {"vm1": NEW} for name in fleet.inventory)

    def test_it_goes_back_as_a_whole(self, fleet: Fleet) -> None:
        fleet.add_host("h1")
        fleet.add_host("h2", {"vm1": {"sick_on": [NEW]}})
        fleet.add_host("h3")

        run = fleet.upgrade(upgrade_waves=[1], upgrade_gate=self.POLICY)

        assert run.exit_status == 2, run.output
        assert [fleet.builds(name)["vm1"] for name in ("h1", "h2", "h3")] == [OLD, OLD, OLD]
        assert fleet.host("h1")["default"] == OLD
        report = valid(fleet.report())
        assert [wave["rolled_back"] for wave in report["waves"]] == [True, True, False]
        assert "calls" not in fleet.host("h3")

    def test_kvm_cores_are_settled_once_it_is_judged_for_good(self, fleet: Fleet) -> None:
        for name in ("h1", "h2"):
            fleet.add_thin_host(name)

        run = fleet.upgrade(upgrade_waves=[1], upgrade_gate=self.POLICY, upgrade_kvm_build=CORE_NEW)

        assert run.exit_status == 0, run.output
        for name in ("h1", "h2"):
            assert fleet.cores(name) == ({"vm1": CORE_NEW}, {CORE_NEW: True}), name
        valid(fleet.report())

    def test_a_core_that_a_grown_wave_leaves_is_unloaded(self, fleet: Fleet) -> None:
        fleet.add_thin_host("h1")
        fleet.add_thin_host("h2", {"vm1": {"sick_on": [CORE_NEW]}})

        run = fleet.upgrade(upgrade_waves=[1], upgrade_gate=self.POLICY, upgrade_kvm_build=CORE_NEW)

        assert run.exit_status == 2, run.output
        for name in ("h1", "h2"):
            assert fleet.cores(name) == ({"vm1": CORE_OLD}, {CORE_OLD: True}), name

    def test_it_does_not_grow_over_the_limit(self, fleet: Fleet) -> None:
        for name in ("h1", "h2", "h3"):
            fleet.add_host(name)

        run = fleet.upgrade(upgrade_waves=[1], upgrade_gate={**self.POLICY, "grow_limit": 0.5})

        assert run.exit_status == 2, run.output
        assert valid(fleet.report())["waves"][0]["gate"]["then"] == "pause"
        assert fleet.builds("h2") == {"vm1": OLD}


def test_a_policy_that_cannot_be_meant_touches_nothing(fleet: Fleet) -> None:
    fleet.add_host("h1")

    run = fleet.upgrade(upgrade_gate={"max_failure_rate": 5})

    assert run.exit_status != 0
    assert "upgrade_gate has max_failure_rate 5; it is a share between 0 and 1" in run.output
    assert "calls" not in fleet.host("h1")
    assert fleet.locks() == []
