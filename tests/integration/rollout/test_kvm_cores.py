# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rollouts that move VMs to another KVM core: the order of things, run by the real ansible-playbook over scripted hosts."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from .conftest import CORE_NEW, CORE_OLD, NEW, OLD, Finished, Fleet
from .test_control_flow import UNREACHABLE, valid

NOTHING = {"previous_default": None, "loaded": [], "default": None, "unloaded": [], "kept": []}


def upgrade(fleet: Fleet, *arguments: str, **variables: Any) -> Finished:
    """Run the upgrade to the new core and, unless said otherwise, the new build."""
    return fleet.upgrade(*arguments, **{"upgrade_kvm_build": CORE_NEW, **variables})


def kvm_of_hosts(report: dict[str, Any]) -> dict[str, Any]:
    """What a valid report tells of the cores of each host."""
    return {host["name"]: host["kvm"] for host in valid(report)["hosts"]}


def core_calls(fleet: Fleet, name: str) -> list[str]:
    """What changed the cores of a host or was about VMs, in order."""
    return [call for call in fleet.host(name)["calls"] if call.startswith(("core", "preflight", "finish", "default"))]


def by_what_right(fleet: Fleet, name: str) -> dict[str, set[bool]]:
    """For each module that changes a host, whether it showed the lease of the last run."""
    token = next(event["token"] for event in reversed(fleet.journal()) if "token" in event)
    return {module: {shown == token for shown in tokens} for module, tokens in fleet.host(name)["leases"].items()}


BY_LEASE = {"artifact_default": {True}, "kvm_core": {True}, "vm_upgrade": {True}}


def test_load_move_judge_then_default_and_unload(fleet: Fleet) -> None:
    for name in ("h1", "h2", "h3"):
        fleet.add_thin_host(name, {"vm1": {}, "vm2": {}})

    first = upgrade(fleet, upgrade_waves=[1, "100%"])

    assert first.exit_status == 0, first.output
    for name in fleet.inventory:
        assert fleet.builds(name) == {"vm1": NEW, "vm2": NEW}
        assert fleet.cores(name) == ({"vm1": CORE_NEW, "vm2": CORE_NEW}, {CORE_NEW: True})
        assert core_calls(fleet, name) == [
            f"core present {CORE_NEW}",
            "preflight",
            "finish",
            "default",
            f"core default {CORE_NEW}",
            f"core absent {CORE_OLD}",
        ]
        assert by_what_right(fleet, name) == BY_LEASE
    judged = first.output.index("[wave 0] gate PASS")
    assert first.output.index("[wave 0] h1: ok") < judged < first.output.index("[wave 0] h1: KVM cores ok")
    report = valid(fleet.report())
    assert (report["verdict"], report["kvm_build"]) == ("ok", CORE_NEW)
    done = {**NOTHING, "previous_default": CORE_OLD, "loaded": [CORE_NEW], "default": CORE_NEW, "unloaded": [CORE_OLD]}
    assert kvm_of_hosts(report) == dict.fromkeys(fleet.inventory, done)
    assert {tuple(vm["kvm"].items()) for vm in report["vms"]} == {(("from", CORE_OLD), ("to", CORE_NEW))}
    assert f"KVM on h1: {CORE_NEW} loaded; {CORE_NEW} made the default; {CORE_OLD} unloaded" in first.output

    second = upgrade(fleet, upgrade_waves=[1, "100%"])

    assert second.exit_status == 0, second.output
    assert set(re.findall(r"changed=(\d+)", second.output)) == {"0"}
    assert valid(fleet.report())["summary"]["outcomes"] == {"already": 6}


def test_kvm_alone_is_the_build_that_the_vms_run_already(fleet: Fleet) -> None:
    fleet.add_thin_host("h1")

    run = upgrade(fleet, upgrade_build=OLD)

    assert run.exit_status == 0, run.output
    assert (fleet.builds("h1"), fleet.cores("h1")) == ({"vm1": OLD}, ({"vm1": CORE_NEW}, {CORE_NEW: True}))
    (vm,) = valid(fleet.report())["vms"]
    assert (vm["outcome"], vm["old_build_id"], vm["new_build_id"]) == ("upgraded", OLD, OLD)


def test_without_a_kvm_build_no_core_is_looked_at(fleet: Fleet) -> None:
    fleet.add_thin_host("h1")

    run = fleet.upgrade()

    assert run.exit_status == 0, run.output
    assert not [call for call in fleet.host("h1")["calls"] if call.startswith(("core", "kvm"))]
    assert fleet.cores("h1") == ({"vm1": CORE_OLD}, {CORE_OLD: True})
    report = valid(fleet.report())
    assert (report["kvm_build"], report["hosts"][0]["kvm"]) == (None, None)
    assert not re.search("KVM on|old KVM", run.output)

    back = fleet.run("rollback")
    assert back.exit_status == 0, back.output
    assert not [call for call in fleet.host("h1")["calls"] if call.startswith(("core", "kvm"))]


def test_a_sick_vm_takes_its_wave_back_and_the_new_core_is_unloaded(fleet: Fleet) -> None:
    fleet.add_thin_host("h1")
    fleet.add_thin_host("h2", {"vm1": {"sick_on": [CORE_NEW]}})
    fleet.add_thin_host("h3")

    run = upgrade(fleet, upgrade_waves=[2, "100%"])

    assert run.exit_status == 2, run.output
    for name in fleet.inventory:
        assert (fleet.builds(name), fleet.cores(name)) == ({"vm1": OLD}, ({"vm1": CORE_OLD}, {CORE_OLD: True}))
    assert f"core default {CORE_NEW}" not in core_calls(fleet, "h1"), "a core is no default before the gate"
    assert (by_what_right(fleet, "h1"), by_what_right(fleet, "h2")) == (BY_LEASE, BY_LEASE)
    assert "calls" not in fleet.host("h3")
    report = valid(fleet.report())
    assert "h2/vm1: less healthy than before" in report["exit_reason"]
    undone = {**NOTHING, "loaded": [CORE_NEW], "unloaded": [CORE_NEW]}
    assert kvm_of_hosts(report) == {"h1": undone, "h2": undone, "h3": None}
    assert {vm["rollback"]["kvm"]["to"] for vm in report["vms"]} == {CORE_OLD}


def test_a_host_refused_by_preflight_has_the_core_unloaded_again(fleet: Fleet) -> None:
    fleet.add_thin_host("h1", {"vm1": {"refuse": "its RAM is private"}})
    fleet.add_thin_host("h2")

    run = upgrade(fleet, upgrade_waves=[2])

    assert run.exit_status == 2, run.output
    assert fleet.cores("h1") == fleet.cores("h2") == ({"vm1": CORE_OLD}, {CORE_OLD: True})
    report = valid(fleet.report())
    undone = {**NOTHING, "loaded": [CORE_NEW], "unloaded": [CORE_NEW]}
    assert kvm_of_hosts(report) == {"h1": undone, "h2": undone}
    assert [vm["kvm"] for vm in report["vms"] if vm["host"] == "h1"] == [{"from": CORE_OLD, "to": CORE_OLD}]


@pytest.mark.parametrize("sick", [True, False], ids=["fails", "passes"])
def test_a_rollout_goes_on_with_the_core_that_a_killed_one_loaded(fleet: Fleet, sick: bool) -> None:
    fleet.add_thin_host("h1", {"vm1": {"sick_on": [CORE_NEW]} if sick else {}})
    kill_once_the_core_is_loaded(fleet)
    assert fleet.cores("h1") == ({"vm1": CORE_OLD}, {CORE_OLD: True, CORE_NEW: False})

    run = upgrade(fleet)

    report = valid(fleet.report())
    assert kvm_of_hosts(report)["h1"]["loaded"] == [CORE_NEW], run.output
    if sick:
        assert run.exit_status == 2, run.output
        assert fleet.cores("h1") == ({"vm1": CORE_OLD}, {CORE_OLD: True})
        assert kvm_of_hosts(report)["h1"]["unloaded"] == [CORE_NEW]
    else:
        assert run.exit_status == 0, run.output
        assert fleet.cores("h1") == ({"vm1": CORE_NEW}, {CORE_NEW: True})
    assert fleet.host("h1")["trials"] == []


@pytest.mark.parametrize(
    ("vms", "default", "loaded"),
    [
        ({"vm1": CORE_NEW, "vm2": CORE_OLD}, CORE_OLD, {CORE_OLD, CORE_NEW}),
        ({"vm1": CORE_NEW, "vm2": CORE_NEW}, CORE_OLD, {CORE_OLD, CORE_NEW}),
        ({"vm1": CORE_NEW, "vm2": CORE_NEW}, CORE_NEW, {CORE_OLD, CORE_NEW}),
        ({"vm1": CORE_OLD, "vm2": CORE_OLD}, CORE_OLD, {CORE_OLD}),
    ],
    ids="amid-the-vms before-the-default before-the-unloading reset-before-the-default".split(),
)
def test_the_same_command_heals_what_was_cut_off(
    fleet: Fleet, vms: dict[str, str], default: str, loaded: set[str]
) -> None:
    """Whatever a run that was killed, or a host that was reset, has left between the loading of the new and the unloading of
    the old core."""
    fleet.add_thin_host("h1", {name: {"kvm": core} for name, core in vms.items()})
    trials = [CORE_NEW] if loaded == {CORE_OLD, CORE_NEW} and default == CORE_OLD else []
    fleet.set("h1", cores={core: core == default for core in sorted(loaded)}, trials=trials)

    run = upgrade(fleet)

    assert run.exit_status == 0, run.output
    assert fleet.cores("h1") == (dict.fromkeys(vms, CORE_NEW), {CORE_NEW: True})
    assert fleet.host("h1")["trials"] == []


def kill_once_the_core_is_loaded(fleet: Fleet) -> None:
    """Run an upgrade of h1 that is killed before it has written down what it did there."""
    fifo = fleet.root / "fifo"
    os.mkfifo(fifo)
    fleet.set("h1", wait_on=str(fifo))
    killed = fleet.start("upgrade", upgrade_build=NEW, upgrade_kvm_build=CORE_NEW)
    with open(fifo, "wb"):  # once a module of the host has opened it, too
        fleet.kill(killed)
    fleet.set("h1", wait_on=None, begun=None)
    (journal,) = (fleet.root / "build/results/rollouts").glob("*.jsonl")
    assert [json.loads(line)["event"] for line in journal.read_text().splitlines()] == ["begin", "started", "looked"]


def test_a_core_that_was_there_before_is_left_by_a_wave_that_fails(fleet: Fleet) -> None:
    fleet.add_thin_host("h1", {"vm1": {"sick_on": [CORE_NEW]}})
    fleet.set("h1", cores={CORE_OLD: True, CORE_NEW: False})

    run = upgrade(fleet)

    assert run.exit_status == 2, run.output
    assert fleet.cores("h1") == ({"vm1": CORE_OLD}, {CORE_OLD: True, CORE_NEW: False})


def test_without_automatic_roll_back_the_vms_stay_on_the_new_core(fleet: Fleet) -> None:
    fleet.add_thin_host("h1", {"vm1": {}, "vm2": {"outcome": "rolled_back"}})

    run = upgrade(fleet, upgrade_rollback="never")

    assert run.exit_status == 2, run.output
    assert fleet.cores("h1") == ({"vm1": CORE_NEW, "vm2": CORE_OLD}, {CORE_OLD: True, CORE_NEW: False})
    assert kvm_of_hosts(fleet.report())["h1"]["kept"] == [{"core": CORE_NEW, "reason": "in use by vm1"}]


def test_an_old_core_that_is_held_stays_and_is_told(fleet: Fleet) -> None:
    fleet.add_thin_host("h1")
    fleet.set("h1", held={CORE_OLD: "process 7 has /dev/kvm-aaaaaaaaaaaaaaaa open"})

    run = upgrade(fleet)

    assert run.exit_status == 0, run.output
    assert fleet.cores("h1") == ({"vm1": CORE_NEW}, {CORE_OLD: False, CORE_NEW: True})
    report = valid(fleet.report())
    assert report["verdict"] == "ok"
    kvm = kvm_of_hosts(report)["h1"]
    assert (kvm["default"], kvm["unloaded"]) == (CORE_NEW, [])
    assert kvm["kept"] == [{"core": CORE_OLD, "reason": "process 7 has /dev/kvm-aaaaaaaaaaaaaaaa open"}]


@pytest.mark.parametrize("obstacle", ["no_load", "no_default"])
def test_a_core_that_cannot_be_loaded_or_chosen_stops_the_rollout(fleet: Fleet, obstacle: str) -> None:
    fleet.add_thin_host("h1")
    fleet.add_thin_host("h2")
    fleet.set("h1", **{obstacle: "the kernel refuses it"})

    run = upgrade(fleet, upgrade_waves=[1])

    assert run.exit_status == 2, run.output
    report = valid(fleet.report())
    assert report["verdict"] == "failed"
    assert "the kernel refuses it" in report["exit_reason"]
    assert [host["outcome"] for host in report["hosts"]][1] == "not_attempted"
    assert "calls" not in fleet.host("h2")
    vm_core = CORE_OLD if obstacle == "no_load" else CORE_NEW
    assert fleet.cores("h1")[0] == {"vm1": vm_core}
    assert fleet.cores("h1")[1][CORE_OLD], "the default is what it was"

    fleet.set("h1", **{obstacle: None})
    again = upgrade(fleet, upgrade_waves=[1])
    assert again.exit_status == 0, again.output
    assert fleet.cores("h1") == fleet.cores("h2") == ({"vm1": CORE_NEW}, {CORE_NEW: True})


def test_a_host_that_cannot_be_reached_keeps_nobody_from_going_back(fleet: Fleet, closed_port: int) -> None:
    fleet.add_thin_host("h1", **{**UNREACHABLE, "ansible_port": closed_port})
    fleet.add_thin_host("h2")

    run = upgrade(fleet, upgrade_waves=[2])

    assert run.exit_status == 2, run.output
    report = valid(fleet.report())
    assert [host["outcome"] for host in report["hosts"]] == ["unreachable", "ok"]
    assert fleet.cores("h2") == ({"vm1": CORE_OLD}, {CORE_OLD: True})


@pytest.mark.parametrize("build", [NEW, OLD], ids=["both", "kvm-alone"])
def test_check_mode_tells_the_core_to_be_loaded_and_touches_nothing(fleet: Fleet, build: str) -> None:
    fleet.add_thin_host("h1")

    run = upgrade(fleet, "--check", "--diff", upgrade_build=build)

    assert run.exit_status == 0, run.output
    assert fleet.cores("h1") == ({"vm1": CORE_OLD}, {CORE_OLD: True})
    report = valid(fleet.report("upgrade.plan.json"))
    assert report["summary"]["outcomes"] == {"planned": 1}
    assert report["hosts"][0]["kvm"] == {**NOTHING, "loaded": [CORE_NEW]}
    assert report["vms"][0]["kvm"] == {"from": CORE_OLD, "to": CORE_NEW}
    assert f"KVM on h1: {CORE_NEW} to be loaded" in run.output
    assert report["vms"][0]["warnings"] == [f"the core of {CORE_NEW} is not loaded"]
    assert f"note on h1/vm1: the core of {CORE_NEW} is not loaded" in run.output


def test_roll_back_goes_to_the_core_before_which_is_loaded_again(fleet: Fleet) -> None:
    fleet.add_thin_host("h1", {"vm1": {}, "vm2": {"build": NEW}})
    fleet.add_thin_host("h2")
    assert upgrade(fleet).exit_status == 0

    first = fleet.run("rollback", rollback_hosts="h1")

    assert first.exit_status == 0, first.output
    assert fleet.builds("h1") == {"vm1": OLD, "vm2": NEW}
    assert fleet.cores("h1") == ({"vm1": CORE_OLD, "vm2": CORE_OLD}, {CORE_OLD: True})
    assert fleet.cores("h2") == ({"vm1": CORE_NEW}, {CORE_NEW: True})
    report = valid(fleet.report("rollback.json"))
    assert kvm_of_hosts(report)["h1"] == {
        **NOTHING,
        "previous_default": CORE_NEW,
        "loaded": [CORE_OLD],
        "default": CORE_OLD,
        "unloaded": [CORE_NEW],
    }

    second = fleet.run("rollback", rollback_hosts="h1")
    assert second.exit_status == 0, second.output
    assert set(re.findall(r"changed=(\d+)", second.output)) == {"0"}


def test_roll_back_of_one_vm_leaves_the_core_that_the_others_are_on(fleet: Fleet) -> None:
    fleet.add_thin_host("h1", {"vm1": {}, "vm2": {}})
    assert upgrade(fleet).exit_status == 0

    run = fleet.run("rollback", rollback_vms=["vm2"])

    assert run.exit_status == 0, run.output
    assert fleet.cores("h1") == ({"vm1": CORE_NEW, "vm2": CORE_OLD}, {CORE_NEW: True, CORE_OLD: False})


def test_roll_back_to_a_named_core(fleet: Fleet) -> None:
    fleet.add_thin_host("h1", {"vm1": {"build": NEW, "kvm": CORE_NEW}})
    fleet.set("h1", cores={CORE_NEW: True})

    run = fleet.run("rollback", rollback_build=OLD, rollback_kvm_build=CORE_OLD)

    assert run.exit_status == 0, run.output
    assert (fleet.builds("h1"), fleet.cores("h1")) == ({"vm1": OLD}, ({"vm1": CORE_OLD}, {CORE_OLD: True}))


def test_roll_back_to_a_foreign_kvm_is_refused(fleet: Fleet) -> None:
    fleet.add_thin_host("h1", {"vm1": {"kvm": None}})
    assert upgrade(fleet).exit_status == 0

    run = fleet.run("rollback")

    assert run.exit_status == 2, run.output
    assert "vm1 came from a KVM that is not one of our builds" in fleet.report("rollback.json")["exit_reason"]
    assert fleet.cores("h1")[0] == {"vm1": CORE_NEW}


@pytest.mark.parametrize(
    ("playbook", "variables", "said"),
    [
        (
            "upgrade",
            {"upgrade_build": NEW, "upgrade_kvm_build": "qemu-11.1.1-1111111111111111"},
            "upgrade_kvm_build is",
        ),
        ("upgrade", {"upgrade_build": NEW, "upgrade_kvm_build": f"{CORE_NEW}/../x"}, "upgrade_kvm_build is"),
        ("upgrade", {"upgrade_kvm_build": CORE_NEW}, "upgrade_build"),
        ("rollback", {"rollback_build": OLD, "rollback_kvm_build": "kvm-6.12-xyz"}, "rollback_kvm_build is"),
        ("rollback", {"rollback_kvm_build": CORE_OLD}, "needs rollback_build, too"),
    ],
    ids="qemu path no-build short alone".split(),
)
def test_requests_that_name_no_core_touch_nothing(
    fleet: Fleet, playbook: str, variables: dict[str, Any], said: str
) -> None:
    fleet.add_thin_host("h1")

    run = fleet.run(playbook, **variables)

    assert run.exit_status == 2, run.output
    assert said in run.output
    assert "othing was touched" in " ".join(run.output.split())
    assert "calls" not in fleet.host("h1")
    assert fleet.locks() == []


def test_the_status_shows_the_cores_and_who_runs_on_them(fleet: Fleet) -> None:
    fleet.add_thin_host("h1", {"vm1": {}, "vm2": {"kvm": CORE_NEW}, "vm3": {}})
    fleet.set("h1", cores={CORE_OLD: True, CORE_NEW: False})
    fleet.add_host("h2")
    fleet.set("h2", cores={})

    run = fleet.run("status")

    assert run.exit_status == 0, run.output
    rows = [line.strip('", ').split() for line in run.output.splitlines() if "kvm-6.12" in line]
    assert rows == [["h1", CORE_OLD, "yes", "vm1,", "vm3"], ["h1", CORE_NEW, "no", "vm2"]]
