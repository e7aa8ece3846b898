# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a rollout: waves of named hosts, every VM with its mechanism, what is left out and why, and a hash of it all.

Made from the answers of the hosts alone, so that the same fleet gives the same hash, and a changed one another.
PRIVATE to the collection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import utc_now
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan_facts import HostFacts, Settings
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.plan_waves import (
    Domains,
    Units,
    add_units,
    spread_waves,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.windows import describe

SCHEMA = 1

# What an approval is of. Not in it: when it was asked, and the wording of reasons, which may hold a figure of the moment.
_HASHED_VM = (
    "host",
    "name",
    "verdict",
    "class",
    "budget_ms",
    "mechanism",
    "can_go_back",
    "old_build",
    "old_kvm_build",
    "refusals",
)
_DIFFERENCES_TOLD = 20

Plan = dict[str, Any]


def make_plan(settings: Settings, facts: Sequence[HostFacts]) -> Plan:
    """Return the plan (docs/plan.schema.json) for the hosts of ``facts``, in their order.

    Raises ``AnsibleError`` for settings that make no sense, or when there is no host to upgrade.
    """
    stray = sorted(set(settings.exclude) - {host.name for host in facts})
    if stray:
        raise AnsibleError(
            f"upgrade_exclude names {', '.join(stray)}, not among the hosts of the rollout; nothing was touched. Correct the name"
        )
    domains = Domains(facts, settings.domains)
    judged = [_held_by_domains(host, domains) for host in facts]
    able = [host for host in judged if not host.obstacle]
    waves = spread_waves(able, settings.sizes, domains) if able else []
    wave_of = {host.name: index for index, wave in enumerate(waves) for host in wave}
    plan: Plan = {
        "schema": SCHEMA,
        "created": utc_now(),
        "build": settings.build,
        "kvm_build": settings.kvm_build,
        "settings": asdict(settings),
        "waves": [_wave(index, wave, domains) for index, wave in enumerate(waves)],
        "hosts": [
            {
                "name": host.name,
                "address": host.address,
                "wave": wave_of.get(host.name),
                "vms": len(host.vms),
                "domains": {kind: dict(sorted(values.items())) for kind, values in host.units.items()},
                "windows": host.windows,
            }
            for host in judged
        ],
        "vms": [vm for host in judged for vm in host.vms],
        "excluded": [
            {"host": host.name, "why": host.obstacle, "detail": host.detail} for host in judged if host.obstacle
        ],
    }
    digest = plan_hash(plan)
    stamp = plan["created"][:19].replace("-", "").replace(":", "")
    return {"schema": SCHEMA, "plan_id": f"plan-{stamp}Z-{digest[:8]}", "hash": digest, **plan}


def plan_hash(plan: Plan) -> str:
    """Return the hash that an approval names: of what would be done to which VM, and when."""
    content = {
        "schema": plan["schema"],
        "settings": plan["settings"],
        "waves": [wave["hosts"] for wave in plan["waves"]],
        "hosts": plan["hosts"],
        "vms": [_hashed_vm(vm) for vm in plan["vms"]],
        "excluded": [[item["host"], item["why"]] for item in plan["excluded"]],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_plan(path: Path) -> Plan:
    """Return the plan in ``path``. Raises ``AnsibleError`` for what is no plan or is not as it was written."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise AnsibleError(f"the plan {path} cannot be read: {exc.strerror}; nothing was touched") from exc
    except ValueError as exc:
        raise AnsibleError(
            f"{path} is not a plan: {exc}; nothing was touched. Make one with playbooks/plan.yml"
        ) from exc
    try:
        if plan["schema"] != SCHEMA:
            raise ValueError(f"schema {plan['schema']!r}")
        Settings(**plan["settings"])
        found = plan_hash(plan)
        written = plan["hash"]
    except (KeyError, TypeError, ValueError) as exc:
        raise AnsibleError(
            f"{path} is not a plan that this version reads (schema {SCHEMA}): {exc}; nothing was touched. Make one with "
            "playbooks/plan.yml"
        ) from exc
    if found != written:
        raise AnsibleError(
            f"the plan {path} was changed after it was made: its content has the hash {found}, it says {written}; nothing was "
            "touched. Make a new one with playbooks/plan.yml, and have that approved"
        )
    return dict(plan)


def no_way_back(plan: Plan) -> list[str]:
    """Return the VMs to be moved that could not be moved back, each with the reason."""
    return [
        f"{vm['host']}/{vm['name']}: {vm['no_way_back']}"
        for vm in _planned_vms(plan)
        if vm["verdict"] == "go" and not vm["can_go_back"]
    ]


def differences(approved: Plan, now: Plan) -> list[str]:
    """Say what is not any more as it was when the plan was approved, empty when nothing that matters has changed."""
    if approved["hash"] == now["hash"]:
        return []
    told = [
        *_compare(
            "", {host["name"]: host for host in approved["hosts"]}, {host["name"]: host for host in now["hosts"]}
        ),
        *_compare("VM ", _vms_by_label(approved), _vms_by_label(now)),
        *_compare("left out: ", _why(approved), _why(now)),
    ]
    told = told or ["the waves are others"]
    more = len(told) - _DIFFERENCES_TOLD
    return [*told[:_DIFFERENCES_TOLD], *([f"and {more} more"] if more > 0 else [])]


def _held_by_domains(host: HostFacts, domains: Domains) -> HostFacts:
    """A host that alone holds more of a domain than a wave may can't be in any."""
    excess = "" if host.obstacle else domains.excess(host.units)
    if not excess:
        return host
    return replace(
        host, obstacle=f"it alone holds {excess}", detail="move VMs elsewhere, or give the domain a larger share"
    )


def _wave(index: int, hosts: Sequence[HostFacts], domains: Domains) -> dict[str, Any]:
    units: Units = {}
    for host in hosts:
        units = add_units(units, host.units)
    return {
        "index": index,
        "hosts": [host.name for host in hosts],
        "vms": sum(len(host.moves) for host in hosts),
        "domains": domains.describe(units),
        "windows": describe(next((host.windows for host in hosts if host.windows), [])),
    }


def _hashed_vm(vm: Mapping[str, Any]) -> dict[str, Any]:
    hashed = {key: vm[key] for key in _HASHED_VM}
    return {**hashed, "refusals": sorted({str(item["code"]) for item in vm["refusals"]})}


def _planned_vms(plan: Plan) -> list[dict[str, Any]]:
    planned = {host["name"] for host in plan["hosts"] if host["wave"] is not None}
    return [vm for vm in plan["vms"] if vm["host"] in planned]


def _vms_by_label(plan: Plan) -> dict[str, dict[str, Any]]:
    return {f"{vm['host']}/{vm['name']}": _hashed_vm(vm) for vm in plan["vms"]}


def _why(plan: Plan) -> dict[str, dict[str, Any]]:
    return {item["host"]: {"why": item["why"]} for item in plan["excluded"]}


def _compare(what: str, before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        if name not in now:
            yield f"{what}{name} is gone"
        elif name not in before:
            yield f"{what}{name} is new"
        else:
            changed = [key for key in before[name] if before[name][key] != now[name][key]]
            yield from (
                f"{what}{name}: {key} was {_say(before[name][key])}, is {_say(now[name][key])}" for key in changed
            )


def _say(value: Any) -> str:
    return "none" if value in (None, [], {}) else str(value)
