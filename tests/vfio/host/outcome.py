# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a hand-over, held against what it is to come to."""

from __future__ import annotations

from host.hops import Info
from host.vm import alive


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
