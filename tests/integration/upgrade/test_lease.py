# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runs of rollouts on one host, real QEMU: the later one is told what became of a transaction, the earlier one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import Claim, Lease, LeaseError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions

from .conftest import Host
from .hooked_engine import make_engine_die_at

FIRST = Claim("rollout-1", "controller-a", 10, 300)


def test_the_run_that_follows_finishes_what_was_begun_and_the_one_before_begins_nothing(host: Host) -> None:
    vm = host.start_vm()
    transactions = Transactions(host.request(rollout_id=FIRST.rollout_id))
    transaction = transactions.begin(FIRST)
    make_engine_die_at(transaction, "committed")
    later = Claim(FIRST.rollout_id, "controller-b", 11, 300)

    assert transactions.find() == transaction
    Lease(host.state_dir).take(later, transaction)
    progress = transactions.run(transaction, 120)

    assert progress.result is not None and progress.result["error"] is None, progress.result
    (result,) = progress.result["vms"]
    assert (result["outcome"], result["old_build_id"]) == ("upgraded", host.old), result
    vm.wait_counting()

    with pytest.raises(LeaseError, match="a later run has taken this host since"):
        Lease(host.state_dir).take(FIRST, transactions.find())
    back = Transactions(host.request(rollout_id=FIRST.rollout_id, build_id=host.old))
    with pytest.raises(LeaseError, match="a later run has taken this host since"):
        back.begin(FIRST)
    assert host.builds_run() == [host.new]


def test_an_engine_whose_host_was_taken_over_leaves_the_vm_alone(host: Host) -> None:
    vm = host.start_vm()
    transactions = Transactions(host.request(rollout_id=FIRST.rollout_id))
    transaction = transactions.begin(FIRST)
    Lease(host.state_dir).take(Claim("rollout-2", "controller-a", 11, 300))

    progress = transactions.run(transaction, 120)

    assert progress.result is not None
    assert "a later run has taken this host (rollout rollout-2" in progress.result["error"]
    assert progress.result["vms"] == []
    assert vm.process.poll() is None
    vm.wait_counting()
    assert host.builds_run() == [host.old]

    Lease(host.state_dir).take(Claim(FIRST.rollout_id, "controller-a", 12, 300))
    again = transactions.begin(Claim(FIRST.rollout_id, "controller-a", 12, 300))
    assert transactions.find() == again, "what was refused is not taken for the answer"
    done = transactions.run(again, 120).result
    assert done is not None and done["vms"][0]["outcome"] == "upgraded", done
    assert Path(f"/proc/{done['vms'][0]['new_pid']}").exists()
