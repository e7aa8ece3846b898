# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's RAM as seen from outside: filled with data before a measurement, its counter traced during one.

A trace keeps every value of the counter that it saw, so that two traces, of the RAM a guest leaves and of the RAM it
arrives in, can be laid side by side. A pause is the time in which the guest was seen to stand still, again and again: that
the one who looks was not let run for a while is not taken for a pause.
"""

from __future__ import annotations

import array
import itertools
import mmap
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.polling import PollingChild, Stopped
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.ram_word import Gap, gap_over
from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import COUNTER_OFFSET

_POLL_S = 0.0001
_MOVES_S = 60.0
_FILLED_FROM = 1 << 20
_FILLED_AT_ONCE = 4 << 20
_WORD = struct.Struct("<Q")


@dataclass(frozen=True)
class Stand:
    """The counter had ``value`` when it was looked at from ``first_ns`` to ``last_ns``, by CLOCK_REALTIME."""

    first_ns: int
    last_ns: int
    value: int


class RamTrace:
    """A child process that polls the guest's counter. While it lives, so does the RAM."""

    def __init__(self, pid: int, ram_bytes: int) -> None:
        """Begin with the RAM of QEMU process ``pid``. Have no monitor open: the child would hold it open too."""
        ram_fd = open_ram(pid, ram_bytes, os.O_RDONLY)
        try:
            self._child = PollingChild("the tracer of the counter", lambda stopped: _trace(ram_fd, stopped))
        finally:
            os.close(ram_fd)

    def stop(self) -> list[Stand]:
        """End it, let go of the RAM, and return what was seen, in order."""
        numbers = array.array("Q", self._child.stop())
        return [Stand(*three) for three in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)]


def gap_within(seen: Sequence[Stand], start_ns: int, end_ns: int) -> Gap | None:
    """Return the longest stand that overlaps the interval.

    When nobody was let look twice in it, return the time between the two looks around it: the pause was no longer.
    """
    gap = gap_over([Gap(stand.first_ns, stand.last_ns) for stand in seen], start_ns, end_ns)
    if gap and gap.length_ms > 0:
        return gap
    before = [stand.last_ns for stand in seen if stand.last_ns <= start_ns]
    after = [stand.first_ns for stand in seen if stand.first_ns >= end_ns]
    return Gap(before[-1], after[0]) if before and after else None


def gap_across(left: Sequence[Stand], arrived_in: Sequence[Stand]) -> Gap | None:
    """Return the pause of a guest that goes on in another RAM: from its last count in the one to its first in the other.

    The counter of the other RAM also changes whenever its page is copied, the last time during the pause; but a copy
    never goes beyond what the guest had reached before it paused.
    """
    last = left[-1]
    for before, stand in itertools.pairwise(arrived_in):
        if stand.value > last.value:
            return Gap(last.first_ns, before.last_ns)
    return None


def wait_counting(pid: int, ram_bytes: int) -> None:
    """Return when the guest that ``pid`` runs is seen to count from now on."""
    fd = open_ram(pid, ram_bytes, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _MOVES_S
        first = os.pread(fd, _WORD.size, COUNTER_OFFSET)
        while os.pread(fd, _WORD.size, COUNTER_OFFSET) == first:
            assert time.monotonic() < deadline, f"the guest does not count in process {pid}"
            time.sleep(_POLL_S)
    finally:
        os.close(fd)


def fill(pid: int, ram_bytes: int) -> None:
    """Fill the guest's RAM, but the first MiB, with data that no two pages share: a copy then costs what it costs."""
    count = (ram_bytes - _FILLED_FROM + _FILLED_AT_ONCE - 1) // _FILLED_AT_ONCE
    noise = memoryview(os.urandom(_FILLED_AT_ONCE + count * _WORD.size))
    fd = open_ram(pid, ram_bytes, os.O_RDWR)
    try:
        for number in range(count):
            offset = _FILLED_FROM + number * _FILLED_AT_ONCE
            shifted = noise[number * _WORD.size :][: min(_FILLED_AT_ONCE, ram_bytes - offset)]
            assert os.pwrite(fd, shifted, offset) == len(shifted)
    finally:
        os.close(fd)


def open_ram(pid: int, ram_bytes: int, flags: int) -> int:
    """Open the memfd of that size which QEMU process ``pid`` holds."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "memory-backend-memfd" in os.readlink(link) and link.stat().st_size == ram_bytes:
                return os.open(link, flags | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # closed meanwhile
    raise AssertionError(f"process {pid} holds no guest RAM of {ram_bytes} bytes")


def _trace(ram_fd: int, stopped: Stopped) -> bytes:
    _get_ahead()
    base = COUNTER_OFFSET // mmap.PAGESIZE * mmap.PAGESIZE
    numbers = array.array("Q")
    value = -1
    with mmap.mmap(ram_fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=base) as ram:
        while not stopped(_POLL_S):
            now_ns = time.time_ns()
            now = _WORD.unpack_from(ram, COUNTER_OFFSET - base)[0]
            if now == value:
                numbers[-2] = now_ns
            else:
                value = now
                numbers.extend((now_ns, now_ns, value))
    return numbers.tobytes()


def _get_ahead() -> None:
    """Be preferred to others where that is allowed, to see more. (Not SCHED_FIFO, which Linux pauses for 50 ms at times.)"""
    try:
        os.nice(-20)
    except PermissionError:
        pass
