# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout keeps of the KVM cores of a host: loaded, made the default, unloaded, kept. PRIVATE to the collection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleError

_BUILD_ID = re.compile(r"kvm-\d+(\.\d+)+-[0-9a-f]{16}")

Result = Mapping[str, Any]


def require_build_id(build_id: str | None, variable: str) -> None:
    """Raise ``AnsibleError`` for what is given and cannot be the id of a KVM build."""
    if build_id and _BUILD_ID.fullmatch(build_id) is None:
        raise AnsibleError(
            f"{variable} is {build_id!r}, which is not the id of a KVM build; nothing was touched. Such an id is "
            "kvm-<version>-<16 hexadecimal digits>, as kvm_info tells of what is staged"
        )


def vm_move(result: Result) -> dict[str, str | None] | None:
    """Return from which core a VM went to which; None when nobody told. A null core is one that is not of our builds."""
    if "kvm_build_id_before" not in result:
        return None
    before = result["kvm_build_id_before"]
    return {"from": before, "to": result.get("kvm_build_id", before)}


def changed_core(vm: Result) -> bool:
    """Whether the record of a VM says that it went from one core to another."""
    return bool(vm.get("kvm")) and vm["kvm"]["from"] != vm["kvm"]["to"]


def kvm_record(load: Result, found: Result, choose: Result, unload: Result) -> dict[str, Any] | None:
    """Return what was done to the cores of a host, None when nothing was asked for.

    ``found`` is the answer of ``kvm_info`` after the loading; ``load``, ``choose`` and ``unload`` are loops of ``kvm_core`` over
    build ids. Each is empty where the step did not run.
    """
    if not any(result and not result.get("skipped") for result in (load, found, choose, unload)):
        return None
    cores = found.get("cores") or []
    chosen = next((build_id for build_id, item in _items(choose) if item.get("changed")), None)
    before = next((core["build_id"] for core in cores if core["default"]), None)
    return {
        # one on trial was loaded by a rollout that did not live to say so, and whose VMs these are
        "loaded": [build_id for build_id, item in _items(load) if item.get("changed") or item.get("trial")],
        "default": chosen,
        "previous_default": before if chosen else None,
        "unloaded": [build_id for build_id, item in _items(unload) if item.get("changed")],
        "kept": _kept([core for core in cores if core["build_id"] != (chosen or before)], dict(_items(unload))),
    }


def merge_kvm(turn: Result | None, after: Result | None) -> dict[str, Any] | None:
    """Return the record of a host's turn with that of what was done once its wave was judged."""
    if turn is None or after is None:
        found = turn if after is None else after
        return None if found is None else dict(found)
    return {**after, "loaded": [*turn["loaded"], *after["loaded"]], "unloaded": [*turn["unloaded"], *after["unloaded"]]}


def _kept(others: Sequence[Result], tried: Mapping[str, Result]) -> list[dict[str, str]]:
    """The cores other than the default that are loaded yet, each with the reason."""
    kept = []
    for core in others:
        item = tried.get(core["build_id"])
        if item is None and core["users"]:
            users = ", ".join(str(user.get("vm") or f"process {user['pid']}") for user in core["users"])
            reason = f"in use by {users}"
        elif item is None:
            reason = "not asked to be unloaded" if core["build_id"] else "no build that is staged has this name"
        elif item.get("failed") or item.get("unreachable"):
            reason = str(item.get("msg") or "it could not be unloaded")
        else:
            continue
        kept.append({"core": core["build_id"] or core["name"], "reason": reason})
    return kept


def _items(result: Result) -> Iterator[tuple[str, Result]]:
    """The items of a loop over build ids, each with its build id."""
    for item in result.get("results") or []:
        if not item.get("skipped"):
            yield str(item[item.get("ansible_loop_var", "item")]), item
