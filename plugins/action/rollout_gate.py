# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge a wave and say whether the rollout goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import (
    Gate,
    judge,
    left_out,
    loaded_cores,
    previous_defaults_of,
    rollback_targets,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event, Journal, require_owner
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import Look, look_at, next_step
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import health_by_host
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.render import evidence_line
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.resume import accepted_waves
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.shards import Shard, StoreError, tally
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.status import PERSON
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.steps import leave, look_now


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_gate``."""

    ARGUMENT_SPEC = {
        "journal": {"type": "path", "required": True},
        "rollback": {"type": "str", "choices": ["auto", "never"], "default": "auto"},
        "others": {"type": "dict", "default": {}},
    }

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Judge the wave of this batch from the journal. A plan is judged to its end: it changes nothing."""
        journal = Journal(Path(arguments["journal"]))
        wave = journal.wave_of(str(task_vars["inventory_hostname"]))
        others = health_by_host(arguments["others"])
        events = journal.read()
        # A wave that is judged anew keeps what was seen in its own time.
        if others and not any(event["event"] == "gate" and event["wave"] == wave for event in events):
            journal.append("others", wave=wave, hosts=others)
            events = journal.read()
        require_owner(events, os.getppid())
        begin = events[0]
        hosts = begin["waves"][wave]
        records = {event["host"]: event for event in events if event["event"] == "host"}
        so_far = [host for hosts in begin["waves"][: wave + 1] for host in hosts]
        look = Look() if self.is_plan else look_at(events, wave, look_now(journal.path, so_far))
        gate = judge(hosts, records, begin["downtime_budget_ms"], look)
        then = next_step(gate.verdict, look.policy, begin["waves"], wave, accepted=wave in accepted_waves(events))
        judged = journal.append("gate", wave=wave, gate={**gate.to_dict(), "then": then})
        if then == "pause" and begin["kind"] == "upgrade" and not self.is_plan:
            journal.append("paused", wave=wave, waits_for=PERSON, reason=_question(begin["rollout_id"], wave))
        shard = None if self.is_plan else Shard.of(events)
        told = _counted(shard, [*events, judged]) if shard else ""
        if then == "go_on" and not self.is_plan:
            leave(journal.path, so_far)

        stop = then in ("stop", "pause") and not self.is_plan
        undo = stop and then == "stop" and arguments["rollback"] == "auto" and begin["kind"] == "upgrade"
        targets = rollback_targets(hosts, records) if undo else {}
        self._say(gate, wave)
        if told:
            self.say(f"[wave {wave}] {told}")
        if then == "grow":
            self.say(f"[wave {wave}] growing: wave {wave + 1} is taken in, to have more to judge by")
        elif stop:
            later = sum(len(hosts) for hosts in begin["waves"][wave + 1 :])
            back = f", rolling back {', '.join(targets)}" if targets else ""
            untouched = f"; {later} later hosts stay untouched" if later else ""
            self.say(f"[wave {wave}] stopping{back}{untouched}")
        return {
            "wave": wave,
            "stop": stop,
            "targets": targets,
            "previous_defaults": previous_defaults_of(hosts, records) if undo else {},
            # A host that is left out has no use for the new core, and keeps the default that it has.
            "loaded_cores": loaded_cores(hosts if stop else left_out(hosts, records), records),
            "settle": [host for host in hosts if host not in left_out(hosts, records)] if then == "go_on" else [],
            **gate.to_dict(),
            "then": then,
        }

    def _say(self, gate: Gate, wave: int) -> None:
        what = "plan" if self.is_plan else "gate"
        self.say(f"[wave {wave}] {what} {gate.verdict}: {evidence_line(gate.to_dict()['evidence'], self.is_plan)}")
        for reason in gate.reasons:
            self.say(f"[wave {wave}]   {reason}")


def _question(rollout_id: str, wave: int) -> str:
    return (
        f"A person has to decide: go on without proof with -e upgrade_resume={rollout_id} -e upgrade_accept_wave={wave}, or go "
        f"back with playbooks/rollback.yml -e rollback_from={rollout_id}"
    )


def _counted(shard: Shard, events: list[Event]) -> str:
    """A store that is away must not keep a wave from being rolled back; the next wave is not entered without it."""
    try:
        return shard.count(tally(events))
    except StoreError as exc:
        return f"what came of the wave was not told to the other shards: {exc}"
