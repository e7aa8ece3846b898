# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what becomes of the hosts of waves that were judged together with a later one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import (
    left_out,
    loaded_cores,
    previous_defaults_of,
    rollback_targets,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import left_open
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.resume import is_finished


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_open``."""

    ARGUMENT_SPEC = {
        "journal": {"type": "path", "required": True},
        "rollback": {"type": "str", "choices": ["auto", "never"], "default": "auto"},
    }

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """They fail, pass or wait with the wave that decided. The answer is that of ``rollout_gate`` for them."""
        events = Journal(Path(arguments["journal"])).read()
        records = {event["host"]: event for event in events if event["event"] == "host"}
        # Of a rollout that has ended they were seen to before.
        decided = {} if is_finished(events) else left_open(events)
        failed, passed, paused = (decided.get(then, []) for then in ("stop", "go_on", "pause"))
        undo = failed if arguments["rollback"] == "auto" else []
        targets = rollback_targets(undo, records)
        idle = left_out(passed, records)
        cores = loaded_cores([*failed, *paused, *idle], records)
        passed = [host for host in passed if host not in idle]
        return {
            "hosts": sorted({*targets, *passed, *cores}),
            "targets": targets,
            "previous_defaults": previous_defaults_of(undo, records),
            "loaded_cores": cores,
            "settle": passed,
        }
