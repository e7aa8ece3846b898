# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand a guest from one QEMU to another on the same host by upstream's ``cpr-transfer``, with one runner at any time.

Upstream starts the target's vCPUs before it tells the source that it has loaded, and a source left alone resumes when it
hears nothing. Two rules make the outcome certain:

* the target is started with ``-S``: it loads and waits, and our ``cont`` is the only thing that starts it;
* with ``return-path`` the source ends in exactly one of two states, decided inside the source: *completed* (it never runs
  the guest again, the target gets ``cont``) or *cancelled/failed* (it resumes by itself, the target is killed and reaped).

A source that completed is never sent ``cont``. PRIVATE to the collection.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils import syscalls
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import (
    QmpClient,
    QmpCommandError,
    QmpError,
    QmpTimeoutError,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import (
    SETTLES_S,
    UNRESPONSIVE_S,
    Committed,
    GuestLost,
    GuestStranded,
    Limits,
    TakenBack,
    end_process,
    has_ended,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.last_words import last_lines
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.spawn import spawn_like, start_ticks
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.backends import PRIVATE_MONITOR
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import CommandPlan

_CAPABILITIES = {"return-path", "events"}


class _TransferFailed(LiveUpgradeError):
    """Internal: the transfer did not complete; take the guest back."""


class CprTransfer:
    """One hand-over of one VM. The caller holds the source's monitor, so new clients of it reach the target."""

    def __init__(
        self,
        source_pid: int,
        source: QmpClient,
        workspace: Path,
        log_path: Path,
        limits: Limits,
        note: Callable[..., None],
    ) -> None:
        """``workspace`` is a directory only the VM's user may enter; ``note(step, **facts)`` writes the journal."""
        self._source_pid = source_pid
        self._source_pidfd = os.pidfd_open(source_pid)
        self._source = source
        self._workspace = workspace
        self._log_path = log_path
        self._limits = limits
        self._note = note
        self._restore: list[Callable[[], object]] = []
        self._target: QmpClient | None = None
        self._target_pid = 0
        self._target_pidfd = -1
        self._stop_us = 0

    def run(self, command: CommandPlan, descriptors: dict[int, int], owner: tuple[int, int]) -> Committed:
        """Start ``command`` and move the guest into it.

        ``descriptors``: number seen by the target → our descriptor behind it. ``owner``: uid and gid of the VM.
        Raises ``TakenBack``, ``GuestStranded`` or ``GuestLost``; a failed journal before the pause is a ``TakenBack``.
        """
        try:
            self._prepare_source()
            self._spawn_target(command, descriptors, owner)
            self._note("handing-over", target_pid=self._target_pid)
            self._start_migration()
            self._await_completion()
        except (LiveUpgradeError, OSError) as exc:
            self._settle(exc)
        return self._commit()

    def resume(self, target_pid: int) -> Committed:
        """Finish or undo a hand-over that an engine before us began and did not live to end. Raises as ``run``."""
        if target_pid:
            self._target_pid = target_pid
            self._target_pidfd = os.pidfd_open(target_pid)
            try:
                self._target = QmpClient.attach(self._monitor_path, timeout_s=UNRESPONSIVE_S)
                if self._target.execute("query-status")["status"] == "running":
                    return Committed(target_pid, 0, 0)
            except QmpError:
                self._target = None  # not up yet, or gone: it holds nothing that the source does not
        self._restore.append(lambda: self._source.execute("migrate-set-parameters", {"mode": "normal"}))
        self._restore.append(lambda: self._set_capabilities(on=set(), off=_CAPABILITIES))
        self._settle(LiveUpgradeError("the upgrade was interrupted"))
        return self._commit()

    def _settle(self, cause: BaseException) -> None:
        """Return when the target holds the whole guest and is to run it; raise when it is not."""
        if self._target_pidfd >= 0 and has_ended(self._target_pidfd, 0.2):
            cause = LiveUpgradeError(f"{self._target_end()}; seen as: {cause}")
        if not self._source_is_alive():
            self._outlive_source(cause)
        elif not self._take_back():
            self._undo_settings()
            raise TakenBack(str(cause)) from cause

    def release_source(self) -> None:
        """End the old process, which no longer owns the guest. Raises ``LiveUpgradeError`` when it does not go."""
        self._source.close()
        end_process(self._source_pid, self._source_pidfd)

    def close(self) -> None:
        """Close descriptors; processes are left as they are. Idempotent."""
        if self._target:
            self._target.close()
        for fd in (self._source_pidfd, self._target_pidfd):
            if fd >= 0:
                os.close(fd)
        self._source_pidfd = self._target_pidfd = -1

    # --- before the pause

    def _prepare_source(self) -> None:
        enabled = {
            str(capability["capability"])
            for capability in self._source.execute("query-migrate-capabilities")
            if capability["state"]
        }
        mode = self._source.execute("query-migrate-parameters").get("mode", "normal")
        self._restore.append(lambda: self._source.execute("migrate-set-parameters", {"mode": mode}))
        self._restore.append(lambda: self._set_capabilities(on=enabled - _CAPABILITIES, off=_CAPABILITIES - enabled))
        self._set_capabilities(on=_CAPABILITIES, off=enabled - _CAPABILITIES)
        self._source.execute("migrate-set-parameters", {"mode": "cpr-transfer"})

    def _set_capabilities(self, on: set[str], off: set[str]) -> None:
        states = [{"capability": name, "state": state} for names, state in ((on, True), (off, False)) for name in names]
        self._source.execute("migrate-set-capabilities", {"capabilities": states})

    def _spawn_target(self, command: CommandPlan, descriptors: dict[int, int], owner: tuple[int, int]) -> None:
        """Start the target on listening sockets of ours, so that there is nothing to wait for before connecting."""
        with _listener(self._cpr_path, owner) as cpr, _listener(self._monitor_path, (0, 0)) as monitor:
            first = max(descriptors, default=2) + 1
            numbers = {first: cpr.fileno(), first + 1: monitor.fileno()}
            channel = {"channel-type": "cpr", "addr": {"transport": "socket", "type": "fd", "str": str(first)}}
            chardev = f"socket,id={PRIVATE_MONITOR},fd={first + 1},server=on,wait=off"
            self._target_pid = spawn_like(
                self._source_pid,
                [
                    *command.argv,
                    *("-S", "-incoming", f"unix:{self._main_path}", "-incoming", json.dumps(channel)),
                    *("-chardev", chardev, "-mon", f"chardev={PRIVATE_MONITOR},mode=control"),
                ],
                {**descriptors, **numbers},
                self._log_path,
                command.environment,
            )
        self._target_pidfd = os.pidfd_open(self._target_pid)
        self._note("spawned", target_pid=self._target_pid, target_start_ticks=start_ticks(self._target_pid))
        self._target = QmpClient.attach(self._monitor_path, timeout_s=self._limits.prepare_s)

    def _start_migration(self) -> None:
        channels = [
            {"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": path}}
            for kind, path in (("main", self._main_path), ("cpr", self._cpr_path))
        ]
        self._source.drain_events()
        self._source.execute("migrate", {"channels": channels}, timeout_s=self._limits.prepare_s)

    # --- the pause

    def _await_completion(self) -> None:
        """Return when the source has completed. Raises ``_TransferFailed`` when it will not, or not in time."""
        deadline = time.monotonic() + self._limits.prepare_s
        why_late = f"the new process was not ready within {self._limits.prepare_s:g} s"
        watched: list[QmpClient | int] = [self._source, self._target_pidfd]
        while True:
            for event in self._source.drain_events():
                if event.name == "STOP":
                    self._stop_us = event.timestamp_us
                    deadline = time.monotonic() + self._limits.downtime_s
                    why_late = f"the pause exceeded its budget of {self._limits.downtime_s * 1000:g} ms"
                elif event.name == "MIGRATION" and event.data["status"] == "completed":
                    return
                elif event.name == "MIGRATION" and event.data["status"] in ("failed", "cancelled"):
                    raise _TransferFailed(self._why_failed())
            ready = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise _TransferFailed(why_late)
            if self._target_pidfd in ready:
                # The source notices by itself: its channel breaks. It only gets a bounded time for that.
                watched.remove(self._target_pidfd)
                deadline = min(deadline, time.monotonic() + UNRESPONSIVE_S)
                why_late = self._target_end()

    def _why_failed(self) -> str:
        description = self._source.execute("query-migrate").get("error-desc")
        return f"the old process says: {description or 'the transfer failed'}"

    def _target_end(self) -> str:
        how = "ended"
        if self._target_pidfd < 0:
            return "the new process had ended before"
        try:
            status = os.waitid(os.P_PIDFD, self._target_pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            status = None  # an engine that died before us was its parent
        if status and status.si_code == os.CLD_EXITED:
            how = f"exited with status {status.si_status}"
        elif status:
            how = f"was killed by {signal.Signals(status.si_status).name}"
        return f"the new process {how}{self._log_tail()}"

    def _log_tail(self) -> str:
        return last_lines(self._log_path.read_text(errors="replace")) if self._log_path.exists() else ""

    def _commit(self) -> Committed:
        """Start the guest in the target. From here on there is no way back to the old process."""
        holder = f"the new process {self._target_pid} holds the guest"
        try:
            if self._target is None:
                self._target = QmpClient.attach(self._monitor_path, timeout_s=UNRESPONSIVE_S)
            self._target.execute("cont", timeout_s=SETTLES_S)
            resumed = self._target.wait_event({"RESUME"}, SETTLES_S)
        except QmpCommandError as exc:
            raise GuestStranded(f"{holder}, paused, and refuses to start it: {exc.description}") from exc
        except QmpError as exc:
            if self._target_pidfd < 0 or has_ended(self._target_pidfd):
                raise GuestLost(f"after the hand-over {self._target_end()}") from exc
            raise GuestStranded(f"{holder} and was told to start it, but does not answer ({exc})") from exc
        return Committed(self._target_pid, self._stop_us, resumed.timestamp_us)

    # --- the way back

    def _take_back(self) -> bool:
        """Make the source run the guest on and reap the target; or return True when the source had completed after all.

        Raises ``GuestStranded`` when the source neither completes nor resumes.
        """
        try:
            # A "completed" of a migration long before ours must not start a target that holds nothing.
            if self._cancel_source() == "completed" and self._source_run_state() != "running":
                return True
        except QmpTimeoutError as exc:
            raise GuestStranded(f"the old process {self._source_pid} does not answer; the new one was ended") from exc
        self._reap_target()
        deadline = time.monotonic() + SETTLES_S
        while True:
            run_state = self._source_run_state()
            if run_state == "running":
                return False
            try:
                self._source.wait_event({"RESUME"}, min(1.0, max(0.0, deadline - time.monotonic())))
            except QmpTimeoutError:
                if time.monotonic() >= deadline:
                    raise GuestStranded(
                        f"the old process {self._source_pid} holds the guest in state {run_state!r} and does not resume it"
                    ) from None

    def _source_run_state(self) -> str:
        return str(self._source.execute("query-status", timeout_s=UNRESPONSIVE_S)["status"])

    def _cancel_source(self) -> str:
        """Cancel, and return the state in which the source's migration ended: the one decision about who runs on."""
        try:
            return self._ended_state(UNRESPONSIVE_S)
        except QmpTimeoutError:
            # It may be blocked in a write to a target that does not read. Freeze the target, so that it can tell the
            # source nothing new, give what it has told time to be heard, and only then kill it.
            self._signal_target(signal.SIGSTOP)
        try:
            status = self._ended_state(UNRESPONSIVE_S)
        except QmpTimeoutError:
            self._reap_target()
            status = self._ended_state(SETTLES_S)
            if status == "completed":
                raise GuestLost("the old process completed only after the new one had been given up for dead") from None
        if status == "completed":
            self._signal_target(signal.SIGCONT)
        return status

    def _ended_state(self, timeout_s: float) -> str:
        """Cancel and wait until no migration runs. Raises ``QmpTimeoutError``."""
        deadline = time.monotonic() + timeout_s
        self._source.execute("migrate_cancel", timeout_s=timeout_s)
        while True:
            status = str(self._source.execute("query-migrate", timeout_s=timeout_s).get("status", "none"))
            if status in ("none", "completed", "failed", "cancelled"):
                return status
            self._source.wait_event({"MIGRATION"}, max(0.0, deadline - time.monotonic()))

    def _signal_target(self, number: int) -> None:
        try:
            syscalls.pidfd_send_signal(self._target_pidfd, number)
        except ProcessLookupError:
            pass  # gone and reaped already: what the signal was for

    def _target_has_loaded(self) -> bool:
        if self._target is None or not self._target_pid:
            return False
        try:
            return bool(self._target.execute("query-migrate", timeout_s=UNRESPONSIVE_S).get("status") == "completed")
        except QmpError:
            return False

    def _reap_target(self) -> None:
        """End the target and know that it is gone. It may be a child of an engine that died before us."""
        if not self._target_pid:
            return
        self._signal_target(signal.SIGKILL)
        if not has_ended(self._target_pidfd, SETTLES_S):
            raise GuestStranded(f"the new process {self._target_pid} was killed but does not go; the old one is paused")
        try:
            os.waitid(os.P_PIDFD, self._target_pidfd, os.WEXITED)
        except ChildProcessError:
            pass  # not our child: its own parent, or init, reaps it
        self._target_pid = 0

    def _undo_settings(self) -> None:
        for undo in reversed(self._restore):
            undo()

    def _source_is_alive(self) -> bool:
        return not has_ended(self._source_pidfd)

    def _outlive_source(self, cause: BaseException) -> None:
        """The source died: return when the target holds the whole guest and may start it. Raises ``GuestLost``."""
        if self._target_has_loaded():
            return
        self._reap_target()
        raise GuestLost(f"the old process {self._source_pid} died before the hand-over ({cause})") from cause

    @property
    def _monitor_path(self) -> str:
        return str(self._workspace / "monitor.sock")

    @property
    def _cpr_path(self) -> str:
        return str(self._workspace / "cpr.sock")

    @property
    def _main_path(self) -> str:
        return str(self._workspace / "main.sock")


def _listener(path: str, owner: tuple[int, int]) -> socket.socket:
    """Return a listening socket at ``path`` that only ``owner`` (uid, gid) and root may connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        os.chown(path, *owner)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener
