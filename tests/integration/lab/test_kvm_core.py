# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rollouts that replace KVM under running VMs, and QEMU at the same time.

The hosts run ``kvm_thin``. ``kvm_cores.old`` is the id of the KVM build whose core is loaded, ``kvm_cores.new`` that of another
one, which is staged on all hosts and not loaded.
"""

from __future__ import annotations

import pytest

from .controller import Controller, host_outcomes, outcomes, verdicts
from .kvm_cores import KvmCores, name_of
from .lab_hosts import Builds, LabHosts, Look, builds_of

SICK_ON_NEW_CORE = "! grep -Eq '^{name} vms=[1-9]' /sys/module/kvm_thin/parameters/cores"


class Cores:
    """Which VM is on which core, as the processes and the kernel of each host say."""

    def __init__(self, lab: LabHosts, controller: Controller) -> None:
        self._told = lab.each(lambda host: controller.module(host.name, "kvm_info"))
        self._vms = lab.each(lambda host: controller.module(host.name, "vm_info")["vms"])

    def loaded(self, host: str) -> dict[str, bool]:
        """The cores of ``host`` by build, each with whether new VMs start on it."""
        return {core["build_id"]: core["default"] for core in self._told[host]["cores"]}

    def users(self, host: str) -> dict[str, set[str]]:
        """The VMs of ``host`` by the build of the core that their process has open."""
        cores = self._told[host]["cores"]
        return {core["build_id"]: {user["vm"] for user in core["users"]} for core in cores if core["users"]}

    def nodes(self, host: str) -> dict[str, str]:
        """The node that each VM of ``host`` has open."""
        return {vm["name"]: vm["kvm_device"] for vm in self._vms[host]}


@pytest.fixture(autouse=True)
def on_old_core(lab: LabHosts, controller: Controller, builds: Builds, kvm_cores: KvmCores) -> None:
    """Have all VMs on the old core and no other core loaded: what an earlier test left otherwise is moved back."""
    if _to_old_core(lab, controller, builds, kvm_cores):
        lab.before = lab.look()
    assert_all_on(kvm_cores.old, lab, Cores(lab, controller))


def _to_old_core(lab: LabHosts, controller: Controller, builds: Builds, kvm_cores: KvmCores) -> bool:
    """Move what is elsewhere to the old core, and tell whether there was anything."""
    cores = Cores(lab, controller)
    strayed = [name for name in lab.names if cores.loaded(name) != {kvm_cores.old: True}]
    if strayed:
        done = controller.run(
            "rollback",
            rollback_hosts=",".join(strayed),
            rollback_build=builds.old.build_id,
            rollback_kvm_build=kvm_cores.old,
            rollback_report="before.json",
        )
        assert done.exit_status == 0, done.output
    return bool(strayed)


def assert_all_on(build_id: str, lab: LabHosts, cores: Cores) -> None:
    """The core of ``build_id`` is the only one of each host, and all VMs are on it."""
    for name in lab.names:
        assert cores.loaded(name) == {build_id: True}
        assert cores.users(name) == {build_id: set(lab.vms(name))}


def assert_clocks_are_steady(look: Look) -> None:
    """What the guest's kernel makes of TSC and paravirtual clock neither went back nor jumped."""
    assert {name: vm["page"]["clock_jumps"] for name, vm in look.items()} == dict.fromkeys(look, 0)


def test_a_new_core_and_a_new_build_at_once(
    lab: LabHosts, controller: Controller, builds: Builds, kvm_cores: KvmCores
) -> None:
    new = {"upgrade_build": builds.new.build_id, "upgrade_kvm_build": kvm_cores.new}

    run = controller.run("upgrade", upgrade_waves=[1, "100%"], **new)

    assert run.exit_status == 0, run.output
    report = controller.report()
    assert (report["verdict"], verdicts(report), report["kvm_build"]) == ("ok", ["PASS", "PASS"], kvm_cores.new)
    assert outcomes(report) == dict.fromkeys(lab.vms(), "upgraded")
    for vm in report["vms"]:
        assert vm["kvm"] == {"from": kvm_cores.old, "to": kvm_cores.new}
        assert vm["downtime_ms"] is not None
        print(f"{vm['host']}/{vm['name']}: {vm['downtime_ms']:.1f} ms ({vm['downtime_source']}, {vm['mechanism']})")
    for host in report["hosts"]:
        assert host["kvm"] == {
            "loaded": [kvm_cores.new],
            "default": kvm_cores.new,
            "previous_default": kvm_cores.old,
            "unloaded": [kvm_cores.old],
            "kept": [],
        }
    assert_clocks_are_steady(after := lab.prove())
    assert builds_of(after) == {builds.new.build_id}
    assert_all_on(kvm_cores.new, lab, cores := Cores(lab, controller))
    for name in lab.names:
        assert cores.nodes(name) == dict.fromkeys(lab.vms(name), _node(kvm_cores.new))
        assert lab.sh(name, f"lsmod | grep -c '^kvm_core_{name_of(kvm_cores.old)} ' || true") == "0"

    back = controller.run("rollback", rollback_hosts="hypervisors")
    assert back.exit_status == 0, back.output
    for host in controller.report("rollback.json")["hosts"]:
        assert host["kvm"]["default"] == kvm_cores.old
    assert builds_of(lab.prove()) == {builds.old.build_id}
    assert_all_on(kvm_cores.old, lab, Cores(lab, controller))


def test_a_core_on_which_a_vm_is_sick_is_left_and_unloaded(
    lab: LabHosts, controller: Controller, builds: Builds, kvm_cores: KvmCores
) -> None:
    probe = {"command": ["sh", "-c", SICK_ON_NEW_CORE.format(name=name_of(kvm_cores.new))]}
    controller.set_host("h1", vm_probes={"h1-vm2": probe})

    run = controller.run(
        "upgrade",
        upgrade_build=builds.new.build_id,
        upgrade_kvm_build=kvm_cores.new,
        upgrade_waves=[2, "100%"],
    )

    assert run.exit_status == 2, run.output
    report = controller.report()
    assert (report["verdict"], verdicts(report)) == ("failed", ["FAIL", None])
    assert host_outcomes(report) == {"h1": "failed", "h2": "ok", "h3": "not_attempted"}
    assert [host["rollback"] for host in report["hosts"]] == ["ok", "ok", None]
    assert "h1/h1-vm2: less healthy than before" in report["exit_reason"]
    for vm in report["vms"]:
        assert (vm["kvm"]["to"], vm["rollback"]["kvm"]["to"]) == (kvm_cores.new, kvm_cores.old)
        for move, told in ("to", vm), ("back", vm["rollback"]):
            print(f"{vm['host']}/{vm['name']} {move}: {told['downtime_ms']:.1f} ms ({told['downtime_source']})")
    for host in report["hosts"][:2]:
        assert (host["kvm"]["loaded"], host["kvm"]["unloaded"]) == ([kvm_cores.new], [kvm_cores.new])
        assert host["kvm"]["default"] is None
    assert builds_of(lab.prove_untouched("h3")) == {builds.old.build_id}
    assert_all_on(kvm_cores.old, lab, Cores(lab, controller))


def _node(build_id: str) -> str:
    return f"/dev/kvm-{name_of(build_id)}"
