#!/usr/bin/python
# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_health
short_description: Tell how running VMs are, and what got worse
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Looks at every running QEMU of a host. Is it running, do its vCPUs progress, did disk requests fail, does its guest agent
    answer, and whatever the operator's probes ask of it.
  - With the answer of an earlier call as O(baseline) it tells what got worse since; what was wrong before is not.
  - An idle guest is not unhealthy. A vCPU is stuck when KVM says that it is not halted and it does nothing, and a whole guest
    is suspect when it worked in the baseline and does nothing at all now.
  - A VM that does not answer costs its own answer and nobody else's. The module itself fails only when it cannot look.
options:
  vms:
    description:
      - Names of the VMs to look at; all when empty.
    type: list
    elements: str
    default: []
  probes:
    description:
      - What to ask of a VM, by its name. Each entry may have V(ram_word) (C(backend), C(offset)), V(ping) (an IP address),
        V(tcp) (C(host), C(port)), V(serial_log) (a path), V(guest_agent) (a socket's path; found by itself where the VM
        has the usual port) and V(command) (a list, run on the host without a shell; exit status 0 is healthy).
    type: dict
    default: {}
  baseline:
    description:
      - What an earlier call returned.
    type: dict
    default: {}
  timeout_s:
    description:
      - Seconds after which a VM's answer is that it did not answer.
    type: float
    default: 60
  progress_timeout_s:
    description:
      - Seconds to wait for vCPUs and the word in guest RAM to move. A working guest shows it in milliseconds.
    type: float
    default: 10
  probe_timeout_s:
    description:
      - Seconds that QEMU, the guest agent, the network and the command each have to answer.
    type: float
    default: 10
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
  - module: vmm.live_upgrade.vm_upgrade
"""

EXAMPLES = r"""
- name: Look before
  vmm.live_upgrade.vm_health:
    probes:
      web1:
        ping: 192.0.2.10
        serial_log: /var/log/vm/web1.log
  register: before

- name: Look after, and see what got worse
  vmm.live_upgrade.vm_health:
    probes:
      web1:
        ping: 192.0.2.10
        serial_log: /var/log/vm/web1.log
    baseline: "{{ before }}"
  register: after
  failed_when: after.regressions | length > 0
"""

RETURN = r"""
healthy:
  description: Whether no VM has a problem.
  returned: always
  type: bool
regressions:
  description: What got worse since the baseline, over all VMs; each has C(vm), C(check), C(subject) and C(message).
  returned: always
  type: list
  elements: dict
vms:
  description: One entry per VM.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the VM.
      type: str
    pid:
      description: Process that runs it, 0 when none does.
      type: int
    build_id:
      description: The build it runs, null for a QEMU that this collection did not build, and when no process runs the VM.
      type: str
    healthy:
      description: Whether it has no problem.
      type: bool
    run_state:
      description: What QEMU says of it, null when it could not be asked.
      type: str
    watched_s:
      description: How long its vCPUs were watched.
      type: float
    vcpus:
      description: Per vCPU the CPU time (ns) and, under KVM, the exits in that time, and whether it is halted.
      type: list
      elements: dict
    ram_word_moved:
      description: Whether the word in guest RAM changed, null without such a probe.
      type: bool
    disks:
      description: Per disk the io-status and the number of failed requests since its QEMU started.
      type: list
      elements: dict
    answers:
      description: What C(guest_agent), C(ping), C(tcp) and C(command) answered, each with C(ok) and C(detail).
      type: dict
    serial:
      description: Where the serial log ended; the next look starts there.
      type: dict
    complaints:
      description: What the serial log says since the baseline of lockups, jumps of time, crashes and failing disks.
      type: list
      elements: dict
    monitors:
      description:
        - Its QMP monitors on UNIX sockets, each with C(path), C(state) (V(ok), V(busy), V(dead)) and C(on_host), which says
          whether the host sees the socket by that path, too.
      type: list
      elements: dict
    unasked:
      description: What could not be found out, and why.
      type: list
      elements: dict
    problems:
      description: All that is not well, each with C(check), C(subject) and C(message).
      type: list
      elements: dict
    pre_existing:
      description: Those problems that were there in the baseline.
      type: list
      elements: dict
    regressions:
      description: Those that were not.
      type: list
      elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.health.look import Limits, gone, look_at_all
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.discovery import discover


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "vms": {"type": "list", "elements": "str", "default": []},
            "probes": {"type": "dict", "default": {}},
            "baseline": {"type": "dict", "default": {}},
            "timeout_s": {"type": "float", "default": 60},
            "progress_timeout_s": {"type": "float", "default": 10},
            "probe_timeout_s": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    wanted = module.params["vms"]
    baseline = {vm["name"]: vm for vm in module.params["baseline"].get("vms") or []}
    limits = Limits(module.params["timeout_s"], module.params["progress_timeout_s"], module.params["probe_timeout_s"])
    try:
        running = [vm for vm in discover() if not wanted or vm.name in wanted]
        reports = look_at_all(running, module.params["probes"], baseline, limits)
    except LiveUpgradeError as exc:
        module.fail_json(msg=str(exc))
    known = {report["name"] for report in reports}
    expected = wanted or baseline
    reports += [gone(name) for name in expected if name not in known]
    module.exit_json(
        changed=False,
        failed=False,
        healthy=all(report["healthy"] for report in reports),
        regressions=[{"vm": report["name"], **problem} for report in reports for problem in report["regressions"]],
        vms=reports,
    )


if __name__ == "__main__":
    main()
