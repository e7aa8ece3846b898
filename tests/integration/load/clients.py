# SPDX-License-Identifier: GPL-3.0-or-later
"""What talks to a loaded guest from outside and notices every byte that is lost, repeated or changed."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from pathlib import Path

_BLOCK_BYTES = 4096
_AHEAD_BLOCKS = 8
_TIMEOUT_S = 60.0


class EchoStream:
    """One TCP connection to the guest's echo server, with a stream that never repeats in flight on it."""

    def __init__(self, connection: socket.socket) -> None:
        """Begin to send and to compare, in two threads of its own."""
        connection.settimeout(_TIMEOUT_S)
        self._connection = connection
        self._sent = self._compared = 0
        self._room = threading.Condition()
        self._failure: str | None = None
        self._stopping = False
        self.name = connection.getsockname()
        self._threads = [threading.Thread(target=self._guard, args=(work,)) for work in (self._send, self._compare)]
        for thread in self._threads:
            thread.start()

    @property
    def bytes_compared(self) -> int:
        """How many bytes came back as they were sent."""
        return self._compared * _BLOCK_BYTES

    def wait_more(self, blocks: int = 20) -> None:
        """Return when the stream has got that much further. Raises ``AssertionError`` when it has failed."""
        first, deadline = self._compared, time.monotonic() + _TIMEOUT_S
        while self._compared < first + blocks:
            assert self._failure is None, f"the TCP stream broke after {self.bytes_compared} bytes: {self._failure}"
            assert time.monotonic() < deadline, f"the TCP stream stands still after {self.bytes_compared} bytes"
            time.sleep(0.01)

    def close(self) -> None:
        """End the stream in order: what was sent still comes back, and then the end."""
        self._stopping = True
        for thread in self._threads:
            thread.join()
        self._connection.close()
        assert self._failure is None, f"the TCP stream broke after {self.bytes_compared} bytes: {self._failure}"

    def _guard(self, work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except (OSError, AssertionError) as exc:
            self._failure = self._failure or f"{type(exc).__name__}: {exc}"
            with self._room:
                self._room.notify_all()

    def _send(self) -> None:
        while not self._stopping and self._failure is None:
            self._connection.sendall(_block(self._sent))
            with self._room:
                self._sent += 1
                self._room.wait_for(lambda: self._sent - self._compared < _AHEAD_BLOCKS or self._failure)
        self._connection.shutdown(socket.SHUT_WR)

    def _compare(self) -> None:
        while True:
            got = self._receive(_BLOCK_BYTES)
            if not got:
                assert self._stopping and self._compared == self._sent, "the guest closed the connection"
                return
            assert got == _block(self._compared), f"block {self._compared} came back changed"
            with self._room:
                self._compared += 1
                self._room.notify_all()

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._connection.recv(size - len(data))
            if not more:
                assert not data, "the stream ends in the middle of a block"
                break
            data += more
        return data


class Console:
    """One client of a serial line on a UNIX socket: it exchanges lines and notes what the guest numbers."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises ``OSError``."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.connect(str(path))
        self._buffer = b""
        self._line = 0
        self.ticks: list[int] = []

    def exchange(self) -> None:
        """Send a line of its own and wait for the guest's answer to it, on this same connection."""
        self._line += 1
        text = f"line {self._line} {hashlib.sha256(str(self._line).encode()).hexdigest()[:16]}"
        self._socket.sendall(f"{text}\n".encode())
        # What comes before on the line is the rest of one whose end was lost.
        while not (line := self._next()).endswith(f"echo {text}"):
            self._note(line)

    def wait_tick(self, more: int = 3) -> None:
        """Read on until the guest has numbered ``more`` lines from now."""
        wanted = len(self.ticks) + more
        while len(self.ticks) < wanted:
            self._note(self._next())

    def missing(self) -> list[int]:
        """Return the numbers that should have come between the first and the last, and did not.

        Raises ``AssertionError`` when one came twice or too early.
        """
        assert self.ticks == sorted(set(self.ticks)), f"lines were repeated: {self.ticks}"
        return sorted(set(range(self.ticks[0], self.ticks[-1] + 1)) - set(self.ticks))

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def _note(self, line: str) -> None:
        match = re.search(r"tick (\d+)$", line)
        if match:
            self.ticks.append(int(match[1]))

    def _next(self) -> str:
        while b"\n" not in self._buffer:
            more = self._socket.recv(4096)
            assert more, "the console's connection was closed"
            self._buffer += more
        line, _newline, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace").strip("\r")


def _block(number: int) -> bytes:
    """The stream's bytes, one block: none is like another."""
    return hashlib.shake_128(number.to_bytes(8, "little")).digest(_BLOCK_BYTES)
