# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running VM consists of now, as far as that can differ from its command line. PRIVATE to the collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpCommandError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm import monitor
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.backends import network_facts
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.monitor import Answers

# Without an answer to these it would be a guess what the VM consists of.
_NEEDED = ("peripherals", "anonymous", "objects", "chardevs", "block", "nodes", "network")

_PCI_BUSES = ("PCI", "PCIE", "CXL", "pxb-bus", "pxb-pcie-bus", "pxb-cxl-bus")


@dataclass(frozen=True)
class FdsetMember:
    """One descriptor of a file set (``-add-fd``), under its number in the old process."""

    fd: int
    opaque: str | None


@dataclass(frozen=True)
class Property:
    """A property of a device or object: its value now, and the default where QEMU tells one."""

    name: str
    type: str
    value: Any
    default: Any


@dataclass(frozen=True)
class Bus:
    """A bus: its name, and the id of the device that brought it, if that has one."""

    name: str
    is_pci: bool
    owner: str | None


class RunningState:
    """The state of one VM, read once; ``properties`` asks further."""

    def __init__(self, qmp: QmpClient, answers: Answers) -> None:
        """Use ``read`` instead."""
        self._qmp = qmp
        self.answers = answers
        usernet = self._human("info usernet")
        self.netdevs = network_facts(answers.text("network") or "", usernet)
        self.chardevs = {str(item["label"]): str(item["filename"]) for item in answers.listed("chardevs")}
        self.devices = _names(answers, "peripherals")
        self.objects = _names(answers, "objects")
        self.nodes = {str(item["node-name"]): item for item in answers.listed("nodes")}
        self.drives: list[dict[str, Any]] = answers.listed("block")
        self.jobs = [str(job["id"]) for job in qmp.execute("query-jobs") if job["status"] not in ("concluded", "null")]
        self.exports = [str(export["id"]) for export in qmp.execute("query-block-exports")]
        self.fdsets: dict[int, list[FdsetMember]] = {
            item["fdset-id"]: [FdsetMember(fd["fd"], fd.get("opaque")) for fd in item["fds"]]
            for item in qmp.execute("query-fdsets")
        }

    @classmethod
    def read(cls, qmp: QmpClient) -> RunningState:
        """Ask the VM. Raises ``LiveUpgradeError`` when it does not tell all that is needed."""
        answers = Answers()
        monitor.put_questions(qmp, answers)
        silent = [question for question in _NEEDED if question not in answers.said]
        if silent:
            raise LiveUpgradeError(f"the VM does not tell its {', '.join(silent)}: {'; '.join(answers.problems)}")
        return cls(qmp, answers)

    def drive_of(self, name: str) -> dict[str, Any] | None:
        """Return what ``query-block`` says of the drive ``name`` (of ``-drive``), or of the device ``name``."""
        for drive in self.drives:
            words = str(drive.get("qdev", "")).split("/")
            if drive.get("device") == name or name in (words[-1], *words[-2:-1]):
                return drive
        return None

    def bus_of(self, device: str) -> Bus | None:
        """Return the bus that ``device`` sits on; None when it sits on none, or has no id."""
        try:
            path = str(self._get(f"/machine/peripheral/{device}", "parent_bus"))
            kind = str(self._get(path, "type"))
        except QmpCommandError:
            return None
        words = path.split("/")
        owner = words[3] if words[1:3] == ["machine", "peripheral"] else None
        return Bus(words[-1], kind in _PCI_BUSES, owner)

    def device_property(self, device: str, name: str) -> Any:
        """Return one property of a device with an id, None when it has no such property."""
        try:
            return self._get(f"/machine/peripheral/{device}", name)
        except QmpCommandError:
            return None

    def device_properties(self, device: str) -> list[Property]:
        """Return the properties of a device that can be given to ``-device``."""
        listed = self._qmp.execute("device-list-properties", {"typename": self.devices[device]})
        return list(self._properties(f"/machine/peripheral/{device}", listed))

    def object_properties(self, name: str) -> list[Property]:
        """Return the properties of an object of ``-object``."""
        listed = self._qmp.execute("qom-list-properties", {"typename": self.objects[name]})
        return list(self._properties(f"/objects/{name}", listed))

    def _properties(self, path: str, listed: list[dict[str, Any]]) -> list[Property]:
        found = []
        for item in listed:
            try:
                value = self._get(path, item["name"])
            except QmpCommandError:
                continue  # it can be set but not be read, or has no value yet
            found.append(Property(item["name"], item["type"], value, item.get("default-value")))
        return found

    def _get(self, path: str, name: str) -> Any:
        return self._qmp.execute("qom-get", {"path": path, "property": name})

    def _human(self, command: str) -> str:
        try:
            return str(self._qmp.execute("human-monitor-command", {"command-line": command}))
        except QmpCommandError:
            return ""


def _names(answers: Answers, question: str) -> dict[str, str]:
    """Return name → type of the children in an answer of ``qom-list``."""
    return {
        str(item["name"]): str(item["type"])[6:-1]
        for item in answers.listed(question)
        if str(item["type"]).startswith("child<")
    }
