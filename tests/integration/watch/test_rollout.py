# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole rollout over a real sshd, watched: scripted upgrades, with real QEMUs behind the monitors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import NO_WATCHER
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory
from ansible_collections.vmm.live_upgrade.tests.integration.rollout.conftest import NEW, OLD, Fleet
from ansible_collections.vmm.live_upgrade.tests.integration.rollout.test_control_flow import valid
from ansible_collections.vmm.live_upgrade.tests.integration.watch.panicking_vm import PanickingVm
from ansible_collections.vmm.live_upgrade.tests.integration.watch.running_watcher import await_that, is_running
from ansible_collections.vmm.live_upgrade.tests.integration.watch.sshd import Sshd

SOAK_S = 30
LONG_SOAK_S = 3600  # much longer than a test may take


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Yield an empty fleet."""
    # Apart from sshd and QEMUs, which are no strays of a run.
    made = Fleet(tmp_path / "fleet")
    yield made
    made.kill_strays()


@pytest.fixture
def vm(start_qemu: QemuFactory, tmp_path: Path) -> PanickingVm:
    """Return a VM that can crash."""
    return PanickingVm(start_qemu, tmp_path)


def add_host(fleet: Fleet, sshd: Sshd, name: str, vms: dict[str, dict[str, Any]]) -> None:
    """Add a host that Ansible reaches by way of ``sshd``, with settings that its own configuration has no part in."""
    trust = f"-o UserKnownHostsFile={sshd.known_hosts} -o GlobalKnownHostsFile=none -o StrictHostKeyChecking=yes"
    fleet.add_host(
        name,
        vms,
        ansible_connection="ssh",
        ansible_host="127.0.0.1",
        ansible_port=sshd.port,
        ansible_user=sshd.user,
        ansible_ssh_private_key_file=str(sshd.key),
        ansible_ssh_args="-F none -o ControlMaster=no -o IdentitiesOnly=yes",
        ansible_ssh_common_args=trust,
        ansible_pipelining=True,
    )


def watched(fleet: Fleet) -> list[dict[str, Any]]:
    """Return what the watcher of the last rollout wrote down."""
    files = sorted((fleet.root / "build" / "results" / "rollouts").glob("*.watch"))
    return [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []


def await_record(fleet: Fleet, process: subprocess.Popen[str], count: int = 1, **fields: Any) -> None:
    """Wait until the rollout or its watcher wrote down so many such records."""

    def is_there() -> bool:
        assert process.poll() is None, process.communicate()
        folder = fleet.root / "build" / "results" / "rollouts"
        records = [*(fleet.journal() if list(folder.glob("*.jsonl")) else []), *watched(fleet)]
        found = [record for record in records if all(record.get(key) == value for key, value in fields.items())]
        return len(found) >= count

    await_that(is_there, lambda: f"no {fields}: {watched(fleet)}")


def assert_nothing_is_left(fleet: Fleet) -> None:
    """No process of the watcher, nor its socket."""
    for record in watched(fleet):
        assert record["event"] != "watching" or not is_running(record["pid"])
    assert list(fleet.state.rglob("*.watch")) == []


def test_a_guest_that_crashes_in_the_soak_ends_it_by_a_hard_stop(fleet: Fleet, sshd: Sshd, vm: PanickingVm) -> None:
    add_host(fleet, sshd, "h1", {"vm1": {"monitors": vm.monitors()}, "vm2": {"monitors": vm.monitors()[:1]}})
    add_host(fleet, sshd, "h2", {"vm1": {}})
    # Many more failures would be allowed.
    gate = {"soak_s": LONG_SOAK_S, "max_failure_rate": 0.99, "unit": "vm", "correlation": 0}
    run = fleet.start("upgrade", upgrade_build=NEW, upgrade_waves=[1], upgrade_gate=gate)
    await_record(fleet, run, event="monitor", state="watched")
    await_record(fleet, run, event="soaks")
    vm.panic()
    done = fleet.wait(run)

    assert done.exit_status == 2, done.output
    assert "GUEST_PANICKED" in done.output
    assert "[wave 0] soaks no longer: h1/vm1: the guest crashed" in done.output
    report = valid(fleet.report())
    gate = report["waves"][0]["gate"]
    assert (gate["verdict"], gate["then"]) == ("FAIL", "stop")
    (stop,) = [check for check in gate["checks"] if check["check"] == "hard_stop"]
    assert stop["text"] == "h1/vm1: the guest crashed"
    assert (fleet.builds("h1"), fleet.builds("h2")) == ({"vm1": OLD, "vm2": OLD}, {"vm1": OLD})
    assert (report["watch"]["watched"], report["watch"]["reason"]) == (True, None)
    (host,) = report["watch"]["hosts"]
    one, other = sorted(host["vms"], key=lambda seen: str(seen["name"]))
    assert "GUEST_PANICKED" in [event["name"] for event in one["events"]]
    assert (other["watched"], "one monitor, which the upgrade needs" in other["reason"]) == (False, True)
    assert "What the watcher saw" in (fleet.root / "build" / "results" / "upgrade.html").read_text()
    assert_nothing_is_left(fleet)


def test_a_connection_that_is_lost_in_the_soak_stops_nothing(fleet: Fleet, sshd: Sshd, vm: PanickingVm) -> None:
    add_host(fleet, sshd, "h1", {"vm1": {"monitors": vm.monitors()}})
    run = fleet.start("upgrade", upgrade_build=NEW, upgrade_gate={"soak_s": SOAK_S})
    await_record(fleet, run, event="monitor", state="watched")
    await_record(fleet, run, event="soaks")
    sshd.kill()
    await_record(fleet, run, event="lost")
    sshd.start()
    done = fleet.wait(run)

    assert done.exit_status == 0, done.output
    report = valid(fleet.report())
    (host,) = report["watch"]["hosts"]
    assert [bool(gap["end"]) for gap in host["gaps"]] == [True]
    (check,) = [check for check in report["waves"][0]["gate"]["checks"] if check["check"] == "watch"]
    assert (check["verdict"], "1 lost connection" in check["text"]) == ("PASS", True)
    assert fleet.builds("h1") == {"vm1": NEW}
    assert_nothing_is_left(fleet)


def test_a_controller_that_is_killed_leaves_no_watcher_and_the_next_run_has_its_own(
    fleet: Fleet, sshd: Sshd, vm: PanickingVm
) -> None:
    add_host(fleet, sshd, "h1", {"vm1": {"monitors": vm.monitors()}})
    run = fleet.start("upgrade", upgrade_build=NEW, upgrade_gate={"soak_s": SOAK_S})
    await_record(fleet, run, event="monitor", state="watched")
    await_record(fleet, run, event="soaks")
    (pid,) = [record["pid"] for record in watched(fleet) if record["event"] == "watching"]
    os.kill(run.pid, signal.SIGKILL)

    await_that(lambda: not is_running(pid), lambda: "the watcher outlives its rollout")
    fleet.kill(run)
    rollout = next((fleet.root / "build" / "results" / "rollouts").glob("*.jsonl")).stem
    done = fleet.run("upgrade", upgrade_resume=rollout)

    assert done.exit_status == 0, done.output
    report = valid(fleet.report())
    (host,) = report["watch"]["hosts"]
    (gap,) = host["gaps"]
    assert (gap["reason"], bool(gap["end"])) == (NO_WATCHER, True)
    assert [seen["watched"] for seen in host["vms"]] == [True]
    assert [record["reason"] for record in watched(fleet) if record["event"] == "ended"] == [
        "the rollout's process has ended",
        "the rollout has ended",
    ]
    assert report["watch"]["reason"] is None
    assert_nothing_is_left(fleet)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        pytest.param({}, "no host is reached by ssh", id="nothing-to-watch"),
        pytest.param({"upgrade_watch": "never"}, "upgrade_watch is never", id="not-wanted"),
    ],
)
def test_a_rollout_that_is_not_watched_says_so(fleet: Fleet, variables: dict[str, str], reason: str) -> None:
    fleet.add_host("h1")

    done = fleet.upgrade(**variables)

    assert done.exit_status == 0, done.output
    assert f"not watched: {reason}" in done.output
    assert valid(fleet.report())["watch"] == {"watched": False, "reason": reason, "hosts": []}


def test_a_rollout_that_has_to_be_watched_and_cannot_does_not_begin(fleet: Fleet) -> None:
    fleet.add_host("h1")

    done = fleet.upgrade(upgrade_watch="always")

    assert done.exit_status != 0
    assert "upgrade_watch is always, but no host is reached by ssh; nothing was touched" in done.output
    assert fleet.builds("h1") == {"vm1": OLD}
    assert fleet.locks() == []
