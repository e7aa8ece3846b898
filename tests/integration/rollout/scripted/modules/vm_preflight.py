#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripted stand-in, see scripted_host."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.scripted_host import (
    chosen,
    is_missing,
    is_there,
    opened,
)


def main() -> None:
    """Refuse the VMs that have a reason for it."""
    module = AnsibleModule(
        argument_spec={
            "build_id": {"required": True},
            "kvm_build_id": {},
            "kvm_load_later": {"type": "bool", "required": True},
            "state_dir": {"type": "path"},
            "vms": {"type": "list", "elements": "str", "default": []},
            "mechanism": {},
            "accept_vfio_risk": {"type": "bool"},
            "rehearse": {"type": "bool"},
            "downtime_budget_ms": {"type": "int"},
            "pause_budgets_ms": {"type": "dict"},
            "vm_classes": {"type": "dict"},
            "prepare_timeout_s": {"type": "int"},
            "memory_headroom_mib": {"type": "int"},
            "disk_headroom_mib": {"type": "int"},
            "require_way_back": {"type": "bool"},
            "require_vmstate_check": {"type": "bool"},
            "fail_on_refusal": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    build_id, kvm_build_id = module.params["build_id"], module.params["kvm_build_id"]
    verdicts = []
    with opened(module.params["state_dir"], "preflight") as host:
        if "no_answer" in host:
            module.fail_json(msg=host["no_answer"])
        for name, vm in chosen(host, module.params["vms"]).items():
            reasons = [vm["refuse"]] if "refuse" in vm else []
            reasons += [f"core {kvm_build_id} is not loaded"] if is_missing(host, module.params) else []
            refusals = [{"code": "scripted", "message": reason, "action": "none"} for reason in reasons]
            verdict = "refuse" if refusals else "already" if is_there(vm, build_id, kvm_build_id) else "go"
            verdicts.append(
                {
                    "name": name,
                    "verdict": verdict,
                    "mechanism": "cpr-transfer",
                    "mechanism_reason": "scripted",
                    "refusals": refusals,
                    "warnings": vm.get("warnings", []),
                    "old_build_id": vm["build"],
                    "new_build_id": build_id,
                    "kvm_build_id_before": vm.get("kvm"),
                    "kvm_build_id": kvm_build_id or vm.get("kvm"),
                }
            )
    refused = [verdict["name"] for verdict in verdicts if verdict["verdict"] == "refuse"]
    if refused and module.params["fail_on_refusal"]:
        module.fail_json(msg=f"refused: {', '.join(refused)}", vms=verdicts)
    module.exit_json(changed=False, vms=verdicts)


if __name__ == "__main__":
    main()
