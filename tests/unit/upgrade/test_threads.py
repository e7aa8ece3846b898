# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduling of threads, carried from those of one process to those of another. Processes stand for threads."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpDeadError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.threads import (
    Scheduling,
    _as_list,
    _as_set,
    carry_over,
    read_threads,
)


class Qemu:
    """A main thread, two vCPUs and an I/O thread; also the monitor that tells them."""

    def __init__(self) -> None:
        self._sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(4)]
        self.main, *self.vcpus, self.io = [sleeper.pid for sleeper in self._sleepers]

    def end(self) -> None:
        for sleeper in self._sleepers:
            sleeper.kill()
            sleeper.wait()

    def __enter__(self) -> Qemu:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def execute(self, command: str) -> list[dict[str, Any]]:
        if command == "query-cpus-fast":
            return [{"cpu-index": index, "thread-id": thread} for index, thread in enumerate(self.vcpus)]
        assert command == "query-iothreads"
        return [{"id": "io1", "thread-id": self.io}]


@pytest.fixture
def start() -> Iterator[Callable[[], Any]]:
    made: list[Qemu] = []

    def factory() -> Qemu:
        made.append(Qemu())
        return made[-1]

    yield factory
    for qemu in made:
        qemu.end()


def test_each_thread_gets_what_its_like_had(start: Callable[[], Any]) -> None:
    old, new = start(), start()
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(new.vcpus[1], {cpu})
    os.sched_setscheduler(old.vcpus[0], os.SCHED_BATCH, os.sched_param(0))
    os.setpriority(os.PRIO_PROCESS, old.io, 7)
    os.sched_setaffinity(old.main, {cpu})
    wanted = json.loads(json.dumps(read_threads(old.main, old)))

    carried = carry_over(wanted, new.main, lambda: new)

    assert carried.failed == []
    assert {entry.partition(":")[0] for entry in carried.done} >= {"main thread", "vCPU 0", "I/O thread io1"}
    assert "vCPU 0: SCHED_BATCH 0" in carried.done and "I/O thread io1: nice 7" in carried.done
    assert read_threads(new.main, new) == wanted
    assert carry_over(wanted, new.main, lambda: new).done == []


def test_what_is_the_same_is_not_set_again(start: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may use all CPUs and is told so in so many words would not use those that are added later."""
    old, new = start(), start()

    def fail(*_arguments: object) -> None:
        raise AssertionError("it was set")

    for name in ("sched_setaffinity", "sched_setscheduler", "setpriority"):
        monkeypatch.setattr(os, name, fail)

    carried = carry_over(read_threads(old.main, old), new.main, lambda: new)

    assert (carried.done, carried.failed) == ([], [])


def test_what_fails_for_one_thread_is_a_warning_and_the_others_get_theirs(
    start: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = start(), start()
    for thread in (*old.vcpus, old.io):
        os.setpriority(os.PRIO_PROCESS, thread, 5)
    wanted = read_threads(old.main, old)
    allowed = os.setpriority

    def refuse_one(which: int, who: int, priority: int) -> None:
        if who == new.vcpus[0]:
            raise PermissionError(1, "Operation not permitted")
        allowed(which, who, priority)

    monkeypatch.setattr(os, "setpriority", refuse_one)
    new.vcpus[1:] = []

    carried = carry_over(wanted, new.main, lambda: new)

    assert carried.done == ["I/O thread io1: nice 5"]
    assert len(carried.failed) == 2
    assert "vCPU 0 has not the scheduling it had" in carried.failed[0] and "not permitted" in carried.failed[0]
    assert "vCPU 1 has no like in the new process" in carried.failed[1]


def test_new_process_that_does_not_answer_is_a_warning(start: Callable[[], Any]) -> None:
    old = start()

    def connect() -> Any:
        raise QmpDeadError("nobody serves the socket")

    (warning,) = carry_over(read_threads(old.main, old), old.main, connect).failed

    assert "nobody serves the socket" in warning


def test_journal_that_knows_of_no_threads_asks_nobody() -> None:
    carried = carry_over({}, 0, lambda: pytest.fail("it was asked"))

    assert (carried.done, carried.failed) == ([], [])


def test_thread_that_has_gone_is_passed_over(start: Callable[[], Any]) -> None:
    old = start()
    old.vcpus[0] = 2**22 - 1

    assert set(read_threads(old.main, old)) == {"main thread", "vCPU 1", "I/O thread io1"}
    with pytest.raises(ProcessLookupError):
        Scheduling.of(2**22 - 1)


@pytest.mark.parametrize(
    ("cpus", "text"), [({0}, "0"), ({0, 1, 2, 8}, "0-2,8"), (set(range(1024)), "0-1023"), ({1, 3, 5}, "1,3,5")]
)
def test_sets_of_cpus_are_written_as_taskset_does(cpus: set[int], text: str) -> None:
    assert _as_list(cpus) == text
    assert _as_set(text) == cpus
