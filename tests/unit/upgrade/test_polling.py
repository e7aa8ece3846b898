# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that look until they are told to stop, and the one that watches a word of guest memory."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.polling import PollingChild, Stopped
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.ram_word import RamWordWatcher, gap_over
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.facts import RamBlock

RAM_BYTES = 1 << 20
OFFSET = 0x8008


def until_stopped(seen: bytes) -> Callable[[Stopped], bytes]:
    def look(stopped: Stopped) -> bytes:
        while not stopped(0.01):
            pass
        return seen

    return look


def test_children_stop_in_any_order() -> None:
    """The second one has the pipes of the first."""
    first, second = PollingChild("one", until_stopped(b"1")), PollingChild("two", until_stopped(b"2"))

    assert (first.stop(), second.stop()) == (b"1", b"2")


def test_what_was_seen_may_be_more_than_a_pipe_holds() -> None:
    assert PollingChild("one", until_stopped(bytes(1 << 20))).stop() == bytes(1 << 20)


def test_child_that_failed_says_so_and_is_reaped() -> None:
    def look(_stopped: Stopped) -> bytes:
        raise ValueError("seen in the child's words")

    child = PollingChild("the watcher", look)
    assert select.select([child._result_read], [], [], 30)[0], "the child does not end"

    with pytest.raises(LiveUpgradeError, match="the watcher ended without a result"):
        child.stop()
    with pytest.raises(ChildProcessError):
        os.waitpid(child._pid, os.WNOHANG)


def test_child_ends_with_its_maker() -> None:
    told, tell = os.pipe()
    maker = os.fork()
    if maker == 0:
        os.write(tell, str(PollingChild("one", until_stopped(b""))._pid).encode())
        select.select([], [], [], 600)
        os._exit(1)
    pidfd = os.pidfd_open(int(os.read(told, 16)))

    os.kill(maker, 9)
    os.waitpid(maker, 0)

    assert select.select([pidfd], [], [], 30)[0], "it looks for ever"
    for fd in (told, tell, pidfd):
        os.close(fd)


@pytest.fixture
def ram() -> Iterator[int]:
    fd = os.memfd_create("memory-backend-memfd-test")
    os.ftruncate(fd, RAM_BYTES)
    yield fd
    os.close(fd)


def count(ram: int, times: int, first: int = 0) -> None:
    for value in range(first, first + times):
        os.pwrite(ram, struct.pack("<Q", value + 1), OFFSET)
        time.sleep(0.002)


def test_longest_time_without_a_change_of_the_word_is_seen(ram: int) -> None:
    watcher = RamWordWatcher.of_backend(
        os.getpid(), "ram0", OFFSET, [RamBlock("/objects/ram0", RAM_BYTES, True, "memfd", True)]
    )
    count(ram, 20)
    start_ns = time.time_ns()
    time.sleep(0.3)
    end_ns = time.time_ns()
    count(ram, 20, 20)

    gaps = watcher.stop()

    assert gaps == sorted(gaps, key=lambda gap: -gap.length_ms)
    gap = gap_over(gaps, start_ns, end_ns)
    assert gap is not None and gap.start_ns <= start_ns + 10**7 and gap.end_ns >= end_ns


def test_word_that_stands_still_has_no_gap(ram: int) -> None:
    watcher = RamWordWatcher(ram, OFFSET)

    assert watcher.stop() == []


@pytest.mark.parametrize("offset", [-8, 4, RAM_BYTES - 4, RAM_BYTES])
def test_word_outside_of_the_memory_is_an_error(ram: int, offset: int) -> None:
    with pytest.raises(LiveUpgradeError, match="not inside the backend or not a multiple of 8"):
        RamWordWatcher(ram, offset)


def test_backend_that_the_vm_has_not_is_an_error(ram: int) -> None:
    with pytest.raises(LiveUpgradeError, match="no memory backend 'ram1'"):
        RamWordWatcher.of_backend(os.getpid(), "ram1", OFFSET, [])
