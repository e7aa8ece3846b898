# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of a host's KVM cores, and what a roll-back makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleError

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.cores import (
    kvm_record,
    merge_kvm,
    require_build_id,
    vm_move,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.report import previous_cores

A, B, C = "kvm-6.12.94-aaaaaaaaaaaaaaaa", "kvm-6.12.95-bbbbbbbbbbbbbbbb", "kvm-6.12.96-cccccccccccccccc"
SKIPPED = {"changed": False, "skipped": True, "results": []}


def core(build_id: str | None, default: bool = False, *users: str | int) -> dict[str, Any]:
    """What kvm_info tells of a core; a user is the name of a VM, or a process."""
    told = [{"pid": 1, "vm": user} if isinstance(user, str) else {"pid": user, "vm": None} for user in users]
    return {"name": (build_id or A)[-16:], "build_id": build_id, "default": default, "users": told}


def loop(**items: dict[str, Any]) -> dict[str, Any]:
    """The result of a loop over cores."""
    names = {"a": A, "b": B, "c": C}
    return {"results": [{"ansible_loop_var": "core", "core": names[name], **item} for name, item in items.items()]}


@pytest.mark.parametrize("build_id", [None, "", A, "kvm-7.0-0123456789abcdef"])
def test_ids_of_kvm_builds_pass(build_id: str | None) -> None:
    require_build_id(build_id, "upgrade_kvm_build")


@pytest.mark.parametrize(
    "build_id", ["kvm-6.12.94", A.upper(), f"{A}0", f"x{A}", f"{A}\n", "kvm-a.b-" + 16 * "0", "../x"]
)
def test_what_is_no_id_of_a_kvm_build_is_refused(build_id: str) -> None:
    with pytest.raises(AnsibleError, match="upgrade_kvm_build is .*nothing was touched"):
        require_build_id(build_id, "upgrade_kvm_build")


@pytest.mark.parametrize(
    ("told", "move"),
    [
        ({}, None),
        ({"kvm_build_id_before": A, "kvm_build_id": B}, {"from": A, "to": B}),
        ({"kvm_build_id_before": None, "kvm_build_id": B}, {"from": None, "to": B}),
        ({"kvm_build_id_before": A}, {"from": A, "to": A}),
    ],
    ids="nobody moved foreign lost-contact".split(),
)
def test_the_move_of_a_vm(told: dict[str, Any], move: dict[str, Any] | None) -> None:
    assert vm_move(told) == move


def test_nothing_asked_is_nothing_told() -> None:
    assert kvm_record({}, {}, {}, {}) is None
    assert kvm_record(SKIPPED, {}, {}, SKIPPED) is None


def test_a_core_on_trial_is_one_of_ours() -> None:
    load = loop(a={"changed": False, "trial": True}, b={"changed": False, "trial": False}, c={"changed": False})

    record = kvm_record(load, {}, {}, {})

    assert record is not None and record["loaded"] == [A]


def test_every_core_that_stays_has_its_reason() -> None:
    found = {"cores": [core(A, True, "vm9"), core(B), core(C, False, "vm1", 7), core(None)]}
    failed = {"failed": True, "msg": "still in use after 30 s by vm9"}

    record = kvm_record(SKIPPED, found, loop(b={"changed": True}), loop(a=failed))

    assert record == {
        "loaded": [],
        "default": B,
        "previous_default": A,
        "unloaded": [],
        "kept": [
            {"core": A, "reason": "still in use after 30 s by vm9"},
            {"core": C, "reason": "in use by vm1, process 7"},
            {"core": "aaaaaaaaaaaaaaaa", "reason": "no build that is staged has this name"},
        ],
    }


def test_a_default_that_was_it_before_is_no_change() -> None:
    record = kvm_record({}, {"cores": [core(A, True), core(B)]}, loop(a={"changed": False}), loop(b={"changed": True}))

    assert record is not None
    assert (record["default"], record["previous_default"], record["unloaded"], record["kept"]) == (None, None, [B], [])


def test_a_turn_and_what_came_after_it_are_one() -> None:
    turn = kvm_record(loop(b={"changed": True}), {}, {}, {})
    after = kvm_record({}, {"cores": [core(A, True), core(B)]}, loop(b={"changed": True}), loop(a={"changed": True}))

    merged = merge_kvm(turn, after)

    assert merged == {"loaded": [B], "default": B, "previous_default": A, "unloaded": [A], "kept": []}
    assert (merge_kvm(turn, None), merge_kvm(None, after), merge_kvm(None, None)) == (turn, after, None)


def moved(host: str, name: str, undone: bool = False, **values: Any) -> dict[str, Any]:
    """A VM of a report that went from one core to another."""
    return {
        "host": host,
        "name": name,
        "outcome": "upgraded",
        "kvm": {"from": A, "to": B},
        "rollback": {"outcome": "upgraded"} if undone else None,
        **values,
    }


REPORT = {
    "hosts": [
        {"name": "h1", "kvm": {"default": B, "previous_default": A}},
        {"name": "h2", "kvm": {"default": None, "previous_default": None}},
        {"name": "h3", "kvm": {"default": B, "previous_default": None}},
        {"name": "h4"},
    ],
    "vms": [
        moved("h1", "vm1"),
        moved("h1", "vm2", kvm={"from": B, "to": B}),
        moved("h2", "vm3", undone=True),
        moved("h4", "vm4", kvm=None),
    ],
}


@pytest.mark.parametrize(
    ("wanted", "cores"),
    [
        ([], {"h1": {"default": A, "unload": [B]}, "h3": {"default": "", "unload": [B]}}),
        (["vm1"], {"h1": {"default": "", "unload": [B]}}),
        (["vm2", "vm3", "vm4"], {}),
    ],
    ids="all one others".split(),
)
def test_what_to_do_with_the_cores_to_undo_a_rollout(wanted: list[str], cores: dict[str, Any]) -> None:
    assert previous_cores(REPORT, wanted) == cores
