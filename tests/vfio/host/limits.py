# SPDX-License-Identifier: GPL-3.0-or-later
"""The limit of locked memory of a process."""

from __future__ import annotations

import ctypes
import resource

_MIB = 1 << 20
FAR = 1024 * _MIB
# Less than the VM has.
NEAR = 64 * _MIB
# What it has, but not twice that.
ONCE = 384 * _MIB
_PR_CAPBSET_DROP, _CAP_IPC_LOCK = 24, 14


def limit() -> None:
    """For a child, before it executes: it may lock no more than a limit, which is far. As root it could without this."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_CAPBSET_DROP, _CAP_IPC_LOCK, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "CAP_IPC_LOCK cannot be dropped")
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (FAR, FAR))


def lower(pid: int, soft: int, hard: int) -> None:
    """Set the limits of a process that runs."""
    resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (soft, hard))
