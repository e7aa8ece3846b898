# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that is reset between the loading of the new core and the unloading of the old one comes right by a second run."""

from __future__ import annotations

from ansible_collections.vmm.live_upgrade.tests.integration.lab.controller import Controller, host_outcomes, outcomes
from ansible_collections.vmm.live_upgrade.tests.integration.lab.kvm_cores import KvmCores, name_of
from ansible_collections.vmm.live_upgrade.tests.integration.lab.lab_hosts import LabHosts, builds_of

from .conftest import QemuBuilds
from .host_facts import BOOT_S, boot_id, default_core, kvm_modules, wait_for_boot


def test_a_host_that_is_reset_in_the_middle_is_healed_by_the_next_run(
    lab: LabHosts, controller: Controller, builds: QemuBuilds, kvm_cores: KvmCores
) -> None:
    old, new = name_of(kvm_cores.old), name_of(kvm_cores.new)
    chosen = controller.module("h1", "kvm_core", build_id=kvm_cores.old, state="default", persist=True)
    assert chosen["boot"] == [kvm_cores.old], chosen
    wanted = {"upgrade_build": builds.new, "upgrade_kvm_build": kvm_cores.new, "upgrade_downtime_budget_ms": 20000}
    assert_plan_tells_and_loads_nothing(lab, controller, wanted, kvm_cores)
    before = boot_id(lab, "h1")
    controller.set_host("h1", vmm_reconnect_timeout_s=int(BOOT_S))  # a boot may take long under emulation

    with lab.at_step("h1", "h1-vm1", "handing-over", then="reset"):
        run = controller.run("upgrade", **wanted)

    assert run.exit_status == 2, run.output
    report = controller.report()
    assert host_outcomes(report) == {"h1": "failed"}, run.output
    assert outcomes(report)["h1-vm1"] == "lost"
    wait_for_boot(lab, "h1", before)
    assert kvm_modules(lab, "h1") == {
        "kvm_thin",
        f"kvm_core_{old}",
    }, "the boot loads what was chosen before the rollout"
    assert builds_of(lab.prove()) == {builds.old}

    again = controller.run("upgrade", **wanted)

    assert again.exit_status == 0, again.output
    report = controller.report()
    assert outcomes(report) == dict.fromkeys(lab.vms(), "upgraded")
    assert report["hosts"][0]["kvm"]["unloaded"] == [kvm_cores.old]
    assert kvm_modules(lab, "h1") == {"kvm_thin", f"kvm_core_{new}"}
    assert default_core(lab, "h1") == new
    told = controller.module("h1", "kvm_info")
    assert told["boot"] == [kvm_cores.new], "the next boot loads the new one"
    assert {user["vm"] for user in told["cores"][0]["users"]} == set(lab.vms())
    assert builds_of(lab.prove()) == {builds.new}


def assert_plan_tells_and_loads_nothing(
    lab: LabHosts, controller: Controller, wanted: dict[str, object], kvm_cores: KvmCores
) -> None:
    """The new core is staged and not loaded: the plan says of each VM that it was not compared, and preflight, too."""
    modules = kvm_modules(lab, "h1")
    told = f"the core of {kvm_cores.new} is not loaded, so what it offers was not compared"

    plan = controller.run("upgrade", "--check", "--diff", **wanted)
    asked = controller.run("preflight", preflight_build=wanted["upgrade_build"], preflight_kvm_build=kvm_cores.new)

    assert (plan.exit_status, asked.exit_status) == (0, 0), plan.output + asked.output
    report = controller.report("upgrade.plan.json")
    assert outcomes(report) == dict.fromkeys(lab.vms(), "planned")
    for vm in report["vms"]:
        assert vm["kvm"] == {"from": kvm_cores.old, "to": kvm_cores.new}
        assert [text for text in vm["warnings"] if told in text], vm
        assert f"h1/{vm['name']} [kvm-not-compared] {told}" in asked.words
    assert f"+# {told}" in plan.output, "the diff"
    assert kvm_modules(lab, "h1") == modules
    lab.prove_untouched()
