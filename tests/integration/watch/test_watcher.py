# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The watcher over a real sshd, on the monitors of real QEMUs: what it sees, what it survives, that it is in nobody's way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpBusyError, QmpClient
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu, QemuFactory
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import NIC, VmFactory
from ansible_collections.vmm.live_upgrade.tests.integration.watch.running_watcher import (
    RunningWatcher,
    await_that,
    is_running,
)
from ansible_collections.vmm.live_upgrade.tests.integration.watch.sshd import Sshd, new_key


def with_spare(start_qemu: QemuFactory, tmp_path: Path, name: str = "vm1") -> tuple[LocalQemu, str]:
    """Start a VM with a second monitor, and return that one's path."""
    spare = str(tmp_path / f"{name}.spare")
    return start_qemu(name, extra=["-qmp", f"unix:{spare},server=on,wait=off"]), spare


def is_free(path: str) -> bool:
    try:
        QmpClient.connect(path, 1.0).close()
    except QmpBusyError:
        return False
    return True


def test_sees_a_guest_stop_and_resume_with_times(
    watcher: RunningWatcher, sshd: Sshd, start_qemu: QemuFactory, tmp_path: Path
) -> None:
    first, first_spare = with_spare(start_qemu, tmp_path)
    second, second_spare = with_spare(start_qemu, tmp_path, "vm2")
    watcher.start()
    watcher.watch(sshd, {"vm1": first_spare, "vm2": second_spare})
    for name in ("vm1", "vm2"):
        watcher.wait_for("monitor", vm=name, state="watched")

    with first.monitor() as monitor:
        monitor.execute("stop")
        stopped = monitor.wait_event({"STOP"}, 10)
        monitor.execute("cont")
    assert watcher.control.look(["h1"])

    seen = watcher.told().hosts["h1"]
    assert [event.name for event in seen.vms["vm1"].events] == ["STOP", "RESUME"]
    assert seen.vms["vm2"].events == []
    (record,) = watcher.records("qmp", vm="vm1", name="STOP")
    assert record["host_at"].endswith(f"{stopped.timestamp_us % 1_000_000:06d}+00:00")
    assert [vm.status for vm in seen.vms.values()] == ["running", "running"]
    assert (seen.watched, seen.gaps) == (True, [])
    second.wait_counting()
    watcher.control.end()
    seen = watcher.told().hosts["h1"]
    # One when it came, one when it was asked to look.
    assert (seen.probes >= 2, bool(seen.end), watcher.told().is_over) == (True, True, True)


def test_follows_a_guest_to_the_process_that_it_is_handed_over_to(
    watcher: RunningWatcher, sshd: Sshd, start: VmFactory, qemu_new: Path, tmp_path: Path
) -> None:
    spare = str(tmp_path / "spare")
    vm = start(extra=[*NIC, "-qmp", f"unix:{spare},server=on,wait=off"])
    watcher.start()
    watcher.watch(sshd, {"vm0": spare})
    watcher.wait_for("monitor", vm="vm0", state="watched")

    info = vm.hand_over(qemu_new)
    assert info["phase"] == "running", info
    vm.follow(info)
    watcher.wait_for("monitor", vm="vm0", state="watched", version="11.1.1")
    vm.monitor.execute("stop")
    watcher.wait_for("qmp", vm="vm0", name="STOP", count=2)

    seen = watcher.told().hosts["h1"].vms["vm0"]
    assert (seen.versions[0], seen.versions[-1]) == ("10.2.2", "11.1.1")
    phases = [event.text for event in seen.events if event.name == "CPR_VFORK"]
    assert any("phase stopped" in phase or "phase running" in phase for phase in phases), phases
    assert all(gap.end for gap in seen.gaps)
    assert "QEMU closed the connection" in seen.gaps[-1].reason


def test_comes_back_after_a_connection_that_broke_and_tells_the_gap(
    watcher: RunningWatcher, sshd: Sshd, start_qemu: QemuFactory, tmp_path: Path
) -> None:
    vm, spare = with_spare(start_qemu, tmp_path)
    watcher.start()
    watcher.watch(sshd, {"vm1": spare})
    watcher.wait_for("monitor", vm="vm1", state="watched")

    sshd.kill()
    watcher.wait_for("lost")
    with vm.monitor() as monitor:
        monitor.execute("stop")
    assert watcher.control.look(["h1"]), "nobody waits for a host that cannot be reached"
    sshd.start()
    watcher.wait_for("monitor", vm="vm1", state="watched", count=2)
    with vm.monitor() as monitor:
        monitor.execute("cont")
    watcher.wait_for("qmp", vm="vm1", name="RESUME")

    seen = watcher.told().hosts["h1"]
    (gap,) = seen.gaps
    assert gap.end is not None and gap.end > gap.start
    assert [event.name for event in seen.vms["vm1"].events] == ["RESUME"]
    assert seen.vms["vm1"].gaps == [], "what is not seen of a host is not told VM by VM again"


def test_ends_when_its_rollout_is_killed_and_leaves_the_monitors(
    watcher: RunningWatcher, sshd: Sshd, start_qemu: QemuFactory, tmp_path: Path
) -> None:
    _vm, spare = with_spare(start_qemu, tmp_path)
    pid = watcher.start()
    watcher.watch(sshd, {"vm1": spare})
    watcher.wait_for("monitor", vm="vm1", state="watched")
    assert not is_free(spare)

    watcher.kill_owner()

    await_that(lambda: not is_running(pid), lambda: "an orphan is left")
    assert watcher.records()[-1]["event"] == "ended"
    assert "the rollout's process has ended" in str(watcher.told().to_dict()["reason"])
    await_that(lambda: is_free(spare), lambda: "the monitor is still held")
    assert not watcher.control.is_there()


def test_one_that_stands_still_hinders_neither_guest_nor_hand_over_nor_rollout(
    watcher: RunningWatcher,
    sshd: Sshd,
    start: VmFactory,
    qemu_new: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spare = str(tmp_path / "spare")
    vm = start(extra=[*NIC, "-qmp", f"unix:{spare},server=on,wait=off"])
    pid = watcher.start()
    watcher.watch(sshd, {"vm0": spare})
    watcher.wait_for("monitor", vm="vm0", state="watched")
    os.kill(pid, signal.SIGSTOP)

    for _round in range(500):
        vm.monitor.execute("stop")
        vm.monitor.execute("cont")
        vm.monitor.drain_events()
    info = vm.hand_over(qemu_new)

    assert info["phase"] == "running", info
    vm.follow(info)
    vm.qemu.wait_counting()
    monkeypatch.setattr(
        "ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.watcher_control._ANSWER_S", 1.0
    )
    assert not watcher.control.look(["h1"])
    await_that(lambda: not is_running(pid), lambda: "one that does not answer is left")
    assert not watcher.control.look(["h1"]), "and nobody waits for it again"
    assert "asked to look" in str(watcher.told().reason)


def test_does_not_stand_in_line_for_a_monitor_that_somebody_holds(
    watcher: RunningWatcher, sshd: Sshd, start_qemu: QemuFactory, tmp_path: Path
) -> None:
    _vm, spare = with_spare(start_qemu, tmp_path)
    watcher.start()
    with QmpClient.connect(spare) as holder:
        watcher.watch(sshd, {"vm1": spare})
        lost = watcher.wait_for("monitor", vm="vm1", state="lost")

        assert "another client holds the monitor" in lost["reason"]
        assert holder.execute("query-status")["status"] == "running"
    seen = watcher.told().hosts["h1"].vms["vm1"]
    assert (seen.watched, seen.reason) == (False, lost["reason"])


def test_tells_why_a_socket_cannot_be_watched(watcher: RunningWatcher, sshd: Sshd, tmp_path: Path) -> None:
    watcher.start()
    watcher.watch(sshd, {"vm1": str(tmp_path / "nobody")})

    assert "nobody listens there" in watcher.wait_for("monitor", vm="vm1", state="lost")["reason"]
    assert watcher.told().hosts["h1"].watched


def test_a_key_that_is_not_let_in_is_not_tried_again(watcher: RunningWatcher, sshd: Sshd, tmp_path: Path) -> None:
    watcher.start()
    watcher.watch(sshd, {}, identity_files=[str(new_key(tmp_path / "other"))])

    assert "Authentication failed" in watcher.wait_for("refused")["reason"]
    watcher.wait_for("left")


def test_a_request_without_sense_does_not_end_the_watch(watcher: RunningWatcher) -> None:
    watcher.start()
    assert not watcher.control._tell({"do": "dance"})
    assert "dance" in watcher.wait_for("silent")["reason"]
    assert watcher.control.look([])


def test_what_cannot_start_says_why(watcher: RunningWatcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "paramiko.py").write_text("raise ImportError('broken here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(LiveUpgradeError, match="broken here"):
        watcher.start()
