# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the mechanisms of a hand-over have in common: how it can end, its limits, the end of the old process.

PRIVATE to the collection.
"""

from __future__ import annotations

import select
import signal
from dataclasses import dataclass

from ansible_collections.vmm.live_upgrade.plugins.module_utils import syscalls
from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

SETTLES_S = 30.0
UNRESPONSIVE_S = 5.0


class TakenBack(LiveUpgradeError):
    """The upgrade failed and the old process runs the guest on."""


class GuestStranded(LiveUpgradeError):
    """Nothing runs the guest, but a process holds its whole state; a person has to decide."""


class GuestLost(LiveUpgradeError):
    """No process holds the guest any more."""


@dataclass(frozen=True)
class Limits:
    """``prepare_s``: from the start of the target until the guest pauses. ``downtime_s``: the longest pause allowed."""

    prepare_s: float
    downtime_s: float


@dataclass(frozen=True)
class Committed:
    """The target runs the guest. Times are QEMU's own, CLOCK_REALTIME, in microseconds."""

    target_pid: int
    stop_us: int
    resume_us: int


def has_ended(pidfd: int, timeout_s: float = 0.0) -> bool:
    """Say whether the process behind ``pidfd`` has ended, or does so in time."""
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def end_process(pid: int, pidfd: int) -> None:
    """End the old process, which no longer owns the guest. Raises ``LiveUpgradeError`` when it does not go.

    By SIGKILL: an orderly exit would unlink the sockets and the pid file that the new process serves.
    """
    try:
        syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    if not has_ended(pidfd, SETTLES_S):
        raise LiveUpgradeError(f"old process {pid} was killed but has not gone after {SETTLES_S:g} s")
