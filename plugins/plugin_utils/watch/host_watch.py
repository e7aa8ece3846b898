# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The watch over one host: a thread with one ssh session, over which the monitors of its VMs are watched.

PRIVATE to the collection.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.backoff import Backoff
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.monitor_watch import MonitorWatch
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.session import (
    Session,
    SessionError,
    SessionRefused,
)
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.ssh_settings import SshSettings

PROBE_S = 10.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.5, 30.0

Say = Callable[..., Any]


class HostWatch:
    """Begins with ``start``, ends with ``stop``. The methods may be called by any thread."""

    def __init__(self, host: str, settings: SshSettings, say: Say) -> None:
        self.host = host
        self._settings = settings
        self._monitors: dict[str, MonitorWatch] = {}
        self._wanted: dict[str, str] = {}
        self._lock = threading.Lock()
        self._is_connected = False
        self._is_new = True
        self._looks: list[threading.Event] = []
        self._lookers: list[threading.Event] = []
        self._stopping = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._probes = 0
        self._seen: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, name=f"watch {host}", daemon=True)

        def say_of_host(event: str, **fields: Any) -> None:
            say(event, host=host, **fields)

        self._say = say_of_host

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, monitors: Mapping[str, str]) -> None:
        """Watch VMs, too: name → path of the monitor's socket."""
        with self._lock:
            self._wanted.update(monitors)
        os.eventfd_write(self._wake, 1)

    def look(self) -> threading.Event:
        """Ask host and VMs how they are, now, and return what is set when they answered or cannot."""
        done = threading.Event()
        with self._lock:
            if self._is_connected or self._is_new:
                self._looks.append(done)
            else:
                done.set()
        os.eventfd_write(self._wake, 1)
        return done

    def stop(self) -> None:
        """Have it end; see ``join``."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)

    def join(self, timeout_s: float) -> bool:
        """Wait for its end, return whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Free what it held, once it has ended."""
        os.close(self._wake)

    def _run(self) -> None:
        backoff = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        told = ""
        try:
            while not self._stopping.is_set():
                try:
                    session = Session(self._settings)
                except SessionError as exc:
                    reason = str(exc)
                else:
                    told = ""
                    backoff.reset()
                    reason = self._watch(session)
                    if self._stopping.is_set():
                        break
                if reason != told:
                    told = reason
                    self._say("lost", reason=reason)
                self._disappoint_lookers()
                # Nothing tells that a host can be reached again; ``stop`` ends the wait.
                self._stopping.wait(backoff.pause_s())
        except SessionRefused as exc:
            self._say("refused", reason=str(exc))
        except Exception as exc:  # a thread has no caller: that it ended, and why, belongs into the record
            self._say("lost", reason=f"the watcher failed: {type(exc).__name__}: {exc}")
        finally:
            for monitor in self._monitors.values():
                monitor.tell_counts()
            self._say("left", probes=self._probes)
            self._disappoint_lookers()

    def _watch(self, session: Session) -> str:
        """Watch over ``session`` until it breaks, and return how, or until it is to end."""
        self._say("connected")
        with self._lock:
            self._is_connected = True
        try:
            next_probe = 0.0
            while not self._stopping.is_set():
                self._adopt()
                if self._take_looks() or time.monotonic() >= next_probe:
                    self._probe(session)
                    next_probe = time.monotonic() + PROBE_S
                for monitor in self._monitors.values():
                    monitor.tick(session)
                self._await_input(session, next_probe)
                self._conclude_probe()
            return ""
        except SessionError as exc:
            return str(exc)
        finally:
            for monitor in self._monitors.values():
                monitor.drop()
            session.close()
            self._disappoint_lookers()

    def _adopt(self) -> None:
        with self._lock:
            wanted, self._wanted = self._wanted, {}
        for vm, path in wanted.items():
            if vm not in self._monitors:
                self._monitors[vm] = MonitorWatch(vm, path, self._say)

    def _probe(self, session: Session) -> None:
        session.check()
        self._probes += 1
        for monitor in self._monitors.values():
            monitor.ask()

    def _await_input(self, session: Session, until_s: float) -> None:
        """Wait for something to read, somebody to ask, or the time to do something unasked. Raises ``SessionError``."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        monitors = {m.channel.fileno(): m for m in self._monitors.values() if m.channel is not None}
        for fd in monitors:
            poll.register(fd, select.POLLIN)
        until_s = min([until_s, *(monitor.next_s() for monitor in self._monitors.values())])
        for fd, _mask in poll.poll(max(0.0, until_s - time.monotonic()) * 1000 + 1):
            if fd == self._wake:
                os.eventfd_read(self._wake)
            elif not monitors[fd].read():
                session.check()  # closed by whom?
                monitors[fd].lose("QEMU closed the connection, as it does when a VM goes over to its new process")

    def _conclude_probe(self) -> None:
        """Once all have answered: keep what is new, and tell those who asked."""
        if not all(monitor.is_settled for monitor in self._monitors.values()):
            return
        seen = {name: monitor.status for name, monitor in self._monitors.items()}
        if seen != self._seen:
            self._seen = seen
            self._say("probe", vms=seen, probes=self._probes)
        self._release_lookers()

    def _take_looks(self) -> bool:
        """Whether somebody asks to look, who then waits for the next answers."""
        with self._lock:
            looks, self._looks = self._looks, []
        self._lookers += looks
        return bool(looks)

    def _disappoint_lookers(self) -> None:
        """Nobody is to wait for a host that cannot be reached, unless it was not tried yet."""
        with self._lock:
            self._is_connected = self._is_new = False
        self._take_looks()
        self._release_lookers()

    def _release_lookers(self) -> None:
        for look in self._lookers:
            look.set()
        self._lookers = []
