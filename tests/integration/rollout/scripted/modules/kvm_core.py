#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripted stand-in, see scripted_host."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.scripted_host import note_lease, opened


def main() -> None:
    """Load, choose or unload a core. As with the real one, one in use is not unloaded, nor is it the default by being loaded."""
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["present", "default", "absent"], "required": True},
            "build_id": {"required": True},
            "deadline_s": {"type": "float"},
            "persist": {"type": "bool"},
            "trial": {"type": "bool", "default": False},
            "rollout_id": {"type": "str"},
            "lease": {"type": "dict", "options": {"token": {"type": "int"}, "owner": {}, "seconds": {"type": "int"}}},
            "state_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    state, build_id = module.params["state"], module.params["build_id"]
    with opened(module.params["state_dir"], f"core {state} {build_id}") as host:
        if not module.check_mode:
            note_lease(host, "kvm_core", module.params["lease"])
        reason, cores = _obstacle(host, state, build_id), dict(host["cores"])
        if state == "absent":
            cores.pop(build_id, None)
        else:
            cores.setdefault(build_id, False)
        if state == "default":
            cores = {name: name == build_id for name in cores}
        trials = set(host.get("trials", []))
        if not module.params["trial"]:
            trials.discard(build_id)
        elif build_id not in host["cores"]:
            trials.add(build_id)
        changed = reason is None and (cores, trials) != (host["cores"], set(host.get("trials", [])))
        if changed and not module.check_mode:
            host["cores"], host["trials"] = cores, sorted(trials)
    if reason:
        module.fail_json(msg=reason)
    module.exit_json(changed=changed, trial=build_id in trials)


def _obstacle(host: dict, state: str, build_id: str) -> str | None:
    if state != "absent":
        return host.get("no_load" if state == "present" else "no_default")
    users = [name for name, vm in host["vms"].items() if vm.get("kvm") == build_id]
    return f"in use by {', '.join(users)}" if users else host.get("held", {}).get(build_id)


if __name__ == "__main__":
    main()
