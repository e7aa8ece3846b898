# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of a VM in the mode cpr-vfork: what the new one has of the old one, and what the old one leaves at its end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.process_facts import (
    circumstances,
    is_zombie,
    listener,
    lock_holder,
)
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import HANGS, NIC, Vm, await_that, lives

Start = Callable[..., Vm]


@pytest.fixture
def pidfile(tmp_path: Path) -> Path:
    return tmp_path / "vm.pid"


# --- the end of the old process


@pytest.mark.parametrize("way", ["quit", signal.SIGTERM, signal.SIGHUP], ids=["quit", "SIGTERM", "SIGHUP"])
def test_old_process_that_ends_in_order_takes_nothing_from_the_new_one(
    start: Start, qemu_new: Path, pidfile: Path, tmp_path: Path, way: Any
) -> None:
    served = tmp_path / "served.sock"
    extra = ["-chardev", f"socket,id=served,path={served},server=on,wait=off", "-mon", "chardev=served,mode=control"]
    vm = start(extra=[*NIC, *extra, "-pidfile", str(pidfile)])
    number = listener(vm.pid, served)
    command = [word.replace(f"path={served}", f"fd={number}") for word in vm.command(qemu_new)]
    vm.begin(command, fds=[number])
    info = vm.end()
    assert info["phase"] == "running", info

    if way == "quit":
        vm.monitor.execute("quit")
    else:
        os.kill(vm.pid, way)

    assert vm.qemu.process.wait(20) == 0
    assert pidfile.read_text() == f"{info['child-pid']}\n"
    with QmpClient.connect(str(served)) as monitor:
        assert monitor.execute("query-status")["status"] == "running"
    vm.qemu.wait_counting()


def test_old_process_that_lost_the_guest_with_the_new_one_ends_with_a_failure(vm: Vm, qemu_new: Path) -> None:
    assert vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=taken:kill")["phase"] == "lost"

    vm.monitor.execute("quit")

    assert vm.qemu.process.wait(20) == 1


def test_old_process_that_keeps_the_guest_ends_as_ever(start: Start, qemu_new: Path, pidfile: Path) -> None:
    vm = start(extra=["-pidfile", str(pidfile)])
    assert vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=committed:kill")["phase"] == "aborted"
    assert pidfile.read_text() == f"{vm.pid}\n"

    vm.monitor.execute("quit")

    assert vm.qemu.process.wait(20) == 0
    assert not pidfile.exists()
    assert not Path(vm.qemu.qmp_path).exists()


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_new_process_that_hangs_ends_with_the_old_one(vm: Vm, qemu_new: Path, way: signal.Signals) -> None:
    vm.begin(vm.command(qemu_new, *HANGS))
    child = int(vm.monitor.wait_event({"CPR_VFORK"}, 30).data["child-pid"])
    await_that(lambda: "fault ready:hang" in vm.qemu.log_path.read_text())
    pidfd = os.pidfd_open(child)

    os.kill(vm.pid, way)

    vm.qemu.process.wait(20)
    assert select.select([pidfd], [], [], 20)[0], "the new process is left over"
    os.close(pidfd)


# --- -pidfile and -daemonize


def test_pid_file_goes_over_with_the_guest(start: Start, qemu_old: Path, qemu_new: Path, pidfile: Path) -> None:
    vm = start(extra=["-pidfile", str(pidfile)])
    first = vm.pid
    for binary in (qemu_new, qemu_old):
        vm.begin(vm.command(binary, *HANGS), **{"prepare-timeout": 500})
        assert vm.end()["phase"] == "aborted"
        assert pidfile.read_text() == f"{vm.pid}\n"
        assert lock_holder(pidfile) == vm.pid

        before = vm.pid
        info = vm.hand_over(binary)

        assert info["phase"] == "running", info
        assert pidfile.read_text() == f"{info['child-pid']}\n"
        assert lock_holder(pidfile) == before, "nobody holds it while both live"
        vm.follow(info)
        await_that(lambda: lock_holder(pidfile) == vm.pid)
    assert vm.pid != first

    vm.monitor.execute("quit")

    await_that(lambda: not pidfile.exists())


@pytest.mark.parametrize("extra", [True, False], ids=["another", "none-before"])
def test_pid_file_that_is_not_the_old_ones_is_refused(
    start: Start, qemu_new: Path, pidfile: Path, tmp_path: Path, extra: bool
) -> None:
    vm = start(extra=["-pidfile", str(pidfile)] if extra else [])
    other = tmp_path / "other.pid"
    other.write_text("4711\n")

    info = vm.hand_over(qemu_new, "-pidfile", str(other))

    assert (info["phase"], info["owner"]) == ("aborted", "old")
    assert ("is not the pid file" if extra else "has no pid file") in vm.qemu.log_path.read_text()
    assert other.read_text() == "4711\n"
    assert pidfile.exists() == extra
    vm.assert_runs_on()


def test_daemon_is_handed_over_by_its_own_command_line(
    start: Start, qemu_old: Path, qemu_new: Path, pidfile: Path, tmp_path: Path
) -> None:
    vm = start(qemu_old)
    command = vm.command(qemu_old, "-daemonize", "-pidfile", str(pidfile), "-D", str(tmp_path / "qemu.log"))
    vm.monitor.close()
    vm.qemu.stop()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    vm.pid = int(pidfile.read_text())
    vm.monitor = QmpClient.connect(command[command.index("-qmp") + 1].removeprefix("unix:").partition(",")[0])
    session = os.getsid(vm.pid)
    for binary in (qemu_new, qemu_old):
        again = [str(binary) if word == command[0] else word for word in command]
        again = [
            str(binary.parent.parent / "share" / "qemu") if word.endswith("/share/qemu") else word for word in again
        ]
        vm.begin(again)
        info = vm.end()
        assert info["phase"] == "running", (info, (tmp_path / "qemu.log").read_text())
        vm.monitor.execute("quit")
        vm.monitor.close()
        await_that(lambda: not lives(vm.pid) or is_zombie(vm.pid))
        vm.pid = info["child-pid"]
        assert int(pidfile.read_text()) == vm.pid
        assert os.getsid(vm.pid) == session
        assert os.readlink(f"/proc/{vm.pid}/cwd") == "/"
        vm.monitor = QmpClient.connect(command[command.index("-qmp") + 1].removeprefix("unix:").partition(",")[0])
        assert vm.monitor.execute("query-status")["status"] == "running"

    vm.monitor.execute("quit")

    await_that(lambda: not pidfile.exists())


# --- what is inherited


def test_new_process_lives_where_the_old_one_does(start: Start, qemu_new: Path) -> None:
    wrapper = ["unshare", "--net", "--uts", "--ipc", "prlimit", "--core=123456", "--memlock=7654321"]
    vm = start(wrapper=[*wrapper, "choom", "-n", "123", "--", "nice", "-n", "3", "env", "OF_THE_VM=1"])
    before = circumstances(vm.pid)
    assert before["ns/net"] != os.readlink("/proc/self/ns/net")
    assert "123456" in before["limits"]

    info = vm.hand_over(qemu_new)

    assert info["phase"] == "running", info
    assert circumstances(info["child-pid"]) == before
