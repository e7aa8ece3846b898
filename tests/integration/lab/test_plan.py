# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that must not touch anything: a plan, and a request that no host can carry out."""

from __future__ import annotations

from .controller import Controller, host_outcomes, outcomes, verdicts
from .lab_hosts import Builds, LabHosts


def test_a_plan_is_true_and_touches_nothing(lab: LabHosts, controller: Controller, builds: Builds) -> None:
    before = lab.each(lambda host: lab.transactions(host.name))

    run = controller.run("upgrade", "--check", "--diff", upgrade_build=builds.new.build_id, upgrade_waves=[1, "100%"])

    assert run.exit_status == 0, run.output
    report = controller.report("upgrade.plan.json")
    assert (report["mode"], report["verdict"], verdicts(report)) == ("plan", "ok", ["PASS", "PASS"])
    assert outcomes(report) == dict.fromkeys(lab.vms(), "planned")
    for vm in report["vms"]:
        name = vm["name"]
        assert f"--- before: {name} (process {lab.before[name]['pids'][0]}, {builds.old.build_id})" in run.output
        assert f"+++ after: {name} ({builds.new.build_id}, by {vm['mechanism']})" in run.output
    assert f"+/var/lib/vmm-live-upgrade/builds/{builds.new.build_id}/bin/qemu-system-x86_64" in run.output
    assert not controller.has_report(), "a plan must not take the place of a report"
    lab.prove_untouched()
    assert lab.each(lambda host: lab.transactions(host.name)) == before
    assert set(lab.each(lambda host: lab.default_build(host.name)).values()) == {builds.old.build_id}


def test_a_build_that_is_not_staged_is_named_with_its_host(
    lab: LabHosts, controller: Controller, builds: Builds
) -> None:
    unknown = "qemu-11.1.1-ffffffffffffffff"

    run = controller.run("upgrade", upgrade_build=unknown, upgrade_waves=[1, "100%"])

    assert run.exit_status == 2, run.output
    report = controller.report()
    assert (report["verdict"], verdicts(report)) == ("failed", ["FAIL", None])
    assert host_outcomes(report) == {"h1": "failed", "h2": "not_attempted", "h3": "not_attempted"}
    assert f"build {unknown} is not staged" in report["exit_reason"]
    assert "h1" in report["exit_reason"]
    lab.prove_untouched()
