# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease of a host: taken, kept, run out, taken over, and the late step of a run that has lost it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.engine import Engine
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import Claim, Lease, LeaseError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import UpgradeRequest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions

FIRST = Claim("upgrade-1", "controller-a", 10, 300)


def expire(state_dir: Path) -> None:
    path = state_dir / "lease.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "until": 0}))


def test_the_host_is_kept_from_a_rollout_of_another_controller_until_the_time_is_over(tmp_path: Path) -> None:
    other = Claim("upgrade-2", "controller-b", 20, 300)
    Lease(tmp_path).take(FIRST)
    Lease(tmp_path).take(FIRST)

    with pytest.raises(LeaseError, match="holds this host for .* s more .rollout upgrade-1 of controller-a"):
        Lease(tmp_path).take(other)
    Lease(tmp_path).take(FIRST)  # what was refused has changed nothing

    expire(tmp_path)
    Lease(tmp_path).take(other)


def test_what_is_given_up_is_for_others_and_the_one_before_stays_refused(tmp_path: Path) -> None:
    Lease(tmp_path).take(FIRST)
    Lease(tmp_path).give_up(FIRST)
    other = Claim("upgrade-2", "controller-b", 20, 300)
    Lease(tmp_path).take(other)

    Lease(tmp_path).give_up(FIRST)  # it is not his any more
    with pytest.raises(LeaseError, match="holds this host"):
        Lease(tmp_path).take(Claim("upgrade-3", "controller-c", 30, 300))
    with pytest.raises(LeaseError, match="a later run has taken this host since"):
        Lease(tmp_path).take(FIRST)


@pytest.mark.parametrize(
    "later",
    [Claim("upgrade-1", "controller-b", 11, 300), Claim("upgrade-2", "controller-a", 11, 300)],
    ids=["resumed-elsewhere", "same-controller"],
)
def test_a_later_run_takes_the_host_over_and_the_one_before_is_refused(tmp_path: Path, later: Claim) -> None:
    Lease(tmp_path).take(FIRST)
    Lease(tmp_path).take(later)

    with pytest.raises(LeaseError, match="a later run has taken this host since"):
        Lease(tmp_path).take(FIRST)
    expire(tmp_path)
    with pytest.raises(LeaseError, match="a later run has taken this host since"):
        Lease(tmp_path).take(FIRST)


def test_nothing_begins_on_a_host_that_is_anothers(tmp_path: Path) -> None:
    Lease(tmp_path).take(Claim("upgrade-2", "controller-b", 20, 300))
    transactions = Transactions(UpgradeRequest(build_id="qemu-1", state_dir=str(tmp_path), rollout_id="upgrade-1"))

    with pytest.raises(LeaseError):
        transactions.begin(FIRST)

    assert list((tmp_path / "transactions").iterdir()) == []


def test_an_engine_that_starts_late_does_nothing_and_is_not_taken_for_the_answer(tmp_path: Path) -> None:
    """It was asked for in time, and the host was taken over before it had the host's lock."""
    request = UpgradeRequest(build_id="qemu-1", state_dir=str(tmp_path), rollout_id="upgrade-1")
    transaction = Transactions(request).begin(FIRST)
    Lease(tmp_path).take(Claim("upgrade-2", "controller-a", 11, 300))

    Engine(transaction).run()

    result = json.loads((transaction / "result.json").read_text())
    assert "a later run has taken this host" in result["error"]
    assert result["vms"] == []
    assert not (transaction / "journal.jsonl").exists()
    assert Transactions(request).find() is None


def test_a_run_that_goes_on_adopts_what_the_one_before_began(tmp_path: Path) -> None:
    request = UpgradeRequest(build_id="qemu-1", state_dir=str(tmp_path), rollout_id="upgrade-1")
    transaction = Transactions(request).begin(FIRST)
    assert Transactions(request).find() == transaction

    Lease(tmp_path).take(Claim("upgrade-1", "controller-b", 11, 300), transaction)

    Lease(tmp_path).require_adopted(transaction)


@pytest.mark.parametrize(
    ("rollout_id", "lease"),
    [(None, {"token": 1, "owner": "c", "seconds": 1}), ("u", {"token": 0, "owner": "c", "seconds": 1})],
)
def test_a_claim_that_makes_no_sense_is_refused(rollout_id: str | None, lease: dict[str, Any]) -> None:
    with pytest.raises(LeaseError, match="Nothing was touched"):
        Claim.of(rollout_id, lease)
