# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan is made of: the answers of the hosts and the variables of the inventory. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.budgets import PauseBudgets
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.refusals import LEAVE_OUT_VM
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.windows import Window, read_windows

# What preflight warns of when a VM could not be moved back, or nobody knows whether it could.
_NO_WAY_BACK = frozenset({"old-build-not-staged", "vmstate-backward", "vmstate-unknown"})
_NO_BUDGET_MS = 1000  # what vm_upgrade itself keeps when it is given none

Vm = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the operator asks for.

    ``domains``: host variable → the share of a domain's units that one wave may hold. ``refused_vms``: one of ``POLICIES``.
    """

    build: str
    kvm_build: str | None = None
    sizes: list[int | str] = field(default_factory=lambda: [1, "25%", "100%"])
    domains: dict[str, int | str] = field(default_factory=dict)
    exclude: dict[str, str] = field(default_factory=dict)
    mechanism: str = "auto"
    downtime_budget_ms: int | None = None
    pause_budgets_ms: dict[str, Any] = field(default_factory=dict)
    refused_vms: str = LEAVE_OUT_VM


@dataclass(frozen=True)
class HostFacts:
    """One host. ``units``: domain kind → value → how many of its units this host holds.

    ``obstacle``: why it can't be in a wave, empty when it can; ``detail``: the same in the words of the moment.
    """

    name: str
    address: str
    vms: list[Vm]
    units: dict[str, dict[str, int]]
    windows: list[Window]
    obstacle: str = ""
    detail: str = ""

    @property
    def moves(self) -> list[Vm]:
        """The VMs that are to be moved."""
        return [vm for vm in self.vms if vm["verdict"] == "go"]


def read_host(name: str, variables: Mapping[str, Any], settings: Settings) -> HostFacts:
    """Return the facts of one host from its ``variables``, among them what preflight answered.

    Raises ``AnsibleError`` for variables that make no sense, so that no plan rests on them.
    """
    answer = variables.get("preflight_result") or {}
    asked = "vms" in answer
    class_of = _mapping(variables.get("vm_classes"), "vm_classes", name)
    vms = _vms(name, answer.get("vms") or [], class_of, settings)
    obstacle = settings.exclude.get(name) or str(variables.get("upgrade_excluded") or "")
    detail = ""
    refused = [vm for vm in vms if vm["verdict"] == "refuse"]
    if not obstacle and not asked:
        unreachable = bool(answer.get("unreachable"))
        obstacle = "unreachable" if unreachable else "it gave no verdict on its VMs"
        detail = str(variables.get("preflight_error") or answer.get("msg") or "not asked")
    elif not obstacle and refused and (settings.refused_vms != LEAVE_OUT_VM or len(refused) == len(vms)):
        codes = [f"{vm['name']} [{', '.join(_codes(vm))}]" for vm in refused]
        obstacle = f"preflight refuses {', '.join(codes)}"
        detail = "; ".join(f"{vm['name']}: {item['message']}" for vm in refused for item in vm["refusals"])
    return HostFacts(
        name=name,
        address=f"{variables.get('ansible_host', name)}:{variables.get('ansible_port', 22)}",
        vms=vms,
        units={kind: _units(kind, variables.get(kind), name, vms) for kind in settings.domains},
        windows=read_windows(variables.get("upgrade_windows"), name),
        obstacle=obstacle,
        detail=detail,
    )


def _vms(host: str, verdicts: Sequence[Mapping[str, Any]], class_of: Mapping[str, Any], settings: Settings) -> list[Vm]:
    try:
        budgets = PauseBudgets(settings.downtime_budget_ms or _NO_BUDGET_MS, settings.pause_budgets_ms, class_of)
    except LiveUpgradeError as exc:
        raise AnsibleError(f"{host}: {exc}. Nothing was touched") from exc
    found = []
    for verdict in sorted(verdicts, key=lambda item: str(item["name"])):
        moves = verdict["verdict"] == "go"
        obstacle = _no_way_back(verdict, settings) if moves else ""
        vm_class = class_of.get(verdict["name"])
        found.append(
            {
                "host": host,
                "name": verdict["name"],
                "verdict": verdict["verdict"],
                "class": None if vm_class is None else str(vm_class),
                "budget_ms": budgets.of(verdict["name"]).ms,
                "mechanism": verdict.get("mechanism"),
                "reason": verdict.get("mechanism_reason"),
                "can_go_back": not obstacle if moves else None,
                "no_way_back": obstacle or None,
                "old_build": verdict.get("old_build_id"),
                "old_kvm_build": verdict.get("kvm_build_id_before"),
                "refusals": list(verdict.get("refusals") or []),
            }
        )
    return found


def _no_way_back(verdict: Mapping[str, Any], settings: Settings) -> str:
    """Why a VM could not be moved back, empty when it could."""
    if verdict.get("old_build_id") is None:
        return "it runs a QEMU that is not one of our builds"
    if settings.kvm_build and verdict.get("kvm_build_id_before") is None:
        return "it runs on a KVM that is not one of our builds"
    for warning in verdict.get("warnings") or []:
        if warning["code"] in _NO_WAY_BACK:
            return str(warning["message"])
    if (verdict.get("backward") or {}).get("compatible") is False:
        return "the build it runs would not load what the new one saves"
    return ""


def _units(kind: str, value: Any, host: str, vms: Sequence[Vm]) -> dict[str, int]:
    """How many units of each domain a host holds: itself where the variable is of the host, its VMs where it is a mapping."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        names = [value] if isinstance(value, (str, int)) else value
        if not isinstance(names, Sequence) or not all(isinstance(item, (str, int)) for item in names):
            raise AnsibleError(
                f"{kind} of {host} is {value!r}; a failure domain is a word, a list of words, or a mapping of VMs to words. "
                "Nothing was touched"
            )
        return {str(item): 1 for item in names}
    found: dict[str, int] = {}
    for vm in vms:
        for domain in _units(f"{kind}[{vm['name']}]", value.get(vm["name"]), host, ()):
            found[domain] = found.get(domain, 0) + 1
    return found


def _codes(vm: Vm) -> list[str]:
    return sorted({str(item["code"]) for item in vm["refusals"]})


def _mapping(value: Any, variable: str, host: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise AnsibleError(f"{variable} of {host} is {value!r}; it must map names of VMs. Nothing was touched")
    return value
