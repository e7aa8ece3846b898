# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the plan of a rollout: JSON for the upgrade, a page for the person who approves it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.controller_action import ControllerAction
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.cores import require_build_id
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import write_atomically
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan import Plan, load_plan, make_plan
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan_facts import HostFacts, Settings, read_host
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan_render import render_plan
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEAVE_OUT_VM, POLICIES, STOP


class ActionModule(ControllerAction):
    """See the module documentation of ``rollout_plan``."""

    ARGUMENT_SPEC = {
        "build_id": {"type": "str", "required": True},
        "kvm_build_id": {"type": "str"},
        "hosts": {"type": "list", "elements": "str", "required": True},
        "waves": {"type": "list", "elements": "raw", "required": True},
        "domains": {"type": "dict", "default": {}},
        "exclude": {"type": "dict", "default": {}},
        "mechanism": {"type": "str", "default": "auto"},
        "downtime_budget_ms": {"type": "int"},
        "pause_budgets_ms": {"type": "dict", "default": {}},
        "refused_vms": {"type": "str", "choices": list(POLICIES), "default": LEAVE_OUT_VM},
        "path": {"type": "path", "required": True},
    }

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Make the plan and write it beside its page. One with the same hash stays as it is, and so does its id."""
        require_build_id(arguments["kvm_build_id"], "upgrade_kvm_build")
        settings = Settings(
            build=arguments["build_id"],
            kvm_build=arguments["kvm_build_id"] or None,
            sizes=arguments["waves"],
            domains=arguments["domains"],
            exclude={str(host): str(why) for host, why in arguments["exclude"].items()},
            mechanism=arguments["mechanism"],
            downtime_budget_ms=arguments["downtime_budget_ms"],
            pause_budgets_ms=arguments["pause_budgets_ms"],
            refused_vms=arguments["refused_vms"],
        )
        facts = [read_host(host, task_vars["hostvars"][host], settings) for host in arguments["hosts"]]
        if settings.refused_vms == STOP:
            _require_no_refusal(facts, settings)
        plan = make_plan(settings, facts)
        path = Path(arguments["path"]).absolute()
        changed = not _is_there(plan, path)
        if changed and not self.is_plan:
            write_atomically(path, json.dumps(plan, indent=2) + "\n")
        elif not changed:
            plan = load_plan(path)
        page = render_plan(plan)
        if changed and not self.is_plan:
            write_atomically(path.with_suffix(".txt"), page + "\n")
        self.say(f"\n{page}\n\nplan: {path}\n")
        return {
            # As set_stats does it: AWX hands it to the jobs that follow in a workflow.
            "ansible_stats": {"data": {"vmm_plan_hash": plan["hash"]}, "per_host": False, "aggregate": False},
            "ansible_facts": {"vmm_plan": {"path": str(path), "hash": plan["hash"]}},
            "changed": changed,
            "failed": not plan["waves"],
            "msg": "" if plan["waves"] else "no host can be upgraded; the reasons are above. Nothing was touched",
            "plan_id": plan["plan_id"],
            "hash": plan["hash"],
            "path": str(path),
            "waves": [wave["hosts"] for wave in plan["waves"]],
            "excluded": plan["excluded"],
        }


def _require_no_refusal(facts: Sequence[HostFacts], settings: Settings) -> None:
    refused = [
        f"{host.name}/{vm['name']}: {'; '.join(str(item['message']) for item in vm['refusals'])}"
        for host in facts
        for vm in host.vms
        if vm["verdict"] == "refuse" and host.obstacle and host.name not in settings.exclude
    ]
    if refused:
        raise AnsibleError(
            f"VMs cannot be moved, and upgrade_refused_vms is stop, so no plan was written and nothing was touched: "
            f"{'. '.join(refused)}. Mend that, leave their hosts out (upgrade_exclude), or have what is refused left out "
            "(upgrade_refused_vms=leave_out_vm)"
        )


def _is_there(plan: Plan, path: Path) -> bool:
    """Whether the file holds this very plan. Anything else that is there is replaced, like an old plan."""
    try:
        return path.is_file() and load_plan(path)["hash"] == plan["hash"]
    except AnsibleError:
        return False
