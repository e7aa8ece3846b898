# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of ``vm_upgrade``: follows the transaction on the host, over cut connections too.

The host works on by itself; each call of the module starts the transaction or attaches to it, waits a little and tells
how far it is. So a connection that breaks costs nothing but the view, until ``vmm_reconnect_timeout_s`` (a variable,
in seconds) is over.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal

_MODULE = "vmm.live_upgrade.vm_upgrade"
_POLL_S = 5
_DEFAULT_RECONNECT_TIMEOUT_S = 120.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 8.0
_KILLED = (-9, -15, 137, 143)


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Loop over the module until the transaction is finished."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's last answer; ``unreachable`` with what was last seen when the host stays away."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._task_vars = task_vars or {}
        arguments = dict(self._task.args)
        reconnect_timeout_s = float(self._task_vars.get("vmm_reconnect_timeout_s", _DEFAULT_RECONNECT_TIMEOUT_S))
        arguments.setdefault("wait_s", _POLL_S)
        shown = _Progress(self._task_vars.get("inventory_hostname", "host"), self._display, self._journal())
        answer: dict[str, Any] = {}
        changed = False
        while True:
            try:
                answer = self._call_until_answered(arguments, reconnect_timeout_s, shown)
            except AnsibleConnectionFailure as exc:
                result.update(answer, changed=changed, failed=False, unreachable=True, finished=False)
                result.update(msg=_lost(exc, answer), vms=_last_seen(answer))
                return result
            changed = changed or bool(answer.get("changed"))
            shown.show(answer)
            if answer.get("finished", True):
                result.update(answer, changed=changed)
                result.setdefault("failed", False)
                return result
            # Without a rollout, a transaction that ends between two calls would be taken for one of the past.
            arguments["transaction_id"] = answer["transaction_id"]

    def _call_until_answered(self, arguments: dict[str, Any], timeout_s: float, shown: _Progress) -> dict[str, Any]:
        """Call the module once, and again while the way to it is cut. Raises ``AnsibleConnectionFailure`` at the time-out."""
        deadline: float | None = None
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                answer: dict[str, Any] = self._execute_module(
                    module_name=_MODULE, module_args=dict(arguments), task_vars=self._task_vars
                )
                if not _was_killed(answer):
                    return answer
                cut = AnsibleConnectionFailure(f"the module was killed on the host (rc {answer['rc']})")
            except AnsibleAuthenticationFailure:
                raise  # waiting does not mend this
            except AnsibleConnectionFailure as exc:
                cut = exc
            now = time.monotonic()
            deadline = deadline or now + timeout_s
            if now >= deadline:
                raise cut
            shown.note(f"connection lost, trying again for {deadline - now:.0f} s: {_first_line(cut)}")
            # There is no event that tells when a host answers again; the pause grows to spare it.
            time.sleep(min(pause_s, deadline - now))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            self._forget_connection()

    def _journal(self) -> Journal | None:
        """The journal of the rollout that this is part of: what becomes of a VM is in it as soon as the controller knows."""
        path = self._templar.template(self._task_vars.get("vmm_rollout_journal", ""))
        return Journal(Path(path)) if path and not self._task.check_mode else None

    def _forget_connection(self) -> None:
        """Drop a dead multiplexed session and the temporary directory that went with it."""
        self._connection._shell.tmpdir = None
        try:
            self._connection.reset()
        except AnsibleConnectionFailure:
            self._connection.close()


class _Progress:
    """Prints what is new about each VM, one plain line a VM and poll, and has what came of it in the journal."""

    def __init__(self, host: str, display: Any, journal: Journal | None) -> None:
        self._host = host
        self._display = display
        self._journal = journal
        self._steps_shown: dict[str, int] = {}
        self._concluded: set[str] = set()

    def show(self, answer: dict[str, Any]) -> None:
        """Print the steps and outcomes that were not printed yet."""
        for vm in answer.get("vms") or []:
            name, steps = str(vm["name"]), vm.get("steps") or []
            new = [str(step) for step in steps[self._steps_shown.get(name, 0) :]]
            self._steps_shown[name] = len(steps)
            if vm.get("outcome") and name not in self._concluded:
                self._concluded.add(name)
                if self._journal:
                    facts = {key: vm.get(key) for key in ("outcome", "downtime_ms", "new_build_id")}
                    self._journal.append("vm", host=self._host, name=name, run=os.getppid(), **facts)
                new.append(_outcome(vm))
            if new:
                self._display.display(f"{self._host}/{name}: {' → '.join(new)}")

    def note(self, text: str) -> None:
        """Print a line about the host itself."""
        self._display.display(f"{self._host}: {text}")


def _outcome(vm: dict[str, Any]) -> str:
    if vm["outcome"] != "upgraded":
        reason = vm.get("error") or vm.get("reason")
        return f"{vm['outcome']}{f' ({reason})' if reason else ''}"
    downtime = "downtime not measured" if vm.get("downtime_ms") is None else f"downtime {vm['downtime_ms']:.1f} ms"
    moved = vm.get("kvm_build_id") != vm.get("kvm_build_id_before")
    kvm = f" and {vm['kvm_build_id'] or 'another KVM'}" if moved else ""
    return f"running on {vm.get('new_build_id')}{kvm}, {downtime}"


def _last_seen(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each VM with the step it was last seen at, and no outcome: nobody knows it."""
    return [{"name": vm["name"], "step": vm["steps"][-1]} for vm in answer.get("vms") or [] if vm.get("steps")]


def _was_killed(answer: dict[str, Any]) -> bool:
    return "vms" not in answer and bool(answer.get("failed")) and answer.get("rc") in _KILLED


def _lost(cut: Exception, answer: dict[str, Any]) -> str:
    transaction = answer.get("transaction_id")
    state = f"; transaction {transaction} is finished or undone by the host itself, run again to learn its outcome"
    return (
        f"{_first_line(cut)}{state if transaction else '; whether the upgrade began is unknown, run again to learn it'}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
