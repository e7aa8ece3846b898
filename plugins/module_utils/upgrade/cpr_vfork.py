# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand a guest to a new QEMU by the mode ``cpr-vfork`` of our own builds: the running QEMU does it all by itself.

It executes the new one as its child, hands over under a single-runner token, and takes the guest back on any failure. What
is left to us is to give the command, to watch, and to end the old process. A rehearsal goes the same way, up to where the
new one would take the guest. PRIVATE to the collection.
"""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.journal import JournalError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import (
    QmpClient,
    QmpDeadError,
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
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.last_words import LastWords
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.spawn import start_ticks

_ENDS = ("running", "aborted", "lost", "stranded")
_POLL_S = 0.1
_REHEARSED = "it was a rehearsal"


@dataclass(frozen=True)
class Rehearsed:
    """What came of a rehearsal, after which the old process runs the guest as before.

    ``phases_ms``: phase of the mode → when it was reached, from the start of the new process. ``pause_ms``: by QEMU's own
    clock; 0 when the guest was not paused.
    """

    passed: bool
    reason: str
    pause_ms: float
    phases_ms: dict[str, float]


class CprVfork:
    """One hand-over of one VM. The caller holds the source's monitor."""

    def __init__(
        self,
        source_pid: int,
        source: QmpClient,
        target_monitor: Callable[[int], QmpClient],
        limits: Limits,
        note: Callable[..., None],
    ) -> None:
        """``note(step, **facts)`` writes the journal.

        ``target_monitor(pid)`` connects to a monitor that process ``pid`` serves; raises ``QmpError``.
        """
        self._source_pid = source_pid
        self._source_pidfd = os.pidfd_open(source_pid)
        self._source = source
        self._target_monitor = target_monitor
        self._limits = limits
        self._note = note
        self._restore: list[Callable[[], object]] = []
        self._target_pid = 0
        self._target_pidfd = -1
        self._stop_us = 0
        self._resume_us = 0
        self._trouble: LiveUpgradeError | None = None
        self._last_words = LastWords(source_pid)

    def run(self, argv: list[str], descriptors: list[int]) -> Committed:
        """Start ``argv`` and move the guest into it. ``descriptors``: those of the old process that ``argv`` names.

        Raises ``TakenBack``, ``GuestStranded`` or ``GuestLost``, and ``QmpTimeoutError`` when nothing was begun; a failed
        journal before the pause is a ``TakenBack``.
        """
        try:
            self._prepare_source(argv, descriptors, rehearse=False)
            self._note("handing-over")
            self._begin()
        except QmpDeadError as exc:
            return self._outlive_source(exc)
        except QmpTimeoutError:
            raise  # before the begin: the VM is as it was, and so busy that nothing can be asked of it
        except LiveUpgradeError as exc:
            self._undo_settings()
            raise TakenBack(str(exc)) from exc
        return self._follow()

    def rehearse(self, argv: list[str], descriptors: list[int]) -> Rehearsed:
        """Let ``argv`` load the guest's state, and the old process go on with the guest, whatever comes of it.

        Raises ``TakenBack`` when QEMU refuses to begin, ``GuestStranded`` and ``GuestLost`` when the old process failed.
        """
        try:
            self._prepare_source(argv, descriptors, rehearse=True)
            self._begin()
            info = self._await_end()
            self._undo_settings()
        except QmpDeadError as exc:
            raise GuestLost(f"the old process {self._source_pid} died in the rehearsal ({exc})") from exc
        except QmpTimeoutError as exc:
            raise GuestStranded(f"the old process {self._source_pid} does not answer ({exc})") from exc
        except LiveUpgradeError as exc:
            self._undo_settings()
            raise TakenBack(str(exc)) from exc
        self._require_running()
        reason = str(info["reason"])
        passed = reason.startswith(_REHEARSED)
        return Rehearsed(
            passed=passed,
            reason=reason if passed else self._in_words(reason),
            pause_ms=round((self._resume_us - self._stop_us) / 1000, 3),
            phases_ms={entry["phase"]: entry["time"] / 1000 for entry in info["times"]},
        )

    def resume(self, target_pid: int) -> Committed:
        """Watch a hand-over to its end that an engine before us began and did not live to see. Raises as ``run``."""
        if target_pid:
            self._target_pid, self._target_pidfd = target_pid, os.pidfd_open(target_pid)
        self._restore.append(lambda: self._source.execute("migrate-set-parameters", {"mode": "normal"}))
        info = self._info()
        if info["phase"] == "idle":
            self._undo_settings()
            raise TakenBack("the upgrade was interrupted before it began")
        return self._conclude(info) if info["phase"] in _ENDS else self._follow()

    def release_source(self) -> None:
        """End the old process, which no longer owns the guest. Raises ``LiveUpgradeError`` when it does not go."""
        self._source.close()
        end_process(self._source_pid, self._source_pidfd)

    def close(self) -> None:
        """Close descriptors; processes are left as they are. Idempotent."""
        for fd in (self._source_pidfd, self._target_pidfd):
            if fd >= 0:
                os.close(fd)
        self._source_pidfd = self._target_pidfd = -1
        self._last_words.close()

    def _prepare_source(self, argv: list[str], descriptors: list[int], rehearse: bool) -> None:
        phase = self._info()["phase"]
        if phase not in ("idle", *_ENDS):
            raise LiveUpgradeError(f"the old process {self._source_pid} is in another hand-over (phase {phase})")
        enabled = [
            str(capability["capability"])
            for capability in self._source.execute("query-migrate-capabilities")
            if capability["state"]
        ]
        mode = self._source.execute("query-migrate-parameters").get("mode", "normal")
        if mode == "cpr-vfork":
            mode = "normal"  # left by a rehearsal whose watcher was killed
        self._restore.append(lambda: self._source.execute("migrate-set-parameters", {"mode": mode}))
        self._restore.append(lambda: self._source.execute("cpr-vfork-set"))
        self._restore.append(lambda: self._set_capabilities(enabled, True))
        self._set_capabilities(enabled, False)
        self._source.execute("migrate-set-parameters", {"mode": "cpr-vfork", "cpr-exec-command": argv})
        times = {
            "pause-budget": round(self._limits.downtime_s * 1000),
            "prepare-timeout": round(self._limits.prepare_s * 1000),
        }
        self._source.execute("cpr-vfork-set", {**times, "rehearse": rehearse, "fds": sorted(set(descriptors))})

    def _begin(self) -> None:
        self._source.drain_events()
        try:
            self._source.execute("migrate", {}, timeout_s=self._limits.prepare_s)
        except QmpTimeoutError:
            pass  # it may have begun all the same: the events tell

    def _set_capabilities(self, names: list[str], state: bool) -> None:
        states = [{"capability": name, "state": state} for name in names]
        self._source.execute("migrate-set-capabilities", {"capabilities": states})

    def _follow(self) -> Committed:
        try:
            return self._conclude(self._await_end())
        except QmpTimeoutError as exc:
            raise GuestStranded(f"the old process {self._source_pid} does not answer ({exc})") from exc
        except QmpDeadError as exc:
            return self._outlive_source(exc)

    def _await_end(self) -> dict[str, Any]:
        """Return what QEMU says of the end. It bounds each phase itself; our limit is for a QEMU that does not answer.

        Raises ``QmpTimeoutError`` and ``QmpDeadError``.
        """
        deadline = time.monotonic() + self._limits.prepare_s + self._limits.downtime_s + SETTLES_S
        while True:
            event = self._source.wait_event({"CPR_VFORK", "STOP", "RESUME"}, max(0.0, deadline - time.monotonic()))
            if event.name == "STOP":
                self._stop_us = event.timestamp_us
            elif event.name == "RESUME":
                self._resume_us = event.timestamp_us
            elif event.data["phase"] in _ENDS:
                return self._info()
            elif event.data["phase"] == "spawned":
                self._see_target(int(event.data["child-pid"]))

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._source.execute("query-cpr-vfork", timeout_s=UNRESPONSIVE_S)
        return info

    def _see_target(self, pid: int) -> None:
        self._target_pid = pid
        try:
            self._target_pidfd = os.pidfd_open(pid)
            self._note("spawned", target_pid=pid, target_start_ticks=start_ticks(pid))
        except ProcessLookupError:
            return  # it has failed already, which QEMU is about to tell
        except JournalError as exc:
            self._trouble = exc
            self._source.execute("migrate_cancel")

    def _conclude(self, info: dict[str, Any]) -> Committed:
        if info["phase"] == "running":
            times = {entry["phase"]: entry["time"] for entry in info["times"]}
            if "running" not in times:  # a build that has no "stranded" yet
                raise GuestStranded(f"the new process {info['child-pid']} has taken the guest and has not started it")
            pause_us = times["running"] - times.get("stopped", 0)
            return Committed(int(info["child-pid"]), self._stop_us, self._stop_us + pause_us)
        if info["phase"] == "lost":
            raise GuestLost(str(info["reason"]))
        if info["phase"] == "stranded":
            raise GuestStranded(f"process {info['child-pid']}: {info['reason']}")
        self._undo_settings()
        self._require_running()
        raise TakenBack(str(self._trouble or self._in_words(str(info["reason"]))))

    def _require_running(self) -> None:
        """Raise ``GuestStranded`` unless the old process, which has the guest, runs it."""
        run_state = self._source.execute("query-status", timeout_s=UNRESPONSIVE_S)["status"]
        if run_state != "running":
            raise GuestStranded(
                f"the old process {self._source_pid} has the guest in state {run_state!r} and does not resume it"
            )

    def _in_words(self, reason: str) -> str:
        """Name the signal, and add what the new process said: it wrote where the old one does."""
        named = re.sub(r"\bsignal (\d+)\b", lambda match: signal.Signals(int(match[1])).name, reason)
        return named.replace("the new QEMU", "the new process", 1) + self._last_words.heard()

    def _outlive_source(self, cause: QmpError) -> Committed:
        """The old process ended: return when the new one runs the guest. Raises ``GuestLost`` and ``GuestStranded``."""
        try:
            if self._target_pidfd < 0:
                raise GuestLost("there was no new one yet")
            await_orphan(self._target_pid, self._target_pidfd, self._target_monitor)
        except (GuestLost, GuestStranded) as exc:
            raise type(exc)(f"the old process {self._source_pid} died in the hand-over ({cause}): {exc}") from exc
        return Committed(self._target_pid, self._stop_us, self._stop_us)

    def _undo_settings(self) -> None:
        for undo in reversed(self._restore):
            undo()


def await_orphan(pid: int, pidfd: int, monitor: Callable[[int], QmpClient]) -> None:
    """Return when the child ``pid`` of an old process that has died runs the guest.

    That it does when it was given the guest; when not, it ends by itself. Raises ``GuestLost`` and ``GuestStranded``.
    """
    deadline = time.monotonic() + SETTLES_S
    while not has_ended(pidfd, _POLL_S):
        try:
            with monitor(pid) as target:
                if target.execute("query-status", timeout_s=UNRESPONSIVE_S)["status"] == "running":
                    return
        except QmpError:
            pass  # not up, or about to end
        if time.monotonic() >= deadline:
            raise GuestStranded(f"the new process {pid} neither runs the guest nor ends")
    raise GuestLost(f"the new process {pid} ended before it had taken the guest")
