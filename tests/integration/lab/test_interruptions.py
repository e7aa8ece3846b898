# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections, hosts and other rollouts that come in between."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from .controller import Controller, host_outcomes, outcomes, verdicts
from .lab_hosts import Builds, LabHosts, builds_of
from .proxy import Proxy

BOOT_S = 300.0


def cut_connection(lab: LabHosts, host: str) -> None:
    """Kill the ssh process that all connections of this machine to ``host`` go through."""
    asked = subprocess.run(
        ["ssh", "-F", "/dev/null", "-O", "check", "-o", f"ControlPath={lab[host].access.control_path}", "127.0.0.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"pid=(\d+)", asked.stderr)
    assert found, f"no connection to {host} to cut: {asked.stderr}"
    os.kill(int(found[1]), signal.SIGKILL)


@contextmanager
def rollout_in_the_middle(
    lab: LabHosts, controller: Controller, builds: Builds
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A rollout over h1 whose engine, named by its pid, has moved the first VM and is stopped before the second."""
    with lab.at_step("h1", "h1-vm1", "begin", then="freeze_engine") as freeze:
        with lab.at_step("h1", "h1-vm1", "released", then="tell") as moved:
            running = controller.start("upgrade", upgrade_build=builds.new.build_id, upgrade_hosts="h1")
            engine = ""
            try:
                engine = freeze.wait()
                moved.wait()
                yield running, engine
            finally:
                if engine:
                    lab.sh("h1", f"kill -CONT {engine}", check=False)
                controller.end(running)


def test_a_cut_connection_costs_nothing_but_the_view(lab: LabHosts, controller: Controller, builds: Builds) -> None:
    before = lab.transactions("h1")
    with lab.at_step("h1", "h1-vm1", "spawned", then="tell") as spawned:
        running = controller.start("upgrade", upgrade_build=builds.new.build_id, upgrade_hosts="h1")
        try:
            spawned.wait()
            cut_connection(lab, "h1")
            run = controller.wait(running)
        finally:
            controller.end(running)

    assert run.exit_status == 0, run.output
    assert "h1: connection lost, trying again" in run.output
    report = controller.report()
    assert (report["verdict"], outcomes(report)) == ("ok", dict.fromkeys(lab.vms("h1"), "upgraded"))
    assert all(vm["downtime_ms"] for vm in report["vms"])
    assert builds_of(lab.prove(), *lab.vms("h1")) == {builds.new.build_id}
    assert len(set(lab.transactions("h1")) - set(before)) == 1, "it attached to the transaction that it had begun"


def test_a_killed_controller_is_followed_by_one_that_comes_to_the_same_end(
    lab: LabHosts, controller: Controller, builds: Builds
) -> None:
    before = lab.each(lambda host: lab.transactions(host.name))
    with lab.at_step("h2", "h2-vm1", "spawned", then="tell") as spawned:
        killed = controller.start("upgrade", upgrade_build=builds.new.build_id, upgrade_waves=[1])
        try:
            spawned.wait()
            os.killpg(killed.pid, signal.SIGKILL)
            killed.communicate()
        finally:
            controller.end(killed)
    (journal,) = (controller.folder / "build" / "results" / "rollouts").glob("*.jsonl")
    assert not controller.has_report()

    run = controller.run("upgrade", upgrade_resume=journal.stem)

    assert run.exit_status == 0, run.output
    report = controller.report()
    assert (report["rollout_id"], report["verdict"]) == (journal.stem, "ok")
    assert verdicts(report) == ["PASS"] * 3
    assert outcomes(report) == dict.fromkeys(lab.vms(), "upgraded")
    assert all(vm["downtime_ms"] for vm in report["vms"])
    assert builds_of(lab.prove()) == {builds.new.build_id}
    assert set(lab.each(lambda host: lab.default_build(host.name)).values()) == {builds.new.build_id}
    begun = {name: len(set(lab.transactions(name)) - set(known)) for name, known in before.items()}
    assert begun == dict.fromkeys(lab.names, 1), "no host did anything twice"


def test_a_host_that_is_cut_off_in_the_middle_fails_and_heals(
    lab: LabHosts, controller: Controller, builds: Builds
) -> None:
    access = lab["h2"].access
    way = Proxy(access.port)
    known = f"-o HostKeyAlias=[127.0.0.1]:{access.port} -o ControlPath={access.control_path}-{way.port}"
    controller.set_host(
        "h2",
        ansible_port=way.port,
        ansible_ssh_args=f"{known} {shlex.join(access.options())}",
        vmm_reconnect_timeout_s=10,
    )
    wanted = {"upgrade_build": builds.new.build_id, "upgrade_hosts": "h2,h3", "upgrade_waves": [1]}
    with lab.at_step("h2", "h2-vm1", "spawned", then="tell") as spawned:
        running = controller.start("upgrade", **wanted)
        try:
            spawned.wait()
            way.cut()
            run = controller.wait(running)
        finally:
            controller.end(running)

    assert run.exit_status != 0, run.output
    report = controller.report()
    assert (report["verdict"], verdicts(report)) == ("failed", ["FAIL", None])
    assert host_outcomes(report) == {"h2": "unreachable", "h3": "not_attempted"}
    assert "h2: unreachable" in report["exit_reason"]
    lab.prove_untouched("h1", "h3")

    way.mend()
    again = controller.run("upgrade", **wanted)

    assert again.exit_status == 0, again.output
    assert set(outcomes(controller.report()).values()) <= {"upgraded", "already"}
    assert builds_of(lab.prove(), *lab.vms("h2", "h3")) == {builds.new.build_id}
    way.cut()


def test_a_second_rollout_is_refused_by_the_controller_and_by_the_host(
    lab: LabHosts, controller: Controller, other_controller: Controller, builds: Builds
) -> None:
    before = lab.transactions("h1")
    wanted = {"upgrade_build": builds.new.build_id, "upgrade_hosts": "h1"}
    with rollout_in_the_middle(lab, controller, builds) as (first, engine):
        second = controller.run("upgrade", **wanted)
        elsewhere = other_controller.run("upgrade", **wanted)
        lab.sh("h1", f"kill -CONT {engine}")
        run = controller.wait(first)

    assert run.exit_status == 0, run.output
    report = controller.report()
    assert (report["verdict"], outcomes(report)) == ("ok", dict.fromkeys(lab.vms("h1"), "upgraded"))

    assert second.exit_status == 2, second.output
    assert f"rollout {report['rollout_id']} (process {first.pid}" in second.words
    assert "is working on h1; nothing was touched" in second.words

    assert elsewhere.exit_status == 2, elsewhere.output
    refused = other_controller.report()
    assert (refused["verdict"], host_outcomes(refused)) == ("failed", {"h1": "failed"})
    assert "host h1: another upgrade is at work here" in refused["exit_reason"]
    assert f"rollout {report['rollout_id']}" in refused["exit_reason"]
    assert "Nothing was touched" in refused["exit_reason"]

    assert len(set(lab.transactions("h1")) - set(before)) == 1
    assert builds_of(lab.prove(), *lab.vms("h1")) == {builds.new.build_id}


def test_a_host_that_reboots_in_the_middle(lab: LabHosts, controller: Controller, builds: Builds) -> None:
    new = builds.new.build_id
    with lab.at_step("h2", "h2-vm1", "handing-over", then="reset"):
        run = controller.run("upgrade", upgrade_build=new, upgrade_hosts="h2,h3", upgrade_waves=[1])

    assert run.exit_status == 2, run.output
    report = controller.report()
    assert (report["verdict"], verdicts(report)) == ("failed", ["FAIL", None])
    assert host_outcomes(report) == {"h2": "failed", "h3": "not_attempted"}
    assert outcomes(report)["h2-vm1"] == "lost"
    assert "VM h2-vm1: the host rebooted in the middle of the upgrade" in report["exit_reason"]
    lab.look(wait_s=BOOT_S)
    after = lab.prove(rebooted=("h2",))
    assert builds_of(after) == {builds.old.build_id}, "what was moved before and after the reboot went back"

    again = controller.run("upgrade", upgrade_build=new, upgrade_hosts="h2")

    assert again.exit_status == 0, again.output
    assert outcomes(controller.report()) == dict.fromkeys(lab.vms("h2"), "upgraded")
    assert builds_of(lab.prove(rebooted=("h2",)), *lab.vms("h2")) == {new}
    unfinished = "for t in *; do [ -e $t/result.json ] || echo $t; done"
    assert lab.sh("h2", f"cd /var/lib/vmm-live-upgrade/transactions; {unfinished}") == ""
