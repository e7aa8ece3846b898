#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_preflight
short_description: Tell whether running VMs can be upgraded to a staged build, and back
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Gives a verdict on every VM of a host before anything is touched. It reads and asks, and changes nothing.
  - With O(rehearse) it does more than ask, which costs each VM a short pause.
  - Each reason against an upgrade has a code, says what is so, and what a person can do about it.
  - Looks at the state of the VM, its memory, devices, disk images and confinement, at the staged build (integrity, machine types,
    devices, whether device state of the one build loads in the other, in both directions) and at the host (memory, disk, kernel).
  - A refusal is an answer, and the module succeeds with it unless O(fail_on_refusal) is set. A build that is not staged or is
    damaged, and a VM that does not run here, are errors.
options:
  build_id:
    description:
      - The staged build to move to, as listed by M(vmm.live_upgrade.artifact_stage).
    type: str
    required: true
  kvm_build_id:
    description:
      - The KVM build to move to, staged and loaded on the host. Without it each VM stays on the node of KVM that it has open.
    type: str
  kvm_load_later:
    description:
      - Whether the core of O(kvm_build_id) is yet to be loaded, if it is not, so that no VM is refused for that. It is seen that
        it is staged and could be loaded beside those that are. What it offers to VMs cannot be, and each has the
        warning C(kvm-not-compared); M(vmm.live_upgrade.vm_upgrade) compares it before a VM is paused.
      - On a host without a core this changes nothing. A core cannot be loaded under VMs on the kernel's own KVM.
    type: bool
    default: false
  state_dir:
    description:
      - Where builds and transactions live on the host.
    type: path
    default: /var/lib/vmm-live-upgrade
  vms:
    description:
      - Names of the VMs to judge. An unknown name is an error. Empty means every VM of the host.
    type: list
    elements: str
    default: []
  mechanism:
    description:
      - How the VMs are to be moved. V(auto) takes the best one that is possible for the VM.
    type: str
    choices:
      - auto
      - vfork
      - cpr-transfer
    default: auto
  accept_vfio_risk:
    description:
      - Whether a VM with VFIO devices that runs a QEMU older than 11.1 may be moved by V(cpr-transfer). Such a QEMU ends, and the
        VM with it, when the new process dies early. By V(vfork) there is no such risk, and nothing to accept.
    type: bool
    default: false
  memory_headroom_mib:
    description:
      - MiB that must stay available on the host while a VM has two processes.
    type: int
    default: 256
  disk_headroom_mib:
    description:
      - MiB that must be free in the file system of O(state_dir), for journals and logs.
    type: int
    default: 64
  require_way_back:
    description:
      - Whether a VM is refused when the build it runs now could not load what the new build saves. Otherwise a warning.
    type: bool
    default: true
  require_vmstate_check:
    description:
      - Whether a VM is refused when the device state of the two builds cannot be compared. Otherwise a warning.
    type: bool
    default: true
  rehearse:
    description:
      - Whether the running QEMU of each VM that would be moved by V(vfork) lets the new build realize its devices and load its
        state, and then takes the guest back. No question that is asked from outside proves as much.
      - This pauses the guest, for as long as the upgrade would; RV(vms[].rehearsal) tells how long. A VM that does not load, or
        not within its budget, is refused, and runs on as before.
      - VMs that would be moved by another mechanism are not rehearsed, and none is in check mode. Each such VM has the warning
        C(not-rehearsed).
      - Takes the lock of the host, so it is an error while an upgrade or another rehearsal is at work there.
    type: bool
    default: false
  downtime_budget_ms:
    description:
      - The longest pause allowed in a rehearsal, of VMs for whose class O(pause_budgets_ms) has no other. When the new process
        has not loaded the guest by then, the old one runs it on.
    type: int
    default: 1000
  pause_budgets_ms:
    description:
      - The longest pause allowed in a rehearsal, in milliseconds, by the class of the VM, as in M(vmm.live_upgrade.vm_upgrade).
    type: dict
    default: {}
  vm_classes:
    description:
      - The class of VMs, by name.
    type: dict
    default: {}
  prepare_timeout_s:
    description:
      - How long the new process may take to get ready in a rehearsal, while the guest runs.
    type: int
    default: 60
  fail_on_refusal:
    description:
      - Whether the module fails when a VM is refused. The verdicts are returned all the same.
    type: bool
    default: false
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
  - Needs to run as root.
  - The codes are described in C(docs/preflight.md) of the collection.
seealso:
  - module: vmm.live_upgrade.vm_info
  - module: vmm.live_upgrade.vm_upgrade
"""

EXAMPLES = r"""
- name: Ask whether all VMs of the host can be upgraded
  vmm.live_upgrade.vm_preflight:
    build_id: qemu-11.1.1-0123456789abcdef
  register: preflight

- name: Stop unless two VMs can, and accept that they could not be rolled back
  vmm.live_upgrade.vm_preflight:
    build_id: qemu-11.1.1-0123456789abcdef
    vms: [web1, web2]
    require_way_back: false
    fail_on_refusal: true

- name: Ask whether all VMs can go to another KVM, with the QEMU that they run or another one
  vmm.live_upgrade.vm_preflight:
    build_id: qemu-11.1.1-0123456789abcdef
    kvm_build_id: kvm-6.12.118-0123456789abcdef

- name: Let the new build load each VM as it is now, with at most 200 ms of pause
  vmm.live_upgrade.vm_preflight:
    build_id: qemu-11.1.1-0123456789abcdef
    rehearse: true
    downtime_budget_ms: 200
"""

RETURN = r"""
vms:
  description: The verdict on each VM, by name.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The VM.
      type: str
    pid:
      description: Its process.
      type: int
    verdict:
      description: V(go), V(refuse), or V(already) when it runs the build, and is on the KVM that was asked for.
      type: str
    mechanism:
      description: How it would be moved, or null.
      type: str
    mechanism_reason:
      description: Why that mechanism, or why none.
      type: str
    refusals:
      description: Reasons against, each with C(code), C(message) and C(action).
      type: list
      elements: dict
    warnings:
      description: What is worth knowing, each with C(code), C(message) and C(action).
      type: list
      elements: dict
    forward:
      description: Whether state of the running build loads in the new one; C(compatible) (null when not compared), C(findings).
      type: dict
    backward:
      description: The same from the new build to the running one.
      type: dict
    rehearsal:
      description: What came of O(rehearse), null when it was not asked for.
      type: dict
      contains:
        outcome:
          description: V(passed), V(failed), which is a refusal, or V(not_done).
          type: str
        reason:
          description: What QEMU says of it, with the last words of a new process that failed; or why it was not done.
          type: str
        pause_ms:
          description: How long the guest was paused, by QEMU's own clock. Zero when the new process did not get that far.
          type: float
        pause_budget_ms:
          description: How long it might have been.
          type: int
        phases_ms:
          description: Phase of the mode C(cpr-vfork) → when it was reached, in ms from the start of the new process.
          type: dict
    old_build_id:
      description: The build it runs, or null for a QEMU that this collection did not build.
      type: str
    new_build_id:
      description: The build it would be moved to.
      type: str
    kvm_build_id_before:
      description: The KVM build that it is on, null for the kernel's own KVM, without KVM, and where it cannot be told.
      type: str
    kvm_build_id:
      description: The KVM build that it would be on.
      type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.judge import Judged, judge_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import PreflightRequest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.budgets import PauseBudgets
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import Limits
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.rehearsal import (
    leave_out_rehearsals,
    rehearse_host,
)

_JUDGEMENT = {
    "build_id": {"type": "str", "required": True},
    "kvm_build_id": {"type": "str"},
    "kvm_load_later": {"type": "bool", "default": False},
    "state_dir": {"type": "path", "default": "/var/lib/vmm-live-upgrade"},
    "vms": {"type": "list", "elements": "str", "default": []},
    "mechanism": {"type": "str", "choices": ["auto", "vfork", "cpr-transfer"], "default": "auto"},
    "accept_vfio_risk": {"type": "bool", "default": False},
    "memory_headroom_mib": {"type": "int", "default": 256},
    "disk_headroom_mib": {"type": "int", "default": 64},
    "require_way_back": {"type": "bool", "default": True},
    "require_vmstate_check": {"type": "bool", "default": True},
}
_REHEARSAL = {
    "rehearse": {"type": "bool", "default": False},
    "downtime_budget_ms": {"type": "int", "default": 1000},
    "pause_budgets_ms": {"type": "dict", "default": {}},
    "vm_classes": {"type": "dict", "default": {}},
    "prepare_timeout_s": {"type": "int", "default": 60},
}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={**_JUDGEMENT, **_REHEARSAL, "fail_on_refusal": {"type": "bool", "default": False}},
        supports_check_mode=True,
    )
    try:
        verdicts = [judged.verdict for judged in _judged(module)]
    except LiveUpgradeError as exc:
        module.fail_json(msg=str(exc))
    result = {"changed": False, "vms": [verdict.to_dict() for verdict in verdicts]}
    refused = [f"{v.name}: {'; '.join(item.message for item in v.refusals)}" for v in verdicts if v.verdict == "refuse"]
    if refused and module.params["fail_on_refusal"]:
        module.fail_json(msg=f"{len(refused)} of {len(verdicts)} VMs were refused. {' | '.join(refused)}", **result)
    module.exit_json(**result)


def _judged(module: AnsibleModule) -> list[Judged]:
    params: dict[str, Any] = module.params
    request = PreflightRequest(**{name: params[name] for name in _JUDGEMENT})
    for name in ("downtime_budget_ms", "prepare_timeout_s"):
        if params[name] < 1:
            raise LiveUpgradeError(f"{name} must be at least 1, not {params[name]}")
    budgets = PauseBudgets(params["downtime_budget_ms"], params["pause_budgets_ms"], params["vm_classes"])
    if params["rehearse"] and not module.check_mode:
        return rehearse_host(request, lambda vm: Limits(params["prepare_timeout_s"], budgets.of(vm).ms / 1000))
    judged = judge_host(request)
    if params["rehearse"]:
        leave_out_rehearsals(judged, "it would pause the guest, which check mode must not")
    return judged


if __name__ == "__main__":
    main()
