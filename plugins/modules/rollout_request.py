#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_request.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_request
short_description: Find out what a rollout is asked to do
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Takes the request from the arguments, from a plan, or from the journal of a rollout that was cut, and refuses a plan that is
    not approved or was changed, and arguments that contradict either.
  - Runs on the controller, before any host is asked.
options:
  build_id:
    description:
      - Build to move to.
    type: str
  kvm_build_id:
    description:
      - KVM build to move to, too.
    type: str
  mechanism:
    description:
      - What is asked of the hosts.
    type: str
  downtime_budget_ms:
    description:
      - Longest pause of VMs whose class has no budget of its own.
    type: int
  pause_budgets_ms:
    description:
      - Longest pause by the class of the VM.
    type: dict
  refused_vms:
    description:
      - What becomes of VMs that preflight refuses, as O(vmm.live_upgrade.rollout_begin#module:refused_vms).
    type: str
  plan:
    description:
      - Plan that M(vmm.live_upgrade.rollout_plan) wrote.
    type: path
  approved:
    description:
      - Hash of the plan, by which a person approves it.
    type: str
  approve_no_way_back:
    description:
      - Whether VMs of the plan may be moved that could not be moved back.
    type: bool
    default: false
  resume:
    description:
      - Id of the rollout to go on with, or path of its journal.
    type: str
  report:
    description:
      - Where the report is written; the journals are in C(rollouts) beside it, and so is the status (C(.status.json)), which
        tells of this run from now on.
    type: path
    required: true
  accept_wave:
    description:
      - Wave that waits for a person and that this person lets pass without proof.
    type: int
  until_wave:
    description:
      - Index of the last wave that this run is asked for.
    type: int
  rollback:
    description:
      - Whether a failed wave goes back, V(auto) or V(never).
    type: str
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
  - module: vmm.live_upgrade.rollout_begin
"""

EXAMPLES = r"""
- name: Find out what is asked for, and whether it is approved
  vmm.live_upgrade.rollout_request:
    plan: build/results/plan.json
    approved: "{{ upgrade_approved }}"
    report: build/results/upgrade.json
  register: rollout_request
"""

RETURN = r"""
build_id:
  description: Build to move to.
  returned: success
  type: str
kvm_build_id:
  description: KVM build to move to, empty without one.
  returned: success
  type: str
mechanism:
  description: What to ask of the hosts.
  returned: success
  type: str
downtime_budget_ms:
  description: Longest pause, null without one.
  returned: success
  type: int
pause_budgets_ms:
  description: Longest pause by class.
  returned: success
  type: dict
refused_vms:
  description: What becomes of VMs that preflight refuses.
  returned: success
  type: str
plan:
  description: Path of the plan, empty without one.
  returned: success
  type: str
journal:
  description: Path of the journal to go on with, empty without one.
  returned: success
  type: str
"""
