# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the kernel belongs to the process that runs the VM: locked memory, and a KVM."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from host.hops import FAULT, await_end, begin_vfork, vfork
from host.limits import FAR, NEAR, lower
from host.outcome import gone, stopped_child, taken_back
from host.prepare import say
from host.vm import Vm

_KVMS = Path("/sys/kernel/debug/kvm")
_LET_GO_S = 30.0
_BUDGET_MS = 10000


def _memlock(vm: Vm, to: str) -> str:
    here = vm.build
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("soft limit lowered, taken back", lambda: _soft_taken_back(vm, to)),
        ("soft limit lowered, upgrade", lambda: gone(vfork(vm, to))),
        ("hard limit lowered", lambda: _hard(vm, here)),
        ("hard limit lowered in the pause", lambda: _hard_in_the_pause(vm, here)),
        ("hard limit raised again", lambda: _raised(vm, here)),
    )
    for name, step in steps:
        complaint = step()
        say(f"{name}: {complaint or 'done'}")
        if complaint:
            return f"{name}: {complaint}"
    return ""


def _soft_taken_back(vm: Vm, to: str) -> str:
    """Neither process is within its soft limit, which each of them may raise itself."""
    lower(vm.pid, NEAR, FAR)
    return taken_back(vfork(vm, to, "-global", f"{FAULT}=loaded:kill"), "killed")


def _hard(vm: Vm, to: str) -> str:
    """Nobody could have the mappings: it is not tried, and is told to whoever asks before."""
    lower(vm.pid, NEAR, NEAR)
    blocked = " ".join(vm.monitor.execute("query-cpr-vfork")["blocked-reasons"])
    complaint = _refused(begin_vfork(vm, vm.next_argv(to)), "RLIMIT_MEMLOCK")
    lower(vm.pid, FAR, FAR)
    return complaint or ("" if "RLIMIT_MEMLOCK" in blocked else f"said to be blocked by: {blocked}")


def _hard_in_the_pause(vm: Vm, to: str) -> str:
    """The old QEMU does not get back what the new one has taken, and says so before the next hand-over."""
    refusal = begin_vfork(vm, [*vm.next_argv(to), "-global", f"{FAULT}=loaded:stop"], _BUDGET_MS)
    if refusal:
        return gone(refusal)
    stopped_child(vm)
    lower(vm.pid, NEAR, NEAR)
    complaint = taken_back(await_end(vm))
    return complaint or _refused(begin_vfork(vm, vm.next_argv(to)), "could not be taken back")


def _raised(vm: Vm, to: str) -> str:
    lower(vm.pid, FAR, FAR)
    return gone(vfork(vm, to))


def _refused(info: dict[str, str], reason: str) -> str:
    if info.get("phase") != "refused" or reason not in info["reason"]:
        return f"not refused for {reason}: {info}"
    return ""


def _by_descriptor(vm: Vm, to: str) -> str:
    """The KVM of the process that opened the device must go with it: a device can refer to it as long as it is open."""
    complaint = gone(vfork(vm, to))
    deadline = time.monotonic() + _LET_GO_S
    while others := [path.name for path in _KVMS.glob("*-*") if not path.name.startswith(f"{vm.pid}-")]:
        if time.monotonic() > deadline:
            return complaint or f"the VM is of process {vm.pid}, and there is the KVM {', '.join(others)}"
        time.sleep(0.05)  # what is freed tells nobody
    return complaint


ACTS: dict[str, Callable[..., str]] = {"memlock": _memlock, "by_descriptor": _by_descriptor}
