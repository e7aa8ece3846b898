# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enter a wave: is it time, and what of it was done before the run was cut?"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event, Journal, require_owner
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import is_growing
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.resume import WaveState, wave_state
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.shards import Shard
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.status import ASKED, PERSON, WINDOW
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.windows import describe, is_open


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_enter``."""

    ARGUMENT_SPEC = {"journal": {"type": "path", "required": True}, "until_wave": {"type": "int"}}

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Stop before a wave that is not asked for, whose maintenance window is closed, or when the failure budget of all shards
        is spent; one that has begun is brought to its end.
        """
        journal = Journal(Path(arguments["journal"]))
        events = journal.read()
        require_owner(events, os.getppid())
        begin = events[0]
        host = str(task_vars["inventory_hostname"])
        wave = next((index for index, hosts in enumerate(begin["waves"]) if host in hosts), None)
        if wave is None:
            # Told host by host, as each asks for its turn.
            return {"wave": None, "stop": False, "reason": "", **asdict(WaveState([], {}, {}))}
        state = wave_state(events, wave)
        begun = any(event["event"] in ("started", "gate") and event["wave"] == wave for event in events)
        shard = None if self.is_plan else Shard.of(events)
        # asked in any case: that the shard was lost is told here, too
        stopped = shard.stopped() if shard else None
        waits_for, reason = "", ""
        if not begun and stopped:
            waits_for, reason = PERSON, f"{stopped}; once the cause is mended, go on"
        elif not begun and not self.is_plan:
            waits_for, reason = _not_asked_for(events, wave, arguments["until_wave"]) or _closed(begin, wave)
        if reason:
            reason += f" with -e upgrade_resume={begin['rollout_id']}"
            journal.append("paused", wave=wave, waits_for=waits_for, reason=reason)
            self.say(f"[wave {wave}] not entered: {reason}")
        return {"wave": wave, "stop": bool(reason), "reason": reason, **asdict(state)}


def _not_asked_for(events: Sequence[Event], wave: int, until_wave: int | None) -> tuple[str, str] | None:
    if until_wave is None or wave <= until_wave:
        return None
    if is_growing(events):
        return PERSON, (
            f"wave {wave - 1} did not show that it may pass and would have been judged with wave {wave}, but no wave after "
            f"{until_wave} was asked for; go on"
        )
    return ASKED, f"wave {wave - 1} has passed, and no wave after {until_wave} was asked for; go on"


def _closed(begin: Event, wave: int) -> tuple[str, str]:
    windows = begin.get("windows") or {}
    now = datetime.datetime.now(datetime.timezone.utc)
    closed = [name for name in begin["waves"][wave] if not is_open(windows.get(name, []), now)]
    if not closed:
        return "", ""
    return (
        WINDOW,
        f"the maintenance window of {', '.join(closed)} is closed ({describe(windows[closed[0]])}); go on in it",
    )
