#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripted stand-in, see scripted_host."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.scripted_host import note_lease, opened


def main() -> None:
    """Change the default build."""
    module = AnsibleModule(
        argument_spec={
            "build_id": {"required": True},
            "state_dir": {"type": "path"},
            "rollout_id": {},
            "lease": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    build_id = module.params["build_id"]
    with opened(module.params["state_dir"], "default") as host:
        previous = host["default"]
        if not module.check_mode:
            note_lease(host, "artifact_default", module.params["lease"])
            host["default"] = build_id
    module.exit_json(changed=previous != build_id, previous=previous)


if __name__ == "__main__":
    main()
