# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a new QEMU whose parent, the old one, died in the hand-over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpDeadError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade import cpr_vfork
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.cpr_vfork import await_orphan
from ansible_collections.vmm.live_upgrade.plugins.module_utils.upgrade.hand_over import GuestLost, GuestStranded


class Monitor:
    """Says what it is told to, one word a question; the last one for ever."""

    def __init__(self, *states: str) -> None:
        self._states = list(states)

    def __call__(self, _pid: int) -> Monitor:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if state == "silent":
            raise QmpDeadError("nobody serves the socket")
        self.state = state
        return self

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def execute(self, command: str, timeout_s: float) -> Any:
        assert command == "query-status"
        return {"status": self.state}


@pytest.fixture
def orphan() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def pidfd(orphan: subprocess.Popen[bytes]) -> Iterator[int]:
    fd = os.pidfd_open(orphan.pid)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("states", [["running"], ["silent", "inmigrate", "running"]], ids=["at-once", "later"])
def test_orphan_that_runs_the_guest_is_the_vm(orphan: subprocess.Popen[bytes], pidfd: int, states: list[str]) -> None:
    await_orphan(orphan.pid, pidfd, Monitor(*states))  # type: ignore[arg-type]


def test_orphan_that_ended_had_not_taken_the_guest(orphan: subprocess.Popen[bytes], pidfd: int) -> None:
    orphan.kill()

    with pytest.raises(GuestLost, match=f"{orphan.pid} ended before it had taken the guest"):
        await_orphan(orphan.pid, pidfd, Monitor("running"))  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["inmigrate", "silent"])
def test_orphan_that_neither_runs_nor_ends_is_for_a_person(
    orphan: subprocess.Popen[bytes], pidfd: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpr_vfork, "SETTLES_S", 0.3)

    with pytest.raises(GuestStranded, match="neither runs the guest nor ends"):
        await_orphan(orphan.pid, pidfd, Monitor(state))  # type: ignore[arg-type]
