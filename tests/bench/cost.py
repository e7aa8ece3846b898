# SPDX-License-Identifier: GPL-3.0-or-later
"""What an upgrade costs the host: memory and CPU time of the QEMU processes that run a VM."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_VCPU_NAMES = ("/KVM", "/TCG")


def adopt_orphans(adopt: bool) -> None:
    """Become the parent of QEMUs whose parent, a QEMU, ends: only a parent is told what a process used to its very end.

    Or be it no longer: whoever else runs in this process does not reap what it has not started.
    """
    assert ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) == 0


def memory_mib(pids: Iterable[int]) -> float:
    """Return what the processes hold together: their PSS but for shared memory, page tables, and each memfd once.

    Guest RAM is taken by what is allocated to its memfd instead of by PSS, which counts a page only for processes that have
    touched it: a new QEMU that maps all RAM at once would seem to have doubled it. PSS does not count page tables.
    """
    kib = 0
    memfds: dict[tuple[int, int], int] = {}
    for pid in pids:
        rollup = _fields(Path(f"/proc/{pid}/smaps_rollup"))
        kib += rollup["Pss_Anon"] + rollup["Pss_File"] + _fields(Path(f"/proc/{pid}/status"))["VmPTE"]
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.readlink(link).startswith("/memfd:"):
                    status = link.stat()
                    memfds[status.st_dev, status.st_ino] = status.st_blocks // 2
            except FileNotFoundError:
                continue  # closed meanwhile
    return (kib + sum(memfds.values())) / 1024


def available_mib() -> int:
    """Return how much memory this machine could still give."""
    return _fields(Path("/proc/meminfo"))["MemAvailable"] // 1024


def overhead_ns(pid: int) -> int:
    """Return the CPU time of the process so far without that of the vCPUs it has now."""
    return process_ns(pid) - vcpus_ns(pid)


def process_ns(pid: int) -> int:
    """Return the CPU time of the process so far, with threads that have ended."""
    return time.clock_gettime_ns(~pid << 3 | 2)  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)


def vcpus_ns(pid: int) -> int:
    """Return the CPU time of the process's vCPU threads so far. Of running ones it is known to a tick (some ms)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            if (task / "comm").read_text().rstrip().endswith(_VCPU_NAMES):
                total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile, as a worker of QEMU's does
    assert total, f"process {pid} has no threads that are called like vCPUs"
    return total


def final_ns(pid: int) -> int:
    """Reap a child that has ended and return the CPU time it used, to the freeing of its memory."""
    usage = os.wait4(pid, 0)[2]
    return round((usage.ru_utime + usage.ru_stime) * 1e9)


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of ``Name:  number unit`` lines."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
