# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out what is asked for: a build, an approved plan, or the rest of a rollout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.outputs import of_plan
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan import load_plan, no_way_back
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import STOP
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.resume import find_journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.status import NotApprovedError, refusal_told

_SETTINGS = ("build_id", "kvm_build_id", "mechanism", "downtime_budget_ms", "pause_budgets_ms", "refused_vms")


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_request``."""

    ARGUMENT_SPEC = {
        "build_id": {"type": "str"},
        "kvm_build_id": {"type": "str"},
        "mechanism": {"type": "str"},
        "downtime_budget_ms": {"type": "int"},
        "pause_budgets_ms": {"type": "dict"},
        "refused_vms": {"type": "str"},
        "plan": {"type": "path"},
        "approved": {"type": "str"},
        "approve_no_way_back": {"type": "bool", "default": False},
        "resume": {"type": "str"},
        "accept_wave": {"type": "int"},
        "until_wave": {"type": "int"},
        "rollback": {"type": "str", "default": "auto"},
        "report": {"type": "path", "required": True},
    }

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Have the status tell of this run from now on: that of the one before would be taken for its own."""
        report = Path(str(self._task.args.get("report"))).absolute()
        with refusal_told(of_plan(report) if self.is_plan else report):
            return super().run(tmp, task_vars)

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Refuse, before any host is asked, what nobody approved or what contradicts itself."""
        _require_sensible(arguments)
        given = {name: arguments[name] for name in _SETTINGS if arguments[name] not in (None, "", {})}
        if arguments["plan"] and arguments["resume"]:
            raise AnsibleError(
                "give upgrade_plan for a new rollout or upgrade_resume for one that was cut, not both; nothing was touched"
            )
        if arguments["resume"]:
            journal = find_journal(arguments["resume"], Path(arguments["report"]).absolute())
            begin = journal.begin()
            settings = {name: begin.get(name) for name in _SETTINGS}
            what, where = f"the rollout {begin['rollout_id']}", {"plan": "", "journal": str(journal.path)}
        elif arguments["plan"]:
            path = Path(arguments["plan"]).absolute()
            settings = _approved(path, arguments)
            what, where = f"the plan {path}", {"plan": str(path), "journal": ""}
        else:
            settings, where = {name: given.get(name) for name in _SETTINGS}, {"plan": "", "journal": ""}
            what = "the request"
        for name, value in given.items():
            if settings[name] != value:
                raise AnsibleError(
                    f"{name} is given as {value!r}, but {what} has {settings[name]!r}; nothing was touched. Leave it out, or "
                    "make a new plan with it"
                )
        return {
            **settings,
            **where,
            "kvm_build_id": settings["kvm_build_id"] or "",
            "mechanism": settings["mechanism"] or "auto",
            "pause_budgets_ms": settings["pause_budgets_ms"] or {},
            "refused_vms": settings["refused_vms"] or STOP,
        }


def _require_sensible(arguments: dict[str, Any]) -> None:
    if not (arguments["build_id"] or arguments["plan"] or arguments["resume"]):
        raise AnsibleError(
            "Give the build to move to, -e upgrade_build=<build id> (or an approved upgrade_plan, or a rollout to upgrade_resume)"
            ". Nothing was touched"
        )
    if not re.fullmatch(r"[a-z]+-[0-9A-Za-z._-]+", arguments["build_id"] or "qemu-planned"):
        raise AnsibleError(f"upgrade_build is {arguments['build_id']!r}, which is no build id. Nothing was touched")
    if arguments["rollback"] not in ("auto", "never"):
        raise AnsibleError(f"upgrade_rollback is {arguments['rollback']!r}; give auto or never. Nothing was touched")
    for name in ("until_wave", "accept_wave"):
        if (arguments[name] or 0) < 0:
            raise AnsibleError(f"upgrade_{name} is {arguments[name]}; waves are counted from 0. Nothing was touched")
    if arguments["accept_wave"] is not None and not arguments["resume"]:
        raise AnsibleError(
            "upgrade_accept_wave is about a rollout that waits: give its id with upgrade_resume, too. Nothing was touched"
        )


def _approved(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the plan in ``path`` once it is sure that this very plan was approved."""
    plan = load_plan(path)
    if not arguments["approved"]:
        raise NotApprovedError(
            f"the plan {path} is not approved; nothing was touched. Read {path.with_suffix('.txt')}, and approve it with "
            f"-e upgrade_approved={plan['hash']}"
        )
    if arguments["approved"] != plan["hash"]:
        raise NotApprovedError(
            f"the approval is of another plan: it names {arguments['approved']}, {path} has the hash {plan['hash']}; nothing was "
            f"touched. Read {path.with_suffix('.txt')}, and approve that one"
        )
    stuck = no_way_back(plan)
    if stuck and not arguments["approve_no_way_back"]:
        raise NotApprovedError(
            f"{len(stuck)} VMs of the plan could not be moved back if their wave failed ({'; '.join(stuck)}); nothing was "
            "touched. Leave their hosts out (upgrade_exclude), or approve it explicitly with -e upgrade_approve_no_way_back=true"
        )
    settings = plan["settings"]
    return {
        "build_id": settings["build"],
        "kvm_build_id": settings["kvm_build"],
        "mechanism": settings["mechanism"],
        "downtime_budget_ms": settings["downtime_budget_ms"],
        "pause_budgets_ms": settings["pause_budgets_ms"],
        "refused_vms": settings.get("refused_vms"),
    }
