# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put one host's turn in the rollout's journal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.cores import kvm_record
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event, Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import (
    host_outcome,
    merge_loop,
    soaked_vms,
    vm_records,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import (
    LEFT_OUT,
    STOP,
    leave_out,
    verdicts_to_keep,
)

_RESULTS = ("preflight", "health_before", "upgrade", "health_after", "set_default")
# What was done to the KVM cores, in the order of ``kvm_record``.
_CORES = ("kvm_load", "kvm_found", "kvm_default", "kvm_unload")
_SAID = {"host": "", "rollback": "roll-back ", "settled": "KVM cores "}


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_record``."""

    ARGUMENT_SPEC = {
        "journal": {"type": "path", "required": True},
        "event": {"type": "str", "choices": ["started", "looked", "soaked", *_SAID], "required": True},
        "failure": {"type": "dict", "default": {}},
        "turn": {"type": "dict", "default": {}},
        **{name: {"type": "dict", "default": {}} for name in (*_RESULTS, *_CORES)},
    }

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Append the event; a host that did not come where it should has the reason in its record."""
        host = str(task_vars["inventory_hostname"])
        journal = Journal(Path(arguments["journal"]))
        wave = journal.wave_of(host)
        run = os.getppid()  # as rollout_begin tells who owns the rollout
        if arguments["event"] == "started":
            _require_planned(journal, wave, [str(name) for name in task_vars["ansible_play_batch"]])
            self.say(f"[wave {wave}] {host}: starts")
            return {"record": journal.append("started", host=host, wave=wave, run=run)}
        if arguments["event"] == "soaked":
            return {"record": self._soaked(host, arguments, journal, run)}
        if arguments["event"] == "looked":
            seen = {name: arguments[name] for name in ("health_before", "kvm_load")}
            verdicts = verdicts_to_keep(arguments["preflight"])
            return {"record": journal.append("looked", host=host, wave=wave, run=run, preflight=verdicts, **seen)}

        results = [merge_loop(arguments[name]) for name in (*_RESULTS, *_CORES)]
        unreachable = any(result.get("unreachable") for result in [*results, arguments["failure"]])
        # Of a loop that failed Ansible says only that it did; the items tell why.
        reason = _message(merge_loop(arguments["failure"])) or next(
            (_message(r) for r in results if r.get("unreachable")), None
        )
        preflight, health_before, upgrade, health_after = results[:4]
        known = vm_records(preflight, health_before, upgrade, health_after, reason)
        vms, left_out = leave_out(known, preflight, journal.begin().get("refused_vms") or STOP)
        kvm = kvm_record(*(arguments[name] for name in _CORES))
        outcome = host_outcome(vms, unreachable, failed=bool(arguments["failure"]), left_out=left_out)
        record = journal.append(
            arguments["event"],
            host=host,
            wave=wave,
            run=run,
            outcome=outcome,
            reason=None if outcome in ("ok", LEFT_OUT) else reason,
            vms=vms,
            previous_default=arguments["set_default"].get("previous"),
            default_changed=bool(arguments["set_default"].get("changed")),
            kvm=kvm,
        )
        self.say(
            f"[wave {wave}] {host}: {_SAID[arguments['event']]}{outcome}{f': {reason}' if record['reason'] else ''}"
        )
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
        reason = None if outcome == "ok" else turn["reason"] or _message(failure) or _message(health)
        same = {key: value for key, value in turn.items() if key not in ("event", "at", "run")}
        record = journal.append("host", run=run, **{**same, "vms": vms, "outcome": outcome, "reason": reason})
        self.say(f"[wave {turn['wave']}] {host}: after its soak {outcome}{f': {reason}' if reason else ''}")
        return record


def _require_planned(journal: Journal, wave: int, batch: list[str]) -> None:
    """``serial`` is read before any host's variables are: set elsewhere than with -e, plan and play would differ."""
    stray = sorted(set(batch) - set(journal.begin()["waves"][wave]))
    if stray:
        raise AnsibleError(
            f"the play's batch holds {', '.join(stray)}, which is not in wave {wave} of the plan; nothing was touched. Give "
            "the waves and the hosts on the command line (-e), not in the inventory"
        )


def _message(result: Mapping[str, Any]) -> str | None:
    return str(result["msg"]) if result.get("msg") else None
