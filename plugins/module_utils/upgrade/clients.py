# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the clients of a VM's character devices connected while its process is replaced: an open serial console above all.

A command line can give a new process a socket that listens, or one that is connected, but not both. So the connections
are held open here and given to the new process through its monitor, once it runs. What the guest sends before that, and
what the old process had read after the guest stopped, is lost. PRIVATE to the collection.
"""

from __future__ import annotations

import os
import socket
from typing import Callable

from ansible_collections.vmm.live_upgrade.plugins.module_utils import syscalls
from ansible_collections.vmm.live_upgrade.plugins.module_utils.qmp import QmpClient, QmpError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.command_plan import HeldClient
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import descriptors


class ConnectedClients:
    """The connections of one VM, held open from the making of this object until ``close``."""

    def __init__(self, pid: int, clients: list[HeldClient]) -> None:
        """Duplicate the connections of ``clients`` out of process ``pid``; a client that has just left is passed over."""
        connected = _connected_sockets(pid) if clients else {}
        wanted = {client.address: client.chardev for client in clients}
        self._held = [(wanted[address], connected.pop(address)) for address in wanted if address in connected]
        for sock in connected.values():
            sock.close()

    def give(self, monitor: Callable[[], QmpClient]) -> list[str]:
        """Give every connection to the process behind ``monitor()``; return what went wrong, for warnings.

        A QEMU that came by ``vfork`` has them already. The process that had them must have ended: two would both read from them.
        """
        if not self._held:
            return []
        try:
            with monitor() as target:
                without = _without_client(target)
                wanted = [(chardev, sock) for chardev, sock in self._held if chardev in without]
                return [warning for chardev, sock in wanted for warning in _add(target, chardev, sock)]
        except QmpError as exc:
            return [f"clients of character devices are cut off: {exc}"]

    def close(self) -> None:
        """Close our own copies. Idempotent."""
        for _chardev, sock in self._held:
            sock.close()
        self._held = []


def _connected_sockets(pid: int) -> dict[str, socket.socket]:
    """Return our own copies of the sockets of ``pid`` that a client is connected to, by their own address.

    Each is asked itself: a UNIX socket belongs to the network namespace of the client, so that its process's table of
    sockets may not have it.
    """
    found: dict[str, socket.socket] = {}
    pidfd = os.pidfd_open(pid)
    try:
        for fd, link in descriptors(pid).items():
            if link.startswith("socket:"):
                try:
                    sock = socket.socket(fileno=syscalls.pidfd_getfd(pidfd, fd))
                except OSError:
                    continue  # closed meanwhile
                address = _own_address(sock)
                if address is None or address in found:
                    sock.close()
                else:
                    found[address] = sock
    finally:
        os.close(pidfd)
    return found


def _own_address(sock: socket.socket) -> str | None:
    """Return where the client of ``sock`` found it; None when it has none."""
    try:
        sock.getpeername()
        name = sock.getsockname()
    except OSError:
        return None  # it listens, or its peer has left
    if sock.family == socket.AF_UNIX:
        path = name if isinstance(name, str) else "@" + os.fsdecode(name[1:])
        return path or None
    return f"tcp:{name[1]}" if sock.family in (socket.AF_INET, socket.AF_INET6) else None


def _without_client(target: QmpClient) -> set[str]:
    """Return the character devices of a process that nobody is connected to."""
    devices = target.execute("query-chardev")
    return {str(device["label"]) for device in devices if str(device["filename"]).startswith("disconnected:")}


def _add(target: QmpClient, chardev: str, sock: socket.socket) -> list[str]:
    name = f"vmm-live-upgrade-{chardev}"
    try:
        target.execute("getfd", {"fdname": name}, descriptor=sock.fileno())
        target.execute("add_client", {"protocol": chardev, "fdname": name})
    except QmpError as exc:
        return [f"the client of the character device {chardev} is cut off: {exc}"]
    return []
