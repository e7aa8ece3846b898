# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to get a guest from one QEMU into another that are compared: the collection's own, and those of stock QEMU."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpDeadError, QmpError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_transfer import CprTransfer
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_vfork import CprVfork
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import Limits, end_process
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import CommandPlan
from ansible_collections.vmm.live_upgrade.tests.bench.cost import vcpus_ns
from ansible_collections.vmm.live_upgrade.tests.bench.ram import RamTrace

# Generous: what takes long is to be measured, not taken back.
_LIMITS = Limits(60, 30)
_MIGRATION_S = 180.0
_POLL_S = 0.002
# As an operator sets it between processes of one machine: no limit but the machine's. The pause that QEMU aims at stays
# at its default of 300 ms.
_BANDWIDTH_BYTES = 100 << 30


@dataclass(frozen=True)
class Task:
    """Move the guest of process ``pid`` into ``argv``; the two serve ``monitor_path`` and ``new_monitor_path``."""

    pid: int
    monitor_path: str
    argv: list[str]
    new_monitor_path: str
    directory: Path
    ram_bytes: int

    def monitor(self) -> QmpClient:
        """Connect to the old process."""
        return QmpClient.connect(self.monitor_path, 60)


@dataclass(frozen=True)
class HandedOver:
    """Process ``pid`` runs the guest. ``release`` ends the old process, if it is another.

    ``stopped_us``, ``running_us``: when QEMU says that it was paused (CLOCK_REALTIME). ``old_vcpus_ns``: what the old
    process's vCPUs had used by then. ``new_ram``: a trace of the new process's RAM, begun before the guest ran in it, if
    that is another RAM.
    """

    pid: int
    stopped_us: int
    running_us: int
    old_vcpus_ns: int
    release: Callable[[], None]
    new_ram: RamTrace | None = None


def vfork(task: Task) -> HandedOver:
    """By the collection's engine and QEMU's mode ``cpr-vfork``."""
    monitor = task.monitor()
    hand_over = CprVfork(task.pid, monitor, lambda _pid: monitor, _LIMITS, lambda *_a, **_k: None)
    done = hand_over.run(task.argv, [])
    return HandedOver(done.target_pid, done.stop_us, done.resume_us, vcpus_ns(task.pid), lambda: _release(hand_over))


def cpr_transfer(task: Task) -> HandedOver:
    """By the collection's engine and stock QEMU's mode ``cpr-transfer``."""
    workspace = tempfile.TemporaryDirectory(dir=task.directory)
    hand_over = CprTransfer(
        *(task.pid, task.monitor(), Path(workspace.name), task.directory / "target.log", _LIMITS),
        lambda *_a, **_k: None,
    )
    done = hand_over.run(CommandPlan(task.argv), {}, (os.getuid(), os.getgid()))

    def release() -> None:
        _release(hand_over)
        workspace.cleanup()

    return HandedOver(done.target_pid, done.stop_us, done.resume_us, vcpus_ns(task.pid), release)


def cpr_exec(task: Task) -> HandedOver:
    """By stock QEMU's mode ``cpr-exec``: the process saves its state to a file and becomes the new program."""
    state = task.directory / "state"
    with task.monitor() as monitor:
        command = [*task.argv, "-incoming", f"file:{state}"]
        monitor.execute("migrate-set-parameters", {"mode": "cpr-exec", "cpr-exec-command": command})
        stopped_us, old_vcpus_ns = time.time_ns() // 1000, vcpus_ns(task.pid)
        monitor.execute("migrate", {"uri": f"file:{state}"})
        try:
            stopped_us = monitor.wait_event({"STOP"}, 60).timestamp_us
            old_vcpus_ns = vcpus_ns(task.pid)
        except (QmpDeadError, FileNotFoundError, ProcessLookupError, AssertionError):
            pass  # it was quicker than we are: what was read a moment earlier will do
    with _new_monitor(task) as new:
        _wait_running(new)
    state.unlink()
    return HandedOver(task.pid, stopped_us, time.time_ns() // 1000, old_vcpus_ns, lambda: None)


def local_migration(task: Task) -> HandedOver:
    """By an ordinary live migration over a UNIX socket, into a process with RAM of its own."""
    path = task.directory / "migration.sock"
    with open(task.directory / "target.log", "ab") as log:
        command = [*task.argv, "-incoming", f"unix:{path}"]
        target = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    target.returncode = 0  # whoever ends it reaps it, not this object
    _new_monitor(task).close()
    new_ram = RamTrace(target.pid, task.ram_bytes)
    old = task.monitor()
    capabilities = [{"capability": name, "state": True} for name in ("events", "return-path")]
    old.execute("migrate-set-capabilities", {"capabilities": capabilities})
    old.execute("migrate-set-parameters", {"mode": "normal", "max-bandwidth": _BANDWIDTH_BYTES})
    old.execute("migrate", {"uri": f"unix:{path}"})
    stopped_us = _wait_migrated(old)
    with _new_monitor(task) as new:
        _wait_running(new)
    path.unlink(missing_ok=True)

    def release() -> None:
        old.close()
        pidfd = os.pidfd_open(task.pid)
        end_process(task.pid, pidfd)
        os.close(pidfd)

    return HandedOver(target.pid, stopped_us, time.time_ns() // 1000, vcpus_ns(task.pid), release, new_ram)


@dataclass(frozen=True)
class Mechanism:
    """A way, and whether it goes between two stock QEMUs or between two of ours."""

    move: Callable[[Task], HandedOver]
    stock: bool = True


# Our patches make cpr-transfer faster too; beside it shows what vfork does without them.
PATCHED = "cpr-transfer patched"
MECHANISMS = {
    "vfork": Mechanism(vfork, stock=False),
    "cpr-transfer": Mechanism(cpr_transfer),
    "cpr-exec": Mechanism(cpr_exec),
    "local-migration": Mechanism(local_migration),
    PATCHED: Mechanism(cpr_transfer, stock=False),
}


def _release(hand_over: Any) -> None:
    hand_over.release_source()
    hand_over.close()


def _new_monitor(task: Task) -> QmpClient:
    """Connect to the new process, which may not have come so far."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return QmpClient.connect(task.new_monitor_path, 60)
        except QmpDeadError as exc:
            assert time.monotonic() < deadline, f"{task.argv[0]} does not come up: {exc}"
            time.sleep(_POLL_S)


def _wait_migrated(old: QmpClient) -> int:
    """Return when the migration has completed, and when (in microseconds) the guest was paused for it."""
    deadline = time.monotonic() + _MIGRATION_S
    stopped_us = 0
    while True:
        try:
            event = old.wait_event({"MIGRATION", "STOP"}, max(0.0, deadline - time.monotonic()))
        except QmpError as exc:
            raise AssertionError(f"the migration does not end ({exc}): {old.execute('query-migrate')}") from exc
        if event.name == "STOP":
            stopped_us = event.timestamp_us
            continue
        status = event.data["status"]
        assert status not in ("failed", "cancelled"), f"the migration failed: {old.execute('query-migrate')}"
        if status == "completed":
            return stopped_us


def _wait_running(new: QmpClient) -> None:
    deadline = time.monotonic() + 60
    while (status := new.execute("query-status")["status"]) != "running":
        assert time.monotonic() < deadline, f"the new process does not run the guest: it is {status}"
        time.sleep(_POLL_S)
