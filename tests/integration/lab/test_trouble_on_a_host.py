# Copyright: (c) 2026, vmm.live_upgrade contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that are not well: a QEMU that hangs, a paused guest, a disk without room, a build that is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vmmlab.artifact import Artifact

from .controller import Controller, Finished, host_outcomes, outcomes
from .lab_hosts import STATE_DIR, Builds, LabHosts, builds_of, process

TRANSACTIONS = f"{STATE_DIR}/transactions"
# A monitor command, without a QMP client on the host.
QMP = """\
python3 - <<'PYTHON'
import json, socket
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect("/run/vmm-lab/{vm}/qmp.sock")
    stream = sock.makefile("rw")
    stream.readline()
    for command in ("qmp_capabilities", "{command}"):
        stream.write(json.dumps({{"execute": command}}))
        stream.flush()
        while "return" not in stream.readline():
            pass
PYTHON
"""


@contextmanager
def wedged(lab: LabHosts, host: str, vm: str) -> Iterator[None]:
    """Stop the QEMU of a VM as a signal does."""
    (pid,) = lab.before[vm]["pids"]
    lab.sh(host, f"kill -STOP {pid}")
    try:
        yield
    finally:
        lab.sh(host, f"kill -CONT {pid}")


@contextmanager
def paused(lab: LabHosts, host: str, vm: str) -> Iterator[None]:
    """Pause a guest through its monitor."""
    lab.sh(host, QMP.format(vm=vm, command="stop"))
    try:
        yield
    finally:
        lab.sh(host, QMP.format(vm=vm, command="cont"))


@contextmanager
def small_disk(lab: LabHosts, host: str, size_kib: int) -> Iterator[None]:
    """Have transactions of a host on a file system of their own, with little room."""
    lab.sh(host, f"mkdir -p -m 700 {TRANSACTIONS}; mount -t tmpfs -o size={size_kib}k,mode=700 tmpfs {TRANSACTIONS}")
    try:
        yield
    finally:
        lab.sh(host, f"umount {TRANSACTIONS}")


def rows(run: Finished) -> dict[str, list[str]]:
    """The rows of the tables that a playbook printed, cell by cell, by the name of the VM."""
    cells = [re.split(r"  +", line.strip(' ",')) for line in run.output.splitlines()]
    return {row[1]: row for row in cells if len(row) > 3 and re.fullmatch(r"h\d-vm\d", row[1])}


def move(controller: Controller, build: Artifact) -> dict[str, Any]:
    """Move h3-vm1 by the module alone, without a rollout around it."""
    return controller.module("h3", "vm_upgrade", build_id=build.build_id, vms=["h3-vm1"], downtime_budget_ms=20000)


def only(answer: dict[str, Any]) -> dict[str, Any]:
    """The one VM of a module's answer."""
    (vm,) = answer["vms"]
    return dict(vm)


def test_a_wedged_and_a_paused_vm_cost_nobody_else(lab: LabHosts, controller: Controller, builds: Builds) -> None:
    new = builds.new.build_id
    with wedged(lab, "h1", "h1-vm1"), paused(lab, "h2", "h2-vm1"):
        status = controller.run("status", status_hosts="h1,h2")
        verdict = controller.run("preflight", preflight_hosts="h1,h2", preflight_build=new)
        upgrade = controller.run("upgrade", upgrade_hosts="h1", upgrade_build=new)

    assert status.exit_status == 0, status.output
    told = rows(status)
    build, state = 2, 5
    assert {name: [told[name][build], told[name][state]] for name in lab.vms("h1", "h2")} == {
        "h1-vm1": [builds.old.build_id, "no answer"],
        "h1-vm2": [builds.old.build_id, "running"],
        "h2-vm1": [builds.old.build_id, "paused"],
        "h2-vm2": [builds.old.build_id, "running"],
    }
    assert verdict.exit_status != 0, verdict.output
    told = rows(verdict)
    assert {name: told[name][3] for name in lab.vms("h1", "h2")} == {
        "h1-vm1": "refuse",
        "h1-vm2": "go",
        "h2-vm1": "refuse",
        "h2-vm2": "go",
    }
    assert "h1/h1-vm1 [process-stopped]" in verdict.words
    assert "h2/h2-vm1 [vm-not-running] the VM is not running (state paused)" in verdict.words
    assert "2 VMs refused, 0 hosts gave no verdict. Nothing was changed." in verdict.words
    assert upgrade.exit_status != 0, upgrade.output
    report = controller.report()
    assert (host_outcomes(report), outcomes(report)["h1-vm1"]) == ({"h1": "failed"}, "refused")
    lab.prove_untouched()


@pytest.mark.parametrize("size_kib", [64, 256], ids=["no-room-for-the-engine", "no-room-for-a-journal"])
def test_without_room_for_a_journal_no_vm_is_touched(
    lab: LabHosts, controller: Controller, builds: Builds, size_kib: int
) -> None:
    with small_disk(lab, "h3", size_kib):
        answer = move(controller, builds.new)

        assert answer["failed"]
        assert "cannot keep a journal in" in answer["msg"] and "No space left on device" in answer["msg"]
        assert [vm for vm in answer["vms"] if vm["outcome"] != "not_attempted"] == []
        lab.prove_untouched()


@pytest.mark.parametrize("step", ["begin", "committed"])
def test_a_disk_that_fills_up_in_the_middle_costs_no_guest(
    lab: LabHosts, controller: Controller, builds: Builds, step: str
) -> None:
    new = builds.new.build_id
    with small_disk(lab, "h3", 1024):
        with lab.at_step("h3", "h3-vm1", step, then="fill") as full:
            answer = move(controller, builds.new)
            assert full.wait().isdigit()
        vm = only(answer)
        after = lab.prove()
        moved = vm["outcome"] == "upgraded"
        assert vm["outcome"] in ("upgraded", "rolled_back"), answer
        assert after["h3-vm1"]["build_id"] == (new if moved else builds.old.build_id)
        assert (process(after["h3-vm1"]) != process(lab.before["h3-vm1"])) == moved

    again = move(controller, builds.new)

    assert only(again)["outcome"] == ("already" if moved else "upgraded"), again
    assert builds_of(lab.prove(), "h3-vm1") == {new}


def test_a_vm_whose_build_was_deleted_tells_it_and_moves_on(
    lab: LabHosts, controller: Controller, builds: Builds
) -> None:
    old, new = builds.old.build_id, builds.new.build_id
    lab.sh("h3", f"rm -r {STATE_DIR}/builds/{old}")
    try:
        found = controller.module("h3", "vm_info")
    finally:
        staged = controller.run("stage", stage_artifact=builds.old.path, stage_hosts="h3")
        assert staged.exit_status == 0, staged.output

    told = {vm["name"]: (vm["build_id"], vm["exe_deleted"]) for vm in found["vms"]}
    assert told == dict.fromkeys(lab.vms("h3"), (old, True))

    answer = move(controller, builds.new)
    assert (only(answer)["outcome"], only(answer)["old_build_id"]) == ("upgraded", old), answer
    assert builds_of(lab.prove(), "h3-vm1") == {new}


def test_builds_that_vms_run_are_never_pruned(lab: LabHosts, controller: Controller, builds: Builds) -> None:
    old, new, idle = builds.old.build_id, builds.new.build_id, builds.faulty.build_id
    assert controller.module("h1", "artifact_default", build_id=new)["changed"]

    # Two are not the default; the one staged first is in use. One may be kept.
    pruned = controller.module("h1", "artifact_stage", build_id=new, keep=1)
    refused = controller.module("h1", "artifact_stage", build_id=old, state="absent")

    assert (pruned["pruned"], {old, new, idle} <= set(pruned["staged"])) == ([], True), pruned
    assert refused["failed"] and f"build {old} is in use by process" in refused["msg"]
    lab.prove_untouched()
