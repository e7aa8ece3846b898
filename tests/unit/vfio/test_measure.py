# SPDX-License-Identifier: GPL-3.0-or-later
"""What a look from outside takes for a device that works, and for a guest that lives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from host import measure
from host.measure import LOST_S, PROOF, Measure
from host.status import Counts
from host.vm import Vm
from vfiolab.devices import BY_NAME

NVME, EDU = BY_NAME["nvme"], BY_NAME["edu"]
NOT_LONG_S = 10.0


class Guest:
    """Ticks ten times a second, and does so many I/Os, until ``stops_s``; ``silent`` devices of it do none. Has a clock."""

    def __init__(self, stops_s: float, silent: tuple[str, ...] = ()) -> None:
        self.now_s = 0.0
        self.spec = SimpleNamespace(devices=(NVME, EDU))
        self.status = self
        self.pid = 4711
        self._stops_s = stops_s
        self._silent = [BY_NAME[name].slot for name in silent]

    def ticks(self) -> int:
        return int(10 * min(self.now_s, self._stops_s))

    def counts(self, slot: int) -> Counts:
        return Counts(0 if slot in self._silent else self.ticks(), 0, 0, 0, 0)

    def complaints(self) -> int:
        return 0

    def gaps_ms(self) -> tuple[float, list[float]]:
        return 0.0, [0.0] * 16

    def pinned_kib(self) -> int:
        return 1024

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def looked_at(monkeypatch: pytest.MonkeyPatch, guest: Guest, lives: bool = True) -> dict[str, Any]:
    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: guest.now_s, sleep=guest.sleep))
    monkeypatch.setattr(measure, "alive", lambda _pid: lives)
    monkeypatch.setattr(measure, "maps", lambda: (0, 0))
    monkeypatch.setattr(measure, "host_complaints", lambda: 7)
    return Measure(cast(Vm, guest)).finish()


def test_devices_that_go_on_are_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(stops_s=1000.0)
    facts = looked_at(monkeypatch, guest)
    assert facts["vm_alive"] and [told["works"] for told in facts["devices"].values()] == [True, True]
    assert (facts["complaints"], facts["host_complaints"]) == (0, 0)
    assert facts["devices"]["nvme"]["ios"] >= PROOF and guest.now_s < NOT_LONG_S


def test_a_device_that_is_silent_does_not_work_though_its_guest_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = looked_at(monkeypatch, Guest(stops_s=1000.0, silent=("edu",)))
    assert facts["vm_alive"] and {name: told["works"] for name, told in facts["devices"].items()} == {
        "nvme": True,
        "edu": False,
    }


@pytest.mark.parametrize("stops_s", [0.0, 40.0])
def test_a_guest_that_stops_for_good_is_lost_also_one_that_ran_on_for_a_while(
    monkeypatch: pytest.MonkeyPatch, stops_s: float
) -> None:
    """One whose driver waits for an interrupt that is lost stops at the next access of its device, which comes later."""
    guest = Guest(stops_s, silent=("edu",))
    assert not looked_at(monkeypatch, guest)["vm_alive"]
    assert stops_s + LOST_S <= guest.now_s < stops_s + LOST_S + NOT_LONG_S


def test_a_process_that_has_ended_is_a_lost_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(stops_s=1000.0)
    assert not looked_at(monkeypatch, guest, lives=False)["vm_alive"]
    assert guest.now_s < NOT_LONG_S
