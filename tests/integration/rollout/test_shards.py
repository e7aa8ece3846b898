# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two controllers, each a process with a state folder of its own, that roll out over shards of one fleet."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import NEW, OLD, Fleet
from .test_resume import cut_in_turn_of, events


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Fleet]:
    """Yield another controller with hosts of its own."""
    made = Fleet(tmp_path / "other")
    yield made
    made.kill_strays()


def shard(fleet: Fleet, name: str, **more: Any) -> dict[str, Any]:
    """The variable of a shard in the store of the controller ``fleet``."""
    return {"store": str(fleet.root / "store"), "fleet": "spring", "name": name, **more}


def in_store(fleet: Fleet) -> dict[str, Any]:
    return dict(json.loads((fleet.root / "store" / "spring.json").read_text()))


def end_lease(fleet: Fleet, name: str) -> None:
    """As if its time were over."""
    document = in_store(fleet)
    document["shards"][name]["until"] = 0
    (fleet.root / "store" / "spring.json").write_text(json.dumps(document))


def test_failures_of_one_shard_stop_the_other_at_its_next_wave(fleet: Fleet, other: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2")
    other.add_host("o1", {"vm7": {"outcome": "rolled_back"}})
    journal, gate, running = cut_in_turn_of(fleet, "h1", upgrade_waves=[1], upgrade_shard=shard(fleet, "a"))

    failed = other.upgrade(upgrade_shard=shard(fleet, "b"))
    assert failed.exit_status == 2, failed.output
    assert "fleet spring: 0 VMs moved and 1 VM and 1 host failed in all shards so far" in failed.output
    os.close(gate)
    stopped = fleet.wait(running)

    assert stopped.exit_status == 2, stopped.output
    report = fleet.report()
    assert report["verdict"] == "aborted"
    assert "the shard b has spent the failure budget of its fleet" in report["exit_reason"]
    assert "o1/vm7" in report["exit_reason"]
    gates = [wave["gate"] and wave["gate"]["verdict"] for wave in report["waves"]]
    assert gates == ["PASS", None], "its own wave is judged by itself"
    assert (fleet.builds("h1"), fleet.builds("h2")) == ({"vm1": NEW}, {"vm1": OLD})
    assert "calls" not in fleet.host("h2")

    # nobody begins anew in a fleet that was stopped, nor goes on with the budget spent
    other.change("o1", "vm7", outcome=None)
    refused = other.upgrade(upgrade_shard=shard(fleet, "b"))
    assert refused.exit_status == 2 and "another name of the fleet" in refused.output, refused.output
    still = fleet.run("upgrade", upgrade_resume=journal.stem)
    assert still.exit_status == 2 and "has spent the failure budget" in still.output, still.output
    assert "calls" not in fleet.host("h2")

    larger = shard(fleet, "a", max_failed_vms=1, max_failed_hosts=1)
    done = fleet.run("upgrade", upgrade_resume=journal.stem, upgrade_shard=larger)
    assert done.exit_status == 0, done.output
    assert fleet.builds("h2") == {"vm1": NEW}
    assert in_store(fleet)["shards"]["a"]["moved_vms"] == 2


def test_the_shard_of_a_dead_controller_is_taken_over(fleet: Fleet, other: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2")
    # the host's own lease is short, so that the one of the shard is what is seen here
    journal, gate, dead = cut_in_turn_of(
        fleet, "h2", upgrade_waves=[1], upgrade_shard=shard(fleet, "a"), upgrade_lease_s=1
    )
    other.inventory = fleet.inventory
    os.killpg(dead.pid, signal.SIGKILL)
    dead.communicate()
    fleet.kill_strays()
    os.close(gate)

    early = other.run("upgrade", upgrade_resume=str(journal))
    assert early.exit_status == 2, early.output
    assert "the shard a is that of" in early.output and journal.stem in early.output
    assert fleet.builds("h2") == {"vm1": OLD}

    end_lease(fleet, "a")
    anew = other.upgrade(upgrade_shard=shard(fleet, "a"), upgrade_hosts="h2")
    assert anew.exit_status == 2 and f"upgrade_resume={journal.stem}" in anew.output, anew.output
    token = in_store(fleet)["shards"]["a"]["token"]
    heir = other.run("upgrade", upgrade_resume=str(journal))
    assert heir.exit_status == 0, heir.output
    assert fleet.builds("h2") == {"vm1": NEW}
    left = in_store(fleet)["shards"]["a"]
    assert (left["token"] > token, left["state"], left["moved_vms"]) == (True, "ended", 2)


def test_a_controller_that_only_seemed_dead_is_told_that_it_has_lost_its_shard(fleet: Fleet, other: Fleet) -> None:
    fleet.add_host("h1")
    fleet.add_host("h2")
    journal, gate, slow = cut_in_turn_of(fleet, "h1", upgrade_waves=[1], upgrade_shard=shard(fleet, "a"))
    copy = other.root / "journal.jsonl"
    copy.write_bytes(journal.read_bytes())  # so that it is the store alone that tells
    other.inventory = fleet.inventory
    end_lease(fleet, "a")
    heir = other.start("upgrade", upgrade_resume=str(copy))
    output, _none = heir.communicate(timeout=300)
    assert in_store(fleet)["shards"]["a"]["token"] == 2, output
    os.close(gate)
    run = fleet.wait(slow)
    assert run.exit_status == 2, run.output
    assert "the shard a of the fleet spring was taken over by" in run.output
    assert [event["host"] for event in events(journal, "started")] == ["h1"], "it enters no other wave"


def test_of_two_controllers_for_one_shard_one_is_refused(fleet: Fleet, other: Fleet) -> None:
    fleet.add_host("h1")
    other.add_host("o1")
    _journal, gate, running = cut_in_turn_of(fleet, "h1", upgrade_shard=shard(fleet, "a"))
    refused = other.upgrade(upgrade_shard=shard(fleet, "a"))
    assert refused.exit_status == 2, refused.output
    assert "the shard a is that of" in refused.output and "nothing was touched" in refused.output
    assert "calls" not in other.host("o1")
    assert other.locks() == [], "it has left no host locked"
    os.close(gate)
    assert fleet.wait(running).exit_status == 0
    assert other.upgrade(upgrade_shard=shard(fleet, "a")).exit_status == 0, "the first has let go"
    assert other.builds("o1") == {"vm1": NEW}


def test_a_store_that_is_away_does_not_keep_a_wave_from_going_back(fleet: Fleet) -> None:
    fleet.add_host("h1", {"vm1": {"sick_on": [NEW]}})
    fleet.add_host("h2")
    _journal, gate, running = cut_in_turn_of(fleet, "h1", upgrade_waves=[1], upgrade_shard=shard(fleet, "a"))
    (fleet.root / "store").rename(fleet.root / "away")
    (fleet.root / "store").write_text("")
    os.close(gate)
    run = fleet.wait(running)
    assert run.exit_status == 2, run.output
    assert "what came of the wave was not told to the other shards" in run.output
    assert (fleet.builds("h1"), fleet.builds("h2")) == ({"vm1": OLD}, {"vm1": OLD})
