# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A QMP session as a stream of bytes, without a socket: what comes in is fed, what is to go out is taken.

Unlike ``QmpClient`` it never waits, so that one thread can hold the monitors of many VMs. PRIVATE to the collection.
"""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpError, QmpEvent

_LONGEST_LINE = 1 << 20
_CAPABILITIES, _STATUS = "capabilities", "status"


class QmpStream:
    """One session, from the greeting on."""

    def __init__(self) -> None:
        self._buffer = b""
        self._outgoing = b""
        self.version: str | None = None
        """The QEMU behind it; None until it greeted."""
        self.is_ready = False
        """Whether the negotiation is over."""
        self.status: str | None = None
        """The run state that QEMU told last."""
        self.is_asked = False
        """Whether an answer on the run state is awaited."""

    def feed(self, data: bytes) -> list[QmpEvent]:
        """Take what came in and return the events in it. Raises ``QmpError`` when it is not QMP."""
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        if len(self._buffer) > _LONGEST_LINE:
            raise QmpError("not a QMP monitor: it says more than a message can be long")
        return [event for line in lines if line.strip() for event in self._take(_message(line))]

    def ask_status(self) -> None:
        """Ask for the run state, unless that is asked already or the session is not that far."""
        if self.is_ready and not self.is_asked:
            self.is_asked = True
            self._send("query-status", _STATUS)

    def take_outgoing(self) -> bytes:
        """Return what is to be sent, once."""
        outgoing, self._outgoing = self._outgoing, b""
        return outgoing

    def _take(self, message: dict[str, Any]) -> list[QmpEvent]:
        if "event" in message:
            # Before the greeting: meant for the client before us.
            return [QmpEvent.of(message)] if self.version is not None else []
        if "QMP" in message:
            self.version = _version(message["QMP"])
            self._send("qmp_capabilities", _CAPABILITIES)
        elif self.version is None:
            raise QmpError(f"not a QMP monitor, it said {message!r:.200}")
        elif message.get("id") == _CAPABILITIES:
            if "error" in message:
                raise QmpError(f"QEMU refused the negotiation: {message['error']!r:.200}")
            self.is_ready = True
        elif message.get("id") == _STATUS:
            self.is_asked = False
            self.status = (message.get("return") or {}).get("status", self.status)
        return []

    def _send(self, command: str, identity: str) -> None:
        self._outgoing += json.dumps({"execute": command, "id": identity}).encode() + b"\n"


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as exc:
        raise QmpError(f"not a QMP monitor, it said {line!r:.200}") from exc
    if not isinstance(message, dict):
        raise QmpError(f"not a QMP message: {line!r:.200}")
    return message


def _version(greeting: dict[str, Any]) -> str:
    qemu = (greeting.get("version") or {}).get("qemu") or {}
    return ".".join(str(qemu.get(part, "?")) for part in ("major", "minor", "micro"))
