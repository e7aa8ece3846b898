# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of a VM's own command line that concern its process, in the command of the new one in the mode cpr-vfork."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import QemuFactory
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.process_facts import (
    ids,
    options_of_process,
    threads,
)
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import MACHINE, NIC, Vm

NOBODY = 65534
Start = Callable[..., Vm]


@pytest.mark.parametrize(
    ("options", "why"),
    [("chroot=/", "what the new QEMU needs to start lies outside"), ("exit-with-parent=on", "is a child of the old")],
)
def test_vm_that_cannot_have_a_successor_is_refused(start: Start, qemu_new: Path, options: str, why: str) -> None:
    vm = start(extra=["-run-with", options])

    with pytest.raises(QmpCommandError, match=re.escape(why)):
        vm.begin(vm.command(qemu_new))

    assert vm.monitor.execute("query-cpr-vfork")["phase"] == "idle"
    assert vm.monitor.execute("query-status")["status"] == "running"


def test_successor_that_would_end_with_the_old_process_is_refused(vm: Vm, qemu_new: Path) -> None:
    info = vm.hand_over(qemu_new, "-run-with", "exit-with-parent=on")

    assert (info["phase"], info["owner"]) == ("aborted", "old")
    assert "is a child of the old" in vm.qemu.log_path.read_text()
    vm.assert_runs_on()


@pytest.mark.parametrize(
    "options",
    [
        ["-sandbox", "on"],
        ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=allow,resourcecontrol=deny"],
        ["-sandbox", "on,elevateprivileges=children"],
        ["-run-with", "async-teardown=on"],
        ["-name", "guest=vm,process=my-vm"],
        ["-msg", "timestamp=on,guest-name=on"],
    ],
    ids=lambda options: "".join(options),
)
def test_options_that_are_applied_anew(start: Start, qemu_old: Path, qemu_new: Path, options: list[str]) -> None:
    vm = start(extra=[*NIC, *options])
    before = options_of_process(vm.pid)
    for binary in (qemu_new, qemu_old):
        info = vm.hand_over(binary)
        assert info["phase"] == "running", (info, vm.qemu.log_path.read_text())
        vm.follow(info)
        vm.qemu.wait_counting()
        assert options_of_process(vm.pid) == before


def test_threads_have_names_in_the_new_process_too(start: Start, qemu_old: Path) -> None:
    vm = start(extra=["-name", "guest=vm,debug-threads=on"])

    info = vm.hand_over(qemu_old)

    assert any(name.startswith("CPU 0") for name in threads(info["child-pid"]))


def test_messages_of_a_new_process_bear_time_and_name(start: Start, qemu_new: Path) -> None:
    vm = start(extra=["-msg", "timestamp=on,guest-name=on"])

    vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=ready:exit")

    words = vm.qemu.log_path.read_text()
    assert re.search(
        r"^\d{4}-\d\d-\d\dT\S+Z vm\d* \S*qemu-system-x86_64: cpr-vfork: fault ready:exit", words, re.M
    ), words


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that all may pass through, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def test_process_that_dropped_its_privileges_has_a_successor_of_the_same_user(
    public: Path, qemu_old: Path, qemu_new: Path
) -> None:
    pid_file = public / "vm.pid"
    binary = public / "new" / "bin" / "qemu-system-x86_64"
    binary.parent.mkdir(parents=True)
    shutil.copy(qemu_new, binary)
    shutil.copytree(qemu_new.parent.parent / "share", public / "new" / "share")
    (public / "vm").mkdir()
    os.chown(public / "vm", NOBODY, NOBODY)
    user = ["-run-with", f"user={NOBODY}:{NOBODY}", "-pidfile", str(pid_file)]
    factory = QemuFactory(public, qemu_old, "tcg")
    try:
        vm = Vm(factory("vm", machine=MACHINE, extra=user, disk_owner=NOBODY))
        pid_file.chmod(0o600)
        assert os.stat(f"/proc/{vm.pid}").st_uid == NOBODY

        info = vm.hand_over(binary)

        assert info["phase"] == "running", (info, vm.qemu.log_path.read_text())
        vm.follow(info)
        vm.qemu.wait_counting()
        assert ids(vm.pid) == {"Uid": f"{NOBODY} " * 4, "Gid": f"{NOBODY} " * 4, "Groups": f"{NOBODY} "}
        assert pid_file.read_text() == f"{vm.pid}\n"
        vm.monitor.close()
    finally:
        factory.close()


# --- the log file


def test_log_file_keeps_the_words_of_both(start: Start, qemu_new: Path, tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    vm = start(extra=[*NIC, "-D", str(log), "-trace", "enable=cpr_*"])
    log.touch()
    vm.hand_over(qemu_new, "-global", "migration.x-cpr-vfork-fault=loaded:exit")
    aborted = log.read_text()
    assert "cpr_vfork_phase aborted" in aborted

    info = vm.hand_over(qemu_new)

    assert info["phase"] == "running", info
    words = log.read_text()
    assert words.startswith(aborted), "it was cut off"
    assert "\0" not in words
    assert words.count("cpr_vfork_pass given to new: 1") == 1
    assert words.count("cpr_vfork_pass old to given: 1") == 1
    assert all(line.startswith("cpr_") or "cpr_" in line for line in words.splitlines()), "lines were written over"
