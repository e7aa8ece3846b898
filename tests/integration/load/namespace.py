# SPDX-License-Identifier: GPL-3.0-or-later
"""A network namespace with one tap in it, and sockets inside it for a process that stays outside."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


class TapNamespace:
    """Exists from its making until ``close``. Needs root."""

    TAP = "tap0"

    def __init__(self, name: str, address: str) -> None:
        """Make the namespace ``name`` with a tap whose address, ``A.B.C.D``, reaches its /24."""
        self._name = name
        _run("ip", "netns", "add", name)
        try:
            for command in (
                f"tuntap add dev {self.TAP} mode tap vnet_hdr",
                f"addr add {address}/24 dev {self.TAP}",
                f"link set {self.TAP} up",
            ):
                _run("ip", "-n", name, *command.split())
        except BaseException:
            self.close()
            raise

    @property
    def wrapper(self) -> list[str]:
        """The words that execute a command inside, in place of themselves."""
        return ["nsenter", f"--net=/run/netns/{self._name}"]

    def connect(self, address: tuple[str, int], timeout_s: float) -> socket.socket:
        """Return a TCP connection made inside; it stays inside for all its life."""
        return self._inside(lambda: socket.create_connection(address, timeout_s))

    def close(self) -> None:
        """Remove it; the tap goes with the last process inside. Idempotent."""
        if os.path.exists(f"/run/netns/{self._name}"):
            _run("ip", "netns", "del", self._name)

    def _inside(self, action: Callable[[], _T]) -> _T:
        """Do ``action`` in a thread that has entered: a namespace is a thread's, and this one ends with it."""
        done: list[_T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                with open(f"/run/netns/{self._name}") as namespace:
                    if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                done.append(action())
            except BaseException as exc:
                failed.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return done[0]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
