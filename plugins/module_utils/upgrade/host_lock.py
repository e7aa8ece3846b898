# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock that keeps a host's VMs to one upgrade, or one rehearsal, at a time. PRIVATE to the collection."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError


class HostBusyError(LiveUpgradeError):
    """Another process holds the host's lock."""


class HostLock:
    """The host's lock: an flock, so that it ends with its holder, on a file that says who holds it."""

    def __init__(self, state_dir: Path) -> None:
        """Open the lock file of ``state_dir``, creating both if need be."""
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self, holder: dict[str, Any]) -> None:
        """Take the lock and leave ``holder`` in it. Raises ``HostBusyError``.

        ``holder`` has ``pid``, and either ``transaction_id`` and ``rollout_id`` or a true ``rehearsal``.
        """
        try:
            # Workers share their engine's lock. Those that outlived an engine of the very same transaction are waited
            # for: they are about to end, and what they leave open is ours to finish.
            ours = self.holder().get("transaction_id") == holder.get("transaction_id", "")
            fcntl.flock(self._fd, fcntl.LOCK_EX | (0 if ours else fcntl.LOCK_NB))
        except BlockingIOError:
            raise HostBusyError(self.in_use()) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(holder).encode(), 0)

    def is_free(self) -> bool:
        """Tell whether nobody holds the lock just now; takes and drops it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return True

    def holder(self) -> dict[str, Any]:
        """Return what the last holder left."""
        try:
            holder: dict[str, Any] = json.loads(os.pread(self._fd, 65536, 0))
        except ValueError:
            return {}
        return holder

    def in_use(self) -> str:
        """Say what the last holder is doing, as a sentence."""
        holder = self.holder()
        if holder.get("rehearsal"):
            return f"host {os.uname().nodename}: a rehearsal is at work here (process {holder.get('pid')})"
        return (
            f"host {os.uname().nodename}: another upgrade is at work here (transaction {holder.get('transaction_id')}, rollout "
            f"{holder.get('rollout_id') or 'none'}, process {holder.get('pid')})"
        )

    def close(self) -> None:
        """Drop the lock, if held."""
        os.close(self._fd)
