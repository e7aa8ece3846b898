# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody set for single threads of a VM is set for them in the process that follows; taken back, nothing is touched."""

from __future__ import annotations

import os

from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import read_journal
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.threads import Scheduling
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu

from .conftest import NIC, Host
from .hooked_engine import hook_engine, make_engine_die_at

_CPUS = sorted(os.sched_getaffinity(0))
_LOW, _HIGH = _CPUS[0], _CPUS[-1]
_NO_REAL_TIME = """
import os

def refuse(*_arguments):
    raise PermissionError(1, "Operation not permitted")

os.sched_setscheduler = refuse
"""


def start_pinned(host: Host) -> LocalQemu:
    """Two vCPUs on one CPU each, the other way round than one would; one of them nice; an I/O thread in real time."""
    vm = host.start_vm(extra=[*NIC, "-smp", "2", "-object", "iothread,id=io1"])
    first, second = threads(vm)["vcpus"]
    (io,) = threads(vm)["io"]
    os.sched_setaffinity(first, {_HIGH})
    os.sched_setaffinity(second, {_LOW})
    os.setpriority(os.PRIO_PROCESS, second, 18)
    os.sched_setscheduler(io, os.SCHED_RR, os.sched_param(2))
    os.sched_setaffinity(vm.pid, {_LOW})
    return vm


def threads(vm: LocalQemu) -> dict[str, list[int]]:
    """Those of the process that serves the monitor now."""
    return {
        "vcpus": [vcpu["thread-id"] for vcpu in vm.execute("query-cpus-fast")],
        "io": [thread["thread-id"] for thread in vm.execute("query-iothreads")],
    }


def scheduling(pid: int, vm: LocalQemu) -> list[Scheduling]:
    found = threads(vm)
    return [Scheduling.of(thread) for thread in (pid, *found["vcpus"], *found["io"])]


def test_threads_of_the_new_process_are_scheduled_as_those_of_the_old(host: Host) -> None:
    vm = start_pinned(host)
    before = scheduling(vm.pid, vm)

    result = host.upgrade()[vm.name]

    assert (result["outcome"], result["warnings"]) == ("upgraded", []), result
    assert scheduling(result["new_pid"], vm) == before
    assert [entry.cpus for entry in before[:3]] == [str(_LOW), str(_HIGH), str(_LOW)]
    assert before[2].nice == 18
    assert (before[3].policy, before[3].priority) == (os.SCHED_RR, 2)
    told = "\n".join(result["threads"])
    assert f"vCPU 0: CPUs {_HIGH}" in told and "nice 18" in told and "I/O thread io1" in told and "SCHED_RR 2" in told
    vm.wait_counting()

    back = host.upgrade(build_id=host.old)[vm.name]

    assert back["outcome"] == "upgraded", back
    assert scheduling(back["new_pid"], vm) == before


def test_threads_are_left_alone_when_the_upgrade_is_taken_back(host: Host) -> None:
    vm = start_pinned(host)
    before, ids = scheduling(vm.pid, vm), threads(vm)
    host.break_build('[[ "$*" == *"-incoming"* || -n "$QEMU_CPR_VFORK" ]] && exec $real "${@/virtio-net-pci/e1000e}"')

    result = host.upgrade()[vm.name]

    assert (result["outcome"], result["threads"]) == ("rolled_back", []), result
    assert (scheduling(vm.pid, vm), threads(vm)) == (before, ids)


def test_engine_that_follows_one_that_died_sets_them_too(host: Host) -> None:
    vm = start_pinned(host)
    before = scheduling(vm.pid, vm)
    transactions = Transactions(host.request())
    transaction = transactions.begin()
    make_engine_die_at(transaction, "committed")

    progress = transactions.run(transaction, 60)

    assert progress.result is not None
    (result,) = progress.result["vms"]
    assert (result["outcome"], result["warnings"]) == ("upgraded", []), result
    assert scheduling(result["new_pid"], vm) == before


def test_thread_that_cannot_be_set_costs_a_warning_and_no_guest(host: Host) -> None:
    """The kernel's refusal is made up; it may come of limits on real-time threads in the VM's control group."""
    vm = start_pinned(host)
    transactions = Transactions(host.request())
    transaction = transactions.begin()
    hook_engine(transaction, _NO_REAL_TIME)

    progress = transactions.run(transaction, 60)

    assert progress.result is not None
    (result,) = progress.result["vms"]
    assert result["outcome"] == "upgraded", result
    (warning,) = result["warnings"]
    assert "I/O thread io1 has not the scheduling it had" in warning and "priority 2" in warning
    (end,) = [record for record in read_journal(transaction / "journal.jsonl") if record["step"] == "end"]
    assert end["result"]["warnings"] == [warning]
    vm.wait_counting()
