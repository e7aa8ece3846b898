# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a rollout: waves within failure domains, what is left out, the hash, and what has changed."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Verdict
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan import (
    differences,
    load_plan,
    make_plan,
    no_way_back,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan_facts import Settings, read_host
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan_render import render_plan
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.windows import is_open, read_windows

OLD, NEW = "qemu-10.2.2-0000000000000000", "qemu-11.1.1-1111111111111111"
SCHEMA = json.loads((Path(__file__).resolve().parents[3] / "docs" / "plan.schema.json").read_text())


def verdict(name: str, **changes: Any) -> dict[str, Any]:
    """Return preflight's verdict on a VM that can be moved."""
    return {
        "name": name,
        "verdict": "go",
        "mechanism": "vfork",
        "mechanism_reason": "both builds have it",
        "refusals": [],
        "warnings": [],
        "backward": {"compatible": True},
        "old_build_id": OLD,
        "kvm_build_id_before": None,
        **changes,
    }


def fleet(count: int, **of_all: Any) -> dict[str, dict[str, Any]]:
    """Return hosts h0, h1, … with one VM each, in racks of four."""
    return {
        f"h{n}": {"preflight_result": {"vms": [verdict(f"vm{n}")]}, "rack": f"r{n // 4}", **of_all}
        for n in range(count)
    }


def plan_of(hosts: dict[str, dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """Return the plan for ``hosts``, held against its schema."""
    asked = Settings(build=NEW, **settings)
    plan = make_plan(asked, [read_host(name, variables, asked) for name, variables in hosts.items()])
    jsonschema.validate(plan, SCHEMA)
    return plan


def waves(plan: dict[str, Any]) -> list[list[str]]:
    return [wave["hosts"] for wave in plan["waves"]]


def test_waves_grow_and_no_wave_holds_more_of_a_rack_than_its_share() -> None:
    plan = plan_of(fleet(16), sizes=[1, 2, "50%"], domains={"rack": "25%"})

    assert [len(wave) for wave in waves(plan)] == [1, 2, 4, 4, 4, 1]
    assert sorted(name for wave in waves(plan) for name in wave) == sorted(fleet(16))
    for wave in plan["waves"]:
        assert all(item["n"] <= item["limit"] == 1 and item["of"] == 4 for item in wave["domains"]["rack"].values())


def test_without_domains_a_wave_may_hold_a_whole_rack() -> None:
    """The control of the one above: it is the domains that spread the hosts."""
    assert waves(plan_of(fleet(8), sizes=[4])) == [["h0", "h1", "h2", "h3"], ["h4", "h5", "h6", "h7"]]


def test_domains_of_vms_are_counted_by_vm() -> None:
    hosts = fleet(4)
    for n, name in enumerate(hosts):
        hosts[name]["vm_ha"] = {f"vm{n}": "db", "elsewhere": "db"}

    plan = plan_of(hosts, sizes=["100%"], domains={"vm_ha": "50%"})

    assert waves(plan) == [["h0", "h1"], ["h2", "h3"]]
    assert plan["waves"][0]["domains"]["vm_ha"] == {"db": {"n": 2, "of": 4, "limit": 2}}


def test_a_host_that_alone_holds_too_much_of_a_domain_is_left_out() -> None:
    hosts = fleet(2)
    hosts["h0"]["preflight_result"]["vms"].append(verdict("vm9"))
    hosts["h0"]["vm_ha"] = {"vm0": "db", "vm9": "db"}
    hosts["h1"]["vm_ha"] = {"vm1": "db"}

    plan = plan_of(hosts, domains={"vm_ha": 1})

    assert waves(plan) == [["h1"]]
    assert plan["excluded"][0]["why"] == "it alone holds vm_ha db: 2 of its 3, where a wave may hold 1"


def test_a_thousand_hosts_are_planned_in_as_few_waves_as_their_racks_allow() -> None:
    hosts = {name: {**v, "rack": f"r{n % 40}"} for n, (name, v) in enumerate(fleet(1000).items())}

    plan = plan_of(hosts, sizes=[1, "10%", "50%"], domains={"rack": "20%"})

    assert (
        max(len(wave) for wave in waves(plan)) == 200
    ), "5 of each of 40 racks, though half of the fleet was asked for"
    assert len(waves(plan)) == 7
    assert sum(map(len, waves(plan))) == 1000


def test_the_canary_shows_most_domains_and_classes() -> None:
    hosts = fleet(6)
    hosts["h0"]["preflight_result"] = {"vms": []}
    hosts["h5"]["vm_classes"] = {"vm5": "realtime"}

    plan = plan_of(hosts, sizes=[2, "100%"], pause_budgets_ms={"realtime": 20}, downtime_budget_ms=200)

    assert waves(plan)[0] == ["h1", "h5"], "a host without a VM is no canary, and the class comes before the order"
    assert {vm["name"]: vm["budget_ms"] for vm in plan["vms"]}["vm5"] == 20
    assert {vm["name"]: vm["budget_ms"] for vm in plan["vms"]}["vm1"] == 200


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"upgrade_excluded": "waits for a disk"}, "waits for a disk"),
        ({"preflight_result": {"unreachable": True, "msg": "no route"}}, "unreachable"),
        ({"preflight_result": {}, "preflight_error": "not staged"}, "it gave no verdict on its VMs"),
        (
            {
                "preflight_result": {
                    "vms": [
                        verdict(
                            "vm0", verdict="refuse", refusals=[{"code": "ram-private", "message": "m", "action": "a"}]
                        )
                    ]
                }
            },
            "preflight refuses vm0 [ram-private]",
        ),
    ],
    ids=["excluded", "unreachable", "no-answer", "refused"],
)
def test_what_cannot_be_upgraded_is_left_out_with_the_reason(variables: dict[str, Any], why: str) -> None:
    hosts = fleet(2)
    hosts["h0"].update(variables)

    plan = plan_of(hosts)

    assert waves(plan) == [["h1"]]
    assert [(item["host"], item["why"]) for item in plan["excluded"]] == [("h0", why)]
    assert why in render_plan(plan)


@pytest.mark.parametrize(
    ("changes", "kvm_build", "reason"),
    [
        ({"old_build_id": None}, None, "not one of our builds"),
        ({"warnings": [{"code": "old-build-not-staged", "message": "it is gone", "action": ""}]}, None, "it is gone"),
        ({"backward": {"compatible": False}}, None, "would not load"),
        ({}, "kvm-6.12.95-bbbbbbbbbbbbbbbb", "a KVM that is not one of our builds"),
    ],
)
def test_what_could_not_go_back_is_known(changes: dict[str, Any], kvm_build: str | None, reason: str) -> None:
    hosts = fleet(1)
    hosts["h0"]["preflight_result"]["vms"][0].update(changes)

    plan = plan_of(hosts, kvm_build=kvm_build)

    (stuck,) = no_way_back(plan)
    assert stuck.startswith("h0/vm0: ") and reason in stuck
    assert stuck in render_plan(plan)


def test_a_vm_that_can_go_back_needs_no_approval_of_its_own() -> None:
    assert no_way_back(plan_of(fleet(2))) == []


def test_the_hash_is_of_the_fleet_and_not_of_the_moment() -> None:
    one, two = fleet(3), fleet(3)
    refusal = {"code": "memory-low", "action": "free some"}
    for hosts, free in ((one, 17), (two, 18)):
        hosts["h2"]["preflight_result"]["vms"][0].update(
            verdict="refuse", refusals=[{**refusal, "message": f"{free} MiB are free"}]
        )

    first, second = plan_of(one), plan_of(two)

    assert first["hash"] == second["hash"]
    assert differences(first, second) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda h: h.update(h9=fleet(10)["h9"]), ["h9 is new", "VM h9/vm9 is new"]),
        (lambda h: h.pop("h1"), ["h1 is gone", "VM h1/vm1 is gone"]),
        (lambda h: h["h1"]["preflight_result"]["vms"].append(verdict("new")), ["VM h1/new is new"]),
        (
            lambda h: h["h1"]["preflight_result"]["vms"][0].update(old_build_id="qemu-9.9.9-2222222222222222"),
            [f"VM h1/vm1: old_build was {OLD}, is qemu-9.9.9-2222222222222222"],
        ),
        (lambda h: h["h1"].update(ansible_host="192.0.2.7"), ["h1: address was h1:22, is 192.0.2.7:22"]),
        (lambda h: h["h1"].update(rack="r7"), ["h1: domains was"]),
        (lambda h: h["h1"].update(upgrade_excluded="no"), ["left out: h1 is new"]),
    ],
    ids=["host-new", "host-gone", "vm-new", "build", "address", "rack", "excluded"],
)
def test_a_changed_fleet_is_another_plan_and_the_difference_is_told(change: Any, told: list[str]) -> None:
    hosts = fleet(3)
    before = plan_of(hosts, domains={"rack": "50%"})
    change(hosts)

    now = plan_of(hosts, domains={"rack": "50%"})

    assert before["hash"] != now["hash"]
    found = "; ".join(differences(before, now))
    assert all(words in found for words in told), found


def test_a_plan_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = plan_of(fleet(3))
    path.write_text(json.dumps(plan))
    assert load_plan(path) == plan

    plan["waves"][0]["hosts"], plan["waves"][1]["hosts"] = plan["waves"][1]["hosts"], plan["waves"][0]["hosts"]
    path.write_text(json.dumps(plan))
    with pytest.raises(AnsibleError, match="was changed after it was made"):
        load_plan(path)
    for content in ("[]", "{", '{"schema": 7}'):
        path.write_text(content)
        with pytest.raises(AnsibleError, match="is not a plan"):
            load_plan(path)


@pytest.mark.parametrize(
    ("variables", "settings", "words"),
    [
        ({}, {"domains": {"rack": "0%"}}, "the share of rack is '0%'"),
        ({}, {"domains": {"rack": "some"}}, "the share of rack"),
        ({}, {"domains": {"rac": 1}}, "no host has such a variable"),
        ({"rack": 1.5}, {"domains": {"rack": 1}}, "a failure domain is"),
        ({}, {"exclude": {"h77": "why"}}, "upgrade_exclude names h77"),
        ({}, {"sizes": []}, "upgrade_waves is empty"),
        ({"vm_classes": {"vm0": "x"}}, {"pause_budgets_ms": {"y": 1}}, "no budget for class 'x'"),
        ({"vm_classes": "x"}, {}, "must map names of VMs"),
        ({"upgrade_windows": "night"}, {}, "must be a list"),
        ({"upgrade_windows": [{"start": "22:00"}]}, {}, "end is None"),
        ({"upgrade_windows": [{"start": 1320, "end": "04:00"}]}, {}, "start is 1320"),
        ({"upgrade_windows": [{"start": "22:00", "end": "04:00", "days": ["so"]}]}, {}, "days are"),
        (
            {"upgrade_windows": [{"start": "22:00", "end": "04:00", "timezone": "Mars/Base"}]},
            {},
            "timezone 'Mars/Base'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(variables: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AnsibleError, match=words):
        plan_of(fleet(2, **variables), **settings)


def test_hosts_with_other_windows_are_in_other_waves() -> None:
    hosts = fleet(4)
    hosts["h0"]["upgrade_windows"] = [{"start": "22:00", "end": "04:00"}]
    hosts["h1"]["upgrade_windows"] = [{"start": "10:00", "end": "12:00"}]

    assert waves(plan_of(hosts, sizes=["100%"])) == [["h0", "h2", "h3"], ["h1"]]


@pytest.mark.parametrize(
    ("at", "is_in"),
    [
        ("2026-11-28T22:00", True),  # a Saturday
        ("2026-11-28T21:59", False),
        ("2026-11-29T03:59", True),  # the night that began on Saturday
        ("2026-11-29T04:00", False),
        ("2026-11-28T03:00", False),  # a night that began on Friday
    ],
)
def test_a_window_over_midnight_is_of_the_day_it_begins_on(at: str, is_in: bool) -> None:
    windows = read_windows([{"days": ["sat"], "start": "22:00", "end": "04:00"}], "h1")

    assert is_open(windows, datetime.datetime.fromisoformat(f"{at}+00:00")) is is_in


def test_a_window_is_in_its_time_zone() -> None:
    windows = read_windows([{"start": "10:00", "end": "11:00", "timezone": "Asia/Tokyo"}], "h1")

    assert is_open(windows, datetime.datetime(2026, 11, 26, 1, 30, tzinfo=datetime.timezone.utc))
    assert not is_open(windows, datetime.datetime(2026, 11, 26, 10, 30, tzinfo=datetime.timezone.utc))
    assert is_open([], datetime.datetime.now(datetime.timezone.utc))


def test_it_reads_what_preflight_really_says() -> None:
    real = Verdict(name="vm0", pid=7, old_build_id=OLD, new_build_id=NEW, mechanism="vfork", mechanism_reason="m")
    real.warn("old-build-not-staged", "its build is not staged")
    refused = Verdict(name="vm1", pid=8, old_build_id=OLD, new_build_id=NEW)
    refused.refuse("ram-private", "its RAM is private")
    hosts = {
        "h0": {"preflight_result": {"vms": [real.to_dict()]}},
        "h1": {"preflight_result": {"vms": [refused.to_dict()]}},
    }

    plan = plan_of(hosts)

    assert (waves(plan), no_way_back(plan)) == ([["h0"]], ["h0/vm0: its build is not staged"])
    assert plan["excluded"][0]["detail"] == "vm1: its RAM is private"
