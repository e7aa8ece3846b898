# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which events of QEMU are kept, and which of them stop a rollout. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT = frozenset(
    {
        "STOP",
        "RESUME",
        "SUSPEND",
        "WAKEUP",
        "MIGRATION",
        "CPR_VFORK",
        "BLOCK_IO_ERROR",
        "BLOCK_JOB_ERROR",
        "GUEST_PANICKED",
        "GUEST_CRASHLOADED",
        "MEMORY_FAILURE",
        "SHUTDOWN",
        "POWERDOWN",
        "RESET",
        "WATCHDOG",
        "QUORUM_FAILURE",
    }
)
"""The rest tells of things that an upgrade has nothing to do with, such as a clock that was set, and may come often."""

EXPECTED = frozenset({"STOP", "RESUME", "MIGRATION", "CPR_VFORK"})
"""What each upgrade brings about."""

_HARD = {
    "BLOCK_IO_ERROR": "disk requests fail",
    "QUORUM_FAILURE": "disk requests fail",
    "GUEST_PANICKED": "the guest crashed",
    "GUEST_CRASHLOADED": "the guest crashed",
}


def hard_reason(name: str, data: Mapping[str, Any]) -> str:
    """Return why an event stops a rollout whatever the statistics say, empty when it does not.

    A guest that is shut down or reset was so by somebody, as far as can be told; a guest that crashed says so.
    """
    if name == "SHUTDOWN" and data.get("reason") == "guest-panic":
        return _HARD["GUEST_PANICKED"]
    return _HARD.get(name, "")


def detail(name: str, data: Mapping[str, Any]) -> str:
    """Return in words what came with an event; nested data is left out."""
    told = [
        f"{key} {_word(value)}" for key, value in data.items() if isinstance(value, (str, int, bool)) and value != ""
    ]
    return f"{name} ({', '.join(told)})" if told else name


def _word(value: str | int | bool) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
