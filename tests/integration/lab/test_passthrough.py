# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs whose disk is a drive of the host, passed through by VFIO, among others in a rollout."""

from __future__ import annotations

from typing import Any

from .controller import Controller, outcomes
from .lab_hosts import Builds, LabHosts, builds_of


def passed_through(controller: Controller, host: str) -> dict[str, Any]:
    """The devices of the host that each VM has, and through what, by the name of the VM."""
    told = controller.module(host, "vm_info")
    return {vm["name"]: (vm["passthrough"], vm["vfio"]) for vm in told["vms"]}


def test_a_rollout_takes_vms_with_passed_through_drives_along(
    lab: LabHosts, controller: Controller, builds: Builds
) -> None:
    drives = {vm.name for host in ("h2", "h3") for vm in lab[host].vms if vm.passthrough}
    assert drives == {"h2-vm2", "h3-vm2"}, "bring the lab up with --passthrough 1"
    before = {host: passed_through(controller, host) for host in ("h2", "h3")}
    assert [bool(devices) for devices, _ in before["h2"].values()] == [False, True]

    run = controller.run("upgrade", upgrade_hosts="h2,h3", upgrade_build=builds.new.build_id, upgrade_waves=[1, "100%"])

    assert run.exit_status == 0, run.output
    report = controller.report()
    assert outcomes(report) == dict.fromkeys(lab.vms("h2", "h3"), "upgraded")
    for vm in report["vms"]:
        print(f"{vm['host']}/{vm['name']}: {vm['downtime_ms']:.1f} ms ({vm['downtime_source']}, {vm['mechanism']})")
    assert {vm["mechanism"] for vm in report["vms"]} == {"vfork"}
    after = lab.prove()
    assert builds_of(after, *lab.vms("h2", "h3")) == {builds.new.build_id}
    # The same devices by the same groups, and no guest has had to complain of its drive.
    assert {host: passed_through(controller, host) for host in ("h2", "h3")} == before
    for name in drives:
        assert after[name]["page"]["complaints"] == lab.before[name]["page"]["complaints"]
        assert after[name]["records_checked"] > 0
