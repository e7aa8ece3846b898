# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which core a VM is on, by the node that it opened and by what kvm_thin and the cores tell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.kvm_place import KvmHost, KvmMove, KvmPlace
from ansible_collections.vmm.live_upgrade.tests.kvm_world import BUILD_A, BUILD_B, CORE_A, CORE_B, KvmWorld


@pytest.fixture
def world(tmp_path: Path) -> KvmWorld:
    return KvmWorld(tmp_path)


def host(world: KvmWorld) -> KvmHost:
    return KvmHost(world.state_dir, world.root)


def test_without_kvm_thin_it_is_stock(world: KvmWorld) -> None:
    assert (host(world).loaded, host(world).default) == ([], None)
    assert host(world).place_of(7, "/dev/kvm") == KvmPlace("/dev/kvm")


def test_a_node_of_a_core_tells_the_core(world: KvmWorld) -> None:
    world.stage(BUILD_A)
    world.load(CORE_A, CORE_B)

    node = f"/dev/kvm-{CORE_A}"

    assert host(world).place_of(7, node) == KvmPlace(node, CORE_A, BUILD_A)
    assert host(world).place_of(7, f"/dev/kvm-{CORE_B}").build_id is None, "its build is not staged"


def test_the_default_node_leads_to_the_core_that_knows_the_vm(world: KvmWorld) -> None:
    """B is the default by now; A was when the VM started."""
    world.stage(BUILD_A)
    world.load(CORE_A, CORE_B, default=CORE_B)
    assert host(world).place_of(7, "/dev/kvm").core is None
    (world.root / "sys/kernel/debug" / f"kvm-{CORE_A}" / "7-11").mkdir(parents=True)
    (world.root / "sys/kernel/debug" / f"kvm-{CORE_B}" / "77-11").mkdir(parents=True)

    before = host(world).place_of(7, "/dev/kvm")
    move = host(world).move(before, None)

    assert before == KvmPlace("/dev/kvm", CORE_A, BUILD_A)
    assert (move.node, move.after) == (None, KvmPlace("/dev/kvm", CORE_B)), "it stays on its node"


def test_the_only_core_is_the_one(world: KvmWorld) -> None:
    world.load(CORE_B)

    assert host(world).place_of(7, "/dev/kvm") == KvmPlace("/dev/kvm", CORE_B)


def test_a_move_names_the_node_of_the_build(world: KvmWorld) -> None:
    before = KvmPlace("/dev/kvm")

    move = host(world).move(before, BUILD_B)

    node = str(world.root / "dev" / f"kvm-{CORE_B}")
    assert move == KvmMove(before, KvmPlace(node, CORE_B, BUILD_B), node)
    assert (move.build_id_before, move.build_id_after) == (None, BUILD_B)
    assert host(world).move(None, BUILD_B) == KvmMove(), "a VM without KVM has no place to go to"


def test_a_build_is_staged_for_the_kernel_that_runs(world: KvmWorld) -> None:
    world.stage(BUILD_A)
    world.stage(BUILD_B, release="5.10.0-other")

    assert host(world).staged(BUILD_A).build_id == BUILD_A
    with pytest.raises(LiveUpgradeError, match=f"{BUILD_B} is not staged on .* for kernel {os.uname().release}"):
        host(world).staged(BUILD_B)


@pytest.mark.parametrize("build_id", ["qemu-11.1.1-0123456789abcdef", "kvm-6.12-../../etc", "", f"{BUILD_A}/.."])
def test_what_is_no_build_id_is_said_before_anything_is_looked_at(build_id: str) -> None:
    with pytest.raises(LiveUpgradeError, match="is not the id of a KVM build"):
        UpgradeRequest("qemu-11.1.1-0123456789abcdef", kvm_build_id=build_id).validate()
