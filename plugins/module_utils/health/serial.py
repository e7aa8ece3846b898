# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest's serial log says of lockups, jumps of time and failing disks. PRIVATE to the collection."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.health.judge import Problem, SerialPosition

PATTERNS: Mapping[str, str] = {
    "lockup": r"soft lockup|hard LOCKUP|self-detected stall|rcu.*detected stall|blocked for more than \d+ seconds",
    "clock": r"Clocksource .* unstable|clocksource: timekeeping watchdog|[Tt]ime jumped|clock jump",
    "crash": r"Kernel panic|Oops:|BUG: |general protection fault|Call Trace:",
    "disk": r"(Buffer )?I/O error|EXT4-fs error|XFS .*(error|corruption)|BTRFS (error|critical)|Remounting filesystem read-only",
}
"""What is looked for, by kind (docs/rollout.md)."""

_COMPILED = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}
_MOST_BYTES = 4 << 20
_LINE_CHARS = 200


def position(path: str) -> SerialPosition:
    """Return where the log ends now. Raises ``LiveUpgradeError`` when it is not a readable regular file."""
    with _open(path) as status_of:
        return SerialPosition(path, status_of.inode, status_of.size)


def complaints_since(before: Mapping[str, Any], now: SerialPosition) -> list[Problem]:
    """Return one problem per kind of complaint logged between two positions, with its first line and how many there are.

    A log that is another file by now, or was cut, is read from its beginning; of a long one the last 4 MiB.
    """
    same = before["path"] == now.path and before["inode"] == now.inode and before["offset"] <= now.offset
    start = max(before["offset"] if same else 0, now.offset - _MOST_BYTES)
    with _open(now.path) as log:
        text = os.pread(log.fd, now.offset - start, start).decode(errors="replace")
    first: dict[str, str] = {}
    count: dict[str, int] = {}
    for line in text.splitlines():
        for kind, pattern in _COMPILED.items():
            if pattern.search(line):
                first.setdefault(kind, line.strip()[:_LINE_CHARS])
                count[kind] = count.get(kind, 0) + 1
    return [
        Problem("serial", kind, f"serial log: {line}{f' (and {count[kind] - 1} more)' if count[kind] > 1 else ''}")
        for kind, line in first.items()
    ]


class _open:
    """A log opened for reading that is a regular file and no FIFO that would block."""

    def __init__(self, path: str) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise LiveUpgradeError(f"serial log {path}: {exc.strerror}") from exc
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            raise LiveUpgradeError(f"serial log {path} is not a regular file")
        self.inode, self.size = status.st_ino, status.st_size

    def __enter__(self) -> _open:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self.fd)
