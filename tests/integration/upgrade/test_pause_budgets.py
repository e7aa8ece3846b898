# SPDX-License-Identifier: GPL-3.0-or-later
"""The pause of a VM is bounded by the budget of its class; a VM that would take longer runs on where it was."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import read_journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import Limits
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.plan import plan_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.rehearsal import rehearse_host

from .conftest import NIC, Host, host_processes

STOPS_ONCE_LOADED = '[[ -n "$QEMU_CPR_VFORK" ]] && set -- "$@" -global migration.x-cpr-vfork-fault=loaded:stop'


class Delay(threading.Thread):
    """Lets each new QEMU that has stopped itself go on after a while, for as long as the block lasts."""

    def __init__(self, host: Host, delay_s: float) -> None:
        super().__init__()
        self._host = host
        self._delay_s = delay_s
        self._over = threading.Event()

    def __enter__(self) -> Delay:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        stopped: dict[int, float] = {}
        while not self._over.wait(0.02):
            for vm in self._host.vms:
                for pid in (pid for pid in host_processes(vm.name) if pid != vm.pid and _is_stopped(pid)):
                    if time.monotonic() - stopped.setdefault(pid, time.monotonic()) >= self._delay_s:
                        os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


@pytest.mark.parametrize("host", ["vfork"], indirect=True)
def test_same_delay_is_within_the_budget_of_one_class_and_over_that_of_another(host: Host) -> None:
    tight, roomy = host.start_vm(extra=NIC), host.start_vm(extra=NIC)
    host.break_build(STOPS_ONCE_LOADED)

    with Delay(host, 1.5):
        results = host.upgrade(
            pause_budgets_ms={"realtime": 400, "batch": 20000},
            vm_classes={tight.name: "realtime", roomy.name: "batch", "elsewhere": "batch"},
            downtime_budget_ms=1,
        )

    failed, moved = results[tight.name], results[roomy.name]
    assert (failed["outcome"], failed["vm_class"], failed["pause_budget_ms"]) == ("rolled_back", "realtime", 400)
    assert "exceeded its budget of 400 ms" in failed["error"] and "still running on the old build" in failed["error"]
    tight.wait_counting()
    assert host_processes(tight.name) == [tight.pid]
    assert (moved["outcome"], moved["vm_class"], moved["pause_budget_ms"]) == ("upgraded", "batch", 20000), moved[
        "error"
    ]
    assert moved["downtime_ms"] > 1500
    roomy.wait_counting()


def test_budget_is_in_the_result_and_in_the_journal(host: Host) -> None:
    vm = host.start_vm(extra=NIC)

    result = host.upgrade(pause_budgets_ms={"batch": 30000}, vm_classes={vm.name: "batch"})[vm.name]

    assert (result["outcome"], result["vm_class"], result["pause_budget_ms"]) == ("upgraded", "batch", 30000), result
    (transaction,) = (host.state_dir / "transactions").iterdir()
    (begin,) = (record for record in read_journal(transaction / "journal.jsonl") if record["step"] == "begin")
    assert (begin["vm_class"], begin["pause_budget_ms"]) == ("batch", 30000)


def test_plan_tells_the_budget(host: Host) -> None:
    classed, other = host.start_vm(), host.start_vm()
    request = host.request(pause_budgets_ms={"batch": "5000"}, vm_classes={classed.name: "batch"})

    plans = {plan.vm.name: plan for plan in plan_host(request)}

    results = {name: plan.result(planned=True) for name, plan in plans.items()}
    assert (results[classed.name].vm_class, results[classed.name].pause_budget_ms) == ("batch", 5000)
    assert (results[other.name].vm_class, results[other.name].pause_budget_ms) == (None, 20000)
    assert "# the longest pause allowed: 5000 ms (class batch)\n" in plans[classed.name].diff()["after"]
    assert "# the longest pause allowed: 20000 ms\n" in plans[other.name].diff()["after"]


@pytest.mark.parametrize("host", ["vfork"], indirect=True)
def test_rehearsal_keeps_the_budget_of_the_class(host: Host) -> None:
    tight, roomy = host.start_vm(extra=NIC), host.start_vm(extra=NIC)
    host.break_build(STOPS_ONCE_LOADED)
    limits = {tight.name: Limits(30, 0.4), roomy.name: Limits(30, 20)}

    with Delay(host, 1.5):
        judged = rehearse_host(
            PreflightRequest(host.new, str(host.state_dir), [tight.name, roomy.name]), limits.__getitem__
        )

    verdicts = {item.verdict.name: item.verdict for item in judged}
    assert [finding.code for finding in verdicts[tight.name].refusals] == ["rehearsal-failed"]
    assert verdicts[roomy.name].refusals == []
    for vm in host.vms:
        vm.wait_counting()
        assert host_processes(vm.name) == [vm.pid]


def test_class_without_a_budget_touches_nothing(host: Host) -> None:
    vm = host.start_vm()

    with pytest.raises(LiveUpgradeError, match="no budget for class 'gold'"):
        plan_host(host.request(pause_budgets_ms={"batch": 5000}, vm_classes={vm.name: "gold"}))
    vm.wait_counting()
