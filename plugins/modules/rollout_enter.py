#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_enter.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_enter
short_description: Enter a wave of a rollout
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Tells what of the wave was done before the run was cut, and whether the maintenance windows of its hosts, which a plan has,
    are open. A wave that has begun is stopped by neither a window nor O(until_wave).
  - Runs on the controller, once per wave.
options:
  journal:
    description:
      - Path of the rollout's journal, as M(vmm.live_upgrade.rollout_begin) returned it.
    type: path
    required: true
  until_wave:
    description:
      - Index of the last wave that this run is asked for. It stops before the next one, which another run goes on with.
    type: int
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
  - module: vmm.live_upgrade.rollout_begin
"""

EXAMPLES = r"""
- name: Enter the wave
  vmm.live_upgrade.rollout_enter:
    journal: "{{ rollout.journal }}"
  register: rollout_entry
  run_once: true
"""

RETURN = r"""
wave:
  description: Index of the wave.
  returned: success
  type: int
stop:
  description: Whether the rollout stops here, to be resumed in the window or by another run.
  returned: success
  type: bool
reason:
  description: Why it stops.
  returned: success
  type: str
done:
  description: Hosts whose turn is over.
  returned: success
  type: list
  elements: str
before:
  description: Per host that a run which was cut has looked at, the health of its VMs before they were touched.
  returned: success
  type: dict
looked:
  description: Per host whose turn was cut, what was seen before its VMs were touched; C(health_before),
    C(kvm_load), and C(preflight) where it refused VMs.
  returned: success
  type: dict
"""
