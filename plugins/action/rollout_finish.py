# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""End a rollout: report, table, truthful result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout import lock
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal, require_owner
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.outputs import (
    outputs_of,
    report_path,
    write_outputs,
    write_report,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.render import render_table
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import build_report
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.resume import is_finished, pause_of
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.shards import release
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.status import write_status_of
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.steps import end_watch
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import read_watch


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_finish``."""

    ARGUMENT_SPEC = {"journal": {"type": "path", "required": True}}

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Write the report first, then free the hosts; fail unless every wave passed. Of an ended rollout only tell again."""
        journal = Journal(Path(arguments["journal"]))
        events = journal.read()
        path = report_path(events[0], journal.path)
        ended = is_finished(events)
        if not ended:
            require_owner(events, os.getppid())
            # One that waits for something is gone on with, so it has not ended.
            pause = pause_of(events)
            journal.append("finish", paused=pause and pause["reason"])
            events = journal.read()
        watch = read_watch(journal.path) if ended else end_watch(journal.path)
        report = build_report(events, aborted=not is_finished(events), watch=watch)
        outputs = outputs_of(events[0], journal.path)
        if not ended or not path.is_file():
            write_report(report, path)
            write_outputs(report, outputs)
        write_status_of(report, path)
        lock.release(report["rollout_id"])
        release(events, finished=is_finished(events))
        if report["mode"] == "plan":
            journal.path.unlink()
        self.say(f"\n{render_table(report)}\nreport: {', '.join([str(path), *outputs.values()])}\n")
        return {
            "failed": report["verdict"] not in ("ok", "paused"),
            "msg": report["exit_reason"],
            # As set_stats does it: AWX hands it to the jobs that follow in a workflow.
            "ansible_stats": {
                "data": {"vmm_rollout_id": report["rollout_id"], "vmm_rollout_status": report["status"]},
                "per_host": False,
                "aggregate": False,
            },
            "verdict": report["verdict"],
            "status": report["status"],
            "summary": report["summary"],
            "report": str(path),
            "outputs": outputs,
        }
