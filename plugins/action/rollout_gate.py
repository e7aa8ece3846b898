# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge a wave and say whether the rollout goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import (
    FAIL,
    PASS,
    judge,
    loaded_cores,
    rollback_targets,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.render import evidence_line


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_gate``."""

    ARGUMENT_SPEC = {
        "journal": {"type": "path", "required": True},
        "rollback": {"type": "str", "choices": ["auto", "never"], "default": "auto"},
    }

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Judge the wave of this batch from the journal. A plan is judged to its end: it changes nothing."""
        journal = Journal(Path(arguments["journal"]))
        events = journal.read()
        begin = events[0]
        host = str(task_vars["inventory_hostname"])
        wave = next(index for index, hosts in enumerate(begin["waves"]) if host in hosts)
        hosts = begin["waves"][wave]
        records = {event["host"]: event for event in events if event["event"] == "host"}
        gate = judge(hosts, records, begin["downtime_budget_ms"])
        journal.append("gate", wave=wave, gate=gate.to_dict())

        stop = gate.verdict != PASS and not self.is_plan
        undo = stop and gate.verdict == FAIL and arguments["rollback"] == "auto" and begin["kind"] == "upgrade"
        what = "plan" if self.is_plan else "gate"
        self.say(f"[wave {wave}] {what} {gate.verdict}: {evidence_line(gate.to_dict()['evidence'], self.is_plan)}")
        for reason in gate.reasons:
            self.say(f"[wave {wave}]   {reason}")
        if stop:
            later = sum(len(hosts) for hosts in begin["waves"][wave + 1 :])
            targets = rollback_targets(hosts, records) if undo else {}
            back = f", rolling back {', '.join(targets)}" if targets else ""
            untouched = f"; {later} later hosts stay untouched" if later else ""
            self.say(f"[wave {wave}] stopping{back}{untouched}")
        return {
            "wave": wave,
            "stop": stop,
            "targets": rollback_targets(hosts, records) if undo else {},
            "previous_defaults": {
                name: record["previous_default"]
                for name, record in records.items()
                if undo and name in hosts and record["default_changed"] and record["previous_default"]
            },
            "loaded_cores": loaded_cores(hosts, records) if stop else {},
            **gate.to_dict(),
        }
