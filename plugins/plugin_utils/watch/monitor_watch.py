# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The monitor of one VM, watched over a channel of its host's session. PRIVATE to the collection.

It never waits: whoever has the session calls it when there is something to read, or when time has passed.
"""

from __future__ import annotations

import datetime
import socket
import time
from collections import Counter
from typing import Any, Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpError, QmpEvent
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.backoff import Backoff
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.events import KEPT
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.qmp_stream import QmpStream
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.session import Channel, Session, SocketRefused

GREETING_S = 5.0
ANSWER_S = 10.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.2, 5.0
_HELD_RETRY_S = 15.0
_CHUNK = 65536
_KEPT_OF_A_KIND = 50
"""A disk that fails tells so at each request. More events of a kind are counted, not kept."""

Say = Callable[..., Any]


class MonitorWatch:
    """The watch over VM ``vm``, whose monitor is the socket ``path`` of its host."""

    def __init__(self, vm: str, path: str, say: Say) -> None:
        """``say``: is told each thing that is to be kept, as the name of a record and its fields."""
        self.vm = vm
        self.channel: Channel | None = None
        self._path = path
        self._say = say
        self._stream = QmpStream()
        self._backoff = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        self._retry_at = 0.0
        self._deadline: float | None = None
        self._told_lost = ""
        self._counts: Counter[str] = Counter()

    @property
    def status(self) -> str | None:
        """The run state that was told last, None while nobody is there to tell."""
        return self._stream.status if self.channel else None

    @property
    def is_settled(self) -> bool:
        """Whether QEMU does not owe an answer, or nobody was greeted who could have asked."""
        return not self._stream.is_asked

    def next_s(self) -> float:
        """Return when it wants to be called again, by the monotonic clock, though nothing came in."""
        return self._retry_at if self.channel is None else self._deadline or float("inf")

    def tick(self, session: Session) -> None:
        """Connect where it is time, give up what did not answer. Raises ``SessionError``."""
        now = time.monotonic()
        if self.channel is None and now >= self._retry_at:
            self._open(session)
        elif self.channel is not None and self._deadline is not None and now >= self._deadline:
            if self._stream.version is None:
                # Nobody is served before who came first leaves. To wait on is to be the next, and to hinder others.
                self.lose("another client holds the monitor, or QEMU does not respond", _HELD_RETRY_S)
            else:
                self.lose(f"QEMU does not answer within {ANSWER_S:g} s")

    def ask(self) -> None:
        """Ask QEMU for its run state. All events from before the answer have come in when ``is_settled`` again."""
        self._stream.ask_status()
        if self._stream.is_asked and self._deadline is None:
            self._deadline = time.monotonic() + ANSWER_S
        self._flush()

    def read(self) -> bool:
        """Take what came in. Return False when the channel was closed; then ``lose`` it, knowing why."""
        while self.channel is not None:
            try:
                data = self.channel.recv(_CHUNK)
            except socket.timeout:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._take(data)
        return True

    def drop(self) -> None:
        """Let go of the monitor, for the session it came by is over. It is connected again with the next one."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self._stream = QmpStream()
        self._deadline = None
        self._retry_at = 0.0
        self._backoff.reset()

    def lose(self, reason: str, retry_s: float | None = None) -> None:
        """Close the channel and try again later, after ``retry_s`` or, by default, pauses that grow."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self._stream = QmpStream()
        self._deadline = None
        self._retry_at = time.monotonic() + (self._backoff.pause_s() if retry_s is None else retry_s)
        if reason != self._told_lost:
            self._told_lost = reason
            self._say("monitor", vm=self.vm, state="lost", reason=reason)

    def tell_counts(self) -> None:
        """Tell how often those events came of which not each was kept."""
        for name, count in self._counts.items():
            if count > _KEPT_OF_A_KIND:
                self._say("counted", vm=self.vm, name=name, count=count)

    def _open(self, session: Session) -> None:
        try:
            self.channel = session.open_socket(self._path)
        except SocketRefused as exc:
            self.lose(str(exc))
            return
        self._stream = QmpStream()
        self._deadline = time.monotonic() + GREETING_S

    def _take(self, data: bytes) -> None:
        was_ready = self._stream.is_ready
        try:
            events = self._stream.feed(data)
        except QmpError as exc:
            self.lose(str(exc))
            return
        for event in events:
            self._keep(event)
        if self._stream.is_ready and not was_ready:
            self._say("monitor", vm=self.vm, state="watched", version=self._stream.version, path=self._path)
            self._told_lost = ""
            self._backoff.reset()
            self._deadline = None
            self.ask()
        elif self._stream.is_ready and not self._stream.is_asked:
            self._deadline = None
        self._flush()

    def _keep(self, event: QmpEvent) -> None:
        if event.name not in KEPT:
            return
        self._counts[event.name] += 1
        if self._counts[event.name] <= _KEPT_OF_A_KIND:
            host_at = datetime.datetime.fromtimestamp(event.timestamp_us / 1e6, datetime.timezone.utc)
            told = {"name": event.name, "data": event.data, "host_at": host_at.isoformat(timespec="microseconds")}
            self._say("qmp", vm=self.vm, **told)

    def _flush(self) -> None:
        outgoing = self._stream.take_outgoing()
        while outgoing and self.channel is not None:
            try:
                outgoing = outgoing[self.channel.send(outgoing) :]
            except OSError as exc:  # a time-out, too: who does not take a hundred bytes is not well
                self.lose(f"QEMU takes no commands: {exc or type(exc).__name__}")
