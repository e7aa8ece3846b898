#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact_default
short_description: Choose the staged build that newly started VMs run
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Points C(builds/default) below the state directory at a staged build, atomically. Running VMs are not touched.
options:
  build_id:
    description:
      - The staged build, as listed by M(vmm.live_upgrade.artifact_stage).
    type: str
    required: true
  state_dir:
    description:
      - Where builds live on the host.
    type: path
    default: /var/lib/vmm-live-upgrade
  rollout_id:
    description:
      - Id of the rollout that this belongs to.
    type: str
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
  - vmm.live_upgrade.lease
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: vmm.live_upgrade.artifact_stage
"""

EXAMPLES = r"""
- name: Let new VMs start on a staged build
  vmm.live_upgrade.artifact_default:
    build_id: qemu-11.1.1-0123456789abcdef
"""

RETURN = r"""
previous:
  description: The build that newly started VMs ran before, null when none was chosen.
  returned: success
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.artifact.store import BuildStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import LEASE_ARGUMENT, leased


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "build_id": {"type": "str", "required": True},
            "rollout_id": {"type": "str"},
            "lease": LEASE_ARGUMENT,
            "state_dir": {"type": "path", "default": "/var/lib/vmm-live-upgrade"},
        },
        supports_check_mode=True,
    )
    build_id = module.params["build_id"]
    state_dir = Path(module.params["state_dir"])
    store = BuildStore(state_dir)
    lease = None if module.check_mode else module.params["lease"]
    try:
        with leased(state_dir, module.params["rollout_id"], lease):
            store.get(build_id)
            previous = store.default()
            changed = previous != build_id
            if changed and not module.check_mode:
                store.set_default(build_id)
    except LiveUpgradeError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=changed,
        failed=False,
        previous=previous,
        diff={"before": f"default: {previous}\n", "after": f"default: {build_id}\n"},
    )


if __name__ == "__main__":
    main()
