# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs on the emulated host: the command line of its VM, and what it complains of around a hand-over."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError
from host import hops, outcome
from host.acts import ACTS
from host.vm import Spec, Vm
from vfiolab.cases import APART, CASES
from vfiolab.devices import BY_NAME
from vfiolab.host import Plan

ADDRESSES = {"nvme": "0000:00:10.0", "e1000e": "0000:00:11.0", "edu": "0000:00:16.0"}
NVME, E1000E, EDU = BY_NAME["nvme"], BY_NAME["e1000e"], BY_NAME["edu"]
CHILD = 4711


class Monitor:
    """A QEMU that says ``info`` of a hand-over, and refuses the commands that ``refusals`` names."""

    def __init__(self, info: dict[str, Any], refusals: dict[str, str]) -> None:
        self.info = {"child-pid": CHILD, **info}
        self.refusals = refusals
        self.commands: list[str] = []
        self.argv: list[str] = []

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.commands.append(command)
        if command in self.refusals:
            raise QmpCommandError(command, "GenericError", self.refusals[command])
        if command == "migrate-set-parameters":
            self.argv = (arguments or {})["cpr-exec-command"]
        return dict(self.info) if command == "query-cpr-vfork" else {}

    def wait_event(self, names: set[str], _timeout_s: float) -> SimpleNamespace:
        return SimpleNamespace(data={"phase": self.info["phase"], "child-pid": CHILD} if "CPR_VFORK" in names else {})

    def drain_events(self) -> None:
        return


class FakeVm:
    """As much of a VM as the events need. ``followed``: the process that the VM was said to be."""

    def __init__(self, phase: str, reason: str = "", **refusals: str) -> None:
        self.spec = Spec((NVME, E1000E), ADDRESSES, "legacy")
        self.monitor = Monitor({"phase": phase, "reason": reason}, refusals)
        self.status = SimpleNamespace(counts=lambda slot: SimpleNamespace(ios=slot * 100))
        self.followed: int | None = None
        self.awaited: dict[str, int] = {}

    def next_argv(self, build: str) -> list[str]:
        return self.spec.argv(build, "/run/vm/monitor1", "/dev/kvm")

    def follow(self, pid: int, _build: str) -> None:
        self.followed = pid

    def await_load(self, before: dict[Any, int]) -> None:
        self.awaited = {device.name: ios for device, ios in before.items()}


def run(act: str, vm: FakeVm, *arguments: str) -> str:
    return ACTS[act](vm, "new", *arguments)


@pytest.fixture(autouse=True)
def child_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "alive", lambda _pid: False)


@pytest.mark.parametrize("backend,suffix", [("legacy", ""), ("iommufd", ",iommufd=iommufd0")])
def test_devices_are_at_their_addresses(backend: str, suffix: str) -> None:
    argv = Spec((NVME, E1000E), ADDRESSES, backend).argv("old", "/s", "/dev/kvm")

    assert argv[-3] == f"vfio-pci,host=0000:00:10.0,id=nvme,addr=0x10,rombar=0{suffix}"
    assert argv[-1] == f"vfio-pci,host=0000:00:11.0,id=e1000e,addr=0x11,rombar=0{suffix}"
    assert not any("pcie-root-port" in word for word in argv)
    assert argv[argv.index("-bios") + 1] == "qboot.rom"


def test_a_device_to_be_plugged_in_has_a_port_first_and_is_told_to_the_guest() -> None:
    spec = Spec((EDU, NVME), ADDRESSES, "iommufd", ("edu",))
    argv = spec.argv("old", "/s", "/dev/kvm")

    assert "pcie-root-port,id=port-edu,addr=0x16,chassis=22" in argv
    assert not any("id=edu" in word for word in argv)
    assert "vfio.jobs=disk:0:10:nvme0:8,edu:6:16:-:1" in " ".join(argv)
    assert "-bios" not in argv
    assert spec.properties(EDU) == {
        "driver": "vfio-pci",
        "host": "0000:00:16.0",
        "id": "edu",
        "bus": "port-edu",
        "rombar": 0,
        "iommufd": "iommufd0",
    }
    assert spec.plugged_argv() == [
        "-device",
        "vfio-pci,host=0000:00:16.0,id=edu,bus=port-edu,rombar=0,iommufd=iommufd0",
    ]


@pytest.mark.parametrize(
    "plugged,late,expected",
    [
        (("edu",), (), [["nvme"], ("device_add", "edu"), ["nvme", "edu"]]),
        (("edu", "nvme"), (), [("device_add", "edu"), ("device_add", "nvme"), ["edu", "nvme"]]),
        (("edu",), ("nvme",), [[], ("device_add", "edu"), ["edu"]]),
    ],
    ids=["when-the-others-work", "what-the-guest-waits-for-at-once", "not-when-it-is-late"],
)
def test_devices_are_plugged_in_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, plugged: tuple[str, ...], late: tuple[str, ...], expected: list[Any]
) -> None:
    told: list[Any] = []
    vm = Vm.__new__(Vm)
    vm.spec = Spec((EDU, NVME), ADDRESSES, "legacy", plugged, late=late)
    vm.monitor = SimpleNamespace(execute=lambda command, arguments: told.append((command, arguments["id"])))  # type: ignore[assignment]
    monkeypatch.setattr(Vm, "await_load", lambda _self, before: told.append([device.name for device in before]))

    vm.await_up()

    assert told == expected


def test_a_device_that_is_late_or_gone_for_now_is_told_so() -> None:
    spec = Spec((EDU, NVME), ADDRESSES, "iommufd", ("edu", "nvme"), "", APART, ("nvme",), ("edu",))
    argv = spec.argv("old", "/s", "/dev/kvm")

    assert "vfio.jobs=edu:6:16:-:1,late:0:10:nvme0:8" in " ".join(argv)
    assert [word for word in argv if word.startswith("iommufd,")] == [
        "iommufd,id=iommufd-edu",
        "iommufd,id=iommufd-nvme",
    ]
    assert sum("pcie-root-port" in word for word in argv) == 2, "the machine is the same"
    assert spec.plugged_argv() == [
        "-device",
        "vfio-pci,host=0000:00:10.0,id=nvme,bus=port-nvme,rombar=0,iommufd=iommufd-nvme",
    ]


@pytest.mark.parametrize(
    "phase,reason,refusals,complaint",
    [
        (
            "running",
            "",
            {"cont": "The guest was given to the new QEMU", "system_reset": "The guest was given to the new QEMU"},
            "",
        ),
        ("running", "", {"cont": "The guest was given to the new QEMU"}, "the old QEMU does system_reset"),
        ("running", "", {"cont": "no", "system_reset": "The guest was given to the new QEMU"}, "cont: no"),
        ("aborted", "why", {}, "aborted: why"),
        ("running", "", {"migrate": "blocked"}, "refused: blocked"),
    ],
    ids=["both", "one", "another-reason", "not-gone", "refused"],
)
def test_the_old_qemu_has_to_refuse(phase: str, reason: str, refusals: dict[str, str], complaint: str) -> None:
    vm = FakeVm(phase, reason, **refusals)

    assert run("old_refuses", vm) == complaint
    assert vm.followed == (CHILD if phase == "running" and "migrate" not in refusals else None)


@pytest.mark.parametrize(
    "act,arguments,more,last",
    [
        ("extra_device", ("edu",), 2, "vfio-pci,host=0000:00:16.0,id=edu,addr=0x16,rombar=0"),
        ("missing_device", (), -2, "vfio-pci,host=0000:00:10.0,id=nvme,addr=0x10,rombar=0"),
    ],
)
def test_a_wrong_set_of_devices_has_to_be_taken_back(
    act: str, arguments: tuple[str, ...], more: int, last: str
) -> None:
    vm = FakeVm("aborted", "the new QEMU exited with status 1")

    assert run(act, vm, *arguments) == ""
    assert len(vm.monitor.argv) == len(vm.next_argv("new")) + more
    assert vm.monitor.argv[-1] == last
    assert run(act, FakeVm("running"), *arguments) == "running: "
    assert run(act, FakeVm("aborted", "it was cancelled"), *arguments) == "aborted: it was cancelled"


def test_what_is_left_of_a_new_qemu_is_complained_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "alive", lambda pid: pid == CHILD)
    assert run("missing_device", FakeVm("aborted", "the new QEMU exited with status 1")) == "the new QEMU is left over"


@pytest.mark.parametrize(
    "phase,reason,complaint",
    [
        ("aborted", "the guest set up interrupts; try again", ""),
        ("running", "", "running: "),
        ("aborted", "x", "aborted: x"),
    ],
)
def test_a_guest_that_reboots_is_taken_back_and_boots(
    monkeypatch: pytest.MonkeyPatch, phase: str, reason: str, complaint: str
) -> None:
    """The child is let go on only after the reset; then the I/O of the guest that boots is waited for, whatever came of it."""
    vm = FakeVm(phase, reason)
    signals: list[tuple[int, int, bool]] = []
    monkeypatch.setattr(hops, "_stopped", lambda pid: pid == CHILD)
    monkeypatch.setattr(
        os, "kill", lambda pid, number: signals.append((pid, number, "system_reset" in vm.monitor.commands))
    )

    assert run("reboot", vm) == complaint
    assert signals == [(CHILD, signal.SIGCONT, True)]
    assert vm.monitor.argv[-1].endswith("=ready:stop")
    assert vm.awaited == {"nvme": 0, "e1000e": 100}


def test_every_case_has_an_act_and_devices_that_there_are() -> None:
    for case in (case for cases in CASES.values() for case in cases):
        assert case.act in ACTS
        assert {*case.devices, *case.spare, *case.plugged} <= set(BY_NAME)
        assert set(case.plugged) <= set(case.devices) and not set(case.spare) & set(case.devices)


def test_a_case_is_left_out_where_its_devices_are_not() -> None:
    def chosen(*devices: str, backend: str = "legacy") -> set[str]:
        return {case.name for case in Plan("events", backend, list(devices), [], {}).chosen()}

    two = {"old-refuses", "missing-device", "rebooted", "after-reboot", "aborted-bar"}
    memlock = {"memlock-user", "memlock-process"}
    assert chosen("nvme", "e1000e") == {*two, "started-new", "memlock"}
    assert chosen("nvme", "e1000e", backend="iommufd") == {*two, "started-new", "dma-buf", *memlock, "by-descriptor"}
    assert "extra-device" in chosen("nvme", "e1000e", "edu")
    plugged = {"unplugged", "unplugged-rehearsed", "unplugged-aborted", "asked-back", "replugged"}
    edu = {"plugged-aborted", "plugged", "plugged-back", *plugged, "msi-pending"}
    assert chosen("nvme", "edu") == {"started-new", *edu, "memlock"}
    assert "unplugged-first" in chosen("nvme", "edu", backend="iommufd")
