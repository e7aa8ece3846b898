# SPDX-License-Identifier: GPL-3.0-or-later
"""Rehearsals by real QEMUs: what they prove, what they refuse, and that the guest runs on in its process every time."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest, Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_vfork import CprVfork
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import Limits, TakenBack
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.host_lock import HostLock
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.rehearsal import rehearse_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu

from .conftest import NIC, Host, host_processes

ROOMY = Limits(prepare_s=30, downtime_s=20)

pytestmark = pytest.mark.parametrize("host", ["vfork"], indirect=True)


def rehearse(host: Host, limits: Limits = ROOMY, **request: Any) -> dict[str, Verdict]:
    """The verdicts by the name of the VM."""
    asked = PreflightRequest(host.new, str(host.state_dir), [vm.name for vm in host.vms], **request)
    return {item.verdict.name: item.verdict for item in rehearse_host(asked, lambda _name: limits)}


def codes(verdict: Verdict) -> list[str]:
    return [finding.code for finding in verdict.refusals]


def assert_as_before(vm: LocalQemu) -> None:
    """The guest counts in its process, whose settings are as at its start; no other process is left."""
    vm.wait_counting()
    assert host_processes(vm.name) == [vm.pid]
    assert vm.execute("query-status")["status"] == "running"
    assert vm.execute("query-migrate-parameters").get("mode", "normal") == "normal"
    assert vm.execute("query-cpr-vfork")["rehearsal"] is False


def test_vm_that_loads_goes_and_is_where_it_was(host: Host) -> None:
    for _ in range(2):
        host.start_vm(extra=NIC)

    verdicts = rehearse(host)

    for vm in host.vms:
        verdict = verdicts[vm.name]
        assert (verdict.verdict, verdict.mechanism, verdict.refusals) == ("go", "vfork", [])
        done = verdict.rehearsal
        assert done is not None and (done.outcome, done.pause_budget_ms) == ("passed", 20000), done
        assert done.pause_ms is not None and done.phases_ms is not None
        assert list(done.phases_ms) == ["spawned", "ready", "stopped", "saved", "loaded", "aborted"]
        assert 0 < done.phases_ms["loaded"] - done.phases_ms["stopped"] < done.pause_ms
        assert_as_before(vm)
    assert {result["outcome"] for result in host.upgrade().values()} == {"upgraded"}


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("{ echo no such luck >&2; exit 7; }", "exited with status 7, last words: no such luck"),
        ("kill -SEGV $$", "killed by SIGSEGV"),
        (
            'exec $real "${@/virtio-net-pci/e1000e}"',
            "exited with status 1, last words: .*Unknown section or instance '.*virtio-net",
        ),
        ("exec sleep 600", "was not ready within 1500 ms"),
    ],
    ids=["exits", "crashes", "other-device", "hangs"],
)
def test_vm_that_does_not_load_is_refused_with_the_reason_and_runs_on(host: Host, script: str, why: str) -> None:
    vm = host.start_vm(extra=NIC)
    host.break_build(f'[[ -n "$QEMU_CPR_VFORK" ]] && {script}')

    verdict = rehearse(host, Limits(prepare_s=1.5, downtime_s=20))[vm.name]

    assert (verdict.verdict, verdict.mechanism, codes(verdict)) == ("refuse", None, ["rehearsal-failed"])
    assert verdict.rehearsal is not None and verdict.rehearsal.outcome == "failed"
    assert re.search(why, verdict.refusals[0].message)
    assert_as_before(vm)


def test_vm_that_does_not_load_within_its_budget_is_refused_with_the_pause_that_it_had(host: Host) -> None:
    vm = host.start_vm(extra=NIC)
    host.break_build('[[ -n "$QEMU_CPR_VFORK" ]] && set -- "$@" -global migration.x-cpr-vfork-fault=loaded:hang')

    verdict = rehearse(host, Limits(prepare_s=30, downtime_s=0.3))[vm.name]

    assert codes(verdict) == ["rehearsal-failed"]
    assert "exceeded its budget of 300 ms" in verdict.refusals[0].message
    done = verdict.rehearsal
    assert done is not None and done.pause_budget_ms == 300
    assert done.pause_ms is not None and done.pause_ms >= 300
    assert_as_before(vm)


def test_other_mechanisms_are_not_rehearsed(host: Host) -> None:
    vm = host.start_vm(extra=[*NIC, "-sandbox", "on,spawn=deny"])

    verdict = rehearse(host)[vm.name]

    assert (verdict.verdict, verdict.mechanism) == ("go", "cpr-transfer")
    assert verdict.rehearsal is not None and verdict.rehearsal.outcome == "not_done"
    assert "by cpr-transfer; only vfork can" in verdict.rehearsal.reason
    assert "not-rehearsed" in {finding.code for finding in verdict.warnings}
    assert vm.execute("query-cpr-vfork")["phase"] == "idle"


def test_vm_that_is_refused_or_there_already_is_not_rehearsed(host: Host) -> None:
    moved, refused = host.start_vm(extra=NIC), host.start_vm()
    host.upgrade(vms=[moved.name])
    refused.execute("stop")

    verdicts = rehearse(host)

    assert (verdicts[moved.name].verdict, verdicts[refused.name].verdict) == ("already", "refuse")
    for verdict in verdicts.values():
        assert verdict.rehearsal is not None and verdict.rehearsal.outcome == "not_done"
        assert "not-rehearsed" not in {finding.code for finding in verdict.warnings}
    assert refused.execute("query-cpr-vfork")["phase"] == "idle"


def test_old_process_that_dies_in_a_rehearsal_is_told_at_once(host: Host) -> None:
    lost, other = host.start_vm(extra=NIC), host.start_vm(extra=NIC)
    host.break_build(f'[[ -n "$QEMU_CPR_VFORK" && "$*" == *"{lost.name}"* ]] && {{ kill -KILL $PPID; exit 1; }}')

    verdicts = rehearse(host)

    assert codes(verdicts[lost.name]) == ["rehearsal-unclear"]
    assert f"the old process {lost.pid} died in the rehearsal" in verdicts[lost.name].refusals[0].message
    assert lost.process.wait(10) == -signal.SIGKILL
    assert verdicts[other.name].verdict == "go"
    assert_as_before(other)


def test_no_rehearsal_while_an_upgrade_is_at_work(host: Host) -> None:
    vm = host.start_vm()
    lock = HostLock(host.state_dir)
    lock.acquire({"transaction_id": "20260101T000000-abcdef", "rollout_id": "first", "pid": 1})
    try:
        with pytest.raises(LiveUpgradeError, match="another upgrade is at work here .*Nothing was rehearsed"):
            rehearse(host)
    finally:
        lock.close()
    assert vm.execute("query-cpr-vfork")["phase"] == "idle"


def test_no_rehearsal_before_a_dead_engines_work_is_finished(host: Host) -> None:
    vm = host.start_vm()
    transaction = Transactions(host.request()).begin()

    with pytest.raises(LiveUpgradeError, match=f"the engine of transaction {transaction.name} died.*run the upgrade"):
        rehearse(host)
    assert vm.execute("query-cpr-vfork")["phase"] == "idle"


def test_no_upgrade_and_no_second_rehearsal_while_one_is_at_work(host: Host) -> None:
    vm = host.start_vm(extra=NIC)
    host.break_build('[[ -n "$QEMU_CPR_VFORK" ]] && exec sleep 600')
    found: list[Verdict] = []
    rehearsal = threading.Thread(
        target=lambda: found.extend(rehearse(host, Limits(prepare_s=5, downtime_s=20)).values())
    )
    rehearsal.start()
    _await(lambda: len(_children(vm.pid)) > 0)

    with pytest.raises(LiveUpgradeError, match="a rehearsal is at work here.*wait for it to end"):
        Transactions(host.request()).find()
    with pytest.raises(LiveUpgradeError, match="a rehearsal is at work here.*Nothing was rehearsed"):
        rehearse(host)
    transactions = Transactions(host.request())
    progress = transactions.run(transactions.begin(), 30)
    assert progress.result is not None and "a rehearsal is at work here" in progress.result["error"]

    rehearsal.join()
    assert codes(found[0]) == ["rehearsal-failed"], found
    assert_as_before(vm)


def test_what_a_killed_rehearsal_left_set_is_put_right(host: Host) -> None:
    vm = host.start_vm(extra=NIC)
    vm.execute("migrate-set-parameters", {"mode": "cpr-vfork", "cpr-exec-command": ["/bin/false"]})
    vm.execute("cpr-vfork-set", {"rehearse": True, "pause-budget": 7})

    assert rehearse(host)[vm.name].verdict == "go"
    assert_as_before(vm)

    vm.execute("cpr-vfork-set", {"rehearse": True})
    assert host.upgrade()[vm.name]["outcome"] == "upgraded"


def test_hand_over_that_is_under_way_is_not_meddled_with(host: Host) -> None:
    vm = host.start_vm(extra=NIC)
    with vm.monitor() as monitor:
        monitor.execute("migrate-set-parameters", {"mode": "cpr-vfork", "cpr-exec-command": ["/bin/sleep", "600"]})
        monitor.execute("migrate", {})
        transfer = CprVfork(vm.pid, monitor, lambda _pid: monitor, ROOMY, lambda _step, **_facts: None)
        try:
            with pytest.raises(TakenBack, match="is in another hand-over"):
                transfer.rehearse(["/bin/false"], [])
        finally:
            transfer.close()
        assert monitor.execute("query-migrate-parameters")["mode"] == "cpr-vfork"
        assert monitor.execute("query-cpr-vfork")["phase"] == "spawned"
        monitor.execute("migrate_cancel")
    vm.wait_counting()


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as stream:
        return stream.read().split()


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
