# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs on this machine's KVM move from one node to another, each of which stands for a core, and the guest goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import read_journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import Limits
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.plan import plan_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.rehearsal import rehearse_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.discovery import discover_one
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu
from ansible_collections.vmm.live_upgrade.tests.kvm_world import BUILD_A, BUILD_B, CORE_A, CORE_B, KvmWorld

from .conftest import NIC, Host
from .hooked_engine import make_engine_die_at
from .kvm_vms import ONE_MECHANISM, move, nodes_open, preflight, start_on


@contextmanager
def counter_never_goes_back(vm: LocalQemu) -> Iterator[None]:
    """Read the guest's counter all the time."""
    seen, done = [vm.counter()], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(vm.counter())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_vm_moves_to_the_other_core_and_back(host: Host, cores: KvmWorld) -> None:
    vm = start_on(host, cores)
    assert nodes_open(vm.pid) == {str(cores.node(CORE_A))}

    with counter_never_goes_back(vm):
        there = move(host, cores, BUILD_B)
        assert there["outcome"] == "upgraded", there["error"]
        assert nodes_open(there["new_pid"]) == {str(cores.node(CORE_B))}
        vm.wait_counting()
        # With the QEMU that it runs by now: its KVM alone changes.
        back = move(host, cores, BUILD_A)
        assert back["outcome"] == "upgraded", back["error"]
        assert nodes_open(back["new_pid"]) == {str(cores.node(CORE_A))}
        vm.wait_counting()

    assert (there["kvm_build_id_before"], there["kvm_build_id"]) == (BUILD_A, BUILD_B)
    assert (back["kvm_build_id_before"], back["kvm_build_id"]) == (BUILD_B, BUILD_A)
    assert (there["old_build_id"], back["old_build_id"], back["new_build_id"]) == (host.old, host.new, host.new)
    assert there["downtime_ms"] > 0 and there["mechanism"] == back["mechanism"] == host.mechanism
    facts = discover_one(back["new_pid"])
    assert facts is not None and facts.kvm_device == str(cores.node(CORE_A))


def test_both_have_to_be_as_asked_for_to_be_there_already(host: Host, cores: KvmWorld) -> None:
    start_on(host, cores)

    assert move(host, cores, BUILD_A)["outcome"] == "upgraded", "another QEMU on the same core"
    there = move(host, cores, BUILD_A)
    assert (there["outcome"], there["kvm_build_id"]) == ("already", BUILD_A)
    assert move(host, cores, None)["outcome"] == "already"
    assert move(host, cores, BUILD_B)["outcome"] == "upgraded", "the same QEMU on another core"


def test_vm_of_the_default_node_moves_and_what_it_was_on_is_known(host: Host, cores: KvmWorld) -> None:
    """The default is another by now; the core of the VM tells that it has it."""
    vm = host.start_vm(accel="kvm,notify-vmexit=disable", extra=NIC)
    (cores.root / "sys/kernel/debug" / f"kvm-{CORE_A}" / f"{vm.pid}-11").mkdir(parents=True)
    cores.load(CORE_A, CORE_B, default=CORE_B)

    (plan,) = plan_host(host.request(kvm_build_id=BUILD_B, kvm_root=str(cores.root)))
    planned = plan.diff()["after"]
    result = move(host, cores, BUILD_B)

    node = str(cores.node(CORE_B))
    assert f"-accel kvm,notify-vmexit=disable,device={node}\n" in planned
    assert f"# KVM is opened through {node}, and no longer through /dev/kvm\n" in planned
    assert plan.result(planned=True).kvm_build_id == BUILD_B
    assert result["outcome"] == "upgraded", result["error"]
    assert (result["kvm_build_id_before"], nodes_open(result["new_pid"])) == (BUILD_A, {node})
    (begin,) = [
        record
        for journal in (host.state_dir / "transactions").glob("*/journal.jsonl")
        for record in read_journal(journal)
        if record["step"] == "begin"
    ]
    assert begin["kvm_before"] == {"device": "/dev/kvm", "core": CORE_A, "build_id": BUILD_A}
    assert begin["kvm_after"] == {"device": node, "core": CORE_B, "build_id": BUILD_B}
    vm.wait_counting()


@ONE_MECHANISM
@pytest.mark.parametrize(
    "chosen", [["-machine", "accel=kvm:tcg,kernel-irqchip=split"], ["-enable-kvm"]], ids=["machine", "enable-kvm"]
)
def test_vm_that_asked_for_kvm_in_another_way_moves(host: Host, cores: KvmWorld, chosen: list[str]) -> None:
    vm = host.start_vm(accel=None, extra=[*NIC, *chosen])

    result = move(host, cores, BUILD_B)

    assert result["outcome"] == "upgraded", result["error"]
    assert nodes_open(result["new_pid"]) == {str(cores.node(CORE_B))}
    vm.wait_counting()


def test_without_a_kvm_build_vm_stays_on_its_node(host: Host, cores: KvmWorld) -> None:
    on_core, on_default = start_on(host, cores, CORE_B), host.start_vm(accel="kvm", extra=NIC)

    results = host.upgrade(kvm_root=str(cores.root))

    core, default = results[on_core.name], results[on_default.name]
    assert (core["outcome"], core["kvm_build_id_before"], core["kvm_build_id"]) == ("upgraded", BUILD_B, BUILD_B)
    assert nodes_open(core["new_pid"]) == {str(cores.node(CORE_B))}
    assert default["outcome"] == "upgraded"
    assert nodes_open(default["new_pid"]) == {"/dev/kvm"}
    for vm in host.vms:
        vm.wait_counting()


def test_stock_kvm_has_no_build(host: Host, tmp_path: Path) -> None:
    host.start_vm(accel="kvm", extra=NIC)

    (result,) = host.upgrade(kvm_root=str(KvmWorld(tmp_path).root)).values()

    assert result["outcome"] == "upgraded", result["error"]
    assert (result["kvm_build_id_before"], result["kvm_build_id"]) == (None, None)


def test_vm_whose_new_process_fails_stays_on_its_core(host: Host, cores: KvmWorld) -> None:
    vm = start_on(host, cores)
    host.break_build(f'[[ "$*" == *{CORE_B}* ]] && {{ echo no such luck >&2; exit 7; }}')

    result = move(host, cores, BUILD_B)

    assert result["outcome"] == "rolled_back"
    assert (result["kvm_build_id_before"], result["kvm_build_id"]) == (BUILD_A, BUILD_A)
    assert nodes_open(vm.pid) == {str(cores.node(CORE_A))}
    vm.wait_counting()


@pytest.mark.parametrize(("step", "core"), [("begin", CORE_A), ("committed", CORE_B)])
def test_an_engine_that_dies_leaves_the_cores_in_its_journal(host: Host, cores: KvmWorld, step: str, core: str) -> None:
    vm = start_on(host, cores)
    transactions = Transactions(host.request(kvm_build_id=BUILD_B, kvm_root=str(cores.root)))
    transaction = transactions.begin()
    make_engine_die_at(transaction, step)

    progress = transactions.run(transaction, 60)

    assert progress.result is not None
    (result,) = progress.result["vms"]
    assert "interrupted" in result["reason"]
    assert result["kvm_build_id_before"] == BUILD_A
    assert result["kvm_build_id"] == {CORE_A: BUILD_A, CORE_B: BUILD_B}[core]
    assert nodes_open(result["new_pid"]) == {str(cores.node(core))}
    vm.wait_counting()


@ONE_MECHANISM
def test_a_rehearsal_loads_the_vm_into_the_other_core(host: Host, cores: KvmWorld) -> None:
    vm = start_on(host, cores)

    (item,) = rehearse_host(preflight(host, cores, BUILD_B), lambda _name: Limits(30, 20))

    assert item.verdict.rehearsal is not None
    assert (item.verdict.verdict, item.verdict.rehearsal.outcome) == ("go", "passed"), item.verdict.refusals
    assert (item.verdict.kvm_build_id_before, item.verdict.kvm_build_id) == (BUILD_A, BUILD_B)
    assert nodes_open(vm.pid) == {str(cores.node(CORE_A))}
    vm.wait_counting()
