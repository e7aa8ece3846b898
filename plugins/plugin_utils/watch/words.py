# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report says of the watch, in a few words. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.words import amount
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.events import EXPECTED

Record = Mapping[str, Any]


def sentence(watch: Record) -> str:
    """Return how well a rollout was watched, from the ``watch`` of its report."""
    if not watch["watched"]:
        return f"nothing was watched: {watch['reason']}"
    hosts = [host for host in watch["hosts"] if host["watched"]]
    vms = [vm for host in hosts for vm in host["vms"] if vm["watched"]]
    gaps = sum(len(host["gaps"]) for host in hosts)
    surprises = sum(event["name"] not in EXPECTED for vm in vms for event in vm["events"])
    text = (
        f"{amount(len(hosts), 'host')} and the monitors of {amount(len(vms), 'VM')} were watched, "
        f"{amount(gaps, 'lost connection')}, {amount(surprises, 'event')} that no upgrade brings about"
    )
    return text if watch["reason"] is None else f"{text}; not until the end: {watch['reason']}"


def unwatched(watch: Record) -> dict[str, list[str]]:
    """Return the hosts and VMs (as ``host/vm``) that were not watched at all, by the reason."""
    found: dict[str, list[str]] = {}
    for host in watch["hosts"]:
        for where, item in [(host["name"], host), *((f"{host['name']}/{vm['name']}", vm) for vm in host["vms"])]:
            if item["reason"]:
                found.setdefault(item["reason"], []).append(where)
    return found
