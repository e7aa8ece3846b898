# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a hand-over, held against what it is to come to."""

from __future__ import annotations

import time
from pathlib import Path

from host.hops import Info
from host.vm import PATIENCE_S, Vm, alive


def gone(info: Info) -> str:
    """Return a complaint unless the guest has gone to the new QEMU."""
    return "" if info["phase"] == "running" else f"{info['phase']}: {info.get('reason')}"


def taken_back(info: Info, reason: str = "") -> str:
    """Return a complaint unless the guest was taken back, for ``reason``, and nothing is left of the new QEMU."""
    if info["phase"] != "aborted" or reason not in str(info.get("reason")):
        return f"{info['phase']}: {info.get('reason')}"
    if alive(int(str(info["child-pid"]))):
        return "the new QEMU is left over"
    return ""


def stopped_child(vm: Vm) -> int:
    """Return the process of a new QEMU that was started to stop itself at some point, once it has."""
    child = int(vm.monitor.wait_event({"CPR_VFORK"}, PATIENCE_S).data["child-pid"])
    deadline = time.monotonic() + PATIENCE_S
    while not _stopped(child):
        if time.monotonic() > deadline:
            raise RuntimeError("the new QEMU does not come so far")
        time.sleep(0.01)
    return child


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
