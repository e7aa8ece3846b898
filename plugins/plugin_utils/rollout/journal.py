# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of a rollout on the controller: one JSON object a line, on the disk before the play goes on.

Tasks of several hosts append at the same time, each from a process of its own. The report is made from the journal
alone, so a rollout that was killed can still be reported. PRIVATE to the collection.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

Event = dict[str, Any]

RUNS = ("begin", "resume")
"""The events with which a run of a rollout starts."""

JOURNALS = "rollouts"
"""The folder beside the report that has the journals of all rollouts."""


class Journal:
    """Append-only events in the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event of kind ``event``, stamped with the time, and return it once it is on the disk."""
        record: Event = {"event": event, "at": utc_now(), **fields}
        line = json.dumps(record, sort_keys=True).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _torn(fd):
                line = b"\n" + line
            os.write(fd, line)
            os.fsync(fd)
        except OSError as exc:
            raise AnsibleError(f"the rollout's journal {self.path} cannot be written: {exc.strerror}") from exc
        finally:
            os.close(fd)
        return record

    def begin(self) -> Event:
        """Return the first event, the plan, without reading what a large fleet has appended since."""
        try:
            with self.path.open("rb") as stream:
                line = stream.readline()
        except OSError as exc:
            raise AnsibleError(f"the rollout's journal {self.path} cannot be read: {exc.strerror}") from exc
        events = _parse([line])
        if not events or events[0].get("event") != "begin":
            raise AnsibleError(f"{self.path} is not the journal of a rollout: it does not start with its beginning")
        return events[0]

    def wave_of(self, host: str) -> int:
        """Return the index of the wave that ``host`` is in. Raises ``AnsibleError`` when it is in none."""
        for index, hosts in enumerate(self.begin()["waves"]):
            if host in hosts:
                return index
        raise AnsibleError(f"{host} is in no wave of the rollout's plan; nothing was touched on it")

    def read(self) -> list[Event]:
        """Return all whole events in order; the torn line of a writer that was killed is left out.

        So is what a run says of hosts (``run``, its process) after another one has taken the rollout over.
        """
        self.begin()
        return _of_their_run(self.events())

    def events(self) -> list[Event]:
        """Return all whole events of a file that need not be the journal of a rollout; none where there is no file."""
        try:
            return _parse(self.path.read_bytes().splitlines())
        except FileNotFoundError:
            return []


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC with milliseconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` with ``text``; a reader sees the old or the new file, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _parse(lines: list[bytes]) -> list[Event]:
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def owner_of(events: list[Event]) -> int | None:
    """Return the process whose rollout it is: that which began it, or the last to go on with it."""
    return next((event.get("owner_pid") for event in reversed(events) if event["event"] in RUNS), None)


def require_owner(events: list[Event], pid: int) -> None:
    """Raise ``AnsibleError`` when the run of process ``pid`` was followed by another: it has no say any more."""
    if owner_of(events) != pid:
        raise AnsibleError(
            f"the rollout {events[0]['rollout_id']} was taken over by a later run (process {owner_of(events)}), which goes on "
            "with it; this one ends here"
        )


def _of_their_run(events: list[Event]) -> list[Event]:
    kept, owner_pid = [], None
    for event in events:
        if event["event"] in RUNS:
            owner_pid = event.get("owner_pid")
        if event.get("run", owner_pid) == owner_pid:
            kept.append(event)
    return kept


def _torn(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
