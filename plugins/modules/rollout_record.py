#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_record.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_record
short_description: Record one host's turn in a rollout
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Puts what the modules said of a host into the rollout's journal, on the disk before the play goes on.
  - Runs on the controller and does not contact the host, so that it records hosts that are gone.
options:
  journal:
    description:
      - Path of the rollout's journal, as M(vmm.live_upgrade.rollout_begin) returned it.
    type: path
    required: true
  event:
    description:
      - What to record. V(started) that the host's turn begins, V(host) how it went, V(soaked) how its VMs were a while later,
        V(rollback) how its roll-back went, V(settled) what became of its KVM cores once its wave was judged. What
        M(vmm.live_upgrade.rollout_turn) does is recorded by itself. V(watched) records nothing, but has the host that the task is
        delegated to watched again, whose turn an earlier run recorded.
    type: str
    choices: [started, soaked, watched, host, rollback, settled]
    required: true
  failure:
    description:
      - The result of the task that failed, as Ansible gives it to a C(rescue).
    type: dict
    default: {}
  turn:
    description:
      - For V(soaked), what was recorded of the host's turn; empty to take it from the journal.
    type: dict
    default: {}
  preflight:
    description:
      - What M(vmm.live_upgrade.vm_preflight) returned.
    type: dict
    default: {}
  health_before:
    description:
      - What M(vmm.live_upgrade.vm_health) returned before. With O(event=started) where a turn goes on that was cut after it.
    type: dict
    default: {}
  upgrade:
    description:
      - What M(vmm.live_upgrade.vm_upgrade) returned, of a loop too.
    type: dict
    default: {}
  health_after:
    description:
      - What M(vmm.live_upgrade.vm_health) returned after.
    type: dict
    default: {}
  set_default:
    description:
      - What the change of the build for VMs yet to be started returned.
    type: dict
    default: {}
  kvm_load:
    description:
      - What M(vmm.live_upgrade.kvm_core) returned of loading cores, of a loop over build ids.
    type: dict
    default: {}
  kvm_default:
    description:
      - What M(vmm.live_upgrade.kvm_core) returned of choosing the default core, of a loop over build ids.
    type: dict
    default: {}
  kvm_found:
    description:
      - What M(vmm.live_upgrade.kvm_info) returned after the loading.
    type: dict
    default: {}
  kvm_unload:
    description:
      - What M(vmm.live_upgrade.kvm_core) returned of unloading cores, of a loop over build ids.
    type: dict
    default: {}
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - Each call is one more entry in the journal. Nothing changes on any host.
seealso:
  - module: vmm.live_upgrade.rollout_begin
  - module: vmm.live_upgrade.rollout_gate
"""

EXAMPLES = r"""
- name: Record how it went
  vmm.live_upgrade.rollout_record:
    journal: "{{ rollout.journal }}"
    event: rollback
    upgrade: "{{ moved_back }}"
"""

RETURN = r"""
record:
  description: The entry in the journal, empty for V(watched).
  returned: success
  type: dict
"""
