# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the report of a rollout that ended without its finish: interrupted, or with no host left to run on."""

from __future__ import annotations

DOCUMENTATION = """
name: progress
type: aggregate
short_description: Report a rollout that was interrupted
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - When the run ends without the rollout's finish (Ctrl-C, a controller error, every host of a wave failed in a way no
    task could handle), writes its report from the journal, marked as aborted, and frees the hosts.
requirements:
  - Enable it with C(callbacks_enabled = vmm.live_upgrade.progress) in ansible.cfg.
"""

import atexit
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout import lock
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal, owner_of
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.render import render_table
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import build_report, write_report


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible-core ships no types
    """Watches for the rollout's beginning and sees to its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "vmm.live_upgrade.progress"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._journal: Path | None = None
        self._pid = os.getpid()
        # An interrupt skips the stats event; leaving the interpreter is then the last moment to tell.
        atexit.register(self._finish)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note the journal of a rollout that begins."""
        answer = getattr(result, "result", None) or result._result
        if "journal" in answer and "rollout_id" in answer:
            self._journal = Path(answer["journal"])

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """See to the end when the play ended by itself."""
        self._finish()

    def _finish(self) -> None:
        """Report once, from the process that Ansible was started as and not from a worker."""
        journal_path, self._journal = self._journal, None
        if journal_path is None or os.getpid() != self._pid or not journal_path.exists():
            return
        journal = Journal(journal_path)
        events = journal.read()
        if events[-1]["event"] == "finish" or owner_of(events) != self._pid:
            return
        report = build_report(events, aborted=True)
        path = Path(events[0]["report"])
        write_report(report, path)
        lock.release(report["rollout_id"])
        self._display.display(f"\n{render_table(report)}\nreport: {path}\n")
