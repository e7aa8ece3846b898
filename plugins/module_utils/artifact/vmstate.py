# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Static comparison of two ``-dump-vmstate`` descriptions: can device state that one build saves be loaded by the other?

Field names are not on the wire, sizes and order are: a renamed field of the same size is the same field, and the C size of
a structure means nothing where its own fields are described. Fields with a condition may be absent. Subsections are sent
only when in use and are not compared: a load that meets an unknown one fails, and the VM is taken back.
Source: QEMU's docs/devel/migration/main.rst and vmstate_save_state/vmstate_load_state. PRIVATE to the collection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MACHINE = "vmschkmachine"
_UNUSED = "unused"

Description = Mapping[str, Any]
Field = Mapping[str, Any]


@dataclass(frozen=True)
class Incompatibility:
    """One reason why state of ``section`` (a device type) would not load. ``field`` is empty when it is the whole."""

    section: str
    field: str
    message: str

    def __str__(self) -> str:
        """Return the reason in words."""
        return f"{self.section}{f', {self.field}' if self.field else ''}: {self.message}"


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Incompatibility]:
    """Return why state saved by a build described by ``old`` would not load in one described by ``new``."""
    found = []
    machines = [dump.get(_MACHINE, {}).get("Name") for dump in (old, new)]
    if machines[0] != machines[1]:
        found.append(Incompatibility(_MACHINE, "", f"machine type {machines[0]} is not {machines[1]}"))
    for name in sorted(set(old) - {_MACHINE}):
        if name not in new:
            found.append(Incompatibility(name, "", "the other build does not know this device"))
            continue
        found += _compare_versions(name, "", old[name], new[name])
        source, target = old[name].get("Description"), new[name].get("Description")
        if source and target:
            found += _compare_descriptions(name, source, target)
        elif source:
            found.append(Incompatibility(name, "", "the other build keeps no state of this device"))
    return found


def _compare_descriptions(section: str, source: Description, target: Description) -> list[Incompatibility]:
    if source["name"] != target["name"]:
        return [Incompatibility(section, source["name"], f"is called {target['name']} in the other build")]
    found = _compare_versions(section, source["name"], source, target)
    if not found:
        fields = [field for field in target.get("Fields", []) if field["version_id"] <= source["version_id"]]
        found = _compare_fields(section, source["name"], source.get("Fields", []), fields)
    return found


def _compare_versions(section: str, name: str, source: Description, target: Description) -> list[Incompatibility]:
    if source["version_id"] > target["version_id"]:
        message = f"version {source['version_id']} is newer than the {target['version_id']} that the other build knows"
    elif source["version_id"] < target["minimum_version_id"]:
        message = (
            f"version {source['version_id']} is older than the {target['minimum_version_id']} the other build asks for"
        )
    else:
        return []
    return [Incompatibility(section, name, message)]


def _compare_fields(
    section: str, name: str, source_fields: Sequence[Field], target_fields: Sequence[Field]
) -> list[Incompatibility]:
    """Walk both lists in step. The first field that has no counterpart ends the walk: nothing after it lines up."""
    found: list[Incompatibility] = []
    source, target = list(source_fields), list(target_fields)
    while source and target:
        ours, theirs = source[0], target[0]
        if _is_struct(ours) and _is_struct(theirs) and _count(ours) == _count(theirs):
            found += _compare_structs(section, ours, theirs)
            source.pop(0)
            target.pop(0)
        elif not _is_struct(ours) and not _is_struct(theirs) and _size(ours) == _size(theirs):
            source.pop(0)
            target.pop(0)
        elif ours["field"] == theirs["field"] and _is_struct(ours) == _is_struct(theirs):
            message = f"has {_size(ours)} bytes, in the other build {_size(theirs)}"
            return [*found, Incompatibility(section, f"{name}.{ours['field']}", message)]
        elif theirs["field_exists"] and not _names(theirs, source[:1]):
            target.pop(0)
        elif ours["field_exists"]:
            source.pop(0)
        elif _UNUSED in (ours["field"], theirs["field"]) and not (_is_struct(ours) or _is_struct(theirs)):
            _consume_unused(source, target)
        elif _is_struct(theirs) and _count(theirs) == 1:
            target[0:1] = theirs["Description"].get("Fields", [])
        elif _is_struct(ours) and _count(ours) == 1:
            source[0:1] = ours["Description"].get("Fields", [])
        else:
            message = f"the other build has {theirs['field']} in its place"
            return [*found, Incompatibility(section, f"{name}.{ours['field']}", message)]
    left = [field for field in source if not field["field_exists"]]
    if left:
        found.append(Incompatibility(section, f"{name}.{left[0]['field']}", "the other build does not know this field"))
    wanted = [field for field in target if not field["field_exists"]]
    if wanted:
        found.append(Incompatibility(section, f"{name}.{wanted[0]['field']}", "the other build expects this field"))
    return found


def _compare_structs(section: str, ours: Field, theirs: Field) -> list[Incompatibility]:
    """Structures are known by their place: their names may differ, what is in them may not."""
    source, target = ours["Description"], theirs["Description"]
    found = _compare_versions(section, source["name"], source, target)
    if found:
        return found
    fields = [field for field in target.get("Fields", []) if field["version_id"] <= source["version_id"]]
    return _compare_fields(section, source["name"], source.get("Fields", []), fields)


def _consume_unused(source: list[Field], target: list[Field]) -> None:
    """Padding on one side may stand where fields are on the other: take as many bytes off both."""
    size = min(_size(source[0]), _size(target[0]))
    for fields in (source, target):
        field = fields.pop(0)
        if _size(field) > size:
            fields.insert(0, {**field, "field": _UNUSED, "size": _size(field) - size, "num": 1})


def _is_struct(field: Field) -> bool:
    return "Description" in field


def _count(field: Field) -> int:
    return int(field.get("num", 1))


def _size(field: Field) -> int:
    return int(field["size"]) * _count(field)


def _names(field: Field, others: Sequence[Field]) -> bool:
    return any(field["field"] == other["field"] for other in others)
