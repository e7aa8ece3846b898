#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_upgrade
short_description: Upgrade the QEMU of running VMs in place
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Moves running VMs of a host onto another staged QEMU build on the same host, without a copy of guest memory.
  - One call takes all VMs of the host and works through them. The work is done by an engine that is detached from this
    session, keeps a journal on disk, and is attached to, finished or undone when the module is called again.
  - A VM whose upgrade fails before the new process runs the guest goes on running in the old process.
  - The variable C(vmm_rollout_journal) names the journal, on the controller, of the rollout that this is part of. What came of a
    VM is in it as soon as it is known.
  - A VM that runs the build already, and is on the KVM that was asked for, is left alone.
options:
  build_id:
    description:
      - The staged build to move to, as listed by M(vmm.live_upgrade.artifact_stage).
    type: str
    required: true
  kvm_build_id:
    description:
      - The KVM build to move to, staged and loaded on the host. The new process opens its node, C(/dev/kvm-NAME).
      - With the O(build_id) that a VM runs already, its KVM alone changes.
      - Without it each VM stays on the node of KVM that it has open.
    type: str
  kvm_load_later:
    description:
      - For check mode, which loads nothing. With V(true), a VM is not refused because the core of O(kvm_build_id) is not loaded,
        when it is staged and could be loaded beside those that are. The plan says that what it offers was not compared.
      - Without check mode it changes nothing. The core has to be loaded, and is compared before a VM is paused.
    type: bool
    default: false
  state_dir:
    description:
      - Where builds and transactions live on the host.
    type: path
    default: /var/lib/vmm-live-upgrade
  run_dir:
    description:
      - Where the sockets of a hand-over live while it lasts. Must be visible to the QEMU processes.
    type: path
    default: /run/vmm-live-upgrade
  vms:
    description:
      - Names of the VMs to upgrade. An unknown name is an error. Empty means every VM of the host.
    type: list
    elements: str
    default: []
  order:
    description:
      - Names of VMs to take first, in this order. The others follow by name.
    type: list
    elements: str
    default: []
  mechanism:
    description:
      - How a VM is moved. V(auto) takes the best one that is possible for the VM.
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
  parallel:
    description:
      - How many VMs are upgraded at the same time.
    type: int
    default: 1
  downtime_budget_ms:
    description:
      - The longest pause allowed, of VMs for whose class O(pause_budgets_ms) has no other. When the new process has not loaded
        the guest by then, the old one runs it on.
    type: int
    default: 1000
  pause_budgets_ms:
    description:
      - The longest pause allowed, in milliseconds, by the class of the VM. It takes the place of O(downtime_budget_ms) for VMs
        that have a class in O(vm_classes). When it is empty, O(downtime_budget_ms) applies to all.
      - By V(vfork) QEMU itself keeps the limit, also while its main loop is blocked.
    type: dict
    default: {}
  vm_classes:
    description:
      - The class of VMs, by name; VMs of other hosts may be among them. A class that O(pause_budgets_ms) does not have is an
        error, unless it is empty.
    type: dict
    default: {}
  prepare_timeout_s:
    description:
      - How long the new process may take to get ready, while the guest runs.
    type: int
    default: 60
  probes:
    description:
      - What is known about VMs, by name. The key C(ram_word) with C(backend) and C(offset) names a word in guest
        memory that the guest increments; with it the downtime is measured in the guest's own memory.
    type: dict
    default: {}
  rollout_id:
    description:
      - The rollout this belongs to. Calling again with the same arguments and the same rollout returns what came of it.
    type: str
  transaction_id:
    description:
      - Tell what came of this transaction of the same request, as an earlier call with RV(finished=false) named it, instead of
        beginning one.
    type: str
  wait_s:
    description:
      - How long this call waits for the end before it returns with RV(finished=false).
    type: int
    default: 3600
extends_documentation_fragment:
  - vmm.live_upgrade.attributes
  - vmm.live_upgrade.lease
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: vmm.live_upgrade.vm_preflight
  - module: vmm.live_upgrade.artifact_stage
"""

EXAMPLES = r"""
- name: Move every VM of the host onto a staged build
  vmm.live_upgrade.vm_upgrade:
    build_id: qemu-11.1.1-0123456789abcdef

- name: Move two VMs, with at most 50 ms of pause, and say what would change first
  vmm.live_upgrade.vm_upgrade:
    build_id: qemu-11.1.1-0123456789abcdef
    vms: [web1, web2]
    downtime_budget_ms: 50
  check_mode: true
  diff: true

- name: Move every VM to another KVM, and to another QEMU at once
  vmm.live_upgrade.vm_upgrade:
    build_id: qemu-11.1.1-0123456789abcdef
    kvm_build_id: kvm-6.12.118-0123456789abcdef

- name: Move all VMs, those of a class with a budget of its own
  vmm.live_upgrade.vm_upgrade:
    build_id: qemu-11.1.1-0123456789abcdef
    pause_budgets_ms: {realtime: 20, batch: 5000}
    vm_classes: {web1: realtime, reports: batch}
"""

RETURN = r"""
finished:
  description: Whether the transaction has ended. When not, call again with the same arguments to attach to it.
  returned: always
  type: bool
transaction_id:
  description: The transaction on the host, or null when there was nothing to do.
  returned: always
  type: str
vms:
  description: One entry for each VM.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the VM.
      type: str
    outcome:
      description:
        - V(upgraded), V(already) on the build, V(planned) in check mode, V(refused) and untouched,
          V(rolled_back) and running in the old process, V(failed) when a person must look, V(lost), V(not_attempted).
      type: str
    reason:
      description: Why this mechanism, or why none.
      type: str
    mechanism:
      description: The mechanism used.
      type: str
    downtime_ms:
      description: Measured time in which the guest did not run.
      type: float
    downtime_source:
      description: V(guest-ram-word) as seen in guest memory, or V(qmp-events) from QEMU's own event times.
      type: str
    pause_budget_ms:
      description: The longest pause that the VM was allowed.
      type: int
    vm_class:
      description: The class that this budget is of, null when it is that of all VMs.
      type: str
    total_ms:
      description: Time from the beginning to the end of this VM's upgrade.
      type: float
    extra_memory_mib:
      description: Private memory of the new process while both lived.
      type: float
    cpu_s:
      description: CPU time that the new process and the engine spent until the guest ran.
      type: float
    threads:
      description: Threads of the new process that had to be given CPUs, policy or niceness of those of the old one, and which.
      type: list
      elements: str
    old_build_id:
      description: Build before, null for a foreign QEMU.
      type: str
    new_build_id:
      description: Build that runs the VM now.
      type: str
    old_pid:
      description: Process before.
      type: int
    new_pid:
      description: Process that runs the VM now.
      type: int
    kvm_build_id_before:
      description: KVM build before, null for the kernel's own KVM, without KVM, and where it cannot be told.
      type: str
    kvm_build_id:
      description: KVM build that the VM is on now.
      type: str
    error:
      description: What failed, the state of the VM, and what to do.
      type: str
    steps:
      description: Steps of the journal so far, oldest first. All there is of a VM while RV(finished=false).
      type: list
      elements: str
    warnings:
      description: What did not prevent the upgrade, or in check mode would not, but should be known.
      type: list
      elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.lease import LEASE_ARGUMENT, Claim, Lease
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.model import OUTCOMES_BAD, UpgradeRequest
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.plan import plan_host
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.transactions import Transactions


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "build_id": {"type": "str", "required": True},
            "kvm_build_id": {"type": "str"},
            "kvm_load_later": {"type": "bool", "default": False},
            "state_dir": {"type": "path", "default": "/var/lib/vmm-live-upgrade"},
            "run_dir": {"type": "path", "default": "/run/vmm-live-upgrade"},
            "vms": {"type": "list", "elements": "str", "default": []},
            "order": {"type": "list", "elements": "str", "default": []},
            "mechanism": {"type": "str", "choices": ["auto", "vfork", "cpr-transfer"], "default": "auto"},
            "accept_vfio_risk": {"type": "bool", "default": False},
            "parallel": {"type": "int", "default": 1},
            "downtime_budget_ms": {"type": "int", "default": 1000},
            "pause_budgets_ms": {"type": "dict", "default": {}},
            "vm_classes": {"type": "dict", "default": {}},
            "prepare_timeout_s": {"type": "int", "default": 60},
            "probes": {"type": "dict", "default": {}},
            "rollout_id": {"type": "str"},
            "lease": LEASE_ARGUMENT,
            "transaction_id": {"type": "str"},
            "wait_s": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    wait_s, known = module.params.pop("wait_s"), module.params.pop("transaction_id")
    load_later = module.params.pop("kvm_load_later")
    lease = module.params.pop("lease")
    try:
        request = UpgradeRequest(**{key: value for key, value in module.params.items() if not key.startswith("_")})
        request.validate()
        if module.check_mode:
            _exit(module, **_planned(request, load_later))
        claim = Claim.of(request.rollout_id, lease) if lease else None
        _exit(module, **_upgraded(request, claim, known, wait_s))
    except LiveUpgradeError as exc:
        module.fail_json(msg=str(exc), finished=True, transaction_id=None, vms=[])


def _planned(request: UpgradeRequest, kvm_load_later: bool) -> dict[str, Any]:
    plans = plan_host(request, kvm_load_later)
    return {
        "changed": any(plan.decision == "upgrade" for plan in plans),
        "finished": True,
        "transaction_id": None,
        "vms": [plan.result(planned=True).to_dict() for plan in plans],
        "diff": [plan.diff() for plan in plans if plan.decision == "upgrade"],
    }


def _upgraded(request: UpgradeRequest, claim: Claim | None, known: str | None, wait_s: int) -> dict[str, Any]:
    transactions = Transactions(request)
    transaction: Path | None = transactions.find(known)
    if transaction is None:
        plans = plan_host(request)
        if not any(plan.decision == "upgrade" for plan in plans) and not transactions.unfinished():
            return {
                "changed": False,
                "finished": True,
                "transaction_id": None,
                "vms": [plan.result().to_dict() for plan in plans],
            }
        transaction = transactions.begin(claim)
    elif claim:
        Lease(Path(request.state_dir)).take(claim, transaction)
    progress = transactions.run(transaction, wait_s)
    if progress.result is None:
        vms = [{"name": name, "steps": steps} for name, steps in progress.steps.items()]
        changed = any("committed" in steps for steps in progress.steps.values())
        return {"changed": changed, "finished": False, "transaction_id": progress.transaction_id, "vms": vms}
    if claim:
        Lease(Path(request.state_dir)).give_up(claim)
    return {
        "error": progress.result["error"],
        "changed": any(vm["outcome"] == "upgraded" for vm in progress.result["vms"]),
        "finished": True,
        "transaction_id": progress.transaction_id,
        "vms": [{**vm, "steps": progress.steps.get(vm["name"], [])} for vm in progress.result["vms"]],
    }


def _exit(module: AnsibleModule, error: str | None = None, **values: Any) -> None:
    vms = values["vms"]
    errors = [vm["error"] or f"VM {vm['name']}: {vm['outcome']}" for vm in vms if vm.get("outcome") in OUTCOMES_BAD]
    if error:
        errors.insert(0, error)
    if errors:
        module.fail_json(msg="; ".join(errors), **values)
    module.exit_json(failed=False, **values)


if __name__ == "__main__":
    main()
