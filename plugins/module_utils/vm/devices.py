# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The devices of a VM: from its command line, and from what it says where that can have changed since.

PRIVATE to the collection.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_line import Option, parse_keyval
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import Disk, Hotplugged, Nic, Passthrough
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.monitor import Answers

_PASSTHROUGH = re.compile(r"vfio-.*|vhost-(scsi|vsock|user)-.*|usb-host|pci-assign|scsi-(generic|block)")
_NETWORK_LINE = re.compile(r"^(?: \\ )?(?P<id>\S+): index=\d+,type=(?P<type>[\w-]+)", re.M)
# Character devices that QEMU names itself, for -serial, -parallel, -monitor, -qmp, -gdb.
_OWN_CHARDEV = re.compile(r"(serial|parallel|compat_monitor|monitor|gdb|virtcon|debugcon|console|vc)\d*")
_YES = ("on", "yes", "true", "")


def fields_of(option: Option, implied_key: str | None = None) -> dict[str, str]:
    """Return the keys and values of one option, empty when it has none or they cannot be read."""
    try:
        return parse_keyval(option.value or "", implied_key)
    except ValueError:
        return {}


def named(options: list[Option], *names: str) -> list[Option]:
    """Return the options of these names, in order."""
    return [option for option in options if option.name in names]


def device_options(options: list[Option]) -> list[dict[str, str]]:
    """Return the fields of every ``-device``; ``driver`` is its type."""
    return [fields_of(option, "driver") for option in named(options, "device")]


def disks(options: list[Option], answers: Answers) -> list[Disk]:
    """Return the drives with a medium. What the VM says wins, since media change."""
    if "block" not in answers.said:
        return _disks_of_command_line(options)
    found = []
    for drive in answers.listed("block"):
        medium = drive.get("inserted")
        if medium:
            name = str(drive.get("device") or drive.get("qdev") or "")
            files = _image_chain(medium.get("image", {}))
            found.append(Disk(name, medium.get("node-name", ""), medium.get("drv", ""), bool(medium.get("ro")), files))
    return found


def nics(options: list[Option], answers: Answers, taps: dict[int, str]) -> list[Nic]:
    """Return the network back ends. ``taps``: the VM's descriptors that are taps → interface name."""
    guests = {fields["netdev"]: fields for fields in device_options(options) if "netdev" in fields}
    found: dict[str, Nic] = {}
    for option in named(options, "netdev", "nic", "net"):
        fields = fields_of(option, "type")
        kind = fields.get("type", "")
        if kind in ("none", "nic") or not kind:
            continue
        name = fields.get("id", f"{option.name}{len(found)}")
        guest = guests.get(name, {})
        model = guest.get("driver") or fields.get("model")
        mac = guest.get("mac") or fields.get("mac")
        interface = _tap_of(fields, taps) if kind in ("tap", "bridge") else None
        found[name] = Nic(name, kind, model, mac, interface, fields.get("vhost") in _YES and "vhost" in fields)
    for match in _NETWORK_LINE.finditer(answers.text("network") or ""):
        if match["type"] not in ("nic", "hubport") and match["id"] not in found and _is_netdev(match["id"]):
            found[match["id"]] = Nic(match["id"], match["type"], None, None, None, False)
    return _assign_last_tap(list(found.values()), taps)


def passthrough(options: list[Option], answers: Answers) -> list[Passthrough]:
    """Return the host's devices in the guest, hot-plugged ones included (of which the host side is not told)."""
    found = []
    for fields in device_options(options):
        driver = fields.get("driver", "")
        if _PASSTHROUGH.fullmatch(driver):
            keys = ("host", "sysfsdev", "fd", "hostdevice", "chardev", "wwpn", "drive", "vhostfd")
            host = next((fields[key] for key in keys if key in fields), "")
            found.append(Passthrough(fields.get("id", ""), driver, host, "iommufd" in fields))
    for item in hotplugged(options, answers):
        if item.kind == "device" and _PASSTHROUGH.fullmatch(item.type):
            found.append(Passthrough(item.id, item.type, "", False))
    return found


def hotplugged(options: list[Option], answers: Answers) -> list[Hotplugged]:
    """Return what the VM has that its command line does not: added since its start."""
    if not answers.said:
        return []
    known = _known_ids(options)
    found = [
        Hotplugged("device", str(item["name"]), _child_type(item))
        for item in answers.listed("peripherals")
        if _child_type(item) and item["name"] not in known
    ]
    found += _anonymous_devices(options, answers)
    default_memory = (answers.text("memory_backend") or "").rpartition("/")[2]
    for item in answers.listed("objects"):
        # Since 11.1 monitors are objects, with names of QEMU's own.
        own = item["name"] == default_memory or _child_type(item).startswith("monitor-")
        if _child_type(item) and item["name"] not in known and not own:
            found.append(Hotplugged("object", str(item["name"]), _child_type(item)))
    for item in answers.listed("chardevs"):
        label = str(item.get("label", ""))
        if label not in known and not _OWN_CHARDEV.fullmatch(label):
            found.append(Hotplugged("chardev", label, str(item.get("filename", "")).partition(":")[0]))
    for item in answers.listed("nodes"):
        node = str(item.get("node-name", ""))
        if node and not node.startswith("#") and node not in known:
            found.append(Hotplugged("blockdev", node, str(item.get("drv", ""))))
    for match in _NETWORK_LINE.finditer(answers.text("network") or ""):
        if match["type"] not in ("nic", "hubport") and match["id"] not in known and _is_netdev(match["id"]):
            found.append(Hotplugged("netdev", match["id"], match["type"]))
    return found


def _disks_of_command_line(options: list[Option]) -> list[Disk]:
    found = []
    for option in named(options, "drive", "blockdev", "hda", "hdb", "hdc", "hdd", "cdrom"):
        fields = {"file": option.value or ""} if option.name[:2] in ("hd", "cd") else fields_of(option, "driver")
        file = fields.get("filename") or fields.get("file.filename") or fields.get("file", "")
        if option.name != "blockdev" or "filename" in fields or "file.filename" in fields:
            read_only = fields.get("read-only", fields.get("readonly", "off")) in _YES
            name = fields.get("id") or fields.get("node-name") or option.name
            image_format = fields.get("format") or fields.get("driver", "")
            found.append(Disk(name, fields.get("node-name", ""), image_format, read_only, [file] if file else []))
    return found


def _image_chain(image: dict[str, Any] | None) -> list[str]:
    files = []
    while image:
        name = _plain_path(str(image.get("filename", "")))
        if name:
            files.append(name)
        image = image.get("backing-image")
    return files


def _plain_path(filename: str) -> str | None:
    """Return the local path in QEMU's name of an image; None when it is none (a network protocol, a pseudo driver)."""
    while filename.startswith("json:"):
        try:
            tree = json.loads(filename[5:])
        except ValueError:
            return None
        while isinstance(tree, dict) and isinstance(tree.get("file"), dict):
            tree = tree["file"]
        if not isinstance(tree, dict):
            return None
        filename = str(tree.get("filename", tree.get("file", "")))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", filename) and not filename.startswith("file:"):
        return None
    return filename[5:] if filename.startswith("file:") else filename or None


def _tap_of(fields: dict[str, str], taps: dict[int, str]) -> str | None:
    if "ifname" in fields:
        return fields["ifname"]
    numbers = [fields.get("fd", ""), *fields.get("fds", "").split(":")]
    return next((taps[int(number)] for number in numbers if number.isdigit() and int(number) in taps), None)


def _assign_last_tap(found: list[Nic], taps: dict[int, str]) -> list[Nic]:
    """A tap whose name QEMU chose itself is the one that is left over, when just one is."""
    nameless = [nic for nic in found if nic.backend in ("tap", "bridge") and nic.interface is None]
    left = sorted(set(taps.values()) - {nic.interface for nic in found})
    if len(nameless) != 1 or len(left) != 1:
        return found
    return [
        Nic(nic.id, nic.backend, nic.model, nic.mac, left[0], nic.vhost) if nic is nameless[0] else nic for nic in found
    ]


def _known_ids(options: list[Option]) -> set[str]:
    """Return every id, label and node name that the command line gives, however deep in a value."""
    known: set[str] = set()
    for option in options:
        for key, value in fields_of(option, "driver").items():
            if key.rpartition(".")[2] in ("id", "node-name", "name"):
                known.add(value)
            elif value.startswith("{"):
                known.update(re.findall(r'"node-name"\s*:\s*"([^"]+)"', value))
        known.update(re.findall(r'"(?:node-name|id)"\s*:\s*"([^"]+)"', option.value or ""))
    return known


def _anonymous_devices(options: list[Option], answers: Answers) -> list[Hotplugged]:
    """Devices without an id are numbered in the order of their making, those of the command line first."""
    at_start = sum("id" not in fields for fields in device_options(options))
    at_start += sum(fields_of(option).get("if") == "virtio" for option in named(options, "drive"))
    at_start += len(named(options, "virtfs"))
    found = []
    for item in answers.listed("anonymous"):
        match = re.fullmatch(r"device\[(\d+)\]", str(item["name"]))
        if match and int(match[1]) >= at_start:
            found.append(Hotplugged("device", match[0], _child_type(item)))
    return found


def _child_type(item: dict[str, Any]) -> str:
    match = re.fullmatch(r"child<(.+)>", str(item.get("type", "")))
    return match[1] if match else ""


def _is_netdev(name: str) -> bool:
    """``info network`` also lists hubs and back ends of ``-nic``, which QEMU names like ``#net012``."""
    return not name.startswith(("#", "hub")) and not name.endswith(":")
