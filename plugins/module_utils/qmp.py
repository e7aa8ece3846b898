# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A QMP client over one UNIX stream socket: commands, answers, events, each with a deadline.

Protocol: docs/interop/qmp-spec.rst of QEMU. A monitor serves one client at a time: a second one connects but is never
greeted, which is told apart here (``QmpBusyError``) from a monitor nobody serves (``QmpDeadError``).
PRIVATE to the collection.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError

_CHUNK_BYTES = 65536


class QmpError(LiveUpgradeError):
    """Anything that goes wrong between us and a monitor."""


class QmpBusyError(QmpError):
    """The socket accepts but does not greet: another client holds the monitor, or the process is stopped."""


class QmpDeadError(QmpError):
    """Nobody serves the socket, or the peer closed it."""


class QmpTimeoutError(QmpError):
    """The peer did not answer or did not send the awaited event in time."""


class QmpCommandError(QmpError):
    """QEMU refused a command.

    Attributes: ``command`` (str), ``error_class`` (str, e.g. ``GenericError``), ``description`` (str).
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.command = command
        self.error_class = error_class
        self.description = description


@dataclass(frozen=True)
class QmpEvent:
    """One asynchronous event. ``timestamp_us`` is QEMU's own wall clock when it emitted the event."""

    name: str
    data: dict[str, Any]
    timestamp_us: int

    @classmethod
    def of(cls, message: dict[str, Any]) -> QmpEvent:
        """Return the event that a message of QEMU tells of."""
        stamp = message.get("timestamp") or {}
        return cls(
            name=str(message["event"]),
            data=message.get("data") or {},
            timestamp_us=int(stamp.get("seconds", 0)) * 1_000_000 + int(stamp.get("microseconds", 0)),
        )


class QmpClient:
    """One negotiated QMP session. Not thread-safe; every call has a deadline."""

    def __init__(self, sock: socket.socket, label: str, timeout_s: float) -> None:
        """Take ownership of a connected socket. ``label`` names the peer in errors. See ``connect`` and ``attach``."""
        self._sock = sock
        self._sock.setblocking(False)
        self._label = label
        self._timeout_s = timeout_s
        self._buffer = b""
        self._events: deque[QmpEvent] = deque()
        self._next_id = 0

    @classmethod
    def connect(cls, path: str, timeout_s: float = 5.0) -> QmpClient:
        """Connect to the monitor listening on the UNIX socket ``path`` and negotiate.

        Raises ``QmpBusyError`` when no greeting arrives within ``timeout_s``, ``QmpDeadError`` when nobody serves it.
        """
        client = cls(_connect(path, timeout_s), path, timeout_s)
        try:
            client._negotiate()
        except BaseException:
            client.close()
            raise
        return client

    @classmethod
    def attach(cls, path: str, timeout_s: float = 5.0) -> QmpClient:
        """Connect to a listening socket whose monitor will be up later, without waiting for it.

        The negotiation is sent ahead: QEMU reads it once it is up, and its greeting is passed over.
        """
        client = cls(_connect(path, timeout_s), path, timeout_s)
        client._send(b'{"execute": "qmp_capabilities", "id": 0}\n', time.monotonic() + timeout_s)
        return client

    def __enter__(self) -> QmpClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._sock.close()

    def fileno(self) -> int:
        """The descriptor, for ``select``; call ``drain_events`` first: what is buffered does not wake a ``select``."""
        return self._sock.fileno()

    def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        timeout_s: float | None = None,
        descriptor: int | None = None,
    ) -> Any:
        """Run ``command`` and return QEMU's answer. ``descriptor`` goes along with it, for ``getfd`` and the like.

        Raises ``QmpCommandError`` when QEMU refuses it, ``QmpTimeoutError`` and ``QmpDeadError`` as named.
        """
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        self._next_id += 1
        request: dict[str, Any] = {"execute": command, "id": self._next_id}
        if arguments:
            request["arguments"] = arguments
        self._send(json.dumps(request).encode() + b"\n", deadline, descriptor)
        while True:
            message = self._next_message(deadline, f"an answer to {command}")
            if "event" in message:
                self._events.append(QmpEvent.of(message))
            elif message.get("id") != self._next_id:
                continue  # the late answer to a command whose caller gave up
            elif "error" in message:
                error = message["error"]
                raise QmpCommandError(command, str(error.get("class")), str(error.get("desc")))
            else:
                return message.get("return")

    def wait_event(self, names: set[str], timeout_s: float) -> QmpEvent:
        """Return the oldest unseen event whose name is in ``names``; others that came before it are dropped.

        Raises ``QmpTimeoutError`` when none comes within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            while self._events:
                event = self._events.popleft()
                if event.name in names:
                    return event
            message = self._next_message(deadline, f"event {' or '.join(sorted(names))}")
            if "event" in message:
                self._events.append(QmpEvent.of(message))

    def drain_events(self) -> list[QmpEvent]:
        """Return what has arrived so far, without waiting. Raises ``QmpDeadError`` when the peer closed."""
        while self._readable(0):
            self._fill()
        while b"\n" in self._buffer:
            message = self._next_message(0, "")
            if "event" in message:
                self._events.append(QmpEvent.of(message))
        events = list(self._events)
        self._events.clear()
        return events

    def _negotiate(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        try:
            greeting = self._next_message(deadline, "the greeting")
            while "event" in greeting:  # meant for the client before us, and sent when we had its place already
                greeting = self._next_message(deadline, "the greeting")
        except QmpTimeoutError as exc:
            raise QmpBusyError(
                f"{self._label}: connected, but not greeted within {self._timeout_s:g} s: "
                "another client holds this monitor, or the process does not respond"
            ) from exc
        if "QMP" not in greeting:
            raise QmpError(f"{self._label}: not a QMP monitor, it said {greeting!r:.200}")
        self.execute("qmp_capabilities")

    def _next_message(self, deadline: float, awaited: str) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if not self._readable(max(0.0, deadline - time.monotonic())):
                raise QmpTimeoutError(f"{self._label}: no sign of {awaited} in time")
            self._fill()
        line, _newline, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as exc:
            raise QmpError(f"{self._label}: not a QMP monitor, it said {line!r:.200}") from exc
        if not isinstance(message, dict):
            raise QmpError(f"{self._label}: not a QMP message: {line!r:.200}")
        return message

    def _readable(self, timeout_s: float) -> bool:
        return bool(select.select([self._sock], [], [], timeout_s)[0])

    def _fill(self) -> None:
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            raise self._dead(exc) from exc
        if not data:
            raise self._dead()
        self._buffer += data

    def _send(self, data: bytes, deadline: float, descriptor: int | None = None) -> None:
        while data:
            along = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            try:
                data = data[self._sock.sendmsg([data], along) :]
                descriptor = None
            except BlockingIOError:
                if not select.select([], [self._sock], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise QmpTimeoutError(f"{self._label}: does not take commands") from None
            except OSError as exc:
                raise self._dead(exc) from exc

    def _dead(self, exc: OSError | None = None) -> QmpDeadError:
        """The error for a connection that ended (``exc``: as what, if not as an end of file).

        Whether a closed connection is met as end of file, EPIPE or ECONNRESET depends on what was under way; it is one case.
        """
        if exc is None or isinstance(exc, (BrokenPipeError, ConnectionResetError)):
            return QmpDeadError(f"{self._label}: QEMU closed the connection")
        return QmpDeadError(f"{self._label}: {os.strerror(exc.errno or errno.EIO)}")


def _connect(path: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout_s)
        _connect_unix(sock, path)
    except (BlockingIOError, socket.timeout) as exc:
        sock.close()
        raise QmpBusyError(f"{path}: the queue of waiting clients is full; nobody accepts") from exc
    except OSError as exc:
        sock.close()
        raise QmpDeadError(f"{path}: {os.strerror(exc.errno or errno.EIO)}") from exc
    return sock


def _connect_unix(sock: socket.socket, path: str) -> None:
    """Connect, also where ``path`` is longer than ``sun_path`` allows (108 bytes): through the directory's descriptor."""
    if len(os.fsencode(path)) < 108:
        sock.connect(path)
        return
    directory, name = os.path.split(path)
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{directory_fd}/{name}")
    finally:
        os.close(directory_fd)
