# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Would the running QEMU lose requests of a disk when it takes the guest back?

Before 11.1 a ``stop`` and ``cont`` may leave a throttle group of a disk in an I/O thread in the belief that a timer is
armed, which nobody is going to fire: what waits in it then waits for ever (``block/throttle-groups.c``). Every mechanism
stops the guest, and whatever takes it back continues it, so the promise that a failed upgrade costs nothing does not hold.
PRIVATE to the collection.
"""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.preflight.model import Verdict
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpCommandError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Vm

_MENDED_IN = (11, 1)
_DRIVE_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
_GROUP_LIMITS = ("bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write")


def check_throttles(verdict: Verdict, vm: Vm, qmp: QmpClient) -> None:
    """Refuse ``vm`` for disks in I/O threads that its QEMU throttles and may not let go on. Raises ``QmpError``."""
    if not vm.version_tuple or vm.version_tuple[:2] >= _MENDED_IN:
        return
    nodes = {str(node["node-name"]): node for node in qmp.execute("query-named-block-nodes", {"flat": True})}
    for drive in qmp.execute("query-block"):
        medium = drive.get("inserted") or {}
        groups = _limiting_groups(qmp, medium, nodes)
        if groups and drive.get("qdev") and (thread := _iothread(qmp, str(drive["qdev"]))):
            verdict.refuse(
                "throttled-iothread",
                f"the disk {_name(drive)} is throttled ({', '.join(groups)}) and runs in the I/O thread {thread}: QEMU "
                f"{vm.version} may forget its requests for ever when an upgrade is taken back",
            )


def _limiting_groups(qmp: QmpClient, medium: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> list[str]:
    """Return the throttle groups with limits that requests of a drive with ``medium`` pass."""
    found = {str(medium.get("group"))} if any(medium.get(limit) for limit in _DRIVE_LIMITS) else set()
    below, seen = [str(medium.get("node-name"))], set()
    while below:
        name = below.pop()
        if name in nodes and name not in seen:
            seen.add(name)
            below += [str(child["node-name"]) for child in nodes[name].get("children", [])]
            if nodes[name]["drv"] == "throttle":
                group = _group_of(nodes[name])
                if group is None or _has_limits(qmp, group):
                    found.add(group or f"node {name}")
    return sorted(found)


def _group_of(node: dict[str, Any]) -> str | None:
    """Return the group of a throttle filter: the name that QEMU gives the node tells it. None when it does not."""
    name = str(node.get("file", ""))
    try:
        options = json.loads(name[len("json:") :]) if name.startswith("json:") else {}
    except ValueError:
        return None  # QEMU cuts names that are too long
    return options.get("throttle-group")


def _has_limits(qmp: QmpClient, group: str) -> bool:
    try:
        limits = qmp.execute("qom-get", {"path": f"/objects/{group}", "property": "limits"})
    except QmpCommandError:
        return True  # it cannot be told
    return any(limits.get(limit) for limit in _GROUP_LIMITS)


def _iothread(qmp: QmpClient, device: str) -> str | None:
    """Return the I/O thread that serves ``device`` (an id or a path), or its bus's controller; None for the main loop."""
    path = device if device.startswith("/") else f"/machine/peripheral/{device}"
    bus = str(_property(qmp, path, "parent_bus") or "")
    for owner in (path, bus.rpartition("/")[0]):
        thread = str(_property(qmp, owner, "iothread") or "")
        mapped = [str(entry["iothread"]) for entry in _property(qmp, owner, "iothread-vq-mapping") or []]
        if thread or mapped:
            return ", ".join(mapped) or thread.rpartition("/")[2]
    return None


def _property(qmp: QmpClient, path: str, name: str) -> Any:
    try:
        return qmp.execute("qom-get", {"path": path, "property": name})
    except QmpCommandError:
        return None


def _name(drive: dict[str, Any]) -> str:
    """The name by which a person knows it: the drive's, else the id of the device, else its path."""
    words = str(drive.get("qdev", "")).split("/")
    return str(drive.get("device") or (words[3] if words[1:3] == ["machine", "peripheral"] else drive["qdev"]))
