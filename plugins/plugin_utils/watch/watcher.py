# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The watcher: a process beside a rollout that holds a session per host and writes down what it sees.

It serves the tasks of the rollout over a listening socket, one request a connection, each a JSON object a line with an answer
of the same kind, and ends with the process of the rollout, however that ends. ``watcher_control.py`` is the other side.
PRIVATE to the collection.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.rollout.journal import Journal
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.host_watch import HostWatch
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.ssh_settings import SshSettings
from ansible_collections.vmm.live_upgrade.plugins.plugin_utils.watch.told import ROLLOUT_ENDED

LOOK_S = 12.0
_REQUEST_S = 5.0
_END_S = 8.0
_LONGEST_REQUEST = 1 << 22


def main() -> None:
    """Entry point. Numbers of the listening socket and of a pidfd, the rollout's; the file to write to; the socket's path."""
    listener_fd, owner_fd, log, address = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    # One that is there and broken is to be told now, and not host by host.
    importlib.import_module("paramiko")
    watcher = Watcher(Journal(log))
    _allow_descriptors()
    own = address.stat()
    try:
        with socket.socket(fileno=listener_fd) as listener:
            watcher.serve(listener, owner_fd)
    finally:
        # By now a run that goes on with the rollout may have one of its own there.
        with suppress(FileNotFoundError):
            if os.path.samestat(own, address.stat()):
                address.unlink()
    # paramiko's threads are not waited for: they may wait for a host that does not answer.
    os._exit(0)


class Watcher:
    """Holds the hosts that are watched."""

    def __init__(self, log: Journal) -> None:
        """``log``: where everything is written down."""
        self._log = log
        self._hosts: dict[str, HostWatch] = {}
        self._is_over = False

    def serve(self, listener: socket.socket, owner_fd: int) -> None:
        """Answer requests until one is to end, or the process behind the pidfd ``owner_fd`` has."""
        term, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGTERM, lambda *_args: None)
        self._log.append("watching", pid=os.getpid())
        try:
            while not self._is_over:
                ready, _none, _none = select.select([listener.fileno(), owner_fd, term], [], [])
                if owner_fd in ready:
                    self._end("the rollout's process has ended")
                elif term in ready:
                    self._end("it was told to end by a signal")
                else:
                    self._serve_one(listener)
        except BaseException as exc:
            self._end(f"it failed: {type(exc).__name__}: {exc}")
            raise

    def _end(self, reason: str) -> None:
        self._is_over = True
        self._leave(list(self._hosts))
        self._log.append("ended", reason=reason)

    def _serve_one(self, listener: socket.socket) -> None:
        """One that comes and says nothing sensible must not end the watch."""
        client, _address = listener.accept()
        with client, suppress(OSError):
            client.settimeout(_REQUEST_S)
            try:
                answer = self._answer(_request(client))
            except (ValueError, TypeError, KeyError) as exc:
                answer = {"error": f"{type(exc).__name__}: {exc}"}
            client.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        do, hosts = request["do"], request.get("hosts", [])
        if do == "watch":
            self._watch(request["host"], request["ssh"], request["monitors"])
        elif do == "look":
            self._look(hosts)
        elif do == "leave":
            self._leave(hosts)
        elif do == "end":
            self._end(ROLLOUT_ENDED)  # before the answer: who gets it reads what was written down
        elif do != "hello":
            raise ValueError(f"nobody knows how to {do!r}")
        return {"pid": os.getpid()}

    def _watch(self, name: str, ssh: dict[str, Any] | None, monitors: dict[str, str]) -> None:
        host = self._hosts.get(name)
        if host is None and ssh:
            host = self._hosts[name] = HostWatch(name, SshSettings(**ssh), self._log.append)
            host.start()
        if host is not None:
            host.add(monitors)

    def _look(self, names: list[str]) -> None:
        """Have every host look now, and wait for what they see, though not for one that does not answer."""
        looks = [self._hosts[name].look() for name in names if name in self._hosts]
        deadline = time.monotonic() + LOOK_S
        for look in looks:
            look.wait(max(0.0, deadline - time.monotonic()))

    def _leave(self, names: list[str]) -> None:
        hosts = [self._hosts.pop(name) for name in names if name in self._hosts]
        for host in hosts:
            host.stop()
        deadline = time.monotonic() + _END_S
        for host in hosts:
            if host.join(max(0.0, deadline - time.monotonic())):
                host.close()


def _request(client: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        chunk = client.recv(65536)
        if not chunk or len(data) > _LONGEST_REQUEST:
            raise ValueError("the request is cut off, or too long")
        data += chunk
    request = json.loads(data)
    if not isinstance(request, dict):
        raise TypeError("a request is an object")
    return request


def _allow_descriptors() -> None:
    """A session takes some descriptors for each host and VM."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
