# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the watcher saw, from the file that it wrote: for the gate, and for the report. PRIVATE to the collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Event, Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.events import EXPECTED, detail, hard_reason
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.watcher_control import watch_file

ROLLOUT_ENDED = "the rollout has ended"
NO_WATCHER = "the watcher ended before the rollout did"


@dataclass
class Gap:
    """A stretch in which nothing was seen. ``end`` is null while it lasts."""

    start: str
    end: str | None
    reason: str


@dataclass
class SeenEvent:
    """An event of QEMU: when it came here, when QEMU says that it was, and why it stops a rollout, if it does."""

    at: str
    host_at: str
    name: str
    text: str
    hard: str


@dataclass
class SeenVm:
    """The watch over one VM. ``reason``: why it was not watched at all. ``more``: events of a kind that were only counted."""

    name: str
    watched: bool = False
    reason: str | None = None
    status: str | None = None
    versions: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    events: list[SeenEvent] = field(default_factory=list)
    more: dict[str, int] = field(default_factory=dict)


@dataclass
class SeenHost:
    """The watch over one host, from ``start``, when it was first connected, to ``end``, when it was left."""

    name: str
    watched: bool = False
    reason: str | None = None
    start: str | None = None
    end: str | None = None
    probes: int = 0
    gaps: list[Gap] = field(default_factory=list)
    vms: dict[str, SeenVm] = field(default_factory=dict)


@dataclass
class Watch:
    """All that was seen. ``reason``: why nothing was watched, or not until the end. ``is_over``: whether the watcher ended."""

    watched: bool = False
    reason: str | None = None
    is_over: bool = False
    hosts: dict[str, SeenHost] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data for the report, which is made when the rollout is over."""
        hosts = [{**asdict(host), "vms": [asdict(vm) for vm in host.vms.values()]} for host in self.hosts.values()]
        return {
            "watched": self.watched,
            "reason": self.reason or (NO_WATCHER if self.watched and not self.is_over else None),
            "hosts": hosts,
        }

    def hard_events(self, host: str, vm: str) -> list[SeenEvent]:
        """Return the events of a VM that stop a rollout, the first of each kind."""
        seen = self.hosts[host].vms.get(vm) if host in self.hosts else None
        first: dict[str, SeenEvent] = {}
        for event in seen.events if seen else []:
            if event.hard:
                first.setdefault(event.hard, event)
        return list(first.values())


def read_watch(journal: Path) -> Watch | None:
    """Return what was seen of the rollout with ``journal``, None where watching it was never thought of."""
    events = Journal(watch_file(journal)).events()
    return told(events) if events else None


def told(events: Sequence[Event]) -> Watch:
    """Return what ``events`` tell, in the order in which they were written down."""
    teller = _Teller()
    for event in events:
        teller.take(event)
    return teller.watch


def summary(watch: Watch, hosts: Sequence[str], vms: Sequence[tuple[str, str]]) -> str:
    """Return in a sentence how well ``hosts`` and their ``vms`` (host, name) were watched."""
    if not watch.watched:
        return f"nothing was watched: {watch.reason or NO_WATCHER}"
    seen = {
        (host, vm.name): vm
        for host in hosts
        if host in watch.hosts
        for vm in watch.hosts[host].vms.values()
        if vm.watched
    }
    connected = [watch.hosts[host] for host in hosts if host in watch.hosts and watch.hosts[host].watched]
    gaps = sum(len(host.gaps) for host in connected)
    surprises = sum(event.name not in EXPECTED for vm in seen.values() for event in vm.events)
    text = f"{len(connected)} of {_count(len(hosts), 'host')} and {len(set(vms) & set(seen))} of {_count(len(vms), 'VM')} watched"
    text += f", {_count(gaps, 'lost connection')}" if gaps else ", without a gap" if connected else ""
    text += f", {_count(surprises, 'event')} that no upgrade brings about" if surprises else ""
    return text + (f"; {watch.reason}" if watch.reason else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


class _Teller:
    """Puts the story together, record by record."""

    def __init__(self) -> None:
        self.watch = Watch()
        self._last_at = ""

    def take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if "host" in event:
            host = self.watch.hosts.setdefault(event["host"], SeenHost(event["host"]))
            if "vm" in event:
                self._of_vm(kind, host.vms.setdefault(event["vm"], SeenVm(event["vm"])), event)
            else:
                self._of_host(kind, host, event)
        elif kind == "watching":
            self._follow_another()
        elif kind == "ended":
            self.watch.is_over = True
            self.watch.reason = None if event["reason"] == ROLLOUT_ENDED else f"the watch ended: {event['reason']}"
        elif kind in ("silent", "unwatched"):
            self.watch.reason = event["reason"]
        self._last_at = event["at"]

    def _follow_another(self) -> None:
        """A watcher begins. What one before it had not left, nobody watched since."""
        self.watch.watched, self.watch.is_over, self.watch.reason = True, False, None
        for host in self.watch.hosts.values():
            if host.watched and host.end is None:
                _open(host.gaps, {"at": self._last_at, "reason": NO_WATCHER})

    def _of_host(self, kind: str, host: SeenHost, event: Mapping[str, Any]) -> None:
        if kind == "connected":
            if host.end:
                _open(host.gaps, {"at": host.end, "reason": NO_WATCHER})
            host.watched, host.reason, host.end = True, None, None
            host.start = host.start or event["at"]
            _close(host.gaps, event["at"])
        elif kind == "lost":
            if host.watched:
                _open(host.gaps, event)
            else:
                host.reason = event["reason"]
        elif kind in ("refused", "unwatched"):
            host.reason = event["reason"]
        elif kind == "probe":
            host.probes = event["probes"]
            for name, status in event["vms"].items():
                host.vms.setdefault(name, SeenVm(name)).status = status
        elif kind == "left":
            host.probes = max(host.probes, event["probes"])
            host.end = event["at"]

    @staticmethod
    def _of_vm(kind: str, vm: SeenVm, event: Mapping[str, Any]) -> None:
        if kind == "monitor" and event["state"] == "watched":
            vm.watched, vm.reason = True, None
            _close(vm.gaps, event["at"])
            if event["version"] not in vm.versions[-1:]:
                vm.versions.append(event["version"])
        elif kind == "monitor":
            if vm.watched:
                _open(vm.gaps, event)
            else:
                vm.reason = event["reason"]
        elif kind == "unwatched":
            vm.reason = event["reason"]
        elif kind == "counted":
            vm.more[event["name"]] = event["count"]
        elif kind == "qmp":
            name, data = event["name"], event["data"]
            vm.events.append(
                SeenEvent(event["at"], event["host_at"], name, detail(name, data), hard_reason(name, data))
            )


def _open(gaps: list[Gap], event: Mapping[str, Any]) -> None:
    if not gaps or gaps[-1].end is not None:
        gaps.append(Gap(event["at"], None, event["reason"]))


def _close(gaps: list[Gap], at: str) -> None:
    if gaps and gaps[-1].end is None:
        gaps[-1].end = at
