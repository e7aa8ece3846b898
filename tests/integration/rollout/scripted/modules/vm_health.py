#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripted stand-in, see scripted_host."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.scripted_host import chosen, opened


def main() -> None:
    """A VM is sick on the builds that make it so, or from one look on; it is a regression when it was not before."""
    module = AnsibleModule(
        argument_spec={
            "vms": {"type": "list", "elements": "str", "default": []},
            "probes": {"type": "dict", "required": True},
            "baseline": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    baseline = {vm["name"]: vm for vm in module.params["baseline"].get("vms", [])}
    reports = []
    with opened(module.params["probes"]["host"]["command"][0], "health") as host:
        looks = host["calls"].count("health")
        is_blind = looks >= host.get("blind_from", looks + 1)
        for name, vm in chosen(host, module.params["vms"]).items():
            is_sick = {vm["build"], vm.get("kvm")} & set(vm.get("sick_on", [])) or looks >= vm.get(
                "sick_from", looks + 1
            )
            problems = [{"check": "scripted", "subject": "", "message": "sick"}] if is_sick else []
            new = problems if name in baseline and not baseline[name]["problems"] else []
            reports.append(
                {
                    "name": name,
                    "pid": 1,
                    "build_id": vm["build"],
                    "healthy": not problems,
                    "monitors": vm.get("monitors", []),
                    "problems": problems,
                    "regressions": new,
                }
            )
    if is_blind:
        module.fail_json(msg="scripted: nobody can look")
    module.exit_json(changed=False, vms=reports, regressions=[item for vm in reports for item in vm["regressions"]])


if __name__ == "__main__":
    main()
