# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that cannot go to another KVM are refused with the reason, and touched by nothing."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import read_journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight import kvm_check
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.kvm_offer import KvmOffer
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import Limits
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.plan import plan_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.rehearsal import rehearse_host
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory
from ansible_collections.vmm.live_upgrade.tests.kvm_world import BUILD_A, BUILD_B, CORE_A, CORE_B, KvmWorld

from .conftest import NIC, Host
from .device_groups import HIERARCHIES, group_denying
from .kvm_vms import ONE_MECHANISM, codes, judge, move, preflight, start_on

NOBODY = 65534
X2APIC = 1 << 21  # of CPUID 1 ECX; KVM emulates it on any CPU


@ONE_MECHANISM
def test_a_vm_on_tcg_is_refused(host: Host, cores: KvmWorld) -> None:
    host.start_vm(accel="tcg", extra=NIC)

    result = move(host, cores, BUILD_B)

    assert result["outcome"] == "refused"
    assert "the VM runs on tcg, not on KVM" in result["error"]
    assert judge(host, cores, None).verdict == "go"


@ONE_MECHANISM
def test_what_is_not_there_is_refused_and_named(host: Host, cores: KvmWorld) -> None:
    start_on(host, cores)
    assert codes(judge(host, cores)) == set()

    cores.load(CORE_A)
    assert codes(judge(host, cores)) == {"kvm-core-not-loaded"}
    cores.node(CORE_B).unlink()
    assert codes(judge(host, cores)) == {"kvm-core-not-loaded", "kvm-node-missing"}
    shutil.rmtree(cores.state_dir / "kvm" / os.uname().release / BUILD_B)
    assert codes(judge(host, cores)) == {"kvm-build-unknown", "kvm-core-not-loaded", "kvm-node-missing"}
    result = move(host, cores, BUILD_B)
    assert (result["outcome"], result["kvm_build_id"]) == ("refused", BUILD_A)
    assert f"{BUILD_B} is not staged" in result["error"]


@ONE_MECHANISM
def test_a_node_that_is_no_kvm_is_refused(host: Host, cores: KvmWorld) -> None:
    start_on(host, cores)
    cores.node(CORE_B).unlink()
    cores.make_node(CORE_B, like="/dev/null")

    assert codes(judge(host, cores)) == {"kvm-not-comparable"}


@ONE_MECHANISM
def test_a_node_that_the_vms_user_may_not_open_is_refused(host: Host, builds: dict[str, Path]) -> None:
    owner = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c", 'exec "$@"', "sh"]
    # Below a directory that all may pass through, unlike those of pytest.
    with tempfile.TemporaryDirectory() as public:
        os.chmod(public, 0o755)
        cores = KvmWorld(Path(public))
        cores.state_dir = host.state_dir
        for core, build_id in ((CORE_A, BUILD_A), (CORE_B, BUILD_B)):
            cores.core(core, build_id)
        cores.load(CORE_A, CORE_B)
        prefix = Path(public) / "qemu"
        shutil.copytree(host.state_dir / "builds" / host.old, prefix)
        binary = prefix / "bin" / "qemu-system-x86_64"
        (Path(public) / "vm").mkdir()
        os.chown(Path(public) / "vm", NOBODY, NOBODY)
        factory = QemuFactory(Path(public) / "vm", binary, "kvm")
        try:
            (Path(public) / "vm" / "theirs").mkdir()
            os.chown(Path(public) / "vm" / "theirs", NOBODY, NOBODY)
            vm = factory(
                "theirs",
                machine="pc-q35-10.2",
                accel=f"kvm,device={cores.node(CORE_A)}",
                extra=NIC,
                wrapper=owner,
                disk_owner=NOBODY,
            )
            host.vms.append(vm)
            vm.wait_counting()
            assert codes(judge(host, cores)) == set()

            cores.node(CORE_B).chmod(0o600)
            assert codes(judge(host, cores)) == {"kvm-node-forbidden"}
            assert codes(judge(host, cores, None)) == set()
            cores.node(CORE_A).chmod(0o600)
            assert codes(judge(host, cores, None)) == {"kvm-node-forbidden"}, "its own node, which it has to open again"
        finally:
            factory.close()


@ONE_MECHANISM
@pytest.mark.parametrize("hierarchy", HIERARCHIES)
def test_a_node_that_the_control_group_denies_is_refused(host: Host, cores: KvmWorld, hierarchy: str) -> None:
    """Groups know devices by number, so what stands for core B is another device here: one that is no KVM."""
    vm = start_on(host, cores)
    cores.node(CORE_B).unlink()
    cores.make_node(CORE_B, like="/dev/null")
    with group_denying(hierarchy, 1, 3) as group:
        assert codes(judge(host, cores)) == {"kvm-not-comparable"}
        (group / "cgroup.procs").write_text(str(vm.pid))

        denied, stays = judge(host, cores), judge(host, cores, None)

        assert (group / "cgroup.procs").read_text().split() == [str(vm.pid)], "we are as we were"
    assert codes(denied) == {"kvm-node-denied", "kvm-not-comparable"}
    assert codes(stays) == set()


@ONE_MECHANISM
def test_a_kvm_that_offers_less_is_refused_with_what_is_lost(
    host: Host, cores: KvmWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_on(host, cores)
    real = KvmOffer.read
    given: dict[str, KvmOffer] = {}

    def read(fd: int) -> KvmOffer:
        """Core B lacks a bit of CPUID, an MSR and a capability that this machine's KVM has."""
        offer = real(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path == str(cores.node(CORE_B)):
            a, b, c, d = offer.cpuid[1, 0]
            offer = dataclasses.replace(
                offer,
                cpuid={**offer.cpuid, (1, 0): (a, b, c & ~X2APIC, d)},
                msrs=offer.msrs - {0x4B564D01},
                capabilities={**offer.capabilities, "IRQFD": 0},
            )
        given[path] = offer
        return offer

    monkeypatch.setattr(kvm_check.KvmOffer, "read", read)

    verdict = judge(host, cores)

    assert codes(verdict) == {"kvm-offers-less"}
    message = verdict.refusals[0].message
    assert "KVM_CAP_IRQFD (0x1, there 0x0)" in message
    assert "CPUID 0x1.0 ECX bit 21" in message and "MSR 0x4b564d01" in message
    assert list(given) == [str(cores.node(CORE_A)), str(cores.node(CORE_B))]
    assert codes(judge(host, cores, None)) == set(), "on its own core it loses nothing"


@ONE_MECHANISM
def test_what_a_plan_could_not_compare_is_compared_before_the_guest_is_paused(host: Host, cores: KvmWorld) -> None:
    vm = start_on(host, cores)
    cores.load(CORE_A)
    cores.node(CORE_B).unlink()

    (plan,) = plan_host(host.request(kvm_build_id=BUILD_B, kvm_root=str(cores.root)), kvm_load_later=True)
    (refused,) = plan_host(host.request(kvm_build_id=BUILD_B, kvm_root=str(cores.root)))

    planned = plan.result(planned=True)
    assert (planned.outcome, planned.kvm_build_id) == ("planned", BUILD_B)
    assert any(f"the core of {BUILD_B} is not loaded, so what it offers was not" in text for text in planned.warnings)
    assert f"# the core of {BUILD_B} is not loaded" in plan.diff()["after"]
    assert refused.decision == "refused", "what is to be done now takes a core that is there"

    cores.make_node(CORE_B, like="/dev/null")  # it is loaded, and offers nothing
    cores.load(CORE_A, CORE_B)
    result = move(host, cores, BUILD_B)

    assert (result["outcome"], result["kvm_build_id"]) == ("refused", BUILD_A)
    assert f"{cores.node(CORE_B)} does not tell what it offers" in result["error"]
    (journal,) = (host.state_dir / "transactions").glob("*/journal.jsonl")
    assert [record["step"] for record in read_journal(journal)] == ["start", "end"], "the VM was not touched"
    vm.wait_counting()


@ONE_MECHANISM
def test_a_vm_whose_core_is_not_loaded_is_not_rehearsed(host: Host, cores: KvmWorld) -> None:
    vm = start_on(host, cores)
    cores.load(CORE_A)
    cores.node(CORE_B).unlink()

    (judged,) = rehearse_host(preflight(host, cores, BUILD_B, kvm_load_later=True), lambda _vm: Limits(60, 20))

    rehearsal = judged.verdict.rehearsal
    assert judged.verdict.verdict == "go" and rehearsal is not None
    assert (rehearsal.outcome, rehearsal.reason) == ("not_done", "its KVM core is not loaded")
    vm.wait_counting()


def test_this_machines_kvm_tells_what_it_offers() -> None:
    fd = os.open("/dev/kvm", os.O_RDWR)
    try:
        offer = KvmOffer.read(fd)
    finally:
        os.close(fd)

    assert offer.api_version == 12
    assert offer.capabilities["USER_MEMORY"] == 1 and offer.capabilities["NR_MEMSLOTS"] > 32
    assert offer.cpuid[1, 0][2] & X2APIC
    assert {0x10, 0x174, 0x4B564D01} <= offer.msrs, "TSC, SYSENTER, kvmclock"
    assert set(offer.feature_msrs) and all(value >= 0 for value in offer.feature_msrs.values())
