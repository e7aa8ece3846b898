# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has a shard, and what stops all of them: the document in the store, by those who change it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.shards import (
    Shard,
    StoreError,
    Tally,
    tally,
)

GOOD = Tally(moved_vms=4, failed_vms=0, failed_hosts=0, failures=[])
BAD = Tally(moved_vms=3, failed_vms=1, failed_hosts=1, failures=["h1/vm1: lost"])


class Store:
    """A store, and controllers that come to it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch

    def take(self, name: str = "a", *, at: str = "c1", resumed: bool = False, run: str = "r1", **more: Any) -> Shard:
        """Take a shard on the controller ``at``; its hosts are named after it unless ``addresses`` says otherwise."""
        self.on(at)
        addresses = more.pop("addresses", [f"{name}1:22"])
        options = {"max_failed_vms": 0, "max_failed_hosts": 0, "lease_s": 900, **more}
        return Shard.take(
            {"store": str(self.folder), "fleet": "f", "name": name, **options}, run, addresses, os.getpid(), resumed
        )

    def on(self, controller: str) -> None:
        """Be another controller, which has a state folder of its own."""
        self._monkeypatch.setenv("XDG_STATE_HOME", str(self.folder.parent / controller))

    def change(self, name: str, **values: Any) -> None:
        """Change what the store says of a shard."""
        document = self.document()
        document["shards"][name].update(values)
        (self.folder / "f.json").write_text(json.dumps(document))

    def document(self) -> dict[str, Any]:
        """What is in the store."""
        return dict(json.loads((self.folder / "f.json").read_text()))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(tmp_path / "store", monkeypatch)


def test_a_shard_has_one_owner_until_it_lets_go(store: Store) -> None:
    first = store.take()
    with pytest.raises(AnsibleError, match=r"the shard a is that of .* \(rollout r1\) until .*nothing was touched"):
        store.take(at="c2", run="r2")
    with pytest.raises(AnsibleError, match="the shard a is that of"):
        store.take(at="c2", resumed=True)
    first.release(finished=True)
    store.take(at="c2", run="r2").count(GOOD)


def test_the_lease_of_a_dead_controller_ends_and_it_is_told_should_it_live(store: Store) -> None:
    dead = store.take()
    dead.count(GOOD)
    store.change("a", until=0)
    with pytest.raises(AnsibleError, match="left in the middle of rollout r1 .*upgrade_resume=r1"):
        store.take(at="c2", run="r2")
    heir = store.take(at="c2", resumed=True)
    assert store.document()["shards"]["a"]["moved_vms"] == GOOD.moved_vms, "what came of it so far stays"
    for late in (dead.renew, dead.stopped, lambda: dead.count(BAD)):
        with pytest.raises(
            AnsibleError, match="the shard a of the fleet f was taken over by .*this run of it ends here"
        ):
            late()
    dead.release(finished=True)
    assert heir.stopped() is None
    assert store.document()["shards"]["a"]["state"] == "runs"


def test_a_process_that_died_here_is_not_waited_for(store: Store) -> None:
    store.take()
    owner = store.document()["shards"]["a"]["owner"]
    store.change("a", owner={**owner, "start_ticks": owner["start_ticks"] - 1})  # the pid is that of another by now
    with pytest.raises(AnsibleError, match="is that of"):
        store.take(at="c2", resumed=True)
    store.take(resumed=True)


def test_an_owner_whose_lease_ended_unseen_goes_on(store: Store) -> None:
    shard = store.take()
    store.change("a", until=0)
    shard.renew()
    with pytest.raises(AnsibleError, match="is that of"):
        store.take(at="c2", resumed=True)


@pytest.mark.parametrize(
    ("budget", "stops"),
    [({}, True), ({"max_failed_vms": 1}, True), ({"max_failed_vms": 1, "max_failed_hosts": 1}, False)],
    ids=["none-may-fail", "a-host-too-many", "within"],
)
def test_failures_of_one_stop_all_when_the_budget_is_spent(store: Store, budget: dict[str, int], stops: bool) -> None:
    one, other = store.take("a", **budget), store.take("b", at="c2", **budget)
    assert one.count(GOOD) == "fleet f: 4 VMs moved and 0 VMs and 0 hosts failed in all shards so far"
    assert (one.stopped(), other.stopped()) == (None, None)
    assert other.count(BAD) == "fleet f: 7 VMs moved and 1 VM and 1 host failed in all shards so far"
    why = one.stopped()
    assert (why is not None) == stops
    if why is not None:
        assert why == other.stopped()
        assert why.startswith("the shard b has spent the failure budget")
        assert why.endswith("shard b: h1/vm1: lost")
        with pytest.raises(
            AnsibleError, match=r"the shard b has spent .*Nothing was touched.*another name of the fleet"
        ):
            store.take("c", **budget)


def test_what_shards_count_is_added_up(store: Store) -> None:
    budget = {"max_failed_vms": 2, "max_failed_hosts": 9}
    shards = [store.take(name, **budget) for name in "abc"]
    for shard in shards[:2]:
        shard.count(BAD)
        shard.count(BAD)  # as often as a wave is judged: the tally is that of the shard so far
    assert shards[2].stopped() is None
    shards[2].count(BAD)
    assert "shard a: h1/vm1: lost; shard b: h1/vm1: lost; shard c: h1/vm1: lost" in str(shards[0].stopped())


def test_a_larger_budget_lets_a_stopped_fleet_go_on_and_a_smaller_one_stops_it(store: Store) -> None:
    one = store.take()
    one.count(BAD)
    one.release(finished=False)
    back = store.take(resumed=True)
    assert back.stopped(), "to bring its wave to its end, it may come back"
    back.release(finished=False)
    larger = {"max_failed_vms": 1, "max_failed_hosts": 1}
    back = store.take(resumed=True, **larger)
    assert back.stopped() is None
    with pytest.raises(AnsibleError, match="1 VM and 1 host may fail, by this shard 0 VMs and 0 hosts may fail"):
        store.take("b")
    back.release(finished=False)
    assert store.take(resumed=True).stopped()


def test_what_failed_in_an_earlier_attempt_is_not_forgotten(store: Store) -> None:
    budget = {"max_failed_vms": 1, "max_failed_hosts": 1}
    first = store.take(**budget)
    first.count(BAD)
    first.release(finished=True)
    second = store.take(run="r2", **budget)
    assert second.stopped() is None
    second.count(BAD)
    assert "2 VMs and 2 hosts did" in str(second.stopped())


def test_a_host_is_in_one_shard(store: Store) -> None:
    store.take("a", addresses=["h1:22", "h2:22"])
    with pytest.raises(AnsibleError, match="h2:22 are in the shard a, too, .*Give each host to one shard"):
        store.take("b", addresses=["h2:22", "h3:22"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fleet": "../f"}, "'../f' as its fleet"),
        ({"name": ""}, "'' as its name"),
        ({"max_failed_vms": -1}, "-1 as its max_failed_vms"),
        ({"lease_s": 0}, "0 as its lease_s"),
    ],
)
def test_what_makes_no_sense_is_refused(store: Store, options: dict[str, Any], words: str) -> None:
    sound = {"store": str(store.folder), "fleet": "f", "name": "a", "max_failed_vms": 0, "max_failed_hosts": 0}
    with pytest.raises(AnsibleError, match=f"{words}.*nothing was touched"):
        Shard.take({**sound, "lease_s": 900, **options}, "r1", [], os.getpid(), False)
    assert not store.folder.exists()


def test_a_store_that_cannot_be_used_is_not_taken_for_a_lost_shard(store: Store) -> None:
    shard = store.take()
    (store.folder / "f.json").write_text("{")
    with pytest.raises(StoreError, match=r"f\.json of the rollout's shards cannot be used"):
        shard.renew()
    (store.folder / "f.json").unlink()
    store.folder.rename(store.folder.with_name("away"))
    store.folder.write_text("a file")
    with pytest.raises(StoreError, match="cannot be used"):
        shard.count(GOOD)


def test_the_tally_is_of_the_last_judgement_of_each_wave() -> None:
    def gate(wave: int, vms: int, failures: int, reasons: list[str]) -> dict[str, Any]:
        evidence = {"vms": vms, "failures": failures, "hosts_failed": failures, "hosts_unreachable": 1}
        return {"event": "gate", "wave": wave, "gate": {"evidence": evidence, "reasons": reasons}}

    events = [gate(0, 5, 5, ["before"]), gate(0, 5, 0, []), {"event": "finish"}, gate(1, 7, 2, ["h1/vm1: lost"])]
    assert tally(events) == Tally(10, 2, 4, ["h1/vm1: lost"])
