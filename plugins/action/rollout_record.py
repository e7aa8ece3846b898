# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put one host's turn in the rollout's journal."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event, Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import host_outcome, soaked_vms
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.turn import (
    Answers,
    message_of,
    record_turn,
    start_turn,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.steps import watch_host

_ANSWERS = tuple(field.name for field in fields(Answers) if field.name != "failure")
_SAID = {"host": "", "rollback": "roll-back ", "settled": "KVM cores "}


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_record``."""

    ARGUMENT_SPEC = {
        "journal": {"type": "path", "required": True},
        "event": {"type": "str", "choices": ["started", "soaked", "watched", *_SAID], "required": True},
        "failure": {"type": "dict", "default": {}},
        "turn": {"type": "dict", "default": {}},
        **{name: {"type": "dict", "default": {}} for name in _ANSWERS},
    }

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Append the event; a host that did not come where it should has the reason in its record."""
        host = str(task_vars["inventory_hostname"])
        journal = Journal(Path(arguments["journal"]))
        run = os.getppid()  # as rollout_begin tells who owns the rollout
        if arguments["event"] == "started":
            started = start_turn(journal, host, run, [str(name) for name in task_vars["ansible_play_batch"]])
            self.say(f"[wave {started['wave']}] {host}: starts")
            return {"record": started}
        if arguments["event"] == "watched":
            other = str(self._task.delegate_to or host)
            watch_host(journal.path, other, self._connection, arguments["health_before"])
            return {"record": {}}
        if arguments["event"] == "soaked":
            return {"record": self._soaked(host, arguments, journal, run)}
        answers = Answers(**{name: arguments[name] for name in (*_ANSWERS, "failure")})
        record = record_turn(journal, arguments["event"], host, run, answers)
        why = f": {record['reason']}" if record["reason"] else ""
        self.say(f"[wave {record['wave']}] {host}: {_SAID[arguments['event']]}{record['outcome']}{why}")
        return {"record": record}

    def _soaked(self, host: str, arguments: dict[str, Any], journal: Journal, run: int) -> Event:
        """Record the turn of the host once more, with the later look at the health of its VMs.

        The turn may have been that of a run which was cut; then it is in the journal.
        """
        turn = arguments["turn"] or next(
            event for event in reversed(journal.read()) if event["event"] == "host" and event["host"] == host
        )
        health, failure = arguments["health_after"], arguments["failure"]
        vms = soaked_vms(turn["vms"], health, compared=bool(arguments["health_before"].get("vms")))
        unreachable = bool(health.get("unreachable") or failure.get("unreachable"))
        outcome = host_outcome(vms, unreachable, failed=bool(failure) or turn["outcome"] != "ok")
        reason = None if outcome == "ok" else turn["reason"] or message_of(failure) or message_of(health)
        same = {key: value for key, value in turn.items() if key not in ("event", "at", "run")}
        record = journal.append("host", run=run, **{**same, "vms": vms, "outcome": outcome, "reason": reason})
        self.say(f"[wave {turn['wave']}] {host}: after its soak {outcome}{f': {reason}' if reason else ''}")
        return record
