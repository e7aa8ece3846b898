# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals and warnings about the KVM that a VM is to run on, where no KVM is needed to see them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight import kvm_check
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.kvm_check import check_kvm, check_node
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.kvm_place import KvmHost, KvmMove, KvmPlace
from ansible_collections.vmm.live_upgrade.tests.kvm_world import BUILD_A, BUILD_B, CORE_A, CORE_B, KvmWorld


@pytest.fixture
def world(tmp_path: Path) -> KvmWorld:
    made = KvmWorld(tmp_path)
    made.stage(BUILD_B)
    made.load(CORE_A, CORE_B)
    return made


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes that the VM's KVM is compared with, in place of the comparison."""
    nodes: list[str] = []
    monkeypatch.setattr(kvm_check, "_compare", lambda _verdict, _vm, node: nodes.append(node))
    return nodes


def this_process(accelerator: str = "kvm") -> Vm:
    """This very process as if it were a VM."""
    vm = Vm("web1", os.getpid(), 1, "/q", False, None, None, "11.1.1", ["/q"], None, None, os.geteuid(), os.getegid())
    vm.accelerator = accelerator
    return vm


def judge(
    world: KvmWorld, before: KvmPlace | None, build_id: str | None, accelerator: str = "kvm", load_later: bool = False
) -> Verdict:
    verdict = Verdict("web1", os.getpid(), None, "qemu-11.1.1-0123456789abcdef")
    host = KvmHost(world.state_dir, world.root)
    check_kvm(verdict, this_process(accelerator), host.move(before, build_id, load_later), host, build_id)
    return verdict


def refusals(verdict: Verdict) -> dict[str, str]:
    return {finding.code: finding.message for finding in verdict.refusals}


def test_a_vm_without_kvm_is_refused(world: KvmWorld, compared: list[str]) -> None:
    assert refusals(judge(world, None, BUILD_B, "tcg")) == {"kvm-not-used": "the VM runs on tcg, not on KVM"}
    assert refusals(judge(world, None, None, "tcg")) == {}
    assert compared == []


def test_a_build_that_is_not_staged_is_refused(world: KvmWorld, compared: list[str]) -> None:
    found = refusals(judge(world, KvmPlace(f"/dev/kvm-{CORE_B}", CORE_B), BUILD_A))

    assert list(found) == ["kvm-build-unknown"]
    assert f"{BUILD_A} is not staged on" in found["kvm-build-unknown"]


@pytest.mark.parametrize(("loaded", "told"), [([CORE_A], f"loaded are: {CORE_A}"), ([], "kvm_thin has no core")])
def test_a_core_that_is_not_loaded_is_refused(
    world: KvmWorld, compared: list[str], loaded: list[str], told: str
) -> None:
    world.load(*loaded, default=CORE_A)

    found = refusals(judge(world, KvmPlace("/dev/kvm"), BUILD_B))

    assert list(found) == ["kvm-core-not-loaded"]
    assert told in found["kvm-core-not-loaded"]


class TestCoreToCome:
    """A core that is yet to be loaded, in a plan, is looked at as far as that goes without loading it."""

    BEFORE = KvmPlace(f"/dev/kvm-{CORE_A}", CORE_A)

    def test_what_was_not_compared_is_told(self, world: KvmWorld, compared: list[str]) -> None:
        world.load(CORE_A)

        verdict = judge(world, self.BEFORE, BUILD_B, load_later=True)

        assert refusals(verdict) == {} and compared == []
        assert [finding.code for finding in verdict.warnings] == ["kvm-not-compared"]
        assert f"the core of {BUILD_B} is not loaded" in verdict.warnings[0].message
        check_node(verdict, this_process(), KvmHost(world.state_dir, world.root).move(self.BEFORE, BUILD_B, True))
        assert refusals(verdict) == {}, "there is no node yet, and that is no reason"

    def test_one_that_is_loaded_is_compared(self, world: KvmWorld, compared: list[str]) -> None:
        verdict = judge(world, self.BEFORE, BUILD_B, load_later=True)

        assert (verdict.warnings, compared) == ([], [str(world.node(CORE_B))])

    def test_one_that_could_not_be_loaded_is_refused(self, world: KvmWorld) -> None:
        world.load(CORE_A)
        (world.root / "sys/module/module/parameters").mkdir(parents=True)
        (world.root / "sys/module/module/parameters/sig_enforce").write_text("Y\n")

        found = refusals(judge(world, self.BEFORE, BUILD_B, load_later=True))

        assert list(found) == ["kvm-core-unfit"]
        assert "its modules are not signed and the kernel runs with module.sig_enforce" in found["kvm-core-unfit"]

    def test_one_that_is_not_staged_is_refused(self, world: KvmWorld) -> None:
        world.load(CORE_B)

        assert list(refusals(judge(world, self.BEFORE, BUILD_A, load_later=True))) == ["kvm-build-unknown"]

    def test_none_can_be_loaded_beside_stock_kvm(self, tmp_path: Path, compared: list[str]) -> None:
        stock = KvmWorld(tmp_path / "stock")
        stock.stage(BUILD_B)

        assert list(refusals(judge(stock, KvmPlace("/dev/kvm"), BUILD_B, load_later=True))) == ["kvm-core-not-loaded"]


@pytest.mark.parametrize(
    ("before", "build_id", "node"),
    [
        pytest.param(KvmPlace(f"/dev/kvm-{CORE_A}", CORE_A), BUILD_B, "kvm-" + CORE_B, id="moves"),
        pytest.param(KvmPlace(f"/dev/kvm-{CORE_A}", CORE_A), None, None, id="stays"),
        pytest.param(KvmPlace("/dev/kvm", CORE_A), None, None, id="stays-on-the-default"),
        pytest.param(KvmPlace("/dev/kvm", CORE_B), None, "kvm", id="the-default-has-changed"),
        pytest.param(KvmPlace("/dev/kvm"), None, "kvm", id="nobody-knows-its-core"),
    ],
)
def test_kvms_are_compared_when_the_core_may_change(
    world: KvmWorld, compared: list[str], before: KvmPlace, build_id: str | None, node: str | None
) -> None:
    verdict = judge(world, before, build_id)

    assert [Path(path).name for path in compared] == ([node] if node else [])
    assert refusals(verdict) == {}


def test_a_default_that_has_changed_and_a_core_that_nobody_knows_are_told(world: KvmWorld, compared: list[str]) -> None:
    changed = judge(world, KvmPlace("/dev/kvm", CORE_B), None)
    unknown = judge(world, KvmPlace("/dev/kvm"), None)

    assert [finding.code for finding in changed.warnings] == ["kvm-default-changed"]
    assert f"when that was core {CORE_B}; its new process will be on {CORE_A}" in changed.warnings[0].message
    assert [finding.code for finding in unknown.warnings] == ["kvm-core-unknown"]


@pytest.mark.parametrize("kind", ["none", "file"])
def test_a_node_that_is_missing_or_none_is_refused(world: KvmWorld, kind: str) -> None:
    if kind == "file":
        world.node(CORE_B).touch()
    verdict = Verdict("web1", os.getpid(), None, "qemu-11.1.1-0123456789abcdef")
    place = KvmPlace(str(world.node(CORE_B)), CORE_B, BUILD_B)

    check_node(verdict, this_process(), KvmMove(KvmPlace("/dev/kvm"), place, place.device))

    assert list(refusals(verdict)) == ["kvm-node-missing"]


def test_a_kvm_that_tells_nothing_is_refused(world: KvmWorld) -> None:
    """This process has no KVM open, so there is nothing to compare with."""
    found = refusals(judge(world, KvmPlace(f"/dev/kvm-{CORE_A}", CORE_A), BUILD_B))

    assert list(found) == ["kvm-not-comparable"]
