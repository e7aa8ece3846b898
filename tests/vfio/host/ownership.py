# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the kernel belongs to the process that runs the VM: locked memory, and a KVM."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import descriptors
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.vfio_use import vfio_use
from host.hops import FAULT, await_end, begin_stopped, begin_vfork, end_vfork, vfork
from host.limits import FAR, NEAR, ONCE, lower
from host.outcome import gone, taken_back
from host.prepare import say
from host.vm import PATIENCE_S, Vm

_KVMS = Path("/sys/kernel/debug/kvm")
_LET_GO_S = 30.0
_BUDGET_MS = 10000


Step = tuple[str, Callable[[], str]]


def _memlock(vm: Vm, to: str) -> str:
    here = vm.build
    return _in_turn(
        ("soft limit lowered, taken back", lambda: _soft_taken_back(vm, to)),
        ("soft limit lowered, upgrade", lambda: gone(vfork(vm, to))),
        ("hard limit lowered", lambda: _hard(vm, here, NEAR)),
        ("hard limit lowered in the pause", lambda: _hard_in_the_pause(vm, here, "could not be taken")),
        ("hard limit raised again", lambda: _raised(vm, here)),
    )


def _memlock_user(vm: Vm, to: str) -> str:
    """What the kernel counts for a user it counts for the new process before it takes it off the old one."""
    here = vm.build
    return _in_turn(
        ("what is told of it", lambda: _told(vm, True)),
        ("limit far", lambda: gone(vfork(vm, to))),
        ("soft limit lowered, taken back", lambda: _soft_taken_back(vm, here)),
        ("soft limit lowered, upgrade", lambda: gone(vfork(vm, here))),
        ("hard limit enough for one process", lambda: _hard(vm, to, ONCE)),
        ("hard limit lowered in the pause", lambda: _hard_in_the_pause(vm, to, "RLIMIT_MEMLOCK")),
        ("hard limit raised again", lambda: _raised(vm, to)),
        ("hard limit lowered at the commit", lambda: _hard_at_the_commit(vm, here)),
        ("that raised again", lambda: _raised(vm, to)),
    )


def _memlock_process(vm: Vm, to: str) -> str:
    """Here it is as with a container: what is enough for one process is enough."""
    here = vm.build
    return _in_turn(
        ("what is told of it", lambda: _told(vm, False)),
        ("soft limit lowered, taken back", lambda: _soft_taken_back(vm, to)),
        ("soft limit lowered, upgrade", lambda: gone(vfork(vm, to))),
        ("hard limit enough for one process", lambda: _enough(vm, here, ONCE)),
        ("hard limit lowered", lambda: _hard(vm, to, NEAR)),
        ("hard limit raised again", lambda: _raised(vm, to)),
    )


def _in_turn(*steps: Step) -> str:
    for name, step in steps:
        complaint = step()
        say(f"{name}: {complaint or 'done'}")
        if complaint:
            return f"{name}: {complaint}"
    return ""


def _told(vm: Vm, counted_for_user: bool) -> str:
    """What the host's facts say for whom it counts, of the kernel's own answer."""
    use = vfio_use(vm.pid, descriptors(vm.pid))
    return "" if use and use.counted_for_user is counted_for_user else f"told to be {use}"


def _soft_taken_back(vm: Vm, to: str) -> str:
    """Neither process is within its soft limit, which each of them may raise itself."""
    lower(vm.pid, NEAR, FAR)
    return taken_back(vfork(vm, to, "-global", f"{FAULT}=loaded:kill"), "killed")


def _enough(vm: Vm, to: str, limit: int) -> str:
    lower(vm.pid, NEAR, limit)
    return gone(vfork(vm, to))


def _hard(vm: Vm, to: str, limit: int) -> str:
    """Nobody could have the mappings: it is not tried, and is told to whoever asks before."""
    lower(vm.pid, min(NEAR, limit), limit)
    blocked = " ".join(vm.monitor.execute("query-cpr-vfork")["blocked-reasons"])
    complaint = _refused(begin_vfork(vm, vm.next_argv(to)), "RLIMIT_MEMLOCK")
    lower(vm.pid, FAR, FAR)
    return complaint or ("" if "RLIMIT_MEMLOCK" in blocked else f"said to be blocked by: {blocked}")


def _hard_in_the_pause(vm: Vm, to: str, reason: str) -> str:
    """The old QEMU does not get back what the new one has taken, and says so before the next hand-over."""
    begin_stopped(vm, to, "loaded", _BUDGET_MS)
    lower(vm.pid, NEAR, NEAR)
    complaint = taken_back(await_end(vm))
    return complaint or _refused(begin_vfork(vm, vm.next_argv(to)), reason)


def _hard_at_the_commit(vm: Vm, to: str) -> str:
    """The guest goes on, on mappings that nobody owns any more, until the new QEMU may have them."""
    child = begin_stopped(vm, to, "committed", int(PATIENCE_S * 1000))
    lower(child, NEAR, NEAR)
    os.kill(child, signal.SIGCONT)
    complaint = gone(end_vfork(vm, to))
    return complaint or _refused(begin_vfork(vm, vm.next_argv(to)), "could not be taken")


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


ACTS: dict[str, Callable[..., str]] = {
    "memlock": _memlock,
    "memlock_user": _memlock_user,
    "memlock_process": _memlock_process,
    "by_descriptor": _by_descriptor,
}
