# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waves that fail: what they moved goes back, and nobody else is touched."""

from __future__ import annotations

import re
import socket

from .controller import Controller, host_outcomes, outcomes, verdicts
from .lab_hosts import Builds, LabHosts, builds_of, process

# Hosts that are emulated side by side pause VMs for a second or two.
BUDGET_MS, SLOW_MS = 10_000, 60_000
SICK_ON_NEW_BUILD = "! ls -l /proc/[0-9]*/exe 2>/dev/null | grep -q {build}"


def test_a_build_that_crashes_when_it_loads_costs_no_guest(
    lab: LabHosts, controller: Controller, builds: Builds
) -> None:
    with lab.faults(dict.fromkeys(lab.vms("h1"), "crash")):
        run = controller.run("upgrade", upgrade_build=builds.faulty.build_id, upgrade_waves=[1, "100%"])

    assert run.exit_status == 2, run.output
    report = controller.report()
    assert (report["verdict"], verdicts(report)) == ("failed", ["FAIL", None])
    assert host_outcomes(report) == {"h1": "failed", "h2": "not_attempted", "h3": "not_attempted"}
    assert outcomes(report) == dict.fromkeys(lab.vms("h1"), "rolled_back")
    for vm in report["vms"]:
        assert re.search(r"was killed by (SIGABRT|signal 6)", vm["error"]), vm["error"]
        assert "State: still running on the old build" in vm["error"]
        assert (vm["old_build_id"], vm["new_build_id"]) == (builds.old.build_id, builds.old.build_id)
        assert vm["health"]["regressions"] == []
        assert f"{vm['host']}/{vm['name']}: rolled_back: {vm['error']}" in report["waves"][0]["gate"]["reasons"]
    assert report["vms"][0]["error"] in report["exit_reason"]
    lab.prove_untouched()
    assert lab.default_build("h1") == builds.old.build_id


def test_a_build_that_is_slow_to_load_for_some_vms_is_stopped_in_the_canary(
    lab: LabHosts, controller: Controller, builds: Builds
) -> None:
    """A third of the VMs of the fleet, a half of those of the canary: more than its policy allows, which is shown by a bound."""
    slow = ["h1-vm2", "h2-vm1"]
    policy = {"max_failure_rate": 0.05, "unit": "vm", "correlation": 0}
    with lab.faults(dict.fromkeys(slow, str(SLOW_MS))):
        run = controller.run(
            "upgrade",
            upgrade_build=builds.faulty.build_id,
            upgrade_waves=[2, "100%"],
            upgrade_downtime_budget_ms=BUDGET_MS,
            upgrade_gate=policy,
        )

    assert run.exit_status == 2, run.output
    report = controller.report()
    assert (report["verdict"], verdicts(report)) == ("failed", ["FAIL", None])
    assert host_outcomes(report)["h3"] == "not_attempted"
    assert outcomes(report) == {vm: "rolled_back" if vm in slow else "upgraded" for vm in lab.vms("h1", "h2")}
    for vm in report["vms"]:
        if vm["name"] in slow:
            assert f"the pause exceeded its budget of {BUDGET_MS} ms" in vm["error"]
        else:
            assert vm["rollback"]["outcome"] == "upgraded"
    (shown,) = [check for check in report["waves"][0]["gate"]["checks"] if check["check"] == "failure_rate"]
    assert (shown["verdict"], shown["n"], shown["observed"]) == ("FAIL", 4, 0.5)
    assert shown["bound"] > shown["limit"] == policy["max_failure_rate"]
    assert shown["text"] in report["exit_reason"]
    after = lab.prove_untouched("h3")
    assert builds_of(after) == {builds.old.build_id}
    for name in slow:
        assert process(after[name]) == process(lab.before[name]), "it was taken back by its own process"
    assert set(lab.each(lambda host: lab.default_build(host.name)).values()) == {builds.old.build_id}


def test_a_wave_with_a_sick_vm_goes_back_as_a_whole(lab: LabHosts, controller: Controller, builds: Builds) -> None:
    probe = {"command": ["sh", "-c", SICK_ON_NEW_BUILD.format(build=builds.new.build_id)]}
    controller.set_host("h1", vm_probes={"h1-vm2": probe})

    run = controller.run("upgrade", upgrade_build=builds.new.build_id, upgrade_waves=[2, "100%"])

    assert run.exit_status == 2, run.output
    report = controller.report()
    assert (report["verdict"], verdicts(report)) == ("failed", ["FAIL", None])
    assert [(host["name"], host["outcome"], host["rollback"]) for host in report["hosts"]] == [
        ("h1", "failed", "ok"),
        ("h2", "ok", "ok"),
        ("h3", "not_attempted", None),
    ]
    assert "h1/h1-vm2: less healthy than before" in report["exit_reason"]
    moves = {vm["name"]: (vm["outcome"], vm["rollback"]["outcome"]) for vm in report["vms"]}
    assert moves == dict.fromkeys(lab.vms("h1", "h2"), ("upgraded", "upgraded"))
    assert {vm["rollback"]["new_build_id"] for vm in report["vms"]} == {builds.old.build_id}
    after = lab.prove_untouched("h3")
    assert builds_of(after) == {builds.old.build_id}
    for name in lab.vms("h1", "h2"):
        assert process(after[name]) != process(lab.before[name])
    assert set(lab.each(lambda host: lab.default_build(host.name)).values()) == {builds.old.build_id}


def test_a_host_that_cannot_be_reached_fails_its_wave(lab: LabHosts, controller: Controller, builds: Builds) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, so that nobody else listens there, and refusing
        controller.set_host("h1", ansible_port=closed.getsockname()[1], ansible_ssh_args="-o ControlPath=none")

        run = controller.run("upgrade", upgrade_build=builds.new.build_id, upgrade_waves=[1, "100%"])

    assert run.exit_status != 0, run.output
    report = controller.report()
    assert (report["verdict"], verdicts(report)) == ("failed", ["FAIL", None])
    assert host_outcomes(report) == {"h1": "unreachable", "h2": "not_attempted", "h3": "not_attempted"}
    assert "h1: unreachable" in report["exit_reason"]
    lab.prove_untouched()
