# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: running_builds
short_description: Tell what runs where in a fleet, and what is behind
version_added: 0.1.0
author:
  - vmm.live_upgrade contributors (@vmm)
description:
  - Counts the VMs of a fleet by the build that each runs, whatever has been installed since, and finds those that are behind.
  - A VM is behind when it does not run O(wanted), or without that, the build that new VMs of its host start on.
  - Where a host has no such build and none is wanted, nothing of it is called behind.
options:
  _input:
    description: Per host, by name, what M(vmm.live_upgrade.vm_info) answered.
    type: dict
    required: true
  wanted:
    description: The build that every VM should run.
    type: str
    default: ""
seealso:
  - module: vmm.live_upgrade.vm_info
"""

EXAMPLES = r"""
- name: Show which builds run
  ansible.builtin.debug:
    msg: "{{ ({'h1': found} | vmm.live_upgrade.running_builds).rows
      | vmm.live_upgrade.table(['build', 'VMs', 'hosts', 'behind', 'newest', 'oldest']) }}"
"""

RETURN = r"""
_value:
  description: What runs.
  type: dict
  contains:
    builds:
      description:
        - Per build, most VMs first, C(build), how many C(vms) on how many C(hosts) run it, how many of them are C(behind), and in
          seconds the age of the C(youngest_s) and C(oldest_s) process.
      type: list
      elements: dict
    vms:
      description: Per VM C(host), C(name), C(build), C(behind) (the build that it should run, or null), C(age_s) and C(age).
      type: list
      elements: dict
    by_host:
      description: The same by the name of the host, and then by that of the VM.
      type: dict
    rows:
      description: The C(builds) for a table, C([build, VMs, hosts, behind, age of the youngest, of the oldest]).
      type: list
      elements: list
    summary:
      description: All of it in one sentence.
      type: str
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import amount, duration

Vm = dict[str, Any]


def running_builds(answers: Mapping[str, Mapping[str, Any]], wanted: str = "") -> dict[str, Any]:
    """Return what runs where and what is behind, as documented above. Raises ``AnsibleFilterError`` for what is no answer."""
    vms = [
        _vm(host, vm, wanted or answer.get("default_build_id"))
        for host, answer in answers.items()
        for vm in _vms_of(host, answer)
    ]
    found: dict[str, list[Vm]] = {}
    by_host: dict[str, dict[str, Vm]] = {}
    for entry in vms:
        found.setdefault(entry["build"], []).append(entry)
        by_host.setdefault(entry["host"], {})[entry["name"]] = entry
    builds = [_build(build, running) for build, running in sorted(found.items(), key=lambda i: (-len(i[1]), i[0]))]
    return {
        "builds": builds,
        "vms": vms,
        "by_host": by_host,
        "rows": [
            [*list(entry.values())[:4], duration(entry["youngest_s"]), duration(entry["oldest_s"])] for entry in builds
        ],
        "summary": _summary(vms, len(builds)),
    }


def _vms_of(host: str, answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "vms" not in answer:
        raise AnsibleFilterError(f"what is given for {host} is no answer of vm_info: it has no vms")
    return list(answer["vms"])


def _vm(host: str, vm: Mapping[str, Any], goal: str | None) -> Vm:
    return {
        "host": host,
        "name": vm["name"],
        "build": vm["build_id"] or f"QEMU {vm['version'] or '?'}, foreign",
        "behind": goal if goal and vm["build_id"] != goal else None,
        "age_s": vm["age_s"],
        "age": duration(vm["age_s"]),
    }


def _build(build: str, running: list[Vm]) -> dict[str, Any]:
    ages_s = [vm["age_s"] for vm in running]
    return {
        "build": build,
        "vms": len(running),
        "hosts": len({vm["host"] for vm in running}),
        "behind": sum(1 for vm in running if vm["behind"]),
        "youngest_s": min(ages_s),
        "oldest_s": max(ages_s),
    }


def _summary(vms: list[Vm], builds: int) -> str:
    if not vms:
        return "No VM runs."
    told = f"{amount(len(vms), 'VM')} on {amount(len({vm['host'] for vm in vms}), 'host')}, {amount(builds, 'build')}"
    late = [vm for vm in vms if vm["behind"]]
    if not late:
        return f"{told}; none is behind."
    hosts = amount(len({vm["host"] for vm in late}), "host")
    oldest = duration(max(vm["age_s"] for vm in late))
    return f"{told}; {len(late):,} on {hosts} behind, the oldest process for {oldest}."


class FilterModule:
    """Filters of this collection."""

    def filters(self) -> dict[str, Any]:
        """Return name → filter."""
        return {"running_builds": running_builds}
