# SPDX-License-Identifier: GPL-3.0-or-later
"""migrate_cancel, at every point where it can come: heard until the commit, refused from then on, never both or neither."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpCommandError
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import FAULT, Vm, await_that

# The limits of QEMU shall not be what ends it.
ROOMY = {"prepare-timeout": 60000, "pause-budget": 60000}
REHEARSAL = pytest.mark.parametrize("rehearse", [False, True], ids=["hand-over", "rehearsal"])


def begin_and_hold(vm: Vm, binary: Path, fault: str, phase: str, rehearse: bool = False) -> int:
    """Begin, and return the child's pid once it stays where ``fault`` holds it and the old QEMU is in ``phase``."""
    vm.begin(vm.command(binary, "-global", f"{FAULT}={fault}"), rehearse=rehearse, **ROOMY)
    child = int(vm.monitor.wait_event({"CPR_VFORK"}, 30).data["child-pid"])
    await_that(lambda: vm.monitor.execute("query-cpr-vfork")["phase"] == phase)
    if fault.endswith(":stop"):
        await_stopped(child)
    return child


def await_stopped(pid: int) -> None:
    await_that(lambda: ") T " in Path(f"/proc/{pid}/stat").read_text())


def assert_cancelled(vm: Vm) -> None:
    """It was cancelled, the old QEMU runs the guest, and nothing of the new one is left."""
    info = vm.end()
    assert (info["phase"], info["owner"], info["reason"]) == ("aborted", "old", "it was cancelled")
    await_that(lambda: vm.monitor.execute("query-migrate")["status"] == "cancelled")
    vm.assert_runs_on()


@REHEARSAL
@pytest.mark.parametrize("fault", ["ready:hang", "ready:stop"])
def test_cancel_is_heard_while_the_child_gets_ready(vm: Vm, qemu_new: Path, fault: str, rehearse: bool) -> None:
    begin_and_hold(vm, qemu_new, fault, "spawned", rehearse)

    vm.monitor.execute("migrate_cancel")

    assert_cancelled(vm)
    assert "STOP" not in [event.name for event in vm.monitor.drain_events()], "the guest was never paused"


@REHEARSAL
@pytest.mark.parametrize("fault", ["loaded:hang", "loaded:stop"])
def test_cancel_is_heard_in_the_pause(vm: Vm, qemu_new: Path, fault: str, rehearse: bool) -> None:
    """The child is ready, the guest is paused and its disks are inactive, the child has loaded it: all is taken back."""
    begin_and_hold(vm, qemu_new, fault, "saved", rehearse)
    vm.qemu.assert_not_counting()

    vm.monitor.execute("migrate_cancel")

    assert_cancelled(vm)
    assert vm.hand_over(qemu_new, rehearse=False)["phase"] == "running", "another one is possible"


def test_cancel_is_refused_after_the_commit(vm: Vm, qemu_new: Path) -> None:
    child = begin_and_hold(vm, qemu_new, "committed:stop", "committed")

    with pytest.raises(QmpCommandError, match="The guest was given to the new QEMU"):
        vm.monitor.execute("migrate_cancel")

    os.kill(child, signal.SIGCONT)
    info = vm.end()
    assert (info["phase"], info["owner"]) == ("running", "new")
    vm.qemu.wait_counting()


@REHEARSAL
def test_cancel_at_any_moment_is_heard_or_refused(vm: Vm, qemu_old: Path, qemu_new: Path, rehearse: bool) -> None:
    """At moments all over the hand-over; the child waits after the commit, so that no cancel comes after the end."""
    for delay_ms in (*range(10), 12, 15, 20, 30, 40, 60):
        binary = qemu_new if os.readlink(f"/proc/{vm.pid}/exe") == str(qemu_old) else qemu_old
        vm.begin(vm.command(binary, "-global", f"{FAULT}=committed:stop"), rehearse=rehearse, **ROOMY)
        while (event := vm.monitor.wait_event({"CPR_VFORK"}, 30)).data["phase"] != "ready":
            pass
        time.sleep(delay_ms / 1000)
        try:
            vm.monitor.execute("migrate_cancel")
        except QmpCommandError:
            assert not rehearse, "a rehearsal is never committed"
            await_stopped(event.data["child-pid"])
            os.kill(event.data["child-pid"], signal.SIGCONT)
            info = vm.end()
            assert (info["phase"], info["owner"]) == ("running", "new"), (delay_ms, info)
            vm.follow(info)
            vm.qemu.wait_counting()
        else:
            info = vm.end()
            assert (info["phase"], info["owner"]) == ("aborted", "old"), (delay_ms, info)
            # A rehearsal may have ended by itself.
            assert info["reason"] == "it was cancelled" or (
                rehearse and info["reason"].startswith("it was a rehearsal")
            )
            vm.assert_runs_on()
