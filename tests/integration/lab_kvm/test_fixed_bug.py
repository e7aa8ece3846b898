# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bug of KVM that a running guest sees is gone when its VM was moved to the core with the fix, and back after the way back.

The bug: with virtual GIF, a guest whose EFER.SVME is clear carries CLGI out, where it has to be #UD. The old core is of
Linux as it is, the new one has kmod/fixes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.tests.integration.lab.controller import Controller
from ansible_collections.vmm.live_upgrade.tests.integration.lab.kvm_cores import KvmCores, name_of
from ansible_collections.vmm.live_upgrade.tests.integration.lab.lab_hosts import LabHosts

from .clgi_vm import ClgiVm, Counted
from .conftest import QemuBuilds
from .host_facts import core_file

TELL = """\
lsmod | grep '^kvm_core_{name} '
for field in vmm_source version srcversion; do echo "$field: $(modinfo -F $field {file})"; done
echo "/sys/module/kvm_core_{name}: version $(cat /sys/module/kvm_core_{name}/version)"
cd /sys/kernel/debug/kvm-{name}
for vm in *-*; do
    [ ! -d "$vm" ] || echo "/sys/kernel/debug/kvm-{name}/$vm: $(tr '\\0' ' ' < "/proc/${{vm%-*}}/cmdline" | cut -d ' ' -f 3)"
done
"""
_LIMIT_S = 60.0


@pytest.fixture
def vm(lab: LabHosts, kvm_cores: KvmCores, controller: Controller, tmp_path: Path) -> Iterator[ClgiVm]:
    """The VM, on the old core; the new one is loaded, too."""
    assert lab.sh("h1", "grep -cw vgif /proc/cpuinfo") != "0", "without virtual GIF the bug does not show"
    loaded = controller.module("h1", "kvm_core", build_id=kvm_cores.new)
    assert not loaded["failed"], loaded
    made = ClgiVm(lab, "h1", "h1-clgi")
    try:
        made.start(tmp_path)
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("qemu", ["same", "new"])
def test_the_bug_is_gone_after_the_upgrade_and_back_after_the_way_back(
    vm: ClgiVm, lab: LabHosts, controller: Controller, builds: QemuBuilds, kvm_cores: KvmCores, qemu: str
) -> None:
    build = builds.old if qemu == "same" else builds.new
    mark = os.urandom(16)
    first = vm.look(mark)
    assert_only(vm, "executed")
    tell_cores(lab, kvm_cores)

    there = move(controller, vm, build, kvm_cores.new)

    after = assert_only(vm, "undefined")
    assert (there["kvm_build_id_before"], there["kvm_build_id"]) == (kvm_cores.old, kvm_cores.new)
    assert after.executed >= first.executed > 0, "the counters went on where they were"
    assert after.mark == mark.hex(), "and so did the rest of the RAM"
    tell_cores(lab, kvm_cores)

    back = move(controller, vm, builds.old, kvm_cores.old)

    again = assert_only(vm, "executed")
    assert (back["kvm_build_id_before"], back["kvm_build_id"]) == (kvm_cores.new, kvm_cores.old)
    assert again.undefined >= after.undefined > 0 and again.executed > after.executed
    assert again.mark == mark.hex()
    for way, result in ("there", there), ("back", back):
        print(
            f"{way}: {result['downtime_ms']:.1f} ms ({result['downtime_source']}, {result['mechanism']}, {qemu} QEMU)"
        )


def move(controller: Controller, vm: ClgiVm, build_id: str, kvm_build_id: str) -> dict[str, Any]:
    """Move the VM by the module alone; return its result."""
    answer = controller.module(
        "h1",
        "vm_upgrade",
        build_id=build_id,
        kvm_build_id=kvm_build_id,
        vms=[vm.name],
        probes=vm.probes,
        downtime_budget_ms=20000,
    )
    (result,) = answer["vms"]
    assert result["outcome"] == "upgraded", answer
    assert result["new_pid"] == vm.pid()
    return dict(result)


def assert_only(vm: ClgiVm, what: str) -> Counted:
    """From now on only this comes of the guest's CLGI; return what it had counted at the end."""
    before = vm.look()
    end_s = time.monotonic() + _LIMIT_S
    while (after := vm.look()).rounds < before.rounds + 100:
        assert time.monotonic() < end_s, f"the guest does not go on: {before}, then {after}"
    other = "undefined" if what == "executed" else "executed"
    assert getattr(after, what) > getattr(before, what), f"{before}, then {after}"
    # the one of the round in which it was looked at may not have been counted
    assert getattr(after, other) == getattr(before, other), f"{before}, then {after}"
    assert 0 <= after.rounds - after.executed - after.undefined <= 1
    print(f"rounds {after.rounds}: executed {after.executed}, undefined {after.undefined}")
    return after


def tell_cores(lab: LabHosts, cores: KvmCores) -> None:
    """Print what a person sees of which VM is on which core: the modules, what they are made of, and the VMs of each."""
    for build_id in (cores.old, cores.new):
        print(lab.sh("h1", TELL.format(name=name_of(build_id), file=core_file(lab, "h1", build_id))))
    print(lab.sh("h1", "cat /sys/module/kvm_thin/parameters/cores"))
