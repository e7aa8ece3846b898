# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host with chosen cores loads when it really boots, under its own systemd and udev."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.lab.controller import Controller
from ansible_collections.vmm.live_upgrade.tests.integration.lab.kvm_cores import KvmCores, name_of
from ansible_collections.vmm.live_upgrade.tests.integration.lab.lab_hosts import LabHosts

from .host_facts import UNIT, core_file, default_core, kvm_modules, node_owner, of_unit, reboot, said_at_boot

KEPT = "/var/lib/vmm-lab/cores.tar"
FOR_THE_GROUP = "character special file kvm 660"
LEFT = (
    "ls -d /etc/vmm-live-upgrade/kvm-cores /etc/modprobe.d/vmm-kvm-cores.conf /etc/udev/rules.d/60-kvm-cores.rules "
    f"/etc/systemd/system/{UNIT} /etc/systemd/system/sysinit.target.wants/{UNIT} "
    "/usr/local/lib/vmm-live-upgrade/load-kvm-cores 2>/dev/null || true"
)


@pytest.fixture
def chosen(lab: LabHosts, controller: Controller, kvm_cores: KvmCores) -> Iterator[KvmCores]:
    """Both cores are loaded at boot, the old one as the default; their files may be damaged."""
    for build_id, state in ((kvm_cores.old, "default"), (kvm_cores.new, "present")):
        done = controller.module("h1", "kvm_core", build_id=build_id, state=state, persist=True)
        assert not done["failed"], done
    assert done["boot"] == [kvm_cores.old, kvm_cores.new]
    files = " ".join(core_file(lab, "h1", build_id) for build_id in (kvm_cores.old, kvm_cores.new))
    lab.sh("h1", f"tar -C / -cf {KEPT} {files}")
    yield kvm_cores
    lab.sh("h1", f"tar -C / -xf {KEPT}; rm {KEPT}")


def test_boots_with_cores_with_what_is_left_of_them_and_with_stock_kvm(
    lab: LabHosts, controller: Controller, chosen: KvmCores
) -> None:
    """One after the other, as each boot takes a while."""
    old, new = name_of(chosen.old), name_of(chosen.new)

    reboot(lab, "h1")
    print(said_at_boot(lab, "h1"))
    assert kvm_modules(lab, "h1") == {"kvm_thin", f"kvm_core_{old}", f"kvm_core_{new}"}
    assert of_unit(lab, "h1", UNIT, "Result") == "success"
    assert default_core(lab, "h1") == old
    for node in ("/dev/kvm", f"/dev/kvm-{old}", f"/dev/kvm-{new}"):
        assert node_owner(lab, "h1", node) == FOR_THE_GROUP
    assert_before_vms(lab)
    assert users(controller) == {chosen.old: set(lab.vms()), chosen.new: set()}

    lab.sh("h1", f"rm {core_file(lab, 'h1', chosen.old)}")
    reboot(lab, "h1")
    assert kvm_modules(lab, "h1") == {"kvm_thin", f"kvm_core_{new}"}, "the other one takes its place"
    assert of_unit(lab, "h1", UNIT, "Result") == "exit-code"
    assert users(controller) == {chosen.new: set(lab.vms())}

    lab.sh("h1", f"truncate -s 100000 {core_file(lab, 'h1', chosen.new)}")
    reboot(lab, "h1")
    said = said_at_boot(lab, "h1")
    print(said)
    assert kvm_modules(lab, "h1") == {"kvm", "kvm_amd"}
    assert "no core could be loaded: loading the kernel's own KVM" in said
    assert of_unit(lab, "h1", UNIT, "Result") == "exit-code"
    assert node_owner(lab, "h1", "/dev/kvm") == FOR_THE_GROUP
    assert_before_vms(lab)
    refused = controller.module("h1", "kvm_core", build_id=chosen.new)
    assert refused["failed"] and "is not the file that the manifest lists" in refused["msg"]

    for build_id in (chosen.new, chosen.old):
        gone = controller.module("h1", "kvm_core", build_id=build_id, state="absent")
        assert gone["changed"], gone
    assert lab.sh("h1", LEFT) == "" and gone["boot"] == []
    reboot(lab, "h1")
    assert kvm_modules(lab, "h1") == {"kvm", "kvm_amd"}
    assert of_unit(lab, "h1", UNIT, "LoadState") == "not-found"
    lab.prove()


def assert_before_vms(lab: LabHosts) -> None:
    """The unit had ended when the first VM was started, and udev was there before it."""
    ended = int(of_unit(lab, "h1", UNIT, "ExecMainExitTimestampMonotonic"))
    udev = int(of_unit(lab, "h1", "systemd-udevd.service", "ActiveEnterTimestampMonotonic"))
    started = {vm.name: int(of_unit(lab, "h1", vm.unit, "InactiveExitTimestampMonotonic")) for vm in lab["h1"].vms}
    print(f"udev {udev / 1e6:.1f} s, cores {ended / 1e6:.1f} s, VMs from {min(started.values()) / 1e6:.1f} s")
    assert 0 < udev < ended < min(started.values())


def users(controller: Controller) -> dict[str, set[str]]:
    """The VMs by the build of their core."""
    told = controller.module("h1", "kvm_info")
    return {core["build_id"]: {user["vm"] for user in core["users"]} for core in told["cores"]}
