# Copyright: (c) 2026, vmm.live_upgrade contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which descriptors of the old process are the sockets, taps and files that the new one has to be given.

A new process that binds a UNIX socket unlinks its path first, and a second one cannot open a tap in use: both have to be
handed over open. They are found by what the kernel says of them, not by what the command line said once.
PRIVATE to the collection.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmm.live_upgrade.plugins.module_utils.errors import LiveUpgradeError
from ansible_collections.vmm.live_upgrade.plugins.module_utils.vm.process import descriptors, tap_interfaces

_UNIX_LISTENS = "00010000"  # the flag SO_ACCEPTCON in /proc/net/unix
_TCP_LISTENS = "0A"
_VHOST_NET = "/dev/vhost-net"


@dataclass(frozen=True)
class Listener:
    """One listening socket: ``address`` is a path (abstract ones begin with ``@``), or ``tcp:PORT``."""

    fd: int
    address: str


class HeldDescriptors:
    """What one process holds open, read once."""

    def __init__(self, pid: int) -> None:
        """Raises ``LiveUpgradeError`` when ``pid`` has gone."""
        try:
            self._links = descriptors(pid)
            self._taps = tap_interfaces(pid, self._links)
            self.listeners = list(_listeners(pid, self._links))
        except OSError as exc:
            raise LiveUpgradeError(f"cannot read the descriptors of process {pid}: {exc.strerror}") from exc

    def is_open(self, fd: int) -> bool:
        """Say whether the process has a descriptor of this number."""
        return fd in self._links

    def address_of(self, fd: int) -> str | None:
        """Return where ``fd`` listens; None when it is not a listening socket."""
        return next((listener.address for listener in self.listeners if listener.fd == fd), None)

    def listening_on(self, address: str) -> int | None:
        """Return the descriptor that listens on ``address``; None when there is none, or more than one."""
        found = [listener.fd for listener in self.listeners if listener.address == address]
        return found[0] if len(found) == 1 else None

    def interface_of(self, fd: int) -> str | None:
        """Return the tap behind ``fd``; None when it is none."""
        return self._taps.get(fd)

    def queues_of(self, interface: str) -> list[int]:
        """Return the descriptors of a tap in the order of its queues."""
        return sorted(fd for fd, name in self._taps.items() if name == interface)

    def interfaces(self) -> set[str]:
        """Return the names of all taps held."""
        return set(self._taps.values())

    def vhost_net_count(self) -> int:
        """Return how many vhost-net back ends the process has open: one for each queue of a NIC that uses them."""
        return sum(link == _VHOST_NET for link in self._links.values())


def tcp_address(port: str) -> str | None:
    """Return how a TCP ``port``, a number or a service's name, is called in ``Listener.address``."""
    try:
        return f"tcp:{int(port) if port.isdigit() else socket.getservbyname(port, 'tcp')}"
    except OSError:
        return None


def _listeners(pid: int, links: dict[int, str]) -> Iterable[Listener]:
    by_inode = {**_unix_listeners(pid), **_tcp_listeners(pid)}
    for fd, link in sorted(links.items()):
        match = re.fullmatch(r"socket:\[(\d+)\]", link)
        if match and match[1] in by_inode:
            yield Listener(fd, by_inode[match[1]])


def _unix_listeners(pid: int) -> dict[str, str]:
    found = {}
    for line in _table(pid, "unix"):
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[3] == _UNIX_LISTENS:
            found[fields[6]] = fields[7]
    return found


def _tcp_listeners(pid: int) -> dict[str, str]:
    found = {}
    for line in [*_table(pid, "tcp"), *_table(pid, "tcp6")]:
        fields = line.split()
        if fields[3] == _TCP_LISTENS:
            found[fields[9]] = f"tcp:{int(fields[1].rpartition(':')[2], 16)}"
    return found


def _table(pid: int, name: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/net/{name}").read_text(errors="surrogateescape").splitlines()[1:]
    except FileNotFoundError:
        return []  # a kernel without IPv6
