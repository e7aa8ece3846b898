#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_turn.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_turn
short_description: Upgrade the VMs of one host, from the verdict on them to the record of what came of it
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - One task in place of many, since a task costs the controller the same however little it does. It has these modules run on the
    host, each as a task of its own would, and stops at the first that fails. M(vmm.live_upgrade.kvm_core) loads the new core
    beside the others, on trial; M(vmm.live_upgrade.vm_preflight); M(vmm.live_upgrade.vm_health);
    M(vmm.live_upgrade.vm_upgrade); M(vmm.live_upgrade.vm_health) against before, whatever came of the upgrade; and
    M(vmm.live_upgrade.artifact_default), when all VMs of the host were moved.
  - With O(journal) it is recorded that the turn begins, what was seen before any VM was touched, and how it went, each on the
    disk before the next step.
  - Fails when a VM did not come where it should, and also when the host could not be reached. Then C(msg) says so.
options:
  build_id:
    description:
      - Build to move the VMs to.
    type: str
    required: true
  kvm_build_id:
    description:
      - KVM build to move them to, too. Each stays on the core it is on without one.
    type: str
  state_dir:
    description:
      - Directory on the host that holds builds and transactions.
    type: str
    default: /var/lib/vmm-live-upgrade
  vms:
    description:
      - Names of the VMs to move; all when empty.
    type: list
    elements: str
    default: []
  order:
    description:
      - Names of the VMs to move first, in this order.
    type: list
    elements: str
    default: []
  mechanism:
    description:
      - How to move them, as O(vmm.live_upgrade.vm_upgrade#module:mechanism).
    type: str
    default: auto
  accept_vfio_risk:
    description:
      - As O(vmm.live_upgrade.vm_upgrade#module:accept_vfio_risk).
    type: bool
    default: false
  rehearse:
    description:
      - As O(vmm.live_upgrade.vm_preflight#module:rehearse).
    type: bool
    default: false
  parallel:
    description:
      - How many VMs to move at the same time.
    type: int
    default: 1
  downtime_budget_ms:
    description:
      - Longest pause (milliseconds) of a VM. That of the module when absent.
    type: int
  pause_budgets_ms:
    description:
      - The same by the class of the VM.
    type: dict
    default: {}
  vm_classes:
    description:
      - The class of VMs, by their name.
    type: dict
    default: {}
  prepare_timeout_s:
    description:
      - Seconds that a new QEMU may take to get ready while the VM runs on.
    type: int
    default: 60
  probes:
    description:
      - What tells the health of a VM, by its name, as O(vmm.live_upgrade.vm_health#module:probes).
    type: dict
    default: {}
  rollout_id:
    description:
      - Id of the rollout that this is part of, for the host's journal.
    type: str
  lease:
    description:
      - Under what lease of the host to work, as O(vmm.live_upgrade.vm_upgrade#module:lease).
    type: dict
  set_default:
    description:
      - Whether VMs started from now on shall run the build, once every VM of the host does.
    type: bool
    default: true
  journal:
    description:
      - Path of the rollout's journal on the controller. Nothing is recorded without one.
    type: path
  looked:
    description:
      - What the journal has of a turn of this host that was cut, as RV(vmm.live_upgrade.rollout_enter#module:looked) tells.
        Verdict and first look are left out then, since they would be of VMs that were touched already.
    type: dict
    default: {}
  looked_at_later:
    description:
      - Whether the answer has what a later look at the VMs is held against. It is kept by the controller for each host, so ask
        for it only when there will be one.
    type: bool
    default: false
  refused_vms:
    description:
      - What becomes of VMs that preflight refuses. V(stop), the turn fails before anything is touched; V(leave_out_vm), the
        others are moved; V(leave_out_host), none is.
    type: str
    choices: [stop, leave_out_vm, leave_out_host]
    default: stop
  shard:
    description:
      - Shard of a fleet that this rollout is, as RV(vmm.live_upgrade.rollout_begin#module:shard) tells. Its lease is renewed
        before the host is touched, which fails when another controller has the shard.
    type: dict
    default: {}
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - VMs that run the build are left alone. With O(journal), each call is more entries there.
seealso:
  - module: vmm.live_upgrade.vm_upgrade
  - module: vmm.live_upgrade.rollout_record
"""

EXAMPLES = r"""
- name: Upgrade the VMs of each host of the wave
  vmm.live_upgrade.rollout_turn:
    journal: "{{ rollout.journal }}"
    rollout_id: "{{ rollout.rollout_id }}"
    build_id: qemu-11.1.1-0123456789abcdef
    probes: "{{ vm_probes }}"
  register: turn
"""

RETURN = r"""
vms:
  description:
    - What M(vmm.live_upgrade.vm_upgrade) says of each VM, of its C(name), C(outcome), C(downtime_ms), C(new_build_id) and
      C(error). The rest is in the journal.
  returned: always
  type: list
  elements: dict
outcome:
  description: V(ok), V(failed), V(unreachable), or V(left_out) where no VM was to be moved, as it was recorded.
  returned: with O(journal)
  type: str
record:
  description: The entry in the journal.
  returned: with O(looked_at_later)
  type: dict
health_before:
  description: What M(vmm.live_upgrade.vm_health) returned before.
  returned: with O(looked_at_later)
  type: dict
"""
