# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a rollout's report as a table, and write it as a page, as JUnit or as metrics where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.outputs import (
    RENDERERS,
    pending_outputs,
    write_outputs,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.render import render_table
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import load_report


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_report``."""

    ARGUMENT_SPEC = {"report": {"type": "path", "required": True}, **{kind: {"type": "path"} for kind in RENDERERS}}

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Print the table; write only what differs, so that a second run changes nothing."""
        report = load_report(Path(arguments["report"]))
        self.say(f"\n{render_table(report)}\n")
        outputs = {kind: str(Path(arguments[kind]).absolute()) for kind in RENDERERS if arguments[kind]}
        changed = pending_outputs(report, outputs) if self.is_plan else write_outputs(report, outputs)
        return {
            "changed": bool(changed),
            "verdict": report["verdict"],
            "summary": report["summary"],
            "outputs": outputs,
        }
