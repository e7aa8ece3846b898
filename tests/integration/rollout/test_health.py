# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The health of real QEMUs with a guest that counts, or only halts."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.health.look import Limits, agent_socket, look_at_all
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import QmpEndpoint, RamBlock, Vm
from ansible_collections.vmm.live_upgrade.tests.integration import local_qemu
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import COUNTER_OFFSET, LocalQemu, QemuFactory

PATIENT = Limits(vm_s=120.0, progress_s=30.0, probe_s=30.0)
BRIEF = Limits(vm_s=10.0, progress_s=0.5, probe_s=0.5)
BUILD = "qemu-11.1.1-0123456789abcdef"
WORD: dict[str, Any] = {"ram_word": {"backend": "ram0", "offset": COUNTER_OFFSET}}


def vm_of(qemu: LocalQemu) -> Vm:
    """Return the facts that a look needs."""
    return Vm(
        name=qemu.name,
        pid=qemu.pid,
        start_time_ticks=0,
        exe=str(qemu.binary),
        exe_deleted=False,
        build_id=BUILD,
        gnu_build_id=None,
        version=None,
        argv=qemu.argv,
        unit=None,
        cgroup=None,
        uid=0,
        gid=0,
        qmp_endpoints=[QmpEndpoint(qemu.qmp_path, "ok", "")],
        ram_blocks=[RamBlock("ram0", qemu.memory_bytes, True, "memfd", True)],
    )


def look(
    *qemus: LocalQemu, limits: Limits = PATIENT, before: dict[str, Any] | None = None, **probes: Any
) -> dict[str, Any]:
    """Return the reports by name; ``probes`` go to every VM."""
    reports = look_at_all([vm_of(qemu) for qemu in qemus], {qemu.name: probes for qemu in qemus}, before or {}, limits)
    return {report["name"]: report for report in reports}


def test_a_working_guest_is_healthy(start_qemu: QemuFactory, accel: str) -> None:
    qemu = start_qemu("busy")
    qemu.wait_counting()

    report = look(qemu, **WORD)["busy"]

    assert report["problems"] == []
    assert (report["healthy"], report["run_state"], report["ram_word_moved"]) == (True, "running", True)
    assert (report["pid"], report["build_id"]) == (qemu.pid, BUILD)
    assert [disk["device"].rpartition("/")[0] != "" for disk in report["disks"]] == [True]
    assert (report["vcpus"][0]["exits"] is not None) == (accel == "kvm")


def test_a_halted_guest_is_idle_and_not_ill_unless_it_worked_before(
    start_qemu: QemuFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(local_qemu._GUESTS, "halt", bytes.fromhex("faf4ebfc"))  # cli; again: hlt; jmp again
    busy, idle = start_qemu("busy"), start_qemu("idle", guest="halt")
    busy.wait_counting()
    while look(idle, limits=BRIEF)["idle"]["vcpus"][0]["cpu_ns"]:
        pass  # its firmware is still at work; each look waits for half a second at most

    alone = look(idle, limits=BRIEF)
    worked = {"idle": {**look(busy)["busy"], "name": "idle"}}
    fallen = look(idle, limits=BRIEF, before=worked)["idle"]
    still = look(idle, limits=BRIEF, before=alone)["idle"]

    assert (alone["idle"]["healthy"], alone["idle"]["problems"]) == (True, [])
    assert [problem["check"] for problem in fallen["regressions"]] == ["vcpu"]
    assert still["regressions"] == []
    assert [problem["check"] for problem in look(idle, limits=BRIEF, **WORD)["idle"]["problems"]] == ["ram_word"]


def test_a_vm_that_stopped_is_a_regression_and_one_that_stood_before_is_not(start_qemu: QemuFactory) -> None:
    qemu = start_qemu("vm")
    qemu.wait_counting()
    running = look(qemu)
    qemu.execute("stop")

    paused = look(qemu, before=running)

    assert [problem["check"] for problem in paused["vm"]["regressions"]] == ["run_state"]
    again = look(qemu, before=paused)["vm"]
    assert (again["regressions"], [problem["check"] for problem in again["pre_existing"]]) == ([], ["run_state"])


def test_a_wedged_qemu_costs_its_own_answer_only(start_qemu: QemuFactory) -> None:
    well, wedged = start_qemu("well"), start_qemu("wedged")
    well.wait_counting()
    wedged.suspend()

    reports = look(well, wedged, limits=Limits(vm_s=60.0, progress_s=30.0, probe_s=1.0))

    assert reports["well"]["healthy"]
    assert [problem["check"] for problem in reports["wedged"]["problems"]] == ["qmp"]
    wedged.process.send_signal(signal.SIGCONT)


def test_a_vm_that_takes_too_long_is_said_so(start_qemu: QemuFactory) -> None:
    qemu = start_qemu("vm")
    qemu.suspend()

    report = look(qemu, limits=Limits(vm_s=0.2, progress_s=30.0, probe_s=30.0))["vm"]

    assert [problem["check"] for problem in report["problems"]] == ["answer"]
    qemu.process.send_signal(signal.SIGCONT)


def test_a_word_that_cannot_be_read_is_said_so(start_qemu: QemuFactory) -> None:
    qemu = start_qemu("vm")
    qemu.wait_counting()

    unknown = look(qemu, ram_word={"backend": "none", "offset": 0})["vm"]
    outside = look(qemu, ram_word={"backend": "ram0", "offset": qemu.memory_bytes})["vm"]

    assert [problem["check"] for problem in unknown["problems"]] == ["ram_word_probe"]
    assert "outside of the guest's RAM" in outside["problems"][0]["message"]


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        (
            "-chardev socket,id=a,path=/run/a.sock,server=on,wait=off "
            "-device virtserialport,chardev=a,name=org.qemu.guest_agent.0",
            "/run/a.sock",
        ),
        (
            '-chardev {"backend":"socket","id":"a","path":"/run/a.sock"} '
            '-device {"driver":"virtserialport","chardev":"a","name":"org.qemu.guest_agent.0"}',
            "/run/a.sock",
        ),
        ("-chardev socket,id=a,path=/run/a.sock -device virtserialport,chardev=a,name=other", None),
        ("-device virtserialport,chardev=b,name=org.qemu.guest_agent.0", None),
    ],
)
def test_the_agents_socket_is_found(argv: str, path: str | None) -> None:
    assert agent_socket(argv.split()) == path
