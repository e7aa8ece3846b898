# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of VMs that preflight refuses, and of the others on their host. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STOP, LEAVE_OUT_VM, LEAVE_OUT_HOST = "stop", "leave_out_vm", "leave_out_host"
POLICIES = (STOP, LEAVE_OUT_VM, LEAVE_OUT_HOST)

LEFT_OUT = "left_out"

Vm = Mapping[str, Any]

# What ``vm_records`` and the role make of a verdict.
_VERDICT = ("name", "verdict", "mechanism", "mechanism_reason", "refusals", "old_build_id", "kvm_build_id_before")


def verdicts_to_keep(preflight: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of preflight as far as a later run needs it to move no others; empty where no VM is refused.

    Once VMs were moved the question can't be asked again.
    """
    vms = preflight.get("vms") or []
    if not any(vm["verdict"] == "refuse" for vm in vms):
        return {}
    return {"vms": [{key: vm[key] for key in _VERDICT if key in vm} for vm in vms]}


def leave_out(vms: Sequence[Vm], preflight: Mapping[str, Any], policy: str) -> tuple[list[dict[str, Any]], bool]:
    """Return the records of a host's VMs with those left out that ``policy`` leaves out, and whether that is the whole host."""
    refused = {str(vm["name"]) for vm in preflight.get("vms") or [] if vm["verdict"] == "refuse"}
    if policy == STOP or not refused:
        return [dict(vm) for vm in vms], False
    whole = policy == LEAVE_OUT_HOST or all(vm["name"] in refused for vm in vms)
    found = []
    for vm in vms:
        if vm["name"] in refused and vm["outcome"] == "refused":
            found.append({**vm, "outcome": LEFT_OUT})
        elif whole and vm["outcome"] == "not_attempted":
            reason = f"its host is left out, because {', '.join(sorted(refused))} cannot be moved"
            found.append({**vm, "outcome": LEFT_OUT, "reason": reason, "error": None})
        else:
            found.append(dict(vm))
    return found, whole
