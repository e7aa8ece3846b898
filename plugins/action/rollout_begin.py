# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin a rollout, or go on with one: plan the waves, lock the hosts, open the journal."""

from __future__ import annotations

import datetime
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout import lock, shards
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event, Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.outputs import (
    RENDERERS,
    of_plan,
    planned_outputs,
    report_path,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan_approval import require_unchanged
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.policy import parse_policy
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import POLICIES, STOP
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.resume import (
    accepted_waves,
    is_finished,
    journal_beside,
    undone_by,
    waiting_wave,
    waves_left,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.status import (
    RUNNING,
    refusal_told,
    write_status,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.targets import find_targets, journal_to_undo
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.waves import plan_waves
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.steps import (
    ALWAYS,
    AUTO,
    NEVER,
    begin_watch,
    require_watch,
)

_CALLBACK = "vmm.live_upgrade.progress"


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_begin``."""

    ARGUMENT_SPEC = {
        "kind": {"type": "str", "choices": ["upgrade", "rollback"], "default": "upgrade"},
        "build_id": {"type": "str"},
        "kvm_build_id": {"type": "str"},
        "hosts": {"type": "list", "elements": "str", "required": True},
        "waves": {"type": "list", "elements": "raw", "required": True},
        "downtime_budget_ms": {"type": "float"},
        "report": {"type": "path", "required": True},
        # Not of type path: an empty one stands for "do not write it".
        "html": {"type": "str"},
        "junit": {"type": "str"},
        "prometheus": {"type": "str"},
        "previous_report": {"type": "path"},
        "vms": {"type": "list", "elements": "str", "default": []},
        "gate": {"type": "dict", "default": {}},
        "mechanism": {"type": "str"},
        "pause_budgets_ms": {"type": "dict", "default": {}},
        "refused_vms": {"type": "str", "choices": list(POLICIES), "default": STOP},
        "plan": {"type": "path"},
        "resume": {"type": "path"},
        "watch": {"type": "str", "choices": [AUTO, ALWAYS, NEVER], "default": AUTO},
        "accept_wave": {"type": "int"},
        "shard": {"type": "dict", "options": shards.SPEC},
    }

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Have the status tell of this run, also when it is refused."""
        report = Path(str(self._task.args.get("report"))).absolute()
        with refusal_told(of_plan(report) if self.is_plan else report):
            return super().run(tmp, task_vars)

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Refuse what cannot be run to its end, before anything is touched; then lock, then journal."""
        _require_localhost(task_vars)
        if arguments["shard"]:
            arguments["shard"]["store"] = str(Path(arguments["shard"]["store"]).absolute())
        if arguments["resume"]:
            return self._go_on(Journal(Path(arguments["resume"])), arguments, task_vars)
        if not self.is_plan:
            require_watch(arguments["watch"], _has_ssh(arguments["hosts"], task_vars))
        gate = parse_policy(arguments["gate"]).to_dict()
        targets, defaults, cores = find_targets(arguments)
        plan = require_unchanged(Path(arguments["plan"]), arguments["hosts"], task_vars) if arguments["plan"] else None
        waves = [w["hosts"] for w in plan["waves"]] if plan else plan_waves(arguments["hosts"], arguments["waves"])
        started = datetime.datetime.now(datetime.timezone.utc)
        rollout_id = f"{arguments['kind']}-{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        report = Path(arguments["report"]).absolute()
        if self.is_plan:
            # The report of what was done is what a roll-back goes by: a plan must not take its place.
            report = of_plan(report)
        journal = Journal(journal_beside(report, rollout_id))
        # This process ends with the task; its parent is ansible-playbook, which lives as long as the rollout.
        owner_pid = os.getppid()
        addresses = _addresses([host for hosts in waves for host in hosts], task_vars)
        shard = None
        if not self.is_plan:
            lock.acquire(rollout_id, addresses, owner_pid)
            shard = _taken(arguments["shard"], rollout_id, addresses, owner_pid, resumed=False)
        begin = journal.append(
            "begin",
            rollout_id=rollout_id,
            kind=arguments["kind"],
            build_id=arguments["build_id"],
            kvm_build_id=arguments["kvm_build_id"] or None,
            plan=self.is_plan,
            plan_id=plan and plan["plan_id"],
            plan_hash=plan and plan["hash"],
            windows={host["name"]: host["windows"] for host in plan["hosts"] if host["windows"]} if plan else {},
            waves=waves,
            mechanism=arguments["mechanism"],
            downtime_budget_ms=arguments["downtime_budget_ms"],
            gate=gate,
            pause_budgets_ms=arguments["pause_budgets_ms"],
            refused_vms=arguments["refused_vms"],
            report=str(report),
            outputs=planned_outputs(report, _asked_outputs(arguments, self.is_plan)),
            token=time.time_ns(),
            owner_pid=owner_pid,
            shard=shard,
            shard_options=arguments["shard"],
        )
        undone = journal_to_undo(arguments) if arguments["kind"] == "rollback" and not self.is_plan else None
        if undone:
            undone.append("undone", by=rollout_id)
        write_status(report, RUNNING, "it has begun", rollout_id, 0)
        self._announce(begin, waves, journal)
        self._watch(arguments, journal, task_vars)
        ways_back = {"targets": targets, "defaults": defaults, "cores": cores}
        return _result(begin, journal, waves if plan else None, begin, ways_back)

    def _go_on(self, journal: Journal, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Take the hosts over from the run that was cut, whose steps that come late are refused from now on."""
        events = journal.read()
        begin = events[0]
        if self.is_plan:
            raise AnsibleError("a rollout cannot be resumed with --check: its hosts are half way; nothing was touched")
        if is_finished(events):
            self.say(f"{begin['rollout_id']} has ended; there is nothing to go on with, and nothing is changed")
            return _result(begin, journal, [], begin, {})
        _require_not_undone(begin, events)
        accepts = _accepts(begin, events, arguments["accept_wave"])
        waves = waves_left(events)
        _require_hosts(waves, task_vars)
        owner_pid = os.getppid()
        addresses = _addresses([host for hosts in waves for host in hosts], task_vars)
        same = _same_shard(begin, arguments["shard"])
        lock.acquire(begin["rollout_id"], addresses, owner_pid)
        shard = _taken(same, begin["rollout_id"], addresses, owner_pid, resumed=True)
        # Later than every run before, also where the clock of this controller is behind.
        token = max([time.time_ns(), *(event["token"] + 1 for event in events if "token" in event)])
        run = journal.append("resume", token=token, owner_pid=owner_pid, shard=shard)
        if accepts:
            journal.append("accepted", wave=arguments["accept_wave"])
        first = begin["waves"].index(waves[0]) if waves else None
        write_status(report_path(begin, journal.path), RUNNING, "it was gone on with", begin["rollout_id"], first)
        self._announce(begin, waves, journal)
        self._watch(arguments, journal, task_vars)
        return _result(begin, journal, waves, run, {})

    def _watch(self, arguments: dict[str, Any], journal: Journal, task_vars: dict[str, Any]) -> None:
        """A roll-back by command is done when it is told to have worked: there is no soak that something could show in."""
        if self.is_plan or arguments["kind"] != "upgrade":
            return
        has_ssh = _has_ssh(arguments["hosts"], task_vars)
        try:
            reason = begin_watch(arguments["watch"], journal.path, os.getppid(), has_ssh)
        except AnsibleError:
            lock.release(journal.begin()["rollout_id"])
            raise
        self.say(f"  not watched: {reason}" if reason else "  watched over ssh, see docs/rollout.md")

    def _announce(self, begin: Event, waves: list[list[str]], journal: Journal) -> None:
        target = " and ".join(filter(None, (begin["build_id"] or "the builds before", begin["kvm_build_id"])))
        count = sum(len(hosts) for hosts in waves)
        self.say(f"{begin['rollout_id']}: {count} hosts to {target} in {len(waves)} waves; journal {journal.path}")
        first = len(begin["waves"]) - len(waves)
        for index, hosts in enumerate(waves, start=first):
            canary = " (canary)" if index == 0 and len(waves) > 1 else ""
            self.say(f"  wave {index}{canary}: {', '.join(hosts)}")


def _result(
    begin: Event, journal: Journal, waves: list[list[str]] | None, run: Event, ways_back: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the plays go by. ``waves`` is given where they are not those of the inventory's order.

    ``run``: the event of the run that this is, ``begin`` or that of going on.
    """
    rollout = {
        "rollout_id": begin["rollout_id"],
        "journal": str(journal.path),
        "report": str(report_path(begin, journal.path)),
        "waves": begin["waves"],
        "targets": {},
        "defaults": {},
        "kvm_build_id": begin["kvm_build_id"] or "",
        "refused_vms": begin.get("refused_vms") or STOP,
        "cores": {},
        "gate": parse_policy(begin.get("gate")).to_dict(),  # the journal of a version that asked for nothing
        "lease": {"token": run["token"], "owner": lock.controller_id()},
        "shard": run.get("shard") or {},
        **ways_back,
    }
    if waves is not None:
        # What a play's hosts and serial are made of. Nobody at all has to be said, too.
        rollout["play_hosts"] = [host for hosts in waves for host in hosts] or ["all", "!all"]
        rollout["play_sizes"] = [len(hosts) for hosts in waves] or [1]
    return {**rollout, "ansible_facts": {"vmm_rollout": rollout}, "warnings": _warnings()}


def _require_not_undone(begin: Event, events: list[Event]) -> None:
    if by := undone_by(events):
        raise AnsibleError(
            f"VMs of {begin['rollout_id']} were taken back by {by} since, so it is not gone on with; nothing was touched. "
            "Begin a new rollout when the cause is mended; VMs that are there already are left alone"
        )


def _accepts(begin: Event, events: list[Event], wave: int | None) -> bool:
    """Whether a person's decision is new. One that was carried out may be given again, by a job that is run anew."""
    if wave is None or wave in accepted_waves(events):
        return False
    waiting = waiting_wave(events)
    if wave != waiting:
        what = "no wave of it waits" if waiting is None else f"it is wave {waiting} that waits"
        raise AnsibleError(
            f"upgrade_accept_wave is {wave}, but of {begin['rollout_id']} {what} for a decision; nothing was touched. Look at "
            "its report, and accept the wave that you mean, or none"
        )
    return True


def _taken(
    options: dict[str, Any] | None, rollout_id: str, addresses: Mapping[str, str], owner_pid: int, resumed: bool
) -> dict[str, Any] | None:
    """Take the shard that the rollout is, where it is one; the hosts that are locked on this controller are free again if not."""
    if not options:
        return None
    try:
        return shards.Shard.take(options, rollout_id, list(addresses.values()), owner_pid, resumed).to_dict()
    except AnsibleError:
        lock.release(rollout_id)
        raise


def _same_shard(begin: Event, options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the shard that a rollout was begun as. Its budget and its lease may be other ones when it is gone on with."""
    begun = begin.get("shard_options")
    if not options or not begun:
        if options:
            raise AnsibleError(f"{begin['rollout_id']} is no shard, so leave upgrade_shard out; nothing was touched")
        return dict(begun) if begun else None
    other = [key for key in ("store", "fleet", "name") if options[key] != begun[key]]
    if other:
        raise AnsibleError(
            f"{begin['rollout_id']} is a shard with the {other[0]} {begun[other[0]]!r}, upgrade_shard has {options[other[0]]!r}; "
            "nothing was touched. Give the same, or leave it out"
        )
    return options


def _require_hosts(waves: list[list[str]], task_vars: Mapping[str, Any]) -> None:
    gone = [host for hosts in waves for host in hosts if host not in task_vars["hostvars"]]
    if gone:
        raise AnsibleError(
            f"{', '.join(gone)} of the rollout's plan are not in the inventory any more; nothing was touched. Put them back to "
            "go on, or begin a new rollout"
        )


def _asked_outputs(arguments: Mapping[str, Any], is_plan: bool) -> dict[str, str | None]:
    """What a plan writes never takes the place of what tells of a rollout, and it has no metrics."""
    asked = {kind: arguments[kind] for kind in RENDERERS}
    if not is_plan:
        return asked
    return {kind: path and str(of_plan(Path(path))) for kind, path in asked.items()} | {"prometheus": ""}


def _require_localhost(task_vars: Mapping[str, Any]) -> None:
    """A ``--limit`` without localhost would skip the play that judges and reports the rollout."""
    if not task_vars["hostvars"]["localhost"].get("vmm_rollout_controller"):
        raise AnsibleError(
            "localhost is not part of this run, so nobody would report its outcome; nothing was touched. Select hosts with "
            "-e upgrade_hosts=… (rollback_hosts=…), or add localhost: --limit 'h1,localhost'"
        )


def _addresses(hosts: list[str], task_vars: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells machines apart: two inventories may both have an ``h1``."""
    addresses = {}
    for host in hosts:
        variables = task_vars["hostvars"][host]
        addresses[host] = f"{variables.get('ansible_host', host)}:{variables.get('ansible_port', 22)}"
    return addresses


def _has_ssh(hosts: list[str], task_vars: Mapping[str, Any]) -> bool:
    default = context.CLIARGS.get("connection") or "ssh"
    kinds = {str(task_vars["hostvars"][host].get("ansible_connection", default)) for host in hosts}
    return bool(kinds & {"ssh", "ansible.builtin.ssh", "smart"})


def _warnings() -> list[str]:
    if any(name in (_CALLBACK, "progress") for name in C.CALLBACKS_ENABLED):
        return []
    return [
        f"the callback {_CALLBACK} is not enabled (callbacks_enabled in ansible.cfg): a run that is interrupted writes no "
        "report by itself; playbooks/report.yml makes one from the journal"
    ]
