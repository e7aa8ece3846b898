# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes the lab started, told apart from later ones with the same number by their start time."""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    """A process for good: its number and its start time (clock ticks since boot)."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        return start_ticks(self.pid) == self.start_ticks

    def stop(self, grace_s: float) -> None:
        """SIGTERM, after ``grace_s`` SIGKILL; returns when the process is gone. A foreign process is left alone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.alive():  # the number may be another's by now; the descriptor cannot change any more
                return
            for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 30.0)):
                try:
                    signal.pidfd_send_signal(handle, number)
                except ProcessLookupError:
                    return
                if select.select([handle], [], [], patience_s)[0]:
                    return
        finally:
            os.close(handle)


def start_ticks(pid: int) -> int | None:
    """Start time of a process that runs; None when there is none, or when it has ended and waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def identify(pid: int) -> ProcessId | None:
    ticks = start_ticks(pid)
    return None if ticks is None else ProcessId(pid, ticks)


def find_by_argument(argument: str) -> list[ProcessId]:
    """Processes that have exactly this element in their command line."""
    wanted = argument.encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        process = identify(int(entry.name))
        if wanted in arguments and process is not None:
            found.append(process)
    return found


def end_children() -> None:
    """SIGTERM to the helpers (mmdebstrap, ssh, ...) that this process has started and that still run."""
    for listing in Path("/proc/self/task").glob("*/children"):
        for pid in listing.read_text().split():
            try:
                os.kill(int(pid), signal.SIGTERM)  # our own child: its number cannot be reused before we reap it
            except ProcessLookupError:
                continue
