# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exact bound, the plan of waves, and the judgement of a wave."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.bounds import upper_failure_bound
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import (
    judge,
    loaded_cores,
    rollback_targets,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.waves import plan_waves


@pytest.mark.parametrize(
    ("failures", "attempts", "bound"),
    [
        # zero failures: 1 - 0.05 ** (1 / n); the rest from tables of the Clopper-Pearson interval
        (0, 1, 0.9500),
        (0, 5, 0.4507),
        (0, 10, 0.2589),
        (0, 59, 0.0495),
        (0, 299, 0.0100),
        (1, 10, 0.3942),
        (2, 20, 0.2826),
        (5, 100, 0.1023),
        (0, 0, 1.0),
        (3, 3, 1.0),
    ],
)
def test_upper_bound_is_clopper_pearsons(failures: int, attempts: int, bound: float) -> None:
    assert upper_failure_bound(failures, attempts) == pytest.approx(bound, abs=5e-5)


def test_upper_bound_survives_large_fleets() -> None:
    assert upper_failure_bound(0, 100_000) == pytest.approx(1 - 0.05 ** (1 / 100_000), rel=1e-6)
    assert 0.0010 < upper_failure_bound(100, 100_000) < 0.0013


@pytest.mark.parametrize(("failures", "attempts"), [(-1, 5), (6, 5)])
def test_upper_bound_refuses_what_cannot_be(failures: int, attempts: int) -> None:
    with pytest.raises(ValueError, match="failures of"):
        upper_failure_bound(failures, attempts)


@pytest.mark.parametrize(
    ("hosts", "sizes", "lengths"),
    [
        (8, [1, "25%", "100%"], [1, 2, 5]),
        (3, [1, "25%", "100%"], [1, 1, 1]),
        (5, [2], [2, 2, 1]),
        (5, ["100%"], [5]),
        (5, ["1", "50%"], [1, 2, 2]),
        (0, [1], []),
    ],
)
def test_waves_are_those_of_serial(hosts: int, sizes: list[int | str], lengths: list[int]) -> None:
    names = [f"h{number}" for number in range(hosts)]

    waves = plan_waves(names, sizes)

    assert [len(wave) for wave in waves] == lengths
    assert [name for wave in waves for name in wave] == names


@pytest.mark.parametrize("sizes", [[], [0], ["0%x"], [-1], ["many"], [None], [True], ["[1]"]])
def test_a_wave_without_a_size_is_refused(sizes: list[Any]) -> None:
    with pytest.raises(AnsibleError, match="upgrade_waves"):
        plan_waves(["h1", "h2"], sizes)


def vm(outcome: str, **values: Any) -> dict[str, Any]:
    """Return a VM record."""
    return {"name": "vm1", "outcome": outcome, "downtime_ms": None, "old_build_id": "old", "health": None, **values}


def host(*vms: dict[str, Any], outcome: str = "ok", reason: str | None = None) -> dict[str, Any]:
    """Return a host record."""
    return {"outcome": outcome, "reason": reason, "vms": list(vms)}


SICK = {"before": [], "after": ["ping: silent"], "regressions": ["ping: silent"]}
ILL_BEFORE = {"before": ["ping: silent"], "after": ["ping: silent"], "regressions": []}

JUDGEMENTS: dict[str, tuple[dict[str, Any], float | None, str, str]] = {
    "upgraded": ({"h1": host(vm("upgraded", downtime_ms=5.0))}, 10.0, "PASS", ""),
    "at the budget": ({"h1": host(vm("upgraded", downtime_ms=10.0))}, 10.0, "PASS", ""),
    "already there": ({"h1": host(vm("already"))}, 10.0, "PASS", ""),
    "planned": ({"h1": host(vm("planned"))}, None, "PASS", ""),
    "no budget, not measured": ({"h1": host(vm("upgraded"))}, None, "PASS", ""),
    "ill before and after": ({"h1": host(vm("upgraded", downtime_ms=1.0, health=ILL_BEFORE))}, 10.0, "PASS", ""),
    "over the budget": ({"h1": host(vm("upgraded", downtime_ms=10.1))}, 10.0, "FAIL", "h1/vm1: downtime 10.1 ms"),
    "over that of all, not of its class": (
        {"h1": host(vm("upgraded", downtime_ms=50.0, vm_class="batch", pause_budget_ms=60))},
        10.0,
        "PASS",
        "",
    ),
    "over that of its class, there is none of all": (
        {"h1": host(vm("upgraded", downtime_ms=5.5, vm_class="realtime", pause_budget_ms=5))},
        None,
        "FAIL",
        "h1/vm1: downtime 5.5 ms is over the budget of 5 ms",
    ),
    "limit of the upgrade that nobody asked for": (
        {"h1": host(vm("upgraded", downtime_ms=1200.0, vm_class=None, pause_budget_ms=1000))},
        None,
        "PASS",
        "",
    ),
    "budget of its class, not measured": (
        {"h1": host(vm("upgraded", vm_class="realtime", pause_budget_ms=5))},
        None,
        "INCONCLUSIVE",
        "h1/vm1",
    ),
    "rolled back": (
        {"h1": host(vm("rolled_back", error="it hung"), outcome="failed")},
        None,
        "FAIL",
        "h1/vm1: rolled_back: it hung",
    ),
    "refused": ({"h1": host(vm("refused", reason="private RAM"), outcome="failed")}, None, "FAIL", "private RAM"),
    "lost": ({"h1": host(vm("lost"), outcome="failed")}, None, "FAIL", "lost"),
    "not attempted": ({"h1": host(vm("not_attempted"), outcome="failed")}, None, "FAIL", "not_attempted"),
    "regressed": (
        {"h1": host(vm("upgraded", downtime_ms=1.0, health=SICK))},
        None,
        "FAIL",
        "less healthy than before: ping",
    ),
    "already there, regressed": ({"h1": host(vm("already", health=SICK))}, None, "FAIL", "less healthy than before"),
    "unreachable": ({"h1": host(outcome="unreachable", reason="no route")}, None, "FAIL", "h1: unreachable: no route"),
    "never recorded": ({}, None, "FAIL", "h1: unreachable"),
    "failed by itself": ({"h1": host(outcome="failed", reason="disk full")}, None, "FAIL", "h1: failed: disk full"),
    "upgraded, then failed": (
        {"h1": host(vm("upgraded", downtime_ms=1.0), outcome="failed", reason="no default")},
        None,
        "FAIL",
        "h1: failed: no default",
    ),
    "no VM": ({"h1": host()}, None, "INCONCLUSIVE", "nothing was proved"),
    "budget, not measured": ({"h1": host(vm("upgraded"))}, 10.0, "INCONCLUSIVE", "h1/vm1"),
}


@pytest.mark.parametrize(("records", "budget_ms", "verdict", "reason"), JUDGEMENTS.values(), ids=JUDGEMENTS.keys())
def test_judgement(records: dict[str, Any], budget_ms: float | None, verdict: str, reason: str) -> None:
    gate = judge(["h1"], records, budget_ms)

    assert gate.verdict == verdict
    assert reason in "\n".join(gate.reasons)
    assert (gate.verdict == "PASS") == (not gate.reasons)


def test_evidence_counts_each_vm_once() -> None:
    records = {
        "h1": host(vm("upgraded", downtime_ms=4.0), vm("upgraded", name="vm2", downtime_ms=50.0, health=SICK)),
        "h2": host(vm("already"), vm("rolled_back", name="vm2"), outcome="failed"),
    }

    evidence = judge(["h1", "h2", "h3"], records, 10.0).evidence

    assert (evidence.hosts, evidence.hosts_failed, evidence.hosts_unreachable) == (3, 1, 1)
    assert (evidence.vms, evidence.vms_already, evidence.failures) == (3, 1, 2)
    assert (evidence.downtime_measured, evidence.downtime_median_ms, evidence.downtime_max_ms) == (2, 27.0, 50.0)
    assert (evidence.over_budget, evidence.health_regressions) == (1, 1)
    assert evidence.failure_rate_upper_bound == pytest.approx(upper_failure_bound(2, 3))


def test_roll_back_takes_what_moved_to_where_it_came_from() -> None:
    records = {
        "h1": host(vm("upgraded"), vm("upgraded", name="vm2", old_build_id="older"), vm("upgraded", name="vm3")),
        "h2": host(vm("already"), vm("rolled_back", name="vm2")),
    }

    assert rollback_targets(["h1", "h2", "h3"], records) == {
        "h1": [{"build_id": "old", "vms": ["vm1", "vm3"]}, {"build_id": "older", "vms": ["vm2"]}]
    }


def test_vms_that_changed_their_core_go_back_to_it() -> None:
    """A core that is the same before and after is none to go back to; one that is not known cannot be gone back to."""
    records = {
        "h1": host(
            vm("upgraded", kvm={"from": "core-a", "to": "core-b"}),
            vm("upgraded", name="vm2", kvm={"from": "core-b", "to": "core-b"}),
            vm("upgraded", name="vm3", kvm=None),
            vm("upgraded", name="vm4", kvm={"from": None, "to": "core-b"}),
            vm("upgraded", name="vm5", kvm={"from": "core-a", "to": "core-b"}),
        )
    }

    assert rollback_targets(["h1"], records) == {
        "h1": [
            {"build_id": "old", "kvm_build_id": "core-a", "vms": ["vm1", "vm5"]},
            {"build_id": "old", "vms": ["vm2", "vm3"]},
            {"build_id": "old", "kvm_build_id": None, "vms": ["vm4"]},
        ]
    }


def test_loaded_cores_are_those_of_hosts_that_can_be_reached() -> None:
    loaded = {"kvm": {"loaded": ["core-b"]}}
    records = {
        "h1": {**host(outcome="failed"), **loaded},
        "h2": {**host(outcome="unreachable"), **loaded},
        "h3": {**host(), "kvm": {"loaded": []}},
        "h4": host(),
    }

    assert loaded_cores(["h1", "h2", "h3", "h4", "h5"], records) == {"h1": ["core-b"]}
