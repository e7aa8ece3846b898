# SPDX-License-Identifier: GPL-3.0-or-later
"""Do one fault of faults.py to a fresh VM, and judge what came of it without asking QEMU who runs the guest."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.tests.integration.local_qemu import LocalQemu
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.faults import Fault
from ansible_collections.vmm.live_upgrade.tests.integration.qemu.vfork_vm import FAULT, NIC, Vm

_SETTLES_S = 30.0
_LOOK_S = 0.1
_POLL_S = 0.01


@dataclass(frozen=True)
class Verdict:
    """A row of the table. ``wrong`` is empty when all is as it has to be."""

    fault: Fault
    happened: str
    runner: str
    monotone: bool
    leaks: list[str]
    wrong: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "fault": self.fault.name,
            "phase": self.fault.phase,
            "expected": list(self.fault.runner),
            "happened": self.happened,
            "runner": self.runner,
            "counter_monotone": self.monotone,
            "leaks": self.leaks,
            "wrong": self.wrong,
            "ok": not self.wrong,
        }


class _CounterWatch:
    """Sees the guest's counter go back, whoever makes it."""

    def __init__(self, qemu: LocalQemu) -> None:
        self._qemu = qemu
        self._stop = threading.Event()
        self.monotone = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        seen = self._qemu.counter()
        while not self._stop.wait(0.001):
            now = self._qemu.counter()
            self.monotone = self.monotone and now >= seen
            seen = now

    def end(self) -> bool:
        self._stop.set()
        self._thread.join()
        return self.monotone


def run_fault(fault: Fault, start: Callable[..., Vm], binary: Path) -> Verdict:
    """Start a VM, do the fault, judge. ``start`` is a factory that ends what it made."""
    extra = [*NIC, *(("-global", f"{FAULT}={fault.old_fault}") if fault.old_fault else ())]
    vm = start(extra=extra)
    before = held_by(vm.pid)
    watch = _CounterWatch(vm.qemu)
    try:
        info = fault.inject(vm, binary)
        if info:
            vm.child = int(info["child-pid"])
        _await_settled(vm, fault)
        runner = _runner(vm)
        leaks = _leaks(vm, runner, before)
        wrong = _judge(fault, vm, info, runner)
        if runner == "old":
            wrong += _does_it_again(vm, binary)
    finally:
        monotone = watch.end()
    wrong += ["the counter went back"] * (not monotone) + leaks
    happened = f"{info['phase']}: {info.get('reason', '')}".rstrip(": ") if info else "the old QEMU was killed"
    return Verdict(fault, happened, runner, monotone, leaks, wrong)


def held_by(pid: int) -> list[str]:
    """What a process holds open, in words that do not depend on numbers."""
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(re.sub(r"\[\d+\]", "", os.readlink(f"/proc/{pid}/fd/{name}")))
        except FileNotFoundError:
            continue  # closed meanwhile
    return sorted(links)


def _judge(fault: Fault, vm: Vm, info: dict[str, Any] | None, runner: str) -> list[str]:
    wrong = []
    if runner not in fault.runner:
        wrong.append(f"{runner} runs the guest, not {' or '.join(fault.runner)}")
    if info:
        owner = "old" if info["phase"] == "aborted" else "new"
        if info["phase"] not in fault.phase_after or info["owner"] != owner:
            wrong.append(f"the old QEMU says {info['phase']}, owner {info['owner']}")
        if not re.search(fault.reason, str(info.get("reason", ""))):
            wrong.append(f"the reason is not {fault.reason!r}")
        reached = [entry["phase"] for entry in info["times"] if entry["phase"] not in ("aborted", "lost", "stranded")][
            -1
        ]
        # Both work at a time: the child reads while the old QEMU still sends, and goes on while what it said is heard.
        possible = {"stopped": ("stopped", "saved"), "saved": ("saved", "loaded")}.get(fault.phase, (fault.phase,))
        if info["phase"] == "aborted" and reached not in possible:
            wrong.append(f"it had come to {reached}, not to {fault.phase}")
    if fault.log and not re.search(fault.log, vm.qemu.log_path.read_text(errors="replace")):
        wrong.append(f"the log does not say {fault.log!r}")
    return wrong


def _does_it_again(vm: Vm, binary: Path) -> list[str]:
    """After a failure the VM can still be moved."""
    if vm.monitor.execute("query-status")["status"] != "running":
        return ["the old QEMU does not say that it runs"]
    later = vm.hand_over(binary, **{"pause-budget": 20000})
    return [] if later["phase"] == "running" else [f"the next hand-over failed: {later}"]


def _await_settled(vm: Vm, fault: Fault) -> None:
    """An old QEMU that was killed leaves a child that ends or runs; which, takes a moment to see."""
    deadline = time.monotonic() + _SETTLES_S
    while not (_lives(vm.pid) or not _lives(vm.child) or _counts(vm)):
        assert time.monotonic() < deadline, f"{fault.name}: the child {vm.child} neither ends nor runs"


def _runner(vm: Vm) -> str:
    """Find out by stopping one process after the other: whose stop does not matter does not run the guest."""
    processes = {name: pid for name, pid in (("old", vm.pid), ("new", vm.child)) if _lives(pid)}
    runs = []
    for name in processes:
        others = [pid for other, pid in processes.items() if other != name]
        for pid in others:
            _stop(pid)
        if _counts(vm):
            runs.append(name)
        for pid in others:
            os.kill(pid, signal.SIGCONT)
    return " and ".join(runs) or ("somebody else" if _counts(vm) else "nobody")


def _leaks(vm: Vm, runner: str, before: list[str]) -> list[str]:
    """A process that has failed is gone; the old one holds what it held."""
    leaks = []
    if runner != "new" and _lives(vm.child):
        leaks.append(f"the child {vm.child} is left over")
    if runner == "old":
        deadline = time.monotonic() + _SETTLES_S / 10
        while (now := held_by(vm.pid)) != before and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        leaks += [f"descriptor left over: {link}" for link in sorted(set(now) - set(before))]
        if len(now) != len(before):
            leaks.append(f"{len(before)} descriptors became {len(now)}")
    return leaks


def _counts(vm: Vm) -> bool:
    first, deadline = vm.qemu.counter(), time.monotonic() + _LOOK_S
    while vm.qemu.counter() == first:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while _state(pid) not in "TZX":
        time.sleep(_POLL_S)


def _lives(pid: int) -> bool:
    return pid > 0 and _state(pid) not in "ZX"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
