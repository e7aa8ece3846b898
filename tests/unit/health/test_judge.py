# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as a problem, and what as one that was not there before."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.health.judge import (
    Answer,
    Disk,
    Problem,
    Snapshot,
    Vcpu,
    problems,
    regressions,
)

WORKS = Vcpu(0, 1_000_000, 20, False)
IDLE = Vcpu(0, 0, 0, True)
STUCK = Vcpu(0, 0, 0, False)
UNTOLD = Vcpu(0, 0, None, None)
BUSY_UNTOLD = Vcpu(0, 9_000, None, None)


def seen(**values: Any) -> Snapshot:
    """Return a snapshot of a VM that is well but for ``values``."""
    return Snapshot(**{"name": "vm1", "pid": 10, "run_state": "running", "vcpus": [WORKS], "watched_s": 10.0, **values})


def as_baseline(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as the module returned it."""
    return {**snapshot.to_dict(), "problems": [asdict(problem) for problem in problems(snapshot)]}


def checks(found: list[Problem]) -> list[str]:
    """Return what the problems are about."""
    return [f"{problem.check}:{problem.subject}".rstrip(":") for problem in found]


ALONE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "well": ({}, []),
    "idle": ({"vcpus": [IDLE]}, []),
    "idle where KVM does not tell": ({"vcpus": [UNTOLD]}, []),
    "stuck": ({"vcpus": [STUCK]}, ["vcpu:0"]),
    "one of two stuck": ({"vcpus": [WORKS, Vcpu(1, 0, 0, False)]}, ["vcpu:1"]),
    "stuck for KVM, but its word moves": ({"vcpus": [STUCK], "ram_word_moved": True}, []),
    "word stands": ({"ram_word_moved": False}, ["ram_word"]),
    "paused": ({"run_state": "paused", "vcpus": [STUCK]}, ["run_state"]),
    "disk stopped": ({"disks": [Disk("d", "nospace", 0)]}, ["disk_status:d"]),
    "requests failed": ({"disks": [Disk("d", "ok", 3), Disk("e", None, 0)]}, ["disk_errors:d"]),
    "silent": ({"answers": {"ping": Answer(False, "no"), "tcp": Answer(True, "yes")}}, ["ping"]),
    "logged": ({"complaints": [Problem("serial", "lockup", "…")]}, ["serial:lockup"]),
    "not asked": ({"run_state": None, "vcpus": [], "unasked": [Problem("qmp", "", "busy")]}, ["qmp"]),
}


@pytest.mark.parametrize(("values", "expected"), ALONE.values(), ids=ALONE.keys())
def test_problems(values: dict[str, Any], expected: list[str]) -> None:
    assert checks(problems(seen(**values))) == expected


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "well and well": ({}, {"pid": 11}, []),
    "stopped": ({}, {"run_state": "paused"}, ["run_state"]),
    "silent before": ({"answers": {"ping": Answer(False, "a")}}, {"answers": {"ping": Answer(False, "b")}}, []),
    "silent now": ({"answers": {"ping": Answer(True, "a")}}, {"answers": {"ping": Answer(False, "b")}}, ["ping"]),
    "no answer now": ({}, {"run_state": None, "unasked": [Problem("qmp", "", "busy")]}, ["qmp"]),
    "idle before": ({"vcpus": [IDLE]}, {"vcpus": [IDLE]}, []),
    "worked, now only halts": ({}, {"vcpus": [IDLE]}, ["vcpu"]),
    "worked, now only halts, but its word moves": ({}, {"vcpus": [IDLE], "ram_word_moved": True}, []),
    "worked, now nothing, untold": ({"vcpus": [BUSY_UNTOLD]}, {"vcpus": [UNTOLD]}, ["vcpu"]),
    "worked, now stuck": ({}, {"vcpus": [STUCK]}, ["vcpu:0"]),
    "stuck before": ({"vcpus": [STUCK]}, {"vcpus": [STUCK]}, []),
    "word stands now": ({"ram_word_moved": True}, {"ram_word_moved": False, "vcpus": [IDLE]}, ["ram_word"]),
    "old errors, same process": ({"disks": [Disk("d", "ok", 3)]}, {"disks": [Disk("d", "ok", 3)]}, []),
    "more errors": ({"disks": [Disk("d", "ok", 3)]}, {"disks": [Disk("d", "ok", 4)]}, ["disk_errors:d"]),
    "errors in the new process": (
        {"disks": [Disk("d", "ok", 3)]},
        {"pid": 11, "disks": [Disk("d", "ok", 1)]},
        ["disk_errors:d"],
    ),
    "no errors in the new process": ({"disks": [Disk("d", "ok", 3)]}, {"pid": 11, "disks": [Disk("d", "ok", 0)]}, []),
    "logged since": (
        {"complaints": [Problem("serial", "clock", "…")]},
        {"complaints": [Problem("serial", "clock", "…")]},
        ["serial:clock"],
    ),
}


@pytest.mark.parametrize(("before", "after", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_regressions(before: dict[str, Any], after: dict[str, Any], expected: list[str]) -> None:
    assert checks(regressions(as_baseline(seen(**before)), seen(**after))) == expected
