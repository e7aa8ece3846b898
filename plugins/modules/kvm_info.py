#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kvm_info
short_description: Tell which builds of KVM a host has, and who uses them
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Tells of C(kvm_thin) and its cores, of the kernel's own KVM, which VMs use which, what is staged for the kernel that runs, and
    why a staged build could not be loaded.
options:
  state_dir:
    description:
      - Where builds live on the host.
    type: path
    default: /var/lib/vmm-live-upgrade
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
notes:
  - Needs to run as root, to see what processes have open.
seealso:
  - module: vmm.live_upgrade.kvm_core
"""

EXAMPLES = r"""
- name: See which cores there are
  vmm.live_upgrade.kvm_info:
  register: kvm

- name: Show the VMs on each
  ansible.builtin.debug:
    msg: "{{ item.build_id }}: {{ item.users | map(attribute='vm') | join(', ') }}"
  loop: "{{ kvm.cores }}"
"""

RETURN = r"""
release:
  description: The kernel that runs.
  returned: always
  type: str
thin:
  description: The kvm_thin that is loaded.
  returned: always
  type: dict
  contains:
    loaded:
      description: Whether there is one.
      type: bool
    abi:
      description: The newest ABI that it serves. Null when it is of none of the builds that are staged.
      type: int
    version:
      description: Its build, as C(thin_build) of an artifact.
      type: str
stock:
  description: The kernel's own KVM.
  returned: always
  type: dict
  contains:
    loaded:
      description: Whether it is loaded.
      type: bool
    users:
      description: Who uses it, each with C(pid) and C(vm), the name of the VM or null.
      type: list
      elements: dict
cores:
  description: The cores that are loaded.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
    build_id:
      description: Its build, null when that is not staged.
      type: str
    version:
      description: The version of Linux that it is made of, null when the build is not staged.
      type: str
    node:
      description: Its device node.
      type: str
    default:
      description: Whether C(/dev/kvm) opens it.
      type: bool
    vms:
      description: How many VMs it has, as the kernel counts.
      type: int
    users:
      description: Who uses it, each with C(pid) and C(vm), the name of the VM or null.
      type: list
      elements: dict
    staged:
      description: Whether its build is staged.
      type: bool
staged:
  description: Ids of the builds staged for the kernel that runs, oldest first.
  returned: always
  type: list
  elements: str
refusals:
  description: The staged builds that could not be loaded now, each with C(build_id) and C(reasons).
  returned: always
  type: list
  elements: dict
boot:
  description: Builds that are loaded at boot of this kernel, the default first. Empty means the kernel's own KVM.
  returned: always
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.boot import BootChoice
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.fitness import refusals
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kernel import Kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.state import read_state
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import KvmStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import discovery


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={"state_dir": {"type": "path", "default": "/var/lib/vmm-live-upgrade"}},
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, failed=False, **_facts(Path(module.params["state_dir"])))
    except (LiveUpgradeError, OSError) as exc:
        module.fail_json(msg=str(exc))


def _facts(state_dir: Path) -> dict[str, object]:
    kernel = Kernel()
    store = KvmStore(state_dir, kernel.release)
    state = read_state(kernel, store, discovery.name_of)
    staged = [build.manifest for build in store.list()]
    reasons = {manifest.build_id: refusals(manifest, kernel, state) for manifest in staged}
    return {
        "release": kernel.release,
        **state.to_dict(),
        "staged": list(reasons),
        "refusals": [{"build_id": build_id, "reasons": why} for build_id, why in reasons.items() if why],
        "boot": BootChoice(store).builds(),
    }


if __name__ == "__main__":
    main()
