# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let a wave run before it is judged."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.checks import FAIL
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.gate import judge
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.look import lasted_s, look_at
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.shards import Shard
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.steps import look_now
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import Watch, read_watch

LOOK_EVERY_S = 10.0


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_soak``."""

    ARGUMENT_SPEC = {"journal": {"type": "path", "required": True}}

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """A wave that fails already is not kept waiting on a build that it has to leave."""
        journal = Journal(Path(arguments["journal"]))
        wave = journal.wave_of(str(task_vars["inventory_hostname"]))
        events = journal.read()
        begin = events[0]
        waves = begin["waves"]
        records = {event["host"]: event for event in events if event["event"] == "host"}
        look = look_at(events, wave, None if self.is_plan else look_now(journal.path, waves[wave]))
        soak_s = look.policy.soak_s
        # One that has soaked is not kept waiting again when its wave is entered once more.
        hosts = [
            host
            for host in waves[wave]
            if host in records
            and records[host]["outcome"] != "unreachable"
            and any(vm["outcome"] == "upgraded" for vm in records[host]["vms"])
            and look.soaked_s.get(host, 0.0) < soak_s
        ]
        at_once = judge(
            waves[wave], records, begin["downtime_budget_ms"], replace(look, policy=replace(look.policy, soak_s=0))
        )
        if at_once.verdict == FAIL or not hosts or not soak_s or self.is_plan:
            return {"soak_s": 0, "hosts": []}
        # VMs run on while nobody controls them, so the time counts in which a run that was cut could not look.
        lasted = lasted_s(events)
        left_s = math.ceil(max(soak_s - min(lasted[host] for host in hosts), 0))
        shard = Shard.of(events)
        if shard:
            shard.renew(for_s=float(left_s))
        journal.append("soaks", wave=wave, soak_s=left_s, hosts=hosts)
        self.say(f"[wave {wave}] soaks for {left_s} s: {', '.join(hosts)}")
        upgraded = [(host, vm["name"]) for host in hosts for vm in records[host]["vms"] if vm["outcome"] == "upgraded"]
        reason = _let_run(left_s, journal, upgraded)
        if reason:
            self.say(f"[wave {wave}] soaks no longer: {reason}")
        return {"soak_s": left_s, "hosts": hosts}


def _let_run(for_s: float, journal: Journal, vms: Sequence[tuple[str, str]]) -> str:
    """Return when the time is over, or why the wave need not be waited for: what the watcher saw of these VMs stops a rollout."""
    end_s = time.monotonic() + for_s
    while (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(left_s, LOOK_EVERY_S))  # the watcher's file sends nobody a word
        watch = read_watch(journal.path) or Watch()
        for host, vm in vms:
            for event in watch.hard_events(host, vm):
                return f"{host}/{vm}: {event.hard}"
    return ""
