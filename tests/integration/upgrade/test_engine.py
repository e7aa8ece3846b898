# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole transactions on this machine: staged artifacts, real QEMUs, a detached engine, its death and what comes after."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.host_lock import HostLock
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.plan import plan_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions

from .conftest import NIC, Host, host_processes
from .hooked_engine import make_engine_die_at


def test_vms_are_upgraded_measured_and_left_alone_the_second_time(host: Host) -> None:
    for _ in range(2):
        host.start_vm(extra=NIC)
    counts = [vm.counter() for vm in host.vms]

    results = host.upgrade(parallel=2)

    for vm, before in zip(host.vms, counts):
        result = results[vm.name]
        assert result["outcome"] == "upgraded", result["error"]
        assert (result["old_build_id"], result["new_build_id"]) == (host.old, host.new)
        assert result["old_pid"] == vm.pid != result["new_pid"]
        assert result["downtime_source"] == "guest-ram-word"
        assert 0 < result["downtime_ms"] < result["total_ms"]
        assert result["extra_memory_mib"] > 0 and result["cpu_s"] > 0
        assert result["warnings"] == []
        assert vm.wait_counting() > before
        assert vm.process.wait(10) == -signal.SIGKILL
        assert vm.execute("query-status")["status"] == "running"
    assert host.builds_run() == [host.new] * 2
    assert list(host.run_dir.iterdir()) == [], "something is left of the hand-overs"
    assert {result["outcome"] for result in host.upgrade().values()} == {"already"}


def test_upgraded_vm_goes_back_to_the_build_before(host: Host) -> None:
    vm = host.start_vm(extra=NIC)
    host.upgrade()

    result = host.upgrade(build_id=host.old)[vm.name]

    assert (result["outcome"], result["new_build_id"]) == ("upgraded", host.old), result["error"]
    vm.wait_counting()
    assert host.builds_run() == [host.old]


def test_mechanisms_can_follow_each_other(host: Host) -> None:
    """A process that came by one mechanism is moved on by the other."""
    vm = host.start_vm(extra=NIC)
    other = {"vfork": "cpr-transfer", "cpr-transfer": "vfork"}[host.mechanism]
    for mechanism, build_id in ((host.mechanism, host.new), (other, host.old), (host.mechanism, host.new)):
        result = host.upgrade(mechanism=mechanism, build_id=build_id)[vm.name]

        assert (result["outcome"], result["mechanism"]) == ("upgraded", mechanism), result["error"]
        vm.wait_counting()


def test_plan_tells_the_command_line_and_touches_nothing(host: Host) -> None:
    vm = host.start_vm()

    (plan,) = plan_host(host.request())

    assert (plan.decision, plan.result(planned=True).outcome) == ("upgrade", "planned")
    diff = plan.diff()
    assert str(host.new) in diff["after"] and str(host.new) not in diff["before"]
    assert not (host.state_dir / "transactions").exists()
    assert vm.process.poll() is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"shared_ram": False}, "memory-backend-memfd"),
        ({"aux_ram_share": False}, "aux-ram-share=on"),
    ],
    ids=["private-ram", "aux-ram-private"],
)
def test_vm_that_cannot_be_moved_is_refused_and_the_other_moves(host: Host, options: dict[str, Any], why: str) -> None:
    refused, moved = host.start_vm(**options), host.start_vm()

    results = host.upgrade()

    assert results[refused.name]["outcome"] == "refused"
    assert why in results[refused.name]["error"] and refused.name in results[refused.name]["error"]
    assert "still running on" in results[refused.name]["error"]
    assert refused.process.poll() is None
    assert refused.execute("query-status")["status"] == "running"
    assert results[moved.name]["outcome"] == "upgraded"


def test_paused_vm_is_refused_and_stays_paused(host: Host) -> None:
    vm = host.start_vm()
    vm.execute("stop")

    result = host.upgrade()[vm.name]

    assert result["outcome"] == "refused" and "paused" in result["error"]
    assert vm.execute("query-status")["status"] == "paused"


def test_busy_monitor_is_refused(host: Host) -> None:
    vm = host.start_vm()
    with vm.monitor():
        result = host.upgrade()[vm.name]

    assert result["outcome"] == "refused" and "monitor" in result["error"]
    vm.wait_counting()


def test_unknown_and_unstaged_builds_are_errors_and_touch_nothing(host: Host) -> None:
    vm = host.start_vm()
    with pytest.raises(LiveUpgradeError, match="is not a build id"):
        plan_host(host.request(build_id="11.1"))
    with pytest.raises(LiveUpgradeError, match="is not staged on .*stage it first"):
        plan_host(host.request(build_id="qemu-11.1.1-0000000000000000"))
    with pytest.raises(LiveUpgradeError, match="no such VM runs on this host: nosuch"):
        plan_host(host.request(vms=["nosuch"]))
    vm.wait_counting()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 7", "exited with status 7"),
        ("kill -SEGV $$", r"killed by (SIGSEGV|signal 11)"),
        ("exec sleep 600", r"was not ready within (3 s|3000 ms)"),
        ('exec $real "${@/virtio-net-pci/e1000e}"', "exited with status 1"),
    ],
    ids=["exits", "crashes", "hangs", "rejects-the-state"],
)
def test_broken_build_is_taken_back(host: Host, script: str, why: str) -> None:
    vm = host.start_vm(extra=NIC)
    host.break_build(f'[[ "$*" == *"-incoming"* || -n "$QEMU_CPR_VFORK" ]] && {script}')

    result = host.upgrade(prepare_timeout_s=3)[vm.name]

    assert result["outcome"] == "rolled_back", result
    assert re.search(why, result["error"]) and "still running on the old build" in result["error"]
    assert result["new_build_id"] == host.old
    vm.wait_counting()
    assert vm.process.poll() is None
    assert host_processes(vm.name) == [vm.pid]


@pytest.mark.parametrize("host", ["vfork"], indirect=True)
def test_new_process_that_takes_the_guest_and_hangs_is_no_success(host: Host) -> None:
    vm = host.start_vm()
    host.break_build('[ -n "$QEMU_CPR_VFORK" ] && exec $real "$@" -global migration.x-cpr-vfork-fault=taken:stop')

    result = host.upgrade()[vm.name]

    assert result["outcome"] == "failed", result
    assert "has taken the guest, and does not say that it runs it" in result["error"]
    vm.assert_not_counting()


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        ("begin", "rolled_back"),
        ("spawned", "rolled_back"),
        ("handing-over", "rolled_back"),
        ("committed", "upgraded"),
        ("released", "upgraded"),
    ],
)
def test_killed_engine_is_followed_by_one_that_brings_all_to_an_end(host: Host, step: str, outcome: str) -> None:
    """The engine and its workers die right after a step was journalled; a second engine finishes or undoes.

    By ``vfork`` the QEMU that was told to hand over goes on without an engine.
    """
    if (host.mechanism, step) == ("vfork", "spawned"):
        outcome = "upgraded"
    vm = host.start_vm(extra=NIC)
    transactions = Transactions(host.request())
    transaction = transactions.begin()
    make_engine_die_at(transaction, step)

    progress = transactions.run(transaction, 60)

    assert progress.result is not None
    (result,) = progress.result["vms"]
    assert result["outcome"] == outcome, result
    assert "interrupted" in result["reason"]
    vm.wait_counting()
    assert host_processes(vm.name) == [result["new_pid"]]
    assert vm.execute("query-status")["status"] == "running"
    if result["outcome"] == "rolled_back":
        assert host.upgrade()[vm.name]["outcome"] == "upgraded"
        vm.wait_counting()


def test_engine_that_dies_every_time_is_an_error_and_the_next_call_goes_on(host: Host) -> None:
    vm = host.start_vm()
    transactions = Transactions(host.request())
    transaction = transactions.begin()
    make_engine_die_at(transaction, "start")
    with pytest.raises(LiveUpgradeError, match="ends without a result.*Run again to finish or undo it"):
        transactions.run(transaction, 60)
    assert vm.process.poll() is None
    make_engine_die_at(transaction, None)

    assert host.upgrade()[vm.name]["outcome"] == "upgraded"
    assert transactions.find() is None, "the first transaction was brought to its end, not begun anew"


def test_second_rollout_on_a_host_is_refused_while_the_first_runs(host: Host) -> None:
    vm = host.start_vm()
    lock = HostLock(host.state_dir)
    lock.acquire({"transaction_id": "20260101T000000-abcdef", "rollout_id": "first", "pid": os.getpid()})
    try:
        with pytest.raises(LiveUpgradeError, match="another upgrade is at work here .*rollout first"):
            Transactions(host.request(rollout_id="second")).find()
        transactions = Transactions(host.request(rollout_id="second"))
        progress = transactions.run(transactions.begin(), 30)
        assert progress.result is not None and "another upgrade is at work here" in progress.result["error"]
    finally:
        lock.close()
    assert vm.process.poll() is None


def test_same_rollout_asks_again_and_gets_the_same_answer(host: Host) -> None:
    vm = host.start_vm()
    first = host.upgrade(rollout_id="r1")[vm.name]

    again = host.upgrade(rollout_id="r1")[vm.name]

    assert first["outcome"] == "upgraded"
    assert again == first


def test_full_disk_at_the_beginning_touches_nothing(host: Host, tmp_path: Path) -> None:
    vm = host.start_vm()
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], check=True)
    try:
        (full / "filler").write_bytes(b"x" * 60000)
        with pytest.raises(LiveUpgradeError, match="cannot keep a journal in .*No space left.* No VM was touched"):
            Transactions(host.request(state_dir=str(full))).begin()
    finally:
        subprocess.run(["umount", str(full)], check=True)
    vm.wait_counting()
