# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the threads of the new QEMU the scheduling that those of the old one had: CPUs, policy, priority, niceness.

It is set from outside, thread by thread (``taskset``, ``chrt``, ``renice``, a management layer's pinning), so no command
line has it, and a new process inherits only that of one thread. Threads are known by what they do in QEMU: their ids are
others in the new process. PRIVATE to the collection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpError

MAIN = "main thread"
_POLICIES = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}
_POLICIES.update({os.SCHED_BATCH: "SCHED_BATCH", os.SCHED_IDLE: "SCHED_IDLE"})


@dataclass(frozen=True)
class Scheduling:
    """How the kernel schedules one thread. ``cpus`` as ``taskset`` has it ("0-3,8"); ``priority``: of a real-time policy."""

    cpus: str
    policy: int
    priority: int
    nice: int

    @classmethod
    def of(cls, thread: int) -> Scheduling:
        """Ask the kernel. Raises ``ProcessLookupError`` when there is no such thread."""
        return cls(
            cpus=_as_list(os.sched_getaffinity(thread)),
            policy=os.sched_getscheduler(thread),
            priority=os.sched_getparam(thread).sched_priority,
            nice=os.getpriority(os.PRIO_PROCESS, thread),
        )

    def give_to(self, thread: int) -> list[str]:
        """Make ``thread`` like this and return what that changed. Raises ``OSError``; then a part of it may be done.

        What is the same already is not touched: a thread that may use all CPUs shall go on to use those added later.
        """
        now, changed = Scheduling.of(thread), []
        if now.cpus != self.cpus:
            os.sched_setaffinity(thread, _as_set(self.cpus))
            changed.append(f"CPUs {self.cpus}")
        if (now.policy, now.priority) != (self.policy, self.priority):
            os.sched_setscheduler(thread, self.policy, os.sched_param(self.priority))
            policy = self.policy & ~os.SCHED_RESET_ON_FORK
            changed.append(f"{_POLICIES.get(policy, f'policy {policy}')} {self.priority}")
        if now.nice != self.nice:
            os.setpriority(os.PRIO_PROCESS, thread, self.nice)
            changed.append(f"nice {self.nice}")
        return changed


@dataclass
class CarriedOver:
    """``done``: what had to be set, a text for each thread; ``failed``: what could not be, as warnings."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def read_threads(pid: int, monitor: QmpClient) -> dict[str, dict[str, Any]]:
    """Return name → scheduling (as JSON-ready values) of the main thread, vCPUs and I/O threads of ``pid``.

    Raises ``QmpError``.
    """
    found = {}
    for name, thread in _threads(pid, monitor):
        try:
            found[name] = asdict(Scheduling.of(thread))
        except ProcessLookupError:
            continue  # unplugged meanwhile
    return found


def carry_over(wanted: dict[str, dict[str, Any]], pid: int, connect: Callable[[], QmpClient]) -> CarriedOver:
    """Give the threads of ``pid`` what ``read_threads`` told of those of the old process.

    ``connect()`` is to return a monitor of ``pid``. The guest runs whatever comes of it, so nothing is raised.
    """
    carried = CarriedOver()
    if not wanted:
        return carried  # an engine of 0.1.0 noted nothing
    try:
        with connect() as monitor:
            threads = dict(_threads(pid, monitor))
    except QmpError as exc:
        carried.failed.append(
            f"the scheduling of threads was not carried over, the new process does not tell them: {exc}"
        )
        return carried
    for name, values in wanted.items():
        try:
            changed = Scheduling(**values).give_to(threads[name])
        except KeyError:
            carried.failed.append(f"the {name} has no like in the new process, which could have its scheduling")
        except OSError as exc:
            carried.failed.append(f"the {name} has not the scheduling it had ({_in_words(values)}): {exc.strerror}")
        else:
            carried.done += [f"{name}: {', '.join(changed)}"] if changed else []
    return carried


def _threads(pid: int, monitor: QmpClient) -> Iterator[tuple[str, int]]:
    yield MAIN, pid
    for vcpu in monitor.execute("query-cpus-fast"):
        yield f"vCPU {vcpu['cpu-index']}", int(vcpu["thread-id"])
    for thread in monitor.execute("query-iothreads"):
        yield f"I/O thread {thread['id']}", int(thread["thread-id"])


def _in_words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _as_list(cpus: set[int]) -> str:
    """Write a set of CPUs as ranges: the journal has one for each vCPU."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _as_set(cpus: str) -> set[int]:
    found: set[int] = set()
    for part in cpus.split(","):
        first, _dash, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
