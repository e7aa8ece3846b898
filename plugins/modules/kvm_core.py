#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kvm_core
short_description: Load, choose and unload builds of KVM
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Loads C(kvm_thin) and the core of a build that M(vmm.live_upgrade.kvm_stage) has put on the host, makes it what C(/dev/kvm)
    opens, or unloads it. Running VMs stay on the core whose node they opened.
  - Cores and the kernel's own KVM exclude each other. The latter is unloaded when nobody uses it; otherwise loading is refused,
    and the VMs that hold it are named. Drain such a host, or set O(persist=true) and O(load=false) and reboot it once.
  - A change that fails takes back what it did before. The kernel's own KVM is loaded again if it was unloaded.
options:
  state:
    description:
      - V(present) has the core loaded, and its node C(/dev/kvm-<name>) there for the group C(kvm). The first core that is loaded
        is the default.
      - V(default) has it loaded and opened by C(/dev/kvm).
      - V(absent) has it unloaded, when nobody uses it any more. Not while it is the default and there are others. With the last
        core C(kvm_thin) goes as well.
    type: str
    choices:
      - present
      - default
      - absent
    default: present
  build_id:
    description:
      - The build, C(kvm-<version>-<name>).
    type: str
    required: true
  deadline_s:
    description:
      - How many seconds to wait for the last user of the core, with O(state=absent). Who still uses it then is named.
    type: float
    default: 60
  persist:
    description:
      - With V(true), O(state=present) and O(state=default) have the core loaded at boot as well, by a unit of systemd, in place
        of the kernel's own KVM; a boot into a kernel for which no core was chosen, or whose cores do not load, loads that.
      - With V(false) they leave what is loaded at boot as it is, and O(state=absent) has the core not loaded at boot any more.
        When it was the last for any kernel, the host boots as it did before.
    type: bool
    default: false
  load:
    description:
      - With V(false), which needs O(persist=true), nothing is loaded or unloaded now. The core is loaded at the next boot. That
        is the way for a host whose VMs hold the kernel's own KVM and cannot be moved away.
    type: bool
    default: true
  trial:
    description:
      - With V(true), which is for O(state=present) alone, a core that is loaded is on trial, and RV(trial) tells it, also to
        later calls that find it loaded. So whoever goes on for one who died after the loading knows that it is his to unload.
      - The trial ends when the core is asked for without this, is made the default or unloaded, or the host reboots.
    type: bool
    default: false
  rollout_id:
    description:
      - The rollout this belongs to.
    type: str
  state_dir:
    description:
      - Where builds live on the host.
    type: path
    default: /var/lib/vmm-live-upgrade
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
  - vmm.live_upgrade.lease
attributes:
  check_mode:
    support: full
    details: With O(state=absent) a core in use is not waited for; a warning names who uses it.
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - Needs to run as root.
seealso:
  - module: vmm.live_upgrade.kvm_stage
  - module: vmm.live_upgrade.kvm_info
"""

EXAMPLES = r"""
- name: Load a build of KVM beside the one that VMs run on
  vmm.live_upgrade.kvm_core:
    build_id: kvm-6.12.118-0123456789abcdef

- name: Load it to move VMs there, and perhaps back
  vmm.live_upgrade.kvm_core:
    build_id: kvm-6.12.118-0123456789abcdef
    trial: true

- name: Have new VMs start on it, also after a reboot
  vmm.live_upgrade.kvm_core:
    build_id: kvm-6.12.118-0123456789abcdef
    state: default
    persist: true

- name: Have a host with VMs on the kernel's own KVM load it at its next boot
  vmm.live_upgrade.kvm_core:
    build_id: kvm-6.12.118-0123456789abcdef
    persist: true
    load: false

- name: Unload the former when its last VM has been moved
  vmm.live_upgrade.kvm_core:
    build_id: kvm-6.12.107-fedcba9876543210
    state: absent
    deadline_s: 120
"""

RETURN = r"""
build_id:
  description: The build.
  returned: always
  type: str
node:
  description: Device node of its core.
  returned: always
  type: str
actions:
  description: What was done, or would be.
  returned: always
  type: list
  elements: str
default:
  description: Name of the core that C(/dev/kvm) opens afterwards, null without any.
  returned: always
  type: str
boot:
  description: Builds that are loaded at boot afterwards, the default first. Empty means the kernel's own KVM.
  returned: always
  type: list
  elements: str
trial:
  description: Whether the core is on trial afterwards.
  returned: always
  type: bool
users:
  description: Who used the core before, each with C(pid) and C(vm), the name of the VM or null.
  returned: always
  type: list
  elements: dict
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.boot import BootChoice
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.changes import Change
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.cores import CoreManager
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.kernel import Kernel
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.manifest import name_of
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.nodes import Nodes
from ansible_collections.vmm.live_upgrade.plugins.module_utils.kmod.store import KvmStore
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import LEASE_ARGUMENT, leased
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import discovery


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "default", "absent"], "default": "present"},
            "build_id": {"type": "str", "required": True},
            "deadline_s": {"type": "float", "default": 60},
            "persist": {"type": "bool", "default": False},
            "load": {"type": "bool", "default": True},
            "trial": {"type": "bool", "default": False},
            "rollout_id": {"type": "str"},
            "lease": LEASE_ARGUMENT,
            "state_dir": {"type": "path", "default": "/var/lib/vmm-live-upgrade"},
        },
        supports_check_mode=True,
    )
    if not module.params["load"] and (module.params["state"] == "absent" or not module.params["persist"]):
        module.fail_json(
            msg="load=false is for state=present and state=default with persist=true: nothing would be done"
        )
    if module.params["trial"] and (module.params["state"] != "present" or module.params["persist"]):
        module.fail_json(
            msg="trial=true is for state=present without persist: a core that is the default or loaded at boot is there to stay"
        )
    state_dir = Path(module.params["state_dir"])
    kernel = Kernel()
    store = KvmStore(state_dir, kernel.release)
    manager = CoreManager(kernel, store, Nodes(), BootChoice(store), discovery.name_of)
    try:
        # After a trial has begun VMs are to be moved.
        lease = None if module.check_mode else module.params["lease"]
        with leased(state_dir, module.params["rollout_id"], lease, keep=module.params["trial"]):
            done = _run(module, manager)
        module.exit_json(failed=False, **done)
    except (LiveUpgradeError, OSError) as exc:
        module.fail_json(msg=str(exc))


def _run(module: AnsibleModule, manager: CoreManager) -> dict[str, object]:
    build_id = module.params["build_id"]
    name = name_of(build_id)
    before = manager.picture()
    core = manager.state().core(name)
    users = core.users if core else []
    changes = _plan(module, manager)
    if not module.check_mode:
        manager.apply(changes)
    elif users and module.params["state"] == "absent":
        module.warn(f"{build_id} is in use by {', '.join(map(str, users))}: it would be waited for them")
    after = before.after(changes)
    return {
        "changed": bool(changes),
        "build_id": build_id,
        "node": f"/dev/kvm-{name}",
        "actions": [str(change) for change in changes],
        "default": after.default,
        "boot": list(after.boot),
        "trial": name in after.trials,
        "users": [{"pid": user.pid, "vm": user.vm} for user in users],
        "diff": {"before": before.text(), "after": after.text()},
    }


def _plan(module: AnsibleModule, manager: CoreManager) -> list[Change]:
    params = module.params
    if params["state"] == "absent":
        return manager.plan_absent(params["build_id"], deadline_s=params["deadline_s"], persist=params["persist"])
    if not params["load"]:
        return manager.plan_boot(params["build_id"], default=params["state"] == "default")
    return manager.plan_present(
        params["build_id"], default=params["state"] == "default", persist=params["persist"], trial=params["trial"]
    )


if __name__ == "__main__":
    main()
