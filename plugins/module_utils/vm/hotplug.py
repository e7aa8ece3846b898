# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was plugged and unplugged since a VM was started, worked into its command line. PRIVATE to the collection.

Devices keep their places on their buses, because the guest and the migration stream know them by these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import (
    Option,
    format_keyval,
    parse_keyval,
)
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import Draft
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.devices import hotplugged
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Hotplugged
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.handover import HeldDescriptors
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.running import Bus, Property, RunningState

_IMPLIED = {"device": "driver", "object": "qom-type", "netdev": "type", "chardev": "backend", "blockdev": "driver"}
_UNPLUG_IT = "unplug it for the time of the upgrade"
# Objects of which these properties are all that there is to know.
_OBJECTS = {
    "iothread": ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch", "thread-pool-min", "thread-pool-max"),
    "rng-random": ("filename",),
    "rng-builtin": (),
    "memory-backend-memfd": (
        *("size", "share", "hugetlb", "hugetlbsize", "seal", "prealloc", "merge", "dump", "reserve"),
        *("policy", "host-nodes", "x-use-canonical-path-for-ramblock-id"),
    ),
    "memory-backend-file": (
        *("mem-path", "size", "share", "align", "offset", "prealloc", "merge", "dump", "reserve", "readonly", "rom"),
        *("policy", "host-nodes", "x-use-canonical-path-for-ramblock-id"),
    ),
}
_FILE_DRIVERS = ("file", "host_device")
_FORMAT_DRIVERS = ("raw", "qcow2")
# Properties that QEMU works out by itself and does not let itself be told.
_READ_ONLY = ("busnr", "size", "sriov-pf")
_CPU_PLACE = re.compile(r"[a-z]+-id")
_DEFAULT_USER_NET = "10.0.2.0"


class RunTimeChanges:
    """Compares a VM with its command line. Notes on the draft what it found and what it cannot re-create."""

    def __init__(self, draft: Draft, held: HeldDescriptors, state: RunningState, old: list[Option]) -> None:
        """``old``: the options that the VM was started with."""
        self._draft = draft
        self._held = held
        self._state = state
        self._old = old
        self._nodes_written: set[str] = set()

    def still_there(self) -> list[Option]:
        """Return the options of the start without those whose object has gone since."""
        kept = [option for option in self._old if not self._has_gone(option)]
        if sum(option.name == "device" for option in kept) < sum(option.name == "device" for option in self._old):
            return [self._with_address(option) for option in kept]
        return kept

    def added(self) -> list[Option]:
        """Return options for what was added since, in an order in which QEMU can make them."""
        found = hotplugged(self._old, self._state.answers)
        by_kind: dict[str, list[Hotplugged]] = {}
        for item in found:
            by_kind.setdefault(item.kind, []).append(item)
        options: list[Option] = []
        for item in by_kind.get("object", []):
            options += self._object(item)
        for item in by_kind.get("chardev", []):
            self._cannot(item, "QEMU does not tell what it is connected to")
        nodes = {item.id: item for item in by_kind.get("blockdev", [])}
        for item in nodes.values():
            options += self._blockdev(item, nodes)
        options += self._netdevs(by_kind.get("netdev", []))
        for item in self._bus_owners_first(by_kind.get("device", [])):
            options += self._device(item)
        return options

    # --- unplugged

    def _has_gone(self, option: Option) -> bool:
        state = self._state
        present: dict[str, Iterable[str]] = {
            "device": state.devices,
            "object": state.objects,
            "netdev": state.netdevs,
            "chardev": state.chardevs,
            "blockdev": state.nodes,
        }
        if option.name in present:
            fields = parse_keyval(option.value or "", _IMPLIED[option.name])
            name = fields.get("node-name" if option.name == "blockdev" else "id")
            gone = name is not None and name not in present[option.name]
        elif option.name == "drive":
            fields = parse_keyval(option.value or "", "file")
            name = fields.get("id") if fields.get("if") == "none" else None
            gone = name is not None and state.drive_of(name) is None
        else:
            return False
        if gone:
            self._draft.change(f"-{option.name} {name} is left out: it was removed since the start")
        return gone

    def _with_address(self, option: Option) -> Option:
        """When a device before it has gone, a PCI device without an address would move up into its place."""
        if option.name != "device":
            return option
        fields = parse_keyval(option.value or "", "driver")
        if "addr" in fields or "id" not in fields:
            return option
        address = self._state.device_property(fields["id"], "addr")
        bus = self._state.bus_of(fields["id"])
        if bus is None or not bus.is_pci or not isinstance(address, int):
            return option
        return Option("device", format_keyval({**fields, "addr": _pci_address(address)}, "driver"))

    # --- plugged

    def _object(self, item: Hotplugged) -> list[Option]:
        if item.type not in _OBJECTS:
            self._cannot(item, "not all of its properties can be read")
            return []
        fields = {"qom-type": item.type, "id": item.id}
        for prop in self._state.object_properties(item.id):
            if prop.name in _OBJECTS[item.type]:
                fields.update(_words(prop.name, prop.value))
        if fields.get("hugetlb") == "off":
            fields.pop("hugetlbsize", None)
        self._note(item)
        return [Option("object", format_keyval(fields, "qom-type"))]

    def _blockdev(self, item: Hotplugged, added: dict[str, Hotplugged]) -> list[Option]:
        """One node with a name; those of the nodes below it that were ``added``, too, come first."""
        if item.id in self._nodes_written:
            return []
        self._nodes_written.add(item.id)
        node = self._state.nodes[item.id]
        below = [child["node-name"] for child in node.get("children", [])]
        options = [option for name in below if name in added for option in self._blockdev(added[name], added)]
        try:
            arguments = self._node(node)
        except ValueError as exc:
            self._cannot(item, str(exc))
            return options
        self._note(item, "with QEMU's defaults for aio and discard, which it does not tell")
        return [*options, Option("blockdev", json.dumps(arguments))]

    def _node(self, node: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that open ``node``. Raises ``ValueError`` when they are not known."""
        driver = str(node["drv"])
        arguments: dict[str, Any] = {
            "driver": driver,
            "read-only": bool(node["ro"]),
            "detect-zeroes": node["detect_zeroes"],
            "cache": {"direct": node["cache"]["direct"], "no-flush": node["cache"]["no-flush"]},
        }
        name = str(node["node-name"])
        if not name.startswith("#"):
            arguments["node-name"] = name
        if driver in _FILE_DRIVERS:
            return {**arguments, "filename": str(node["file"])}
        if driver not in _FORMAT_DRIVERS:
            raise ValueError(f"nodes of driver {driver} cannot be opened anew")
        for child in node.get("children", []):
            below, role = str(child["node-name"]), str(child["child"])
            if not below.startswith("#"):
                arguments[role] = below
            elif role == "file":
                arguments[role] = self._node(self._state.nodes[below])
            # A backing file without a name was found by the image itself, and will be again.
        return arguments

    def _netdevs(self, items: list[Hotplugged]) -> list[Option]:
        taps = [item for item in items if item.type == "tap"]
        with_vhost = self._vhost_of(taps)
        options = []
        for item in items:
            facts = self._state.netdevs[item.id]
            if item.type == "tap":
                options += self._tap(item, with_vhost)
            elif item.type == "user" and facts.get("net") == _DEFAULT_USER_NET and facts.get("restrict") == "off":
                self._note(item)
                options.append(Option("netdev", f"user,id={item.id}"))
            else:
                self._cannot(item, "its settings cannot all be read")
        return options

    def _tap(self, item: Hotplugged, with_vhost: bool) -> list[Option]:
        facts = self._state.netdevs[item.id]
        interface = facts.get("ifname")
        if interface is None and facts.get("fd", "").isdigit():
            interface = self._held.interface_of(int(facts["fd"]))
        queues = len(self._held.queues_of(interface or ""))
        if not interface or not queues:
            self._cannot(item, "its interface is not known")
            return []
        self._note(item)
        fields = {"type": "tap", "id": item.id, "ifname": interface, "queues": str(queues)}
        if with_vhost:
            fields["vhost"] = "on"
        return [Option("netdev", format_keyval(fields, "type"))]

    def _vhost_of(self, taps: list[Hotplugged]) -> bool:
        """QEMU does not tell which taps use vhost; the descriptors that are left over tell whether all or none do."""
        if not taps:
            return False
        declared = 0
        for option in self._old:
            fields = parse_keyval(option.value or "", "type") if option.name == "netdev" else {}
            if fields.get("vhost") == "on":
                declared += max(int(fields.get("queues", "1")), fields.get("fds", "").count(":") + 1)
        left = self._held.vhost_net_count() - declared
        queues = sum(len(self._held.queues_of(self._state.netdevs[item.id].get("ifname", ""))) for item in taps)
        if left > 0 and left != queues:
            for item in taps:
                self._cannot(item, "it cannot be told whether it uses vhost")
        return left > 0

    def _device(self, item: Hotplugged) -> list[Option]:
        if item.id not in self._state.devices:
            self._cannot(item, "it has no id, so nobody can say which one it is")
            return []
        fields = {"driver": item.type, "id": item.id}
        bus = self._state.bus_of(item.id)
        if bus:
            fields["bus"] = bus.name
        for prop in self._state.device_properties(item.id):
            if item.type.endswith("-cpu"):
                if _CPU_PLACE.fullmatch(prop.name) and prop.value != -1:
                    fields.update(_words(prop.name, prop.value))
            elif _was_set(prop):
                fields.update(_device_words(prop, bus))
        self._note(item)
        return [Option("device", format_keyval(fields, "driver"))]

    def _bus_owners_first(self, items: list[Hotplugged]) -> list[Hotplugged]:
        """A device comes after the one whose bus it sits on; QEMU lists them in no order."""
        left = {item.id: item for item in sorted(items, key=lambda item: item.id)}
        ordered: list[Hotplugged] = []
        while left:
            buses = {name: self._state.bus_of(name) for name in left}
            free = [name for name, bus in buses.items() if bus is None or bus.owner not in left]
            ordered += [left.pop(name) for name in free or list(left)]
        return ordered

    def _note(self, item: Hotplugged, how: str = "") -> None:
        self._draft.change(f"{item.kind} {item.id} ({item.type}), added since the start, is part of it {how}".rstrip())

    def _cannot(self, item: Hotplugged, why: str) -> None:
        self._draft.problem(
            "hotplug-not-recreatable",
            f"the {item.kind} {item.id} ({item.type}) was added since the start: {why}",
            _UNPLUG_IT,
        )


def _was_set(prop: Property) -> bool:
    """Whether a device has to be told: what is a child, is read-only, empty, or as by default, it need not be."""
    if prop.type.startswith("child<") or prop.name in _READ_ONLY or prop.name.startswith("legacy-"):
        return False
    return prop.value not in (None, "", []) and prop.value != prop.default


def _device_words(prop: Property, bus: Bus | None) -> dict[str, str]:
    if prop.name == "addr" and bus is not None and bus.is_pci:
        return {"addr": _pci_address(int(prop.value))}
    if prop.type.startswith("link<"):
        return {prop.name: str(prop.value).rpartition("/")[2]}
    return _words(prop.name, prop.value)


def _words(name: str, value: Any) -> dict[str, str]:
    if value is None or value == "" or value == []:
        return {}
    if isinstance(value, bool):
        return {name: "on" if value else "off"}
    if isinstance(value, list):
        return {f"{name}.{index}": str(item) for index, item in enumerate(value)}
    return {name: str(value)}


def _pci_address(devfn: int) -> str:
    return f"{devfn >> 3:x}.{devfn & 7:x}"
