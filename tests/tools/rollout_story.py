# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of a made-up rollout: 40 hosts, 200 VMs moved or meant to be, a wave that failed and was rolled back.

Page, progress view and their tests need a fleet that no test machine has room for. What happens in it is written down here; the
report is made of it by the code that makes all of them.
"""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Sequence
from typing import Any

from rollout_story_gate import BUDGETS_MS, SERIAL, judged

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.records import host_outcome, vm_records

OLD, NEW = "qemu-10.2.2-4d7f09c1b6e2a835", "qemu-11.1.1-9be31f70c2d845a6"
OLD_KVM, NEW_KVM = "kvm-6.12.107-1c9f2ab07de4358b", "kvm-6.12.118-e07b5d2f91c6a834"
WAVES = (2, 6, 12, 12, 8)
VMS = 200
_BAD_WAVE = 3
_HOSTS_WITH_VMS = sum(WAVES[: _BAD_WAVE + 1])
_START = datetime.datetime(2026, 11, 24, 21, 0, 4, 118000, tzinfo=datetime.timezone.utc)
_ROLES = (
    ("realtime", "voip", 6.1, 0.22),
    ("standard", "web", 11.4, 0.30),
    ("standard", "db", 15.2, 0.28),
    ("batch", "ci", 34.0, 0.45),
)


def journal() -> list[Event]:
    """Return all events, the same each time."""
    return _Story().events


class _Story:
    def __init__(self) -> None:
        self._random = random.Random(7)  # noqa: S311 - figures for a picture
        self._now = _START
        self.events: list[Event] = []
        names = [f"hv-{rack}{number:02d}" for number in range(1, 11) for rack in "abcd"]
        self._waves = [names[sum(WAVES[:index]) : sum(WAVES[: index + 1])] for index in range(len(WAVES))]
        self._vm_number = 0
        self._tell_all()

    def _tell_all(self) -> None:
        self._tell(
            "begin",
            rollout_id="upgrade-20261124T210004Z-5c1e9a",
            kind="upgrade",
            build_id=NEW,
            kvm_build_id=NEW_KVM,
            plan=False,
            waves=self._waves,
            downtime_budget_ms=BUDGETS_MS["standard"],
            report="/srv/rollouts/upgrade.json",
            owner_pid=1,
        )
        for wave in range(_BAD_WAVE + 1):
            records = self._turns(wave)
            self._wait(20)  # the second look at their health
            self._tell("gate", wave=wave, gate=judged(self._waves[wave], records))
            if wave == _BAD_WAVE:
                self._roll_back(records)
            else:
                self._settle(wave)
        self._wait(2)
        self._tell("finish")

    def _turns(self, wave: int) -> list[Event]:
        hosts = self._waves[wave]
        begun = self._now
        timed: list[tuple[datetime.datetime, str, dict[str, Any]]] = []
        records = []
        for index, host in enumerate(hosts):
            self._now = begun + datetime.timedelta(seconds=0.7 * index)
            start = self._now
            self._tell("started", host=host, wave=wave)
            vms = [
                self._vm(wave, index) for _ in range(VMS // _HOSTS_WITH_VMS + (self._host_number(wave, index) % 4 == 0))
            ]
            ended = start + datetime.timedelta(seconds=9 + self._random.random() * 3)
            for vm in vms:
                ended += datetime.timedelta(seconds=3.5 + self._random.random() * 4)
                told = {
                    "host": host,
                    "wave": wave,
                    "name": vm["name"],
                    "outcome": vm["outcome"],
                    "downtime_ms": vm["downtime_ms"],
                }
                timed.append((ended, "vm", told))
            ended += datetime.timedelta(seconds=12)
            records.append(self._record(host, wave, vms))
            timed.append((ended, "host", records[-1]))
        for at, event, fields in sorted(timed, key=lambda entry: entry[0]):
            self._now = at
            self._tell(event, **fields)
        return records

    def _host_number(self, wave: int, index: int) -> int:
        return sum(WAVES[:wave]) + index

    def _vm(self, wave: int, index: int) -> dict[str, Any]:
        vm_class, role, middle_ms, spread = _ROLES[self._vm_number % len(_ROLES)]
        self._vm_number += 1
        pause_ms = middle_ms * math.exp(self._random.gauss(0, spread))
        pause_ms = min(pause_ms, BUDGETS_MS[vm_class] * 0.85)
        slow_host = wave == _BAD_WAVE and index in (4, 5, 9)
        if slow_host:  # what the story is about: these hosts have the cause that the canary had not
            pause_ms *= 3.1
        taken_back = wave == _BAD_WAVE and index == 5 and role == "db"
        moved = not taken_back
        return {
            "name": f"{role}-{self._vm_number:03d}",
            "outcome": "upgraded" if moved else "rolled_back",
            "mechanism": "cpr-transfer" if self._vm_number % 23 == 0 else "vfork",
            "reason": "the best that both can do",
            "downtime_ms": round(pause_ms if moved else 200.4, 3),
            "downtime_source": "qmp-events" if self._vm_number % 7 == 0 else "guest-ram-word",
            "pause_budget_ms": BUDGETS_MS[vm_class],
            "vm_class": vm_class,
            "total_ms": round(pause_ms * 9 + 400, 1),
            "extra_memory_mib": 14.5,
            "cpu_s": 0.6,
            "old_build_id": OLD,
            "new_build_id": NEW if moved else OLD,
            "kvm_build_id_before": OLD_KVM,
            "kvm_build_id": NEW_KVM if moved else OLD_KVM,
            "error": (
                None
                if moved
                else "the new process had not loaded the guest within its budget of 200 ms; it was killed, the old one runs on"
            ),
        }

    def _record(self, host: str, wave: int, vms: Sequence[dict[str, Any]]) -> dict[str, Any]:
        sick = vms[0] if wave == _BAD_WAVE and host == self._waves[wave][9] else None
        problem = {"check": "serial", "message": SERIAL.partition(": ")[2], "subject": ""}
        after = {
            "vms": [
                {
                    "name": vm["name"],
                    "problems": [problem] if vm is sick else [],
                    "regressions": [problem] if vm is sick else [],
                }
                for vm in vms
            ]
        }
        before = {"vms": [{"name": vm["name"], "problems": []} for vm in vms]}
        records = vm_records({}, before, {"vms": vms}, after)
        bad = any(vm["outcome"] != "upgraded" for vm in vms)
        outcome = host_outcome(records, unreachable=False, failed=bad)
        return {
            "host": host,
            "wave": wave,
            "outcome": outcome,
            "reason": next((vm["error"] for vm in vms if vm["error"]), None),
            "vms": records,
            "previous_default": OLD,
            "default_changed": not bad,
            "kvm": _cores(loaded=[NEW_KVM]),
        }

    def _roll_back(self, records: Sequence[Event]) -> None:
        begun = self._now
        ends = []
        for record in records:
            vms = [
                {
                    **{
                        key: vm[key]
                        for key in ("name", "mechanism", "reason", "vm_class", "total_ms", "cpu_s", "extra_memory_mib")
                    },
                    "outcome": "upgraded",
                    "downtime_ms": round(7 + self._random.random() * 14, 3),
                    "downtime_source": "guest-ram-word",
                    "pause_budget_ms": max(vm["pause_budget_ms"], 1000),
                    "old_build_id": NEW,
                    "new_build_id": OLD,
                    "kvm_build_id_before": NEW_KVM,
                    "kvm_build_id": OLD_KVM,
                    "error": None,
                }
                for vm in record["vms"]
                if vm["outcome"] == "upgraded"
            ]
            end = begun + datetime.timedelta(seconds=6 + 1.7 * len(vms) + self._random.random() * 5)
            ends.append(
                (
                    end,
                    {
                        **record,
                        "outcome": "ok",
                        "reason": None,
                        "vms": vm_records({}, {}, {"vms": vms}, {}),
                        "kvm": _cores(unloaded=[NEW_KVM]),
                    },
                )
            )
        for end, fields in sorted(ends, key=lambda entry: entry[0]):
            self._now = end
            self._tell("rollback", **fields)

    def _settle(self, wave: int) -> None:
        for host in self._waves[wave]:
            self._wait(0.4)
            kept = [{"core": OLD_KVM, "reason": "in use by legacy-erp"}] if host in ("hv-c02", "hv-a04") else []
            done = _cores(default=NEW_KVM, unloaded=[] if kept else [OLD_KVM], kept=kept)
            self._tell("settled", host=host, wave=wave, outcome="ok", reason=None, vms=[], kvm=done)

    def _wait(self, seconds: float) -> None:
        self._now += datetime.timedelta(seconds=seconds)

    def _tell(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, "at": self._now.isoformat(timespec="milliseconds"), **fields})


def _cores(**done: Any) -> dict[str, Any]:
    kvm: dict[str, Any] = {"loaded": [], "default": None, "previous_default": None, "unloaded": [], "kept": [], **done}
    return {**kvm, "previous_default": OLD_KVM if kvm["default"] else None}
