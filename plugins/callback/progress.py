# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows how far a rollout is, and writes the report of one that ended without its finish."""

from __future__ import annotations

DOCUMENTATION = """
name: progress
type: aggregate
short_description: Show how far a rollout is, and report one that was interrupted
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - On a terminal, keeps a few lines below everything else that tell of waves, hosts, VMs, the downtime so far, and how long
    the rest may take. Elsewhere, as in CI, prints a plain line after each wave and now and then in between.
  - When the run ends without the rollout's finish (Ctrl-C, a controller error, every host of a wave failed in a way no
    task could handle), writes its report from the journal, marked as aborted, and frees the hosts.
options:
  view:
    description:
      - V(live) needs a terminal that can move the cursor. V(auto) is V(live) where standard output is one and V(plain) elsewhere.
        V(none) shows no progress; the report of an interrupted rollout is written all the same.
    type: str
    choices: [auto, live, plain, none]
    default: auto
    env:
      - name: VMM_PROGRESS_VIEW
    ini:
      - section: callback_vmm_progress
        key: view
requirements:
  - Enable it with C(callbacks_enabled = vmm.live_upgrade.progress) in ansible.cfg.
"""

import atexit
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible.utils.color import stringc

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout import lock
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal, owner_of
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.outputs import (
    outputs_of,
    report_path,
    write_outputs,
    write_report,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.progress import JournalTail, Progress, drawn
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.render import render_table
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import build_report
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.shards import release
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.terminal import StatusBlock
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.steps import end_watch

_BETWEEN_LINES_S = 30.0


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible-core ships no types
    """Watches for the rollout's beginning, shows its progress and sees to its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "vmm.live_upgrade.progress"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._journal: Path | None = None
        self._view: _LiveView | _PlainView | None = None
        self._pid = os.getpid()
        # An interrupt skips the stats event; leaving the interpreter is then the last moment to tell.
        atexit.register(self._finish)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note the journal of a rollout that begins; later, see what is new in it."""
        answer = getattr(result, "result", None) or result._result
        if "journal" in answer and "rollout_id" in answer:
            self._journal = Path(answer["journal"])
            self._view = self._open_view(self._journal)
        elif self._view:
            self._view.update()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """See to the end when the play ended by itself."""
        self._finish()

    def _open_view(self, journal: Path) -> _LiveView | _PlainView | None:
        view = self.get_option("view")
        if view == "auto":
            view = "live" if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" else "plain"
        forks = int(context.CLIARGS.get("forks") or C.DEFAULT_FORKS)
        if view == "live":
            return _LiveView(journal, forks, self._display)
        return _PlainView(journal, forks, self._display) if view == "plain" else None

    def _finish(self) -> None:
        """Report once, from the process that Ansible was started as and not from a worker."""
        if os.getpid() != self._pid:
            return
        journal_path, self._journal = self._journal, None
        view, self._view = self._view, None
        if view:
            view.close()
        if journal_path is None or not journal_path.exists():
            return
        journal = Journal(journal_path)
        events = journal.read()
        if events[-1]["event"] == "finish" or owner_of(events) != self._pid:
            return
        journal.append("aborted", run=self._pid)
        events = journal.read()
        report = build_report(events, aborted=True, watch=end_watch(journal_path))
        path = report_path(events[0], journal.path)
        write_report(report, path)
        lock.release(report["rollout_id"])
        release(events, finished=False)
        outputs = outputs_of(events[0], journal.path)
        write_outputs(report, outputs)
        self._display.display(f"\n{render_table(report)}\nreport: {', '.join([str(path), *outputs.values()])}\n")


class _PlainView:
    """A line after each wave, and when nothing was said for a while. No control characters."""

    def __init__(self, journal: Path, forks: int, display: Any) -> None:
        self._display = display
        self._tail = JournalTail(journal)
        self._progress = Progress(self._tail.new_events()[0], forks)
        self._said_s = time.monotonic()

    def update(self) -> None:
        """Say how far it is where that is news."""
        events = self._tail.new_events()
        for event in events:
            self._progress.add(event)
        kinds = {event["event"] for event in events}
        is_late = time.monotonic() - self._said_s >= _BETWEEN_LINES_S
        if "gate" in kinds or (is_late and kinds & {"host", "rollback"}):
            self._display.display(self._progress.line(time.time()))
            self._said_s = time.monotonic()

    def close(self) -> None:
        """Nothing is left to say: the report follows."""


class _LiveView:
    """Lines that stay at the end of the terminal. Other threads and the clock redraw them, too."""

    def __init__(self, journal: Path, forks: int, display: Any) -> None:
        self._tail = JournalTail(journal)
        self._progress = Progress(self._tail.new_events()[0], forks)
        self._unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        streams = [sys.stdout, *([sys.stderr] if sys.stderr.isatty() else [])]
        # Ansible forks its workers, and writes, under this lock.
        self._block = StatusBlock(streams, getattr(display, "_lock", None) or threading.RLock(), self._lines)
        self._block.refresh()

    def update(self) -> None:
        """Draw what is new."""
        self._block.refresh()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._block.close()

    def _lines(self) -> list[str]:
        for event in self._tail.new_events():
            self._progress.add(event)
        width = shutil.get_terminal_size().columns - 1
        lines = drawn(self._progress, time.time(), width, self._unicode)
        return [stringc(text, colour) if colour else text for text, colour in lines]
