#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_open.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_open
short_description: Say what becomes of waves that were judged together with a later one
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - A wave that proved nothing can be made to grow by the next one, see C(on_inconclusive) of
    M(vmm.live_upgrade.rollout_begin). Its hosts are neither rolled back nor settled until a later judgement. This tells
    from the journal what that came to for them.
  - Empty when no wave grew, or when none was judged after it.
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
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
seealso:
  - module: vmm.live_upgrade.rollout_gate
"""

EXAMPLES = r"""
- name: Ask what was left open
  vmm.live_upgrade.rollout_open:
    journal: "{{ rollout.journal }}"
  register: rollout_open
"""

RETURN = r"""
hosts:
  description: Where something is left to do.
  returned: success
  type: list
  elements: str
targets:
  description: Per host what to roll back, as M(vmm.live_upgrade.rollout_gate) returns it.
  returned: success
  type: dict
previous_defaults:
  description: Per host to roll back the build that new VMs started on before.
  returned: success
  type: dict
loaded_cores:
  description: Per host the KVM cores that the rollout loaded and that are to be unloaded again.
  returned: success
  type: dict
settle:
  description: Hosts whose wave was let pass, so that the new KVM core becomes their default.
  returned: success
  type: list
  elements: str
"""
