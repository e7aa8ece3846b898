# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs on this machine's KVM move from one node to another, each of which stands for a core, and are refused where they can't.

As root: the nodes are made here.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import read_journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight import kvm_check
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.judge import judge_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.kvm_offer import KvmOffer
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest, Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import Limits
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.plan import plan_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.rehearsal import rehearse_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.discovery import discover_one
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu, QemuFactory
from ansible_collections.vmm.live_upgrade.tests.kvm_world import BUILD_A, BUILD_B, CORE_A, CORE_B, KvmWorld

from .conftest import NIC, Host
from .hooked_engine import make_engine_die_at

NOBODY = 65534
X2APIC = 1 << 21  # of CPUID 1 ECX; KVM emulates it on any CPU
ONE_MECHANISM = pytest.mark.parametrize("host", ["vfork"], indirect=True)


@pytest.fixture
def cores(tmp_path: Path) -> KvmWorld:
    """Cores A, the default, and B, both staged and loaded."""
    world = KvmWorld(tmp_path)
    world.core(CORE_A, BUILD_A)
    world.core(CORE_B, BUILD_B)
    world.load(CORE_A, CORE_B)
    return world


def start_on(host: Host, cores: KvmWorld, core: str = CORE_A, **options: Any) -> LocalQemu:
    """A VM on the node of ``core``."""
    return host.start_vm(accel=f"kvm,device={cores.node(core)}", **{"extra": NIC, **options})


def move(host: Host, cores: KvmWorld, kvm_build_id: str | None, **values: Any) -> dict[str, Any]:
    """Upgrade the host's one VM and return the result."""
    (result,) = host.upgrade(kvm_build_id=kvm_build_id, kvm_root=str(cores.root), **values).values()
    return result


def judge(host: Host, cores: KvmWorld, kvm_build_id: str | None = BUILD_B, **values: Any) -> Verdict:
    (judged,) = judge_host(preflight(host, cores, kvm_build_id, **values))
    return judged.verdict


def preflight(host: Host, cores: KvmWorld, kvm_build_id: str | None, **values: Any) -> PreflightRequest:
    defaults: dict[str, Any] = {"state_dir": str(host.state_dir), "vms": [vm.name for vm in host.vms]}
    defaults.update(build_id=host.new, kvm_build_id=kvm_build_id, kvm_root=str(cores.root), mechanism=host.mechanism)
    return PreflightRequest(**{**defaults, **values})


def codes(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.refusals}


def nodes_open(pid: int) -> set[str]:
    """The device nodes of KVM that a process has open, by what the kernel says."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return {link for link in links if "/dev/kvm" in link}


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


# --- refusals: the VM is touched by none


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


@pytest.fixture
def device_group(tmp_path: Path) -> Iterator[Path]:
    """A control group whose device policy can be set."""
    group = Path("/sys/fs/cgroup/devices") / f"vmm-{os.getpid()}"
    group.mkdir()
    yield group
    for pid in (group / "cgroup.procs").read_text().split():
        (group.parent / "cgroup.procs").write_text(pid)
    group.rmdir()


@ONE_MECHANISM
def test_a_node_that_the_control_group_denies_is_refused(host: Host, cores: KvmWorld, device_group: Path) -> None:
    """Groups know devices by number, so what stands for core B is another device here: one that is no KVM."""
    vm = start_on(host, cores)
    cores.node(CORE_B).unlink()
    cores.make_node(CORE_B, like="/dev/null")
    (device_group / "cgroup.procs").write_text(str(vm.pid))
    assert codes(judge(host, cores)) == {"kvm-not-comparable"}

    (device_group / "devices.deny").write_text("c 1:3 rw")

    assert codes(judge(host, cores)) == {"kvm-node-denied", "kvm-not-comparable"}
    assert os.getpid() not in map(int, (device_group / "cgroup.procs").read_text().split())
    assert codes(judge(host, cores, None)) == set()


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
