# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watch a word of guest RAM from outside: the longest time in which it did not change is the downtime.

The guest's RAM is a memfd that both the old and the new process map, so one watcher sees through the hand-over. It runs
as a process of its own, because the one that drives the hand-over must not wait for it. PRIVATE to the collection.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.polling import PollingChild, Stopped
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import RamBlock

_POLL_INTERVAL_S = 0.0005
_GAPS_KEPT = 64
_WORD = struct.Struct("<Q")


@dataclass(frozen=True)
class Gap:
    """A time in which the word did not change, by CLOCK_REALTIME, in nanoseconds; both ends were seen changing."""

    start_ns: int
    end_ns: int

    @property
    def length_ms(self) -> float:
        """Length in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6


class RamWordWatcher:
    """A child process that polls one little-endian u64 in the file behind ``ram_fd``."""

    def __init__(self, ram_fd: int, offset: int) -> None:
        """Start watching ``offset`` (bytes, 8-aligned) of the RAM file. Raises ``LiveUpgradeError`` on a bad offset."""
        if offset % _WORD.size or not 0 <= offset <= os.fstat(ram_fd).st_size - _WORD.size:
            raise LiveUpgradeError(f"RAM word offset {offset:#x} is not inside the backend or not a multiple of 8")
        self._child = PollingChild(
            "the watcher of the guest's RAM word", lambda stopped: _watch(ram_fd, offset, stopped)
        )

    @classmethod
    def of_backend(cls, pid: int, backend: str, offset: int, ram_blocks: Iterable[RamBlock]) -> RamWordWatcher:
        """Watch ``offset`` in memory backend ``backend`` of QEMU process ``pid``. Raises ``LiveUpgradeError``."""
        sizes = {block.size_bytes for block in ram_blocks if block.id.rpartition("/")[2] == backend}
        if len(sizes) != 1:
            raise LiveUpgradeError(f"the VM has no memory backend {backend!r}")
        ram_fd = _open_shared_file(pid, sizes.pop())
        try:
            return cls(ram_fd, offset)
        finally:
            os.close(ram_fd)

    def stop(self) -> list[Gap]:
        """Stop watching and return the longest gaps seen, longest first. Raises ``LiveUpgradeError``."""
        gaps: list[dict[str, Any]] = json.loads(self._child.stop())
        return sorted((Gap(**gap) for gap in gaps), key=lambda gap: -gap.length_ms)


def gap_over(gaps: list[Gap], start_ns: int, end_ns: int) -> Gap | None:
    """Return the longest of ``gaps`` that overlaps the interval (CLOCK_REALTIME, ns), or None."""
    overlapping = [gap for gap in gaps if gap.start_ns < end_ns and gap.end_ns > start_ns]
    return max(overlapping, key=lambda gap: gap.length_ms, default=None)


def _open_shared_file(pid: int, size_bytes: int) -> int:
    """Open, read-only, the one memfd of that size which the process holds."""
    found: dict[tuple[int, int], str] = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            if "memfd:" in os.readlink(entry.path):
                status = os.stat(entry.path)
                if status.st_size == size_bytes:
                    found[status.st_dev, status.st_ino] = entry.path
        except FileNotFoundError:
            continue  # closed meanwhile
    if len(found) != 1:
        raise LiveUpgradeError(f"{len(found)} memfds of process {pid} have {size_bytes} bytes; one was expected")
    return os.open(found.popitem()[1], os.O_RDONLY | os.O_CLOEXEC)


def _watch(ram_fd: int, offset: int, stopped: Stopped) -> bytes:
    page = mmap.PAGESIZE
    base = offset // page * page
    gaps: list[tuple[int, int]] = []
    with mmap.mmap(ram_fd, page, mmap.MAP_SHARED, mmap.PROT_READ, offset=base) as ram:
        at = offset - base
        value = _WORD.unpack_from(ram, at)[0]
        changed_ns: int | None = None
        shortest_kept_ns = 0
        while not stopped(_POLL_INTERVAL_S):
            now = _WORD.unpack_from(ram, at)[0]
            if now == value:
                continue
            now_ns = time.time_ns()
            if changed_ns is not None and now_ns - changed_ns > shortest_kept_ns:
                gaps = sorted([*gaps, (changed_ns, now_ns)], key=lambda gap: gap[0] - gap[1])[:_GAPS_KEPT]
                if len(gaps) == _GAPS_KEPT:
                    shortest_kept_ns = gaps[-1][1] - gaps[-1][0]
            value, changed_ns = now, now_ns
    return json.dumps([{"start_ns": start, "end_ns": end} for start, end in gaps]).encode()
