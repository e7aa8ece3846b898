#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripted stand-in, see scripted_host."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.scripted_host import opened


def main() -> None:
    """Tell the cores that are loaded, and who runs on each."""
    module = AnsibleModule(argument_spec={"state_dir": {"type": "path", "required": True}}, supports_check_mode=True)
    with opened(module.params["state_dir"], "kvm_info") as host:
        cores = [
            {
                "name": build_id[-16:],
                "build_id": build_id,
                "node": f"/dev/kvm-{build_id[-16:]}",
                "default": default,
                "users": [{"pid": 1, "vm": name} for name, vm in host["vms"].items() if vm.get("kvm") == build_id],
                "staged": True,
            }
            for build_id, default in host["cores"].items()
        ]
    module.exit_json(changed=False, cores=cores)


if __name__ == "__main__":
    main()
