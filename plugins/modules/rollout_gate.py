#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_gate.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_gate
short_description: Judge a wave of a rollout
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Judges the wave of the current batch from the journal and says whether to go on. PASS, FAIL, or INCONCLUSIVE, which never
    passes.
  - A host without a record counts as unreachable, and an unreachable host as a failure.
  - Never fails by itself, because a failed task would keep the report from being written; see RV(stop).
  - What is demanded is O(vmm.live_upgrade.rollout_begin#module:gate), which is in the journal.
  - In check mode all waves are judged and none stops the plan.
options:
  journal:
    description:
      - Path of the rollout's journal, as M(vmm.live_upgrade.rollout_begin) returned it.
    type: path
    required: true
  rollback:
    description:
      - Whether to roll a failed wave back. V(never) leaves it for a person.
    type: str
    choices: [auto, never]
    default: auto
  others:
    description:
      - What M(vmm.live_upgrade.vm_health) returned of hosts that are yet to be upgraded, as a loop over their names, with their
        health before the wave as the baseline. It is what C(margin) of O(vmm.live_upgrade.rollout_begin#module:gate) is held
        against.
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
  - module: vmm.live_upgrade.rollout_record
  - module: vmm.live_upgrade.rollout_finish
"""

EXAMPLES = r"""
- name: Judge the wave
  vmm.live_upgrade.rollout_gate:
    journal: "{{ rollout.journal }}"
  register: wave
  run_once: true

- name: Leave the later waves untouched
  ansible.builtin.meta: end_play
  when: wave.stop
"""

RETURN = r"""
wave:
  description: Index of the wave; 0 is the canary.
  returned: success
  type: int
verdict:
  description: V(PASS), V(FAIL) or V(INCONCLUSIVE).
  returned: success
  type: str
reasons:
  description: Why it did not pass.
  returned: success
  type: list
  elements: str
evidence:
  description: What the verdict rests on, as in docs/upgrade.schema.json.
  returned: success
  type: dict
checks:
  description: What the verdict consists of, check by check, as in docs/upgrade.schema.json.
  returned: success
  type: list
  elements: dict
then:
  description:
    - V(go_on), V(stop), V(pause) for a person, or V(grow), to take in the next wave so that there is more to judge by.
  returned: success
  type: str
settle:
  description: Hosts of the wave that stay where they are for good, so that the new KVM core becomes their default.
  returned: success
  type: list
  elements: str
stop:
  description: Whether the rollout must not go on.
  returned: success
  type: bool
targets:
  description:
    - Per host what to roll back, groups of C(build_id), C(vms), and C(kvm_build_id) where KVM was changed, too. Empty when
      nothing is.
  returned: success
  type: dict
previous_defaults:
  description: Per host to roll back the build that new VMs started on before.
  returned: success
  type: dict
loaded_cores:
  description: Where the rollout stops, per host of the wave that can be reached the KVM cores that it loaded.
  returned: success
  type: dict
"""
