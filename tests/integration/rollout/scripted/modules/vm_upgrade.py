#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripted stand-in, see scripted_host."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.scripted_host import (
    chosen,
    is_missing,
    is_there,
    note_lease,
    opened,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import Claim, Lease, LeaseError


def main() -> None:
    """Move the VMs by changing a word in the file; a second call tells the end, as with the real one."""
    module = AnsibleModule(
        argument_spec={
            "build_id": {"required": True},
            "kvm_build_id": {},
            "kvm_load_later": {"type": "bool", "default": False},
            "state_dir": {"type": "path"},
            "vms": {"type": "list", "elements": "str", "default": []},
            "order": {"type": "list", "elements": "str", "default": []},
            "mechanism": {},
            "accept_vfio_risk": {"type": "bool"},
            "parallel": {"type": "int"},
            "downtime_budget_ms": {"type": "int"},
            "pause_budgets_ms": {"type": "dict"},
            "vm_classes": {"type": "dict"},
            "prepare_timeout_s": {"type": "int"},
            "probes": {"type": "dict"},
            "rollout_id": {},
            "lease": {"type": "dict"},
            "transaction_id": {},
            "wait_s": {"type": "int"},
        },
        supports_check_mode=True,
    )
    build_id, kvm_build_id = module.params["build_id"], module.params["kvm_build_id"]
    key = f"{module.params['rollout_id']} {build_id} {module.params['vms']}"
    claim = None
    if module.params["lease"] and not module.check_mode:
        lease = {name: int(value) if name != "owner" else value for name, value in module.params["lease"].items()}
        try:
            claim = Claim.of(module.params["rollout_id"], lease)
            Lease(Path(module.params["state_dir"])).take(claim)
        except LeaseError as exc:
            module.fail_json(msg=str(exc), finished=True, transaction_id=None, vms=[])
    with opened(module.params["state_dir"], "plan" if module.check_mode else "upgrade") as host:
        vms = chosen(host, module.params["vms"])
        fifo = host.get("wait_on")
        dies = host.pop("dies", False)
        begun = host.pop("begun", None)
        told = host.get("told", {}).get(key)
        if begun:
            host.setdefault("budgets_ms", []).append(module.params["pause_budgets_ms"])
            host.setdefault("vfio_risks", []).append(module.params["accept_vfio_risk"])
        idle = all(is_there(vm, build_id, kvm_build_id) for vm in vms.values())
        if not module.check_mode:
            note_lease(host, "vm_upgrade", module.params["lease"])
        if not (module.check_mode or begun or idle):
            host["begun"] = True
    if told and not module.check_mode:
        module.exit_json(**told)  # as the real one does for a rollout that it has worked for
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if module.check_mode:
        if is_missing(host, module.params):
            module.fail_json(msg=f"core {kvm_build_id} is not loaded")
        planned = [
            _result(name, vm, module, "already" if is_there(vm, build_id, kvm_build_id) else "planned")
            for name, vm in vms.items()
        ]
        for vm in planned:
            later = kvm_build_id and kvm_build_id not in host["cores"]
            vm["warnings"] = [f"the core of {kvm_build_id} is not loaded"] if later else []
        changed = any(vm["outcome"] == "planned" for vm in planned)
        module.exit_json(changed=changed, finished=True, transaction_id=None, vms=planned, diff=[])
    if fifo:
        with open(fifo, "rb") as stream:
            stream.read()
    if not begun and not idle:
        so_far = [{"name": name, "steps": ["begin", "spawned"]} for name in vms]
        module.exit_json(changed=False, finished=False, transaction_id="t1", vms=so_far)
    results = []
    with opened(module.params["state_dir"], "finish") as host:
        for name, vm in chosen(host, module.params["vms"]).items():
            outcome = "already" if is_there(vm, build_id, kvm_build_id) else vm.get("outcome", "upgraded")
            if kvm_build_id and outcome == "upgraded" and kvm_build_id not in host["cores"]:
                module.fail_json(msg=f"core {kvm_build_id} is not loaded")
            result = _result(name, vm, module, outcome)
            vm_class = module.params["vm_classes"].get(name)
            if vm_class:
                result.update(vm_class=vm_class, pause_budget_ms=int(module.params["pause_budgets_ms"][vm_class]))
            results.append(result)
            if outcome == "upgraded":
                vm["build"] = build_id
                if kvm_build_id:
                    vm["kvm"] = kvm_build_id
    if claim:
        Lease(Path(module.params["state_dir"])).give_up(claim)
    moved = any(vm["outcome"] == "upgraded" for vm in results)
    answer = {"changed": moved, "finished": True, "transaction_id": "t1", "vms": results}
    bad = [f"VM {vm['name']}: {vm['outcome']}" for vm in results if vm["outcome"] not in ("upgraded", "already")]
    if bad:
        module.fail_json(msg="; ".join(bad), **answer)
    with opened(module.params["state_dir"], "told") as host:
        host.setdefault("told", {})[key] = answer
    module.exit_json(**answer, pid=os.getpid())


def _result(name: str, vm: dict, module: AnsibleModule, outcome: str) -> dict:
    moved = outcome == "upgraded"
    build_id, kvm_build_id = module.params["build_id"], module.params["kvm_build_id"]
    return {
        "name": name,
        "outcome": outcome,
        "steps": ["begin", "spawned", "handing-over", "committed", "released"] if moved else [],
        "mechanism": "cpr-transfer",
        "reason": "scripted",
        "downtime_ms": vm["downtime_ms"] if moved else None,
        "downtime_source": "qmp-events" if moved else None,
        "total_ms": 80.0 if moved else None,
        "extra_memory_mib": 9.0 if moved else None,
        "cpu_s": 0.1 if moved else None,
        "old_build_id": vm["build"],
        "new_build_id": build_id if moved else vm["build"],
        "kvm_build_id_before": vm.get("kvm"),
        "kvm_build_id": kvm_build_id if (moved or outcome == "planned") and kvm_build_id else vm.get("kvm"),
        "error": None if outcome in ("upgraded", "already", "planned") else f"VM {name}: scripted to be {outcome}",
    }


if __name__ == "__main__":
    main()
