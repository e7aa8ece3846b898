#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_soak.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_soak
short_description: Let a wave run before it is judged
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Waits for as long as the VMs of the current wave have to run on the new build before their health is looked at again, and
    tells on which hosts some do.
  - It waits no longer once the rollout's watcher has seen of one of them what stops a rollout, such as a guest that crashed.
  - There is no wait when nothing is demanded, nothing was upgraded, or the wave fails already by what was recorded, so that its
    VMs do not stay on a bad build. Nor is there one in check mode.
  - The time counts since their turn was over, also that in which nobody controlled them. A host that has soaked does not again
    when its wave is judged anew.
options:
  journal:
    description:
      - Path of the rollout's journal, as M(vmm.live_upgrade.rollout_begin) returned it.
    type: path
    required: true
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
- name: Let the wave run before it is judged
  vmm.live_upgrade.rollout_soak:
    journal: "{{ rollout.journal }}"
  register: soak
  run_once: true
"""

RETURN = r"""
soak_s:
  description: Seconds that were to be waited.
  returned: success
  type: int
hosts:
  description: Where to look at the health of VMs again now.
  returned: success
  type: list
  elements: str
"""
