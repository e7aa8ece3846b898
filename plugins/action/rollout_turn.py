# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's turn in a rollout, as one task: from the verdict on its VMs to the record of what came of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import POLICIES, STOP, verdicts_to_keep
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.shards import Shard, StoreError
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.turn import (
    Answer,
    Answers,
    message_of,
    record_turn,
    start_turn,
    take_turn,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.steps import watch_host, watch_vms

_COLLECTION = "vmm.live_upgrade"
_DEFAULT_STATE_DIR = "/var/lib/vmm-live-upgrade"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """See the module documentation of ``rollout_turn``."""

    ARGUMENT_SPEC = {
        "build_id": {"type": "str", "required": True},
        "kvm_build_id": {"type": "str"},
        # Not of type path: it is one of the host, and this is the controller.
        "state_dir": {"type": "str", "default": _DEFAULT_STATE_DIR},
        "vms": {"type": "list", "elements": "str", "default": []},
        "order": {"type": "list", "elements": "str", "default": []},
        "mechanism": {"type": "str", "default": "auto"},
        "accept_vfio_risk": {"type": "bool", "default": False},
        "rehearse": {"type": "bool", "default": False},
        "parallel": {"type": "int", "default": 1},
        "downtime_budget_ms": {"type": "int"},
        "pause_budgets_ms": {"type": "dict", "default": {}},
        "vm_classes": {"type": "dict", "default": {}},
        "prepare_timeout_s": {"type": "int", "default": 60},
        "probes": {"type": "dict", "default": {}},
        "rollout_id": {"type": "str"},
        "lease": {"type": "dict"},
        "set_default": {"type": "bool", "default": True},
        "journal": {"type": "path"},
        "looked": {"type": "dict", "default": {}},
        "looked_at_later": {"type": "bool", "default": False},
        "refused_vms": {"type": "str", "choices": list(POLICIES), "default": STOP},
        "shard": {"type": "dict", "default": {}},
    }

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the turn and have it in the journal. Fails where the host did not come where it should."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._task_vars = task_vars or {}
        self._told: dict[str, list[Any]] = {"warnings": [], "diff": []}
        _validation, arguments = self.validate_argument_spec(self.ARGUMENT_SPEC)
        host = str(self._task_vars["inventory_hostname"])
        journal = Journal(Path(arguments["journal"])) if arguments["journal"] else None
        run = os.getppid()  # as rollout_begin tells who owns the rollout
        asked = {**arguments, "kvm_build_id": arguments["kvm_build_id"] or None, "lease": arguments["lease"] or None}

        def note(answers: Answers) -> None:
            if journal and not self._task.check_mode:
                seen = {"health_before": answers.health_before, "kvm_load": answers.kvm_load}
                verdicts = verdicts_to_keep(answers.preflight)
                journal.append("looked", host=host, wave=journal.wave_of(host), run=run, preflight=verdicts, **seen)
                watch_vms(journal.path, host, answers.health_before)

        try:
            if journal:
                started = start_turn(journal, host, run, [str(name) for name in self._task_vars["ansible_play_batch"]])
                self._display.display(f"[wave {started['wave']}] {host}: starts")
                # A turn that goes on after a cut does not look again.
                watch_host(journal.path, host, self._connection, arguments["looked"].get("health_before") or {})
            if arguments["shard"] and not self._task.check_mode:
                self._renew(Shard.from_dict(arguments["shard"]))
            answers = take_turn(self._call, asked, arguments["looked"], note, bool(self._task.check_mode))
        except AnsibleError as exc:
            answers = Answers(failure={"failed": True, "msg": str(exc)})
        result.update({name: told for name, told in self._told.items() if told})
        result.update(_told(answers))
        if journal:
            record = record_turn(journal, "host", host, run, answers)
            said = f": {record['reason']}" if record["reason"] else ""
            self._display.display(f"[wave {record['wave']}] {host}: {record['outcome']}{said}")
            result.update(outcome=record["outcome"])
            if arguments["looked_at_later"]:
                result.update(record=record, health_before=answers.health_before)
        return result

    def _renew(self, shard: Shard) -> None:
        """A store that is away for a while keeps nobody from a host: that has a lease of its own."""
        try:
            shard.renew()
        except StoreError as exc:
            self._display.warning(str(exc))

    def _call(self, module: str, arguments: dict[str, Any]) -> Answer:
        """Ask the host. ``vm_upgrade`` has an action of its own, which comes back to a host that was away."""
        try:
            if module == "vm_upgrade":
                answer = self._call_action(f"{_COLLECTION}.{module}", arguments)
            else:
                answer = self._execute_module(
                    module_name=f"{_COLLECTION}.{module}", module_args=arguments, task_vars=self._task_vars
                )
        except AnsibleConnectionFailure as exc:
            return {"unreachable": True, "failed": False, "msg": str(exc)}
        for name, told in self._told.items():
            more = answer.pop(name, None) or []
            told += more if isinstance(more, list) else [more]
        # what is Ansible's own and no answer of the module
        return {
            name: value for name, value in answer.items() if name != "invocation" and not name.startswith("_ansible_")
        }

    def _call_action(self, name: str, arguments: dict[str, Any]) -> Answer:
        task = self._task.copy()
        task.args = arguments
        action = self._shared_loader_obj.action_loader.get(
            name,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        answer: Answer = action.run(task_vars=self._task_vars)
        return answer


def _told(answers: Answers) -> dict[str, Any]:
    """What the task answers. The controller keeps it for every host of the fleet, so it is little; the journal has the rest."""
    named = ("name", "outcome", "downtime_ms", "new_build_id", "error")
    told: dict[str, Any] = {
        "changed": any(
            answer.get("changed")
            for answer in (answers.upgrade, answers.set_default, *(answers.kvm_load.get("results") or []))
        ),
        "failed": bool(answers.failure),
        "vms": [{key: vm.get(key) for key in named} for vm in answers.upgrade.get("vms") or []],
    }
    return {**told, "msg": message_of(answers.failure) or "the turn of this host failed"} if answers.failure else told
