# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a rollout's report as a table, and as a page where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import write_atomically
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.render import render_html, render_table
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import load_report


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_report``."""

    ARGUMENT_SPEC = {"report": {"type": "path", "required": True}, "html": {"type": "path"}}

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Print the table; write the page only where it differs, so that a second run changes nothing."""
        report = load_report(Path(arguments["report"]))
        self.say(f"\n{render_table(report)}\n")
        changed = False
        if arguments["html"]:
            path = Path(arguments["html"]).absolute()
            page = render_html(report)
            changed = not path.is_file() or path.read_text(encoding="utf-8") != page
            if changed and not self.is_plan:
                write_atomically(path, page)
        return {"changed": changed, "verdict": report["verdict"], "summary": report["summary"]}
