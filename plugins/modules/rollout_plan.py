#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_plan.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_plan
short_description: Write the plan of a rollout
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Puts the hosts into waves, so that no wave holds more of a failure domain than it may, and tells for each VM how it would be
    moved and whether it could go back. What cannot be upgraded is left out, with the reason.
  - Rests on what the role C(preflight) found on each host, in C(preflight_result), and on variables of the hosts.
  - Writes it as JSON (C(docs/plan.schema.json)), and as a page of text with the same name and the ending C(.txt).
  - Used by the playbook C(vmm.live_upgrade.plan).
options:
  build_id:
    description:
      - Build to move to.
    type: str
    required: true
  kvm_build_id:
    description:
      - KVM build to move to, too.
    type: str
  hosts:
    description:
      - Inventory names of the hosts that were asked.
    type: list
    elements: str
    required: true
  waves:
    description:
      - Sizes of the waves. Numbers, or percentages of the hosts that can be upgraded; the last one repeats. A wave is smaller
        where a failure domain or a maintenance window asks for it.
    type: list
    elements: raw
    required: true
  domains:
    description:
      - Variable of the hosts that names a failure domain → how many units of such a domain one wave may hold, as a number or
        a percentage of all its units. The units are hosts, or VMs where the variable maps names of VMs.
    type: dict
    default: {}
  exclude:
    description:
      - Host to leave out → why. Hosts with the variable C(upgrade_excluded) are left out, too.
    type: dict
    default: {}
  mechanism:
    description:
      - What the hosts were asked for, as O(vmm.live_upgrade.vm_preflight#module:mechanism).
    type: str
    default: auto
  downtime_budget_ms:
    description:
      - Longest pause of VMs whose class has no budget of its own.
    type: int
  pause_budgets_ms:
    description:
      - Longest pause by the class of the VM.
    type: dict
    default: {}
  refused_vms:
    description:
      - What becomes of VMs that preflight refuses. V(leave_out_vm), they stay as they are and the others of their host are
        moved; a host of which all are refused is left out. V(leave_out_host), their host is left out. V(stop), there is no plan.
    type: str
    choices: [stop, leave_out_vm, leave_out_host]
    default: leave_out_vm
  path:
    description:
      - Where the plan is written.
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
  - module: vmm.live_upgrade.rollout_begin
  - module: vmm.live_upgrade.vm_preflight
"""

EXAMPLES = r"""
- name: Write the plan
  vmm.live_upgrade.rollout_plan:
    build_id: qemu-11.1.1-0123456789abcdef
    hosts: "{{ query('inventory_hostnames', 'hypervisors') }}"
    waves: [1, 10%, 50%]
    domains: {rack: 25%, vm_ha_groups: 1}
    path: build/results/plan.json
"""

RETURN = r"""
plan_id:
  description: Id of the plan.
  returned: success
  type: str
hash:
  description: What an approval names. The same fleet and the same request give the same hash.
  returned: success
  type: str
path:
  description: Path of the plan.
  returned: success
  type: str
waves:
  description: Names of the hosts of each wave.
  returned: success
  type: list
  elements: list
excluded:
  description: Hosts that are left out, each with C(host), C(why) and C(detail).
  returned: success
  type: list
  elements: dict
"""
