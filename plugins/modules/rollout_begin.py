#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module is an action plugin; see plugins/action/rollout_begin.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_begin
short_description: Begin a rollout
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Plans the waves, takes the hosts so that no other rollout of this controller works on them, and opens the journal.
  - Runs on the controller, once for all hosts. In check mode it takes no hosts.
  - Used by the playbooks C(vmm.live_upgrade.upgrade) and C(vmm.live_upgrade.rollback).
options:
  kind:
    description:
      - What the rollout is.
    type: str
    choices: [upgrade, rollback]
    default: upgrade
  build_id:
    description:
      - Build to move to. A roll-back without one goes to the builds before, by O(previous_report).
    type: str
  kvm_build_id:
    description:
      - KVM build to move to, too. Without one a VM stays on the KVM core it is on; a roll-back without a build goes to the core
        before.
    type: str
  hosts:
    description:
      - Inventory names of the hosts, in the order of the play.
    type: list
    elements: str
    required: true
  waves:
    description:
      - Sizes of the waves, as in C(serial). Numbers or percentages; the last one repeats.
    type: list
    elements: raw
    required: true
  downtime_budget_ms:
    description:
      - Longest measured downtime (milliseconds) that a wave passes with. Not judged when absent.
    type: float
  report:
    description:
      - Where the report is written at the end, with the status (C(.status.json)) beside it from the beginning. The journal is
        kept in C(rollouts) beside it.
    type: path
    required: true
  html:
    description:
      - Where the report is written as a page. By default beside it; empty for not at all.
    type: str
  junit:
    description:
      - Where the report is written as JUnit XML. By default beside it, C(.junit.xml); empty for not at all.
    type: str
  prometheus:
    description:
      - Where the report is written as metrics for the textfile collector of node_exporter. Not at all by default, nor of a plan.
    type: str
  previous_report:
    description:
      - Report or journal of the rollout to undo, or its id where the journal is beside O(report). The journal keeps note of it,
        so that nobody goes on with the rollout.
    type: path
  vms:
    description:
      - Names of the VMs to roll back; all when empty.
    type: list
    elements: str
    default: []
  gate:
    description:
      - What is demanded of a wave. Empty, any failure fails it, and nothing is demanded of the size of the sample.
      - V(max_failure_rate), the rate (0 to 1) that has to be shown not to be exceeded, in place of no failure at all.
      - V(downtime_quantile), the share (0 to 1) of pauses that has to be shown to be within the budget, in place of each.
      - V(margin) and V(controls), how much larger (0 to 1) the share of VMs whose health got worse may be than on that many
        hosts which are yet to be upgraded.
      - V(confidence) of all that is shown, default 0.95, for the rollout as a whole.
      - V(unit), V(host) (default) or V(vm), what counts as independent; V(correlation) (0 to 1) of VMs on one host, for V(vm).
      - V(min_vms), how many VMs must have moved before a wave is judged.
      - V(soak_s), for how many seconds they must have run on the new build.
      - V(on_inconclusive), V(pause) (default) for a person, V(grow) the wave by the next one, or V(pass). V(grow_limit), the
        share (0 to 1, default 0.5) of the hosts that may be upgraded without proof.
    type: dict
    default: {}
  mechanism:
    description:
      - What is asked of the hosts, for the journal.
    type: str
  pause_budgets_ms:
    description:
      - Longest pause by the class of the VM, for the journal.
    type: dict
    default: {}
  refused_vms:
    description:
      - What becomes of VMs that preflight refuses. V(stop), their host fails and so does its wave; V(leave_out_vm), they stay as
        they are and the others are moved; V(leave_out_host), all VMs of their host stay. For the journal.
    type: str
    choices: [stop, leave_out_vm, leave_out_host]
    default: stop
  plan:
    description:
      - Plan that M(vmm.live_upgrade.rollout_plan) wrote, and that M(vmm.live_upgrade.rollout_request) found to be approved. Its
        waves take the place of O(waves). It is made once more from what the hosts answered now, and where that comes to another
        one the rollout is refused, with the differences.
    type: path
  resume:
    description:
      - Journal of a rollout whose run was cut or is to be gone on with. What is left of it is, under the same id. All else but
        the hosts is taken from there, and the report goes beside the folder of the journal.
    type: path
  watch:
    description:
      - Whether a watcher beside the rollout keeps an ssh session to each host in its turn and soak, and records what QEMU tells
        and whether the hosts can be reached.
      - With V(auto) where the Python package C(paramiko) is there and hosts are reached by ssh. With V(always) the rollout does
        not begin without it.
    type: str
    choices: [auto, always, never]
    default: auto
  accept_wave:
    description:
      - With O(resume), the wave that waits for a person and that this person lets pass without proof.
    type: int
  shard:
    description:
      - That this rollout is one of several, each of some hosts of a fleet, run by controllers that share a failure budget.
      - When gone on with, what it was begun with holds, but for the budget and the lease.
    type: dict
    suboptions:
      store:
        description:
          - Folder that all controllers share, on a file system with locks.
        type: path
        required: true
      fleet:
        description:
          - Name of what the shards are parts of, one for each rollout over a fleet.
        type: str
        required: true
      name:
        description:
          - Name of the shard.
        type: str
        required: true
      max_failed_vms:
        description:
          - How many VMs may fail in all shards together. When one more has, no shard enters another wave.
        type: int
        default: 0
      max_failed_hosts:
        description:
          - The same of hosts, failed or not reached.
        type: int
        default: 0
      lease_s:
        description:
          - For how long (seconds) a shard is kept from other controllers after the last word of its owner. Longer than the turn
            of a host takes.
        type: int
        default: 900
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
  - module: vmm.live_upgrade.rollout_gate
  - module: vmm.live_upgrade.rollout_finish
"""

EXAMPLES = r"""
- name: Begin
  vmm.live_upgrade.rollout_begin:
    build_id: qemu-11.1.1-0123456789abcdef
    hosts: "{{ ansible_play_hosts_all }}"
    waves: [1, 25%, 100%]
    report: build/results/upgrade.json
  register: rollout
  run_once: true
  delegate_to: localhost
  delegate_facts: true
"""

RETURN = r"""
rollout_id:
  description: Id of the rollout.
  returned: success
  type: str
journal:
  description: Path of the journal.
  returned: success
  type: str
report:
  description: Path the report will have.
  returned: success
  type: str
waves:
  description: Names of the hosts of each wave.
  returned: success
  type: list
  elements: list
targets:
  description:
    - For a roll-back, per host the groups of VMs that go to a build. Each is C(build_id), C(vms), and C(kvm_build_id) where KVM
      is changed, too.
  returned: success
  type: dict
defaults:
  description: For a roll-back, per host the build that VMs started from then on shall run.
  returned: success
  type: dict
refused_vms:
  description: What becomes of VMs that preflight refuses.
  returned: success
  type: str
kvm_build_id:
  description: Id of the KVM build to move to, empty without one.
  returned: success
  type: str
gate:
  description: What is demanded of a wave, with the defaults.
  returned: success
  type: dict
shard:
  description: The shard as it was taken, empty without one.
  returned: success
  type: dict
lease:
  description: The C(token) of this run and the C(owner), for the hosts.
  returned: success
  type: dict
play_hosts:
  description: The hosts in the order of a plan, or of what is left of a rollout. Absent where the order is that of the inventory.
  returned: when O(plan) or O(resume) is given
  type: list
  elements: str
play_sizes:
  description: The sizes of the waves of RV(play_hosts).
  returned: when O(plan) or O(resume) is given
  type: list
  elements: int
cores:
  description:
    - For a roll-back, per host the KVM core that VMs started from then on shall run (C(default), empty to leave it) and those
      to unload once no VM runs on them (C(unload); empty for all but the default).
  returned: success
  type: dict
"""
